//! Errors of an object store, and which of them are worth a retry.

use crate::types::{Class, Classify};
use std::error::Error as StdError;
use std::io;

#[derive(Debug, Clone, thiserror::Error)]
pub enum BucketError {
    #[error("{url}: {why}")]
    Url { url: String, why: String },
    #[error("{url}: {why}")]
    Options { url: String, why: String },
    #[error("{key}: not found")]
    NotFound { key: String },
    /// The bucket, container or folder itself.
    #[error(
        "{url}: there is no such bucket, container or folder: create it first, or correct the URL \
         ({why})"
    )]
    Missing { url: String, why: String },
    #[error("{key}: access denied: {why}")]
    Denied { key: String, why: String },
    /// After all retries.
    #[error("{key}: the object store does not answer: {why}")]
    Unavailable { key: String, why: String },
    /// The store understood the request and will refuse it again.
    #[error("{key}: the object store refuses the request: {why}")]
    Refused { key: String, why: String },
    #[error("{key}: {why}")]
    Unsupported { key: String, why: String },
    #[error("{key}: object of {bytes} bytes is larger than the {max} allowed")]
    TooLarge { key: String, bytes: u64, max: u64 },
    /// The object is too short for the requested range.
    #[error("{key}: object of {bytes} bytes is too short: {wanted} bytes were expected")]
    Short { key: String, bytes: u64, wanted: u64 },
    #[error("{0}")]
    Injected(#[from] crate::telemetry::Injected),
}

impl Classify for BucketError {
    fn class(&self) -> Class {
        match self {
            Self::Url { .. } | Self::Options { .. } => Class::Invalid,
            Self::NotFound { .. } | Self::Missing { .. } => Class::NotFound,
            Self::Denied { .. } => Class::Denied,
            Self::Unavailable { .. } | Self::Injected(_) => Class::Unavailable,
            Self::Refused { .. } => Class::Precondition,
            Self::Unsupported { .. } => Class::Unsupported,
            Self::TooLarge { .. } | Self::Short { .. } => Class::Corrupt,
        }
    }
}

/// The class of a store's error, for the decision to retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Absent,
    /// The bucket itself is absent.
    Missing,
    /// A condition of the request did not hold.
    Conflict,
    /// 409: the condition did not hold, or another request for the object is still running, perhaps
    /// an earlier attempt of this one. Only reading the object can tell (R35).
    Contended,
    Denied,
    Refused,
    Unsupported,
    /// Worth another attempt; the request may or may not have had its effect.
    Passing,
    /// Not worth another attempt soon; the request may or may not have had its effect.
    Failing,
}

/// An attempt that did not end in time.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
pub(super) struct TimedOut(pub std::time::Duration);

/// A put-if-absent that met another request for the object, and wrote nothing.
#[derive(Debug, thiserror::Error)]
#[error("another request for the object is in progress")]
pub(super) struct InProgress;

/// A read that returned fewer bytes than it should.
#[derive(Debug, thiserror::Error)]
#[error("short read: {got} of {wanted} bytes")]
pub(super) struct Truncated {
    pub got: u64,
    pub wanted: u64,
}

/// An object that ends before the range that was asked for.
#[derive(Debug, thiserror::Error)]
#[error("the object has only {bytes} bytes")]
pub(super) struct TooShort {
    pub bytes: u64,
}

/// Finds one of the above in an error's chain.
pub(super) fn is<T: StdError + 'static>(error: &object_store::Error) -> bool {
    source::<T>(error).is_some()
}

pub(super) fn source<T: StdError + 'static>(error: &object_store::Error) -> Option<&T> {
    match error {
        object_store::Error::Generic { source, .. } => source.downcast_ref(),
        _ => None,
    }
}

pub(super) fn generic(source: impl StdError + Send + Sync + 'static) -> object_store::Error {
    object_store::Error::Generic { store: "bucket", source: Box::new(source) }
}

pub(super) fn meaning(error: &object_store::Error) -> Meaning {
    use object_store::Error as E;
    match error {
        E::Generic { store: "LocalFileSystem" | "InMemory", .. } => return local(error),
        E::Generic { source, .. } if source.is::<TooShort>() => return Meaning::Refused,
        E::NotSupported { .. } | E::NotImplemented { .. } => return Meaning::Unsupported,
        E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } => return Meaning::Refused,
        _ => {}
    }
    let text = raw(error);
    match error {
        E::NotFound { .. }
            if text.contains("NoSuchBucket") || text.contains("ContainerNotFound") =>
        {
            Meaning::Missing
        }
        E::NotFound { .. } => Meaning::Absent,
        E::AlreadyExists { .. } if status(&text) == Some(409) => Meaning::Contended,
        E::AlreadyExists { .. } | E::Precondition { .. } | E::NotModified { .. } => {
            Meaning::Conflict
        }
        _ if [NO_HTTP, BARE_REDIRECT, PAST_THE_END].iter().any(|said| text.contains(said)) => {
            Meaning::Refused
        }
        // A response to HEAD has no body, and so no code: the error may be any of the temporary
        // ones.
        _ if text.contains(HEAD) && status(&text) == Some(400) => Meaning::Passing,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
            of_code(&text).unwrap_or(Meaning::Denied)
        }
        _ => of_code(&text).or_else(|| status(&text).map(of_status)).unwrap_or(Meaning::Passing),
    }
}

/// Codes that are more specific than their status, which differs between stores, or is shared with
/// other kinds of errors.
fn of_code(text: &str) -> Option<Meaning> {
    Some(match code(text)? {
        // The body did not arrive, or not as it was sent.
        "RequestTimeout" | "IncompleteBody" | "BadDigest" | "XAmzContentSHA256Mismatch" => {
            Meaning::Passing
        }
        "SlowDown"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "OperationAborted" => Meaning::Passing,
        // Clocks get corrected: this must not be taken for a permanent error.
        "RequestTimeTooSkewed" | "RequestExpired" => Meaning::Failing,
        "ExpiredToken" | "ExpiredTokenException" | "InvalidToken" | "TokenRefreshRequired" => {
            Meaning::Denied
        }
        code if VIRTUAL_HOSTED_ONLY.contains(&code) => Meaning::Refused,
        _ => return None,
    })
}

fn of_status(status: u16) -> Meaning {
    match status {
        405 | 501 => Meaning::Unsupported,
        // 408 and 429 ask for another attempt (RFC 9110 §15.5.9, RFC 6585 §4).
        408 | 429 | 500.. => Meaning::Passing,
        401 | 403 => Meaning::Denied,
        // The store's crate makes a missing object `NotFound`; the bucket is left.
        404 => Meaning::Missing,
        _ => Meaning::Refused,
    }
}

/// A local store's errors are the kernel's or its own: another attempt a moment later meets the
/// same one.
fn local(error: &object_store::Error) -> Meaning {
    match io_kind(error) {
        Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
            Meaning::Denied
        }
        // A folder that was removed because it was empty, while an object was being put into it.
        Some(io::ErrorKind::NotFound | io::ErrorKind::Interrupted) => Meaning::Passing,
        _ => Meaning::Failing,
    }
}

/// The client's message about an endpoint that it may not use in the clear.
const NO_HTTP: &str = "URL scheme is not allowed";

fn io_kind(error: &(dyn StdError + 'static)) -> Option<io::ErrorKind> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        at = error.source();
    }
    None
}

/// The client's message where a store answers a range past an object's end as if it were within
/// (azurite).
const PAST_THE_END: &str = "Wanted range starting at";
/// The request's name in the client's error.
const HEAD: &str = "Error performing HEAD ";
/// The client's message for a redirect without a location.
const BARE_REDIRECT: &str = "Received redirect without LOCATION";
/// The error code of stores for a request whose path begins with the bucket (Alibaba OSS, Tencent
/// COS, Volcengine TOS).
const VIRTUAL_HOSTED_ONLY: [&str; 3] =
    ["SecondLevelDomainForbidden", "PathStyleDomainForbidden", "InvalidPathAccess"];

/// The HTTP status in an error: the type that holds it is private to the store's crate, its text is
/// not.
fn status(text: &str) -> Option<u16> {
    let rest = text.split_once("status code: ")?.1;
    rest.get(..3)?.parse().ok()
}

/// The store's own code in an error: S3, GCS and Azure have it in the same element.
fn code(text: &str) -> Option<&str> {
    Some(text.split_once("<Code>")?.1.split_once("</Code>")?.0)
}

/// The error and everything below it, in one line.
fn raw(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(below) = at {
        let more = below.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        at = below.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// As [`raw`], of bounded length, and with the remedy where one is known.
pub(super) fn text(error: &object_store::Error) -> String {
    const CHARS_MAX: usize = 600;
    let raw = raw(error);
    let line = match raw.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &raw[..end]),
        None => raw.clone(),
    };
    match hint(&raw) {
        Some(hint) => format!("{hint} ({line})"),
        None => line,
    }
}

/// The cause and the option for common errors whose text contains neither.
fn hint(text: &str) -> Option<&'static str> {
    let code = code(text).unwrap_or_default();
    let is_checksum = text.contains("x-amz-checksum") || text.contains("Content-MD5");
    Some(match status(text) {
        _ if text.contains(NO_HTTP) => {
            "the endpoint is http://, which needs the option allow_http (or AWS_ALLOW_HTTP, …) to \
             be true"
        }
        _ if text.contains(super::http::NO_METADATA) => {
            "no credentials were given, and this machine's metadata service does not answer: set \
             credentials in the environment, the \
             configuration or the Secret; or, where the machine has a role, let its metadata reach \
             pods (on EC2 a hop limit of 2: \
             http-put-response-hop-limit)"
        }
        _ if super::http::is_metadata(text) => {
            "no credentials were given, and this machine has none of its own: set them in the \
             environment, the configuration or the Secret"
        }
        _ if text.contains(BARE_REDIRECT) => WRONG_REGION,
        Some(301 | 302 | 307 | 308) => WRONG_REGION,
        Some(413) => TOO_LARGE,
        _ if code == "EntityTooLarge" => TOO_LARGE,
        Some(405 | 501) if text.contains("?delete") => {
            "the store does not implement DeleteObjects: set the option disable_bulk_delete to true"
        }
        _ if code == "RequestTimeTooSkewed" => {
            "this machine's clock differs from the store's by more than the store allows: set the \
             clock (NTP)"
        }
        _ if code.starts_with("ExpiredToken") || code == "TokenRefreshRequired" => {
            "the credentials have expired: renew them"
        }
        _ if VIRTUAL_HOSTED_ONLY.contains(&code) => {
            "the store accepts the bucket only in the host's name: set the option \
             virtual_hosted_style_request to true, and endpoint to \
             https://BUCKET.HOST"
        }
        Some(400) if is_checksum => {
            "the bucket wants a checksum with every object, as one with object lock does: set the \
             option checksum_algorithm to sha256"
        }
        _ => return None,
    })
}

const WRONG_REGION: &str = "the bucket is in another region, or behind another endpoint: set the \
    option region (or endpoint)";
const TOO_LARGE: &str = "the store, or a proxy before it, does not accept objects of this size: \
    raise its limit to 32 MiB (nginx: client_max_body_size)";

/// The error of a request about `key` (or about the whole bucket).
pub(super) fn of_store(url: &str, key: &str, error: &object_store::Error) -> BucketError {
    let key = if key.is_empty() { url.to_owned() } else { format!("{url}: {key}") };
    let why = text(error);
    match meaning(error) {
        Meaning::Absent => BucketError::NotFound { key },
        Meaning::Missing => BucketError::Missing { url: url.to_owned(), why },
        Meaning::Denied => BucketError::Denied { key, why },
        Meaning::Conflict | Meaning::Refused => BucketError::Refused { key, why },
        Meaning::Unsupported => BucketError::Unsupported { key, why },
        Meaning::Contended | Meaning::Passing | Meaning::Failing => {
            BucketError::Unavailable { key, why }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(status: &str) -> object_store::Error {
        generic(io::Error::other(format!(
            "Error performing PUT: Server returned non-2xx status code: {status}: body"
        )))
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for passing in [
            "503 Service Unavailable",
            "500 Internal Server Error",
            "429 Too Many Requests",
            "408 Request Timeout",
        ] {
            assert_eq!(meaning(&http(passing)), Meaning::Passing, "{passing}");
        }
        for refused in ["400 Bad Request", "416 Range Not Satisfiable", "301 Moved Permanently"] {
            assert_eq!(meaning(&http(refused)), Meaning::Refused, "{refused}");
        }
        for unsupported in ["501 Not Implemented", "405 Method Not Allowed"] {
            assert_eq!(meaning(&http(unsupported)), Meaning::Unsupported, "{unsupported}");
        }
        let head = generic(io::Error::other(
            "Error performing HEAD http://s/b/k in 1ms - Server returned non-2xx status code: 400 \
             Bad Request: ",
        ));
        assert_eq!(meaning(&head), Meaning::Passing);
        assert_eq!(
            meaning(&generic(TimedOut(std::time::Duration::from_secs(1)))),
            Meaning::Passing
        );
        let denied = io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
        let local =
            |io| object_store::Error::Generic { store: "LocalFileSystem", source: Box::new(io) };
        assert_eq!(meaning(&local(denied)), Meaning::Denied);
        assert_eq!(meaning(&local(io::Error::from(io::ErrorKind::StorageFull))), Meaning::Failing);
    }

    #[test]
    fn the_text_of_an_error_is_bounded() {
        assert!(text(&generic(io::Error::other("é".repeat(5000)))).chars().count() <= 601);
    }

    #[test]
    fn a_missing_bucket_is_not_a_missing_object() {
        assert_eq!(meaning(&http("404 Not Found")), Meaning::Missing);
        assert_eq!(meaning(&http("403 Forbidden")), Meaning::Denied);
        let in_the_clear = generic(io::Error::other("builder error: URL scheme is not allowed"));
        assert_eq!(meaning(&in_the_clear), Meaning::Refused);
        assert!(text(&in_the_clear).starts_with("the endpoint is http://"));
        let absent = |body: &str| object_store::Error::NotFound {
            path: "k".into(),
            source: body.to_owned().into(),
        };
        assert_eq!(meaning(&absent("<Code>NoSuchKey</Code>")), Meaning::Absent);
        assert_eq!(meaning(&absent("<Code>NoSuchBucket</Code>")), Meaning::Missing);
    }
}
