//! Logging in and out, and who the caller is.

use super::ask::Body;
use super::{Problem, Rest};
use crate::admin::access::{Authenticated, Peer, Transport, cookie, cookie_name, from_this_site};
use crate::admin::auth::AGE_MAX;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The caller, as the server knows it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionShape {
    /// The name of its token, certificate or user.
    caller: String,
    /// `viewer`, `reader`, `restorer` or `admin`; null if another authority decides.
    role: Option<&'static str>,
    /// The value of the header `X-Csrf-Token` for requests with an effect; null without a session.
    csrf: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Login {
    /// A token of the tokens file, or the one-time token that the server printed.
    token: String,
}

/// Who the caller is
#[utoipa::path(
    get, path = "/session", tag = "session", responses((status = 200, body = SessionShape))
)]
pub async fn get(State(rest): State<Rest>, known: Authenticated) -> Json<SessionShape> {
    let role = rest.admin.access.roles.role(&known.caller);
    Json(SessionShape {
        caller: known.caller.name,
        role: role.map(crate::admin::auth::Role::as_str),
        csrf: known.session.map(|session| session.csrf),
    })
}

/// Exchange a token for a session's cookie
#[utoipa::path(
    post, path = "/login", tag = "session", request_body = Login, security(()),
    responses((status = 204, description = "The cookie is set"))
)]
pub async fn login(
    State(rest): State<Rest>,
    Extension(peer): Extension<Peer>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    Body(Login { token }): Body<Login>,
) -> Result<Response, Problem> {
    let access = &rest.admin.access;
    from_this_site(peer, &method, &uri, &headers, None)?;
    let (id, session) = match access.sessions.login(token.trim(), &access.tokens) {
        Ok(opened) => opened,
        Err(error) => {
            tracing::warn!(
                target: "audit",
                from = peer.at.map(tracing::field::display), what = "login", outcome = %error,
                "audit"
            );
            let waited = access.wrong_token(peer).await;
            let used = error == crate::admin::auth::LoginError::Used;
            return Err(if used { error.into() } else { waited });
        }
    };
    tracing::info!(
        target: "audit",
        caller = session.caller.name, from = peer.at.map(tracing::field::display),
        what = "login", outcome = "done",
        "audit"
    );
    set_cookie(peer.transport, id.reveal(), AGE_MAX.as_secs())
}

/// End the session
#[utoipa::path(
    post, path = "/logout", tag = "session",
    responses((status = 204, description = "The session has ended"))
)]
pub async fn logout(
    State(rest): State<Rest>,
    known: Authenticated,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if let Some(id) = cookie(&headers, cookie_name(known.peer.transport)) {
        rest.admin.access.sessions.end(id);
    }
    set_cookie(known.peer.transport, "", 0)
}

fn set_cookie(transport: Transport, value: &str, age_secs: u64) -> Result<Response, Problem> {
    let name = cookie_name(transport);
    let secure = if transport == Transport::Tls { "; Secure" } else { "" };
    let cookie =
        format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age_secs}{secure}");
    let cookie = HeaderValue::try_from(cookie)
        .map_err(|_| Problem::of(crate::types::Class::Internal, "the cookie is not a header"))?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response())
}
