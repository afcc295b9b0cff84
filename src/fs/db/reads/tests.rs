//! The requests of reads through [`ReadStore`], counted.

use super::*;
use crate::bucket::{Bucket, Requests};
use slatedb::object_store::{ObjectStoreExt, PutMode};
use slatedb::object_store_tag::{RetryReason, SstType, TableStoreKind};

struct Log {
    bucket: Bucket,
    store: ReadStore,
}

fn object(id: u64) -> Path {
    Path::from(format!("vol/a/wal/{id:020}.sst"))
}

impl Log {
    async fn of(ids: Range<u64>, copies_max: usize) -> Self {
        let bucket = Bucket::memory();
        for id in ids {
            bucket.store().put(&object(id), format!("object {id}").into()).await.unwrap();
        }
        let store = ReadStore::new(
            bucket.store(),
            &Path::from("vol/a"),
            Arc::new(ObjectCache::new(copies_max)),
        );
        Self { bucket, store }
    }

    async fn is_there(&self, id: u64) -> bool {
        match self.store.head(&object(id)).await {
            Ok(_) => true,
            Err(Error::NotFound { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }

    async fn counted<T>(&self, call: impl Future<Output = T>) -> (T, Requests) {
        let before = self.bucket.requests();
        let done = call.await;
        (done, self.bucket.requests() - before)
    }
}

#[tokio::test]
async fn the_log_is_listed_once_until_it_is_written() {
    let log = Log::of(1..10, 1 << 20).await;
    let probe = async {
        for (id, there) in [(4, true), (5, true), (9, true), (10, false), (99, false)] {
            assert_eq!(log.is_there(id).await, there, "{id}");
        }
    };
    let made = log.counted(probe).await.1;
    assert_eq!((made.list, made.head, made.get), (1, 0, 0));
    assert!(log.is_there(1).await, "before what was listed: asked of the store");
    // Another writer was faster, then the fence.
    log.bucket.store().put(&object(10), "theirs".into()).await.unwrap();
    let fence = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    assert!(log.store.put_opts(&object(10), "".into(), fence.clone()).await.is_err());
    log.store.put_opts(&object(11), "".into(), fence).await.unwrap();
    let (found, made) = log.counted(log.is_there(11)).await;
    assert!(found && made.head == 0, "its own fence");
    assert!(log.is_there(10).await && log.is_there(11).await && !log.is_there(12).await);
    assert_eq!(log.store.opened(), 6, "from the fourth on");
    assert_eq!(
        log.counted(log.is_there(9)).await.1.head,
        1,
        "nothing is answered from the listing after the opening"
    );
}

#[tokio::test]
async fn a_small_object_is_read_once_and_again_where_its_copy_is_damaged() {
    let log = Log::of(1..2, 1 << 20).await;
    let at = object(1);
    for range in [0..8, 2..5, 7..8] {
        assert_eq!(
            log.store.get_range(&at, range.clone()).await.unwrap(),
            b"object 1"[range.start as usize..range.end as usize]
        );
    }
    assert_eq!(log.bucket.requests().get, 1);
    let mut tag = ObjectStoreCallTag::new(TableStoreKind::Main, SstType::Wal);
    tag.retry = Some(RetryReason::CrcMismatch);
    let options =
        GetOptions { range: Some((0..8).into()), extensions: tag.into(), ..GetOptions::default() };
    log.store.get_opts(&at, options).await.unwrap();
    log.store.get_range(&at, 0..8).await.unwrap();
    assert_eq!(log.bucket.requests().get, 3, "its copy is gone");
    assert!(log.store.get_range(&object(2), 0..8).await.is_err());
}

#[tokio::test]
async fn copies_are_bounded_and_large_objects_are_read_in_parts() {
    let log = Log::of(1..1, 3 * (100 << 10)).await;
    let bytes = |n: u8| Bytes::from(vec![n; 100 << 10]);
    for n in 0..5 {
        log.bucket.store().put(&object(n), bytes(n as u8).into()).await.unwrap();
        assert_eq!(
            log.store.get_range(&object(n), 5..10).await.unwrap(),
            bytes(n as u8).slice(5..10)
        );
    }
    let cached = log.store.objects.cached.lock().bytes;
    assert_eq!(cached, 3 * (100 << 10));
    let large = Path::from("vol/b/compacted/01.sst");
    log.bucket.store().put(&large, vec![7; 1 << 20].into()).await.unwrap();
    for range in [0..10, 0..10, 500_000..500_010] {
        assert_eq!(log.store.get_range(&large, range).await.unwrap(), vec![7; 10]);
    }
    assert_eq!(log.store.objects.cached.lock().bytes, cached);
}

#[tokio::test]
async fn blocks_of_a_large_table_that_lie_near_each_other_come_together() {
    let mut log = Log::of(1..1, 1 << 20).await;
    log.store = log.store.with_parts(Arc::new(Parts::new(2 * (128 << 10))));
    let large = Path::from("vol/b/compacted/01.sst");
    let bytes: Bytes = (0..700_000_u32).map(|n| (n % 251) as u8).collect::<Vec<_>>().into();
    log.bucket.store().put(&large, bytes.clone().into()).await.unwrap();
    // That it is large is found out once.
    log.store.get_range(&large, 0..10).await.unwrap();
    let block = |n: u64| n * 4096..((n + 1) * 4096).min(700_000);
    let (read, made) = log
        .counted(async {
            let mut read = Vec::new();
            for n in 0..700_000_u64.div_ceil(4096) {
                read.extend_from_slice(&log.store.get_range(&large, block(n)).await.unwrap());
            }
            read
        })
        .await;
    assert_eq!(read, bytes);
    assert_eq!(made.get, 2 * 6, "one block and one part, of each of six");
    let far = async {
        for n in [0, 40, 80] {
            log.store.get_range(&large, block(n)).await.unwrap();
        }
    };
    assert_eq!(log.counted(far).await.1.get, 3, "two are kept");
    let mut tag = ObjectStoreCallTag::new(TableStoreKind::Main, SstType::Compacted);
    tag.retry = Some(RetryReason::CrcMismatch);
    let range = Some(GetRange::Bounded(block(80)));
    let options = GetOptions { range, extensions: tag.into(), ..GetOptions::default() };
    let again = async {
        log.store.get_opts(&large, options).await.unwrap();
        log.store.get_range(&large, block(80)).await.unwrap();
    };
    assert_eq!(log.counted(again).await.1.get, 2, "a copy that is damaged is not used again");
}
