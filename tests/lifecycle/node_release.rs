//! Giving a dataset up: because another asks, or because its claim is revoked (R27).

use crate::leases::{LEASE, Pool, patiently, two_nodes};
use crate::support::files::{read, top, try_read, write_at};
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerofs_csi::catalog::{RevocationReason, State};
use zerofs_csi::control::ReleaseMode;
use zerofs_csi::fs::FsError;
use zerofs_csi::fs::api::FileSystem;
use zerofs_csi::types::{Class, Classify};

const POLL: Duration = Duration::from_millis(20);

#[test]
fn an_owner_that_does_not_use_it_hands_over_when_it_is_asked() {
    super::run(async {
        let (a, b, volume) = two_nodes().await;
        let mailboxes = [a.world.serve_mailbox(POLL), b.world.serve_mailbox(POLL)];
        let open = a.open(volume).await;
        let file = top::write(&*open.fs, "kept", b"in the store").await;
        // Acknowledged and nowhere but in memory: handing over brings it to the store.
        write_at(&*open.fs, file, 0, b"only written").await;

        let taken = b.world.take(volume, Duration::from_millis(1)).await;
        let refused = taken.err().expect("it is in use");
        assert!(
            refused.class() == Class::Precondition && refused.to_string().contains("node-a"),
            "{refused}"
        );

        drop(open);
        let asked = Instant::now();
        let theirs = b.world.take(volume, Duration::from_secs(60)).await.unwrap();
        println!("handed over in {:?}", asked.elapsed());
        assert!(a.world.volumes.get(volume.dataset).is_none());
        assert_eq!(read(&*theirs.exported, file).await, b"only written");
        for mailbox in mailboxes {
            mailbox.stop().await;
        }
    });
}

/// An owner that is alive and in use is told to give it up: it stops answering, and
/// nothing it had acknowledged is lost.
#[test]
fn a_live_owner_applies_a_revocation() {
    super::run(async {
        let pool = Pool::new().await;
        // A short lease on a clock that stands: it is renewed often, and never expires.
        let a = pool
            .node_at("node-a", Duration::from_millis(600), Arc::new(tempfile::tempdir().unwrap()))
            .await;
        let b = pool.node("node-b").await;
        let volume = a.world.volume("v").await;
        for force in [true, false] {
            let mut losses = a.world.volumes.lost();
            let open = a.open(volume).await;
            let file = top::write(&*open.fs, "kept", b"in the store").await;
            write_at(&*open.fs, file, 0, b"only written").await;
            if force {
                let from =
                    b.world.controller.release_volume(volume, ReleaseMode::Force).await.unwrap();
                assert_eq!(from.as_deref(), Some("node-a"));
                assert_eq!(b.owner(volume.dataset).await, None);
            } else {
                b.world.revoke(volume, RevocationReason::OutOfService).await;
            }
            let lost = tokio::time::timeout(Duration::from_secs(60), losses.recv())
                .await
                .unwrap()
                .unwrap();
            assert_eq!(lost.dataset, volume.dataset, "its mounts are told to go stale");
            let answer = patiently(|| open.fs.getattr(file)).await;
            assert!(matches!(answer, Err(FsError::Stale | FsError::Fenced)), "{answer:?}");
            drop(open);
            let theirs = b.world.take(volume, Duration::from_secs(60)).await.unwrap();
            let read = patiently(|| try_read(&*theirs.exported, file)).await.unwrap();
            assert_eq!(read, b"only written");
            drop(theirs);
            b.world.volumes.close(volume.dataset).await.unwrap();
            // The revocation was of that claim only: the next round opens the volume here again,
            // and nothing of it is left.
            let session = a.world.session();
            let revocations =
                async || a.world.catalog.node_status(session).await.unwrap().revocations;
            for _ in 0..1000 {
                if revocations().await.is_empty() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(revocations().await, []);
        }
    });
}

/// A revocation does not hurry: an owner that cannot be reached has its time all the same.
#[test]
fn a_revocation_counts_a_lease_after_it_was_seen() {
    super::run(async {
        let (a, b, volume) = two_nodes().await;
        let open = a.open(volume).await;
        let mut watch = b.watch(volume.dataset).await;
        b.clock.advance(LEASE - Duration::from_secs(1));
        b.world.revoke(volume, RevocationReason::NodeGone).await;
        // A heartbeat that comes now moves the end of the lease, and the revocation's own time
        // begins.
        let session = a.world.session();
        let beat = zerofs_csi::catalog::Heartbeat {
            node: "node-a".into(),
            lease_millis: 45_000,
            boot: None,
        };
        a.world.catalog.put_heartbeat(session, 1_000, &beat).await.unwrap();
        let may_live = async |watch: &mut zerofs_csi::volume::Watch| {
            matches!(watch.look().await.unwrap(), zerofs_csi::volume::Verdict::NotExpired { .. })
        };
        b.clock.advance(Duration::from_secs(1));
        assert!(may_live(&mut watch).await, "the revocation was just seen");
        b.clock.advance(LEASE - Duration::from_secs(1));
        a.world.catalog.put_heartbeat(session, 1_001, &beat).await.unwrap();
        assert!(may_live(&mut watch).await, "not a whole lease yet");
        b.clock.advance(Duration::from_secs(1));
        a.world.catalog.put_heartbeat(session, 1_002, &beat).await.unwrap();
        crate::leases::expired(&mut watch).await;
        drop(open);
    });
}

/// A claim is deleted after its node died: the volume goes without it. One whose node lives stays.
#[test]
fn what_a_dead_node_had_is_deleted_without_it() {
    super::run(async {
        let (dead, later, volume) = two_nodes().await;
        let open = dead.open(volume).await;
        top::write(&*open.fs, "kept", b"in the store").await;
        let mailbox = dead.world.serve_mailbox(POLL);
        let refused = later.world.controller.delete_volume(volume).await.unwrap_err();
        assert!(
            refused.class() == Class::Precondition && refused.to_string().contains("node-a"),
            "{refused}"
        );
        mailbox.stop().await;
        dead.store.die();
        // Time goes fast where the deletion is asked for.
        let elsewhere = later.world.beside_in_fast_time("controller-1");
        elsewhere.controller.delete_volume(volume).await.unwrap();
        elsewhere.controller.delete_volume(volume).await.unwrap();
        drop(open);
        elsewhere.collect().await;
        elsewhere.assert_empty("deleted").await;
    });
}

/// No database is opened before a deletion.
#[test]
fn nor_does_a_damaged_database_keep_what_a_dead_node_had() {
    super::run(async {
        let (dead, later, volume) = two_nodes().await;
        let open = dead.open(volume).await;
        top::write(&*open.fs, "kept", b"in the store").await;
        dead.store.die();
        let elsewhere = later.world.beside_in_fast_time("controller-1");
        let bucket = elsewhere.bucket();
        for object in bucket.list("vol/").await.unwrap() {
            bucket.put(&object.key, "damaged".into()).await.unwrap();
        }
        elsewhere.controller.delete_volume(volume).await.unwrap();
        let record = elsewhere.record(volume).await;
        assert_eq!((record.state, record.owner), (State::Deleting, None));
        drop(open);
    });
}
