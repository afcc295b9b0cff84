//! The cached entries of one directory. Pure, but for its lock.
//!
//! Entries are cached by name hash: a *bucket* holds every entry of one hash, usually one, or none
//! (a known absence). A directory is *complete* when every bucket that is not empty is known: a new
//! or empty one from its start, another once it was read from end to end. Then absence needs no
//! look at the database, and listings come from memory.
//!
//! Changes are made under the directory's [`Node::lock`](super::Node::lock), first in the
//! database, then here. Readers take no such lock: rows that they read from the database are cached
//! only if nothing changed since before they read ([`Entries::version`]).

use crate::fs::api::{DirCookie, FileKind};
use crate::fs::key::{self, NameHash};
use crate::fs::row::Inode;
use crate::types::{EntryName, InodeNo};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// A directory entry; its hash is its bucket's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Distinguishes names of one hash (R21).
    pub n: u16,
    pub name: EntryName,
    pub ino: InodeNo,
    pub kind: FileKind,
}

/// Every entry of one hash, in order of `n`. Nearly always one: stored without a further
/// allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Bucket {
    #[default]
    Empty,
    One(Entry),
    Many(Vec<Entry>),
}

impl Bucket {
    pub fn of(mut entries: Vec<Entry>) -> Self {
        match entries.len() {
            0 => Self::Empty,
            1 => entries.pop().map_or(Self::Empty, Self::One),
            _ => Self::Many(entries),
        }
    }

    pub fn entries(&self) -> &[Entry] {
        match self {
            Self::Empty => &[],
            Self::One(entry) => std::slice::from_ref(entry),
            Self::Many(entries) => entries,
        }
    }

    /// Resolves `name` from the cache, and the `n` that a new name of this hash takes: one above
    /// the highest in use, never one below (R21).
    pub fn resolve(&self, name: &[u8]) -> Resolved {
        let entries = self.entries();
        let at = entries.iter().find(|e| e.name.as_bytes() == name).map(|e| EntryRef {
            n: e.n,
            ino: e.ino,
            kind: e.kind,
        });
        let next = entries.iter().map(|e| e.n).max().map_or(Some(0), |n| n.checked_add(1));
        Resolved { at, next }
    }

    fn set(self, entry: Entry) -> Self {
        let mut entries = self.without(entry.n).into_entries();
        let place = entries.partition_point(|e| e.n < entry.n);
        entries.insert(place, entry);
        Self::of(entries)
    }

    fn without(self, n: u16) -> Self {
        match self {
            Self::Empty => Self::Empty,
            Self::One(entry) if entry.n == n => Self::Empty,
            Self::One(entry) => Self::One(entry),
            Self::Many(mut entries) => {
                entries.retain(|e| e.n != n);
                Self::of(entries)
            }
        }
    }

    fn into_entries(self) -> Vec<Entry> {
        match self {
            Self::Empty => Vec::new(),
            Self::One(entry) => vec![entry],
            Self::Many(entries) => entries,
        }
    }
}

/// The location of a name's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRef {
    pub n: u16,
    pub ino: InodeNo,
    pub kind: FileKind,
}

/// The result of looking at a name's bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub at: Option<EntryRef>,
    /// The `n` of a new name; `None`: the 65,536 of this hash are used up.
    pub next: Option<u16>,
}

/// One directory's known entries.
pub struct Entries {
    known: RwLock<CachedEntries>,
    /// Set when used since the last sweep.
    used: AtomicBool,
    /// Set while a task reads the whole directory.
    reading: AtomicBool,
}

/// Guard held by the reader of a whole directory.
pub struct ReadingGuard<'a>(&'a AtomicBool);

impl Drop for ReadingGuard<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[derive(Default)]
struct CachedEntries {
    buckets: BTreeMap<NameHash, Bucket>,
    complete: bool,
    /// Counts changes of the directory.
    version: u64,
    /// Lookups in the database since entries were last evicted or completed.
    misses: u64,
    /// The directory left the inode table: nothing more is cached.
    gone: bool,
    /// A listing in progress that has read the directory from its start.
    partial: Option<Partial>,
}

/// The entries that a listing has read since the directory's start, without a change of it in
/// between.
struct Partial {
    version: u64,
    next: Position,
    entries: Vec<(NameHash, Entry)>,
}

/// A position in a listing of a directory: the hash and `n` of the first entry that may follow.
pub type Position = (NameHash, u16);

impl Entries {
    pub fn of(directory: &Inode) -> Self {
        let known = CachedEntries { complete: directory.size == 0, ..CachedEntries::default() };
        Self {
            known: RwLock::new(known),
            used: AtomicBool::new(true),
            reading: AtomicBool::new(false),
        }
    }

    /// Taken before the database is read, given to [`Self::learn`] afterwards.
    pub fn version(&self) -> u64 {
        self.known.read().version
    }

    /// `None`: not cached, look at the database.
    pub fn resolve(&self, hash: NameHash, name: &[u8]) -> Option<Resolved> {
        self.used.store(true, Ordering::Relaxed);
        let known = self.known.read();
        match known.buckets.get(&hash) {
            Some(bucket) => Some(bucket.resolve(name)),
            None => known.complete.then(|| Bucket::Empty.resolve(name)),
        }
    }

    /// Caches the entries of one hash as read from the database. Returns the growth of the number
    /// of known buckets.
    pub fn learn(&self, version: u64, hash: NameHash, bucket: Bucket) -> isize {
        let mut known = self.known.write();
        known.misses += 1;
        if known.gone || known.complete || known.version != version {
            return 0;
        }
        isize::from(known.buckets.insert(hash, bucket).is_none())
    }

    /// Caches all entries, in order.
    pub fn learn_all(&self, version: u64, entries: Vec<(NameHash, Entry)>) -> isize {
        let mut known = self.known.write();
        if known.gone || known.complete || known.version != version {
            return 0;
        }
        let before = known.buckets.len();
        let mut buckets: BTreeMap<NameHash, Bucket> = BTreeMap::new();
        for (hash, entry) in entries {
            let bucket = buckets.entry(hash).or_default();
            *bucket = std::mem::take(bucket).set(entry);
        }
        known.buckets = buckets;
        known.complete = true;
        known.misses = 0;
        known.buckets.len().cast_signed() - before.cast_signed()
    }

    /// Notes that a listing has read these entries at `from`, the last of them if `end`. When it
    /// has read all without a change, and at most `max`, the directory is complete. Returns as
    /// [`Self::learn`].
    pub fn read_through(
        &self,
        version: u64,
        from: Position,
        read: &[(NameHash, Entry)],
        end: bool,
        max: usize,
    ) -> isize {
        let mut known = self.known.write();
        if known.gone || known.complete || known.version != version {
            return 0;
        }
        let start = key::position_after(DirCookie(0)).is_some_and(|start| start == from);
        let partial = match known.partial.take() {
            _ if start => Partial { version, next: from, entries: Vec::new() },
            Some(partial) if partial.version == version && partial.next == from => partial,
            other => {
                known.partial = other;
                return 0;
            }
        };
        let Partial { mut entries, mut next, .. } = partial;
        if entries.len() + read.len() > max {
            return 0;
        }
        entries.extend_from_slice(read);
        if end {
            drop(known);
            return self.learn_all(version, entries);
        }
        if let Some((hash, entry)) = read.last() {
            next = key::position_after(key::cookie(*hash, entry.n)).unwrap_or(next);
        }
        known.partial = Some(Partial { version, next, entries });
        0
    }

    /// Updates the cache after an entry was set or removed in the database. Returns the growth of
    /// the number of known buckets.
    pub fn change(&self, hash: NameHash, n: u16, entry: Option<Entry>) -> isize {
        let mut known = self.known.write();
        known.version += 1;
        known.partial = None;
        if known.gone || !(known.complete || known.buckets.contains_key(&hash)) {
            return 0;
        }
        let before = known.buckets.len();
        let bucket = known.buckets.remove(&hash).unwrap_or_default();
        let bucket = match entry {
            Some(entry) => bucket.set(entry),
            None => bucket.without(n),
        };
        if bucket != Bucket::Empty || !known.complete {
            known.buckets.insert(hash, bucket);
        }
        known.buckets.len().cast_signed() - before.cast_signed()
    }

    /// Up to `max` entries from a position on, when the directory is complete; fewer at its end.
    pub fn list(&self, from: Position, max: usize) -> Option<Vec<(NameHash, Entry)>> {
        self.used.store(true, Ordering::Relaxed);
        let known = self.known.read();
        let entries = known
            .buckets
            .range(from.0..)
            .flat_map(|(hash, bucket)| bucket.entries().iter().map(|e| (*hash, e)));
        let rest = entries.skip_while(|(hash, e)| (*hash, e.n) < from);
        known.complete.then(|| rest.take(max).map(|(hash, e)| (hash, e.clone())).collect())
    }

    /// Returns whether all entries are known.
    pub fn is_complete(&self) -> bool {
        self.known.read().complete
    }

    /// The inodes of up to `max` entries from a position on, when the directory is complete.
    pub fn list_inos(&self, from: Position, max: usize) -> Option<Vec<InodeNo>> {
        let known = self.known.read();
        let buckets = known.complete.then(|| known.buckets.range(from.0..))?;
        let entries =
            buckets.flat_map(|(hash, bucket)| bucket.entries().iter().map(|e| (*hash, e)));
        Some(
            entries
                .skip_while(|(hash, e)| (*hash, e.n) < from)
                .take(max)
                .map(|(_, e)| e.ino)
                .collect(),
        )
    }

    /// Returns whether enough single lookups missed that reading the whole directory would not have
    /// cost more. A row of a scan is taken to cost a sixteenth of a lookup: an estimate, not
    /// measured.
    pub fn worth_reading_all(&self, entries: u64) -> bool {
        let known = self.known.read();
        !known.complete && known.misses.saturating_mul(16) >= entries
    }

    /// `None`: another task reads the whole directory already.
    pub fn start_reading(&self) -> Option<ReadingGuard<'_>> {
        (!self.reading.swap(true, Ordering::Acquire)).then_some(ReadingGuard(&self.reading))
    }

    /// Number of cached buckets.
    pub fn len(&self) -> usize {
        self.known.read().buckets.len()
    }

    /// Returns whether the directory was used since the last call, and clears the mark.
    pub fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// Evicts everything; returns the number of buckets that were known.
    pub fn forget(&self, directory: Evicted) -> usize {
        let mut known = self.known.write();
        known.complete = false;
        known.misses = 0;
        known.partial = None;
        known.gone |= directory == Evicted::Gone;
        std::mem::take(&mut known.buckets).len()
    }
}

/// The reason why a directory's entries are evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evicted {
    /// To make room.
    ForRoom,
    /// The node leaves the inode table.
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> EntryName {
        EntryName::try_from(text.as_bytes()).unwrap()
    }

    fn entry(n: u16, text: &str) -> Entry {
        Entry { n, name: name(text), ino: InodeNo(u64::from(n) + 10), kind: FileKind::Regular }
    }

    fn incomplete() -> Entries {
        Entries {
            known: RwLock::default(),
            used: AtomicBool::new(false),
            reading: AtomicBool::new(false),
        }
    }

    fn hash(text: &str) -> NameHash {
        NameHash::of(&[0; 16], text.as_bytes())
    }

    #[test]
    fn a_new_name_goes_above_the_highest_of_its_hash() {
        let bucket =
            Bucket::Empty.set(entry(0, "a")).set(entry(1, "b")).set(entry(2, "c")).without(1);
        assert_eq!(bucket.resolve(b"c").at.map(|p| p.n), Some(2));
        assert_eq!(bucket.resolve(b"b"), Resolved { at: None, next: Some(3) });
        assert_eq!(Bucket::One(entry(u16::MAX, "z")).resolve(b"b").next, None);
        assert_eq!(Bucket::Empty.resolve(b"b").next, Some(0));
    }

    #[test]
    fn what_was_read_before_a_change_is_not_learnt() {
        let entries = incomplete();
        let version = entries.version();
        assert_eq!(entries.change(hash("a"), 0, Some(entry(0, "a"))), 0);
        assert_eq!(entries.learn(version, hash("a"), Bucket::Empty), 0);
        assert_eq!(entries.resolve(hash("a"), b"a"), None);
        assert_eq!(entries.learn(entries.version(), hash("a"), Bucket::One(entry(0, "a"))), 1);
        assert_eq!(entries.resolve(hash("a"), b"a").unwrap().at.unwrap().ino, InodeNo(10));
        assert_eq!(entries.change(hash("a"), 0, None), 0, "the absence stays known");
        assert_eq!(entries.resolve(hash("a"), b"a"), Some(Resolved { at: None, next: Some(0) }));
    }

    #[test]
    fn a_directory_that_left_learns_nothing() {
        let entries = incomplete();
        entries.learn(0, hash("a"), Bucket::Empty);
        assert_eq!(entries.forget(Evicted::Gone), 1);
        assert_eq!(entries.learn(0, hash("a"), Bucket::Empty), 0);
        assert_eq!(entries.learn_all(0, vec![(hash("a"), entry(0, "a"))]), 0);
        assert_eq!(entries.len(), 0);
    }

    #[test]
    fn reading_all_pays_after_enough_misses() {
        let entries = incomplete();
        assert!(!entries.worth_reading_all(20));
        entries.learn(0, hash("a"), Bucket::Empty);
        assert!(!entries.worth_reading_all(20));
        entries.learn(0, hash("b"), Bucket::Empty);
        assert!(entries.worth_reading_all(20));
        entries.learn_all(0, Vec::new());
        assert!(!entries.worth_reading_all(20));
    }

    proptest! {
        /// A complete directory equals a plain map whatever is done, and its count is right.
        #[test]
        fn a_complete_directory_is_a_map(
            steps in prop::collection::vec((0u8..40, any::<bool>()), 0..200)
        ) {
            let entries = incomplete();
            let mut count = entries.learn_all(0, Vec::new());
            let mut model: BTreeMap<(NameHash, u16), Entry> = BTreeMap::new();
            for (which, add) in steps {
                let text = which.to_string();
                // Few hashes, so that names share them.
                let hash = hash(&(which % 5).to_string());
                let resolved = entries.resolve(hash, text.as_bytes()).unwrap();
                match (resolved.at, add) {
                    (None, true) => {
                        let entry = entry(resolved.next.unwrap(), &text);
                        model.insert((hash, entry.n), entry.clone());
                        count += entries.change(hash, entry.n, Some(entry));
                    }
                    (Some(place), false) => {
                        prop_assert!(model.remove(&(hash, place.n)).is_some());
                        count += entries.change(hash, place.n, None);
                    }
                    _ => {}
                }
                prop_assert_eq!(count, entries.len() as isize);
            }
            let start = (NameHash::of(&[0; 16], b"0").min(NameHash::of(&[0; 16], b"1")), 0);
            for from in std::iter::once(start).chain(model.keys().copied()) {
                let listed = entries.list(from, usize::MAX).unwrap();
                let expected = model.range(from..).map(|((hash, _), e)| (*hash, e.clone()));
                let expected: Vec<_> = expected.collect();
                prop_assert_eq!(listed, expected);
            }
        }
    }
}
