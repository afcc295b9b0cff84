//! The expected tree: every file's bytes as a function of seeds, every attribute. Pure.

use crate::types::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// Path in the volume, without a leading slash; the root is empty.
pub type Path = String;

/// A piece of a file's data; ranges between pieces are holes. Later ones cover earlier ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub start: u64,
    pub len: u64,
    pub seed: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Dir,
    File {
        size: u64,
        pieces: Vec<Piece>,
    },
    Symlink(String),
    /// A further name of a file.
    HardLink(Path),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelEntry {
    pub what: What,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
}

/// A whole tree, the root included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelTree {
    pub entries: BTreeMap<Path, ModelEntry>,
}

pub const FILES: usize = 1000;
const MIB: u64 = 1 << 20;
/// Some day in 2025, so that times that were not set stand out.
const EPOCH_SECS: i64 = 1_750_000_000;

fn time(rng: &mut StdRng) -> Timestamp {
    Timestamp::from_parts(
        EPOCH_SECS + rng.random_range(0..10_000_000),
        rng.random_range(0..1_000_000_000),
    )
}

/// Sizes from 0 bytes to 64 MiB, most of them small, about 170 MB together.
fn size_of(i: usize, rng: &mut StdRng) -> u64 {
    match i {
        0 => 64 * MIB,
        1 => 16 * MIB + 1,
        2..20 => 0,
        20..40 => 1 + i as u64,
        40..50 => rng.random_range(MIB..4 * MIB),
        50..150 => rng.random_range(64 << 10..MIB),
        150..400 => rng.random_range(4 << 10..64 << 10),
        _ => rng.random_range(1..4 << 10),
    }
}

fn pieces(i: usize, size: u64, rng: &mut StdRng) -> Vec<Piece> {
    let seed = rng.random();
    if i == 1 || i % 97 == 5 {
        // Sparse: data at both ends, a hole between.
        let head = (size / 8).min(100_000);
        let tail = size - (size / 5).min(50_000);
        return vec![
            Piece { start: 0, len: head, seed },
            Piece { start: tail, len: size - tail, seed: seed ^ 1 },
        ];
    }
    if size == 0 { vec![] } else { vec![Piece { start: 0, len: size, seed }] }
}

impl ModelTree {
    /// The first state: 1,000 files in nested folders, symbolic links, hard links, sparse files.
    pub fn generate(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut tree = Self { entries: BTreeMap::new() };
        tree.add(String::new(), What::Dir, 0o755, &mut rng);
        let mut dirs = vec![String::new()];
        for i in 0..60 {
            let parent = dirs[rng.random_range(dirs.len().saturating_sub(12)..dirs.len())].clone();
            let path = join(&parent, &format!("dir{i:02}"));
            tree.add(path.clone(), What::Dir, if i % 7 == 0 { 0o2775 } else { 0o755 }, &mut rng);
            dirs.push(path);
        }
        for i in 0..FILES {
            let size = size_of(i, &mut rng);
            let path = join(&dirs[rng.random_range(0..dirs.len())], &name(i));
            let pieces = pieces(i, size, &mut rng);
            let mode = [0o644, 0o600, 0o755, 0o4755, 0o444][i % 5];
            tree.add(path, What::File { size, pieces }, mode, &mut rng);
        }
        let files = tree.files();
        for i in 0..40 {
            let target = &files[rng.random_range(0..files.len())];
            let link = join(&dirs[rng.random_range(0..dirs.len())], &format!("link{i:02}"));
            if i % 2 == 0 {
                tree.add(link, What::Symlink(format!("/{target}")), 0o777, &mut rng);
            } else {
                let of = tree.entries[target].clone();
                tree.entries
                    .insert(link, ModelEntry { what: What::HardLink(target.clone()), ..of });
            }
        }
        tree
    }

    fn add(&mut self, path: Path, what: What, mode: u32, rng: &mut StdRng) {
        let owner = [0, 1000, 2000][rng.random_range(0..3)];
        let entry = ModelEntry { what, mode, uid: owner, gid: owner, mtime: time(rng) };
        self.entries.insert(path, entry);
    }

    /// Names of files, hard links excluded.
    pub fn files(&self) -> Vec<Path> {
        self.entries
            .iter()
            .filter(|(_, e)| matches!(e.what, What::File { .. }))
            .map(|(p, _)| p.clone())
            .collect()
    }

    /// Returns the number of names of a file.
    pub fn nlink(&self, path: &str) -> u32 {
        let target = self.target(path);
        let others = self
            .entries
            .values()
            .filter(|e| matches!(&e.what, What::HardLink(of) if *of == target));
        1 + others.count() as u32
    }

    /// The name that holds the data.
    pub fn target(&self, path: &str) -> Path {
        match self.entries.get(path).map(|e| &e.what) {
            Some(What::HardLink(of)) => of.clone(),
            _ => path.to_owned(),
        }
    }

    pub fn children(&self, dir: &str) -> Vec<Path> {
        self.entries.keys().filter(|p| !p.is_empty() && parent(p) == dir).cloned().collect()
    }

    pub fn bytes(&self) -> u64 {
        let of = |e: &ModelEntry| match &e.what {
            What::File { pieces, .. } => pieces.iter().map(|p| p.len).sum(),
            _ => 0,
        };
        self.entries.values().map(of).sum()
    }
}

fn name(i: usize) -> String {
    match i % 50 {
        7 => format!("file {i:04} with spaces"),
        13 => format!("ファイル{i:04}"),
        21 => format!("{i:04}{}", "long".repeat(60)),
        _ => format!("file{i:04}.bin"),
    }
}

pub fn join(dir: &str, name: &str) -> Path {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

pub fn leaf(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// A change of a tree, to be made to the volume and to its model alike.
#[derive(Clone, Debug)]
pub enum Change {
    /// Bytes in a file, perhaps past its end.
    Overwrite {
        path: Path,
        piece: Piece,
    },
    Truncate {
        path: Path,
        size: u64,
    },
    Remove {
        path: Path,
    },
    Create {
        path: Path,
        size: u64,
        seed: u64,
    },
    Chmod {
        path: Path,
        mode: u32,
    },
    Rename {
        from: Path,
        to: Path,
    },
}

/// The changes after the snapshot: overwrites, truncations, deletions, renames, new files.
pub fn changes(tree: &ModelTree, seed: u64) -> Vec<Change> {
    let mut rng = StdRng::seed_from_u64(seed);
    // Hard links are left alone, so that a change has one name.
    let linked: Vec<Path> = tree
        .entries
        .values()
        .filter_map(|e| match &e.what {
            What::HardLink(of) => Some(of.clone()),
            _ => None,
        })
        .collect();
    let free: Vec<Path> = tree.files().into_iter().filter(|path| !linked.contains(path)).collect();
    let mut changes = Vec::new();
    for (i, path) in free.iter().enumerate() {
        let size = match &tree.entries[path].what {
            What::File { size, .. } => *size,
            _ => 0,
        };
        match i % 10 {
            0 | 1 => {
                let start = rng.random_range(0..=size);
                let len = rng.random_range(1..=100_000);
                changes.push(Change::Overwrite {
                    path: path.clone(),
                    piece: Piece { start, len, seed: rng.random() },
                });
            }
            2 => changes.push(Change::Truncate { path: path.clone(), size: size / 2 }),
            3 => changes.push(Change::Remove { path: path.clone() }),
            4 => changes.push(Change::Chmod { path: path.clone(), mode: 0o640 }),
            5 => changes.push(Change::Rename { from: path.clone(), to: format!("{path}~") }),
            _ => {}
        }
    }
    for i in 0..50 {
        changes.push(Change::Create {
            path: format!("added{i:02}"),
            size: rng.random_range(0..200_000),
            seed: rng.random(),
        });
    }
    changes
}

impl Change {
    pub fn apply(&self, tree: &mut ModelTree, at: Timestamp) {
        match self {
            Self::Overwrite { path, piece } => {
                if let Some(ModelEntry { what: What::File { size, pieces }, mtime, .. }) =
                    tree.entries.get_mut(path)
                {
                    *size = (*size).max(piece.start + piece.len);
                    pieces.push(piece.clone());
                    *mtime = at;
                }
            }
            Self::Truncate { path, size: cut } => {
                if let Some(ModelEntry { what: What::File { size, pieces }, mtime, .. }) =
                    tree.entries.get_mut(path)
                {
                    *size = *cut;
                    pieces.retain(|p| p.start < *cut);
                    pieces.iter_mut().for_each(|p| p.len = p.len.min(*cut - p.start));
                    *mtime = at;
                }
            }
            Self::Remove { path } => {
                tree.entries.remove(path);
            }
            Self::Create { path, size, seed } => {
                let pieces = if *size == 0 {
                    vec![]
                } else {
                    vec![Piece { start: 0, len: *size, seed: *seed }]
                };
                let what = What::File { size: *size, pieces };
                tree.entries.insert(
                    path.clone(),
                    ModelEntry { what, mode: 0o644, uid: 0, gid: 0, mtime: at },
                );
            }
            Self::Chmod { path, mode } => {
                if let Some(entry) = tree.entries.get_mut(path) {
                    entry.mode = *mode;
                }
            }
            Self::Rename { from, to } => {
                if let Some(entry) = tree.entries.remove(from) {
                    tree.entries.insert(to.clone(), entry);
                }
            }
        }
    }
}

/// Bytes `start..start + len` of a file.
pub fn content(size: u64, pieces: &[Piece], start: u64, len: usize) -> Vec<u8> {
    let len = usize::try_from(size.saturating_sub(start)).unwrap_or(usize::MAX).min(len);
    let mut bytes = vec![0; len];
    for piece in pieces {
        let from = piece.start.max(start);
        let to = (piece.start + piece.len).min(start + len as u64);
        if from < to {
            let range = (from - start) as usize..(to - start) as usize;
            if let Some(bytes) = bytes.get_mut(range) {
                fill(piece.seed, from, bytes);
            }
        }
    }
    bytes
}

/// A stream of bytes that is a function of the seed and the position. Every other 4 KiB compresses
/// well.
fn fill(seed: u64, at: u64, bytes: &mut [u8]) {
    let mut word = [0; 8];
    for (i, byte) in bytes.iter_mut().enumerate() {
        let position = at + i as u64;
        if i == 0 || position.is_multiple_of(8) {
            let block = position / 8;
            let index = if (position / 4096).is_multiple_of(2) { block } else { block % 16 };
            word = mix(seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes();
        }
        *byte = word[(position % 8) as usize];
    }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_does_not_depend_on_how_it_is_cut() {
        let pieces =
            [Piece { start: 3, len: 9000, seed: 1 }, Piece { start: 5000, len: 10, seed: 2 }];
        let whole = content(12_000, &pieces, 0, 20_000);
        assert_eq!(whole.len(), 12_000);
        assert!(whole[..3].iter().all(|b| *b == 0) && whole[9003..].iter().all(|b| *b == 0));
        let cut: Vec<u8> =
            (0..12_000).step_by(777).flat_map(|at| content(12_000, &pieces, at, 777)).collect();
        assert!(cut == whole);
    }

    #[test]
    fn the_tree_is_as_large_as_it_says() {
        let tree = ModelTree::generate(1);
        assert_eq!(tree.files().len(), FILES);
        assert!((120 << 20..320 << 20).contains(&tree.bytes()), "{}", tree.bytes());
        assert_eq!(ModelTree::generate(1), tree);
        let mut changed = tree.clone();
        changes(&tree, 2)
            .iter()
            .for_each(|change| change.apply(&mut changed, Timestamp::from_nanos(5)));
        assert!(changed != tree && changed.files().len() < tree.files().len());
        assert!(
            tree.entries
                .keys()
                .all(|path| path.is_empty() || tree.entries.contains_key(parent(path)))
        );
    }
}
