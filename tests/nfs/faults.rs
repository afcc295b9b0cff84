//! A client's view while the back end is slow, away, fenced or not there yet, and while the server
//! stops.

use crate::edge::{EXPORT, Edge, KEY, new_file, options};
use crate::support::memfs::MemFs;
use crate::support::wire::*;
use bytes::Bytes;
use nfs3_types::nfs3::{READ3args, REMOVE3args, WRITE3args, stable_how};
use nfs3_types::xdr_codec::Opaque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use zerofs_csi::fs::api::{SetAttr, Stability};
use zerofs_csi::nfs::client::{ClientError, Credentials, FileHandle};
use zerofs_csi::nfs::{Endpoint, ExportId, Limits, NfsStat, Options, Peers, Server, Squash};

const SOON: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(20);

/// Awaits a future within the time that a test has.
async fn timely<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, what).await.expect("it hangs")
}

#[tokio::test]
async fn attributes_do_not_wait_behind_a_thousand_reads() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let file = client.create(&root, b"f", &new_file()).await.unwrap().handle;
    client
        .setattr(&file, &SetAttr { size: Some(1 << 20), ..SetAttr::default() }, None)
        .await
        .unwrap();
    let gate = Arc::new(Semaphore::new(0));
    *edge.fs.inject().reads.lock() = Some(gate.clone());
    let reads: Vec<_> = (0..1000)
        .map(|_| {
            let (client, file) = (client.clone(), file.clone());
            tokio::spawn(async move { client.read(&file, 0, 1 << 20).await.unwrap().data.len() })
        })
        .collect();
    tokio::time::sleep(SOON).await;
    let begun = Instant::now();
    for _ in 0..100 {
        timely(client.getattr(&file)).await.unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(reads.iter().all(|read| !read.is_finished()));
    gate.add_permits(1000);
    for read in reads {
        assert_eq!(timely(read).await.unwrap(), 1 << 20);
    }
}

#[tokio::test]
async fn a_repeated_call_is_done_once_and_answered_each_time() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    client.create(&root, b"f", &new_file()).await.unwrap();
    let before = edge.fs.changes.load(Ordering::Relaxed);
    let gate = Arc::new(Semaphore::new(0));
    *edge.fs.inject().slow.lock() = Some(gate.clone());
    let record = nfs(77, 12, &pack(&REMOVE3args { object: place(root.as_bytes(), b"f") }));
    let mut wires = Vec::new();
    // Each retransmission comes from another port; all join the first.
    for _ in 0..3 {
        let mut wire = Wire::connect(edge.server.local_addr()).await;
        wire.send(&record).await;
        tokio::time::sleep(SOON).await;
        wires.push(wire);
    }
    gate.add_permits(1);
    let mut answers = Vec::new();
    for wire in &mut wires {
        answers.push(timely(wire.receive()).await.unwrap());
    }
    assert!(answers.iter().all(|answer| status(answer) == 0 && *answer == answers[0]));
    // The file system recognises a copy that comes later.
    gate.add_permits(1);
    assert_eq!(status(&wires[0].ask(&record).await.unwrap()), 0);
    assert_eq!(edge.fs.changes.load(Ordering::Relaxed) - before, 1);
    // The same call with another id is another call.
    gate.add_permits(1);
    let other = nfs(78, 12, &pack(&REMOVE3args { object: place(root.as_bytes(), b"f") }));
    assert_eq!(status(&wires[0].ask(&other).await.unwrap()), NfsStat::NoEnt as u32);
}

/// The record of a WRITE, the same for every copy of the call.
fn write(xid: u32, file: &FileHandle, data: &[u8]) -> Vec<u8> {
    let (count, stable) = (data.len() as u32, stable_how::UNSTABLE);
    nfs(
        xid,
        7,
        &pack(&WRITE3args {
            file: fh(file.as_bytes()),
            offset: 0,
            count,
            stable,
            data: Opaque::borrowed(data),
        }),
    )
}

/// A WRITE that waits, is sent again on another connection, and is overtaken there by a newer one:
/// the old bytes must not come back (R36).
#[tokio::test]
async fn a_write_that_comes_again_while_it_waits_takes_effect_once() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let file = client.create(&root, b"f", &new_file()).await.unwrap().handle;
    let held = Arc::new(Semaphore::new(0));
    edge.fs.inject().writes.lock().push_back(held.clone());
    let old = write(77, &file, b"old");
    let mut first = Wire::connect(edge.server.local_addr()).await;
    first.send(&old).await;
    timely(async {
        while !edge.fs.faults.writes.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut second = Wire::connect(edge.server.local_addr()).await;
    second.send(&old).await;
    // Whatever is answered by now, the client may go on from there.
    if tokio::time::timeout(SOON, second.0.readable()).await.is_ok() {
        assert_eq!(status(&second.receive().await.unwrap()), 0);
        client.write(&file, 0, Bytes::from_static(b"new"), Stability::Unstable).await.unwrap();
        held.add_permits(1);
        timely(first.receive()).await.unwrap();
        assert_eq!(client.read(&file, 0, 9).await.unwrap().data, "new", "the old bytes came back");
        panic!("a copy of a call that was under way was answered by itself");
    }
    held.add_permits(1);
    let (one, two) =
        (timely(first.receive()).await.unwrap(), timely(second.receive()).await.unwrap());
    assert_eq!((status(&one), &one), (0, &two));
}

/// A copy may have waited in a socket until its call was answered and the range written again
/// (R36).
#[tokio::test]
async fn the_same_write_again_after_a_newer_one_changes_nothing() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let file = client.create(&root, b"f", &new_file()).await.unwrap().handle;
    let (old, new) = (write(77, &file, b"old"), write(78, &file, b"new"));
    let mut wire = Wire::connect(edge.server.local_addr()).await;
    let results = |reply: &[u8]| accepted(reply).1[reply_tail(reply)..].to_vec();
    let first = wire.ask(&old).await.unwrap();
    assert_eq!((status(&first), status(&wire.ask(&new).await.unwrap())), (0, 0));
    // The data that this says was taken is another opening's by now, and so stays its verifier.
    edge.fs.verifier.fetch_add(1, Ordering::Relaxed);
    let mut other = Wire::connect(edge.server.local_addr()).await;
    for _ in 0..2 {
        let again = other.ask(&old).await.unwrap();
        assert_eq!((status(&again), results(&again)), (0, results(&first)));
    }
    assert_eq!(client.read(&file, 0, 9).await.unwrap().data, "new");
    // Other data under the same xid is another call.
    assert_eq!(status(&other.ask(&write(77, &file, b"own")).await.unwrap()), 0);
    assert_eq!(client.read(&file, 0, 9).await.unwrap().data, "own");
}

/// The offset of count, stable_how and verifier in the results of a WRITE that succeeded.
fn reply_tail(reply: &[u8]) -> usize {
    accepted(reply).1.len() - 16
}

/// Its client was told that it failed, and has gone on from there.
#[tokio::test]
async fn a_write_that_failed_does_not_take_effect_later() {
    let edge = Edge::with(Options { hold: SOON, ..options() }).await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let file = client.create(&root, b"f", &new_file()).await.unwrap().handle;
    let mut wire = Wire::connect(edge.server.local_addr()).await;
    let quota = edge.fs.quota.swap(0, Ordering::Relaxed);
    assert_eq!(
        status(&wire.ask(&write(1, &file, b"full")).await.unwrap()),
        NfsStat::NoSpace as u32
    );
    edge.fs.quota.store(quota, Ordering::Relaxed);
    edge.fs.inject().unavailable.store(u32::MAX, Ordering::Relaxed);
    assert_eq!(
        status(&wire.ask(&write(2, &file, b"away")).await.unwrap()),
        NfsStat::Jukebox as u32
    );
    edge.fs.faults.unavailable.store(0, Ordering::Relaxed);
    client.write(&file, 0, Bytes::from_static(b"newer"), Stability::Unstable).await.unwrap();
    assert_eq!(
        status(&wire.ask(&write(1, &file, b"full")).await.unwrap()),
        NfsStat::NoSpace as u32
    );
    assert_eq!(
        status(&wire.ask(&write(2, &file, b"away")).await.unwrap()),
        NfsStat::Jukebox as u32
    );
    assert_eq!(client.read(&file, 0, 9).await.unwrap().data, "newer");
}

#[tokio::test]
async fn a_call_goes_on_when_its_connection_does_not() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    client.create(&root, b"f", &new_file()).await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    *edge.fs.inject().slow.lock() = Some(gate.clone());
    let record = nfs(77, 12, &pack(&REMOVE3args { object: place(root.as_bytes(), b"f") }));
    let mut wire = Wire::connect(edge.server.local_addr()).await;
    wire.send(&record).await;
    tokio::time::sleep(SOON).await;
    drop(wire);
    tokio::time::sleep(SOON).await;
    gate.add_permits(1);
    timely(async {
        while client.lookup(&root, b"f").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_store_that_does_not_answer_holds_the_call_then_asks_to_come_again() {
    let edge = Edge::with(Options { hold: Duration::from_secs(2), ..options() }).await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    edge.fs.inject().unavailable.store(3, Ordering::Relaxed);
    timely(client.create(&root, b"held", &new_file())).await.unwrap();
    assert_eq!(edge.fs.faults.unavailable.load(Ordering::Relaxed), 0);
    edge.fs.faults.unavailable.store(u32::MAX, Ordering::Relaxed);
    let begun = Instant::now();
    assert_eq!(timely(client.getattr(&root)).await.unwrap_err().status(), Some(NfsStat::Jukebox));
    assert!(begun.elapsed() > Duration::from_millis(500));
}

#[tokio::test]
async fn a_fenced_export_is_stale_until_it_is_removed() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    edge.fs.inject().fenced.store(true, Ordering::Relaxed);
    assert_eq!(client.getattr(&root).await.unwrap_err().status(), Some(NfsStat::Stale));
    // A lost export never comes back by itself, nor by publishing over it.
    edge.fs.faults.fenced.store(false, Ordering::Relaxed);
    assert_eq!(client.getattr(&root).await.unwrap_err().status(), Some(NfsStat::Stale));
    edge.endpoint.lose();
    edge.endpoint.publish(edge.fs.clone(), KEY);
    assert_eq!(client.getattr(&root).await.unwrap_err().status(), Some(NfsStat::Stale));
    edge.endpoint.remove();
    edge.endpoint.publish(edge.fs.clone(), KEY);
    client.getattr(&root).await.unwrap();
}

#[tokio::test]
async fn a_handle_waits_for_its_export_to_open() {
    let fs = Arc::new(MemFs::default());
    let start = async |hold| {
        let endpoint = Endpoint::new(ExportId([1; 16]), EXPORT.into());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        (
            Server::start(listener, endpoint.clone(), Options { hold, ..options() }).unwrap(),
            endpoint,
        )
    };
    let (server, endpoint) = start(Duration::from_secs(20)).await;
    endpoint.publish(fs.clone(), KEY);
    let client =
        zerofs_csi::nfs::client::Client::connect(server.local_addr(), &Credentials::root())
            .await
            .unwrap();
    let root = {
        let _pass = endpoint.allow_mount();
        client.mount(EXPORT).await.unwrap()
    };
    // Like after a restart: the handle exists before the file system is open.
    let (server, endpoint) = start(Duration::from_secs(20)).await;
    let client =
        zerofs_csi::nfs::client::Client::connect(server.local_addr(), &Credentials::root())
            .await
            .unwrap();
    let waiting = tokio::spawn({
        let (client, root) = (client.clone(), root.clone());
        async move { client.getattr(&root).await }
    });
    tokio::time::sleep(SOON).await;
    assert!(!waiting.is_finished());
    endpoint.publish(fs.clone(), KEY);
    timely(waiting).await.unwrap().unwrap();
    endpoint.remove();
    assert_eq!(client.getattr(&root).await.unwrap_err().status(), Some(NfsStat::Stale));
    // An export that does not open in time.
    let (server, _endpoint) = start(SOON).await;
    let client =
        zerofs_csi::nfs::client::Client::connect(server.local_addr(), &Credentials::root())
            .await
            .unwrap();
    assert_eq!(timely(client.getattr(&root)).await.unwrap_err().status(), Some(NfsStat::Jukebox));
}

/// MNT answers only while the plugin itself mounts the volume (R23).
#[tokio::test]
async fn mounting_needs_our_own_mount_under_way() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let refused = |result: Result<_, ClientError>| match result {
        Err(ClientError::Mount { status, .. }) => status,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(client.mount(EXPORT).await), 13);
    let pass = edge.endpoint.allow_mount();
    assert_eq!(refused(client.mount("/other").await), 2);
    let root = client.mount(EXPORT).await.unwrap();
    drop(pass);
    assert_eq!(refused(client.mount(EXPORT).await), 13);
    client.getattr(&root).await.unwrap();
}

/// Any program can connect from another port (R23).
#[tokio::test]
async fn only_reserved_ports_are_served_by_default() {
    let edge = Edge::with(Options { peers: Peers::LoopbackReserved, ..Options::default() }).await;
    let mut wire = Wire::connect(edge.server.local_addr()).await;
    let mut rest = Vec::new();
    // A reset is a refusal too.
    let ended = timely(wire.0.read_to_end(&mut rest)).await;
    assert!(ended.is_err() || rest.is_empty());
    if rustix::process::geteuid().is_root() {
        let client = edge.client().await;
        client.null().await.unwrap();
    }
}

#[tokio::test]
async fn the_superuser_can_be_squashed() {
    let edge =
        Edge::with(Options { squash: Squash::Root { uid: 1000, gid: 1000 }, ..options() }).await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let made = client.create(&root, b"f", &new_file()).await.unwrap();
    assert_eq!((made.attr.unwrap().uid, made.attr.unwrap().gid), (1000, 1000));
}

#[tokio::test]
async fn stopping_answers_what_was_begun_and_closes() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let file = client.create(&root, b"f", &new_file()).await.unwrap().handle;
    let gate = Arc::new(Semaphore::new(0));
    *edge.fs.inject().slow.lock() = Some(gate.clone());
    let commits: Vec<_> = (0..20)
        .map(|_| {
            let (client, file) = (client.clone(), file.clone());
            tokio::spawn(async move { client.commit(&file, 0, 0).await })
        })
        .collect();
    tokio::time::sleep(SOON).await;
    let address = edge.server.local_addr();
    let (stopped, ()) = tokio::join!(edge.server.stop(LIMIT), async {
        tokio::time::sleep(SOON).await;
        gate.add_permits(20);
    });
    assert!(stopped);
    for commit in commits {
        timely(commit).await.unwrap().unwrap();
    }
    assert!(matches!(timely(client.null()).await, Err(ClientError::Disconnected)));
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[tokio::test]
async fn a_stop_that_takes_too_long_says_so() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    *edge.fs.inject().slow.lock() = Some(Arc::new(Semaphore::new(0)));
    let _commit = tokio::spawn(async move { client.commit(&root, 0, 0).await });
    tokio::time::sleep(SOON).await;
    assert!(!timely(edge.server.stop(SOON)).await);
}

#[tokio::test]
async fn a_client_that_takes_no_replies_is_bounded_and_given_up() {
    let limits = Limits { reply_bytes: 64 << 10, read_bytes: 8 << 20, ..Limits::default() };
    let edge = Edge::with(Options { stall: Duration::from_secs(1), limits, ..options() }).await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let file = client.create(&root, b"f", &new_file()).await.unwrap().handle;
    client.write(&file, 0, Bytes::from(vec![1; 1 << 20]), Stability::Unstable).await.unwrap();
    let read =
        nfs(1, 6, &pack(&READ3args { file: fh(file.as_bytes()), offset: 0, count: 1 << 20 }));
    let mark = (read.len() as u32 | (1 << 31)).to_be_bytes();
    let mut wire = Wire::connect(edge.server.local_addr()).await;
    let flood = async {
        // Ends when the server closes: it stops reading long before.
        while wire.0.write_all(&[&mark[..], &read].concat()).await.is_ok() {}
    };
    timely(flood).await;
    // Others were served meanwhile, and are now.
    timely(client.read(&file, 0, 1 << 20)).await.unwrap();
}

/// Back-pressure counts bytes: WRITEs wait for memory, and none is refused (R22).
#[tokio::test]
async fn writes_beyond_the_budget_wait_their_turn() {
    let limits = Limits { write_bytes: 8 << 20, ..Limits::default() };
    let edge = Edge::with(Options { limits, ..options() }).await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let file = client.create(&root, b"f", &new_file()).await.unwrap().handle;
    let writes: Vec<_> = (0..64u64)
        .map(|i| {
            let (client, file) = (client.clone(), file.clone());
            let data = Bytes::from(vec![i as u8; 1 << 20]);
            tokio::spawn(async move {
                client.write(&file, i << 20, data, Stability::Unstable).await.unwrap().count
            })
        })
        .collect();
    for write in writes {
        assert_eq!(timely(write).await.unwrap(), 1 << 20);
    }
    let end = client.read(&file, 63 << 20, 1 << 20).await.unwrap();
    assert!(end.eof && end.data.iter().all(|byte| *byte == 63));
}
