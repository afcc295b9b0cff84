//! Checksums for the objects that SlateDB stores without one: manifests, compaction states,
//! boundaries. Its tables and logs have their own; but with one flipped bit in its manifest a
//! database opened without its newest file and without an error (`tests/crash/sealed.rs`).
//!
//! ```text
//! the engine's bytes   magic:4 "zfmf"   version:1   writer:16   checksum:16
//! ```
//! The checksum is BLAKE3's, over the object's location (`<incarnation>/<folder>/<name>`) and all
//! bytes before it: an object in another's place is damage too. Other objects pass as they are.
//!
//! The writer is a random number of each handle. Two openers that take the next epoch write the
//! same manifest otherwise, and by its bytes a writer must recognise its own whose answer was lost,
//! and no other (R35).
//!
//! A damaged object reads as an empty one: the engine refuses that as invalid data at once, while
//! it would retry any error of the store for an hour. The log names the object.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use slatedb::object_store::path::Path;
use slatedb::object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

const MAGIC: &[u8; 4] = b"zfmf";
const VERSION: u8 = 2;
const WRITER_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 16;
const TRAILER_BYTES: usize = MAGIC.len() + 1 + WRITER_BYTES + CHECKSUM_BYTES;

/// A store that adds and checks the sums.
#[derive(Debug)]
pub(super) struct Summed {
    store: Arc<dyn ObjectStore>,
    writer: [u8; WRITER_BYTES],
}

impl Summed {
    /// For one handle of a database.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, writer: rand::random() }
    }
}

fn is_summed(at: &Path) -> bool {
    matches!(at.extension(), Some("manifest" | "compactions" | "boundary"))
}

/// `<incarnation>/<folder>/<name>`, whatever the pool's prefix is: a pool may be copied.
fn place(at: &Path) -> String {
    let parts: Vec<_> = at.parts().collect();
    let own: Vec<_> = parts.iter().rev().take(3).rev().map(AsRef::as_ref).collect();
    own.join("/")
}

fn checksum(at: &Path, parts: impl IntoIterator<Item = Bytes>) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new_derive_key("zerofs-csi 2026 manifest checksum");
    let place = place(at);
    hasher.update(&(place.len() as u64).to_le_bytes());
    hasher.update(place.as_bytes());
    for part in parts {
        hasher.update(&part);
    }
    let mut sum = [0; CHECKSUM_BYTES];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

/// The payload with its trailer.
fn summed(at: &Path, payload: &PutPayload, writer: [u8; WRITER_BYTES]) -> PutPayload {
    let mut trailer = Vec::with_capacity(TRAILER_BYTES);
    trailer.extend_from_slice(MAGIC);
    trailer.push(VERSION);
    trailer.extend_from_slice(&writer);
    let head = Bytes::copy_from_slice(&trailer);
    trailer.extend_from_slice(&checksum(at, payload.iter().cloned().chain([head])));
    payload.iter().cloned().chain([trailer.into()]).collect()
}

/// Returns the engine's bytes, or the reason why they cannot be trusted.
fn verified(at: &Path, object: &Bytes) -> std::result::Result<Bytes, String> {
    let len = object.len().checked_sub(TRAILER_BYTES).ok_or("it is too short")?;
    let (body, trailer) = (object.slice(..len), object.slice(len..));
    let head = trailer.slice(..TRAILER_BYTES - CHECKSUM_BYTES);
    if head.get(..MAGIC.len()) != Some(MAGIC) {
        return Err("it does not end with a checksum".into());
    }
    if head.get(MAGIC.len()) != Some(&VERSION) {
        let found = head.get(MAGIC.len());
        return Err(format!(
            "its checksum is of version {found:?}, this program knows version {VERSION}: use a \
             newer one"
        ));
    }
    if trailer.get(head.len()..) != Some(&checksum(at, [body.clone(), head.clone()])) {
        return Err("its checksum differs".into());
    }
    Ok(body)
}

impl fmt::Display for Summed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.store)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for Summed {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let payload = if is_summed(at) { summed(at, &payload, self.writer) } else { payload };
        self.store.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, mut options: GetOptions) -> Result<GetResult> {
        if options.head || !is_summed(at) {
            return self.store.get_opts(at, options).await;
        }
        let wanted = options.range.take();
        let found = self.store.get_opts(at, options).await?;
        let (mut meta, attributes, extensions) =
            (found.meta.clone(), found.attributes.clone(), found.extensions.clone());
        let object = found.bytes().await?;
        let mut body = verified(at, &object).unwrap_or_else(|why| {
            tracing::error!(
                object = %at,
                why,
                "a database's manifest is damaged: put an earlier version of the object back, or \
                 restore a snapshot"
            );
            Bytes::new()
        });
        meta.size = body.len() as u64;
        let range = match wanted.map(|range| range.as_range(meta.size)).transpose() {
            Ok(range) => range.unwrap_or(0..meta.size),
            Err(_) => 0..0,
        };
        body = body.slice(
            usize::try_from(range.start).unwrap_or(0)..usize::try_from(range.end).unwrap_or(0),
        );
        let payload = GetResultPayload::Stream(std::future::ready(Ok(body)).into_stream().boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.store.get_ranges(at, ranges).await
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.store.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slatedb::object_store::ObjectStoreExt;
    use slatedb::object_store::memory::InMemory;

    const AT: &str = "some/pool/vol/0102/manifest/00000000000000000007.manifest";

    async fn stored(at: &str, bytes: &'static [u8]) -> (Arc<InMemory>, Summed, Bytes) {
        let store = Arc::new(InMemory::new());
        let summed = Summed { store: store.clone(), writer: *b"0123456789abcdef" };
        summed.put(&Path::from(at), Bytes::from_static(bytes).into()).await.unwrap();
        let raw = store.get(&Path::from(at)).await.unwrap().bytes().await.unwrap();
        (store, summed, raw)
    }

    async fn read(summed: &Summed, at: &str) -> Bytes {
        summed.get(&Path::from(at)).await.unwrap().bytes().await.unwrap()
    }

    /// The bytes stored in buckets: they must never change.
    #[tokio::test]
    async fn golden_bytes() {
        let (_, summed, raw) = stored(AT, b"manifest").await;
        let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, GOLDEN);
        assert_eq!(read(&summed, AT).await, "manifest");
    }

    const GOLDEN: &str = "6d616e69666573747a666d66023031323334353637383961626364656693a99fda\
        3fd5e8bffa2896c2fe9c6dd1";

    #[tokio::test]
    async fn no_two_handles_write_the_same_bytes() {
        let payload = PutPayload::from_static(b"the next epoch");
        let written = [(); 2].map(|()| {
            let handle = Summed::new(Arc::new(InMemory::new()));
            [(); 2].map(|()| Bytes::from(summed(&Path::from(AT), &payload, handle.writer)))
        });
        assert_eq!(written[0][0], written[0][1], "a repeat is the same put");
        assert_ne!(written[0][0], written[1][0]);
    }

    #[tokio::test]
    async fn every_flipped_bit_and_every_cut_reads_as_nothing() {
        let (store, summed, raw) = stored(AT, b"a manifest of the engine").await;
        for at in 0..raw.len() {
            let mut damaged = raw.to_vec();
            damaged[at] ^= 1 << (at % 8);
            store.put(&Path::from(AT), damaged.into()).await.unwrap();
            assert!(read(&summed, AT).await.is_empty(), "byte {at}");
            store.put(&Path::from(AT), raw.slice(..at).into()).await.unwrap();
            assert!(read(&summed, AT).await.is_empty(), "cut at {at}");
        }
    }

    #[tokio::test]
    async fn an_object_in_anothers_place_reads_as_nothing_and_a_moved_pool_as_before() {
        let (store, summed, raw) = stored(AT, b"manifest").await;
        let other = "some/pool/vol/0102/manifest/00000000000000000008.manifest";
        store.put(&Path::from(other), raw.clone().into()).await.unwrap();
        assert!(read(&summed, other).await.is_empty());
        let moved = "elsewhere/vol/0102/manifest/00000000000000000007.manifest";
        store.put(&Path::from(moved), raw.into()).await.unwrap();
        assert_eq!(read(&summed, moved).await, "manifest");
    }

    #[tokio::test]
    async fn tables_pass_as_they_are_and_sizes_are_the_engines() {
        let (_, summed, raw) = stored("vol/0102/wal/1.sst", b"a table").await;
        assert_eq!(raw, "a table");
        assert_eq!(read(&summed, "vol/0102/wal/1.sst").await, "a table");
        let (_, summed, _) = stored(AT, b"manifest").await;
        let found = summed.get(&Path::from(AT)).await.unwrap();
        assert_eq!((found.meta.size, found.range), (8, 0..8));
    }
}
