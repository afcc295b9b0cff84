//! What neither side of a relay accepts: unknown keys and sessions, volumes of one node, records
//! that are none.

use crate::node::{Node, SETTINGS, owner};
use crate::sharing::put;
use crate::support::driver::catalog;
use crate::support::driver::{Driver, stage};
use crate::support::wire::{Wire, call, fh, nfs, pack, status};
use nfs3_types::nfs3::{GETATTR3args, WRITE3args, stable_how};
use nfs3_types::xdr_codec::Opaque;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use zerofs_csi::catalog::NodeChannel;
use zerofs_csi::mount::FakeMounter;
use zerofs_csi::relay::Identity;
use zerofs_csi::types::{SessionId, VolumeHandle};

/// The channel of the volume's owner.
async fn channel(dir: &TempDir, id: &str) -> NodeChannel {
    let session = owner(dir, id).await.unwrap().session;
    catalog(dir).await.channel(session).await.unwrap().expect("the owner has a channel")
}

fn hex(text: &str) -> [u8; 32] {
    data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap().try_into().unwrap()
}

async fn connect(to: &NodeChannel, as_who: &Identity) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(to.address.unwrap()).await.unwrap();
    let config = as_who.client(hex(&to.key_sha256)).unwrap();
    let name = ServerName::IpAddress(to.address.unwrap().ip().into());
    TlsConnector::from(config).connect(name, stream).await.unwrap()
}

async fn send(stream: &mut TlsStream<TcpStream>, message: &Value) {
    let bytes = message.to_string().into_bytes();
    let len = u32::try_from(bytes.len()).unwrap();
    stream.write_all(&[&len.to_be_bytes(), &bytes[..]].concat()).await.unwrap();
    stream.flush().await.unwrap();
}

/// The owner's answer; `None`: it has closed.
async fn receive(stream: &mut TlsStream<TcpStream>) -> Option<Value> {
    let answer = async {
        let len = stream.read_u32().await.ok()?;
        let mut bytes = vec![0; len as usize];
        stream.read_exact(&mut bytes).await.ok()?;
        serde_json::from_slice(&bytes).ok()
    };
    tokio::time::timeout(Duration::from_secs(20), answer).await.expect("no answer and no end")
}

fn hello(id: &str, session: SessionId) -> Value {
    let volume: VolumeHandle = id.parse().unwrap();
    json!({
        "version": 1,
        "pool": volume.pool.to_string(),
        "dataset": volume.dataset.to_string(),
        "session": session.to_string(),
        "connection": 1,
    })
}

/// Writes a session's channel into the bucket, as whoever has its credentials can.
async fn publish(dir: &TempDir, session: SessionId, identity: &Identity) {
    let channel = NodeChannel {
        node: "node-x".into(),
        address: Some("127.0.0.1:1".parse().unwrap()),
        relays: true,
        key_sha256: data_encoding::HEXLOWER.encode(&identity.sha256()),
    };
    catalog(dir).await.put_channel(session, 1, &channel).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_sessions_of_the_pool_with_their_own_keys_are_served() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let node = Node::start(&dir, "a-").await;
    let id = node.create_shared("v").await;
    node.stage(&id).await;
    let to = channel(&dir, &id).await;
    let (me, stranger) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let session = SessionId::random();
    let answer = async |identity: &Identity, message: Value| {
        let mut stream = connect(&to, identity).await;
        send(&mut stream, &message).await;
        receive(&mut stream).await.expect("an answer")
    };
    let refused = |answer: Value, needle: &str| {
        let why = answer["refused"]["why"].as_str().unwrap_or_default().to_owned();
        assert!(why.contains(needle), "{answer}");
    };
    // The bucket does not know the session.
    refused(answer(&me, hello(&id, session)).await, "no such session");
    publish(&dir, session, &me).await;
    // The listener knows the session under another key.
    refused(answer(&stranger, hello(&id, session)).await, "no such session");
    let mut later = hello(&id, session);
    later["version"] = json!(2);
    refused(answer(&me, later).await, "version");
    let mut foreign = hello(&id, session);
    foreign["pool"] = json!("aaaaaaaaaaaaaaaaaaaaaaaaaa");
    refused(answer(&me, foreign).await, "pool");
    // Nor are the requests of others taken.
    let mut requests = hello(&id, session);
    requests["purpose"] = json!("requests");
    refused(answer(&stranger, requests.clone()).await, "no such session");
    let mut stream = connect(&to, &me).await;
    send(&mut stream, &requests).await;
    assert_eq!(receive(&mut stream).await, Some(json!("taking-requests")));
    let volume: VolumeHandle = id.parse().unwrap();
    let mut ping = json!({ "format": 1, "dataset": volume.dataset.to_string(), "request": "ping" });
    send(&mut stream, &ping).await;
    assert_eq!(receive(&mut stream).await.unwrap()["outcome"], json!({ "done": "done" }));
    ping["request"] = json!("unheard-of");
    send(&mut stream, &ping).await;
    let answer_to_unknown = receive(&mut stream).await.unwrap();
    assert_eq!(answer_to_unknown["outcome"]["failed"]["class"], json!("unsupported"));
    stream.write_all(&[0xff; 8]).await.unwrap();
    assert_eq!(receive(&mut stream).await, None, "what is no message ends the connection");

    // The same session with its key is served, and its records are answered.
    let mut stream = connect(&to, &me).await;
    send(&mut stream, &hello(&id, session)).await;
    assert_eq!(receive(&mut stream).await, Some(json!("serving")));
    let args = pack(&GETATTR3args { object: fh(node.root().as_bytes()) });
    let record = nfs(5, 1, &args);
    let mark = u32::try_from(record.len()).unwrap() | 1 << 31;
    stream.write_all(&[&mark.to_be_bytes(), &record[..]].concat()).await.unwrap();
    let len = stream.read_u32().await.unwrap() & !(1 << 31);
    let mut reply = vec![0; len as usize];
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!(status(&reply), 0);
    // Bytes that are no record close the connection.
    stream.write_all(&[0xff; 64]).await.unwrap();
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
    closed.expect("the connection stays open").ok();
    assert!(rest.is_empty());

    // Bytes that are no message are not answered, and neither is a peer that does not speak TLS.
    let mut stream = connect(&to, &me).await;
    stream.write_all(&[0xff; 8]).await.unwrap();
    assert_eq!(receive(&mut stream).await, None);
    let mut plain = TcpStream::connect(to.address.unwrap()).await.unwrap();
    plain.write_all(&[0; 512]).await.unwrap();
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(20), plain.read_to_end(&mut rest)).await;
    closed.expect("the connection stays open").ok();

    // Who presents the key of another server is not spoken to.
    let wrong = stranger.client(me.sha256()).unwrap();
    let tcp = TcpStream::connect(to.address.unwrap()).await.unwrap();
    let name = ServerName::IpAddress(to.address.unwrap().ip().into());
    assert!(TlsConnector::from(wrong).connect(name, tcp).await.is_err());

    node.unstage(&id).await;
    let mut stream = connect(&to, &me).await;
    send(&mut stream, &hello(&id, session)).await;
    assert_eq!(receive(&mut stream).await, Some(json!("not-owner")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_one_node_is_not_relayed() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let node = Node::start(&dir, "a-").await;
    let (shared, single) =
        (node.create_shared("v").await, node.driver.create("one").await.volume_id);
    node.stage(&shared).await;
    let at = dir.path().join("single");
    node.driver.node().node_stage_volume(stage(&single, &at)).await.unwrap();
    let to = channel(&dir, &shared).await;
    let (me, session) = (Identity::generate().unwrap(), SessionId::random());
    publish(&dir, session, &me).await;
    let mut stream = connect(&to, &me).await;
    send(&mut stream, &hello(&single, session)).await;
    let answer = receive(&mut stream).await.unwrap();
    let why = answer["refused"]["why"].as_str().unwrap_or_default();
    assert!(why.contains("not for several nodes"), "{answer}");
    node.driver.unstage(&single, &at).await.unwrap();
    node.unstage(&shared).await;
}

/// The channel of a session goes with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stops_takes_its_channel_out_of_the_bucket() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let node = Node::start(&dir, "a-").await;
    let id = node.create_shared("v").await;
    node.stage(&id).await;
    let session = owner(&dir, &id).await.unwrap().session;
    let catalog = catalog(&dir).await;
    assert!(catalog.channel(session).await.unwrap().is_some());
    node.driver.stop().await;
    assert_eq!(catalog.channel(session).await.unwrap(), None);
    let _again = Driver::seated(dir.clone(), "c-", FakeMounter::new(), SETTINGS).await;
}

async fn closes(at: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
    closed.expect("the connection stays open").ok();
    assert!(rest.is_empty(), "{rest:?}");
}

fn marked(record: &[u8]) -> Vec<u8> {
    let mark = u32::try_from(record.len()).unwrap() | 1 << 31;
    [&mark.to_be_bytes(), record].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_may_not_send_closes_its_connection_alone() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let (one, other) = (Node::start(&dir, "a-").await, Node::start(&dir, "b-").await);
    let id = one.create_shared("v").await;
    one.stage(&id).await;
    other.stage(&id).await;
    let export = other.mounted().what.export;
    for node in [&one, &other] {
        let (at, client) = (node.at(), node.client().await);
        closes(at, &[0xff; 64]).await;
        closes(at, &(((1u32 << 20) + 5000) | 1 << 31).to_be_bytes()).await;
        closes(at, &marked(b"abc")).await;
        // A reply instead of a call.
        closes(at, &marked(&[0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0])).await;
        // MNT outside of our own mount(2) (R23).
        let path = [&u32::try_from(export.len()).unwrap().to_be_bytes(), export.as_bytes()];
        let mut path = path.concat();
        path.resize(path.len().next_multiple_of(4), 0);
        closes(at, &marked(&call(1, 100_005, 3, 1, &path))).await;
        put(&client, &node.root(), "still", b"served").await;
    }
    other.unstage(&id).await;
    one.unstage(&id).await;
}

/// While nobody answers, calls are kept up to a limit, and the client waits beyond it.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_nobody_answers_are_bounded() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let (one, other) = (Node::start(&dir, "a-").await, Node::start(&dir, "b-").await);
    let id = one.create_shared("v").await;
    one.stage(&id).await;
    other.stage(&id).await;
    let (at, root) = (other.at(), other.root());
    let Node { driver, .. } = one;
    drop(driver);
    let mut wire = Wire::connect(at).await;
    let data = vec![7; 1 << 20];
    let mut sent = 0;
    for xid in 0..64 {
        let write = WRITE3args {
            file: fh(root.as_bytes()),
            offset: 0,
            count: 1 << 20,
            stable: stable_how::UNSTABLE,
            data: Opaque::borrowed(&data),
        };
        let record = nfs(xid, 7, &pack(&write));
        let one = tokio::time::timeout(Duration::from_secs(1), wire.send(&record)).await;
        if one.is_err() {
            break;
        }
        sent += 1;
    }
    println!("{sent} MiB were taken while nobody answered");
    // 8 MiB of the relay's, and what sockets hold.
    assert!((4..40).contains(&sent), "{sent} MiB");
    other.unstage(&id).await;
}
