//! The HTTP layer below the stores' clients, with workarounds that they have no options for.
//!
//! - A listing may hold keys that the clients have no name for (`a//b`, `a/../b`, control
//!   characters), and fail with all its other keys. Such keys are not ours, and are left out.
//! - A metadata service that does not answer, as behind one network hop too many, blocks a request
//!   until the total time is over, without a reason. It has a limit of its own, and an error with
//!   its name.

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use object_store::path::Path;
use std::time::Duration;

/// Time limit of one request to the metadata service of the machine: it is a millisecond away.
const METADATA_LIMIT: Duration = Duration::from_secs(3);
/// Beginning of the error of a request that took longer.
pub(super) const NO_METADATA: &str = "the metadata service does not answer";

/// Returns whether a URL, or the text of an error with one, is of the machine's own credential
/// service.
pub(super) fn is_metadata(text: &str) -> bool {
    const PATHS: [&str; 4] =
        ["/latest/api/token", "/latest/meta-data/", "/computeMetadata/", "/metadata/identity/"];
    PATHS.iter().any(|path| text.contains(path))
}

#[derive(Debug, Default)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Service(ReqwestConnector::default().connect(options)?)))
    }
}

#[derive(Debug)]
struct Service(HttpClient);

#[derive(Debug, thiserror::Error)]
#[error("{NO_METADATA} within {METADATA_LIMIT:?} at {0}")]
struct NoMetadata(String);

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if is_metadata(request.uri().path()) {
            let at = request.uri().to_string();
            let late = |_| HttpError::new(HttpErrorKind::Timeout, NoMetadata(at));
            return tokio::time::timeout(METADATA_LIMIT, self.0.execute(request))
                .await
                .map_err(late)?;
        }
        let query = request.uri().query().unwrap_or_default();
        let lists = request.method() == "GET"
            && ["list-type=2", "comp=list"].iter().any(|part| query.contains(part));
        let response = self.0.execute(request).await?;
        if !lists || !response.status().is_success() {
            return Ok(response);
        }
        let (mut parts, body) = response.into_parts();
        let body = nameable(body.bytes().await?.into());
        parts.headers.remove("content-length");
        Ok(HttpResponse::from_parts(parts, body.into()))
    }
}

/// Removes from a page of a listing (S3, GCS, Azure) the keys that the clients cannot represent.
fn nameable(page: Vec<u8>) -> Vec<u8> {
    const ELEMENTS: [(&str, &str); 4] = [
        ("Contents", "Key"),
        ("CommonPrefixes", "Prefix"),
        ("Blob", "Name"),
        ("BlobPrefix", "Name"),
    ];
    let mut page = match String::from_utf8(page) {
        Ok(page) => page,
        // The client's own error says what is wrong.
        Err(error) => return error.into_bytes(),
    };
    for (element, name) in ELEMENTS {
        page = without(page, element, |inside| {
            let key = between(inside, &format!("<{name}>"), &format!("</{name}>")).map(unescaped);
            key.is_some_and(|key| Path::parse(key).is_err())
        });
    }
    page.into_bytes()
}

fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    Some(text.split_once(open)?.1.split_once(close)?.0)
}

/// Removes the elements whose content is unwanted. In XML `<` only begins a tag, so tags can be
/// searched for.
fn without(text: String, element: &str, unwanted: impl Fn(&str) -> bool) -> String {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let is_unwanted = |inside: &str| unwanted(inside);
    if !text
        .split(&open)
        .skip(1)
        .any(|rest| rest.split_once(&close).is_some_and(|(inside, _)| is_unwanted(inside)))
    {
        return text;
    }
    let mut parts = text.split(&open);
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(&close) {
            Some((inside, after)) if is_unwanted(inside) => {
                tracing::debug!(
                    element,
                    inside,
                    "skipping a key in the bucket that this program cannot represent"
                );
                kept.push_str(after);
            }
            _ => {
                kept.push_str(&open);
                kept.push_str(part);
            }
        }
    }
    kept
}

fn unescaped(text: &str) -> String {
    let mut parts = text.split('&');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once(';').unwrap_or((part, ""));
        plain.extend(entity(name));
        plain.push_str(rest);
    }
    plain
}

fn entity(name: &str) -> Option<char> {
    let number =
        |digits: &str, radix| u32::from_str_radix(digits, radix).ok().and_then(char::from_u32);
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => match name.strip_prefix("#x") {
            Some(hex) => number(hex, 16),
            None => number(name.strip_prefix('#')?, 10),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_without_a_name_are_left_out_of_a_page() {
        let page = |keys: &[&str]| {
            let contents: String = keys
                .iter()
                .map(|key| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>"))
                .collect();
            let token = "<NextContinuationToken>t</NextContinuationToken>";
            format!("<ListBucketResult>{contents}{token}</ListBucketResult>")
        };
        let filtered =
            |keys: &[&str]| String::from_utf8(nameable(page(keys).into_bytes())).unwrap();
        assert_eq!(
            filtered(&["p/a", "datasets//x", "a/../b", "&amp;b", "p/z"]),
            page(&["p/a", "&amp;b", "p/z"])
        );
        assert_eq!(filtered(&["a&#10;b", "a&#xA;b", "&#x61;"]), page(&["&#x61;"]));
        assert_eq!(filtered(&["//"]), page(&[]));
        let azure = "<Blobs><Blob><Name>a//b</Name></Blob><Blob><Name>a</Name></Blob>\
            <BlobPrefix><Name>p//</Name></BlobPrefix></Blobs>";
        assert_eq!(nameable(azure.into()), b"<Blobs><Blob><Name>a</Name></Blob></Blobs>");
    }
}
