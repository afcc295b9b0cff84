//! `check` beside a server that has the dataset open and writes: it finds nothing where nothing is
//! wrong, disturbs nobody and leaves nothing; and what is wrong it finds, whether the dataset is
//! open or not.

use super::Cli;
use crate::support::nfs;
use crate::support::program::{Answer, files_below};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use zerofs_csi::fs::api::{CreateHow, SetAttr, Stability};
use zerofs_csi::nfs::client::{Client, ClientError, FileHandle};

/// Checks while writers are at work.
const CHECKS: usize = 3;

async fn check(cli: &Arc<Cli>) -> Answer {
    let cli = cli.clone();
    tokio::task::spawn_blocking(move || cli.run(&["check", "--json"])).await.unwrap()
}

/// A round of everything that changes rows of several kinds at once.
async fn round(client: &Client, dir: &FileHandle, n: u64) -> Result<(), ClientError> {
    let names = [format!("a-{n}"), format!("b-{n}"), format!("dir-{n}")];
    let [a, b, sub] = names.each_ref().map(|name| name.as_bytes());
    let how = CreateHow::Guarded(SetAttr { mode: Some(0o644), ..SetAttr::default() });
    let file = client.create(dir, a, &how).await?.handle;
    let data: Vec<u8> = (0..150_000u64).map(|i| (i.wrapping_mul(n + 7) >> 3) as u8).collect();
    client.write(&file, 0, Bytes::from(data), Stability::Unstable).await?;
    client.write(&file, 400_000, Bytes::from_static(b"after a hole"), Stability::Unstable).await?;
    client.link(&file, dir, b).await?;
    client.commit(&file, 0, 0).await?;
    client.setattr(&file, &SetAttr { size: Some(70_001), ..SetAttr::default() }, None).await?;
    let inside = client.mkdir(dir, sub, &SetAttr::default()).await?.handle;
    client.rename((dir, a), (&inside, a)).await?;
    client.remove(dir, b).await?;
    if n >= 3 {
        // The one that the writer left three rounds ago goes, data and all.
        let old = format!("dir-{}", n - 3);
        let there = client.lookup(dir, old.as_bytes()).await?.handle;
        client.remove(&there, format!("a-{}", n - 3).as_bytes()).await?;
        client.rmdir(dir, old.as_bytes()).await?;
    }
    Ok(())
}

fn clean(answer: &Answer) {
    assert_eq!(answer.code, 0, "{answer:?}");
    let checked: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    let checked = checked.as_array().unwrap();
    assert!(
        !checked.is_empty() && checked.iter().all(|found| found["clean"] == true),
        "{answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_that_is_written_to_is_checked_and_not_disturbed() {
    let cli = Arc::new(Cli::with_pool());
    cli.ok(&["dataset", "create", "web"]);
    let config = cli.path().join("config.yaml");
    std::fs::write(
        &config,
        "mailboxInterval: 50ms\nflushInterval: 100ms\ncollectInterval: 500ms\n",
    )
    .unwrap();
    let serving = cli.serve(&["--config", &config.display().to_string()]);
    let (client, root) = nfs::mount(serving.nfs, "/web").await;
    let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writing = tokio::spawn({
        let (client, root, stop, rounds) =
            (client.clone(), root.clone(), stop.clone(), rounds.clone());
        async move {
            while !stop.load(Ordering::Relaxed) {
                round(&client, &root, rounds.load(Ordering::Relaxed)).await?;
                rounds.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, ClientError>(())
        }
    });
    for _ in 0..CHECKS {
        let before = rounds.load(Ordering::Relaxed);
        clean(&check(&cli).await);
        // The writer goes on, so that each check sees another state.
        while rounds.load(Ordering::Relaxed) < before + 2 && !writing.is_finished() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    writing.await.unwrap().expect("no call fails because of a check");
    let left = cli.json(&["dataset", "snapshot", "list", "web"]);
    assert!(
        left.as_array().unwrap().iter().all(|snapshot| snapshot["state"] == "deleting"),
        "a check leaves a snapshot: {left}"
    );
    nfs::write(&client, &root, "kept", &[9; 300_000]).await;

    // Damage is found while the volume is open, and when it is closed.
    let packs = files_below(&cli.path().join("pool/packs"));
    let newest =
        packs.into_iter().max_by_key(|pack| pack.metadata().unwrap().modified().unwrap()).unwrap();
    let (bytes, name) = (std::fs::read(&newest).unwrap(), newest.clone());
    std::fs::remove_file(&newest).unwrap();
    let online = check(&cli).await;
    assert!(online.code == 18 && online.err.contains("web"), "{online:?}");
    serving.stop();
    let offline = check(&cli).await;
    assert!(offline.code == 18 && offline.err.contains("web"), "{offline:?}");
    std::fs::write(name, bytes).unwrap();
    clean(&check(&cli).await);
}

/// Few systems let a process have as many open files as volumes and clients can need unless it
/// asks.
#[test]
fn a_server_takes_the_open_files_that_it_may_have() {
    let cli = Cli::with_pool();
    let serving = cli.serve_within("ulimit -Sn 200; ulimit -Hn 5000");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", serving.server.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_whitespace().collect::<Vec<_>>()[3..5], ["5000", "5000"], "{line}");
    serving.stop();
}
