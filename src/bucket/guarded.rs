//! The store that everything goes through, SlateDB included: limits, retries and counts around any other.

use super::error::{Meaning, TooShort, Truncated, generic, is, meaning};
use super::limits::{Earlier, Gate, Kind, Limits, PAGE_KEYS, Puts, Requests};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A body of at most this many bytes is read within the attempt, so that a broken connection is another attempt; a longer
/// one is handed on as it comes.
const BUFFERED_BYTES_MAX: u64 = 64 << 20;

#[derive(Clone)]
pub(super) struct Guarded {
    inner: Arc<dyn ObjectStore>,
    gate: Arc<Gate>,
}

impl Guarded {
    pub fn new(inner: Arc<dyn ObjectStore>, limits: Limits, puts: Puts) -> Self {
        Self { inner, gate: Arc::new(Gate::new(limits, puts)) }
    }

    /// The same store with other limits; counts start anew.
    pub fn with_limits(&self, limits: Limits) -> Self {
        Self::new(self.inner.clone(), limits, self.gate.puts())
    }

    pub fn requests(&self) -> Requests {
        self.gate.requests()
    }

    /// A put, and whether an attempt before the last may have had its effect.
    pub async fn put_attempts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> (Result<PutResult>, Earlier) {
        let bytes = payload.content_length() as u64;
        self.gate.run(Kind::Put, bytes, || self.inner.put_opts(at, payload.clone(), options.clone())).await
    }

    /// Exactly these bytes. An object that ends earlier is [`TooShort`] at once; bytes lost on the way are another attempt.
    pub async fn range(&self, at: &Path, range: &Range<u64>) -> Result<Bytes> {
        let wanted = range.end.saturating_sub(range.start);
        let read = || async {
            let error = match self.inner.get_ranges(at, std::slice::from_ref(range)).await {
                Ok(mut found) => match found.pop() {
                    Some(found) if found.len() as u64 == wanted => return Ok(found),
                    found => generic(Truncated { got: found.map_or(0, |f| f.len() as u64), wanted }),
                },
                Err(error) => error,
            };
            // Stores have many ways to say that the object ends earlier: ask for its size.
            if matches!(meaning(&error), Meaning::Refused | Meaning::Failing) || is::<Truncated>(&error) {
                let bytes = self.gate.once(Kind::Head, 0, self.inner.head(at)).await?.size;
                if bytes < range.end {
                    return Err(generic(TooShort { bytes }));
                }
            }
            Err(error)
        };
        self.gate.run(Kind::Get, wanted, read).await.0
    }

    /// Every object below a prefix, in the order of keys: the whole listing is one request with its retries.
    pub async fn list_all(&self, prefix: Option<&Path>) -> Result<Vec<ObjectMeta>> {
        let mut found = self.gate.run_paged(|| self.inner.list(prefix)).await?;
        found.sort_unstable_by(|a, b| a.location.cmp(&b.location));
        Ok(found)
    }

    /// Deletes a page of keys; absent ones count as deleted.
    async fn delete_page(&self, page: &[Path]) -> Result<()> {
        let delete = || async {
            let keys = futures::stream::iter(page.to_vec()).map(Ok).boxed();
            let mut results = self.inner.delete_stream(keys);
            while let Some(result) = results.next().await {
                match result {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        self.gate.run(Kind::Delete, 0, delete).await.0
    }

    pub async fn delete_all(&self, keys: &[Path]) -> Result<()> {
        for page in keys.chunks(PAGE_KEYS as usize) {
            self.delete_page(page).await?;
        }
        Ok(())
    }
}

/// Reads the body within the attempt, and sees that all of it came.
async fn buffered(found: GetResult) -> Result<GetResult> {
    let wanted = found.range.end.saturating_sub(found.range.start);
    let (meta, range) = (found.meta.clone(), found.range.clone());
    let (attributes, extensions) = (found.attributes.clone(), found.extensions.clone());
    let body = found.bytes().await?;
    if body.len() as u64 != wanted {
        return Err(generic(Truncated { got: body.len() as u64, wanted }));
    }
    let payload = GetResultPayload::Stream(futures::stream::once(async move { Ok(body) }).boxed());
    Ok(GetResult { payload, meta, range, attributes, extensions })
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guarded({:?})", self.inner)
    }
}

impl fmt::Display for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for Guarded {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if options.mode == PutMode::Overwrite {
            return self.put_attempts(at, payload, options).await.0;
        }
        // One attempt: SlateDB marks its conditional puts and tells a lost acknowledgement from a conflict itself, which
        // it can only where it sees every attempt.
        let bytes = payload.content_length() as u64;
        self.gate.once(Kind::Put, bytes, self.inner.put_opts(at, payload, options)).await
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let start = || self.inner.put_multipart_opts(at, options.clone());
        let inner = self.gate.run(Kind::Put, 0, start).await.0?;
        Ok(Box::new(GuardedUpload { inner, gate: self.gate.clone() }))
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let kind = if options.head { Kind::Head } else { Kind::Get };
        let read = || async {
            let found = self.gate.step(0, self.inner.get_opts(at, options.clone())).await?;
            let wanted = found.range.end.saturating_sub(found.range.start);
            if options.head || wanted > BUFFERED_BYTES_MAX {
                return Ok(found);
            }
            self.gate.step(wanted, buffered(found)).await
        };
        self.gate.run_stepped(kind, read).await
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        // A range that reaches beyond the end is answered with what is there.
        let wanted: u64 = ranges.iter().map(|r| r.end.saturating_sub(r.start)).sum();
        self.gate.run(Kind::Get, wanted, || self.inner.get_ranges(at, ranges)).await.0
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let pages = keys.try_chunks(PAGE_KEYS as usize).map_err(|e| e.1);
        let deleted = pages.and_then(move |page| {
            let this = this.clone();
            async move {
                this.delete_page(&page).await?;
                Ok(futures::stream::iter(page).map(Ok))
            }
        });
        deleted.try_flatten().boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        let listed = async move { this.list_all(prefix.as_ref()).await };
        futures::stream::once(listed).map_ok(|found| futures::stream::iter(found).map(Ok)).try_flatten().boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix, offset) = (self.clone(), prefix.cloned(), offset.clone());
        let listed = async move { this.gate.run_paged(|| this.inner.list_with_offset(prefix.as_ref(), &offset)).await };
        futures::stream::once(listed).map_ok(|found| futures::stream::iter(found).map(Ok)).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.gate.run(Kind::List, 0, || self.inner.list_with_delimiter(prefix)).await.0
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.gate.once(Kind::Put, 0, self.inner.copy_opts(from, to, options)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.gate.once(Kind::Put, 0, self.inner.rename_opts(from, to, options)).await
    }
}

/// A multipart upload, each request of it within the limits. A part is tried again by the policy that came with the options.
struct GuardedUpload {
    inner: Box<dyn MultipartUpload>,
    gate: Arc<Gate>,
}

impl fmt::Debug for GuardedUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuardedUpload({:?})", self.inner)
    }
}

#[async_trait]
impl MultipartUpload for GuardedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let gate = self.gate.clone();
        let bytes = data.content_length() as u64;
        let part = self.inner.put_part(data);
        Box::pin(async move { gate.once(Kind::Put, bytes, part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.gate.once(Kind::Put, 0, self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.gate.once(Kind::Delete, 0, self.inner.abort()).await
    }
}
