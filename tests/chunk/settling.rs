//! Which packs new references may name: settling (R9) and deduplication (R10).

use super::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex};
use zerofs_csi::chunk::{Packing, Stored};

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_is_settled_when_nobody_holds_it_and_none_before_it_is_held() {
    let store = store(&Bucket::memory(), &plain());
    let writer = packer(&store);
    assert_eq!(writer.settled(), 0);
    let first = writer.add(vec![noise(1, 100)]).await.unwrap().stored().await.unwrap();
    let second = writer.add(vec![noise(2, 100)]).await.unwrap().stored().await.unwrap();
    let again = writer.add(vec![noise(1, 100)]).await.unwrap();
    assert_eq!(again.refs()[0].pack, pack(1));
    assert!(
        writer.is_unsettled(pack(1))
            && writer.is_unsettled(pack(2))
            && !writer.is_unsettled(pack(3))
    );
    first.settle();
    second.settle();
    assert_eq!(writer.settled(), 0, "a later packing still refers to the first pack");
    // The second has no holds, but no state can have called it settled.
    assert!(writer.is_unsettled(pack(2)));
    let revived = writer.add(vec![noise(2, 100)]).await.unwrap().stored().await.unwrap();
    assert_eq!(revived.refs()[0].pack, pack(2));
    drop(again);
    assert_eq!(writer.settled(), 1);
    drop(revived);
    assert_eq!(writer.settled(), 2);
    assert!(!writer.is_unsettled(pack(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_everyone_gave_up_before_it_was_closed_is_never_stored() {
    let bucket = Bucket::memory();
    let writer = packer(&store(&bucket, &plain()));
    let packing = writer.add(vec![noise(1, 100)]).await.unwrap();
    assert!(!writer.is_unsettled(pack(1)), "it is not stored: nothing may refer to it");
    drop(packing);
    assert_eq!(writer.settled(), 1);
    let refs = save(&writer, vec![noise(1, 100)]).await;
    assert_eq!(refs[0].pack, pack(2), "a number is given once");
    assert_eq!(bucket.requests().put, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settled_or_foreign_pack_is_found_only_with_leave() {
    let bucket = Bucket::memory();
    let store = store(&bucket, &plain());
    let earlier = save(&store.packer(CREATOR, Epoch(0), Codec::Lz4), vec![noise(1, 100)]).await;
    let writer = packer(&store);
    let own = save(&writer, vec![noise(2, 100)]).await;
    assert_eq!(writer.settled(), 1);
    writer.learn(&earlier);
    // Nobody has said that U of these packs is above 0.
    let refs = save(&writer, vec![noise(1, 100), noise(2, 100)]).await;
    assert!(refs.iter().all(|chunk| chunk.pack == pack(2)), "{refs:?}");

    let used: Arc<Mutex<HashSet<PackId>>> = Arc::default();
    let asked = used.clone();
    writer.deduplicate_into(Arc::new(move |pack| asked.lock().unwrap().contains(&pack)));
    writer.learn(&earlier);
    writer.learn(&own);
    used.lock().unwrap().extend([earlier[0].pack, pack(1)]);
    let puts = bucket.requests().put;
    let refs = save(&writer, vec![noise(1, 100), noise(2, 100)]).await;
    assert_eq!(refs, [earlier[0], own[0]]);
    assert_eq!(bucket.requests().put, puts, "nothing had to be stored");

    used.lock().unwrap().clear();
    let refs = save(&writer, vec![noise(1, 100), noise(2, 100)]).await;
    assert!(refs.iter().all(|chunk| chunk.pack == pack(3)), "{refs:?}");
}

/// A caller's value between two steps.
enum Hand {
    Packing(Packing),
    Stored(Stored),
}

/// A dataset that commits references, as the committer does it: settled is read before the batches
/// are taken.
#[derive(Default)]
struct Dataset {
    usage: BTreeMap<u64, u64>,
}

async fn random_history(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let bucket = Bucket::memory();
    let writer = packer(&store(&bucket, &plain()));
    let dataset: Arc<Mutex<Dataset>> = Arc::default();
    let asked = dataset.clone();
    writer.deduplicate_into(Arc::new(move |pack| {
        asked.lock().unwrap().usage.get(&pack.seq).is_some_and(|refs| *refs > 0)
    }));
    let mut hands: Vec<Hand> = Vec::new();
    let mut live: Vec<ChunkRef> = Vec::new();
    let mut swept: BTreeSet<u64> = BTreeSet::new();
    for step in 0..250 {
        match random.random_range(0..100) {
            0..40 => {
                let raw = (0..random.random_range(1..4))
                    .map(|_| noise(random.random_range(0..30), 200))
                    .collect();
                hands.push(Hand::Packing(writer.add(raw).await.unwrap()));
            }
            40..65 if !hands.is_empty() => {
                let at = random.random_range(0..hands.len());
                if let Hand::Packing(packing) = hands.swap_remove(at) {
                    if random.random_bool(0.2) {
                        bucket.failpoints().set("chunk.before-pack-put", "return").unwrap();
                    }
                    let stored = packing.stored().await;
                    bucket.failpoints().set("chunk.before-pack-put", "off").unwrap();
                    hands.extend(stored.ok().map(Hand::Stored));
                }
            }
            65..85 if !hands.is_empty() => {
                let at = random.random_range(0..hands.len());
                if let Hand::Stored(stored) = hands.swap_remove(at) {
                    let mut dataset = dataset.lock().unwrap();
                    // The committer's check (R10): all or nothing.
                    let used = |chunk: &ChunkRef| {
                        dataset.usage.get(&chunk.pack.seq).is_some_and(|refs| *refs > 0)
                    };
                    if stored
                        .refs()
                        .iter()
                        .all(|chunk| writer.is_unsettled(chunk.pack) || used(chunk))
                    {
                        for chunk in stored.refs() {
                            assert!(
                                !swept.contains(&chunk.pack.seq),
                                "seed {seed} step {step}: a swept pack came back"
                            );
                            *dataset.usage.entry(chunk.pack.seq).or_default() += 1;
                            live.push(*chunk);
                        }
                    }
                    drop(dataset);
                    stored.settle();
                }
            }
            85..95 if !live.is_empty() => {
                let chunk = live.swap_remove(random.random_range(0..live.len()));
                *dataset.lock().unwrap().usage.get_mut(&chunk.pack.seq).unwrap() -= 1;
            }
            _ => {
                // The collector, on the state of this moment.
                let settled = writer.settled();
                let dataset = dataset.lock().unwrap();
                swept.extend(
                    (1..=settled)
                        .filter(|seq| dataset.usage.get(seq).is_none_or(|refs| *refs == 0)),
                );
            }
        }
        assert!(
            live.iter().all(|chunk| !swept.contains(&chunk.pack.seq)),
            "seed {seed} step {step}: a pack in use was swept"
        );
    }
    hands.clear();
    let last = save(&writer, vec![noise(1000, 10)]).await[0].pack.seq;
    assert_eq!(writer.settled(), last, "seed {seed}: all is settled when nobody holds anything");
    assert!(
        live.iter().all(|chunk| !swept.contains(&chunk.pack.seq)),
        "seed {seed}: a pack in use was swept"
    );
    store(&bucket, &plain()).read(&live).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_history_refers_to_a_swept_pack() {
    let seeds = std::env::var("CHUNK_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let first: u64 = rand::random();
    println!("seeds {first}.. ({seeds})");
    for seed in 0..seeds {
        random_history(first.wrapping_add(seed)).await;
    }
}
