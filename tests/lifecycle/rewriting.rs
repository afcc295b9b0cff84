//! Packs of which most is dead are rewritten (R12): space comes back under volumes that are
//! open, and under snapshots.

use super::{World, noise};
use crate::support::files::{root, top, write_at};
use std::sync::Arc;
use std::time::Duration;
use zerofs_csi::control::Source;
use zerofs_csi::fs::api::FileSystem;
use zerofs_csi::types::VolumeHandle;
use zerofs_csi::volume::{Volume, VolumeGuard};

const RECORD: usize = 64 << 10;
const RECORDS: usize = 384;

fn content() -> Vec<u8> {
    noise(0, RECORD * RECORDS)
}

/// Reads with nothing in memory: what was rewritten away is not hidden by a cache.
async fn read(world: &World, volume: VolumeHandle) -> Vec<u8> {
    let cold = world.beside("node-cold");
    cold.read(volume).await.remove("a").unwrap()
}

/// The same of a volume that stays open, by way of a snapshot.
async fn read_cold(world: &World, open: &Volume) -> Vec<u8> {
    let volume = VolumeHandle { pool: open.pool, dataset: open.dataset.id() };
    let cut = world.csi_snapshot(volume, "cold").await;
    let clone = world.copy("cold", Source::Snapshot(cut)).await;
    let content = read(world, clone).await;
    world.controller.delete_volume(clone).await.unwrap();
    world.controller.delete_snapshot(cut).await.unwrap();
    content
}

/// Overwrites all records but every fourth, so that they leave their packs mostly dead, one record
/// at a time.
async fn overwrite(volume: &Volume, content: &mut [u8], seed: u64) {
    let file = top::child(&*volume.fs, "a").await.unwrap().file;
    for n in (0..RECORDS).filter(|n| !(n + seed as usize).is_multiple_of(4)) {
        let new = noise(seed * 1000 + n as u64, RECORD);
        content[n * RECORD..(n + 1) * RECORD].copy_from_slice(&new);
        write_at(&*volume.fs, file, (n * RECORD) as u64, &new).await;
    }
    volume.fs.commit(&root(), file, 0, 0).await.unwrap();
}

/// A write in the middle of a record that stayed: its chunk comes to have two references.
async fn split(volume: &Volume, content: &mut [u8]) {
    let file = top::child(&*volume.fs, "a").await.unwrap().file;
    for n in (0..RECORDS).step_by(8) {
        let at = n * RECORD + 20_000;
        content[at..at + 100].fill(7);
        write_at(&*volume.fs, file, at as u64, &[7; 100]).await;
    }
    volume.fs.commit(&root(), file, 0, 0).await.unwrap();
}

/// A volume whose packs are mostly dead, open, and what is in it.
async fn mostly_dead(world: &World) -> (VolumeHandle, VolumeGuard, Vec<u8>) {
    let volume = world.volume("v").await;
    let mut content = content();
    world.write(volume, "a", &content).await;
    let open = world.open(volume).await;
    overwrite(&open, &mut content, 1).await;
    (volume, open, content)
}

#[test]
fn a_released_volumes_space_comes_back() {
    super::run(async {
        let steps = [
            "collect.rewrite-pending",
            "collect.sealed",
            "chunk.before-rewrite",
            "chunk.rewritten",
            "volume.maintenance.claimed",
        ];
        for step in [None].into_iter().chain(steps.map(Some)) {
            Box::pin(released(step)).await;
        }
    });
}

async fn released(step: Option<&'static str>) {
    let world = World::new().await;
    let (volume, open, content) = mostly_dead(&world).await;
    world.close(open).await;
    let before = world.stored().await;
    if let Some(step) = step {
        world.failpoints().set(step, "1*return").unwrap();
        let failed = Box::pin(world.collector().collect()).await;
        assert!(failed.is_err() || failed.is_ok_and(|done| !done.retained.is_empty()), "{step:?}");
    }
    let done = world.collect().await;
    let after = world.stored().await;
    assert!(done.rewritten > 0 || step.is_some(), "{done:?}");
    // The bytes in use, and the packs' overhead.
    assert!(
        after < content.len() as u64 * 11 / 10,
        "{step:?}: {before} to {after} for {}: {done:?}",
        content.len()
    );
    assert!(read(&world, volume).await == content, "{step:?}");
    let again = world.collect().await;
    assert_eq!((again.rewritten, again.packs), (0, 0), "{step:?}: nothing is left to do");
    world.controller.delete_volume(volume).await.unwrap();
    world.collect().await;
    world.assert_empty("rewritten").await;
}

#[test]
fn an_open_volume_seals_its_packs_and_goes_on() {
    super::run(async {
        let world = World::new().await;
        let (volume, open, mut content) = mostly_dead(&world).await;
        // Asked by its own process, and by another one through its mailbox.
        let other = world.beside("node-b");
        let mailbox = world.serve_mailbox(Duration::from_millis(20));
        // The last write is of what was stored and overwritten before: it is known still, and must
        // not be found in packs that were rewritten without it.
        for (seed, collector) in [(2, &other), (1, &world)] {
            let done = collector.collect().await;
            assert!(done.rewritten > 0 && done.retained.is_empty(), "{done:?}");
            // Packs of this opening, too; and chunks that stayed are split although their pack is
            // sealed.
            overwrite(&open, &mut content, seed).await;
            split(&open, &mut content).await;
        }
        assert!(read_cold(&world, &open).await == content);
        world.collect().await;
        assert!(world.stored().await < content.len() as u64 * 12 / 10);
        world.close(open).await;
        mailbox.stop().await;
        assert!(read(&world, volume).await == content);
    });
}

#[test]
fn what_a_snapshot_or_a_clone_uses_stays() {
    super::run(async {
        let world = World::new().await;
        let volume = world.volume("v").await;
        let first = content();
        world.write(volume, "a", &first).await;
        let cut = world.csi_snapshot(volume, "cut").await;
        let clone = world.copy("clone", Source::Snapshot(cut)).await;
        let (mut ours, mut theirs) = (first.clone(), first.clone());
        for (handle, content, seed) in [(volume, &mut ours, 1), (clone, &mut theirs, 2)] {
            let open = world.open(handle).await;
            overwrite(&open, content, seed).await;
            world.close(open).await;
        }
        let held = world.collect().await;
        assert_eq!(held.rewritten, 0, "the snapshot uses all of it: {held:?}");
        assert!(read(&world, volume).await == ours && read(&world, clone).await == theirs);
        let second = world.copy("second", Source::Snapshot(cut)).await;
        assert!(read(&world, second).await == first);
        world.controller.delete_volume(second).await.unwrap();
        // The clone's database still reads the snapshot's.
        world.controller.delete_snapshot(cut).await.unwrap();
        world.controller.delete_volume(clone).await.unwrap();
        world.collect().await;
        assert!(world.stored().await < ours.len() as u64 * 11 / 10);
        assert!(read(&world, volume).await == ours);
        world.controller.delete_volume(volume).await.unwrap();
        world.collect().await;
        world.assert_empty("a family whose packs were rewritten").await;
    });
}

/// Others keep most of the bucket's throughput meanwhile, and the log shows the progress.
#[test]
fn a_collection_keeps_to_its_rate_and_says_how_far_it_is() {
    super::run(async {
        let world = World::new().await;
        let (volume, open, content) = mostly_dead(&world).await;
        world.close(open).await;
        let said = Arc::new(std::sync::Mutex::new(Vec::new()));
        let its = said.clone();
        let pool = world.pool();
        // The packs that are mostly dead have 24 MiB.
        let rate = 8 << 20;
        let collector = world.controller.collector(pool).at_rate(Some(rate));
        let collector = collector.reporting(move |done| its.lock().unwrap().push(done.rewritten));
        let begun = std::time::Instant::now();
        let done = collector.collect().await.unwrap();
        let least = Duration::from_secs_f64(done.rewritten_bytes as f64 / rate as f64);
        assert!(done.rewritten > 0 && least > Duration::from_secs(1), "{done:?}");
        assert!(begun.elapsed() >= least, "{:?} instead of {least:?}", begun.elapsed());
        let said = said.lock().unwrap().clone();
        assert_eq!(said.last(), Some(&done.rewritten));
        assert!((1..=done.rewritten).all(|n| said.contains(&n)), "{said:?}");
        assert!(world.read(volume).await["a"] == content);
    });
}
