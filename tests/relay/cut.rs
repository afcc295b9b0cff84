//! The network between the nodes cuts connections anywhere, and stops carrying anything; the store
//! is away from the owner alone.

use crate::moves::{Worker, names};
use crate::node::{Node, next_owner, owner};
use crate::support::driver::catalog;
use crate::support::kernel::Kernel;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use zerofs_csi::catalog::NodeChannel;

/// A network in front of a node's channel.
struct Network {
    at: SocketAddr,
    /// Cuts each connection after some bytes.
    cuts: Arc<AtomicBool>,
    /// Carries nothing, and breaks nothing.
    stalled: Arc<AtomicBool>,
    connections: Arc<AtomicU32>,
}

impl Network {
    async fn before(channel: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let network = Self {
            at: listener.local_addr().unwrap(),
            cuts: Arc::default(),
            stalled: Arc::default(),
            connections: Arc::default(),
        };
        let (cuts, stalled) = (network.cuts.clone(), network.stalled.clone());
        let connections = network.connections.clone();
        tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                let (cuts, stalled) = (cuts.clone(), stalled.clone());
                tokio::spawn(async move {
                    let far = TcpStream::connect(channel).await?;
                    let ((from_near, to_near), (from_far, to_far)) =
                        (near.into_split(), far.into_split());
                    // Past the handshake, mostly.
                    let left = rand::random_range(2000..12_000);
                    tokio::select! {
                        end = carry(from_near, to_far, left, &cuts, &stalled) => end,
                        end = carry(from_far, to_near, left, &cuts, &stalled) => end,
                    }
                });
            }
        });
        network
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut left: usize,
    cuts: &AtomicBool,
    stalled: &AtomicBool,
) -> std::io::Result<()> {
    let mut buffer = [0; 1000];
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            return Ok(());
        }
        while stalled.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let some = if cuts.load(Ordering::SeqCst) { len.min(left) } else { len };
        to.write_all(&buffer[..some]).await?;
        left = left.saturating_sub(len);
        if some < len || left == 0 && cuts.load(Ordering::SeqCst) {
            return Ok(());
        }
    }
}

/// Puts a network in front of the owner's channel. To be called before others relay.
async fn network(dir: &TempDir, id: &str) -> Network {
    let (catalog, session) = (catalog(dir).await, owner(dir, id).await.unwrap().session);
    let channel = catalog.channel(session).await.unwrap().unwrap();
    let network = Network::before(channel.address.unwrap()).await;
    let channel = NodeChannel { address: Some(network.at), ..channel };
    catalog.put_channel(session, 1000, &channel).await.unwrap();
    network
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_takes_effect_once_however_often_connections_break() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let (one, other) = (Node::start(&dir, "a-").await, Node::start(&dir, "b-").await);
    let id = one.create_shared("v").await;
    one.stage(&id).await;
    let network = network(&dir, &id).await;
    other.stage(&id).await;
    let (root, before) = (one.root(), owner(&dir, &id).await.unwrap());
    network.cuts.store(true, Ordering::SeqCst);
    let workers: Vec<Worker> = ["one-", "two-", "three-"]
        .into_iter()
        .zip(1..)
        .map(|(prefix, number)| {
            Worker::start(Kernel::new(other.at(), root.clone(), number << 24), prefix)
        })
        .collect();
    while workers.iter().any(|worker| worker.changes() < 40) {
        for worker in &workers {
            worker.more().await;
        }
    }
    let mut expected = std::collections::BTreeSet::new();
    for worker in workers {
        expected.extend(worker.end().await);
    }
    let connections = network.connections.load(Ordering::SeqCst);
    println!("{} names over {connections} connections", expected.len());
    assert!(connections > 10, "the network has cut nothing");
    assert_eq!(names(&one.client().await, &root).await, expected);
    network.cuts.store(false, Ordering::SeqCst);
    assert_eq!(names(&other.client().await, &root).await, expected);
    assert_eq!(owner(&dir, &id).await.unwrap().claim, before.claim, "it was taken over");
    other.unstage(&id).await;
    one.unstage(&id).await;
}

/// An owner that cannot be reached, but renews its lease, keeps its volume: calls wait, and go on
/// when the network is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_stalls_is_waited_for() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let (one, other) = (Node::start(&dir, "a-").await, Node::start(&dir, "b-").await);
    let id = one.create_shared("v").await;
    one.stage(&id).await;
    let network = network(&dir, &id).await;
    other.stage(&id).await;
    let (root, before) = (one.root(), owner(&dir, &id).await.unwrap());
    let far = Worker::start(Kernel::new(other.at(), root.clone(), 1 << 24), "far-");
    let near = Worker::start(Kernel::new(one.at(), root.clone(), 2 << 24), "near-");
    far.more().await;
    network.stalled.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let done = far.changes();
    // Longer than the owner may be silent, and than its lease.
    tokio::time::sleep(Duration::from_secs(16)).await;
    assert_eq!(far.changes(), done, "calls were answered by nobody");
    near.more().await;
    assert_eq!(owner(&dir, &id).await.unwrap().claim, before.claim, "it was taken over");
    network.stalled.store(false, Ordering::SeqCst);
    far.more().await;
    let expected: std::collections::BTreeSet<String> =
        far.end().await.into_iter().chain(near.end().await).collect();
    assert_eq!(names(&other.client().await, &root).await, expected);
    other.unstage(&id).await;
    one.unstage(&id).await;
}

/// An owner that is cut off from the store answers nothing more before another takes the volume
/// over; when the store is back, it relays to the new owner.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_cut_off_from_the_store_is_followed() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let other = Node::start(&dir, "b-").await;
    let id = other.create_shared("v").await;
    // The way of the first node to the store.
    let apart = Arc::new(tempfile::tempdir().unwrap());
    let way = apart.path().join("pool");
    std::os::unix::fs::symlink(dir.path().join("pool"), &way).unwrap();
    let one = Node::start(&apart, "a-").await;
    one.stage(&id).await;
    other.stage(&id).await;
    let (root, before) = (one.root(), owner(&dir, &id).await.unwrap());
    let near = Worker::start(Kernel::new(one.at(), root.clone(), 1 << 24), "near-");
    let far = Worker::start(Kernel::new(other.at(), root.clone(), 2 << 24), "far-");
    near.more().await;
    far.more().await;
    std::fs::remove_file(&way).unwrap();
    let (after, time) = next_owner(&dir, &id, &before).await;
    println!("{} took over after {time:?}, with a lease of 5 s", after.node);
    assert_eq!(after.node, other.name());
    far.more().await;
    let waits = near.changes();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(near.changes() <= waits + 1, "somebody answers who has no store");
    std::os::unix::fs::symlink(dir.path().join("pool"), &way).unwrap();
    near.more().await;
    far.more().await;
    assert_eq!(owner(&dir, &id).await.unwrap().claim, after.claim);
    let expected: std::collections::BTreeSet<String> =
        far.end().await.into_iter().chain(near.end().await).collect();
    assert_eq!(names(&one.client().await, &root).await, expected);
    assert_eq!(names(&other.client().await, &root).await, expected);
    one.unstage(&id).await;
    other.unstage(&id).await;
}
