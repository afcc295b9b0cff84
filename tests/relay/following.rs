//! The owner of a shared volume changes while others use it: it closes the volume, dies, is told to
//! give it up, or restarts.

use crate::node::{Node, next_owner, owner};
use crate::sharing::{get, put};
use crate::support::driver::Driver;
use crate::support::driver::revoke;
use crate::support::wire::{Wire, nfs, pack, place, status};
use nfs3_types::nfs3::{LOOKUP3args, REMOVE3args};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use zerofs_csi::nfs::client::{Client, FileHandle};

const OK: u32 = 0;
const NO_ENTRY: u32 = 2;

/// A client that writes file after file until it is stopped, and none of whose calls may fail.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<Duration>,
}

impl Writer {
    fn start(client: Client, root: FileHandle, prefix: &'static str) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopped, count) = (stop.clone(), written.clone());
        let task = tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            while !stopped.load(Ordering::SeqCst) {
                let number = count.load(Ordering::SeqCst);
                let begun = Instant::now();
                put(&client, &root, &format!("{prefix}{number}"), &number.to_be_bytes()).await;
                longest = longest.max(begun.elapsed());
                count.fetch_add(1, Ordering::SeqCst);
            }
            longest
        });
        Self { stop, written, task }
    }

    async fn more(&self, files: u32) {
        let until = self.written.load(Ordering::SeqCst) + files;
        let begun = Instant::now();
        while self.written.load(Ordering::SeqCst) < until {
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing more is written");
            assert!(!self.task.is_finished(), "a call failed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops, and checks every file. The longest call.
    async fn check(self, client: &Client, root: &FileHandle, prefix: &str) -> Duration {
        self.stop.store(true, Ordering::SeqCst);
        let longest = self.task.await.unwrap();
        for number in 0..self.written.load(Ordering::SeqCst) {
            let data = get(client, root, &format!("{prefix}{number}")).await;
            assert_eq!(data, &number.to_be_bytes()[..], "{prefix}{number}");
        }
        longest
    }
}

fn remove(xid: u32, root: &FileHandle, name: &[u8]) -> Vec<u8> {
    nfs(xid, 12, &pack(&REMOVE3args { object: place(root.as_bytes(), name) }))
}

fn lookup(xid: u32, root: &FileHandle, name: &[u8]) -> Vec<u8> {
    nfs(xid, 3, &pack(&LOOKUP3args { what: place(root.as_bytes(), name) }))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_unstages_is_followed_under_load() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let nodes = [
        Node::start(&dir, "a-").await,
        Node::start(&dir, "b-").await,
        Node::start(&dir, "c-").await,
    ];
    let [one, two, three] = &nodes;
    let id = one.create_shared("v").await;
    for node in &nodes {
        node.stage(&id).await;
    }
    let root = one.root();
    let writers = [
        Writer::start(two.client().await, root.clone(), "two-"),
        Writer::start(three.client().await, root.clone(), "three-"),
    ];
    for writer in &writers {
        writer.more(5).await;
    }
    let first = owner(&dir, &id).await.unwrap();
    one.unstage(&id).await;
    let (second, after) = next_owner(&dir, &id, &first).await;
    println!("owned by {} {after:?} after the first node had unstaged it", second.node);
    for writer in &writers {
        writer.more(5).await;
    }
    let (client, [by_two, by_three]) = (two.client().await, writers);
    for (writer, prefix) in [(by_two, "two-"), (by_three, "three-")] {
        let longest = writer.check(&client, &root, prefix).await;
        println!("{prefix}: the longest call took {longest:?}");
    }
    two.unstage(&id).await;
    let client = three.client().await;
    assert_eq!(get(&client, &root, "two-0").await, &0u32.to_be_bytes()[..]);
    three.unstage(&id).await;
    assert_eq!(owner(&dir, &id).await, None);
}

/// The owner dies without releasing anything: another takes over once its lease has expired, no
/// call fails, and a call that comes again gets its first answer from the new owner.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_dies_is_followed_and_repeated_calls_get_their_first_answer() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let (one, other) = (Node::start(&dir, "a-").await, Node::start(&dir, "b-").await);
    let id = one.create_shared("v").await;
    one.stage(&id).await;
    other.stage(&id).await;
    let (root, client) = (one.root(), other.client().await);
    put(&client, &root, "gone", b"x").await;
    let mut wire = Wire::connect(other.at()).await;
    assert_eq!(status(&wire.ask(&remove(77, &root, b"gone")).await.unwrap()), OK);
    put(&client, &root, "gone", b"made again").await;
    let writer = Writer::start(client.clone(), root.clone(), "two-");
    writer.more(3).await;

    let first = owner(&dir, &id).await.unwrap();
    let Node { driver, .. } = one;
    drop(driver);
    // Sent while nobody answers.
    wire.send(&remove(77, &root, b"gone")).await;
    wire.send(&lookup(78, &root, b"gone")).await;
    let (second, after) = next_owner(&dir, &id, &first).await;
    println!(
        "owned by {} {after:?} after the death of the first, with a lease of 5 s",
        second.node
    );
    assert_eq!(second.node, owner(&dir, &id).await.unwrap().node);
    let mut answers = [wire.receive().await.unwrap(), wire.receive().await.unwrap()];
    answers.sort();
    assert_eq!(status(&answers[0]), OK, "the first answer, not that there is no such name");
    assert_eq!(status(&answers[1]), OK, "the name that was made since is still there");
    writer.more(3).await;
    println!("the longest call took {:?}", writer.check(&client, &root, "two-").await);
    assert_eq!(status(&wire.ask(&remove(79, &root, b"gone")).await.unwrap()), OK);
    assert_eq!(status(&wire.ask(&lookup(80, &root, b"gone")).await.unwrap()), NO_ENTRY);
    other.unstage(&id).await;
    assert_eq!(owner(&dir, &id).await, None);
}

/// A node that loses a shared volume relays to the next owner (R25): its clients see nothing stale.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_loses_its_volume_relays() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let (one, other) = (Node::start(&dir, "a-").await, Node::start(&dir, "b-").await);
    let id = one.create_shared("v").await;
    one.stage(&id).await;
    other.stage(&id).await;
    let (root, near, far) = (one.root(), one.client().await, other.client().await);
    let writers =
        [Writer::start(near.clone(), root.clone(), "a-"), Writer::start(far, root.clone(), "b-")];
    for writer in &writers {
        writer.more(3).await;
    }
    let first = owner(&dir, &id).await.unwrap();
    revoke(&dir, &id).await;
    let (second, after) = next_owner(&dir, &id, &first).await;
    println!("owned by {} {after:?} after the revocation, with a lease of 5 s", second.node);
    for writer in &writers {
        writer.more(3).await;
    }
    let [by_one, by_other] = writers;
    by_one.check(&near, &root, "a-").await;
    by_other.check(&near, &root, "b-").await;
    one.unstage(&id).await;
    other.unstage(&id).await;
    assert_eq!(owner(&dir, &id).await, None);
}

/// A process that restarts finds its mount of a volume that another owns by now, and relays it at
/// the same address (R24); one that owned it takes it back.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_serves_or_relays_its_mount_again() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let (one, other) = (Node::start(&dir, "a-").await, Node::start(&dir, "b-").await);
    let id = one.create_shared("v").await;
    one.stage(&id).await;
    other.stage(&id).await;
    let root = one.root();
    put(&other.client().await, &root, "file", b"before").await;
    let (at, before) = (other.at(), owner(&dir, &id).await.unwrap());
    let other = other.restart().await;
    assert_eq!(other.at(), at);
    assert_eq!(get(&other.client().await, &root, "file").await, &b"before"[..]);
    assert_eq!(owner(&dir, &id).await.unwrap().claim, before.claim, "nothing was stolen");

    let writer = Writer::start(other.client().await, root.clone(), "two-");
    writer.more(2).await;
    let one = one.restart().await;
    writer.more(3).await;
    assert_eq!(get(&one.client().await, &root, "file").await, &b"before"[..]);
    writer.check(&one.client().await, &root, "two-").await;
    other.unstage(&id).await;
    one.unstage(&id).await;
}

/// A node that only relays ends in bounded time although the owner is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_relaying_node_is_drained_although_the_owner_is_gone() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let (one, other) = (Node::start(&dir, "a-").await, Node::start(&dir, "b-").await);
    let id = one.create_shared("v").await;
    one.stage(&id).await;
    other.stage(&id).await;
    let Node { driver, .. } = one;
    drop::<Driver>(driver);
    let begun = Instant::now();
    other.unstage(&id).await;
    println!("unstaged in {:?} while the owner was gone", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(20));
}
