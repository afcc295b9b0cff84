//! Hand-overs that succeed, and new processes that break: what clients see.

use super::load::Load;
use super::process::Room;
use crate::support::program::LIMIT;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use zerofs_csi::nfs::client::{Client, Credentials};

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_under_load_is_a_pause() {
    let room = Room::new();
    let mut server = room.start(&[]);
    let at = server.ready();
    let load = Load::start(at, 4).await;
    load.more(200).await;
    for _ in 0..3 {
        let next = room.start(&[]);
        assert_eq!(next.ready(), at, "it serves on the same socket");
        assert!(server.ends().success(), "who has handed over ends");
        server = next;
        load.more(200).await;
    }
    println!(
        "longest call over 3 upgrades: {:?}, {} calls",
        load.seen.longest(),
        load.seen.calls.load(Ordering::Relaxed)
    );
    load.finish().await;
    server.stop();
    let checked: serde_json::Value = serde_json::from_str(&room.ok(&["check", "--json"])).unwrap();
    assert!(
        checked.as_array().unwrap().iter().all(|dataset| dataset["clean"] == true),
        "{checked}"
    );
}

/// Whoever asks the administration interface meanwhile is answered, by one process or the other.
#[tokio::test(flavor = "multi_thread")]
async fn the_administration_interface_refuses_nobody_in_an_upgrade() {
    let room = Room::new();
    let options = ["--admin-listen", "127.0.0.1:0"];
    let mut server = room.start(&options);
    let at = server.admin_ready();
    let stop = Arc::new(AtomicBool::new(false));
    let asking = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let mut answers = 0;
            while !stop.load(Ordering::Relaxed) {
                ask(at);
                answers += 1;
            }
            answers
        }
    });
    for _ in 0..3 {
        let next = room.start(&options);
        assert_eq!(next.admin_ready(), at, "it serves on the same socket");
        assert!(server.ends().success(), "who has handed over ends");
        server = next;
    }
    stop.store(true, Ordering::Relaxed);
    let answers = asking.join().unwrap();
    println!("{answers} answers");
    assert!(answers > 10);
    server.stop();
}

fn ask(at: SocketAddr) {
    let mut stream = TcpStream::connect(at).unwrap();
    let request =
        b"GET /api/v1/openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

/// The write verifier is new with each opening (R18): it tells whether anybody has taken over.
async fn verifier(client: &Client) -> [u8; 8] {
    let root = client.mount("/web").await.unwrap();
    let file = client.lookup(&root, b"worker-0").await.unwrap().handle;
    let file = client.lookup(&file, b"file").await.unwrap().handle;
    client.commit(&file, 0, 0).await.unwrap().verifier
}

/// While a new process breaks, or hangs before it can serve, the old one has not begun to hand
/// anything over: no volume was opened again, no connection was cut, and calls go on for as long as
/// the other one hangs.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_new_process_is_no_pause() {
    let room = Room::new();
    let server = room.start(&[]);
    let at = server.ready();
    let load = Load::start(at, 2).await;
    let client = Client::connect(at, &Credentials::root()).await.unwrap();
    let before = verifier(&client).await;

    let config = |text: &str| {
        let path = room.path("config.yaml");
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    // A configuration that is none, one whose pool is not there, one that cannot open what is in
    // use.
    assert!(!room.start(&["--config", &config("limits: { volumesMax: none }\n")]).ends().success());
    assert_eq!(verifier(&client).await, before, "nobody has taken over");
    let (here, other) = (room.path("pool"), room.path("other"));
    std::fs::create_dir(&other).unwrap();
    for (url, more) in [(&here, ", keyFile: /no/such"), (&other, "")] {
        let pools =
            config(&format!("pools: {{ a: {{ url: \"file://{}\"{more} }} }}\n", url.display()));
        assert!(
            !room.start_on(&["--config", &pools]).ends().success(),
            "it cannot open the pool in use: {}{more}",
            url.display()
        );
        assert_eq!(
            verifier(&client).await,
            before,
            "nobody has taken over: {}{more}",
            url.display()
        );
    }
    // A process whose store accepts calls and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = silent.local_addr().unwrap();
    let store = format!(
        "allow_http: \"true\", endpoint: \"http://{endpoint}\", region: r, access_key_id: a, \
         secret_access_key: b"
    );
    let pools = config(&format!(
        "pools: {{ a: {{ url: \"s3://bucket/pool\", credentials: {{ {store} }} }} }}\n"
    ));
    let hangs = room.start_on(&["--config", &pools]);
    let (_call, _) =
        tokio::time::timeout(LIMIT, silent.accept()).await.expect("it asks its store").unwrap();
    load.more(200).await;
    assert!(hangs.is_waiting(), "it cannot have become ready");
    assert_eq!(verifier(&client).await, before, "nobody has taken over");
    hangs.kill();

    load.more(50).await;
    assert_eq!(verifier(&client).await, before, "nobody has taken over");
    assert!(server.runs());
    println!("longest call: {:?}", load.seen.longest());
    load.finish().await;
    server.stop();
}

/// Killed while it starts, wherever that is: before it asked for anything, or when it had begun to
/// take over and the old one goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_that_is_killed_while_it_starts_breaks_nothing() {
    let room = Room::new();
    let server = room.start(&[]);
    let load = Load::start(server.ready(), 2).await;
    let early = room.start(&[]);
    std::thread::sleep(Duration::from_millis(5));
    early.kill();
    load.more(100).await;
    assert!(server.runs());
    load.finish().await;
    server.stop();
}
