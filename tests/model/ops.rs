//! Operations as data.

use crate::reference::Id;
use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;
use zerofs_csi::fs::api::{Caller, Special, Stability};

#[derive(Clone, Debug)]
pub enum How {
    Unchecked { mode: u32, size: Option<u64> },
    Guarded { mode: u32 },
    Exclusive([u8; 8]),
}

#[derive(Clone, Debug)]
pub enum Kind {
    Directory { mode: u32 },
    Special(Special),
}

#[derive(Clone, Debug, Default)]
pub struct Set {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub size: Option<u64>,
    pub mtime: Option<i64>,
    pub wrong_guard: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Closed,
    /// Every file was committed, then the process died.
    Died,
}

#[derive(Clone, Debug)]
pub enum Op {
    Create {
        dir: Id,
        name: Vec<u8>,
        how: How,
    },
    Make {
        dir: Id,
        name: Vec<u8>,
        kind: Kind,
    },
    Remove {
        dir: Id,
        name: Vec<u8>,
    },
    Rmdir {
        dir: Id,
        name: Vec<u8>,
    },
    Rename {
        from: (Id, Vec<u8>),
        to: (Id, Vec<u8>),
    },
    Link {
        file: Id,
        dir: Id,
        name: Vec<u8>,
    },
    SetAttr {
        file: Id,
        set: Set,
    },
    Write {
        file: Id,
        offset: u64,
        len: u32,
        fill: u8,
        stability: Stability,
    },
    Commit {
        file: Id,
    },
    Reopen(Ending),
    /// A snapshot of the current state, kept with a copy of the reference.
    Snapshot,
    /// A clone of the newest snapshot; compared with its reference, changed, and dropped.
    Clone,
}

/// Offsets and sizes near the borders of records of 4 KiB, and beyond a few of them.
fn position(rng: &mut StdRng) -> u64 {
    let record = 4096 * rng.random_range(0..6u64);
    match rng.random_range(0..4) {
        0 => 0,
        1 => record,
        2 => record + rng.random_range(0..4096),
        _ => (record + 4096 * rng.random_range(0..40)).saturating_sub(rng.random_range(0..3)),
    }
}

fn name(rng: &mut StdRng) -> Vec<u8> {
    match rng.random_range(0..9u8) {
        8 => vec![0xff; 255],
        letter => vec![b'a' + letter],
    }
}

fn mode(rng: &mut StdRng) -> u32 {
    [0o644, 0o755, 0o600, 0o1777, 0o2755, 0o4711, 0, 0o777, 0o2777, 0o6775][rng.random_range(0..10)]
}

fn special(rng: &mut StdRng) -> Special {
    match rng.random_range(0..5) {
        0 => Special::Symlink(Bytes::from(vec![b't'; rng.random_range(1..300)])),
        1 => Special::BlockDevice(rng.random(), rng.random()),
        2 => Special::CharDevice(8, 1),
        3 => Special::Fifo,
        _ => Special::Socket,
    }
}

fn set(rng: &mut StdRng) -> Set {
    let mut some = |odds: f64| rng.random_bool(odds);
    let (has_mode, has_uid, has_size, has_mtime, wrong_guard) =
        (some(0.3), some(0.2), some(0.5), some(0.3), some(0.05));
    Set {
        mode: has_mode.then(|| mode(rng)),
        uid: has_uid.then(|| rng.random_range(0..3)),
        size: has_size.then(|| position(rng)),
        mtime: has_mtime.then(|| rng.random_range(0..1i64 << 61)),
        wrong_guard,
    }
}

/// Root more often than each of three users, of whom two share a group and one is in two.
pub fn caller(rng: &mut StdRng) -> Caller {
    let (uid, gid, groups) = match rng.random_range(0..10) {
        0..2 => (1, 1, vec![2, 7]),
        2..4 => (2, 2, vec![]),
        4 => (3, 1, vec![]),
        _ => return Caller::root(),
    };
    Caller { uid, gid, groups, call: None }
}

/// A random operation on objects `0..objects`, dead ones included; `dirs` are directories.
pub fn generate(rng: &mut StdRng, objects: usize, dirs: &[Id]) -> Op {
    let any = |rng: &mut StdRng| rng.random_range(0..objects);
    // Nearly always a directory; otherwise anything, which must fail.
    let dir = |rng: &mut StdRng| {
        if rng.random_bool(0.97) { dirs[rng.random_range(0..dirs.len())] } else { any(rng) }
    };
    match rng.random_range(0..100) {
        0..14 => {
            let how = match rng.random_range(0..4) {
                0 => How::Guarded { mode: mode(rng) },
                1 => How::Exclusive([rng.random_range(0..2); 8]),
                2 => How::Unchecked { mode: mode(rng), size: Some(position(rng)) },
                _ => How::Unchecked { mode: mode(rng), size: None },
            };
            Op::Create { dir: dir(rng), name: name(rng), how }
        }
        14..22 => {
            Op::Make { dir: dir(rng), name: name(rng), kind: Kind::Directory { mode: mode(rng) } }
        }
        22..26 => Op::Make { dir: dir(rng), name: name(rng), kind: Kind::Special(special(rng)) },
        26..33 => Op::Remove { dir: dir(rng), name: name(rng) },
        33..37 => Op::Rmdir { dir: dir(rng), name: name(rng) },
        37..50 => Op::Rename { from: (dir(rng), name(rng)), to: (dir(rng), name(rng)) },
        50..55 => Op::Link { file: any(rng), dir: dir(rng), name: name(rng) },
        55..67 => Op::SetAttr { file: any(rng), set: set(rng) },
        67..90 => {
            let stability = [
                Stability::Unstable,
                Stability::Unstable,
                Stability::DataSync,
                Stability::FileSync,
            ];
            let stability = stability[rng.random_range(0..4)];
            let len = if rng.random_bool(0.1) {
                rng.random_range(0..3)
            } else {
                rng.random_range(0..20_000)
            };
            Op::Write {
                file: any(rng),
                offset: position(rng),
                len,
                fill: rng.random_range(0..5),
                stability,
            }
        }
        90..94 => Op::Commit { file: any(rng) },
        94 => Op::Reopen(Ending::Closed),
        95..97 => Op::Reopen(Ending::Died),
        97 | 98 => Op::Snapshot,
        _ => Op::Clone,
    }
}
