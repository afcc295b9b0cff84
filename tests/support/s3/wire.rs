//! HTTP and XML.

use super::script::{Answer, Effect, Fault, Kind, Reply};
use super::{BUCKET, State};
use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};

const BODY_BYTES_MAX: usize = 256 << 20;

pub(super) async fn serve(listener: std::net::TcpListener, state: Arc<Mutex<State>>) -> Infallible {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let state = state.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|request| handle(request, state.clone()));
            // A cut connection is an error here, and it was meant.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// An error closes the connection.
async fn handle(
    request: hyper::Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> io::Result<hyper::Response<Body>> {
    let virtual_hosted = state.lock().unwrap().objects.quirks.virtual_hosted_only;
    let request = Request::read(request, virtual_hosted).await?;
    // A request that was taken is done, whether the client waits for it or not.
    tokio::spawn(respond(request, state)).await.map_err(io::Error::other)?
}

async fn respond(request: Request, state: Arc<Mutex<State>>) -> io::Result<hyper::Response<Body>> {
    let fault = {
        let mut state = state.lock().unwrap();
        let key = request.subject();
        state.log.push((request.kind, key.clone()));
        state.script.decide(request.kind, &key)
    };
    let fault = fault.unwrap_or(Fault {
        effect: Effect::Done,
        reply: Reply::Own,
        delay: std::time::Duration::ZERO,
    });
    if !fault.delay.is_zero() {
        tokio::time::sleep(fault.delay).await;
    }
    let head = request.kind == Kind::Head;
    let own = {
        let mut state = state.lock().unwrap();
        match fault.effect {
            Effect::Done => Some(state.objects.answer(&request)),
            Effect::Late => {
                state.late.push(request);
                None
            }
            Effect::None => None,
        }
    };
    let cut = || io::Error::other("the connection is cut on purpose");
    match (fault.reply, own) {
        (Reply::Own, Some(own)) => Ok(own.into_http(head, None)),
        (Reply::CutBody(bytes), Some(own)) => Ok(own.into_http(head, Some(bytes))),
        (Reply::Own, None) => std::future::pending().await,
        (Reply::Instead(answer), _) => Ok(Response::from(answer).into_http(head, None)),
        (Reply::Cut | Reply::CutBody(_), _) => Err(cut()),
    }
}

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub kind: Kind,
    pub method: String,
    /// The bucket's name is in the path.
    pub path_style: bool,
    pub bucket: String,
    pub key: String,
    query: Vec<(String, String)>,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Request {
    async fn read(request: hyper::Request<Incoming>, virtual_hosted: bool) -> io::Result<Self> {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(Body::new(body), BODY_BYTES_MAX)
            .await
            .map_err(io::Error::other)?;
        let query =
            parts.uri.query().unwrap_or_default().split('&').filter(|part| !part.is_empty());
        let query: Vec<_> = query.map(|part| part.split_once('=').unwrap_or((part, ""))).collect();
        let query: Vec<_> = query
            .into_iter()
            .map(|(name, value)| (decoded(name), decoded(&value.replace('+', " "))))
            .collect();
        let path = decoded(parts.uri.path().trim_start_matches('/'));
        let (first, rest) = path.split_once('/').unwrap_or((&path, ""));
        let path_style = first == BUCKET || !virtual_hosted;
        let (bucket, key) = if path_style {
            (first.to_owned(), rest.to_owned())
        } else {
            (BUCKET.to_owned(), path)
        };
        let kind = kind(parts.method.as_str(), &key, &query, &parts.headers);
        Ok(Self {
            kind,
            method: parts.method.to_string(),
            path_style,
            bucket,
            key,
            query,
            headers: parts.headers,
            body,
        })
    }

    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn metadata(&self) -> Vec<(String, String)> {
        let ours = self.headers.iter().filter(|(name, _)| name.as_str().starts_with("x-amz-meta-"));
        ours.map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned()))
            .collect()
    }

    /// For the log and the rules.
    fn subject(&self) -> String {
        match self.kind {
            Kind::List => self.query("prefix").unwrap_or_default().to_owned(),
            Kind::Delete if self.key.is_empty() => {
                self.keys_to_delete().into_iter().next().unwrap_or_default()
            }
            _ => self.key.clone(),
        }
    }

    pub fn keys_to_delete(&self) -> Vec<String> {
        let body = String::from_utf8_lossy(&self.body);
        let keys = body.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>"));
        keys.map(|(key, _)| unescaped(key)).collect()
    }
}

fn kind(method: &str, key: &str, query: &[(String, String)], headers: &HeaderMap) -> Kind {
    let has = |name: &str| query.iter().any(|(n, _)| n == name);
    match method {
        _ if has("uploads") || has("uploadId") => Kind::Upload,
        "HEAD" => Kind::Head,
        "GET" if key.is_empty() => Kind::List,
        "PUT" if headers.contains_key("if-none-match") => Kind::PutNew,
        "PUT" if headers.contains_key("if-match") => Kind::PutIf,
        "PUT" => Kind::Put,
        "DELETE" | "POST" => Kind::Delete,
        _ => Kind::Get,
    }
}

pub(super) struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Response {
    pub fn of(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Bytes::new() }
    }

    pub fn error(status: u16, code: &str) -> Self {
        Answer::error(status, code).into()
    }

    pub fn error_saying(status: u16, code: &str, message: &str) -> Self {
        let body = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
        );
        Self::of(status).with_body(body.into())
    }

    pub fn with(mut self, header: &str, value: String) -> Self {
        self.headers.push((header.to_owned(), value));
        self
    }

    pub fn with_body(mut self, body: Bytes) -> Self {
        self.body = body;
        self
    }

    /// `cut`: how many bytes of the body come before the connection is closed.
    fn into_http(self, head: bool, cut: Option<usize>) -> hyper::Response<Body> {
        let mut response = hyper::Response::builder().status(self.status);
        for (name, value) in self.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            response = response.header(name, HeaderValue::from_str(&value).unwrap());
        }
        response = response.header("content-length", self.body.len());
        let body = match cut {
            _ if head => Body::empty(),
            None => Body::from(self.body),
            Some(bytes) => {
                let some = self.body.slice(..bytes.min(self.body.len().saturating_sub(1)));
                let cut = futures::stream::iter([
                    Ok(some),
                    Err(io::Error::other("the body is cut on purpose")),
                ]);
                Body::from_stream(cut.boxed())
            }
        };
        response.body(body).unwrap()
    }
}

impl From<Answer> for Response {
    fn from(answer: Answer) -> Self {
        let headers =
            answer.headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { status: answer.status, headers, body: answer.body.into() }
    }
}

pub(super) fn tag(bytes: &Bytes) -> String {
    format!("\"{}\"", &blake3::hash(bytes).to_hex()[..32])
}

pub(super) fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escape = (*first == b'%').then(|| std::str::from_utf8(tail.get(..2)?).ok()).flatten();
        match escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).unwrap()
}

pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn unescaped(text: &str) -> String {
    let text = text
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'");
    text.replace("&amp;", "&")
}
