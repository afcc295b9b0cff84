//! Stamps: what writers on several volumes write, so that a torn cut shows.

use super::World;
use crate::support::files::top;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use zerofs_csi::fs::Fs;
use zerofs_csi::fs::api::*;
use zerofs_csi::types::SnapshotHandle;
use zerofs_csi::volume::RootReader;

/// Bytes of a stamp.
const STAMP: u64 = 8;

/// A shared counter: which stamps were begun and acknowledged when, in one order of all.
#[derive(Default)]
pub struct Stamps {
    clock: AtomicU64,
    /// When each was begun and acknowledged: 0 is not yet.
    pub at: parking_lot::Mutex<Vec<(u64, u64)>>,
    pub stop: AtomicBool,
    pub longest: AtomicU64,
}

impl Stamps {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Writes one stamp after another, each into one of the volumes.
    pub async fn write(&self, writer: usize, files: &[(Arc<Fs>, FileRef)], used: &[AtomicUsize]) {
        let caller = Caller::root();
        let mut turn = writer;
        while !self.stop.load(Ordering::SeqCst) {
            turn += 1;
            let volume = turn % files.len();
            let (fs, file) = &files[volume];
            let stamp = {
                let mut at = self.at.lock();
                at.push((self.tick(), 0));
                at.len() as u64
            };
            let place = used[volume].fetch_add(1, Ordering::SeqCst) as u64 * STAMP;
            let begun = Instant::now();
            let bytes = Bytes::copy_from_slice(&stamp.to_le_bytes());
            fs.write(&caller, *file, place, bytes, Stability::Unstable).await.unwrap();
            self.at.lock()[stamp as usize - 1].1 = self.tick();
            self.longest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Checks that the cut has every stamp that was acknowledged before one of its stamps was
    /// begun; otherwise says which it lacks.
    pub fn check(&self, cut: &[BTreeSet<u64>], written: &[BTreeSet<u64>]) -> Result<(), String> {
        let at = self.at.lock();
        let newest = cut.iter().flatten().max_by_key(|stamp| at[**stamp as usize - 1].0);
        let Some(begun) = newest.map(|stamp| at[*stamp as usize - 1].0) else { return Ok(()) };
        for (volume, (has, all)) in cut.iter().zip(written).enumerate() {
            let lacks = all.difference(has).find(|stamp| {
                let acknowledged = at[**stamp as usize - 1].1;
                acknowledged != 0 && acknowledged < begun
            });
            if let Some(stamp) = lacks {
                return Err(format!("volume {volume} lacks stamp {stamp}; {newest:?} is there"));
            }
        }
        Ok(())
    }
}

pub fn stamps_in(bytes: &[u8]) -> BTreeSet<u64> {
    let stamps =
        bytes.chunks_exact(STAMP as usize).map(|b| u64::from_le_bytes(b.try_into().unwrap()));
    // A hole is a stamp that was not written yet.
    stamps.filter(|stamp| *stamp != 0).collect()
}

pub async fn stamps_of(world: &World, snapshot: SnapshotHandle) -> BTreeSet<u64> {
    let settings = world.volumes.settings();
    let (reader, _) =
        RootReader::snapshot(settings, &world.catalog, snapshot.snapshot).await.unwrap();
    let view = reader.into_view().await.unwrap();
    let bytes = top::content(view.files(), "stamps").await;
    view.close().await.unwrap();
    stamps_in(&bytes)
}
