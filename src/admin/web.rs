//! The page: files of `src/admin/web/`, which the build puts into the program (`build.rs`).

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::collections::HashMap;
use std::sync::LazyLock;

include!(concat!(env!("OUT_DIR"), "/web_assets.rs"));

/// Served at `/`, and at every path of the page's own.
const INDEX: &str = "index.html";

struct Asset {
    bytes: &'static [u8],
    kind: &'static str,
    etag: HeaderValue,
}

static ALL: LazyLock<HashMap<&'static str, Asset>> = LazyLock::new(|| {
    let asset = |(name, bytes): &(&'static str, &'static [u8])| {
        let etag = format!("\"{}\"", &blake3::hash(bytes).to_hex()[..32]);
        let etag = HeaderValue::try_from(etag).unwrap_or(HeaderValue::from_static("\"\""));
        (*name, Asset { bytes, kind: kind(name), etag })
    };
    WEB_ASSETS.iter().map(asset).collect()
});

fn kind(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, end)| end) {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("ico") => "image/x-icon",
        Some("json" | "webmanifest") => "application/json",
        Some("woff2") => "font/woff2",
        _ => "text/plain; charset=utf-8",
    }
}

/// The file at a path; the page itself where the path has no dot. `None`: there is none.
pub fn serve(path: &str, headers: &HeaderMap) -> Option<Response> {
    let name = path.strip_prefix('/').unwrap_or(path);
    let name = if name.contains('.') { name } else { INDEX };
    let asset = ALL.get(name)?;
    let tags = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let has_it = tags.is_some_and(|tags| tags.split(',').any(|tag| tag.trim() == asset.etag));
    // Asked again each time, so that a page never meets the files of another version.
    let headers = [
        (header::ETAG, asset.etag.clone()),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::CONTENT_TYPE, HeaderValue::from_static(asset.kind)),
    ];
    Some(match has_it {
        true => (StatusCode::NOT_MODIFIED, headers).into_response(),
        false => (headers, Body::from(asset.bytes)).into_response(),
    })
}
