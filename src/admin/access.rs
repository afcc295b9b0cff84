//! From requests to callers: who sends it, whether a browser may have been made to send it, and
//! whether the caller sends too many.
//!
//! A request is identified by exactly one of, in this order: a bearer token, the cookie of a
//! session, the peer of the unix socket, the client's certificate. A cookie counts only where no
//! other site can have sent it along (`SameSite=Strict` alone does not separate ports of a host):
//! with an effect, the request has to bring the session's CSRF value in a header, and come from
//! this very origin. Requests without a token are answered only under a name that cannot be pointed
//! here by whoever owns it (DNS rebinding): an IP address, `localhost`, or a configured name.

use super::auth::{
    Action, Admission, Authorizer, Caller, FileAuthorizer, Identified, Limits, LocalUsers,
    RequestLimits, Resource, Session, Sessions, TokenFile,
};
use super::problem::Problem;
use crate::control::browse::{DatasetFacts, split_snapshot};
use axum::http::{HeaderMap, Method, Uri, header};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The header in which a page's scripts bring the CSRF value.
pub const CSRF_HEADER: &str = "x-csrf-token";

/// The other end of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peer {
    /// The address of a TCP connection.
    pub at: Option<SocketAddr>,
    /// The user of a unix socket.
    pub uid: Option<u32>,
    /// The SHA-256 fingerprint of the client's certificate.
    pub certificate: Option<[u8; 32]>,
    pub transport: Transport,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    #[default]
    Plain,
    Tls,
}

/// The caller of a request, and its session if it has one.
#[derive(Clone, Debug)]
pub struct Authenticated {
    pub caller: Caller,
    pub session: Option<Session>,
    pub peer: Peer,
}

/// Everything that decides about access.
pub struct Access {
    pub tokens: Arc<TokenFile>,
    pub sessions: Sessions,
    pub limits: Limits,
    pub authorizer: Arc<dyn Authorizer>,
    /// The authorizer's view of roles, for people to see.
    pub roles: Arc<FileAuthorizer>,
    users: LocalUsers,
    /// Names under which it may be reached, beside addresses.
    hosts: Vec<String>,
}

impl Access {
    pub fn new(tokens: TokenFile, limits: RequestLimits, hosts: Vec<String>) -> Self {
        let (tokens, users) = (Arc::new(tokens), LocalUsers::of_process());
        let roles = Arc::new(FileAuthorizer::new(tokens.clone(), users));
        Self {
            tokens,
            sessions: Sessions::default(),
            limits: Limits::new(limits),
            authorizer: roles.clone(),
            roles,
            users,
            hosts,
        }
    }

    /// The facts of a dataset as this caller may know them: without the name of an origin that the
    /// caller may not see.
    pub async fn known_facts(
        &self,
        caller: &Caller,
        pool: &str,
        facts: DatasetFacts,
    ) -> DatasetFacts {
        let Some(origin) = &facts.origin_name else { return facts };
        let dataset = split_snapshot(origin).map_or(origin.as_str(), |(dataset, _)| dataset);
        let resource = Resource::dataset(pool, dataset);
        match self.authorizer.allow(caller, Action::List, &resource).await {
            Ok(()) => facts,
            Err(_) => DatasetFacts { origin_name: None, ..facts },
        }
    }

    /// Finds out whom a request is from, and counts it.
    pub async fn identify(
        &self,
        peer: Peer,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Authenticated, Problem> {
        let known = match bearer(headers)? {
            Some(token) => match self.tokens.by_token(token) {
                Some(caller) => Authenticated { caller, session: None, peer },
                None => return Err(self.wrong_token(peer).await),
            },
            None => self.without_token(peer, method, uri, headers)?,
        };
        match self.limits.admit(&known.caller) {
            Admission::Admitted => Ok(known),
            Admission::After(wait) => {
                let why = format!("{} sends too many requests: slow down", known.caller.name);
                Err(Problem::too_many(why, wait))
            }
        }
    }

    fn without_token(
        &self,
        peer: Peer,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Authenticated, Problem> {
        if let Some(id) = cookie(headers, cookie_name(peer.transport)) {
            let session = self.sessions.find(id).filter(|session| self.still_holds(session));
            let session = session.ok_or_else(|| {
                Problem::unauthenticated("the session has ended: log in again with a token")
            })?;
            from_this_site(peer, method, uri, headers, Some(&session.csrf))?;
            return Ok(Authenticated {
                caller: session.caller.clone(),
                session: Some(session),
                peer,
            });
        }
        // A browser presents its certificate to whatever page asks for a request.
        from_this_site(peer, method, uri, headers, None)?;
        let of_peer = peer.uid.and_then(|uid| self.users.identify(uid));
        let of_certificate = || peer.certificate.and_then(|it| self.tokens.by_certificate(it));
        match of_peer.or_else(of_certificate) {
            Some(caller) => Ok(Authenticated { caller, session: None, peer }),
            None => Err(Problem::unauthenticated(
                "log in, or send a token: `Authorization: Bearer TOKEN`; `zerofs-csi token create` \
                 makes one",
            )),
        }
    }

    fn still_holds(&self, session: &Session) -> bool {
        match session.caller.how {
            Identified::Printed | Identified::Peer { .. } => true,
            Identified::Token(_) | Identified::Certificate(_) => {
                self.tokens.grant(&session.caller).is_some()
            }
        }
    }

    /// The answer to a wrong token, after a wait.
    pub async fn wrong_token(&self, peer: Peer) -> Problem {
        match self.limits.wrong_token(peer.at.map(|at| at.ip())).await {
            Admission::Admitted => Problem::unauthenticated(
                "the token is not valid: it is wrong, has expired, or was taken out of the tokens \
                 file; make one with `zerofs-csi token create`",
            ),
            Admission::After(wait) => {
                Problem::too_many("too many requests with wrong tokens: try again later", wait)
            }
        }
    }

    /// Refuses a request under a name that somebody else may have pointed here.
    pub fn check_host(&self, peer: Peer, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        if peer.uid.is_some() || headers.contains_key(header::AUTHORIZATION) {
            return Ok(());
        }
        let named = host(uri, headers).map(|host| without_port(host).to_ascii_lowercase());
        let named = named.ok_or_else(|| Problem::invalid("the request names no host"))?;
        let is_ours = named == "localhost"
            || named.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
            || self.hosts.iter().any(|host| host.eq_ignore_ascii_case(&named));
        match is_ours {
            true => Ok(()),
            false => Err(Problem::misdirected(format!(
                "this server does not know itself as {named:?}: use its IP address, or add the \
                 name to admin.hosts of its configuration"
            ))),
        }
    }
}

/// The name of the session's cookie. Browsers take one with the prefix `__Host-` only from this
/// host itself, under TLS.
pub fn cookie_name(transport: Transport) -> &'static str {
    match transport {
        Transport::Plain => "zerofs_session",
        Transport::Tls => "__Host-zerofs_session",
    }
}

fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let token = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    token
        .map(Some)
        .ok_or_else(|| Problem::unauthenticated("only `Authorization: Bearer TOKEN` is supported"))
}

/// The value of a cookie.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let values = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(key, value)| (key == name).then_some(value))
}

fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let of_header = || headers.get(header::HOST).and_then(|value| value.to_str().ok());
    uri.authority().map(axum::http::uri::Authority::as_str).or_else(of_header)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Refuses what another site may have made a browser send. `csrf`: what the request has to bring
/// if it has an effect.
pub fn from_this_site(
    peer: Peer,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    csrf: Option<&str>,
) -> Result<(), Problem> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    // Typed into the address line, it is `none`.
    if text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return Err(Problem::foreign("the request comes from another site"));
    }
    let scheme = if peer.transport == Transport::Tls { "https" } else { "http" };
    let own = host(uri, headers).map(|host| format!("{scheme}://{host}"));
    if let Some(origin) = text("origin")
        && own.as_deref() != Some(origin)
    {
        return Err(Problem::foreign(format!("requests from {origin:?} are not accepted")));
    }
    if matches!(*method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    let Some(csrf) = csrf else { return Ok(()) };
    let brought = text(CSRF_HEADER).map(|value| blake3::hash(value.as_bytes()));
    match brought == Some(blake3::hash(csrf.as_bytes())) {
        true => Ok(()),
        false => Err(Problem::foreign(format!(
            "the header {CSRF_HEADER} is missing or wrong: read its value from GET /api/v1/session"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn access(hosts: &[&str]) -> Access {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        Access::new(TokenFile::open(None).unwrap(), RequestLimits::default(), hosts)
    }

    #[test]
    fn a_name_that_others_own_is_refused() {
        let access = access(&["nas.example"]);
        for (host, ok) in [
            ("127.0.0.1:12080", true),
            ("[::1]:12080", true),
            ("[::1]", true),
            ("localhost", true),
            ("LOCALHOST:80", true),
            ("NAS.example:12080", true),
            ("evil.example", false),
            ("127.0.0.1.evil.example:80", false),
            ("localhost.evil.example", false),
        ] {
            let checked = access.check_host(
                Peer::default(),
                &Uri::from_static("/"),
                &headers(&[("host", host)]),
            );
            assert_eq!(checked.is_ok(), ok, "{host}");
        }
        assert!(access.check_host(Peer::default(), &Uri::from_static("/"), &headers(&[])).is_err());
    }

    #[test]
    fn other_sites_cannot_use_a_session() {
        let host = ("host", "127.0.0.1:12080");
        let csrf = (CSRF_HEADER, "x");
        let own = ("origin", "http://127.0.0.1:12080");
        for (method, pairs, ok) in [
            (Method::GET, vec![host], true),
            (Method::GET, vec![host, ("sec-fetch-site", "same-origin")], true),
            (Method::GET, vec![host, ("sec-fetch-site", "none")], true),
            (Method::GET, vec![host, ("sec-fetch-site", "same-site")], false),
            (Method::GET, vec![host, ("sec-fetch-site", "cross-site")], false),
            (Method::POST, vec![host, csrf, own], true),
            (Method::POST, vec![host, csrf], true),
            (Method::POST, vec![host, own], false),
            (Method::POST, vec![host, (CSRF_HEADER, "y"), own], false),
            (Method::POST, vec![host, csrf, ("origin", "http://127.0.0.1:9999")], false),
            (Method::POST, vec![host, csrf, ("origin", "https://127.0.0.1:12080")], false),
            (Method::POST, vec![host, csrf, ("origin", "null")], false),
            (Method::DELETE, vec![host], false),
        ] {
            let (peer, uri) = (Peer::default(), Uri::from_static("/"));
            let checked = from_this_site(peer, &method, &uri, &headers(&pairs), Some("x"));
            assert_eq!(checked.is_ok(), ok, "{method} {pairs:?}");
        }
    }

    #[tokio::test]
    async fn without_anything_nobody_is_let_in() {
        let access = access(&[]);
        let (method, uri) = (Method::GET, Uri::from_static("/api/v1/pools"));
        for pairs in [
            vec![],
            vec![("cookie", "zerofs_session=zerofs_x")],
            vec![("authorization", "Basic eDp5")],
            vec![("authorization", "Bearer zerofs_x")],
        ] {
            let known = access.identify(Peer::default(), &method, &uri, &headers(&pairs)).await;
            assert!(known.is_err(), "{pairs:?}");
        }
        let root = Peer { uid: Some(0), ..Peer::default() };
        assert!(access.identify(root, &method, &uri, &headers(&[])).await.is_ok());
        let elsewhere = headers(&[("host", "localhost"), ("origin", "https://evil.example")]);
        let known = access.identify(root, &Method::POST, &uri, &elsewhere).await;
        let refused = axum::response::IntoResponse::into_response(known.unwrap_err());
        assert_eq!(refused.status(), axum::http::StatusCode::FORBIDDEN);
    }
}
