//! Requests to the owner of a volume by the channel: of any volume, and for those alone whom the
//! pool knows.

use crate::node::{Node, owner};
use crate::support::driver::catalog;
use crate::support::driver::{new_volume, stage};
use std::sync::Arc;
use std::time::Duration;
use zerofs_csi::csi::proto::v1::CreateSnapshotRequest;

/// The mailbox is read every 20 seconds, and an answer is awaited for 3.
const SETTINGS: &str = "lease: 60s\nmailboxInterval: 3s\nownerTimeout: 3s\n";

/// A snapshot of a volume that is staged on another node, by a process with a port of its own.
#[tokio::test(flavor = "multi_thread")]
async fn the_owner_of_an_idle_volume_answers_another_node() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let settings = format!("{SETTINGS}channel: {{ listen: '127.0.0.1:0' }}\n");
    let one = Node::with(&dir, "a-", &settings).await;
    let other = Node::with(&dir, "b-", &settings).await;
    let made = one.driver.controller().create_volume(new_volume("v")).await.unwrap();
    let id = made.into_inner().volume.unwrap().volume_id;
    one.driver.node().node_stage_volume(stage(&id, &one.staging())).await.unwrap();
    let session = owner(&dir, &id).await.unwrap().session;
    // Soon after it was opened, the node's channel is in the bucket: with this volume of one node
    // too.
    let pool = catalog(&dir).await;
    while pool.channel(session).await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // For half a minute after an opening the mailbox is read at each interval.
    for n in 0..3 {
        let request = CreateSnapshotRequest {
            source_volume_id: id.clone(),
            name: format!("cut-{n}"),
            ..Default::default()
        };
        let made = other.driver.controller().create_snapshot(request).await.unwrap();
        assert!(made.into_inner().snapshot.unwrap().ready_to_use);
    }
    // The asker has made itself known for that, and takes its key away at its end.
    let askers = || async {
        let listed = pool.bucket().list("nodes/").await.unwrap();
        listed.iter().filter(|object| object.key.contains("/channel/")).count()
    };
    assert_eq!(askers().await, 2);
    drop(other.driver.stop().await);
    assert_eq!(askers().await, 1);
    one.unstage(&id).await;
}
