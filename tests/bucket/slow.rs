//! Links that are slow, and listings that are long. Time is the test's: nothing waits.

use crate::support::fault::{Fault, FaultStore, Rule};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use zerofs_csi::bucket::{Bucket, BucketError};

const MBIT: u64 = 125_000;
/// Bytes that are moved at once.
const STEP: usize = 64 << 10;

/// A store behind a link of this many bytes a second, which all bodies share.
#[derive(Debug)]
struct Link {
    inner: InMemory,
    bytes_per_sec: u64,
    line: tokio::sync::Mutex<()>,
    /// Bytes that moved, those of attempts that were given up included.
    moved: AtomicU64,
}

impl Link {
    fn new(bytes_per_sec: u64) -> Arc<Self> {
        Arc::new(Self {
            inner: InMemory::new(),
            bytes_per_sec,
            line: Default::default(),
            moved: AtomicU64::new(0),
        })
    }

    async fn carry(&self, bytes: usize) {
        let _line = self.line.lock().await;
        tokio::time::sleep(Duration::from_micros(bytes as u64 * 1_000_000 / self.bytes_per_sec))
            .await;
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a slow link")
    }
}

#[async_trait]
impl ObjectStore for Link {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        for from in (0..payload.content_length()).step_by(STEP) {
            self.carry(STEP.min(payload.content_length() - from)).await;
        }
        self.inner.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let found = self.inner.get_opts(at, options).await?;
        if head {
            return Ok(found);
        }
        let (meta, range, attributes) =
            (found.meta.clone(), found.range.clone(), found.attributes.clone());
        let body = found.bytes().await?;
        let line = Link {
            inner: InMemory::new(),
            line: Default::default(),
            moved: AtomicU64::new(0),
            ..*self
        };
        let parts = futures::stream::unfold((body, line), |(mut body, line)| async move {
            if body.is_empty() {
                return None;
            }
            let part = body.split_to(STEP.min(body.len()));
            line.carry(part.len()).await;
            Some((Ok(part), (body, line)))
        });
        Ok(GetResult {
            payload: GetResultPayload::Stream(parts.boxed()),
            meta,
            range,
            attributes,
            extensions: Default::default(),
        })
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

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn pack() -> Bytes {
    vec![7; 16 << 20].into()
}

/// Packs that share a slow link, sent at once.
#[tokio::test(start_paused = true)]
async fn packs_end_on_any_link() {
    for (mbits, packs) in [(10, 2), (10, 4), (1, 2)] {
        let link = Link::new(mbits * MBIT);
        let bucket = Bucket::on(link.clone(), Path::default());
        let began = Instant::now();
        let keys: Vec<String> = (0..packs).map(|n| format!("packs/{n}")).collect();
        let puts = keys.iter().map(|key| bucket.put(key, pack()));
        futures::future::try_join_all(puts).await.unwrap();
        let first = link.moved.swap(0, Ordering::Relaxed);
        println!(
            "{packs} packs of 16 MiB at {mbits} Mbit/s: {:?}, {} MiB moved",
            began.elapsed(),
            first >> 20
        );
        // The rate is known by now: nothing moves twice.
        let puts = keys.iter().map(|key| bucket.put(key, pack()));
        futures::future::try_join_all(puts).await.unwrap();
        assert_eq!(link.moved.load(Ordering::Relaxed), packs << 24, "{mbits} Mbit/s");
    }
}

/// A body that comes slowly comes.
#[tokio::test(start_paused = true)]
async fn a_large_body_has_time_as_long_as_it_goes_on() {
    let link = Link::new(MBIT);
    let bucket = Bucket::on(link.clone(), Path::default());
    link.inner.put_opts(&"a".into(), pack().into(), PutOptions::default()).await.unwrap();
    assert_eq!(bucket.get("a", 1 << 30).await.unwrap().unwrap().len(), 16 << 20);
    assert_eq!(bucket.get_range("a", 100..100 + (8 << 20)).await.unwrap().len(), 8 << 20);
    assert_eq!(bucket.get_tail("a", 4 << 20).await.unwrap().0.len(), 4 << 20);
}

/// A store that answers nothing any more is no slow link.
#[tokio::test(start_paused = true)]
async fn an_outage_ends_in_an_error_all_the_same() {
    let store = FaultStore::memory();
    store.script(Rule::any().then(Fault::Hang));
    let bucket = Bucket::on(store, Path::default());
    let began = Instant::now();
    for _ in 0..3 {
        let failed = bucket.put("a", pack()).await.unwrap_err();
        assert!(matches!(failed, BucketError::Unavailable { .. }), "{failed}");
    }
    assert!(began.elapsed() < Duration::from_secs(3 * 60), "{:?}", began.elapsed());
}

/// A store of many objects, of which a listing breaks off again and again, and whose pages take
/// their time.
#[derive(Debug)]
struct Long {
    objects: usize,
    /// Pages before it breaks off.
    breaks_after: usize,
    asked: AtomicUsize,
}

const PAGE: usize = 1000;
const PAGE_TIME: Duration = Duration::from_secs(1);

impl fmt::Display for Long {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("many objects")
    }
}

impl Long {
    fn meta(n: usize) -> ObjectMeta {
        let last_modified = std::time::UNIX_EPOCH.into();
        ObjectMeta {
            location: format!("packs/{n:08}").into(),
            last_modified,
            size: 1,
            e_tag: None,
            version: None,
        }
    }

    fn from(&self, first: usize) -> BoxStream<'static, Result<ObjectMeta>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (objects, breaks_at) = (self.objects, first + self.breaks_after * PAGE);
        futures::stream::unfold(first, move |n| async move {
            if n >= objects {
                return None;
            }
            if (n - first).is_multiple_of(PAGE) {
                tokio::time::sleep(PAGE_TIME).await;
            }
            let broken = || object_store::Error::Generic {
                store: "long",
                source: "connection reset".into(),
            };
            Some((if n == breaks_at { Err(broken()) } else { Ok(Self::meta(n)) }, n + 1))
        })
        .boxed()
    }
}

#[async_trait]
impl ObjectStore for Long {
    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        unreachable!()
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        unreachable!()
    }

    async fn get_opts(&self, _: &Path, _: GetOptions) -> Result<GetResult> {
        unreachable!()
    }

    fn delete_stream(
        &self,
        _: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        unreachable!()
    }

    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.from(0)
    }

    fn list_with_offset(
        &self,
        _: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.from(offset.filename().unwrap().parse::<usize>().unwrap() + 1)
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        unreachable!()
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        unreachable!()
    }
}

/// Twenty minutes of pages, and no connection that lasts for more than three of them.
#[tokio::test(start_paused = true)]
async fn a_listing_of_a_million_objects_ends() {
    const OBJECTS: usize = 1_200_000;
    let store = Arc::new(Long { objects: OBJECTS, breaks_after: 180, asked: AtomicUsize::new(0) });
    let bucket = Bucket::on(store.clone(), Path::default());
    let (mut pages, mut found) = (bucket.pages("packs"), 0);
    while let Some(page) = pages.next().await.unwrap() {
        assert!(page.len() <= PAGE, "a page is all that is held");
        for object in page {
            assert_eq!(object.key, format!("packs/{found:08}"));
            found += 1;
        }
    }
    assert_eq!((found, store.asked.load(Ordering::Relaxed)), (OBJECTS, 7));
    assert!(pages.next().await.unwrap().is_none());
    // Whole, in order, each once.
    let listed = bucket.list("packs").await.unwrap();
    assert!(
        listed.len() == OBJECTS
            && listed.iter().enumerate().all(|(n, object)| object.key == format!("packs/{n:08}"))
    );
}

/// Where much depends on a short listing, it is not put together from parts.
#[tokio::test(start_paused = true)]
async fn a_short_listing_begins_anew_and_one_that_always_breaks_is_an_error() {
    let store = Arc::new(Long { objects: 5000, breaks_after: 3, asked: AtomicUsize::new(0) });
    let failed = Bucket::on(store, Path::default()).list("packs").await.unwrap_err();
    assert!(matches!(failed, BucketError::Unavailable { .. }), "{failed}");
}
