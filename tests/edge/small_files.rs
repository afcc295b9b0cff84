//! The cost of a small file that a program makes, writes and closes, as Linux' client sends it.

use crate::again::with_mode;
use crate::served::Host;
use crate::support::wire::{Wire, accepted, fh, nfs, pack, place};
use nfs3_types::nfs3::*;
use nfs3_types::xdr_codec::Opaque;
use std::time::Duration;
use zerofs_csi::fs::api::Stability;
use zerofs_csi::nfs::client::Credentials;

/// Fewer than begin a MemTable flush, which bounds what the next opening replays.
const ONE_BY_ONE: u64 = 10;
const AT_ONCE: u64 = 20;
const BYTES: usize = 3000;

/// The calls of `open(O_CREAT)`, `write`, `close`: of each file only the WRITE that the client
/// sends at close waits for the store, and that is one PUT. LOOKUP and CREATE are answered without
/// any request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_file_is_one_put() {
    let mut host = Host::new();
    host.dataset.options.flush_interval = Duration::from_secs(3600);
    let served = host.serve().await;
    let bucket = host.dataset.place.bucket.clone();
    let client = served.client(&Credentials::root()).await;
    let root = served.root(&client).await;
    served.fs.sync().await.unwrap();
    let mut wire = Wire::connect(served.server.local_addr()).await;
    for n in 0..ONE_BY_ONE {
        let name = format!("file {n}");
        let before = bucket.requests();
        assert!(client.lookup(&root, name.as_bytes()).await.is_err());
        let create = CREATE3args {
            where_: place(root.as_bytes(), name.as_bytes()),
            how: createhow3::UNCHECKED(with_mode(0o644)),
        };
        let (_, results) = accepted(&wire.ask(&nfs(n as u32, 8, &pack(&create))).await.unwrap());
        let file = results[12..12 + 52].to_vec();
        let made = bucket.requests() - before;
        assert_eq!(
            (made.put, made.get, made.head, made.list),
            (0, 0, 0, 0),
            "LOOKUP and CREATE of file {n}"
        );
        let data = Opaque::owned(vec![n as u8 + 1; BYTES]);
        let write = WRITE3args {
            file: fh(&file),
            offset: 0,
            count: BYTES as u32,
            stable: stable_how::FILE_SYNC,
            data,
        };
        assert_eq!(
            crate::support::wire::status(
                &wire.ask(&nfs(1000 + n as u32, 7, &pack(&write))).await.unwrap()
            ),
            0
        );
        let made = bucket.requests() - before;
        assert_eq!((made.put, made.get, made.head, made.list), (1, 0, 0, 0), "file {n}");
    }
    served.fs.close().await.unwrap();
}

/// Files that are written at the same time share their PUTs: who copies many small files does well
/// to copy several at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_files_at_once_share_puts() {
    let mut host = Host::new();
    host.dataset.options.flush_interval = Duration::from_secs(3600);
    let served = host.serve().await;
    let bucket = host.dataset.place.bucket.clone();
    let client = served.client(&Credentials::root()).await;
    let root = served.root(&client).await;
    served.fs.sync().await.unwrap();
    // A store that takes a moment: who comes meanwhile joins the next flush.
    bucket.failpoints().set("fs.commit.before-flush", "sleep(50)").unwrap();
    let before = bucket.requests();
    let writes = (0..AT_ONCE).map(|n| {
        let (client, root) = (client.clone(), root.clone());
        async move {
            let file = client
                .create(&root, format!("file {n}").as_bytes(), &crate::limits::new())
                .await
                .unwrap()
                .handle;
            let data = bytes::Bytes::from(vec![n as u8 + 1; BYTES]);
            let written = client.write(&file, 0, data, Stability::FileSync).await.unwrap();
            assert_eq!(written.stability, Stability::FileSync);
        }
    });
    futures::future::join_all(writes).await;
    let made = bucket.requests() - before;
    assert!(made.put <= AT_ONCE / 2, "{made:?}");
    served.fs.close().await.unwrap();
}
