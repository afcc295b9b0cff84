//! Files: listings, attributes, contents.

use super::ask::{PathParams, Query};
use super::range::{Answer, Validators};
use super::send::{Sending, attachment};
use super::shape::{EntryShape, Page, lossy};
use super::{Problem, Rest};
use crate::admin::access::Authenticated;
use crate::admin::auth::Action;
use crate::admin::state::audited;
use crate::control::browse::{Cursor, Entry, LIST_MAX, OpenRoot, Root, kind_name, shown_path};
use crate::fs::api::FileKind;
use crate::types::{Class, Classify};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::ops::Range;
use std::time::{Duration, SystemTime};

/// Entries of a page, unless another number is asked for.
const ENTRIES_DEFAULT: usize = 1000;

/// A dataset's state that can be read, and the path that a request names in it.
pub struct At {
    pub root: OpenRoot,
    pub path: Vec<u8>,
    /// For the log: `POOL/DATASET@SNAPSHOT:PATH`.
    pub object: String,
}

/// Opens the state that a request names, for a caller who may do this with it.
pub async fn open(
    rest: &Rest,
    known: &Authenticated,
    action: Action,
    (pool, dataset): (&str, &str),
    query: &Query,
) -> Result<OpenRoot, Problem> {
    let browser = rest.admin.browse(known, action, pool, dataset).await?;
    let root = browser.root(dataset, query.text("snapshot")?).await?;
    Ok(browser.open(&root).await?)
}

/// For the log.
pub fn object(pool: &str, dataset: &str, query: &Query, path: &[u8]) -> Result<String, Problem> {
    let at = query.text("snapshot")?.map_or(String::new(), |snapshot| format!("@{snapshot}"));
    Ok(format!("{pool}/{dataset}{at}:{}", shown_path(path)))
}

async fn at(
    rest: &Rest,
    known: &Authenticated,
    action: Action,
    (pool, dataset): (&str, &str),
    query: &Query,
) -> Result<At, Problem> {
    let path = query.path("path")?.unwrap_or(b"/").to_vec();
    let root = open(rest, known, action, (pool, dataset), query).await?;
    let object = object(pool, dataset, query, &path)?;
    Ok(At { root, path, object })
}

/// The entries of a folder
///
/// In the order of the store, unless one page holds all: then by name.
#[utoipa::path(
    get, path = "/pools/{pool}/datasets/{dataset}/entries", tag = "files",
    params(
        ("pool" = String, Path, example = "main"), ("dataset" = String, Path, example = "web"),
        ("snapshot" = Option<String>, Query,
            description = "Without it: the dataset as the store has it"),
        ("path" = Option<String>, Query, description = "Absolute; its bytes, percent-encoded"),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 10000),
        ("cursor" = Option<String>, Query)
    ),
    responses((status = 200, body = Page<EntryShape>))
)]
pub async fn entries(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, dataset)): PathParams<(String, String)>,
    query: Query,
) -> Result<Json<Page<EntryShape>>, Problem> {
    query.only(&["snapshot", "path", "limit", "cursor"])?;
    let limit = query.limit(ENTRIES_DEFAULT, LIST_MAX)?;
    let cursor = query.text("cursor")?.map(str::parse::<Cursor>).transpose()?;
    let path = query.path("path")?.unwrap_or(b"/");
    let browser = rest.admin.browse(&known, Action::List, &pool, &dataset).await?;
    let root = browser.root(&dataset, query.text("snapshot")?).await?;
    let (entries, next) = match browser.open(&root).await {
        // Nothing was ever written to the dataset.
        Err(error) if error.class() == Class::NotFound && is_top(&root, path) => (vec![], None),
        open => open?.list(path, cursor, limit).await?,
    };
    let items = entries.iter().map(EntryShape::from).collect();
    Ok(Json(Page { items, next: next.map(|cursor| cursor.to_string()) }))
}

fn is_top(root: &Root, path: &[u8]) -> bool {
    matches!(root, Root::Head(_)) && path == b"/"
}

/// The attributes of one object
#[utoipa::path(
    get, path = "/pools/{pool}/datasets/{dataset}/stat", tag = "files",
    params(
        ("pool" = String, Path, example = "main"), ("dataset" = String, Path, example = "web"),
        ("snapshot" = Option<String>, Query), ("path" = Option<String>, Query)
    ),
    responses((status = 200, body = EntryShape))
)]
pub async fn stat(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, dataset)): PathParams<(String, String)>,
    query: Query,
) -> Result<Json<EntryShape>, Problem> {
    query.only(&["snapshot", "path"])?;
    let At { root, path, .. } = at(&rest, &known, Action::List, (&pool, &dataset), &query).await?;
    Ok(Json(EntryShape::from(&root.stat(&path).await?)))
}

/// Read a file, or a range of it
#[utoipa::path(
    get, path = "/pools/{pool}/datasets/{dataset}/content", tag = "files",
    params(
        ("pool" = String, Path, example = "main"), ("dataset" = String, Path, example = "web"),
        ("snapshot" = Option<String>, Query), ("path" = String, Query, example = "/a.txt"),
        ("Range" = Option<String>, Header, description = "One range of bytes"),
        ("If-None-Match" = Option<String>, Header), ("If-Range" = Option<String>, Header)
    ),
    responses(
        (status = 200, description = "The file", content(
            ("application/octet-stream"), ("text/plain"), ("application/pdf"), ("image/png"),
            ("image/jpeg"), ("image/gif"), ("image/webp"), ("image/avif"), ("image/bmp"),
            ("image/x-icon")
        )),
        (status = 206, description = "The range", content(
            ("application/octet-stream"), ("text/plain"), ("application/pdf"), ("image/png"),
            ("image/jpeg"), ("image/gif"), ("image/webp"), ("image/avif"), ("image/bmp"),
            ("image/x-icon")
        )),
        (status = 304, description = "The caller has it")
    )
)]
pub async fn content(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, dataset)): PathParams<(String, String)>,
    query: Query,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    query.only(&["snapshot", "path"])?;
    let At { root, path, object } =
        at(&rest, &known, Action::Read, (&pool, &dataset), &query).await?;
    let file = root.stat(&path).await?;
    if file.kind != FileKind::Regular {
        let why = format!("{} is a {}, not a file", shown_path(&path), kind_name(file.kind));
        return Err(Problem::invalid(why));
    }
    let validators = Validators::new(&file.etag, SystemTime::from(file.mtime));
    let (status, range) = match validators.answer(&headers, file.size) {
        // A range is one of GET only (RFC 9110 §14.2).
        Answer::Part(range) if method != Method::HEAD => (StatusCode::PARTIAL_CONTENT, range),
        Answer::Whole | Answer::Part(_) => (StatusCode::OK, 0..file.size),
        Answer::NotSatisfiable if method == Method::HEAD => (StatusCode::OK, 0..file.size),
        Answer::NotSatisfiable => return Err(Problem::no_such_range(file.size)),
        Answer::Changed => return Err(Problem::condition_failed()),
        Answer::NotModified => {
            let mut response = StatusCode::NOT_MODIFIED.into_response();
            validate(response.headers_mut(), &validators)?;
            return Ok(response);
        }
    };
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        let log = audited(&known, Action::Read, "read", object);
        let place = rest.admin.access.limits.downloads.take(&known.caller)?;
        let pieces = root.read(&file, range.clone());
        Body::from_stream(Sending::new(pieces, range.end - range.start, log, place))
    };
    let mut response = (status, body).into_response();
    describe(response.headers_mut(), &file, status, range)?;
    validate(response.headers_mut(), &validators)?;
    Ok(response)
}

fn validate(headers: &mut HeaderMap, validators: &Validators) -> Result<(), Problem> {
    headers.insert(header::ETAG, value(validators.etag.clone())?);
    if let Some(modified) = validators.modified.filter(|at| has_date(*at)) {
        headers.insert(header::LAST_MODIFIED, value(httpdate::fmt_http_date(modified))?);
    }
    // A copy may be kept by the caller alone, and is asked for again.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    Ok(())
}

/// The dates that HTTP can write end with the year 9999.
fn has_date(at: SystemTime) -> bool {
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    at.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|since| since <= LAST)
}

fn describe(
    headers: &mut HeaderMap,
    file: &Entry,
    status: StatusCode,
    range: Range<u64>,
) -> Result<(), Problem> {
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(file.name())));
    headers.insert(header::CONTENT_DISPOSITION, value(attachment(file.name()))?);
    // Whatever a file holds, no script in it runs here.
    let policy = HeaderValue::from_static("default-src 'none'; sandbox");
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    if status == StatusCode::PARTIAL_CONTENT {
        let text = format!("bytes {}-{}/{}", range.start, range.end - 1, file.size);
        headers.insert(header::CONTENT_RANGE, value(text)?);
    }
    Ok(())
}

fn value(text: String) -> Result<HeaderValue, Problem> {
    let wrong = |_| Problem::of(Class::Internal, "a header cannot be written");
    HeaderValue::try_from(text).map_err(wrong)
}

/// Types that a browser shows without running anything; the name is no proof of the content.
fn content_type(name: &[u8]) -> &'static str {
    let name = lossy(name).to_ascii_lowercase();
    match name.rsplit_once('.').map(|(_, end)| end) {
        Some("txt" | "log" | "md" | "csv" | "json" | "yaml" | "yml" | "toml" | "ini" | "conf") => {
            "text/plain; charset=utf-8"
        }
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("gif") => "image/gif",
        Some("webp") => "image/webp",
        Some("avif") => "image/avif",
        Some("bmp") => "image/bmp",
        Some("ico") => "image/x-icon",
        Some("pdf") => "application/pdf",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_runs_has_a_type() {
        for (name, kind) in [
            (&b"a.PNG"[..], "image/png"),
            (b"notes.md", "text/plain; charset=utf-8"),
            (b"page.html", "application/octet-stream"),
            (b"picture.svg", "application/octet-stream"),
            (b"script.js", "application/octet-stream"),
            (b"png", "application/octet-stream"),
            (b"\xff.png", "image/png"),
        ] {
            assert_eq!(content_type(name), kind);
        }
    }

    #[test]
    fn dates_end_with_the_year_9999() {
        assert!(has_date(SystemTime::UNIX_EPOCH));
        assert!(!has_date(SystemTime::UNIX_EPOCH - Duration::from_secs(1)));
        assert!(!has_date(SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_800)));
    }
}
