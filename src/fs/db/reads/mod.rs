//! Serves the engine's reads with few requests, and as few as possible one after another.
//!
//! SlateDB finds the end of the write-ahead log by asking for object after object, and reads each
//! with a HEAD and a GET; of a table it reads the index, the filter and each block by themselves.
//! An opening after a kill took 128 HEADs and 113 GETs, some twenty of them one after another. Here
//! - the log is listed once, when an opening first asks about it, which answers every HEAD;
//! - an object of at most [`SMALL_BYTES`], as nearly all of the log and of L0 are, is read whole
//!   with one GET, and kept for a while: what reads the same log again (a collection, an opening
//!   that has to start again) reads only what is new in it;
//! - of a larger one the blocks near each other come with one request ([`super::parts`]);
//! - a log object on this node's disk is not requested at all ([`super::wal_cache`]).
//!
//! Invariants.
//! - Tables and WAL objects are put if absent, or under a name that is never used again, and never
//!   change: a copy is as good as the object.
//! - "Absent" is answered from the listing only until the log is first written to. The fence is a
//!   put if absent, which finds the end of the log wherever it has moved, and objects that came
//!   between the listing and the fence are requested from the store. A reader sees the log as it
//!   was listed, which is after it was opened.
//! - A copy that does not decode is read again (`ObjectStoreCallTag::retry`).

use super::parts::{Part, PartId, PartLookup, Parts};
use super::wal_cache::WalCache;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use slatedb::object_store::path::Path;
use slatedb::object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, RenameOptions, Result,
};
use slatedb::object_store_tag::ObjectStoreCallTag;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{OnceCell, Semaphore};

/// Objects of at most this size are read whole. A table of a MemTable flush that bounds the replay
/// has some KiB.
const SMALL_BYTES: u64 = 128 << 10;
/// WAL objects read at once by all openings of a process: the process's other requests (the renewal
/// of its lease first of all) must not wait behind them.
const LOGS_AT_ONCE: usize = 32;
/// Most objects remembered as large.
const LARGE_MAX: usize = 4096;

/// Copies of small objects, shared by all databases of a process.
pub(super) struct ObjectCache {
    bytes_max: usize,
    cached: Mutex<Cached>,
    /// Held by the task that reads an object whole: the engine asks for several parts of one at
    /// once.
    reading: Mutex<HashMap<Path, Arc<tokio::sync::Mutex<()>>>>,
    logs: Semaphore,
}

#[derive(Default)]
struct Cached {
    of: HashMap<Path, (ObjectMeta, Bytes)>,
    /// The oldest first; may name objects that were removed.
    order: VecDeque<Path>,
    bytes: usize,
    /// Known not to be small.
    large: HashSet<Path>,
}

impl Cached {
    fn put(&mut self, meta: ObjectMeta, object: Bytes, bytes_max: usize) {
        let at = meta.location.clone();
        if self.of.contains_key(&at) {
            return;
        }
        self.bytes += object.len();
        self.of.insert(at.clone(), (meta, object));
        self.order.push_back(at);
        while self.bytes > bytes_max {
            let Some(oldest) = self.order.pop_front() else { return };
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, at: &Path) {
        if let Some((_, object)) = self.of.remove(at) {
            self.bytes -= object.len();
        }
    }

    fn is_large(&mut self, at: Path) {
        if self.large.len() >= LARGE_MAX {
            self.large.clear();
        }
        self.large.insert(at);
    }
}

impl ObjectCache {
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            cached: Mutex::default(),
            reading: Mutex::default(),
            logs: Semaphore::new(LOGS_AT_ONCE),
        }
    }
}

/// A store as one opening of one database sees it.
pub(super) struct ReadStore {
    inner: Arc<dyn ObjectStore>,
    /// The folder of the log.
    wal: Path,
    objects: Arc<ObjectCache>,
    /// Parts of large tables, where a request takes its time.
    parts: Option<Arc<Parts>>,
    listed: OnceCell<ListedObjects>,
    /// The fence that this opening has put, which it asks about when it replays the log.
    fence: Mutex<Option<ObjectMeta>>,
    /// The log was, or may have been, written to.
    written: AtomicBool,
    /// Set once nothing may be answered from the listing.
    opened: AtomicBool,
    /// The part of the log that this node's disk has.
    local: Option<WalCache>,
}

/// The log from its first object that was asked for.
struct ListedObjects {
    from: Path,
    objects: BTreeMap<Path, ObjectMeta>,
}

impl ReadStore {
    /// `database`: its path.
    pub fn new(inner: Arc<dyn ObjectStore>, database: &Path, objects: Arc<ObjectCache>) -> Self {
        let wal = database.clone().join("wal");
        Self {
            inner,
            wal,
            objects,
            parts: None,
            listed: OnceCell::new(),
            fence: Mutex::default(),
            written: false.into(),
            opened: false.into(),
            local: None,
        }
    }

    /// Reads blocks of large tables that lie near each other together.
    #[must_use]
    pub fn with_parts(mut self, parts: Arc<Parts>) -> Self {
        self.parts = Some(parts);
        self
    }

    /// Reads log objects from this file where it has them, and copies objects into it that are put.
    #[must_use]
    pub fn with_wal_cache(mut self, file: PathBuf) -> Self {
        self.local = Some(WalCache::new(file));
        self
    }

    /// Ends the opening. Returns the number of log objects that it found, without fences.
    pub fn opened(&self) -> usize {
        self.opened.store(true, Ordering::Release);
        if let Some(local) = &self.local {
            local.start();
        }
        self.listed
            .get()
            .map_or(0, |listed| listed.objects.values().filter(|object| object.size > 0).count())
    }

    fn is_wal(&self, at: &Path) -> bool {
        at.prefix_match(&self.wal).is_some()
    }

    /// The listed entry of a log object; `None`: ask the store.
    async fn known(&self, at: &Path) -> Option<Result<ObjectMeta>> {
        if self.opened.load(Ordering::Acquire) || !self.is_wal(at) {
            return None;
        }
        if let Some(fence) = self.fence.lock().as_ref().filter(|fence| fence.location == *at) {
            return Some(Ok(fence.clone()));
        }
        // Read before the listing: objects written after this request may be in no listing.
        let written = self.written.load(Ordering::Acquire);
        let listed = match self.listed.get_or_try_init(|| self.list_from(at)).await {
            Ok(listed) => listed,
            Err(error) => return Some(Err(error)),
        };
        match listed.objects.get(at) {
            Some(meta) => Some(Ok(meta.clone())),
            None if written || *at < listed.from => None,
            None => Some(Err(Error::NotFound {
                path: at.to_string(),
                source: "it is not in the listing of the log".into(),
            })),
        }
    }

    async fn list_from(&self, at: &Path) -> Result<ListedObjects> {
        // The offset itself is not listed: the name without its end is the last one before it.
        let name = at.filename().unwrap_or_default();
        let before = self.wal.clone().join(name.strip_suffix(".sst").unwrap_or(name));
        let found: Vec<ObjectMeta> =
            self.inner.list_with_offset(Some(&self.wal), &before).try_collect().await?;
        let objects = found.into_iter().map(|meta| (meta.location.clone(), meta)).collect();
        Ok(ListedObjects { from: at.clone(), objects })
    }

    /// Reads a part of a table or of a log object: a small object is read whole and cached.
    async fn get(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let again = ObjectStoreCallTag::from_extensions(&options.extensions)
            .is_some_and(|tag| tag.retry.is_some());
        let Some(GetRange::Bounded(wanted)) = options.range.clone().filter(|_| !again) else {
            self.objects.cached.lock().remove(at);
            self.parts.iter().for_each(|parts| parts.forget(at));
            return self.inner.get_opts(at, options).await;
        };
        if wanted.end > SMALL_BYTES || self.objects.bytes_max == 0 {
            return self.get_large(at, options, &wanted).await;
        }
        let one = self.objects.reading.lock().entry(at.clone()).or_default().clone();
        let answer = self.get_small(at, options, &wanted, &one).await;
        drop(one);
        self.objects.reading.lock().retain(|_, one| Arc::strong_count(one) > 1);
        answer
    }

    async fn get_small(
        &self,
        at: &Path,
        options: GetOptions,
        wanted: &Range<u64>,
        one: &tokio::sync::Mutex<()>,
    ) -> Result<GetResult> {
        let turn = one.lock().await;
        let (copied, large) = {
            let cached = self.objects.cached.lock();
            (cached.of.get(at).cloned(), cached.large.contains(at))
        };
        if let Some((meta, object)) = copied {
            return part(meta, &object, wanted);
        }
        if large {
            drop(turn);
            return self.get_large(at, options, wanted).await;
        }
        if let Some((meta, object)) = self.get_local(at).await {
            let answer = part(meta.clone(), &object, wanted);
            self.objects.cached.lock().put(meta, object, self.objects.bytes_max);
            return answer;
        }
        let _log = if self.is_wal(at) { self.objects.logs.acquire().await.ok() } else { None };
        let whole = GetOptions { range: Some(GetRange::Bounded(0..SMALL_BYTES)), ..options };
        let found = self.inner.get_opts(at, whole).await?;
        let meta = found.meta.clone();
        let object = found.bytes().await?;
        let answer = part(meta.clone(), &object, wanted);
        match meta.size == object.len() as u64 {
            true => self.objects.cached.lock().put(meta, object, self.objects.bytes_max),
            false => self.objects.cached.lock().is_large(meta.location),
        }
        answer
    }

    async fn get_large(
        &self,
        at: &Path,
        options: GetOptions,
        wanted: &Range<u64>,
    ) -> Result<GetResult> {
        let near = self.parts.as_ref().and_then(|parts| Some((parts, Parts::id(at, wanted)?)));
        let Some((parts, id)) = near else { return self.inner.get_opts(at, options).await };
        match parts.find(&id) {
            PartLookup::Alone => self.inner.get_opts(at, options).await,
            PartLookup::Here(found) => slice(found, wanted),
            PartLookup::Missed(turn) => {
                let held = turn.lock().await;
                let found = match parts.again(&id) {
                    Some(found) => Ok(found),
                    None => self.get_part(parts, &id, options).await,
                };
                drop(held);
                parts.done(&id, turn);
                slice(found?, wanted)
            }
        }
    }

    async fn get_part(&self, parts: &Parts, id: &PartId, options: GetOptions) -> Result<Part> {
        let whole = GetOptions { range: Some(GetRange::Bounded(Parts::range(id))), ..options };
        let found = self.inner.get_opts(&id.0, whole).await?;
        let (meta, start) = (found.meta.clone(), found.range.start);
        let part = Part { meta, start, bytes: found.bytes().await? };
        parts.put(id.clone(), part.clone());
        Ok(part)
    }

    /// Returns a listed log object from this node's disk, if it is there.
    async fn get_local(&self, at: &Path) -> Option<(ObjectMeta, Bytes)> {
        let local = self.local.as_ref().filter(|_| !self.opened.load(Ordering::Acquire))?;
        let listed = self.listed.get()?.objects.get(at)?;
        Some((listed.clone(), local.get(listed).await?))
    }
}

/// A range of an object of which this is the beginning.
fn part(meta: ObjectMeta, beginning: &Bytes, wanted: &Range<u64>) -> Result<GetResult> {
    slice(Part { meta, start: 0, bytes: beginning.clone() }, wanted)
}

/// A range of an object of which this is a part.
fn slice(Part { meta, start, bytes }: Part, wanted: &Range<u64>) -> Result<GetResult> {
    let range = GetRange::Bounded(wanted.clone())
        .as_range(meta.size)
        .map_err(|error| Error::Generic { store: "copy", source: error.into() })?;
    let offset = |at: u64| usize::try_from(at.checked_sub(start)?).ok();
    let bytes = match (offset(range.start), offset(range.end)) {
        (Some(from), Some(to)) if to <= bytes.len() => bytes.slice(from..to),
        _ => {
            return Err(Error::Generic {
                store: "copy",
                source: format!("{} has less than {} bytes", meta.location, range.end).into(),
            });
        }
    };
    Ok(GetResult {
        payload: payload(bytes),
        meta,
        range,
        attributes: Default::default(),
        extensions: Default::default(),
    })
}

fn payload(bytes: Bytes) -> GetResultPayload {
    GetResultPayload::Stream(std::future::ready(Ok(bytes)).into_stream().boxed())
}

impl fmt::Debug for ReadStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReadStore({:?})", self.inner)
    }
}

impl fmt::Display for ReadStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for ReadStore {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        if !self.is_wal(at) {
            return self.inner.put_opts(at, payload, options).await;
        }
        self.written.store(true, Ordering::Release);
        let put = self.inner.put_opts(at, payload.clone(), options).await?;
        if payload.content_length() == 0 {
            *self.fence.lock() = Some(ObjectMeta {
                location: at.clone(),
                last_modified: std::time::SystemTime::now().into(),
                size: 0,
                e_tag: put.e_tag.clone(),
                version: put.version.clone(),
            });
        }
        if let Some(local) = &self.local {
            local.put(at, put.e_tag.as_deref(), &payload);
        }
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        match options.head {
            true => match self.known(at).await {
                Some(Ok(meta)) => Ok(GetResult {
                    payload: payload(Bytes::new()),
                    range: 0..meta.size,
                    meta,
                    attributes: Default::default(),
                    extensions: Default::default(),
                }),
                Some(Err(error)) => Err(error),
                None => self.inner.get_opts(at, options).await,
            },
            false if at.extension() == Some("sst") => self.get(at, options).await,
            false => self.inner.get_opts(at, options).await,
        }
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(at, ranges).await
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests;
