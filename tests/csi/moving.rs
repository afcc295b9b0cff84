//! A volume moves between two machines: one dies, one is told to give it up, one restarts (R24 to
//! R27).

use crate::support::driver::*;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tonic::Code;
use zerofs_csi::csi::proto::v1::NodeGetVolumeStatsRequest;
use zerofs_csi::mount::{FakeMounter, Mounter};

/// The shortest lease there may be.
const SETTINGS: &str = "lease: 5s\nmailboxInterval: 50ms\n";

pub async fn machine(dir: &Arc<TempDir>, seat: &str, mounter: FakeMounter) -> Driver {
    Driver::seated(dir.clone(), seat, mounter, SETTINGS).await
}

/// The recorded endpoint of a machine's one staged volume.
pub fn endpoint(dir: &TempDir, seat: &str) -> SocketAddr {
    let records: Vec<_> = std::fs::read_dir(dir.path().join(format!("{seat}state/staged")))
        .unwrap()
        .flatten()
        .collect();
    let [record] = &records[..] else { panic!("{records:?}") };
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(record.path()).unwrap()).unwrap();
    record["endpoint"].as_str().unwrap().parse().unwrap()
}

/// The listener of a process that was killed goes in its own time.
async fn until_free(at: SocketAddr) -> tokio::net::TcpListener {
    for _ in 0..600 {
        if let Ok(listener) = tokio::net::TcpListener::bind(at).await {
            return listener;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{at} stays taken")
}

fn stats(id: &str, at: &Path) -> NodeGetVolumeStatsRequest {
    NodeGetVolumeStatsRequest { volume_id: id.into(), volume_path: text(at), ..Default::default() }
}

/// Unstaged as kubelet does it: what was lost lets go of its journal in its own time.
pub async fn unstage_at_last(driver: &Driver, id: &str, at: &Path) {
    for _ in 0..600 {
        match driver.unstage(id, at).await {
            Ok(_) => return,
            Err(status) => {
                assert!(matches!(status.code(), Code::Aborted | Code::Unavailable), "{status:?}");
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it stays staged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_machines_volume_is_staged_elsewhere_within_one_call() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let first = machine(&dir, "a-", FakeMounter::new()).await;
    let (id, staging, target) = (
        first.create("v").await.volume_id,
        dir.path().join("a-staging"),
        dir.path().join("a-target"),
    );
    first.stage(&id, &staging).await.unwrap();
    first.publish(&id, &staging, &target).await.unwrap();
    let (mounter, served) = (first.mounter.clone(), endpoint(&dir, "a-"));
    drop(first);
    // The two are one machine here: the second must not serve where the first one's mount leads.
    let held = until_free(served).await;

    let second = machine(&dir, "b-", FakeMounter::new()).await;
    let elsewhere = dir.path().join("b-staging");
    let asked = Instant::now();
    second.stage(&id, &elsewhere).await.unwrap();
    println!(
        "staged elsewhere {:?} after the death of the first, with a lease of 5 s",
        asked.elapsed()
    );

    // The first machine comes back while its mount is there: it steals nothing, its mount is stale,
    // and goes away as any other.
    drop(held);
    let first = machine(&dir, "a-", mounter).await;
    refused(
        first.node().node_get_volume_stats(stats(&id, &target)).await,
        Code::FailedPrecondition,
        "lost",
    );
    refused(first.stage(&id, &staging).await, Code::FailedPrecondition, "lost");
    second.node().node_get_volume_stats(stats(&id, &elsewhere)).await.unwrap();
    first.unpublish(&id, &target).await.unwrap();
    unstage_at_last(&first, &id, &staging).await;
    assert_eq!(first.mounter.list().await.unwrap(), []);
    assert_eq!(
        std::fs::read_dir(dir.path().join("a-state/staged")).unwrap().count(),
        0,
        "no record is left"
    );
    // And back again: what is released is there at once.
    second.unstage(&id, &elsewhere).await.unwrap();
    first.stage(&id, &staging).await.unwrap();
    first.unstage(&id, &staging).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_told_to_gives_its_volume_up_and_serves_it_no_more() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let first = machine(&dir, "a-", FakeMounter::new()).await;
    let second = machine(&dir, "b-", FakeMounter::new()).await;
    let (id, staging, target) = (
        first.create("v").await.volume_id,
        dir.path().join("a-staging"),
        dir.path().join("a-target"),
    );
    first.stage(&id, &staging).await.unwrap();
    first.publish(&id, &staging, &target).await.unwrap();
    let served = endpoint(&dir, "a-");

    revoke(&dir, &id).await;
    let elsewhere = dir.path().join("b-staging");
    let asked = Instant::now();
    second.stage(&id, &elsewhere).await.unwrap();
    println!("staged elsewhere {:?} after the revocation, with a lease of 5 s", asked.elapsed());
    for _ in 0..400 {
        if first.node().node_get_volume_stats(stats(&id, &target)).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    refused(
        first.node().node_get_volume_stats(stats(&id, &target)).await,
        Code::FailedPrecondition,
        "lost",
    );
    refused(first.stage(&id, &staging).await, Code::FailedPrecondition, "lost");
    // R25: not silent while it is mounted, and its address nobody else's, though the two are one
    // machine here.
    assert!(tokio::net::TcpStream::connect(served).await.is_ok());
    assert_ne!(endpoint(&dir, "b-"), served);
    first.unpublish(&id, &target).await.unwrap();
    unstage_at_last(&first, &id, &staging).await;
    assert!(tokio::net::TcpStream::connect(served).await.is_err(), "unstaged: nothing is left");
    assert_eq!(first.mounter.list().await.unwrap(), []);
    second.unstage(&id, &elsewhere).await.unwrap();
    second.delete(&id).await;
}
