//! Connections that come to rest, and go on in another server: no call is lost, and none is
//! answered by a server that has ended.

use crate::edge::{EXPORT, Edge, KEY, new_file, options};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use zerofs_csi::fs::api::Stability;
use zerofs_csi::nfs::client::{Client, FileHandle};
use zerofs_csi::nfs::{Endpoint, ExportId, IdleConnection, Server};

/// Far longer than anything takes.
const LONG: Duration = Duration::from_secs(60);

/// Starts another server in place of an edge's: on its socket, its file system and its connections.
async fn resume(edge: Edge, idle: Vec<IdleConnection>) -> Edge {
    let listener = std::net::TcpListener::from(edge.server.listener().unwrap());
    let Edge { fs, endpoint, server } = edge;
    endpoint.remove();
    drop(server);
    listener.set_nonblocking(true).unwrap();
    let endpoint = Endpoint::new(ExportId([1; 16]), EXPORT.into());
    let server =
        Server::start(TcpListener::from_std(listener).unwrap(), endpoint.clone(), options())
            .unwrap();
    idle.into_iter().for_each(|connection| server.adopt(connection).unwrap());
    endpoint.publish(fs.clone(), KEY);
    Edge { fs, endpoint, server }
}

/// Writes large and small, reads back, and asks: as many concurrent calls as callers of a
/// connection.
async fn call_in_turn(
    client: Client,
    file: FileHandle,
    number: u64,
    calls: Arc<AtomicU64>,
    enough: Arc<AtomicBool>,
) {
    for round in 0u64.. {
        if enough.load(Ordering::Relaxed) {
            return;
        }
        let len = [300, 5_000, 90_000][(round % 3) as usize];
        let bytes = Bytes::from(vec![(round ^ number) as u8; len]);
        client.write(&file, number << 20, bytes.clone(), Stability::Unstable).await.unwrap();
        assert!(client.read(&file, number << 20, len as u32).await.unwrap().data == bytes);
        client.getattr(&file).await.unwrap();
        calls.fetch_add(3, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_goes_on_with_anothers_connections() {
    let mut edge = Edge::start().await;
    let (calls, enough) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut callers = Vec::new();
    for n in 0..3 {
        let client = edge.client().await;
        let root = edge.root(&client).await;
        let file =
            client.create(&root, format!("file-{n}").as_bytes(), &new_file()).await.unwrap().handle;
        for l in 0..8 {
            callers.push(tokio::spawn(call_in_turn(
                client.clone(),
                file.clone(),
                l,
                calls.clone(),
                enough.clone(),
            )));
        }
    }
    for _ in 0..20 {
        let until = calls.load(Ordering::Relaxed) + 60;
        let since = Instant::now();
        while calls.load(Ordering::Relaxed) < until {
            assert!(
                since.elapsed() < LONG && !callers.iter().any(tokio::task::JoinHandle::is_finished),
                "the callers are stuck"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let idle = edge.server.quiesce(LONG).await;
        assert_eq!(idle.len(), 3, "every connection comes to rest");
        let still = calls.load(Ordering::Relaxed);
        edge = resume(edge, idle).await;
        assert!(still >= until);
    }
    enough.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_connects_meanwhile_waits() {
    let edge = Edge::start().await;
    let idle = edge.server.quiesce(LONG).await;
    let client = edge.client().await;
    let asked = tokio::spawn(async move { client.mount("/other").await });
    let edge = resume(edge, idle).await;
    let refused = tokio::time::timeout(LONG, asked).await.unwrap().unwrap();
    assert!(
        refused.unwrap_err().to_string().contains("status 2"),
        "it is answered, and not cut off"
    );
    drop(edge);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_does_not_end_is_cut_off_and_never_answered() {
    let edge = Edge::start().await;
    let (stuck, other) = (edge.client().await, edge.client().await);
    let root = edge.root(&stuck).await;
    other.getattr(&root).await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    *edge.fs.inject().slow.lock() = Some(gate.clone());
    let file = stuck.create(&root, b"file", &new_file()).await.unwrap().handle;
    let commit = tokio::spawn(async move { stuck.commit(&file, 0, 0).await });
    while edge.fs.changes.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let idle = edge.server.quiesce(Duration::from_millis(50)).await;
    assert_eq!(idle.len(), 1, "the other one is at rest");
    gate.add_permits(10);
    assert!(commit.await.unwrap().is_err(), "nobody may answer for a file system that another has");
    let edge = resume(edge, idle).await;
    other.getattr(&root).await.unwrap();
    drop(edge);
}
