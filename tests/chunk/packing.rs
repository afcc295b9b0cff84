//! Filling packs: what goes in comes out, who shares what, who waits for whom.

use super::*;
use std::time::Duration;
use tokio::time::timeout;
use zerofs_csi::bucket::BucketError;
use zerofs_csi::chunk::{CHUNK_BYTES_MAX, ChunkError, OBJECT_BYTES_MAX};
use zerofs_csi::types::{Class, Classify};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_added_is_read_back() {
    let lengths = [0, 1, 15, 16, 100, 4096, 65_535, 65_536, 300_000, CHUNK_BYTES_MAX];
    let raw: Vec<Bytes> = lengths
        .iter()
        .enumerate()
        .flat_map(|(i, &len)| [noise(i as u64, len), text(i as u64, len)])
        .collect();
    for keyring in [plain(), encrypted()] {
        for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
            let bucket = Bucket::memory();
            let writer = store(&bucket, &keyring).packer(CREATOR, Epoch(7), codec);
            let refs = save(&writer, raw.clone()).await;
            let reader = store(&bucket, &keyring);
            assert_eq!(reader.read(&refs).await.unwrap(), raw, "{codec:?}");
            for (chunk, raw) in refs.iter().zip(&raw) {
                assert_eq!(chunk.hash, reader.hash(raw));
                assert_eq!(chunk.raw_len as usize, raw.len());
                let saved = raw.len() > chunk.stored_len as usize;
                let wanted = codec != Codec::None
                    && raw.len() >= 100
                    && raw.windows(20).skip(60).any(|w| raw.starts_with(w));
                assert_eq!(saved, wanted, "{chunk:?}");
            }
            // The two chunks of no bytes are one.
            let mut once = refs.clone();
            once.dedup();
            assert_eq!(once.len(), refs.len() - 1);
            once.sort_by_key(|chunk| chunk.offset);
            let packs = reader.list().await.unwrap();
            assert_eq!(packs.len(), 1);
            assert_eq!(packs[0].pack, PackId { creator: CREATOR, epoch: Epoch(7), seq: 1 });
            assert_eq!(reader.contents(packs[0].pack).await.unwrap(), once);
            for step in ["chunk.before-pack-delete", "chunk.after-pack-delete"] {
                bucket.failpoints().set(step, "1*return->off").unwrap();
                assert!(reader.delete(&[packs[0].pack, pack(99)]).await.is_err(), "{step}");
            }
            reader.delete(&[packs[0].pack, pack(99)]).await.unwrap();
            assert_eq!(reader.list().await.unwrap(), []);
        }
    }
}

/// A step of a reader's read-ahead takes one request wherever it lies.
#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_are_added_together_lie_side_by_side_in_one_pack() {
    for keyring in [plain(), encrypted()] {
        let bucket = Bucket::memory();
        let store = store(&bucket, &keyring);
        let writer = packer(&store);
        // Half a MiB is missing for a full pack.
        let before = writer.add((0..31).map(|n| noise(n, 512 << 10)).collect()).await.unwrap();
        let step = writer.add((100..164).map(|n| noise(n, 64 << 10)).collect()).await.unwrap();
        let next = writer.add(vec![noise(200, 100)]).await.unwrap();
        let (before, step) = (before.stored().await.unwrap(), step.stored().await.unwrap());
        let next = next.stored().await.unwrap();
        let (full, refs) = (before.refs()[0].pack, step.refs());
        assert!(before.refs().iter().chain(refs).all(|chunk| chunk.pack == full));
        let follow = |two: &[ChunkRef]| two[0].offset + two[0].stored_len == two[1].offset;
        assert!(refs.windows(2).all(follow), "{refs:?}");
        assert_ne!(next.refs()[0].pack, full, "it is closed behind them");
        for pack in store.list().await.unwrap() {
            assert!(pack.bytes <= OBJECT_BYTES_MAX as u64, "{pack:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_too_large_is_refused() {
    let store = store(&Bucket::memory(), &plain());
    let refused = packer(&store).add(vec![noise(1, CHUNK_BYTES_MAX + 1)]).await.err();
    assert!(matches!(refused, Some(ChunkError::TooLarge { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_write_makes_full_packs_and_footers_of_any_size_are_read() {
    let bucket = Bucket::memory();
    let writer = packer(&store(&bucket, &encrypted()));
    let mut refs = Vec::new();
    for n in 0..10 {
        let packing =
            writer.add((0..1024).map(|i| noise(n * 1024 + i, 4096)).collect()).await.unwrap();
        refs.push(packing);
    }
    let last = refs.pop().unwrap().stored().await.unwrap();
    assert_eq!(last.refs().len(), 1024);
    let reader = store(&bucket, &encrypted());
    let packs = reader.list().await.unwrap();
    assert!(packs.len() <= 3, "40 MiB made {} packs", packs.len());
    let mut chunks = 0;
    for pack in packs {
        chunks += reader.contents(pack.pack).await.unwrap().len();
    }
    assert_eq!(chunks, 10 * 1024);
}

/// Whatever a runtime that ends drops first: who waits for a pack of its own is not sent on its way
/// by one that is dropped under a lock.
#[test]
fn a_runtime_ends_while_packs_are_on_their_way_and_others_wait() {
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bucket = Bucket::memory();
            bucket.failpoints().set("chunk.before-pack-put", "pause").unwrap();
            let writer = packer(&store(&bucket, &plain()));
            for n in 0..32 {
                let packing = writer.add(vec![noise(n, 1000)]).await.unwrap();
                tokio::spawn(packing.stored());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let moving =
                bucket.failpoints().passed().get("chunk.before-pack-put").copied().unwrap_or(0);
            assert!((1..32).contains(&moving), "some wait for a pack of their own: {moving}");
        });
        drop(runtime);
        ended.send(()).unwrap();
    });
    end.recv_timeout(Duration::from_secs(60)).expect("the runtime does not end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_put_fails_everyone_in_the_pack_and_adding_again_works() {
    let bucket = Bucket::memory();
    let store = store(&bucket, &plain());
    let writer = packer(&store);
    bucket.failpoints().set("chunk.before-pack-put", "return").unwrap();
    let data = [noise(1, 1000), noise(2, 1000)];
    let first = writer.add(vec![data[0].clone()]).await.unwrap();
    let second = writer.add(vec![data[1].clone(), data[0].clone()]).await.unwrap();
    assert_eq!(second.refs()[1], first.refs()[0]);
    for packing in [first, second] {
        let error = packing.stored().await.err().unwrap();
        assert!(
            matches!(error, ChunkError::Bucket { source: BucketError::Injected(_), .. }),
            "{error}"
        );
        assert_eq!(error.class(), Class::Unavailable);
    }
    assert_eq!(writer.settled(), 1, "nobody will ever refer to the lost pack");
    bucket.failpoints().set("chunk.before-pack-put", "off").unwrap();
    let refs = save(&writer, data.to_vec()).await;
    assert_eq!(refs[0].pack, pack(2));
    assert_eq!(super::store(&bucket, &plain()).read(&refs).await.unwrap(), data);
    assert_eq!(writer.settled(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_whose_answer_is_lost_leaves_a_settled_pack_that_nobody_refers_to() {
    let bucket = Bucket::memory();
    let store = store(&bucket, &plain());
    let writer = packer(&store);
    bucket.failpoints().set("chunk.after-pack-put", "1*return->off").unwrap();
    let lost = writer.add(vec![noise(1, 1000)]).await.unwrap();
    assert!(lost.stored().await.is_err());
    let refs = save(&writer, vec![noise(1, 1000)]).await;
    assert_eq!(refs[0].pack, pack(2));
    let packs: Vec<_> = store.list().await.unwrap().into_iter().map(|p| p.pack).collect();
    assert_eq!(packs, [pack(1), pack(2)]);
    assert_eq!(writer.settled(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_chunks_are_stored_once_whoever_adds_them() {
    let bucket = Bucket::memory();
    let writer = packer(&store(&bucket, &plain()));
    let adders: Vec<_> = (0..32)
        .map(|_| {
            let writer = writer.clone();
            tokio::spawn(async move {
                writer.add((0..8).map(|n| noise(n, 50_000)).collect()).await.unwrap()
            })
        })
        .collect();
    // Kept, because a pack is found without asking anyone only while it is not settled.
    let mut stored = Vec::new();
    for adder in adders {
        stored.push(adder.await.unwrap().stored().await.unwrap());
    }
    let refs: Vec<_> = stored.iter().flat_map(|stored| stored.refs()).copied().collect();
    let reader = store(&bucket, &plain());
    let mut kept = 0;
    for summary in reader.list().await.unwrap() {
        kept += reader.contents(summary.pack).await.unwrap().len();
    }
    assert_eq!(kept, 8, "256 chunks of 8 kinds were stored as {kept}");
    let data = reader.read(&refs).await.unwrap();
    assert!(data.iter().enumerate().all(|(i, data)| *data == noise(i as u64 % 8, 50_000)));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_waiters_share_few_packs() {
    let bucket = Bucket::memory();
    bucket.failpoints().set("chunk.before-pack-put", "sleep(50)").unwrap();
    let writer = packer(&store(&bucket, &plain()));
    let waiters: Vec<_> = (0..200)
        .map(|n| {
            let writer = writer.clone();
            tokio::spawn(async move { save(&writer, vec![noise(n, 5000)]).await })
        })
        .collect();
    for waiter in waiters {
        waiter.await.unwrap();
    }
    let packs = store(&bucket, &plain()).list().await.unwrap().len();
    assert!(packs <= 40, "200 waiters made {packs} packs");
    assert_eq!(writer.settled(), packs as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unhurried_waiter_shares_the_pack_of_a_hurried_one_and_is_served_alone_too() {
    let bucket = Bucket::memory();
    let writer = packer(&store(&bucket, &plain()));
    let background = writer.add(vec![noise(1, 5000)]).await.unwrap();
    let background = tokio::spawn(background.stored_in_background());
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(bucket.requests().put, 0);
    save(&writer, vec![noise(2, 5000)]).await;
    background.await.unwrap().unwrap().settle();
    assert_eq!(bucket.requests().put, 1);
    let alone = writer.add(vec![noise(3, 5000)]).await.unwrap();
    timeout(Duration::from_secs(10), alone.stored_in_background()).await.unwrap().unwrap().settle();
    assert_eq!(bucket.requests().put, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_adds_faster_than_the_bucket_stores_waits() {
    let bucket = Bucket::memory();
    bucket.failpoints().set("chunk.before-pack-put", "pause").unwrap();
    let writer = packer(&store(&bucket, &encrypted()));
    let mut packings = Vec::new();
    let mut added = 0;
    while let Ok(packing) =
        timeout(Duration::from_secs(2), writer.add(vec![noise(added, 1 << 20)])).await
    {
        packings.push(packing.unwrap());
        added += 1;
        assert!(added <= 64, "64 MiB are the limit");
    }
    assert!(added >= 32, "{added} MiB were let in");
    bucket.failpoints().set("chunk.before-pack-put", "off").unwrap();
    let mut refs = Vec::new();
    for packing in packings {
        refs.extend(packing.stored().await.unwrap().refs().to_vec());
    }
    let reader = store(&bucket, &encrypted());
    for (n, chunk) in refs.iter().enumerate() {
        assert_eq!(reader.read(&[*chunk]).await.unwrap(), [noise(n as u64, 1 << 20)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_bucket_still_gets_full_packs() {
    let bucket = Bucket::memory();
    bucket.failpoints().set("chunk.before-pack-put", "sleep(400)").unwrap();
    let writer = packer(&store(&bucket, &plain()));
    let flushes: Vec<_> = (0..64)
        .map(|n| {
            let writer = writer.clone();
            tokio::spawn(async move {
                let raw = (0..4).map(|i| noise(n * 4 + i, 1 << 20)).collect();
                writer.add(raw).await.unwrap().stored_in_background().await.unwrap().settle();
            })
        })
        .collect();
    for flush in flushes {
        flush.await.unwrap();
    }
    let packs = store(&bucket, &plain()).list().await.unwrap().len();
    assert!(packs <= 20, "256 MiB made {packs} packs: more than 80 PUTs a GiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn open_packs_of_others_give_way_to_who_needs_room() {
    let bucket = Bucket::memory();
    let cache = ChunkCache::memory(1 << 20);
    let mut idle = Vec::new();
    // Each leaves 12 MiB in its open pack and never asks for it to be stored.
    for n in 0..12 {
        let family = FamilyId::from_bytes([n; 16]);
        let writer = ChunkStore::new(bucket.clone(), family, &plain(), cache.clone()).packer(
            CREATOR,
            Epoch(1),
            Codec::None,
        );
        let raw = (0..12).map(|i| noise(u64::from(n) * 100 + i, 1 << 20)).collect();
        let packing = timeout(Duration::from_secs(60), writer.add(raw))
            .await
            .expect("there is room for whoever waits")
            .unwrap();
        idle.push(packing);
    }
    for packing in idle {
        packing.stored().await.unwrap().settle();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_add_leaves_nothing_unsettled() {
    let bucket = Bucket::memory();
    let writer = packer(&store(&bucket, &encrypted()));
    for n in 0..50 {
        let raw: Vec<_> = (0..6).map(|i| noise(n * 10 + i, 1 << 20)).collect();
        let _ = timeout(Duration::from_micros(n * 100), writer.add(raw)).await;
    }
    let refs = save(&writer, vec![noise(9999, 5000)]).await;
    timeout(Duration::from_secs(20), async {
        while writer.settled() < refs[0].pack.seq {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("every pack before is settled");
}
