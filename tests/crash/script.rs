//! Scripts of calls, and the file system that must result. A script is data: the state before and
//! after each of its calls is known.

use std::collections::BTreeMap;

/// A call. Paths are relative to the root; every call is sent with the number of its place in the
/// script, so that a repetition is recognised (R20).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Create(&'static str),
    Mkdir(&'static str),
    Symlink(&'static str, &'static str),
    /// Writes bytes of a seed at an offset, and commits.
    Write {
        path: &'static str,
        at: usize,
        len: usize,
        seed: u64,
    },
    /// Writes and does not commit: until the next `Write` either bytes may be there.
    Loose {
        path: &'static str,
        at: usize,
        len: usize,
        seed: u64,
    },
    /// Many small files with a commit each, which the file system keeps in its database first:
    /// `files` of `len` bytes in a folder.
    Small {
        folder: &'static str,
        files: usize,
        len: usize,
    },
    Truncate(&'static str, usize),
    Mode(&'static str, u32),
    Rename(&'static str, &'static str),
    Link(&'static str, &'static str),
    Remove(&'static str),
    Rmdir(&'static str),
    /// Waits until the background has reached a step; not for ever, because it may be the one that
    /// fails.
    Until(&'static str),
    /// Closes and opens again.
    Reopen,
    Expand(u64),
    /// Gives the volume this inode quota.
    Inodes(u64),
    /// Gives the volume a snapshot policy, or takes it away.
    Policy(Policy),
    Snapshot(&'static str),
    /// A volume from a snapshot, by name; it is compared with what the snapshot was taken of.
    Clone(&'static str, &'static str),
    /// A volume from the volume itself.
    Copy(&'static str),
    Delete(&'static str),
    DeleteSnapshot(&'static str),
    Collect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Set,
    Deleted,
}

/// The durability of an answered call (`sync=standard`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Survives the process.
    Applied,
    /// Survives the node.
    Durable,
}

impl Op {
    pub fn promise(&self) -> Promise {
        match self {
            Self::Create(_)
            | Self::Mkdir(_)
            | Self::Symlink(..)
            | Self::Truncate(..)
            | Self::Mode(..) => Promise::Applied,
            // Nothing is promised of it, but not by its own failing either: the tree tolerates
            // both.
            Self::Loose { .. } | Self::Until(_) => Promise::Applied,
            _ => Promise::Durable,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    Dir {
        mode: u32,
    },
    /// `loose`: what it may also hold, in any mixture of bytes.
    File {
        mode: u32,
        data: Vec<u8>,
        loose: Option<Vec<u8>>,
    },
    Link(String),
}

pub type Tree = BTreeMap<String, Object>;

/// Bytes that are a function of a seed and hardly compress.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| ((i + 1).wrapping_mul(seed | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

pub fn small_name(n: usize) -> String {
    format!("small {n}")
}

fn overwrite(data: &mut Vec<u8>, at: usize, len: usize, seed: u64) {
    data.resize(data.len().max(at + len), 0);
    data[at..at + len].copy_from_slice(&bytes(seed, len));
}

/// Applies a call to a tree.
pub fn apply(tree: &mut Tree, op: &Op) {
    let file = |data| Object::File { mode: 0o644, data, loose: None };
    match op {
        Op::Create(path) => drop(tree.insert((*path).into(), file(Vec::new()))),
        Op::Mkdir(path) => drop(tree.insert((*path).into(), Object::Dir { mode: 0o755 })),
        Op::Symlink(path, target) => {
            drop(tree.insert((*path).into(), Object::Link((*target).into())));
        }
        Op::Write { path, at, len, seed } => {
            if let Some(Object::File { data, loose, .. }) = tree.get_mut(*path) {
                *data = loose.take().unwrap_or_else(|| data.clone());
                overwrite(data, *at, *len, *seed);
            }
        }
        Op::Loose { path, at, len, seed } => {
            if let Some(Object::File { data, loose, .. }) = tree.get_mut(*path) {
                overwrite(loose.get_or_insert_with(|| data.clone()), *at, *len, *seed);
            }
        }
        Op::Small { folder, files, len } => {
            (0..*files).for_each(|n| {
                drop(
                    tree.insert(format!("{folder}/{}", small_name(n)), file(bytes(n as u64, *len))),
                );
            });
        }
        Op::Truncate(path, size) => {
            if let Some(Object::File { data, .. }) = tree.get_mut(*path) {
                data.resize(*size, 0);
            }
        }
        Op::Mode(path, to) => {
            if let Some(Object::File { mode, .. } | Object::Dir { mode }) = tree.get_mut(*path) {
                *mode = *to;
            }
        }
        Op::Rename(from, to) => {
            let object = tree.remove(*from).expect("the script renames what is there");
            tree.insert((*to).into(), object);
        }
        Op::Link(from, to) => drop(tree.insert((*to).into(), tree[*from].clone())),
        Op::Remove(path) | Op::Rmdir(path) => drop(tree.remove(*path)),
        _ => {}
    }
}

/// True if `found` is one of the states that the tree allows.
pub fn agrees(tree: &Tree, found: &Tree) -> bool {
    tree.len() == found.len()
        && tree
            .iter()
            .zip(found)
            .all(|((path, object), (at, there))| path == at && may_be(object, there))
}

fn may_be(object: &Object, there: &Object) -> bool {
    match (object, there) {
        (
            Object::File { mode, data, loose: Some(loose) },
            Object::File { mode: there_mode, data: there, .. },
        ) => {
            let byte = |i: usize, b: u8| {
                data.get(i).copied().unwrap_or(0) == b || loose.get(i) == Some(&b)
            };
            mode == there_mode
                && (data.len().min(loose.len())..=data.len().max(loose.len()))
                    .contains(&there.len())
                && there.iter().enumerate().all(|(i, b)| byte(i, *b))
        }
        (object, there) => object == there,
    }
}

/// The first difference, for a failed test's message.
pub fn difference(tree: &Tree, found: &Tree) -> String {
    let short = |object: Option<&Object>| match object {
        Some(Object::File { mode, data, loose }) => {
            format!(
                "a file of {} bytes, mode {mode:o}, loose {:?}",
                data.len(),
                loose.as_ref().map(Vec::len)
            )
        }
        other => format!("{other:?}"),
    };
    let mut paths: Vec<&String> = tree.keys().chain(found.keys()).collect();
    paths.sort();
    let differs = |path: &&&String| match (tree.get(**path), found.get(**path)) {
        (Some(object), Some(there)) => !may_be(object, there),
        _ => true,
    };
    match paths.iter().find(differs) {
        Some(path) => format!(
            "{path}: expected {}, found {}",
            short(tree.get(*path)),
            short(found.get(*path))
        ),
        None => "no difference".into(),
    }
}

/// A script with the state before each of its calls, and after the last.
#[derive(Clone, Debug)]
pub struct Script {
    pub ops: Vec<Op>,
    pub trees: Vec<Tree>,
}

impl Script {
    fn new(ops: Vec<Op>) -> Self {
        let mut trees = vec![Tree::new()];
        for op in &ops {
            let mut tree = trees.last().expect("there is a first").clone();
            apply(&mut tree, op);
            trees.push(tree);
        }
        Self { ops, trees }
    }

    /// The tree that a snapshot was taken of.
    pub fn snapshot(&self, name: &str) -> &Tree {
        let at = self
            .ops
            .iter()
            .position(|op| matches!(op, Op::Snapshot(n) if *n == name))
            .expect("the script takes it");
        &self.trees[at]
    }

    pub fn by_name(name: &str) -> Self {
        match name {
            "life" => life(),
            "small" => small(),
            "short" => short(),
            other => panic!("there is no script {other}"),
        }
    }
}

/// The scripts; a step is met in the first that passes it.
pub const SCRIPTS: &[&str] = &["life", "small"];

/// Longer than the 64 records of 4 KiB that a truncation deletes at once: it leaves a mask, and a
/// removal has something to reclaim.
const BIG: usize = 300_000;

/// Everything a volume goes through.
fn life() -> Script {
    Script::new(vec![
        Op::Create("a"),
        Op::Write { path: "a", at: 0, len: 5_000, seed: 1 },
        Op::Mkdir("d"),
        Op::Create("d/big"),
        Op::Write { path: "d/big", at: 0, len: BIG, seed: 2 },
        Op::Symlink("l", "d/big"),
        Op::Mode("a", 0o600),
        Op::Link("a", "d/hard"),
        Op::Rename("a", "b"),
        Op::Loose { path: "d/big", at: 10_000, len: 20_000, seed: 3 },
        Op::Create("d/gone"),
        Op::Write { path: "d/gone", at: 4_000, len: BIG, seed: 4 },
        Op::Snapshot("s"),
        Op::Write { path: "d/big", at: 100, len: 9_000, seed: 5 },
        Op::Truncate("d/big", 3_000),
        Op::Remove("d/gone"),
        Op::Until("fs.content.after-reclaim"),
        Op::Until("fs.content.before-unmask"),
        Op::Clone("clone", "s"),
        Op::Expand(1 << 30),
        Op::Inodes(1 << 20),
        Op::Policy(Policy::Set),
        Op::Reopen,
        Op::Write { path: "d/big", at: 2_000, len: 100_000, seed: 6 },
        Op::Rename("d/big", "b"),
        Op::Copy("copy"),
        Op::Remove("d/hard"),
        Op::Rmdir("d"),
        Op::Delete("clone"),
        Op::DeleteSnapshot("s"),
        Op::Collect,
        Op::Policy(Policy::Deleted),
        Op::Truncate("b", 0),
        Op::Write { path: "b", at: 70_000, len: 50_000, seed: 7 },
        Op::Delete("copy"),
        Op::Collect,
    ])
}

/// Small data rides in the database first and moves into packs when there is enough of it: 4 MiB.
fn small() -> Script {
    Script::new(vec![
        Op::Mkdir("d"),
        Op::Small { folder: "d", files: 76, len: 56 << 10 },
        Op::Until("fs.content.before-migrate"),
        Op::Snapshot("s"),
        Op::Reopen,
        Op::Clone("clone", "s"),
        Op::Delete("clone"),
        Op::DeleteSnapshot("s"),
        Op::Collect,
    ])
}

/// A little of everything that is stored: for what does not depend on how it came about.
fn short() -> Script {
    Script::new(vec![
        Op::Create("a-name-to-be-hidden"),
        Op::Write { path: "a-name-to-be-hidden", at: 0, len: 5_000, seed: 1 },
        Op::Mkdir("d"),
        Op::Create("d/big"),
        Op::Write { path: "d/big", at: 0, len: 120_000, seed: 2 },
        Op::Reopen,
        Op::Symlink("l", "d/big"),
        Op::Rename("d/big", "big"),
        Op::Create("last"),
        Op::Write { path: "last", at: 0, len: 80_000, seed: 3 },
    ])
}
