//! Manifests that one operation reads several times, read once.
//!
//! SlateDB reads the newest manifest again for each of its steps: it lists the folder, gets the
//! object, and looks at the boundary below which manifests were collected. An opening after the
//! writer epoch was read, a checkpoint from outside and a clone would make these three requests
//! twice or more. Here the first answers are kept until the operation writes a manifest of the same
//! database; from then on every request goes to the store.
//!
//! Invariants.
//! - A manifest is put if absent and never changes: a copy is as good as the object.
//! - The manifest that is kept as the newest may be outdated. It decides nothing: whoever goes on
//!   from it puts the next number if absent. Where that number is taken, what was kept is forgotten
//!   and SlateDB reads again, or the operation fails ([`Taken`]).
//! - The boundary matters to a put that arrives late, and is read after each put. The newest object
//!   of a listing is always above it: a collection never removes that.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use slatedb::object_store::path::Path;
use slatedb::object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    RenameOptions, Result,
};
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The reaction when another writer has taken the number of the next manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// SlateDB reads the newest manifest and tries again.
    Retry,
    /// The operation fails: its caller has looked at more than the manifest.
    Fail,
}

/// The answers that one operation has got so far, for every database that it reads.
pub(super) struct KnownManifests {
    taken: Taken,
    known: Mutex<HashMap<Path, Known>>,
    lost: AtomicBool,
}

/// The manifests of one database.
#[derive(Default)]
struct Known {
    listed: Option<Vec<ObjectMeta>>,
    objects: HashMap<Path, (ObjectMeta, Bytes)>,
    /// The operation has put one, or tried to: nothing is kept any more.
    written: bool,
}

impl KnownManifests {
    pub fn new(taken: Taken) -> Arc<Self> {
        Arc::new(Self { taken, known: Mutex::default(), lost: false.into() })
    }

    /// Returns whether the operation failed because another writer was faster ([`Taken::Fail`]).
    pub fn has_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    fn with<T>(&self, database: &Path, work: impl FnOnce(&mut Known) -> T) -> T {
        work(self.known.lock().entry(database.clone()).or_default())
    }

    fn listed(&self, database: &Path) -> Option<Vec<ObjectMeta>> {
        self.with(database, |known| known.listed.clone())
    }

    fn object(&self, database: &Path, at: &Path) -> Option<(ObjectMeta, Bytes)> {
        self.with(database, |known| known.objects.get(at).cloned())
    }

    fn keep(&self, database: &Path, kept: impl FnOnce(&mut Known)) {
        self.with(database, |known| {
            if !known.written {
                kept(known);
            }
        });
    }

    fn forget(&self, database: &Path) {
        self.with(database, |known| *known = Known { written: true, ..Known::default() });
    }

    fn is_written(&self, database: &Path) -> bool {
        self.with(database, |known| known.written)
    }
}

/// A store that asks for each manifest once.
pub(super) struct ManifestStore {
    inner: Arc<dyn ObjectStore>,
    known: Arc<KnownManifests>,
}

impl ManifestStore {
    pub fn new(inner: Arc<dyn ObjectStore>, known: Arc<KnownManifests>) -> Self {
        Self { inner, known }
    }

    async fn get_manifest(&self, database: &Path, at: &Path) -> Result<GetResult> {
        if let Some((meta, bytes)) = self.known.object(database, at) {
            return Ok(answer(meta, bytes));
        }
        let found = match self.inner.get_opts(at, GetOptions::default()).await {
            // A collection has removed it since it was listed: the newest is another by now.
            Err(error @ Error::NotFound { .. }) => {
                self.known.keep(database, |known| known.listed = None);
                return Err(error);
            }
            found => found?,
        };
        let meta = found.meta.clone();
        let bytes = found.bytes().await?;
        self.known.keep(database, |known| {
            known.objects.insert(at.clone(), (meta.clone(), bytes.clone()));
        });
        Ok(answer(meta, bytes))
    }
}

/// `<database>/<folder>/<name>`: the database, if the object is of that kind.
fn database_of(at: &Path, folder: &str, extension: &str) -> Option<Path> {
    let parts: Vec<_> = at.parts().collect();
    let (_, inner) = parts.split_last()?;
    let (of, database) = inner.split_last()?;
    let of: &str = of.as_ref();
    (of == folder && at.extension() == Some(extension)).then(|| database.iter().cloned().collect())
}

fn manifest_of(at: &Path) -> Option<Path> {
    database_of(at, "manifest", "manifest")
}

fn boundary_of(at: &Path) -> Option<Path> {
    database_of(at, "gc", "boundary").filter(|_| at.filename() == Some("manifest.boundary"))
}

/// The database whose manifests a listing of this folder is of.
fn listing_of(prefix: &Path) -> Option<Path> {
    let parts: Vec<_> = prefix.parts().collect();
    let (folder, database) = parts.split_last()?;
    let folder: &str = folder.as_ref();
    (folder == "manifest").then(|| database.iter().cloned().collect())
}

fn answer(meta: ObjectMeta, bytes: Bytes) -> GetResult {
    let range = 0..meta.size;
    let payload = GetResultPayload::Stream(std::future::ready(Ok(bytes)).into_stream().boxed());
    let (attributes, extensions) = (Default::default(), Default::default());
    GetResult { payload, meta, range, attributes, extensions }
}

impl fmt::Debug for ManifestStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ManifestStore({:?})", self.inner)
    }
}

impl fmt::Display for ManifestStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for ManifestStore {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let Some(database) = manifest_of(at).filter(|_| options.mode == PutMode::Create) else {
            return self.inner.put_opts(at, payload, options).await;
        };
        self.known.forget(&database);
        match self.inner.put_opts(at, payload, options).await {
            Err(Error::AlreadyExists { path, source }) if self.known.taken == Taken::Fail => {
                self.known.lost.store(true, Ordering::Release);
                // An error that SlateDB neither retries nor takes for a lost race.
                Err(Error::Precondition { path, source })
            }
            put => put,
        }
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        if options.head || options.range.is_some() {
            return self.inner.get_opts(at, options).await;
        }
        if let Some(database) = boundary_of(at).filter(|of| !self.known.is_written(of)) {
            let source = format!("no manifest of {database} was put yet").into();
            return Err(Error::NotFound { path: at.to_string(), source });
        }
        match manifest_of(at) {
            Some(database) => self.get_manifest(&database, at).await,
            None => self.inner.get_opts(at, options).await,
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
        let Some(database) = prefix.and_then(listing_of) else { return self.inner.list(prefix) };
        if let Some(listed) = self.known.listed(&database) {
            return futures::stream::iter(listed).map(Ok).boxed();
        }
        let (listing, known) = (self.inner.list(prefix), self.known.clone());
        let whole = async move {
            let listed: Vec<ObjectMeta> = listing.try_collect().await?;
            // That there is none yet says nothing about the next moment: another may be first.
            if !listed.is_empty() {
                known.keep(&database, |known| known.listed = Some(listed.clone()));
            }
            Ok::<_, Error>(futures::stream::iter(listed).map(Ok))
        };
        futures::stream::once(whole).try_flatten().boxed()
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
mod tests {
    use super::*;
    use crate::bucket::{Bucket, Requests};
    use slatedb::object_store::ObjectStoreExt;

    fn manifest(id: u64) -> Path {
        Path::from(format!("vol/a/manifest/{id:020}.manifest"))
    }

    /// A database with one manifest, and a store that reads it once.
    async fn one(taken: Taken) -> (Bucket, ManifestStore) {
        let bucket = Bucket::memory();
        bucket.store().put(&manifest(1), "first".into()).await.unwrap();
        let store = ManifestStore::new(bucket.store(), KnownManifests::new(taken));
        (bucket, store)
    }

    /// The newest manifest, as SlateDB finds it; and whether there is a boundary.
    async fn newest(store: &ManifestStore) -> Result<(Bytes, bool)> {
        let folder = Path::from("vol/a/manifest");
        let listed: Vec<_> = store.list(Some(&folder)).try_collect().await?;
        let newest = listed.iter().map(|object| &object.location).max().expect("it has one");
        let bytes = store.get(newest).await?.bytes().await?;
        let boundary = store.get(&Path::from("vol/a/gc/manifest.boundary")).await.is_ok();
        Ok((bytes, boundary))
    }

    fn absent() -> PutOptions {
        PutOptions::from(PutMode::Create)
    }

    #[tokio::test]
    async fn a_manifest_is_requested_once_until_another_is_put() {
        let (bucket, store) = one(Taken::Retry).await;
        bucket.store().put(&Path::from("vol/a/gc/manifest.boundary"), "0".into()).await.unwrap();
        let before = bucket.requests();
        for _ in 0..3 {
            assert_eq!(newest(&store).await.unwrap(), ("first".into(), false));
        }
        let made = bucket.requests() - before;
        assert_eq!(made, Requests { list: 1, get: 1, ..Requests::default() });
        store.put_opts(&manifest(2), "second".into(), absent()).await.unwrap();
        let before = bucket.requests();
        for _ in 0..2 {
            assert_eq!(newest(&store).await.unwrap(), ("second".into(), true));
        }
        let made = bucket.requests() - before;
        assert_eq!(made, Requests { list: 2, get: 4, ..Requests::default() });
    }

    #[tokio::test]
    async fn a_number_that_is_taken_is_read_again_or_ends_the_operation() {
        for taken in [Taken::Retry, Taken::Fail] {
            let (bucket, store) = one(taken).await;
            newest(&store).await.unwrap();
            bucket.store().put(&manifest(2), "another's".into()).await.unwrap();
            let put = store.put_opts(&manifest(2), "ours".into(), absent()).await;
            match taken {
                Taken::Retry => assert!(matches!(put, Err(Error::AlreadyExists { .. }))),
                Taken::Fail => assert!(matches!(put, Err(Error::Precondition { .. }))),
            }
            assert_eq!(store.known.has_lost(), taken == Taken::Fail);
            assert_eq!(newest(&store).await.unwrap().0, "another's");
        }
    }

    #[tokio::test]
    async fn a_listed_manifest_that_is_gone_is_listed_again() {
        let (bucket, store) = one(Taken::Retry).await;
        let folder = Path::from("vol/a/manifest");
        let _listed: Vec<_> = store.list(Some(&folder)).try_collect().await.unwrap();
        bucket.store().put(&manifest(2), "second".into()).await.unwrap();
        bucket.store().delete(&manifest(1)).await.unwrap();
        assert!(matches!(newest(&store).await, Err(Error::NotFound { .. })));
        assert_eq!(newest(&store).await.unwrap().0, "second");
    }
}
