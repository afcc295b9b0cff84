//! The operations of a history.

use crate::model::{Model, Origin};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use zerofs_csi::types::{SnapshotHandle, VolumeHandle};

pub const RECORD: usize = 4 << 10;
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const CUTS: [&str; 4] = ["one", "two", "three", "four"];
const FILES: [&str; 3] = ["x", "y", "z"];
const FILE_RECORDS: usize = 24;
/// Contents that come again, so that chunks are found by deduplication.
const COMMON: u64 = 12;
const DATASETS_MAX: usize = 7;
const SNAPSHOTS_MAX: usize = 9;

#[derive(Clone)]
pub enum Op {
    Create {
        name: &'static str,
        from: Origin,
    },
    Write {
        of: VolumeHandle,
        file: &'static str,
        at: usize,
        seeds: Vec<u64>,
        odd: usize,
        sync: bool,
    },
    Resize {
        of: VolumeHandle,
        file: &'static str,
        size: usize,
    },
    Remove {
        of: VolumeHandle,
        file: &'static str,
    },
    Sync {
        of: VolumeHandle,
    },
    Snapshot {
        of: VolumeHandle,
        name: &'static str,
    },
    /// A file of a snapshot is put back.
    Restore {
        from: SnapshotHandle,
        to: VolumeHandle,
        file: &'static str,
    },
    DeleteSnapshot(SnapshotHandle),
    Delete(VolumeHandle),
    DeleteOpen(VolumeHandle),
    Close(VolumeHandle),
    CloseAll,
    Collect(Where),
    Idle {
        millis: u64,
    },
    Compare,
}

/// A life, short enough for a history that is read by a person.
fn short(of: &VolumeHandle) -> String {
    of.dataset.incarnation.to_string().chars().take(4).collect()
}

fn short_cut(of: &SnapshotHandle) -> String {
    of.snapshot.snapshot.incarnation.to_string().chars().take(4).collect()
}

impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Create { name, from: Origin::Nothing } => write!(f, "create {name}"),
            Self::Create { name, from: Origin::Snapshot(of) } => {
                write!(f, "create {name} from snapshot {}", short_cut(of))
            }
            Self::Create { name, from: Origin::Volume(of) } => {
                write!(f, "create {name} from volume {}", short(of))
            }
            Self::Write { of, file, at, seeds, odd, sync } => {
                let bytes = seeds.len() * RECORD - odd;
                write!(
                    f,
                    "write {bytes} at {at} of {file} in {}{}",
                    short(of),
                    if *sync { ", commit" } else { "" }
                )
            }
            Self::Resize { of, file, size } => {
                write!(f, "resize {file} in {} to {size}", short(of))
            }
            Self::Remove { of, file } => write!(f, "remove {file} in {}", short(of)),
            Self::Sync { of } => write!(f, "commit all of {}", short(of)),
            Self::Snapshot { of, name } => write!(f, "snapshot {name} of {}", short(of)),
            Self::Restore { from, to, file } => {
                write!(f, "restore {file} from {} to {}", short_cut(from), short(to))
            }
            Self::DeleteSnapshot(of) => write!(f, "delete snapshot {}", short_cut(of)),
            Self::Delete(of) => write!(f, "delete {}", short(of)),
            Self::DeleteOpen(of) => write!(f, "delete {} while it is open", short(of)),
            Self::Close(of) => write!(f, "close {}", short(of)),
            Self::CloseAll => write!(f, "close all"),
            Self::Collect(at) => write!(f, "collect {at:?}"),
            Self::Idle { millis } => write!(f, "idle {millis} ms"),
            Self::Compare => write!(f, "compare"),
        }
    }
}

/// Which process collects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// The process that has the volumes open.
    Here,
    /// Another, which sends the owner a request.
    Elsewhere,
}

/// A second event while an operation runs.
#[derive(Clone, Debug)]
pub enum Death {
    /// After this many changes of the store.
    Store(usize),
    /// After this many passes of a durable step.
    Step(String, u64),
}

#[derive(Clone, Debug)]
pub struct Step {
    pub op: Op,
    pub collector: Option<Where>,
    pub death: Option<Death>,
}

fn anywhere(rng: &mut StdRng) -> Where {
    if rng.random_bool(0.6) { Where::Here } else { Where::Elsewhere }
}

/// `steps`: durable steps that this history has met.
pub fn draw(rng: &mut StdRng, model: &Model, steps: &[String]) -> Step {
    let op = op(rng, model);
    let collector = rng.random_bool(0.2).then(|| anywhere(rng));
    let dies =
        rng.random_bool(if matches!(op, Op::Collect(_) | Op::Delete(_) | Op::Create { .. }) {
            0.3
        } else {
            0.12
        });
    let death = dies.then(|| match steps.choose(rng) {
        Some(step) if rng.random_bool(0.4) => Death::Step(step.clone(), rng.random_range(0..3)),
        _ => {
            let most = [3, 12, 40][rng.random_range(0..3)];
            Death::Store(rng.random_range(0..most))
        }
    });
    let quiet = matches!(op, Op::Compare);
    Step { op, collector: collector.filter(|_| !quiet), death: death.filter(|_| !quiet) }
}

fn op(rng: &mut StdRng, model: &Model) -> Op {
    let live = model.datasets.choose(rng).map(|dataset| dataset.handle);
    let cut = model.snapshots.choose(rng).map(|snapshot| snapshot.handle);
    let file = FILES[rng.random_range(0..FILES.len())];
    match (rng.random_range(0..100), live, cut) {
        (_, None, _) | (0..4, ..) if model.datasets.len() < DATASETS_MAX => {
            create(rng, Origin::Nothing)
        }
        (4..14, _, Some(cut)) if model.datasets.len() < DATASETS_MAX => {
            create(rng, Origin::Snapshot(cut))
        }
        (14..17, Some(of), _) if model.datasets.len() < DATASETS_MAX => {
            create(rng, Origin::Volume(of))
        }
        (17..22, Some(of), _) if model.snapshots.len() < SNAPSHOTS_MAX => {
            Op::Snapshot { of, name: CUTS.choose(rng).unwrap() }
        }
        (22..27, _, Some(cut)) => Op::DeleteSnapshot(cut),
        // The oldest is most likely to have clones.
        (27..31, ..) if !model.datasets.is_empty() => Op::Delete(model.datasets[0].handle),
        (31..34, Some(of), _) => Op::Delete(of),
        (34, Some(of), _) => Op::DeleteOpen(of),
        (35..39, Some(of), _) => Op::Close(of),
        (39..42, ..) => Op::CloseAll,
        (42..46, Some(to), Some(from)) => Op::Restore { from, to, file },
        (46..52, Some(of), _) => {
            Op::Resize { of, file, size: rng.random_range(0..FILE_RECORDS * RECORD) }
        }
        (52..55, Some(of), _) => Op::Remove { of, file },
        (55..58, Some(of), _) => Op::Sync { of },
        (58..67, ..) => Op::Collect(anywhere(rng)),
        (67..72, ..) => Op::Idle { millis: [50, 500, 12_000][rng.random_range(0..3)] },
        (72..75, ..) => Op::Compare,
        (_, Some(of), _) => write(rng, of, file),
        (_, None, _) => Op::Idle { millis: 10 },
    }
}

fn create(rng: &mut StdRng, from: Origin) -> Op {
    Op::Create { name: NAMES.choose(rng).unwrap(), from }
}

fn write(rng: &mut StdRng, of: VolumeHandle, file: &'static str) -> Op {
    let records = [1, 2, 4, 12, FILE_RECORDS][rng.random_range(0..5)];
    let at = rng.random_range(0..=FILE_RECORDS - records);
    let seeds = (0..records)
        .map(|_| if rng.random_bool(0.4) { rng.random_range(0..COMMON) } else { rng.random() })
        .collect();
    let odd = if rng.random_bool(0.25) { rng.random_range(1..RECORD) } else { 0 };
    Op::Write { of, file, at: at * RECORD + odd, seeds, odd, sync: rng.random_bool(0.5) }
}

/// The data of a write: extents of noise; an odd one ends in the middle of an extent.
pub fn bytes(seeds: &[u64], odd: usize) -> Vec<u8> {
    let mut bytes = vec![0; seeds.len() * RECORD];
    for (seed, record) in seeds.iter().zip(bytes.chunks_mut(RECORD)) {
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(record);
    }
    bytes.truncate(seeds.len() * RECORD - odd);
    bytes
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.op)?;
        if let Some(at) = self.collector {
            write!(f, ", beside a collector {at:?}")?;
        }
        match &self.death {
            Some(death) => write!(f, ", dying at {death:?}"),
            None => Ok(()),
        }
    }
}
