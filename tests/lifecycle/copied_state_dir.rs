//! A state folder that was copied with the image of its machine: two machines that look like one,
//! and are not; and one that was started anew (R26).

use super::{Driven, World};
use crate::leases::{LEASE, Node, Pool};
use crate::support::clock::Booted;
use crate::support::files::top;
use crate::support::world::until_passed;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use zerofs_csi::fs::FsError;
use zerofs_csi::types::VolumeHandle;
use zerofs_csi::volume::{Clock, VolumeError, VolumeGuard};

/// A process of a machine, on a folder of journals.
async fn process(pool: &Pool, folder: &Path, boot: &'static str, lease: Duration) -> Node {
    let node = pool.node("node-a").await;
    let clock = Arc::new(Driven::default());
    let booted = Arc::new(Booted { clock: clock.clone(), boot });
    let world = World::builder("node-a").journals(folder).clock(booted).lease(lease);
    Node { world: world.on(node.world.catalog.clone()), clock, ..node }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let to = to.join(entry.file_name().unwrap());
        if entry.is_dir() { copy(&entry, &to) } else { assert!(std::fs::copy(&entry, &to).is_ok()) }
    }
}

/// As a machine that loses its power: nothing that it sends reaches the store.
fn lose_power(node: Node, open: VolumeGuard) {
    node.store.die();
    open.fs.give_up(FsError::Fenced);
    drop((node, open));
}

#[test]
fn a_copied_state_folder_gives_no_right_to_the_volumes_of_the_first() {
    super::run(async {
        let (pool, folders) = (Pool::new().await, tempfile::tempdir().unwrap());
        let (first, second) = (folders.path().join("first"), folders.path().join("second"));
        // A short lease on a clock that stands: it is renewed often, and never expires.
        let a = process(&pool, &first, "boot-1", Duration::from_millis(600)).await;
        let volume = a.world.volume("v").await;
        let open = a.open(volume).await;
        top::create(&*open.fs, "journaled").await;
        copy(&first, &second);
        let copied = process(&pool, &second, "boot-2", LEASE).await;
        let refused = copied.world.volumes.open(&copied.world.catalog, volume.dataset).await;
        assert!(matches!(refused, Err(VolumeError::Owned { .. })), "the first is alive");
        top::write(&*open.fs, "later", b"x").await;
        assert_eq!(
            copied.world.volumes.remove_obsolete_journals(&copied.world.catalog).await.unwrap(),
            0
        );
    });
}

/// Retries: a volume that was given up unlocks its journal only after a while.
async fn open(node: &Node, volume: VolumeHandle) -> VolumeGuard {
    crate::two_owners::reopened(node, volume).await
}

#[test]
fn after_a_reboot_a_lease_is_waited_for_and_after_a_restart_it_is_not() {
    super::run(async {
        let (pool, folder) = (Pool::new().await, tempfile::tempdir().unwrap());
        let before = process(&pool, folder.path(), "boot-1", LEASE).await;
        let volume = before.world.volume("v").await;
        let opened = before.open(volume).await;
        top::create(&*opened.fs, "before the power went").await;
        lose_power(before, opened);

        let rebooted = process(&pool, folder.path(), "boot-2", LEASE).await;
        let (opened, waited) = tokio::join!(open(&rebooted, volume), async {
            // Time goes on until it is open.
            let mut waited = Duration::ZERO;
            while rebooted.world.volumes.get(volume.dataset).is_none() {
                tokio::time::sleep(Duration::from_millis(100)).await;
                rebooted.clock.advance(Duration::from_secs(1));
                waited += Duration::from_secs(1);
            }
            waited
        });
        assert!(waited >= LEASE, "another machine might have been alive: {waited:?}");
        assert!(top::has(&*opened.fs, "before the power went").await);
        top::create(&*opened.fs, "before the crash").await;
        lose_power(rebooted, opened);

        let restarted = process(&pool, folder.path(), "boot-2", LEASE).await;
        let opened = open(&restarted, volume).await;
        assert_eq!(restarted.clock.now(), Duration::ZERO);
        for file in ["before the power went", "before the crash"] {
            assert!(top::has(&*opened.fs, file).await, "{file}");
        }
    });
}

/// The owner renews its lease between the listing of its heartbeats and the reading of the newest.
#[test]
fn a_heartbeat_that_is_replaced_while_it_is_read_is_no_sign_of_an_end() {
    super::run(async {
        let (pool, folders) = (Pool::new().await, tempfile::tempdir().unwrap());
        let (first, second) = (folders.path().join("first"), folders.path().join("second"));
        let a = process(&pool, &first, "boot-1", Duration::from_millis(300)).await;
        let volume = a.world.volume("v").await;
        let owned = a.open(volume).await;
        copy(&first, &second);
        let copied = process(&pool, &second, "boot-2", LEASE).await;
        let failpoints = copied.world.failpoints();
        failpoints.set("catalog.heartbeat.listed", "1*pause->off").unwrap();
        let opening = tokio::spawn({
            let (volumes, catalog) = (copied.world.volumes.clone(), copied.world.catalog.clone());
            async move { volumes.open(&catalog, volume.dataset).await.map(drop) }
        });
        until_passed(failpoints, "catalog.heartbeat.listed", 0).await;
        // Longer than the interval of its renewals.
        tokio::time::sleep(Duration::from_millis(500)).await;
        failpoints.set("catalog.heartbeat.listed", "off").unwrap();
        let refused = opening.await.unwrap();
        assert!(matches!(refused, Err(VolumeError::Owned { .. })), "{refused:?}");
        top::create(&*owned.fs, "still mine").await;
        owned.fs.sync().await.unwrap();
    });
}
