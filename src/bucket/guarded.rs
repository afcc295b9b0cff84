//! The store that everything goes through, SlateDB included: limits, retries and counts around any
//! other.

use super::PutNew;
use super::error::{InProgress, Meaning, TimedOut, TooShort, Truncated, generic, is, meaning};
use super::limits::{Earlier, Limits, PAGE_KEYS, Puts, RequestKind, RequestLimiter, Requests};
use super::pages::Listing;
use super::rate::Rate;
use super::refusal::Refusals;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, RenameOptions, Result, UploadPart,
};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use tokio::time::Instant;

/// A body of at most this many bytes is read within the attempt, so that a broken connection is
/// another attempt; a longer one is passed on as it arrives.
const BUFFERED_BYTES_MAX: u64 = 64 << 20;

#[derive(Clone)]
pub(super) struct Guarded {
    inner: Arc<dyn ObjectStore>,
    limiter: Arc<RequestLimiter>,
    refusals: Arc<Refusals>,
}

impl Guarded {
    pub fn new(inner: Arc<dyn ObjectStore>, limits: Limits, puts: Puts) -> Self {
        Self {
            inner,
            limiter: Arc::new(RequestLimiter::new(limits, puts)),
            refusals: Arc::default(),
        }
    }

    /// The same store with other limits and counters at zero.
    pub fn with_limits(&self, limits: Limits) -> Self {
        Self::new(self.inner.clone(), limits, self.limiter.puts())
    }

    pub fn requests(&self) -> Requests {
        self.limiter.requests()
    }

    /// Counts a read that was done beside the store.
    pub fn count_read(&self) {
        self.limiter.count(RequestKind::Get, 1);
    }

    /// Returns the reason why the store refuses puts.
    pub fn refusal(&self) -> Option<String> {
        self.refusals.last()
    }

    /// A put, and whether an attempt before the last may have had its effect.
    pub async fn put_attempts(
        &self,
        at: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> (Result<PutResult>, Earlier) {
        let (bytes, rate) = (payload.content_length() as u64, &self.limiter.rate);
        let put = || async {
            let began = Instant::now();
            let put = self.put_once(at, &payload, &options).await?;
            rate.moved(bytes, began.elapsed());
            Ok(put)
        };
        let mut earlier = Earlier::None;
        loop {
            let turn = rate.turn(bytes).await;
            let at_rate = rate.now();
            let (result, known) = self.limiter.run(RequestKind::Put, bytes, put).await;
            drop(turn);
            if known == Earlier::Unknown {
                earlier = Earlier::Unknown;
            }
            match &result {
                Err(error)
                    if self.is_slow(at, bytes, error).await && rate.was_too_slow(at_rate) =>
                {
                    tracing::info!(
                        bytes,
                        bytes_per_sec = rate.now(),
                        "uploads to the object store take longer than expected: they get more time"
                    );
                }
                _ => {
                    self.refusals.note(bytes, &result);
                    return (result, earlier);
                }
            }
        }
    }

    /// Returns whether a large body timed out although the store answers: then the link is slow.
    async fn is_slow(&self, at: &Path, bytes: u64, error: &object_store::Error) -> bool {
        if !Rate::is_large(bytes) || !is::<TimedOut>(error) {
            return false;
        }
        match self.limiter.once(RequestKind::Head, 0, self.inner.head(at)).await {
            Ok(_) => true,
            Err(error) => !matches!(meaning(&error), Meaning::Passing | Meaning::Failing),
        }
    }

    /// Creates an object unless it exists (R35).
    pub async fn put_new(&self, at: &Path, payload: PutPayload) -> Result<PutNew> {
        let options = PutOptions::from(PutMode::Create);
        match self.put_attempts(at, payload.clone(), options.clone()).await {
            (Ok(_), _) => Ok(PutNew::Created),
            (Err(error), Earlier::None) if meaning(&error) == Meaning::Conflict => {
                Ok(PutNew::Exists)
            }
            // The object in the way may come from an earlier attempt.
            (Err(error), Earlier::Unknown) if meaning(&error) == Meaning::Conflict => {
                match self.find(at, &payload, &options).await? {
                    Found::Ours(_) => Ok(PutNew::Created),
                    Found::Others | Found::Nothing => Ok(PutNew::Exists),
                }
            }
            (Err(error), _) => Err(error),
        }
    }

    /// One attempt of a put. When a put-if-absent meets another request for the object, the object
    /// itself decides: S3 answers 409 while an earlier attempt still runs, and Azure where the
    /// object exists.
    async fn put_once(
        &self,
        at: &Path,
        payload: &PutPayload,
        options: &PutOptions,
    ) -> Result<PutResult> {
        let error = match self.inner.put_opts(at, payload.clone(), options.clone()).await {
            Err(error)
                if options.mode == PutMode::Create && meaning(&error) == Meaning::Contended =>
            {
                error
            }
            result => return result,
        };
        match self.look(at, payload, options).await? {
            Found::Ours(meta) => Ok(done(meta)),
            // The outcome is known: the status, which marks it as in doubt, is dropped.
            Found::Others => {
                tracing::debug!(%at, %error, "lost a conflict to another writer");
                Err(object_store::Error::AlreadyExists {
                    path: at.to_string(),
                    source: "another writer's object exists".into(),
                })
            }
            Found::Nothing => Err(generic(InProgress)),
        }
    }

    /// Finds the object that exists after a put-if-absent of unknown outcome.
    async fn find(&self, at: &Path, payload: &PutPayload, options: &PutOptions) -> Result<Found> {
        let wanted = payload.content_length() as u64;
        self.limiter.run(RequestKind::Get, wanted, || self.look(at, payload, options)).await.0
    }

    /// As [`Self::find`], within the attempt that the doubt came from.
    async fn look(&self, at: &Path, payload: &PutPayload, options: &PutOptions) -> Result<Found> {
        let found = match self.inner.get_opts(at, GetOptions::default()).await {
            Ok(found) => found,
            Err(error) if meaning(&error) == Meaning::Absent => return Ok(Found::Nothing),
            Err(error) => return Err(error),
        };
        let (meta, wanted) = (found.meta.clone(), payload.content_length() as u64);
        // A store that keeps the mark of the put identifies it.
        let mark = options
            .attributes
            .iter()
            .find_map(|(name, mark)| found.attributes.get(name).map(|kept| kept == mark));
        let is_ours = match mark {
            Some(is_ours) => is_ours,
            // Other stores drop the mark: then the bytes decide. An empty object is like every
            // other one, and counts as no one's: SlateDB, which fences writers with those, makes
            // the next one.
            None if wanted == 0 || meta.size != wanted => false,
            None => self.buffered(found).await?.bytes().await? == Bytes::from(payload.clone()),
        };
        Ok(if is_ours { Found::Ours(meta) } else { Found::Others })
    }

    /// Exactly these bytes. An object that ends earlier is [`TooShort`] at once; bytes lost on the
    /// way are another attempt.
    pub async fn range(&self, at: &Path, range: &Range<u64>) -> Result<Bytes> {
        let wanted = range.end.saturating_sub(range.start);
        let read = || async {
            let error = match self.read(at, range).await {
                Ok(found) if found.len() as u64 == wanted => return Ok(found),
                Ok(found) => generic(Truncated { got: found.len() as u64, wanted }),
                Err(error) => error,
            };
            // Stores have many ways to say that the object ends earlier: ask for its size.
            if matches!(meaning(&error), Meaning::Refused | Meaning::Failing)
                || is::<Truncated>(&error)
            {
                let bytes =
                    self.limiter.once(RequestKind::Head, 0, self.inner.head(at)).await?.size;
                if bytes < range.end {
                    return Err(generic(TooShort { bytes }));
                }
            }
            Err(error)
        };
        match Rate::is_large(wanted) {
            true => self.limiter.run_stepped(RequestKind::Get, read).await,
            false => self.limiter.run(RequestKind::Get, wanted, read).await.0,
        }
    }

    async fn read(&self, at: &Path, range: &Range<u64>) -> Result<Bytes> {
        if Rate::is_large(range.end.saturating_sub(range.start)) {
            let options = GetOptions {
                range: Some(GetRange::Bounded(range.clone())),
                ..GetOptions::default()
            };
            return self.body(self.limiter.step(self.inner.get_opts(at, options)).await?).await;
        }
        let found = self.inner.get_ranges(at, std::slice::from_ref(range)).await?;
        Ok(found.into_iter().next_back().unwrap_or_default())
    }

    /// Reads the whole body within the attempt: it has time while data keeps arriving.
    async fn body(&self, found: GetResult) -> Result<Bytes> {
        if matches!(found.payload, GetResultPayload::File(..)) {
            return found.bytes().await;
        }
        let size =
            usize::try_from(found.range.end.saturating_sub(found.range.start)).unwrap_or_default();
        let mut body = found.into_stream();
        let first = self.part(&mut body).await?.unwrap_or_default();
        if first.len() >= size {
            return Ok(first);
        }
        let mut whole = BytesMut::with_capacity(size);
        whole.extend_from_slice(&first);
        while let Some(part) = self.part(&mut body).await? {
            whole.extend_from_slice(&part);
        }
        Ok(whole.freeze())
    }

    async fn part(&self, body: &mut BoxStream<'static, Result<Bytes>>) -> Result<Option<Bytes>> {
        self.limiter.step(async { body.next().await.transpose() }).await
    }

    /// Reads the body within the attempt, and checks that it is complete.
    async fn buffered(&self, found: GetResult) -> Result<GetResult> {
        let wanted = found.range.end.saturating_sub(found.range.start);
        let (meta, range) = (found.meta.clone(), found.range.clone());
        let (attributes, extensions) = (found.attributes.clone(), found.extensions.clone());
        let body = self.body(found).await?;
        if body.len() as u64 != wanted {
            return Err(generic(Truncated { got: body.len() as u64, wanted }));
        }
        let payload =
            GetResultPayload::Stream(futures::stream::once(async move { Ok(body) }).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    /// Every object below a prefix, some at a time.
    pub fn pages(&self, prefix: Option<&Path>, after: Option<&Path>) -> Listing {
        Listing::new(self.inner.clone(), self.limiter.clone(), prefix.cloned(), after.cloned())
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
        self.limiter.run(RequestKind::Delete, 0, delete).await.0
    }

    pub async fn delete_all(&self, keys: &[Path]) -> Result<()> {
        for page in keys.chunks(PAGE_KEYS as usize) {
            self.delete_page(page).await?;
        }
        Ok(())
    }
}

/// The step at which a put-if-absent failed.
enum Found {
    /// The put, or an earlier attempt of it, wrote the object.
    Ours(ObjectMeta),
    Others,
    Nothing,
}

fn done(meta: ObjectMeta) -> PutResult {
    PutResult { e_tag: meta.e_tag, version: meta.version, extensions: Default::default() }
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
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        if options.mode == PutMode::Overwrite {
            return self.put_attempts(at, payload, options).await.0;
        }
        // One attempt: SlateDB retries. By a mark of its own it distinguishes a lost
        // acknowledgement from a conflict, but not where the store drops that mark. (A folder
        // recognises its own objects itself.)
        let bytes = payload.content_length() as u64;
        let rate = &self.limiter.rate;
        let (turn, at_rate) = (rate.turn(bytes).await, rate.now());
        let put =
            self.limiter.once(RequestKind::Put, bytes, self.put_once(at, &payload, &options)).await;
        drop(turn);
        self.refusals.note(bytes, &put);
        let error = match put {
            Err(error) => error,
            put => return put,
        };
        if meaning(&error) != Meaning::Conflict
            || options.mode != PutMode::Create
            || self.limiter.puts() == Puts::Unlimited
        {
            if self.is_slow(at, bytes, &error).await {
                rate.was_too_slow(at_rate);
            }
            return Err(error);
        }
        match self.find(at, &payload, &options).await? {
            Found::Ours(meta) => Ok(done(meta)),
            Found::Others | Found::Nothing => Err(error),
        }
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let start = || self.inner.put_multipart_opts(at, options.clone());
        let inner = self.limiter.run(RequestKind::Put, 0, start).await.0?;
        Ok(Box::new(GuardedUpload { inner, limiter: self.limiter.clone() }))
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let kind = if options.head { RequestKind::Head } else { RequestKind::Get };
        let read = || async {
            let found = self.limiter.step(self.inner.get_opts(at, options.clone())).await?;
            let wanted = found.range.end.saturating_sub(found.range.start);
            if options.head || wanted > BUFFERED_BYTES_MAX {
                return Ok(found);
            }
            self.buffered(found).await
        };
        self.limiter.run_stepped(kind, read).await
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        // A range that reaches beyond the end returns the bytes up to the end.
        let wanted: u64 = ranges.iter().map(|r| r.end.saturating_sub(r.start)).sum();
        self.limiter.run(RequestKind::Get, wanted, || self.inner.get_ranges(at, ranges)).await.0
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
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
        stream(self.pages(prefix, None))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        stream(self.pages(prefix, Some(offset)))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.limiter.run(RequestKind::List, 0, || self.inner.list_with_delimiter(prefix)).await.0
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.limiter.once(RequestKind::Put, 0, self.inner.copy_opts(from, to, options)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.limiter.once(RequestKind::Put, 0, self.inner.rename_opts(from, to, options)).await
    }
}

/// In the order of keys: SlateDB lists what one database has.
fn stream(pages: Listing) -> BoxStream<'static, Result<ObjectMeta>> {
    let listed = futures::stream::once(pages.collect());
    listed.map_ok(|found| futures::stream::iter(found).map(Ok)).try_flatten().boxed()
}

/// A multipart upload, each request of it within the limits. A part is retried by the policy that
/// came with the options.
struct GuardedUpload {
    inner: Box<dyn MultipartUpload>,
    limiter: Arc<RequestLimiter>,
}

impl fmt::Debug for GuardedUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuardedUpload({:?})", self.inner)
    }
}

#[async_trait]
impl MultipartUpload for GuardedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let limiter = self.limiter.clone();
        let bytes = data.content_length() as u64;
        let part = self.inner.put_part(data);
        Box::pin(async move { limiter.once(RequestKind::Put, bytes, part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.limiter.once(RequestKind::Put, 0, self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.limiter.once(RequestKind::Delete, 0, self.inner.abort()).await
    }
}
