//! Pools in a folder: read on the caller's thread as far as the kernel has the data, small reads by
//! groups of a chunk, and nothing of it unverified.

use super::*;
use std::fs;
use std::path::{Path, PathBuf};
use zerofs_csi::bucket::{Credentials, Folder, Limits, PoolUrl};
use zerofs_csi::chunk::ChunkError;

fn folder(dir: &Path) -> Bucket {
    let url: PoolUrl = format!("file://{}", dir.display()).parse().unwrap();
    Bucket::open(&url, &Credentials::none(), Folder::MustExist, Limits::default()).unwrap()
}

/// A cache that holds hashes of groups and hardly any data.
fn small_cache(bucket: &Bucket, keyring: &Keyring) -> ChunkStore {
    ChunkStore::new(bucket.clone(), FAMILY, keyring, ChunkCache::memory(64 << 10))
}

fn file(dir: &Path, seq: u64) -> PathBuf {
    dir.join(key(pack(seq)))
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_a_folder_are_read_whole_and_in_part() {
    for keyring in [plain(), encrypted()] {
        let dir = tempfile::tempdir().unwrap();
        let bucket = folder(dir.path());
        let mut raw: Vec<_> = (0..24).map(|n| noise(n, 64 << 10)).collect();
        raw.extend([text(1, 64 << 10), noise(50, 100), noise(51, 1 << 20), noise(52, 50_001)]);
        let refs = save(&packer(&store(&bucket, &keyring)), raw.clone()).await;
        let reader = small_cache(&bucket, &keyring);
        assert_eq!(reader.read(&refs).await.unwrap(), raw);
        for (chunk, raw) in refs.iter().zip(&raw) {
            assert_eq!(reader.read(&[*chunk]).await.unwrap(), std::slice::from_ref(raw));
            let parts = [(0, 4096), (12 << 10, 4 << 10), (12 << 10, 8 << 10), (50_000, 1)];
            for (from, len) in parts.into_iter().filter(|(from, len)| from + len <= raw.len()) {
                if let Some(part) = reader.part(chunk, from as u32, len as u32) {
                    assert_eq!(part, raw[from..from + len], "{from} of {}", raw.len());
                }
            }
            assert_eq!(reader.part(chunk, raw.len() as u32, 1), None);
            assert_eq!(reader.part(chunk, u32::MAX, u32::MAX), None);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_damaged_chunk_is_an_error_and_never_wrong_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = folder(dir.path());
    let raw: Vec<_> = (0..2).map(|n| noise(n, 64 << 10)).collect();
    let refs = save(&packer(&store(&bucket, &plain())), raw.clone()).await;
    let reader = small_cache(&bucket, &plain());
    // Its groups are known from now on.
    assert_eq!(reader.read(&refs).await.unwrap(), raw);
    let path = file(dir.path(), refs[0].pack.seq);
    let mut bytes = fs::read(&path).unwrap();
    bytes[refs[0].offset as usize + (17 << 10)] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(reader.part(&refs[0], 16 << 10, 4 << 10), None, "the group that is damaged");
    if let Some(part) = reader.part(&refs[0], 32 << 10, 4 << 10) {
        assert_eq!(part, raw[0][32 << 10..36 << 10], "one that is not");
    }
    let cold = small_cache(&bucket, &plain());
    let broken = cold.read(&refs[..1]).await;
    assert!(matches!(broken, Err(ChunkError::Corrupt { .. })), "{broken:?}");
    assert_eq!(cold.read(&refs[1..]).await.unwrap(), raw[1..]);
    fs::remove_file(&path).unwrap();
    let gone = cold.read(&refs[..1]).await;
    assert!(matches!(gone, Err(ChunkError::Missing { .. })), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_ahead_in_a_folder_takes_no_memory_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = folder(dir.path());
    let raw: Vec<_> = (0..16).map(|n| noise(n, 64 << 10)).collect();
    let refs = save(&packer(&store(&bucket, &plain())), raw.clone()).await;
    let cache = ChunkCache::memory(64 << 20);
    let reader = ChunkStore::new(bucket.clone(), FAMILY, &plain(), cache.clone());
    let before = bucket.requests();
    assert!(reader.prefetch(refs.clone()).await);
    assert_eq!(reader.read(&refs[..4]).await.unwrap(), raw[..4]);
    assert!((bucket.requests() - before).get <= 1);
    assert!(cache.stats().memory_bytes < 5 * (65 << 10));
}
