//! A controller and the owner of a volume in different processes.

use super::{World, data};
use crate::support::files::{GUARDED, name, root, top, write_at};
use crate::support::world::{passed, until_passed};
use std::time::Duration;
use zerofs_csi::catalog::Owner;
use zerofs_csi::control::{PropertyChanges, Source};
use zerofs_csi::fs::api::FileSystem;
use zerofs_csi::types::{Class, Classify, SessionId, SyncMode};
use zerofs_csi::volume::RootReader;

/// As a VolumeAttributesClass does while a pod writes.
#[test]
fn properties_change_on_the_owner_that_another_process_asks() {
    super::run(async {
        let node = World::new().await;
        let elsewhere = node.beside("controller-1");
        let volume = elsewhere.volume("v").await;
        let open = node.open(volume).await;
        let create = async |called: &str| {
            open.fs.create(&root(), open.fs.root(), &name(called), GUARDED).await
        };
        let mailbox = node.serve_mailbox(Duration::from_millis(50));
        let quota = |inodes: u64| PropertyChanges {
            inodes: Some(Some(inodes)),
            record_bytes: Some(4096),
            ..PropertyChanges::default()
        };
        elsewhere.controller.set_properties(volume, quota(2)).await.unwrap();
        create("a").await.unwrap();
        assert_eq!(create("b").await.unwrap_err().class(), Class::Exhausted);
        elsewhere.controller.set_properties(volume, quota(3)).await.unwrap();
        create("b").await.unwrap();

        // It promises more from now on, and what was promised less before is in the store as well.
        let always =
            PropertyChanges { sync: Some(Some(SyncMode::Always)), ..PropertyChanges::default() };
        elsewhere.controller.set_properties(volume, always).await.unwrap();
        let dataset = node.record(volume).await;
        let settings = elsewhere.volumes.settings();
        let stored = RootReader::head(settings, &node.catalog, &dataset).await.unwrap().unwrap();
        let stored = stored.into_view().await.unwrap();
        let root = stored.files().root_inode();
        assert_eq!(stored.files().list(root, None).await.unwrap().0.len(), 2);
        stored.close().await.unwrap();
        mailbox.stop().await;
        node.volumes.close(volume.dataset).await.unwrap();
    });
}

#[test]
fn the_owner_makes_the_snapshot_that_another_process_asks_for() {
    super::run(async {
        let node = World::new().await;
        let elsewhere = node.beside("controller-1");
        let volume = elsewhere.volume("v").await;
        let open = node.open(volume).await;
        let (file, bytes) = (top::create(&*open.fs, "a").await, data(5, 500_000));
        // Acknowledged, not committed: a snapshot holds it all the same.
        write_at(&*open.fs, file, 0, &bytes).await;

        let mailbox = node.serve_mailbox(Duration::from_millis(50));
        let cut =
            elsewhere.controller.create_csi_snapshot(volume, "cut".parse().unwrap()).await.unwrap();
        assert!(
            cut.snapshot.referenced.is_some_and(|used| used >= 500_000),
            "{:?}",
            cut.snapshot.referenced
        );
        let clone = elsewhere.copy("c", Source::Snapshot(cut.handle)).await;
        assert!(elsewhere.read(clone).await["a"] == bytes);
        let refused = elsewhere.controller.delete_volume(volume).await.unwrap_err();
        assert_eq!(refused.class(), Class::Precondition);
        assert!(refused.to_string().contains("node-a"), "{refused}");
        mailbox.stop().await;
        let mut left = node.bucket().list("nodes/").await.unwrap();
        left.retain(|object| !object.key.contains("/heartbeat/"));
        assert!(left.is_empty(), "{left:?}");

        // Nobody reads the mailbox now: never a stale snapshot, but a call to repeat.
        let quick = node.beside("controller-2");
        let quick = quick.another_controller().with_owner_timeout(Duration::from_millis(300));
        let late = quick.create_snapshot(volume, "late".parse().unwrap()).await;
        assert_eq!(late.unwrap_err().class(), Class::Unavailable);
        node.volumes.close(volume.dataset).await.unwrap();
    });
}

/// Requests about a volume that is not open here, whose askers are gone, may sort before all
/// others.
#[test]
fn stale_requests_keep_no_new_one_waiting() {
    super::run(async {
        let node = World::new().await;
        let elsewhere = node.beside("controller-1");
        let volume = elsewhere.volume("v").await;
        let other = elsewhere.volume("other").await;
        let open = node.open(volume).await;
        let (bucket, session) = (node.bucket(), node.session());
        for n in 0..80 {
            let checkpoint = other.dataset.incarnation;
            let request = format!(r#"{{"checkpoint":{{"snapshot":"{checkpoint}"}}}}"#);
            let request =
                format!(r#"{{"format":1,"dataset":"{}","request":{request}}}"#, other.dataset);
            bucket.put(&format!("nodes/{session}/request/{n:04}"), request.into()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mailbox = node.serve_mailbox(Duration::from_millis(50));
        elsewhere.csi_snapshot(volume, "cut").await;
        mailbox.stop().await;
        node.close(open).await;
    });
}

/// Above all one of a group snapshot, whose volumes are frozen meanwhile.
#[test]
fn a_slow_request_keeps_no_other_waiting() {
    super::run(async {
        let node = World::new().await;
        let elsewhere = node.beside("controller-1");
        let [slow, other] = [elsewhere.volume("slow").await, elsewhere.volume("other").await];
        let open = [node.open(slow).await, node.open(other).await];
        top::create(&*open[0].fs, "a").await;
        let failpoints = node.failpoints();
        failpoints.set("fs.commit.before-checkpoint", "1*pause->off").unwrap();
        let mailbox = node.serve_mailbox(Duration::from_millis(20));
        let waits = tokio::spawn({
            let controller = elsewhere.controller.clone();
            async move { controller.create_csi_snapshot(slow, "cut".parse().unwrap()).await }
        });
        let step = "fs.commit.before-checkpoint";
        until_passed(failpoints, step, passed(failpoints, step)).await;
        elsewhere.csi_snapshot(other, "another").await;
        assert!(!waits.is_finished(), "the first one is still under way: {:?}", waits.await);
        failpoints.set("fs.commit.before-checkpoint", "off").unwrap();
        waits.await.unwrap().unwrap();
        mailbox.stop().await;
        drop(open);
        for volume in [slow, other] {
            node.volumes.close(volume.dataset).await.unwrap();
        }
    });
}

/// Puts a request as an asker does, and waits for the reply.
async fn ask(world: &World, id: &str, text: String) -> serde_json::Value {
    let (bucket, session) = (world.bucket(), world.session());
    let reply = format!("nodes/{session}/reply/{id}");
    bucket.delete(std::slice::from_ref(&reply)).await.unwrap();
    bucket.put(&format!("nodes/{session}/request/{id}"), text.into()).await.unwrap();
    let replied = async {
        loop {
            if let Some(bytes) = bucket.get(&reply, 1 << 20).await.unwrap() {
                return serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()["outcome"]
                    .clone();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), replied).await.unwrap()
}

/// R31: who asks for a claim that has ended must not get a later one closed.
#[test]
fn a_hand_over_of_an_earlier_claim_is_void() {
    super::run(async {
        let world = World::new().await;
        let [volume, other] = [world.volume("a").await, world.volume("b").await];
        // The owner polls its mailbox while it has anything open.
        let _other = world.open(other).await;
        let mailbox = world.serve_mailbox(Duration::from_millis(20));
        let claim = async || {
            let record = world.record(volume).await;
            record.owner.map(|owner| owner.claim)
        };
        let open = async || drop(world.open(volume).await);
        let text = |claim: &str| {
            let request = format!(r#"{{"hand-over":{{{claim}}}}}"#);
            format!(r#"{{"format":1,"dataset":"{}","request":{request}}}"#, volume.dataset)
        };
        let of = |claim| text(&format!(r#""claim":"{claim}""#));

        open().await;
        let first = claim().await.unwrap();
        world.volumes.close(volume.dataset).await.unwrap();
        open().await;
        let second = claim().await.unwrap();
        assert_ne!(first, second);
        let reply = ask(&world, "first", of(first)).await;
        let why = reply["failed"]["why"].as_str();
        assert!(why.is_some_and(|why| why.contains("earlier claim")), "{reply}");
        assert_eq!(claim().await, Some(second));
        assert!(ask(&world, "none", text("")).await["failed"].is_object());
        assert_eq!(claim().await, Some(second));
        assert_eq!(ask(&world, "second", of(second)).await["done"], "done");
        assert_eq!(claim().await, None);
        mailbox.stop().await;
    });
}

/// A request that is left behind, or comes late, must not put old files over those that were
/// written since.
#[test]
fn a_restore_that_nobody_waits_for_is_not_begun() {
    super::run(async {
        let world = World::new().await;
        let [volume, other] = [world.volume("a").await, world.volume("b").await];
        world.write(volume, "file", b"old").await;
        let cut = world.snapshot(volume, "cut").await;
        world.write(volume, "file", b"new").await;
        // The owner polls its mailbox while it has anything open.
        let _other = world.open(other).await;
        let mailbox = world.serve_mailbox(Duration::from_millis(20));
        let text = |call: u8, token: Option<&str>| {
            let call = zerofs_csi::types::Incarnation::from_bytes([call; 16]);
            let token =
                token.map(|token| format!(r#","start_token":"{token}""#)).unwrap_or_default();
            let paths = r#""from":"file","to":"file","overwrite":true,"replaced":"removed""#;
            let wanted = format!(r#""call":"{call}","snapshot":"{}",{paths}"#, cut.snapshot);
            let request = format!(r#"{{"restore":{{{wanted}}}}}"#);
            format!(r#"{{"format":1,"dataset":"{}","request":{request}{token}}}"#, volume.dataset)
        };
        let content = async || {
            let open = world.open(volume).await;
            top::content(&*open.exported, "file").await
        };
        let is_new = async |when: &str| {
            // Answered when the mailbox was polled once more.
            let ping = format!(r#"{{"format":1,"dataset":"{}","request":"ping"}}"#, other.dataset);
            assert_eq!(ask(&world, "ping", ping).await["done"], "done");
            let begun = world.failpoints().passed().get("control.restore.begin").copied();
            assert_eq!(begun, None, "{when}");
            assert_eq!(content().await, b"new", "{when}");
        };
        let close = async || world.volumes.close(volume.dataset).await.unwrap();
        let open = async || drop(world.open(volume).await);
        let token = |reply: &serde_json::Value| {
            reply["start-token"].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned()
        };

        // The asker went away while the volume was closed; then it is opened again.
        let opened = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            open().await;
        };
        let (first, ()) = tokio::join!(ask(&world, "left", text(1, None)), opened);
        is_new("left behind").await;
        let first = token(&first);
        // The same request once more: the store delivered it twice.
        let second = token(&ask(&world, "left", text(1, None)).await);
        is_new("twice").await;
        close().await;
        open().await;
        // A token of another opening, or of another call, is void.
        token(&ask(&world, "closed", text(1, Some(&first))).await);
        let third = token(&ask(&world, "closed", text(1, Some(&second))).await);
        token(&ask(&world, "call", text(2, Some(&third))).await);
        is_new("a token of another").await;

        // The asker that has seen the reply brings the token back.
        let given = token(&ask(&world, "x", text(3, None)).await);
        let mut reply = ask(&world, "y", text(3, Some(&given))).await;
        while reply["running"].is_object() {
            reply = ask(&world, "z", text(3, Some(&given))).await;
        }
        assert_eq!(reply["done"]["restored"]["objects"], 1, "{reply}");
        // A token is good for one restore.
        token(&ask(&world, "again", text(4, Some(&given))).await);
        assert_eq!(world.failpoints().passed()["control.restore.begin"], 1);
        mailbox.stop().await;
        assert_eq!(content().await, b"old");
        close().await;
    });
}

/// Every owner that is asked is silent, and another has the volume before that shows: together they
/// get as long as one.
#[test]
fn owners_that_do_not_answer_share_one_time_limit() {
    super::paused(|| async {
        let world = World::new().await;
        let volume = world.volume("v").await;
        let claim = async |owner: Option<Owner>| {
            let record = world.catalog.update_dataset(volume.dataset, |record| {
                record.owner = owner.clone();
                Ok(())
            });
            record.await.unwrap();
        };
        let another = |n: u32| Some(Owner::new(&format!("node-{n}"), SessionId::random()));
        let began = tokio::time::Instant::now();
        claim(another(0)).await;
        let moving = async {
            for n in 1.. {
                tokio::time::sleep(Duration::from_secs(13)).await;
                claim(another(n)).await;
            }
        };
        let cut = world.controller.create_snapshot(volume, "cut".parse().unwrap());
        let refused = tokio::select! {
            cut = Box::pin(cut) => cut.unwrap_err(),
            () = moving => unreachable!(),
        };
        assert!(matches!(refused.class(), Class::Unavailable | Class::InProgress), "{refused}");
        // The limit is that of every `World`.
        let took = began.elapsed();
        assert!(took < Duration::from_secs(22), "{took:?}");

        // An owner that released it is not waited for.
        claim(another(0)).await;
        let began = tokio::time::Instant::now();
        let releasing = async {
            tokio::time::sleep(Duration::from_secs(4)).await;
            claim(None).await;
        };
        let cut = world.controller.create_snapshot(volume, "cut".parse().unwrap());
        let (cut, ()) = tokio::join!(Box::pin(cut), releasing);
        cut.unwrap();
        let took = began.elapsed();
        assert!(took < Duration::from_secs(15), "{took:?}");
    });
}
