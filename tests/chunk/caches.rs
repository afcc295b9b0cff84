//! The disk tier: used after a restart, never trusted.

use super::*;
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use zerofs_csi::chunk::{ChunkError, ChunkLimits, DiskSize};

async fn on_disk(bucket: &Bucket, keyring: &Keyring, dir: &Path) -> (ChunkStore, ChunkCache) {
    let cache = ChunkCache::with_disk(ChunkLimits::cache(1 << 20), dir, DiskSize::Bytes(256 << 20))
        .await
        .unwrap();
    (ChunkStore::new(bucket.clone(), FAMILY, keyring, cache.clone()), cache)
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_on_disk_are_used_after_a_restart_and_hold_no_plain_data() {
    for keyring in [plain(), encrypted()] {
        let (bucket, dir) = (Bucket::memory(), tempfile::tempdir().unwrap());
        let raw: Vec<_> = (0..40).map(|n| noise(n, 100_000)).collect();
        let refs = save(&packer(&store(&bucket, &keyring)), raw.clone()).await;
        let (reader, cache) = on_disk(&bucket, &keyring, dir.path()).await;
        assert_eq!(reader.read(&refs).await.unwrap(), raw);
        cache.close().await;
        drop((reader, cache));

        let needle = &raw[20][5000..5032];
        let seen = files(dir.path())
            .iter()
            .any(|file| fs::read(file).unwrap().windows(needle.len()).any(|w| w == needle));
        assert_eq!(seen, !keyring.is_encrypted());

        let (reader, cache) = on_disk(&bucket, &keyring, dir.path()).await;
        let before = bucket.requests().get;
        assert_eq!(reader.read(&refs).await.unwrap(), raw);
        assert_eq!(bucket.requests().get, before, "everything was on the disk");
        assert_eq!((cache.stats().disk_hits, cache.stats().disk_misses), (40, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_disk_tier_gives_right_bytes() {
    let (bucket, dir) = (Bucket::memory(), tempfile::tempdir().unwrap());
    let raw: Vec<_> = (0..40).map(|n| noise(n, 100_000)).collect();
    let refs = save(&packer(&store(&bucket, &plain())), raw.clone()).await;
    let (reader, cache) = on_disk(&bucket, &plain(), dir.path()).await;
    reader.read(&refs).await.unwrap();
    cache.close().await;
    drop((reader, cache));
    for file in files(dir.path()) {
        let mut bytes = fs::read(&file).unwrap();
        for byte in bytes.iter_mut().step_by(40_000) {
            *byte ^= 0x10;
        }
        fs::write(&file, bytes).unwrap();
    }
    let (reader, _cache) = on_disk(&bucket, &plain(), dir.path()).await;
    let before = bucket.requests().get;
    assert_eq!(reader.read(&refs).await.unwrap(), raw);
    assert!(bucket.requests().get > before, "what was damaged came from the bucket");
}

#[tokio::test(flavor = "multi_thread")]
async fn read_ahead_takes_what_is_on_the_disk_from_there() {
    let (bucket, dir) = (Bucket::memory(), tempfile::tempdir().unwrap());
    let raw: Vec<_> = (0..32).map(|n| noise(n, 64 << 10)).collect();
    let refs = save(&packer(&store(&bucket, &plain())), raw.clone()).await;
    let (reader, cache) = on_disk(&bucket, &plain(), dir.path()).await;
    assert!(reader.prefetch(refs.clone()).await);
    reader.read(&refs).await.unwrap();
    cache.close().await;
    let before = bucket.requests().get;
    assert!(reader.prefetch(refs.clone()).await);
    assert_eq!(reader.read(&refs).await.unwrap(), raw);
    assert_eq!(reader.read(&refs[..3]).await.unwrap(), raw[..3]);
    if let Some(part) = reader.part(&refs[9], 20 << 10, 4096) {
        assert_eq!(part, raw[9][20 << 10..24 << 10]);
    }
    assert_eq!(bucket.requests().get, before);
}

/// Small files that were written together come together: one chunk, then the rest of its block.
#[tokio::test(flavor = "multi_thread")]
async fn neighbours_of_a_small_chunk_come_with_it() {
    for keyring in [plain(), encrypted()] {
        let (bucket, dir) = (Bucket::memory(), tempfile::tempdir().unwrap());
        let raw: Vec<_> = (0..1000).map(|n| noise(n, 4096)).collect();
        let refs = save(&packer(&store(&bucket, &keyring)), raw.clone()).await;
        let (reader, _cache) = on_disk(&bucket, &keyring, dir.path()).await;
        let before = bucket.requests().get;
        for (chunk, raw) in refs.iter().zip(&raw) {
            assert_eq!(reader.read(&[*chunk]).await.unwrap(), std::slice::from_ref(raw));
        }
        let gets = bucket.requests().get - before;
        assert!(gets <= 2 * 5, "{gets} requests for four blocks and a bit");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_of_neighbours_share_their_block() {
    let (bucket, dir) = (Bucket::memory(), tempfile::tempdir().unwrap());
    let raw: Vec<_> = (0..200).map(|n| noise(n, 4096)).collect();
    let refs = save(&packer(&store(&bucket, &plain())), raw.clone()).await;
    let (reader, _cache) = on_disk(&bucket, &plain(), dir.path()).await;
    let before = bucket.requests().get;
    let readers: Vec<_> = refs
        .into_iter()
        .map(|chunk| {
            let reader = reader.clone();
            tokio::spawn(async move { reader.read(&[chunk]).await.unwrap() })
        })
        .collect();
    for (reader, raw) in readers.into_iter().zip(raw) {
        assert_eq!(reader.await.unwrap(), [raw]);
    }
    let gets = bucket.requests().get - before;
    assert!(gets <= 2, "{gets} requests");
}

/// A chunk here and a chunk there fetch no blocks.
#[tokio::test(flavor = "multi_thread")]
async fn small_chunks_far_apart_come_alone() {
    let (bucket, dir) = (Bucket::memory(), tempfile::tempdir().unwrap());
    let raw: Vec<_> = (0..2500).map(|n| noise(n, 4096)).collect();
    let refs = save(&packer(&store(&bucket, &plain())), raw.clone()).await;
    let (reader, cache) = on_disk(&bucket, &plain(), dir.path()).await;
    // One of each MiB of each pack.
    let mut blocks = HashSet::new();
    for (chunk, raw) in refs.iter().zip(&raw) {
        if blocks.insert((chunk.pack, chunk.offset >> 20)) {
            assert_eq!(reader.read(&[*chunk]).await.unwrap(), std::slice::from_ref(raw));
        }
    }
    cache.close().await;
    let stored: u64 = files(dir.path())
        .iter()
        .map(|file| std::os::unix::fs::MetadataExt::blocks(&fs::metadata(file).unwrap()) * 512)
        .sum();
    let read = blocks.len() as u64;
    assert!(stored <= read * 3 * 4096, "{stored} bytes on the disk for {read} chunks of 4 KiB");
}

/// A reference past the end of its pack is an error however often it is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_reference_past_the_end_of_its_pack_stays_an_error() {
    let (bucket, dir) = (Bucket::memory(), tempfile::tempdir().unwrap());
    let raw: Vec<_> = (0..20).map(|n| noise(n, 4096)).collect();
    let refs = save(&packer(&store(&bucket, &plain())), raw.clone()).await;
    let (reader, _cache) = on_disk(&bucket, &plain(), dir.path()).await;
    let beyond = ChunkRef { offset: 5 << 20, ..refs[0] };
    for _ in 0..3 {
        let broken = reader.read(&[beyond]).await;
        assert!(matches!(broken, Err(ChunkError::CorruptPack { .. })), "{broken:?}");
    }
    assert_eq!(reader.read(&refs).await.unwrap(), raw);
}
