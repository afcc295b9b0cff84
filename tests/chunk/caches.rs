//! The disk tier: used after a restart, never trusted.

use super::*;
use std::fs;
use std::path::Path;
use zerofs_csi::chunk::ChunkLimits;

async fn on_disk(bucket: &Bucket, keyring: &Keyring, dir: &Path) -> (ChunkStore, ChunkCache) {
    let cache = ChunkCache::with_disk(ChunkLimits::cache(4 << 20), dir, 256 << 20).await.unwrap();
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
        assert_eq!(cache.stats().disk_hits, 40);
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
