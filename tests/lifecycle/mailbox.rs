//! A controller and the owner of a volume in different processes.

use super::{World, data};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use zerofs_csi::control::node::NoMounts;
use zerofs_csi::control::{Source, mail};
use zerofs_csi::fs::api::{Caller, CreateHow, FileSystem, SetAttr, Stability};
use zerofs_csi::types::{Class, Classify, EntryName};

#[test]
fn the_owner_makes_the_snapshot_that_another_process_asks_for() {
    super::run(async {
        let node = World::new().await;
        let elsewhere = World::on(node.catalog.clone(), "controller-1");
        let volume = elsewhere.create("v", None).await.unwrap().handle;
        let open = node.volumes.open(&node.catalog, volume.dataset).await.unwrap();
        let name = EntryName::try_from(&b"a"[..]).unwrap();
        let how = CreateHow::Unchecked(SetAttr { mode: Some(0o644), ..SetAttr::default() });
        let file = open.fs.create(&Caller::root(), open.fs.root(), &name, how).await.unwrap().attr.file;
        let bytes = data(5, 500_000);
        // Acknowledged, not committed: a snapshot holds it all the same.
        open.fs.write(&Caller::root(), file, 0, Bytes::from(bytes.clone()), Stability::Unstable).await.unwrap();

        let stop = CancellationToken::new();
        let desk = mail::serve(
            node.controller.pools().clone(),
            node.volumes.clone(),
            Arc::new(NoMounts),
            Duration::from_millis(50),
            stop.clone(),
        );
        let desk = tokio::spawn(desk);
        let cut = elsewhere.controller.create_snapshot(volume, "cut".parse().unwrap(), true).await.unwrap();
        assert!(cut.snapshot.referenced.is_some_and(|used| used >= 500_000), "{:?}", cut.snapshot.referenced);
        let clone = elsewhere.create("c", Some(Source::Snapshot(cut.handle))).await.unwrap().handle;
        assert!(elsewhere.read(clone).await["a"] == bytes);
        let refused = elsewhere.controller.delete_volume(volume).await.unwrap_err();
        assert_eq!(refused.class(), Class::Precondition);
        assert!(refused.to_string().contains("node-a"), "{refused}");
        stop.cancel();
        desk.await.unwrap();
        let mut left = node.catalog.bucket().list("nodes/").await.unwrap();
        left.retain(|object| !object.key.contains("/heartbeat/"));
        assert!(left.is_empty(), "{left:?}");

        // Nobody reads the mailbox now: never a stale snapshot, but a call to repeat.
        let quick = World::on(node.catalog.clone(), "controller-2");
        let quick = zerofs_csi::control::Controller::new(quick.controller.pools().clone(), quick.volumes.clone());
        let quick = quick.with_owner_timeout(Duration::from_millis(300));
        let late = quick.create_snapshot(volume, "late".parse().unwrap(), false).await;
        assert_eq!(late.unwrap_err().class(), Class::Unavailable);
        node.volumes.close(volume.dataset).await.unwrap();
    });
}

/// Letters about a volume that is not open here, whose writers are gone, may sort before all others.
#[test]
fn stale_letters_keep_no_new_one_waiting() {
    super::run(async {
        let node = World::new().await;
        let elsewhere = World::on(node.catalog.clone(), "controller-1");
        let volume = elsewhere.create("v", None).await.unwrap().handle;
        let other = elsewhere.create("other", None).await.unwrap().handle;
        let open = node.volumes.open(&node.catalog, volume.dataset).await.unwrap();
        let (bucket, session) = (node.catalog.bucket(), node.volumes.settings().session);
        for n in 0..80 {
            let checkpoint = other.dataset.incarnation;
            let letter = format!(r#"{{"format":1,"dataset":"{}","checkpoint":"{checkpoint}"}}"#, other.dataset);
            bucket.put(&format!("nodes/{session}/mail/{n:04}"), letter.into()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let stop = CancellationToken::new();
        let (pools, volumes) = (node.controller.pools().clone(), node.volumes.clone());
        let desk = mail::serve(pools, volumes, Arc::new(NoMounts), Duration::from_millis(50), stop.clone());
        let desk = tokio::spawn(desk);
        elsewhere.controller.create_snapshot(volume, "cut".parse().unwrap(), true).await.unwrap();
        stop.cancel();
        desk.await.unwrap();
        drop(open);
        node.volumes.close(volume.dataset).await.unwrap();
    });
}
