//! Reading: requests shared and merged, read-ahead, memory kept within bounds.

use super::*;
use std::time::Duration;
use zerofs_csi::chunk::ChunkLimits;

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} did not happen");
}

async fn filled(keyring: &Keyring, count: u64, len: usize) -> (Bucket, Vec<ChunkRef>) {
    let bucket = Bucket::memory();
    let refs =
        save(&packer(&store(&bucket, keyring)), (0..count).map(|n| noise(n, len)).collect()).await;
    (bucket, refs)
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_are_fetched_with_one_request_and_hits_with_none() {
    let (bucket, refs) = filled(&encrypted(), 100, 10_000).await;
    let reader = store(&bucket, &encrypted());
    let before = bucket.requests().get;
    let data = reader.read(&refs).await.unwrap();
    assert!(data.iter().enumerate().all(|(n, data)| *data == noise(n as u64, 10_000)));
    assert_eq!(bucket.requests().get, before + 1);
    reader.read(&refs).await.unwrap();
    assert_eq!(reader.cached(&refs[7].hash).unwrap(), noise(7, 10_000));
    assert_eq!(bucket.requests().get, before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_asked_for_is_the_order_answered_repeats_included() {
    let (bucket, refs) = filled(&plain(), 20, 1000).await;
    let reader = store(&bucket, &plain());
    let order = [3, 3, 19, 0, 7, 3, 0];
    let asked: Vec<_> = order.iter().map(|n| refs[*n]).collect();
    let wanted: Vec<_> = order.iter().map(|n| noise(*n as u64, 1000)).collect();
    assert_eq!(reader.read(&asked).await.unwrap(), wanted);
    assert_eq!(reader.read(&asked).await.unwrap(), wanted);
    assert_eq!(reader.read(&[]).await.unwrap(), Vec::<Bytes>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_readers_of_one_chunk_share_a_request() {
    let (bucket, refs) = filled(&plain(), 1, 500_000).await;
    for _ in 0..20 {
        let reader = store(&bucket, &plain());
        let before = bucket.requests().get;
        let readers: Vec<_> = (0..16)
            .map(|_| {
                let (reader, chunk) = (reader.clone(), refs[0]);
                tokio::spawn(async move { reader.read(&[chunk]).await.unwrap() })
            })
            .collect();
        for reader in readers {
            assert_eq!(reader.await.unwrap(), [noise(0, 500_000)]);
        }
        assert_eq!(bucket.requests().get, before + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_leaves_the_others_alone() {
    let (bucket, refs) = filled(&plain(), 1, 1 << 20).await;
    for n in 0..50 {
        let reader = store(&bucket, &plain());
        let _ = tokio::time::timeout(Duration::from_micros(n * 20), reader.read(&refs)).await;
        assert_eq!(reader.read(&refs).await.unwrap(), [noise(0, 1 << 20)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn read_ahead_fills_memory_and_a_read_joins_it() {
    let (bucket, refs) = filled(&encrypted(), 16, 1 << 20).await;
    let reader = store(&bucket, &encrypted());
    let before = bucket.requests().get;
    assert!(reader.prefetch(refs.clone()).await);
    assert!(reader.prefetch(refs.clone()).await);
    let data = reader.read(&refs).await.unwrap();
    assert_eq!(data[15], noise(15, 1 << 20));
    assert!(bucket.requests().get <= before + 5, "{} requests", bucket.requests().get - before);
    let reader = store(&bucket, &encrypted());
    assert!(reader.prefetch(refs.clone()).await);
    until("read-ahead", || refs.iter().all(|chunk| reader.cached(&chunk.hash).is_some())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn read_ahead_without_room_is_dropped() {
    let bucket = Bucket::memory();
    let writer = packer(&store(&bucket, &plain()));
    let mut refs = Vec::new();
    for n in 0..80 {
        refs.extend(save(&writer, vec![noise(n, 1 << 20)]).await);
    }
    let limits = ChunkLimits { read_bytes: 32 << 20, ..ChunkLimits::cache(128 << 20) };
    let cache = ChunkCache::limited(limits);
    let reader = ChunkStore::new(bucket.clone(), FAMILY, &plain(), cache.clone());
    // As much again as is in flight may wait.
    assert!(!reader.prefetch(refs.clone()).await);
    assert_eq!(cache.stats().ahead_dropped, 1, "2 × 24 MiB of 80 fit");
    let data = reader.read(&refs).await.unwrap();
    assert!(data.iter().enumerate().all(|(n, data)| *data == noise(n as u64, 1 << 20)));
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_within_what_was_given() {
    let (bucket, refs) = filled(&plain(), 48, 1 << 20).await;
    let cache = ChunkCache::memory(10 << 20);
    let reader = ChunkStore::new(bucket.clone(), FAMILY, &plain(), cache.clone());
    for round in refs.chunks(5) {
        reader.read(round).await.unwrap();
        assert!(cache.stats().memory_bytes <= 10 << 20);
    }
    // Nothing fits at all: reads still work.
    let none = ChunkStore::new(bucket, FAMILY, &plain(), ChunkCache::memory(0));
    assert_eq!(none.read(&refs[..3]).await.unwrap()[2], noise(2, 1 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_write_leaves_what_readers_use_in_memory() {
    let (bucket, refs) = filled(&plain(), 8, 1 << 20).await;
    let cache = ChunkCache::memory(32 << 20);
    let reader = ChunkStore::new(bucket, FAMILY, &plain(), cache);
    reader.read(&refs).await.unwrap();
    let writer = reader.packer(CREATOR, Epoch(2), Codec::None);
    for n in 100..200 {
        save(&writer, vec![noise(n, 1 << 20)]).await;
    }
    assert!(refs.iter().all(|chunk| reader.cached(&chunk.hash).is_some()));
    assert!(
        reader.cached(&reader.hash(&noise(199, 1 << 20))).is_some(),
        "what was just written is there"
    );
}
