//! A volume keeps its place in the process until its record says released, and what a session
//! owns and does not have open is released (R33).

use crate::leases::{LEASE, Node, Pool, patiently, two_nodes};
use crate::support::fault::{Fault, Op, Rule, quick};
use crate::support::files::top;
use std::sync::Arc;
use std::time::Duration;
use zerofs_csi::fs::FsError;
use zerofs_csi::fs::api::FileSystem;
use zerofs_csi::types::VolumeHandle;
use zerofs_csi::volume::{CloseReason, Closing, VolumeError};

/// Until the record names nobody.
async fn released(node: &Node, volume: VolumeHandle, when: &str) {
    for _ in 0..3000 {
        if node.owner(volume.dataset).await.is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{when}: it stays owned by a session that does not have it open");
}

async fn has(node: &Node, volume: VolumeHandle, file: &str) -> bool {
    let open = node.open(volume).await;
    let found = top::has(&*open.fs, file).await;
    node.world.close(open).await;
    found
}

/// The record's last write is slow, and the volume is wanted again meanwhile.
#[test]
fn whoever_wants_a_volume_that_is_being_released_waits_for_the_record() {
    super::run(async {
        for unused in [false, true] {
            let (a, b, volume) = two_nodes().await;
            let open = a.open(volume).await;
            top::write(&*open.fs, "kept", b"x").await;
            drop(open);
            a.store.clear_log();
            a.store.script(
                Rule::on(Op::PutNew)
                    .at("datasets/")
                    .times(1)
                    .then(Fault::Delay(Duration::from_secs(1))),
            );
            let closing = tokio::spawn({
                let volumes = a.world.volumes.clone();
                async move {
                    match unused {
                        true => volumes
                            .close_for(volume.dataset, CloseReason::Unused)
                            .await
                            .map(|closing| assert_eq!(closing, Closing::Closed)),
                        false => volumes.close(volume.dataset).await,
                    }
                }
            });
            let is_sent = || {
                a.store.log().iter().any(|(op, key)| *op == Op::PutNew && key.contains("datasets/"))
            };
            while !is_sent() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let open = a.open(volume).await;
            closing.await.unwrap().unwrap();
            let owner = a.owner(volume.dataset).await.expect("an open volume is not released");
            assert_eq!(owner.session, a.world.session());
            let refused = b.world.volumes.open(&b.world.catalog, volume.dataset).await;
            assert!(matches!(refused, Err(VolumeError::Owned { .. })), "without waiting");
            top::write(&*open.fs, "later", b"y").await;
        }
    });
}

/// A store that forbids one write, at each of the writes of a close; and a failure at each of its
/// steps.
#[test]
fn a_close_that_fails_holds_its_calls_and_is_retried_by_itself() {
    super::run(async {
        let denied = |op, key: &str| Rule::on(op).at(key).times(1).then(Fault::Denied);
        let faults = [
            ("one 403 to the record", Some(denied(Op::PutNew, "datasets/")), ""),
            ("one 403 to the WAL", Some(denied(Op::PutNew, "/wal/")), ""),
            ("one 403 to a manifest", Some(denied(Op::PutNew, "/manifest/")), ""),
            ("a flush that fails", None, "fs.commit.before-flush"),
            ("a flush whose end is not known", None, "fs.commit.after-flush"),
            ("a database that does not close", None, "fs.commit.before-close"),
            ("a close whose end is not known", None, "fs.commit.after-close"),
            ("before the flush", None, "volume.close.flush"),
            ("before the release", None, "volume.close.release"),
        ];
        let mut failed = 0;
        for (fault, rule, step) in faults {
            for unused in [false, true] {
                let (a, b, volume) = two_nodes().await;
                let open = a.open(volume).await;
                // In the journal; when it reaches the store is nobody's concern.
                top::create(&*open.fs, "made").await;
                let served = open.exported.clone();
                drop(open);
                // Where the volume has to be opened again for its journal, that fails once, too.
                a.world.failpoints().set("volume.close.recover", "1*return->off").unwrap();
                match rule.clone() {
                    Some(rule) => a.store.script(rule),
                    None => {
                        a.world.failpoints().set(step, "1*return->off").unwrap();
                    }
                }
                let volumes = &a.world.volumes;
                let closed = match unused {
                    true => volumes.close_for(volume.dataset, CloseReason::Unused).await.map(drop),
                    false => volumes.close(volume.dataset).await,
                };
                failed += usize::from(closed.is_err());
                let answer = served.getattr(served.root()).await;
                assert!(
                    matches!(answer, Err(FsError::Unavailable(_) | FsError::Fenced)),
                    "{fault}: {answer:?}"
                );
                assert!(volumes.get(volume.dataset).is_none(), "{fault}");
                drop(served);
                released(&a, volume, fault).await;
                assert!(has(&b, volume, "made").await, "{fault}, unused: {unused}");
            }
        }
        assert!(failed >= 14, "the faults are met: {failed}");
    });
}

/// As above, and the volume is wanted again before it is closed.
#[test]
fn a_volume_whose_close_failed_is_opened_again() {
    super::run(async {
        for step in [
            "fs.commit.before-flush",
            "fs.commit.before-close",
            "volume.close.flush",
            "volume.close.release",
        ] {
            let pool = Pool::new().await;
            let a = pool.node("node-a").await;
            let volume = a.world.volume("v").await;
            let open = a.open(volume).await;
            top::create(&*open.fs, "made").await;
            drop(open);
            a.world.failpoints().set(step, "1*return->off").unwrap();
            assert!(
                a.world.volumes.close_for(volume.dataset, CloseReason::Unused).await.is_err(),
                "{step}"
            );
            let open = a.open(volume).await;
            assert!(top::has(&*open.fs, "made").await, "{step}");
            assert!(a.owner(volume.dataset).await.is_some(), "{step}");
            patiently(|| open.fs.getattr(open.fs.root())).await.unwrap();
            a.world.close(open).await;
            assert_eq!(a.owner(volume.dataset).await, None, "{step}");
        }
    });
}

/// Claims that arrive late, or are given up: another volume keeps the session's heartbeat alive, so
/// that no lease ends.
#[test]
fn what_a_session_owns_and_does_not_have_open_is_released() {
    super::run(async {
        for fault in ["late", "later", "opening fails", "caller gone"] {
            let pool = Pool::new().await;
            let a = pool
                .node_within("node-a", LEASE, Arc::new(tempfile::tempdir().unwrap()), quick())
                .await;
            let volume = a.world.volume("v").await;
            let other = a.world.volume("other").await;
            let _alive = a.open(other).await;
            let (catalog, volumes) = (&a.world.catalog, &a.world.volumes);
            let failpoints = catalog.bucket().failpoints().clone();
            let record = || Rule::on(Op::PutNew).at("datasets/");
            match fault {
                "late" | "later" => {
                    a.store.script(record().then(Fault::Delay(Duration::from_secs(3600))));
                }
                "opening fails" => failpoints.set("volume.open.claimed", "1*return->off").unwrap(),
                _ => failpoints.set("volume.open.claimed", "pause").unwrap(),
            }
            let opening = volumes.open(catalog, volume.dataset);
            if fault == "caller gone" {
                let claimed = async {
                    while a.owner(volume.dataset).await.is_none() {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                tokio::select! {
                    _ = opening => panic!("it is held"),
                    () = claimed => {}
                }
                failpoints.set("volume.open.claimed", "off").unwrap();
            } else {
                assert!(opening.await.is_err(), "{fault}");
            }
            a.store.heal();
            if fault == "later" {
                // The record is settled before the claim arrives.
                for _ in 0..3000 {
                    if volumes.closing().is_empty() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            while a.store.late() > 0 {
                a.store.arrive(0).await;
            }
            released(&a, volume, fault).await;
            assert!(
                fault != "later" || volumes.closing().is_empty(),
                "what arrived changed nothing"
            );
            let b = pool.node("node-b").await;
            drop(b.open(volume).await);
        }
    });
}

/// The record names a session that knows nothing of it, whatever made it so.
#[test]
fn a_request_to_hand_over_is_answered_by_an_owner_that_does_not_have_it_open() {
    super::run(async {
        let (a, b, volume) = two_nodes().await;
        let other = a.world.volume("other").await;
        let alive = a.open(other).await;
        let mine = a.owner(other.dataset).await;
        a.world
            .catalog
            .update_dataset(volume.dataset, |dataset| {
                dataset.owner = mine.clone();
                Ok(())
            })
            .await
            .unwrap();
        let mailbox = a.world.serve_mailbox(Duration::from_millis(20));
        let theirs = b.world.take(volume, Duration::from_secs(60)).await.unwrap();
        drop((theirs, alive));
        mailbox.stop().await;
    });
}
