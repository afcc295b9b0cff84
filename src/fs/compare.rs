//! Finds the differences between two states of one file system: two snapshots, or a snapshot and
//! the live state. Reads inodes, directories and the extents of files whose ctime differs; never
//! data. The mtime proves nothing, because a client can set it back.
//!
//! The trees are walked side by side, a page of a directory at a time, from the root down. An inode
//! whose ctime is the same in both is the same (R8). An object that is gone from one place and is
//! at another, the same inode of the same generation, was renamed.
//!
//! Bounded memory: one page of entries on both sides for each level of the tree, and names that are
//! waited for because their object was moved ([`WAITING_MAX`], about 200 bytes each): any more than
//! that are reported as removed and added instead of renamed.

use super::FsError;
use super::api::FileKind;
use super::inode::{Entry, Position};
use super::key::{self, NameHash};
use super::row::{Extent, Inode, Segment, Source};
use super::snapshot_fs::SnapshotFs;
use crate::types::InodeNo;
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Entries read of a directory at a time.
const PAGE: usize = 1024;
/// Extents compared at a time.
const RECORDS: usize = 512;
/// Names of moved objects whose other path has not been reached yet.
const WAITING_MAX: usize = 100_000;
/// Folders within folders.
const DEPTH_MAX: usize = 4096;

/// The aspect in which an object differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Aspect {
    /// A file's bytes, a link's target, a device's numbers.
    Content,
    /// A directory's entries were added or removed.
    Entries,
    Mode,
    Owner,
    /// Times were set, and nothing else.
    Times,
    /// The object has more or fewer names.
    Links,
    /// Another object has its name.
    Replaced,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    Added,
    Removed,
    Changed(Vec<Aspect>),
    /// From this path; it may have changed, too.
    Renamed(Arc<[u8]>, Vec<Aspect>),
}

/// One difference, at a path that begins with `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathDifference {
    pub path: Arc<[u8]>,
    pub kind: FileKind,
    pub difference: Difference,
}

/// A directory that is being walked, from a position on.
struct Visit {
    dir: InodeNo,
    /// Its path in the earlier state, where it may have had another name.
    old: Arc<[u8]>,
    path: Arc<[u8]>,
    depth: usize,
    from: Position,
    sides: Sides,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sides {
    Both,
    /// Only in the earlier state.
    Before,
    /// Only in the later one.
    After,
}

/// A name of an object that is in both states, but not at this place.
struct Moved {
    path: Arc<[u8]>,
    kind: FileKind,
    depth: usize,
}

/// A comparison in progress. Its differences are asked for one by one, in no particular order.
pub struct Comparison<'a> {
    before: &'a SnapshotFs,
    after: &'a SnapshotFs,
    stack: Vec<Visit>,
    /// Removed and added names, by inode.
    taken: HashMap<InodeNo, Vec<Moved>>,
    put: HashMap<InodeNo, Vec<Moved>>,
    waiting: usize,
    /// Those of the last page, not asked for yet.
    found: VecDeque<PathDifference>,
}

/// Reports every difference, in no particular order.
///
/// # Errors
/// Errors of reading the rows, and those that `each` returns.
pub async fn compare<E: From<FsError>>(
    before: &SnapshotFs,
    after: &SnapshotFs,
    mut each: impl FnMut(PathDifference) -> Result<(), E>,
) -> Result<(), E> {
    let mut comparison = Comparison::new(before, after).await?;
    while let Some(found) = comparison.next().await? {
        each(found)?;
    }
    Ok(())
}

impl<'a> Comparison<'a> {
    /// Begins with the root directories.
    pub async fn new(before: &'a SnapshotFs, after: &'a SnapshotFs) -> Result<Self, FsError> {
        let mut all = Self {
            before,
            after,
            stack: Default::default(),
            taken: Default::default(),
            put: Default::default(),
            waiting: 0,
            found: Default::default(),
        };
        let (old, new) = (before.root_inode(), after.root_inode());
        let root: Arc<[u8]> = Arc::from(&b"/"[..]);
        all.changed(&root, (&old.row, &new.row)).await?;
        let top: Arc<[u8]> = Arc::from(&b""[..]);
        all.walk(InodeNo::ROOT, (top.clone(), top), 0, Sides::Both);
        Ok(all)
    }

    /// The next difference; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<PathDifference>, FsError> {
        loop {
            if let Some(found) = self.found.pop_front() {
                return Ok(Some(found));
            }
            match self.stack.pop() {
                Some(walk) if walk.depth > DEPTH_MAX => {
                    return Err(FsError::Invalid("folders are nested deeper than 4096"));
                }
                Some(walk) => match walk.sides {
                    Sides::Both => self.step_both(walk).await?,
                    Sides::Before | Sides::After => self.step_one(walk).await?,
                },
                None => {
                    self.settle();
                    if self.found.is_empty() && self.stack.is_empty() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// `paths`: the earlier and the later one.
    fn walk(
        &mut self,
        dir: InodeNo,
        (old, path): (Arc<[u8]>, Arc<[u8]>),
        depth: usize,
        sides: Sides,
    ) {
        let from = key::position_after(super::api::DirCookie(0)).expect("the start is a position");
        self.stack.push(Visit { dir, old, path, depth, from, sides });
    }

    fn say(&mut self, path: &Arc<[u8]>, kind: FileKind, difference: Difference) {
        self.found.push_back(PathDifference { path: path.clone(), kind, difference });
    }

    /// One page of a directory that is in both states.
    async fn step_both(&mut self, walk: Visit) -> Result<(), FsError> {
        let old = self.before.entries(walk.dir, walk.from, PAGE).await?;
        let new = self.after.entries(walk.dir, walk.from, PAGE).await?;
        // Beyond the end of a full page that side is unknown.
        let end = |page: &[(NameHash, Entry)]| {
            if page.len() == PAGE { page.last().map(|(hash, e)| (*hash, e.n)) } else { None }
        };
        let end = match (end(&old), end(&new)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let within = |(hash, e): &(NameHash, Entry)| end.is_none_or(|end| (*hash, e.n) <= end);
        let (mut old, mut new) = (old, new);
        old.retain(within);
        new.retain(within);
        if let Some((hash, n)) = end
            && let Some(from) = key::position_after(key::cookie(hash, n))
        {
            self.stack.push(Visit { old: walk.old.clone(), path: walk.path.clone(), from, ..walk });
        }
        let (same, gone, come) = pair(old, new);
        let inos = |of: fn(&(Entry, Entry)) -> InodeNo| same.iter().map(of).collect::<Vec<_>>();
        let (old_rows, new_rows) = (
            self.before.inodes(inos(|(a, _)| a.ino)).await?,
            self.after.inodes(inos(|(_, b)| b.ino)).await?,
        );
        for (a, b) in same {
            let (was, path) =
                (join(&walk.old, a.name.as_bytes()), join(&walk.path, b.name.as_bytes()));
            let (Some(old), Some(new)) = (old_rows.get(&a.ino), new_rows.get(&b.ino)) else {
                return Err(FsError::Corrupt(format!(
                    "an entry of directory {} names an inode that does not exist",
                    walk.dir
                )));
            };
            if a.ino == b.ino && old.generation == new.generation {
                self.changed(&path, (old, new)).await?;
                if new.kind == FileKind::Directory {
                    self.walk(b.ino, (was, path), walk.depth + 1, Sides::Both);
                }
            } else if old.kind == new.kind
                && new.kind != FileKind::Directory
                && !self.is_moved(&a, old.generation, Sides::Before).await?
                && !self.is_moved(&b, new.generation, Sides::After).await?
            {
                let mut aspects = self.aspects(old, new).await?;
                aspects.insert(0, Aspect::Replaced);
                self.say(&path, new.kind, Difference::Changed(aspects));
            } else {
                self.one(a, was, walk.depth, old.generation, Sides::Before).await?;
                self.one(b, path, walk.depth, new.generation, Sides::After).await?;
            }
        }
        self.ones(gone, &walk, Sides::Before).await?;
        self.ones(come, &walk, Sides::After).await
    }

    /// One page of a directory that is in one state only.
    async fn step_one(&mut self, walk: Visit) -> Result<(), FsError> {
        let page = self.side(walk.sides).entries(walk.dir, walk.from, PAGE).await?;
        if let Some((hash, e)) = page.last().filter(|_| page.len() == PAGE)
            && let Some(from) = key::position_after(key::cookie(*hash, e.n))
        {
            self.stack.push(Visit { old: walk.old.clone(), path: walk.path.clone(), from, ..walk });
        }
        let sides = walk.sides;
        self.ones(page.into_iter().map(|(_, entry)| entry).collect(), &walk, sides).await
    }

    fn side(&self, sides: Sides) -> &SnapshotFs {
        if sides == Sides::Before { self.before } else { self.after }
    }

    async fn ones(
        &mut self,
        entries: Vec<Entry>,
        walk: &Visit,
        sides: Sides,
    ) -> Result<(), FsError> {
        let inos = entries.iter().map(|e| e.ino).collect();
        let found = self.side(sides).inodes(inos).await?;
        for entry in entries {
            let what = || {
                FsError::Corrupt(format!(
                    "an entry of directory {} names inode {}, which does not exist",
                    walk.dir, entry.ino
                ))
            };
            let generation = found.get(&entry.ino).ok_or_else(what)?.generation;
            let path = join(
                if sides == Sides::Before { &walk.old } else { &walk.path },
                entry.name.as_bytes(),
            );
            self.one(entry, path, walk.depth, generation, sides).await?;
        }
        Ok(())
    }

    /// Returns whether the object of an entry of one state is in the other one as well.
    async fn is_moved(
        &self,
        entry: &Entry,
        generation: u64,
        sides: Sides,
    ) -> Result<bool, FsError> {
        let other = if sides == Sides::Before { self.after } else { self.before };
        Ok(other
            .find(entry.ino)
            .await?
            .is_some_and(|row| row.generation == generation && row.nlink > 0))
    }

    /// An entry of one state only.
    async fn one(
        &mut self,
        entry: Entry,
        path: Arc<[u8]>,
        depth: usize,
        generation: u64,
        sides: Sides,
    ) -> Result<(), FsError> {
        if self.waiting >= WAITING_MAX || !self.is_moved(&entry, generation, sides).await? {
            self.tell_one(entry.ino, Moved { path, kind: entry.kind, depth }, sides);
            return Ok(());
        }
        let here = Moved { path, kind: entry.kind, depth };
        let (others, mine) = match sides {
            Sides::Before => (&mut self.put, &mut self.taken),
            Sides::Both | Sides::After => (&mut self.taken, &mut self.put),
        };
        let Some(there) = others.get_mut(&entry.ino).and_then(Vec::pop) else {
            mine.entry(entry.ino).or_default().push(here);
            self.waiting += 1;
            return Ok(());
        };
        if others.get(&entry.ino).is_some_and(Vec::is_empty) {
            others.remove(&entry.ino);
        }
        self.waiting -= 1;
        let (from, to) = if sides == Sides::Before { (here, there) } else { (there, here) };
        let (old, new) =
            (self.before.inode(entry.ino).await?.row, self.after.inode(entry.ino).await?.row);
        let mut aspects = self.aspects(&old, &new).await?;
        // A rename sets the ctime alone.
        aspects.retain(|aspect| *aspect != Aspect::Times || old.mtime != new.mtime);
        if from.path != to.path {
            self.say(&to.path, to.kind, Difference::Renamed(from.path.clone(), aspects));
        } else if !aspects.is_empty() {
            self.say(&to.path, to.kind, Difference::Changed(aspects));
        }
        if to.kind == FileKind::Directory {
            self.walk(entry.ino, (from.path, to.path), to.depth + 1, Sides::Both);
        }
        Ok(())
    }

    fn tell_one(&mut self, ino: InodeNo, what: Moved, sides: Sides) {
        let difference =
            if sides == Sides::Before { Difference::Removed } else { Difference::Added };
        self.say(&what.path, what.kind, difference);
        if what.kind == FileKind::Directory {
            self.walk(ino, (what.path.clone(), what.path), what.depth + 1, sides);
        }
    }

    /// Reports names whose objects were found at no other path: links that were added or removed.
    /// Those of directories are still to walk.
    fn settle(&mut self) {
        for (sides, waiting) in [
            (Sides::Before, std::mem::take(&mut self.taken)),
            (Sides::After, std::mem::take(&mut self.put)),
        ] {
            for (ino, all) in waiting {
                all.into_iter().for_each(|one| self.tell_one(ino, one, sides));
            }
        }
        self.waiting = 0;
    }

    async fn changed(
        &mut self,
        path: &Arc<[u8]>,
        (old, new): (&Inode, &Inode),
    ) -> Result<(), FsError> {
        let aspects = self.aspects(old, new).await?;
        if !aspects.is_empty() {
            self.say(path, new.kind, Difference::Changed(aspects));
        }
        Ok(())
    }

    async fn aspects(&self, old: &Inode, new: &Inode) -> Result<Vec<Aspect>, FsError> {
        let mut aspects = Vec::new();
        if old.ctime == new.ctime && old.generation == new.generation {
            return Ok(aspects);
        }
        match new.kind {
            FileKind::Directory if (old.size, old.mtime) != (new.size, new.mtime) => {
                aspects.push(Aspect::Entries);
            }
            FileKind::Directory => {}
            FileKind::Regular if self.other_data(old, new).await? => aspects.push(Aspect::Content),
            _ if (&old.target, old.rdev) != (&new.target, new.rdev) => {
                aspects.push(Aspect::Content);
            }
            _ => {}
        }
        if old.mode != new.mode {
            aspects.push(Aspect::Mode);
        }
        if (old.uid, old.gid) != (new.uid, new.gid) {
            aspects.push(Aspect::Owner);
        }
        if new.kind != FileKind::Directory && old.nlink != new.nlink {
            aspects.push(Aspect::Links);
        }
        if aspects.is_empty() && (old.atime, old.mtime) != (new.atime, new.mtime) {
            aspects.push(Aspect::Times);
        }
        Ok(aspects)
    }

    /// Returns whether two files hold different bytes, as far as their extents show: the same bytes
    /// cut into other chunks, or moved from a row to a pack, count as different.
    async fn other_data(&self, old: &Inode, new: &Inode) -> Result<bool, FsError> {
        if old.size != new.size || old.record_bits != new.record_bits {
            return Ok(true);
        }
        let (mut from, end) = (0, new.size.div_ceil(1 << new.record_bits));
        while from < end {
            let (a, more_a) = extents(self.before, old, from, end).await?;
            let (b, more_b) = extents(self.after, new, from, end).await?;
            // Each side may end at another extent: only the range that both have read is compared.
            let to = more_a.unwrap_or(end).min(more_b.unwrap_or(end));
            let read = |all: Vec<(u64, Vec<Segment>)>| {
                all.into_iter().filter(|(n, _)| *n < to).collect::<Vec<_>>()
            };
            let (a, b) = (read(a), read(b));
            if a.len() != b.len()
                || a.iter().zip(&b).any(|((n, a), (m, b))| n != m || !same_bytes(a, b))
            {
                return Ok(true);
            }
            from = to;
        }
        Ok(false)
    }
}

/// Returns whether segments hold the same bytes, wherever those are: a chunk moves to another pack
/// when its own is rewritten (R12).
fn same_bytes(a: &[Segment], b: &[Segment]) -> bool {
    let bytes = |(a, b): (&Segment, &Segment)| match (&a.source, &b.source) {
        (Source::Inline(a), Source::Inline(b)) => a == b,
        (Source::Chunk { chunk: a, from: x }, Source::Chunk { chunk: b, from: y }) => {
            a.hash == b.hash && x == y
        }
        _ => false,
    };
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| (a.start, a.len) == (b.start, b.len) && bytes((a, b)))
}

/// The visible segments of a file's extents from one on, and the extent where the next page begins,
/// if there may be one.
async fn extents(
    view: &SnapshotFs,
    row: &Inode,
    from: u64,
    end: u64,
) -> Result<(Vec<(u64, Vec<Segment>)>, Option<u64>), FsError> {
    let page = view.extents(row.data, from, RECORDS).await?;
    let next = page.last().filter(|_| page.len() == RECORDS).map(|(n, _)| n + 1);
    let visible = |n: u64, extent: &Extent| {
        n < end
            && !row
                .masks
                .iter()
                .any(|mask| n >= mask.first && extent.truncations < mask.truncations)
    };
    let shown = page
        .into_iter()
        .filter(|(n, extent)| visible(*n, extent))
        .map(|(n, extent)| (n, extent.segments));
    Ok((shown.collect(), next))
}

/// Entries of the same name on both sides, and those of one side.
fn pair(
    old: Vec<(NameHash, Entry)>,
    new: Vec<(NameHash, Entry)>,
) -> (Vec<(Entry, Entry)>, Vec<Entry>, Vec<Entry>) {
    let (mut same, mut gone, mut come) = (Vec::new(), Vec::new(), Vec::new());
    // A name that was removed and added again may have another `n` among those of its hash.
    let mut new: HashMap<_, _> =
        new.into_iter().map(|(_, entry)| (entry.name.clone(), entry)).collect();
    for (_, entry) in old {
        match new.remove(&entry.name) {
            Some(other) => same.push((entry, other)),
            None => gone.push(entry),
        }
    }
    come.extend(new.into_values());
    come.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    (same, gone, come)
}

fn join(path: &[u8], name: &[u8]) -> Arc<[u8]> {
    [path, b"/", name].concat().into()
}
