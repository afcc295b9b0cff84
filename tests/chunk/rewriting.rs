//! Packs that were mostly dead (R12): what is in use stays readable by every reference that was
//! ever given out.

use super::*;
use std::collections::HashSet;
use zerofs_csi::chunk::{ChunkError, Rewritten};
use zerofs_csi::types::ChunkHash;

const LEN: usize = 20_000;

/// A pack of 100 chunks of which every fifth is in use.
async fn mostly_dead(keyring: &Keyring) -> (Bucket, Vec<ChunkRef>, HashSet<ChunkHash>) {
    let bucket = Bucket::memory();
    let refs =
        save(&packer(&store(&bucket, keyring)), (0..100).map(|n| noise(n, LEN)).collect()).await;
    let live = in_use(&refs).iter().map(|(_, chunk)| chunk.hash).collect();
    (bucket, refs, live)
}

fn in_use(refs: &[ChunkRef]) -> Vec<(u64, ChunkRef)> {
    refs.iter()
        .enumerate()
        .filter(|(n, _)| n % 5 == 0)
        .map(|(n, chunk)| (n as u64, *chunk))
        .collect()
}

async fn assert_readable(store: &ChunkStore, refs: &[ChunkRef]) {
    let used = in_use(refs);
    let asked: Vec<ChunkRef> = used.iter().map(|(_, chunk)| *chunk).collect();
    let read = store.read(&asked).await.unwrap();
    assert!(used.iter().zip(&read).all(|((n, _), data)| *data == noise(*n, LEN)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_use_is_read_by_its_old_references() {
    for keyring in [plain(), encrypted()] {
        let (bucket, refs, live) = mostly_dead(&keyring).await;
        let done = store(&bucket, &keyring).rewrite(pack(1), &live).await.unwrap();
        let Rewritten::Done { before, after } = done else { panic!("{done:?}") };
        assert!(after < before / 4, "{before} to {after}");
        let objects = bucket.list("packs/").await.unwrap();
        assert_eq!(objects.iter().map(|o| o.bytes).collect::<Vec<_>>(), [after]);
        let reader = store(&bucket, &keyring);
        assert_eq!(reader.contents(pack(1)).await.unwrap().len(), 20);
        assert_readable(&reader, &refs).await;
        let dead = reader.read(&refs[1..2]).await.unwrap_err();
        assert!(matches!(dead, ChunkError::Corrupt { .. }), "{dead}");
        // One that missed once knows the place: one request for all chunks then.
        let before = bucket.requests();
        let (one, two) = (store(&bucket, &keyring), in_use(&refs));
        one.read(&[two[0].1]).await.unwrap();
        let missed = bucket.requests().get - before.get;
        one.read(&[two[7].1]).await.unwrap();
        assert_eq!(bucket.requests().get - before.get - missed, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_may_be_rewritten_again_under_readers() {
    let (bucket, refs, mut live) = mostly_dead(&plain()).await;
    let reader = store(&bucket, &plain());
    reader.read(&[refs[0]]).await.unwrap();
    let kept: Vec<ChunkRef> = in_use(&refs).into_iter().map(|(_, chunk)| chunk).collect();
    for left in [20, 10, 5, 2] {
        live = kept.iter().take(left).map(|chunk| chunk.hash).collect();
        assert!(matches!(
            store(&bucket, &plain()).rewrite(pack(1), &live).await.unwrap(),
            Rewritten::Done { .. }
        ));
        // The reader's location is that of the generation before.
        let fresh = store(&bucket, &plain());
        for at in [&reader, &fresh] {
            assert_eq!(
                at.read(&kept[left - 1..left]).await.unwrap(),
                [noise(5 * (left as u64 - 1), LEN)]
            );
        }
    }
    assert_eq!(store(&bucket, &plain()).rewrite(pack(1), &live).await.unwrap(), Rewritten::Kept);
    assert_eq!(bucket.list("packs/").await.unwrap().len(), 1);
    assert_eq!(
        reader.list().await.unwrap().iter().map(|p| (p.pack, p.generation)).collect::<Vec<_>>(),
        [(pack(1), 4)]
    );
    reader.delete(&[pack(1)]).await.unwrap();
    assert_eq!(reader.list().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_at_any_step_leaves_what_is_in_use_and_its_repetition_ends_it() {
    for step in ["chunk.before-rewrite", "chunk.rewritten"] {
        let (bucket, refs, live) = mostly_dead(&plain()).await;
        bucket.failpoints().set(step, "1*return").unwrap();
        store(&bucket, &plain()).rewrite(pack(1), &live).await.unwrap_err();
        assert_readable(&store(&bucket, &plain()), &refs).await;
        let fewer: HashSet<ChunkHash> = live.iter().take(3).copied().collect();
        store(&bucket, &plain()).rewrite(pack(1), &fewer).await.unwrap();
        let left = store(&bucket, &plain());
        let kept: Vec<ChunkRef> =
            refs.iter().filter(|chunk| fewer.contains(&chunk.hash)).copied().collect();
        assert_eq!(left.read(&kept).await.unwrap().len(), 3);
        assert_eq!(left.list().await.unwrap().len(), 1, "{step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_removed_when_what_is_in_use_is_damaged_or_missing() {
    let (bucket, refs, live) = mostly_dead(&plain()).await;
    let mut strange = live.clone();
    strange.insert(ChunkHash([9; 32]));
    let refused = store(&bucket, &plain()).rewrite(pack(1), &strange).await.unwrap_err();
    assert!(
        matches!(refused, ChunkError::Corrupt { hash, .. } if hash == ChunkHash([9; 32])),
        "{refused}"
    );
    let mut object = bucket.get(&key(pack(1)), 1 << 30).await.unwrap().unwrap().to_vec();
    object[refs[5].offset as usize + 3] ^= 1;
    bucket.put(&key(pack(1)), object.into()).await.unwrap();
    let refused = store(&bucket, &plain()).rewrite(pack(1), &live).await.unwrap_err();
    assert!(
        matches!(refused, ChunkError::Corrupt { hash, .. } if hash == refs[5].hash),
        "{refused}"
    );
    assert_eq!(
        store(&bucket, &plain())
            .list()
            .await
            .unwrap()
            .iter()
            .map(|p| p.generation)
            .collect::<Vec<_>>(),
        [0]
    );
    assert_eq!(store(&bucket, &plain()).read(&refs[..1]).await.unwrap(), [noise(0, LEN)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_never_notice() {
    let (bucket, refs, _) = mostly_dead(&encrypted()).await;
    let reading: Vec<_> = (0..4)
        .map(|_| {
            let (bucket, refs) = (bucket.clone(), refs.clone());
            tokio::spawn(async move {
                for _ in 0..30 {
                    // A cold cache each time; the first chunk is in use throughout.
                    assert_eq!(
                        store(&bucket, &encrypted()).read(&refs[..1]).await.unwrap(),
                        [noise(0, LEN)]
                    );
                }
            })
        })
        .collect();
    let used = in_use(&refs);
    for left in (1..=20).rev() {
        let live = used.iter().take(left).map(|(_, chunk)| chunk.hash).collect();
        store(&bucket, &encrypted()).rewrite(pack(1), &live).await.unwrap();
        tokio::task::yield_now().await;
    }
    for reader in reading {
        reader.await.unwrap();
    }
}
