//! The behaviour of a correct server, and how others differ.

use super::BUCKET;
use super::script::Kind;
use super::wire::{Request, Response, escaped, tag};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use std::time::SystemTime;

/// Lasting differences from S3.
#[derive(Clone, Debug)]
pub struct Quirks {
    /// A put-if-absent overwrites.
    pub ignores_if_none_match: bool,
    /// 501 to a put with a condition.
    pub refuses_if_none_match: bool,
    /// 200 with the whole object to `bytes=-N`.
    pub ignores_suffix_ranges: bool,
    /// `x-amz-meta-…` is not kept.
    pub drops_metadata: bool,
    /// 413 to a longer body, as a proxy before the store does.
    pub body_bytes_max: Option<usize>,
    /// 400 to a put without a checksum, as a bucket with object lock does.
    pub wants_checksum: bool,
    /// 501 to `DeleteObjects`.
    pub refuses_bulk_delete: bool,
    /// 403 to a path-style request. The host of any other names the bucket, which is not checked.
    pub virtual_hosted_only: bool,
    /// Listings come in an order of the store's own, as those of S3 directory buckets do.
    pub unordered_listings: bool,
    pub page_keys: usize,
    /// 400 to everything that is signed with this access key, as with a session token that has
    /// expired.
    pub expired_key: Option<&'static str>,
}

impl Default for Quirks {
    fn default() -> Self {
        Self {
            ignores_if_none_match: false,
            refuses_if_none_match: false,
            ignores_suffix_ranges: false,
            drops_metadata: false,
            body_bytes_max: None,
            wants_checksum: false,
            refuses_bulk_delete: false,
            virtual_hosted_only: false,
            unordered_listings: false,
            page_keys: 1000,
            expired_key: None,
        }
    }
}

struct Object {
    bytes: Bytes,
    tag: String,
    modified: SystemTime,
    /// `x-amz-meta-…`
    metadata: Vec<(String, String)>,
}

#[derive(Default)]
pub(super) struct Objects {
    pub quirks: Quirks,
    /// Requests that were refused for their key.
    pub keys_refused: usize,
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, BTreeMap<usize, Bytes>>,
    next_upload: usize,
}

impl Objects {
    pub fn keys(&self) -> Vec<String> {
        self.objects.keys().cloned().collect()
    }

    pub fn insert(&mut self, key: &str, bytes: &'static [u8]) {
        self.store(key, Bytes::from_static(bytes), Vec::new());
    }

    pub fn remove(&mut self, key: &str) {
        self.objects.remove(key);
    }

    fn store(&mut self, key: &str, bytes: Bytes, metadata: Vec<(String, String)>) -> String {
        let tag = tag(&bytes);
        let object = Object { bytes, tag: tag.clone(), modified: SystemTime::now(), metadata };
        self.objects.insert(key.to_owned(), object);
        tag
    }

    pub fn answer(&mut self, request: &Request) -> Response {
        if let Some(refused) = self.refused(request) {
            return refused;
        }
        match request.kind {
            Kind::Get | Kind::Head => self.get(request),
            Kind::Put | Kind::PutNew | Kind::PutIf => self.put(request),
            Kind::List => self.list(request),
            Kind::Delete => self.delete(request),
            Kind::Upload => self.upload(request),
        }
    }

    fn refused(&mut self, request: &Request) -> Option<Response> {
        let quirks = &self.quirks;
        let signed = request
            .headers
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        if quirks.expired_key.is_some_and(|key| signed.contains(&format!("Credential={key}/"))) {
            self.keys_refused += 1;
            return Some(Response::error(400, "ExpiredToken"));
        }
        if quirks.body_bytes_max.is_some_and(|max| request.body.len() > max) {
            return Some(
                Response::of(413)
                    .with_body("<html><title>413 Request Entity Too Large</title></html>".into()),
            );
        }
        if quirks.virtual_hosted_only && request.path_style {
            return Some(Response::error(403, "SecondLevelDomainForbidden"));
        }
        if request.bucket != BUCKET {
            return Some(Response::error(404, "NoSuchBucket"));
        }
        if quirks.refuses_if_none_match && request.kind == Kind::PutNew {
            return Some(Response::error(501, "NotImplemented"));
        }
        let sums = ["content-md5", "x-amz-checksum-sha256", "x-amz-checksum-crc64nvme"];
        let puts = matches!(request.kind, Kind::Put | Kind::PutNew | Kind::PutIf);
        if quirks.wants_checksum
            && puts
            && !sums.iter().any(|sum| request.headers.contains_key(*sum))
        {
            let why = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object \
                requests with Object Lock parameters";
            return Some(Response::error_saying(400, "InvalidRequest", why));
        }
        None
    }

    fn get(&self, request: &Request) -> Response {
        let Some(object) = self.objects.get(&request.key) else {
            return Response::error(404, "NoSuchKey");
        };
        let size = object.bytes.len();
        let (status, range) =
            match request.header("range").and_then(|range| range.strip_prefix("bytes=")) {
                None => (200, 0..size),
                Some(range) if range.starts_with('-') && self.quirks.ignores_suffix_ranges => {
                    (200, 0..size)
                }
                Some(range) => match within(range, size) {
                    Some(range) => (206, range),
                    None => return Response::error(416, "InvalidRange"),
                },
            };
        let mut response = Response::of(status)
            .with("etag", object.tag.clone())
            .with(
                "last-modified",
                DateTime::<Utc>::from(object.modified)
                    .format("%a, %d %b %Y %H:%M:%S GMT")
                    .to_string(),
            )
            .with("accept-ranges", "bytes".into());
        for (name, value) in &object.metadata {
            response = response.with(name, value.clone());
        }
        if status == 206 {
            let last = range.end.saturating_sub(1);
            response =
                response.with("content-range", format!("bytes {}-{last}/{size}", range.start));
        }
        response.with_body(object.bytes.slice(range))
    }

    fn put(&mut self, request: &Request) -> Response {
        let present = self.objects.get(&request.key);
        if request.kind == Kind::PutNew && present.is_some() && !self.quirks.ignores_if_none_match {
            return Response::error(412, "PreconditionFailed");
        }
        if let (Kind::PutIf, Some(wanted)) = (request.kind, request.header("if-match")) {
            match present {
                None => return Response::error(404, "NoSuchKey"),
                Some(object) if object.tag != wanted => {
                    return Response::error(412, "PreconditionFailed");
                }
                Some(_) => {}
            }
        }
        if let Some(source) = request.header("x-amz-copy-source") {
            let source = super::wire::decoded(source);
            let from = source
                .trim_start_matches('/')
                .strip_prefix(BUCKET)
                .unwrap_or(&source)
                .trim_start_matches('/');
            let Some(object) = self.objects.get(from) else {
                return Response::error(404, "NoSuchKey");
            };
            let (bytes, metadata) = (object.bytes.clone(), object.metadata.clone());
            let tag = self.store(&request.key, bytes, metadata);
            let body =
                format!("<CopyObjectResult><ETag>{}</ETag></CopyObjectResult>", escaped(&tag));
            return Response::of(200).with_body(body.into());
        }
        let metadata = if self.quirks.drops_metadata { Vec::new() } else { request.metadata() };
        let tag = self.store(&request.key, request.body.clone(), metadata);
        Response::of(200).with("etag", tag)
    }

    fn delete(&mut self, request: &Request) -> Response {
        if request.query("delete").is_none() {
            self.objects.remove(&request.key);
            return Response::of(204);
        }
        if self.quirks.refuses_bulk_delete {
            return Response::error(501, "NotImplemented");
        }
        let mut body = String::from("<DeleteResult>");
        for key in request.keys_to_delete() {
            self.objects.remove(&key);
            body += &format!("<Deleted><Key>{}</Key></Deleted>", escaped(&key));
        }
        Response::of(200).with_body((body + "</DeleteResult>").into())
    }

    fn list(&self, request: &Request) -> Response {
        let prefix = request.query("prefix").unwrap_or_default();
        let mut found: Vec<(&String, &Object)> =
            self.objects.iter().filter(|(key, _)| key.starts_with(prefix)).collect();
        if self.quirks.unordered_listings {
            found.sort_by_key(|(key, _)| *blake3::hash(key.as_bytes()).as_bytes());
        } else if let Some(after) = request.query("start-after") {
            found.retain(|(key, _)| key.as_str() > after);
        }
        let from: usize =
            request.query("continuation-token").map_or(0, |token| token.parse().unwrap());
        let max =
            request.query("max-keys").map_or(self.quirks.page_keys, |max| max.parse().unwrap());
        // A token counts keys: listings of a test are not expected to change under it.
        let page = found.iter().skip(from).take(max.min(self.quirks.page_keys));
        let (mut contents, mut prefixes, mut taken) =
            (String::new(), std::collections::BTreeSet::new(), 0);
        for (key, object) in page {
            taken += 1;
            let below = request
                .query("delimiter")
                .and_then(|delimiter| key[prefix.len()..].find(delimiter));
            if let Some(end) = below {
                prefixes.insert(&key[..=prefix.len() + end]);
                continue;
            }
            let modified = DateTime::<Utc>::from(object.modified)
                .to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
            contents += &format!(
                "<Contents><Key>{}</Key><LastModified>{modified}</LastModified><ETag>{}</ETag>\
                 <Size>{}</Size></Contents>",
                escaped(key),
                escaped(&object.tag),
                object.bytes.len()
            );
        }
        for prefix in prefixes {
            contents +=
                &format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escaped(prefix));
        }
        if from + taken < found.len() {
            contents += &format!("<NextContinuationToken>{}</NextContinuationToken>", from + taken);
        }
        Response::of(200)
            .with_body(format!("<ListBucketResult>{contents}</ListBucketResult>").into())
    }

    fn upload(&mut self, request: &Request) -> Response {
        let Some(id) = request.query("uploadId").map(str::to_owned) else {
            self.next_upload += 1;
            let id = format!("upload-{}", self.next_upload);
            self.uploads.insert(id.clone(), BTreeMap::new());
            let body = format!("<UploadId>{id}</UploadId>");
            let body =
                format!("<InitiateMultipartUploadResult>{body}</InitiateMultipartUploadResult>");
            return Response::of(200).with_body(body.into());
        };
        let Some(parts) = self.uploads.get_mut(&id) else {
            return Response::error(404, "NoSuchUpload");
        };
        if let Some(part) = request.query("partNumber") {
            parts.insert(part.parse().unwrap(), request.body.clone());
            return Response::of(200).with("etag", tag(&request.body));
        }
        let parts = self.uploads.remove(&id).unwrap_or_default();
        if request.method == "DELETE" {
            return Response::of(204);
        }
        let whole: Vec<u8> = parts.into_values().flatten().collect();
        let tag = self.store(&request.key, whole.into(), Vec::new());
        let body = format!(
            "<CompleteMultipartUploadResult><ETag>{}</ETag></CompleteMultipartUploadResult>",
            escaped(&tag)
        );
        Response::of(200).with_body(body.into())
    }
}

/// The part of an object that a `Range` names, if there is any (RFC 9110 §14.1.2).
fn within(range: &str, size: usize) -> Option<std::ops::Range<usize>> {
    let (first, last) = range.split_once('-')?;
    let range = match (first.parse::<usize>().ok(), last.parse::<usize>().ok()) {
        (Some(first), Some(last)) => first..last.saturating_add(1).min(size),
        (Some(first), None) => first..size,
        (None, Some(suffix)) => size.saturating_sub(suffix)..size,
        (None, None) => return None,
    };
    (range.start < range.end).then_some(range)
}
