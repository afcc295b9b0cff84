//! The same calls, many at once, to a volume that this node owns alone, to one that it shares and
//! owns, and to one that another node owns: all are answered alike. With `--nocapture` it prints
//! what each costs.

use crate::node::Node;
use crate::sharing::put;
use crate::support::driver::stage;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerofs_csi::nfs::client::{Client, FileHandle};

/// Calls of each kind.
const CALLS: u32 = 800;
const READS: u32 = 64;
const AT_ONCE: u32 = 16;

/// The time of one call after the other, and of a call with others in flight.
async fn time<F: Future<Output = ()>>(calls: u32, call: impl Fn() -> F) -> (Duration, Duration) {
    let begun = Instant::now();
    for _ in 0..calls / 4 {
        call().await;
    }
    let alone = begun.elapsed() / (calls / 4);
    let begun = Instant::now();
    for _ in 0..calls / AT_ONCE {
        futures::future::join_all((0..AT_ONCE).map(|_| call())).await;
    }
    (alone, begun.elapsed() / (calls / AT_ONCE * AT_ONCE))
}

async fn measure(what: &str, client: &Client, root: &FileHandle) {
    let content: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
    put(client, root, "file", &content).await;
    let file = client.lookup(root, b"file").await.unwrap().handle;
    let (client, file, content) = (&client, &file, &content);
    let attr =
        time(
            CALLS,
            || async move { assert_eq!(client.getattr(file).await.unwrap().size, 1 << 20) },
        )
        .await;
    let read = time(READS, || async move {
        assert!(client.read(file, 0, 1 << 20).await.unwrap().data == content[..]);
    });
    let read = read.await;
    println!("{what}: getattr {:?} alone, {:?} of {AT_ONCE}", attr.0, attr.1);
    println!("{what}: read of 1 MiB {:?} alone, {:?} of {AT_ONCE}", read.0, read.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_at_once_are_answered_alike_however_far_they_go() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let (one, other) = (Node::start(&dir, "a-").await, Node::start(&dir, "b-").await);
    let single = one.driver.create("single").await.volume_id;
    let at = dir.path().join("single");
    one.driver.node().node_stage_volume(stage(&single, &at)).await.unwrap();
    measure("one node's", &one.client().await, &one.root()).await;
    one.driver.unstage(&single, &at).await.unwrap();
    let id = one.create_shared("v").await;
    one.stage(&id).await;
    other.stage(&id).await;
    measure("shared, at its owner", &one.client().await, &one.root()).await;
    measure("shared, relayed", &other.client().await, &one.root()).await;
    other.unstage(&id).await;
    one.unstage(&id).await;
}
