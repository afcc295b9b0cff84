//! One conformance suite, run on every store.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod answers;
mod faults;
mod folder;
mod slow;
#[path = "../support/mod.rs"]
mod support;

use bytes::Bytes;
use support::s3::{Quirks, S3Server};
use zerofs_csi::bucket::{Bucket, BucketError, Credentials, Folder, Limits, PutNew};

async fn conformance(bucket: Bucket) {
    objects(&bucket).await;
    conditional_puts(&bucket).await;
    ranges(&bucket).await;
    listings(&bucket).await;
}

async fn objects(bucket: &Bucket) {
    assert_eq!(bucket.get("o/none", 10).await.unwrap(), None);
    bucket.put("o/a", Bytes::from_static(b"one")).await.unwrap();
    assert_eq!(bucket.get("o/a", 3).await.unwrap().unwrap(), "one");
    assert!(matches!(
        bucket.get("o/a", 2).await,
        Err(BucketError::TooLarge { bytes: 3, max: 2, .. })
    ));
    bucket.put("o/a", Bytes::from_static(b"other")).await.unwrap();
    assert_eq!(bucket.get("o/a", 99).await.unwrap().unwrap(), "other");
    bucket.put("o/empty", Bytes::new()).await.unwrap();
    assert_eq!(bucket.get("o/empty", 0).await.unwrap().unwrap(), "");
    bucket.delete(&["o/a".to_owned(), "o/none".to_owned(), "o/empty".to_owned()]).await.unwrap();
    assert_eq!(bucket.get("o/a", 99).await.unwrap(), None);
    bucket.delete(&[]).await.unwrap();
}

async fn conditional_puts(bucket: &Bucket) {
    assert_eq!(bucket.put_new("c/1", Bytes::from_static(b"mine")).await.unwrap(), PutNew::Created);
    assert_eq!(bucket.put_new("c/1", Bytes::from_static(b"yours")).await.unwrap(), PutNew::Exists);
    assert_eq!(bucket.get("c/1", 99).await.unwrap().unwrap(), "mine");
    let racers = (0..16)
        .map(|n| async move { bucket.put_new("c/2", Bytes::from(format!("{n}"))).await.unwrap() });
    let won = futures::future::join_all(racers)
        .await
        .into_iter()
        .filter(|r| *r == PutNew::Created)
        .count();
    assert_eq!(won, 1);
    bucket.delete(&["c/1".to_owned()]).await.unwrap();
    assert_eq!(bucket.put_new("c/1", Bytes::from_static(b"again")).await.unwrap(), PutNew::Created);
}

async fn ranges(bucket: &Bucket) {
    let body: Bytes = (0..100_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>().into();
    bucket.put("r/big", body.clone()).await.unwrap();
    for range in [0..1, 5..5, 4096..70_000, 399_999..400_000, 0..400_000] {
        let wanted = body.slice(range.start as usize..range.end as usize);
        assert_eq!(bucket.get_range("r/big", range.clone()).await.unwrap(), wanted, "{range:?}");
    }
    for short in [399_999..400_001, 400_000..400_001, 500_000..500_010] {
        let error = bucket.get_range("r/big", short.clone()).await.unwrap_err();
        assert!(matches!(error, BucketError::Short { bytes: 400_000, .. }), "{short:?}: {error}");
    }
    assert!(matches!(bucket.get_range("r/none", 0..1).await, Err(BucketError::NotFound { .. })));
    let (tail, size) = bucket.get_tail("r/big", 100).await.unwrap();
    assert_eq!((tail, size), (body.slice(399_900..), 400_000));
    let (tail, size) = bucket.get_tail("r/big", 1 << 20).await.unwrap();
    assert_eq!((tail.len(), size), (400_000, 400_000));
    bucket.put("r/empty", Bytes::new()).await.unwrap();
    assert_eq!(bucket.get_tail("r/empty", 10).await.unwrap(), (Bytes::new(), 0));
    assert!(matches!(bucket.get_tail("r/none", 1).await, Err(BucketError::NotFound { .. })));
}

async fn listings(bucket: &Bucket) {
    let keys: Vec<String> = (0..1100).map(|n| format!("l/d{}/{n:05}", n % 3)).collect();
    for some in keys.chunks(50) {
        let puts = some.iter().map(|key| bucket.put(key, Bytes::from_static(b"x")));
        futures::future::try_join_all(puts).await.unwrap();
    }
    bucket.put("l2/beside", Bytes::from_static(b"x")).await.unwrap();
    let found: Vec<_> =
        bucket.list("l").await.unwrap().into_iter().map(|l| (l.key, l.bytes)).collect();
    let mut wanted: Vec<_> = keys.iter().map(|k| (k.clone(), 1)).collect();
    wanted.sort();
    assert_eq!(found, wanted);
    assert_eq!(bucket.list("l/d1").await.unwrap().len(), 367);
    assert_eq!(bucket.list("l/none").await.unwrap(), []);
    bucket.delete(&keys).await.unwrap();
    assert_eq!(bucket.list("l").await.unwrap(), []);
    assert_eq!(bucket.list("l2").await.unwrap().len(), 1);
}

#[tokio::test]
async fn memory_conforms() {
    conformance(Bucket::memory()).await;
}

#[tokio::test]
async fn a_folder_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}/pool", dir.path().display()).parse().unwrap();
    conformance(
        Bucket::open(&url, &Credentials::none(), Folder::Create, Limits::default()).unwrap(),
    )
    .await;
}

#[tokio::test]
async fn a_prefix_conforms_and_is_kept() {
    let store = std::sync::Arc::new(object_store::memory::InMemory::new());
    conformance(Bucket::on(store.clone(), "pools/one".into())).await;
    let all = Bucket::on(store, "".into()).list("").await.unwrap();
    assert!(!all.is_empty() && all.iter().all(|l| l.key.starts_with("pools/one/")));
}

/// Makes a server answer as one kind of store does.
type Quirk = fn(&mut Quirks);

/// S3 as it is, and as gateways and other stores have it.
#[tokio::test]
async fn an_s3_server_of_any_kind_conforms() {
    let kinds: [(&str, Quirk); 5] = [
        ("S3", |_| {}),
        ("ignores suffix ranges", |quirks| quirks.ignores_suffix_ranges = true),
        ("drops user metadata", |quirks| quirks.drops_metadata = true),
        ("lists in an order of its own", |quirks| quirks.unordered_listings = true),
        ("short pages", |quirks| quirks.page_keys = 7),
    ];
    for (kind, quirk) in kinds {
        println!("{kind}");
        let server = S3Server::start();
        server.quirks(quirk);
        conformance(server.pool("s3://test/pool")).await;
        assert!(server.keys().iter().all(|key| key.starts_with("pool/")), "{kind}");
    }
}

/// A real S3 server over HTTP. `ZEROFS_TEST_S3` is its endpoint, as `tests/bucket/s3-server start`
/// prints it; unset, this is skipped and says so. The tier of `.ci/run` always sets it, and an
/// empty value fails: a server that did not start is no pass.
#[tokio::test]
async fn an_s3_server_conforms() {
    let Ok(endpoint) = std::env::var("ZEROFS_TEST_S3") else {
        eprintln!(
            "skipped: ZEROFS_TEST_S3 names no server (start one: tests/bucket/s3-server start)"
        );
        return;
    };
    assert!(
        endpoint.starts_with("http"),
        "ZEROFS_TEST_S3 must be the URL of an S3 endpoint, not {endpoint:?}"
    );
    let options = [
        ("endpoint", endpoint.as_str()),
        ("access_key_id", "test"),
        ("secret_access_key", "test"),
        ("region", "us-east-1"),
        ("allow_http", "true"),
    ];
    let open = |url: &str| {
        let url = url.parse().unwrap();
        Bucket::open(
            &url,
            &Credentials::none().with(options),
            Folder::MustExist,
            support::fault::quick(),
        )
        .unwrap()
    };
    let run = format!("s3://zerofs-test/run-{}", rand::random::<u64>());
    let limits = Limits { total: std::time::Duration::from_secs(20), ..Limits::default() };
    conformance(open(&run).with_limits(limits)).await;

    let missing = open("s3://zerofs-no-such-bucket/p");
    assert!(
        matches!(missing.list("").await, Err(BucketError::Missing { .. })),
        "{:?}",
        missing.list("").await
    );
    let put = missing.put_new("a", Bytes::new()).await;
    assert!(matches!(put, Err(BucketError::Missing { .. })), "{put:?}");
    assert!(missing.get("a", 1).await.is_err(), "a missing bucket is not a missing object");
}

/// A real Azure Blob server over HTTP. `ZEROFS_TEST_AZURE` is its endpoint, as
/// `tests/bucket/azure-server start` prints it; otherwise as [`an_s3_server_conforms`].
#[tokio::test]
async fn an_azure_server_conforms() {
    let Ok(endpoint) = std::env::var("ZEROFS_TEST_AZURE") else {
        eprintln!(
            "skipped: ZEROFS_TEST_AZURE names no server (start one: tests/bucket/azure-server \
             start)"
        );
        return;
    };
    assert!(
        endpoint.starts_with("http"),
        "ZEROFS_TEST_AZURE must be the URL of an Azure endpoint, not {endpoint:?}"
    );
    // The account and key that every emulator has.
    let key =
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
    let account = format!("{endpoint}/devstoreaccount1");
    let options = [
        ("account_name", "devstoreaccount1"),
        ("account_key", key),
        ("endpoint", account.as_str()),
        ("allow_http", "true"),
    ];
    let url = format!("az://zerofs-test/run~{}", rand::random::<u64>()).parse().unwrap();
    let credentials = Credentials::none().with(options);
    conformance(Bucket::open(&url, &credentials, Folder::MustExist, Limits::default()).unwrap())
        .await;
}
