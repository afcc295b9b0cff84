//! A process that is stopped (SIGSTOP) for longer than its lease, while another node takes its
//! volume over, and then goes on.

use super::process::Room;
use crate::support::program::LIMIT;
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerofs_csi::fs::api::{CreateHow, SetAttr, Stability};
use zerofs_csi::nfs::client::{Client, Credentials, FileHandle};

/// Time for which a process that lost its volume might answer something.
const AFTERWARDS: Duration = Duration::from_secs(3);

/// Mounts the dataset; the server may have to wait for the lease of another.
async fn mounted(at: std::net::SocketAddr) -> (Arc<Client>, FileHandle) {
    let since = Instant::now();
    loop {
        let tried = async {
            let client = Client::connect(at, &Credentials::root()).await?;
            let root = client.mount("/web").await?;
            Ok::<_, zerofs_csi::nfs::client::ClientError>((Arc::new(client), root))
        };
        match tokio::time::timeout(LIMIT, tried).await.expect("an answer") {
            Ok(mounted) => return mounted,
            Err(error) => assert!(since.elapsed() < LIMIT, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_owner_acknowledges_nothing_once_another_has_taken_over() {
    let room = Room::new();
    let config = room.path("config.yaml");
    let pool = room.path("pool").display().to_string();
    // The shortest lease there may be.
    let text = format!("lease: 5s\npools:\n  default:\n    url: file://{pool}\n");
    std::fs::write(&config, text).unwrap();
    let config = config.display().to_string();
    let one = room.start_in("one", &["--config", &config]);
    let at = one.ready();
    let (client, root) = mounted(at).await;
    let how = CreateHow::Guarded(SetAttr { mode: Some(0o644), ..SetAttr::default() });
    let file = client.create(&root, b"file", &how).await.unwrap().handle;
    let write = async |client: &Client, file: &FileHandle, data: &'static [u8]| {
        client.write(file, 0, Bytes::from_static(data), Stability::FileSync).await
    };
    write(&client, &file, b"one").await.unwrap();

    one.freeze();
    // They arrive while it is stopped, and are read when it goes on.
    let late_write = tokio::spawn({
        let (client, file) = (client.clone(), file.clone());
        async move { client.write(&file, 0, Bytes::from_static(b"old"), Stability::FileSync).await }
    });
    let late_read = tokio::spawn({
        let (client, file) = (client.clone(), file.clone());
        async move { client.read(&file, 0, 10).await }
    });
    let two = room.start_in("two", &["--config", &config]);
    let (other, other_root) = mounted(two.ready()).await;
    let there = other.lookup(&other_root, b"file").await.unwrap().handle;
    assert_eq!(other.read(&there, 0, 10).await.unwrap().data, "one");
    write(&other, &there, b"two").await.unwrap();
    assert!(!late_write.is_finished() && !late_read.is_finished());

    one.signal(rustix::process::Signal::CONT);
    let since = Instant::now();
    while since.elapsed() < AFTERWARDS {
        let read = tokio::time::timeout(AFTERWARDS, client.read(&file, 0, 10)).await;
        assert!(!matches!(read, Ok(Ok(_))), "it answers for a volume that is another's: {read:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for (what, answered) in [
        ("write", late_write.is_finished() && late_write.await.unwrap().is_ok()),
        ("read", late_read.is_finished() && late_read.await.unwrap().is_ok()),
    ] {
        assert!(!answered, "a {what} that came while it was stopped was carried out");
    }
    assert_eq!(other.read(&there, 0, 10).await.unwrap().data, "two");

    // Both go on: the volume returns when the other has released it.
    two.stop();
    let (client, root) = mounted(at).await;
    let file = client.lookup(&root, b"file").await.unwrap().handle;
    assert_eq!(client.read(&file, 0, 10).await.unwrap().data, "two");
    write(&client, &file, b"three").await.unwrap();
    one.stop();
}
