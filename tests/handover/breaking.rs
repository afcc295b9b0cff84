//! Either side fails at each step: there is one that serves, and it is the right one.

use super::load::Load;
use super::peer::{Listener, Peer, lock, try_lock};
use super::process::Room;
use std::time::Duration;
use zerofs_csi::nfs::client::{Client, Credentials};

const HELLO: &str =
    r#"{"hello":{"versions":[2,2],"program":"9","role":"serve","node":null,"pools":["POOL"]}}"#;

/// The pool's id, as a new process would know it.
fn hello(room: &Room) -> String {
    let info: serde_json::Value =
        serde_json::from_str(&room.ok(&["pool", "info", "--json"])).unwrap();
    HELLO.replace("POOL", info["id"].as_str().unwrap())
}

async fn answers(at: std::net::SocketAddr) {
    let client = Client::connect(at, &Credentials::root()).await.unwrap();
    let root = client.mount("/web").await.unwrap();
    client.getattr(&root).await.unwrap();
}

/// Nothing that a new process does before it is accepted, or says wrongly, changes anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_does_not_fit_is_refused() {
    let room = Room::new();
    let server = room.start(&[]);
    let at = server.ready();
    let load = Load::start(at, 2).await;
    let state = room.state();
    let refused = [
        (hello(&room).replace("[2,2]", "[4,7]"), "versions 4 to 7"),
        (hello(&room).replace("[2,2]", "[1,1]"), "versions 1 to 1"),
        (hello(&room).replace("serve", "node"), "--state-dir"),
        (hello(&room).replace("null", r#""elsewhere""#), "elsewhere"),
        (hello(&room).split("[\"").next().unwrap().to_owned() + "[]}}", "not have pool"),
    ];
    for (text, why) in refused {
        let peer = Peer::connect(&state);
        peer.send(&text);
        let (answer, _) = peer.receive();
        assert!(answer.starts_with(r#"{"refused""#) && answer.contains(why), "{text}: {answer}");
    }
    for nonsense in
        ["x", "{}", r#""acquired""#, r#"{"sockets":[]}"#, r#"{"hello":{}}"#, &"[".repeat(60_000)]
    {
        let peer = Peer::connect(&state);
        peer.send(nonsense);
        assert_eq!(peer.receive().0, "", "{nonsense:.20}");
    }
    drop(Peer::connect(&state));
    load.more(50).await;
    assert!(server.runs() && try_lock(&state).is_none());
    load.finish().await;
    server.stop();
}

/// A new process that ends at any step: the old one serves on, on the same connections while nobody
/// else can have used them.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_dies_at_each_step() {
    let room = Room::new();
    let server = room.start(&[]);
    let at = server.ready();
    let load = Load::start(at, 2).await;
    load.more(20).await;
    let (state, hello) = (room.state(), hello(&room));

    for step in 0..4 {
        let peer = Peer::connect(&state);
        peer.send(&hello);
        if step > 0 {
            peer.expect(r#"{"accepted""#);
        }
        if step > 1 {
            let fds = peer.expect(r#"{"sockets""#);
            assert!(fds.len() > 2, "a listener and the connections: {}", fds.len());
        }
        if step > 2 {
            peer.expect("\"released\"");
        }
        drop(peer);
        println!("died at step {step}");
        load.more(20).await;
        assert!(server.runs(), "step {step}");
    }
    println!("longest call: {:?}", load.seen.longest());
    load.finish().await;
    server.stop();
}

/// A new process that is active, and exits: the old one, which waits for this, is active again.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_dies_while_it_is_active() {
    let room = Room::new();
    let server = room.start(&[]);
    let at = server.ready();
    let (state, hello) = (room.state(), hello(&room));
    for says in [false, true] {
        let peer = Peer::connect(&state);
        peer.send(&hello);
        peer.expect(r#"{"accepted""#);
        let fds = peer.expect(r#"{"sockets""#);
        peer.expect("\"released\"");
        let active = lock(&state);
        if says {
            peer.send("\"acquired\"");
        }
        drop((peer, fds));
        std::thread::sleep(Duration::from_millis(200));
        assert!(server.runs());
        drop(active);
        // The listening socket was never closed: this waits, and is not refused.
        answers(at).await;
        assert_eq!(server.ready(), at, "it says so");
    }
    server.stop();
}

/// A process that serves, played by the test, and what the new one does about it.
#[tokio::test(flavor = "multi_thread")]
async fn the_old_process_dies_at_each_step() {
    for step in 0..5 {
        let room = Room::new();
        let state = room.state();
        std::fs::create_dir(&state).unwrap();
        let (active, handover) = (lock(&state), Listener::bind(&state));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let server = room.start(&[]);
        let peer = handover.next();
        peer.expect(r#"{"hello""#);
        if step > 0 {
            peer.send(r#"{"accepted":{"version":2,"program":"0"}}"#);
        }
        if step > 1 {
            let item = format!(r#"{{"sockets":[{{"service":"exports","at":"{at}"}}]}}"#);
            peer.send_with(&item, Some(&listener.into()));
        }
        if step > 2 {
            peer.send("\"released\"");
        }
        if step > 3 {
            // The old process keeps its turn all the same: the new one does not serve.
            drop(peer);
            assert!(server.is_waiting());
            let peer = handover.next();
            peer.expect(r#"{"hello""#);
            assert!(server.is_waiting());
            drop((peer, active, handover));
            answers(server.ready()).await;
        } else {
            assert!(server.is_waiting());
            drop((active, handover, peer));
            let serves = server.ready();
            assert_eq!(serves == at, step > 1, "step {step}: it goes on with what it was given");
            answers(serves).await;
        }
        server.stop();
    }
}

/// An old process that never answers keeps the new one waiting, which gives up; one that is not
/// understood likewise.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_process_that_does_not_hand_over_stays_active() {
    let room = Room::new();
    let state = room.state();
    std::fs::create_dir(&state).unwrap();
    let (active, listener) = (lock(&state), Listener::bind(&state));
    let server = room.start(&[]);
    for answer in [None, Some(r#"{"refused":{"why":"no"}}"#), Some(r#"{"surprise":1}"#)] {
        let peer = listener.next();
        peer.expect(r#"{"hello""#);
        match answer {
            Some(answer) => peer.send(answer),
            None => assert_eq!(peer.receive().0, "", "it gives up by itself"),
        }
    }
    assert!(!server.ends().success());
    drop(active);
}
