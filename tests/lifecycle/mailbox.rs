//! A controller and the owner of a volume in different processes.

use super::snapdir::{child, read};
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
        let file =
            open.fs.create(&Caller::root(), open.fs.root(), &name, how).await.unwrap().attr.file;
        let bytes = data(5, 500_000);
        // Acknowledged, not committed: a snapshot holds it all the same.
        open.fs
            .write(&Caller::root(), file, 0, Bytes::from(bytes.clone()), Stability::Unstable)
            .await
            .unwrap();

        let stop = CancellationToken::new();
        let desk = mail::serve(
            node.controller.pools().clone(),
            node.volumes.clone(),
            Arc::new(NoMounts),
            Duration::from_millis(50),
            stop.clone(),
        );
        let desk = tokio::spawn(desk);
        let cut = elsewhere
            .controller
            .create_snapshot(volume, "cut".parse().unwrap(), true)
            .await
            .unwrap();
        assert!(
            cut.snapshot.referenced.is_some_and(|used| used >= 500_000),
            "{:?}",
            cut.snapshot.referenced
        );
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
        let quick = zerofs_csi::control::Controller::new(
            quick.controller.pools().clone(),
            quick.volumes.clone(),
        );
        let quick = quick.with_owner_timeout(Duration::from_millis(300));
        let late = quick.create_snapshot(volume, "late".parse().unwrap(), false).await;
        assert_eq!(late.unwrap_err().class(), Class::Unavailable);
        node.volumes.close(volume.dataset).await.unwrap();
    });
}

/// Letters about a volume that is not open here, whose writers are gone, may sort before all
/// others.
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
            let letter = format!(
                r#"{{"format":1,"dataset":"{}","checkpoint":"{checkpoint}"}}"#,
                other.dataset
            );
            bucket.put(&format!("nodes/{session}/mail/{n:04}"), letter.into()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let stop = CancellationToken::new();
        let (pools, volumes) = (node.controller.pools().clone(), node.volumes.clone());
        let desk = mail::serve(
            pools,
            volumes,
            Arc::new(NoMounts),
            Duration::from_millis(50),
            stop.clone(),
        );
        let desk = tokio::spawn(desk);
        elsewhere.controller.create_snapshot(volume, "cut".parse().unwrap(), true).await.unwrap();
        stop.cancel();
        desk.await.unwrap();
        drop(open);
        node.volumes.close(volume.dataset).await.unwrap();
    });
}

/// Puts a letter as an asker does, and waits for what is answered.
async fn letter(world: &World, id: &str, text: String) -> serde_json::Value {
    let (bucket, session) = (world.catalog.bucket(), world.volumes.settings().session);
    let answer = format!("nodes/{session}/answer/{id}");
    bucket.delete(std::slice::from_ref(&answer)).await.unwrap();
    bucket.put(&format!("nodes/{session}/mail/{id}"), text.into()).await.unwrap();
    let answered = async {
        loop {
            if let Some(bytes) = bucket.get(&answer, 1 << 20).await.unwrap() {
                return serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()["result"]
                    .clone();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), answered).await.unwrap()
}

/// R31: who asks for a claim that has ended must not get a later one closed.
#[test]
fn a_hand_over_of_an_earlier_claim_is_void() {
    super::run(async {
        let world = World::new().await;
        let [volume, other] = [
            world.create("a", None).await.unwrap().handle,
            world.create("b", None).await.unwrap().handle,
        ];
        // The owner looks into its mailbox while it has anything open.
        let _other = world.volumes.open(&world.catalog, other.dataset).await.unwrap();
        let stop = CancellationToken::new();
        let (pools, volumes) = (world.controller.pools().clone(), world.volumes.clone());
        let desk = tokio::spawn(mail::serve(
            pools,
            volumes,
            Arc::new(NoMounts),
            Duration::from_millis(20),
            stop.clone(),
        ));
        let claim = async || {
            let record = world.catalog.dataset_by_id(volume.dataset).await.unwrap().unwrap().record;
            record.owner.map(|owner| owner.claim)
        };
        let open = async || drop(world.volumes.open(&world.catalog, volume.dataset).await.unwrap());
        let text =
            |claim| format!(r#"{{"format":10,"dataset":"{}","claim":"{claim}"}}"#, volume.dataset);

        open().await;
        let first = claim().await.unwrap();
        world.volumes.close(volume.dataset).await.unwrap();
        open().await;
        let second = claim().await.unwrap();
        assert_ne!(first, second);
        let said = letter(&world, "first", text(first)).await;
        assert!(said["Err"].as_str().is_some_and(|why| why.contains("earlier claim")), "{said}");
        assert_eq!(claim().await, Some(second));
        assert!(
            letter(&world, "none", format!(r#"{{"format":10,"dataset":"{}"}}"#, volume.dataset))
                .await["Err"]
                .is_string()
        );
        assert_eq!(claim().await, Some(second));
        let said = letter(&world, "second", text(second)).await;
        assert!(said["Ok"].is_null() && said["Err"].is_null(), "{said}");
        assert_eq!(claim().await, None);
        stop.cancel();
        desk.await.unwrap();
    });
}

/// A letter that is left behind, or comes late, must not put old files over those that were written
/// since.
#[test]
fn a_restore_that_nobody_waits_for_is_not_begun() {
    super::run(async {
        let world = World::new().await;
        let [volume, other] = [
            world.create("a", None).await.unwrap().handle,
            world.create("b", None).await.unwrap().handle,
        ];
        world.write(volume, "file", b"old").await;
        let cut = world
            .controller
            .create_snapshot(volume, "cut".parse().unwrap(), false)
            .await
            .unwrap()
            .handle;
        world.write(volume, "file", b"new").await;
        // The owner looks into its mailbox while it has anything open.
        let _other = world.volumes.open(&world.catalog, other.dataset).await.unwrap();
        let stop = CancellationToken::new();
        let (pools, volumes) = (world.controller.pools().clone(), world.volumes.clone());
        let desk = tokio::spawn(mail::serve(
            pools,
            volumes,
            Arc::new(NoMounts),
            Duration::from_millis(20),
            stop.clone(),
        ));
        let text = |call: u8, ticket: Option<&str>| {
            let call = zerofs_csi::types::Incarnation::from_bytes([call; 16]);
            let ticket =
                ticket.map(|ticket| format!(r#","ticket":"{ticket}""#)).unwrap_or_default();
            let wanted = format!(
                r#"{{"call":"{call}","snapshot":"{}","from":"file","to":"file","overwrite":true}}"#,
                cut.snapshot
            );
            format!(r#"{{"format":9,"dataset":"{}","restore":{wanted}{ticket}}}"#, volume.dataset)
        };
        let content = async || {
            let open = world.volumes.open(&world.catalog, volume.dataset).await.unwrap();
            let file = child(&open.served, open.served.root(), "file").await.unwrap().file;
            read(&open.served, file).await
        };
        let is_new = async |when: &str| {
            // Answered when the mailbox was looked through once more.
            letter(&world, "present", format!(r#"{{"format":3,"dataset":"{}"}}"#, other.dataset))
                .await;
            let begun =
                world.catalog.bucket().failpoints().passed().get("control.restore.begin").copied();
            assert_eq!(begun, None, "{when}");
            assert_eq!(content().await, b"new", "{when}");
        };
        let close = async || world.volumes.close(volume.dataset).await.unwrap();
        let open = async || drop(world.volumes.open(&world.catalog, volume.dataset).await.unwrap());
        let noted = |said: &serde_json::Value| {
            said["Ok"]["noted"].as_str().unwrap_or_else(|| panic!("{said}")).to_owned()
        };

        // The asker went away while the volume was closed; then it is opened again.
        let opened = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            open().await;
        };
        let (first, ()) = tokio::join!(letter(&world, "left", text(1, None)), opened);
        is_new("left behind").await;
        let first = noted(&first);
        // The same letter once more: its request was repeated on the way.
        let second = noted(&letter(&world, "left", text(1, None)).await);
        is_new("twice").await;
        close().await;
        open().await;
        // A token of another opening, or of another call, is void.
        noted(&letter(&world, "closed", text(1, Some(&first))).await);
        let third = noted(&letter(&world, "closed", text(1, Some(&second))).await);
        noted(&letter(&world, "call", text(2, Some(&third))).await);
        is_new("said to another").await;

        // The asker that heard the answer says so.
        let heard = noted(&letter(&world, "x", text(3, None)).await);
        let mut said = letter(&world, "y", text(3, Some(&heard))).await;
        while said["Ok"]["running"].is_object() {
            said = letter(&world, "z", text(3, Some(&heard))).await;
        }
        assert_eq!(said["Ok"]["done"]["objects"], 1, "{said}");
        // A ticket is good for one restore.
        noted(&letter(&world, "again", text(4, Some(&heard))).await);
        assert_eq!(world.catalog.bucket().failpoints().passed()["control.restore.begin"], 1);
        stop.cancel();
        desk.await.unwrap();
        assert_eq!(content().await, b"old");
        close().await;
    });
}
