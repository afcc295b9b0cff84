//! Looks up names.

use super::{Names, TRIES};
use crate::fs::FsError;
use crate::fs::api::{Caller, FileRef};
use crate::fs::inode::Node;
use crate::fs::inode::{Bucket, Entry, EntryRef, Resolved};
use crate::fs::key::{self, Key, NameHash};
use crate::fs::permission;
use crate::fs::row::{DirEntryRow, Row};
use crate::types::{EntryName, InodeNo, NameError};
use bytes::Bytes;
use std::sync::Arc;

/// The largest directory, in entries, that is read whole because single lookups missed often;
/// beyond, the delay would be noticeable.
pub(super) const READ_ALL_MAX: u64 = 65_536;
/// Rows asked of the database at a time.
pub(super) const SCAN_ROWS: usize = 4096;

/// Hashes names with the dataset's key (R21).
#[derive(Clone, Copy)]
pub struct NameHasher {
    key: [u8; 16],
    /// All bits of the hash, except in tests that want collisions.
    keep: u64,
}

#[cfg(test)]
thread_local! {
    /// Bits of the hash that file systems opened by this thread use.
    pub static HASH_BITS: std::cell::Cell<u32> = const { std::cell::Cell::new(47) };
}

impl NameHasher {
    pub fn new(key: [u8; 16]) -> Self {
        #[cfg(test)]
        let keep = (1 << HASH_BITS.get()) - 1;
        #[cfg(not(test))]
        let keep = u64::MAX;
        Self { key, keep }
    }

    pub fn hash(&self, name: &[u8]) -> NameHash {
        NameHash::of(&self.key, name).masked(self.keep)
    }
}

/// A row of a directory, decoded. The key's hash is checked to be of the right directory, not to be
/// the name's: a clone's collector need not know the name key.
pub fn decode_entry(key: &[u8], row: &[u8], of: InodeNo) -> Result<(NameHash, Entry), FsError> {
    match Key::parse(key) {
        Some(Key::DirEntry { dir, hash, n }) if dir == of => {
            let DirEntryRow { ino, kind, name } = DirEntryRow::decode(row)?;
            Ok((hash, Entry { n, name, ino, kind }))
        }
        _ => {
            Err(FsError::Corrupt(format!("an unexpected key among the entries of directory {of}")))
        }
    }
}

/// A name from outside, `.` and `..` excluded.
pub fn entry_name(name: &[u8]) -> Result<EntryName, FsError> {
    EntryName::try_from(name).map_err(|error| match error {
        NameError::TooLong { .. } => FsError::NameTooLong,
        NameError::Empty | NameError::Forbidden { .. } | NameError::Separator { .. } => {
            FsError::Invalid("a name is empty or holds '/' or NUL")
        }
    })
}

impl Names {
    pub(super) fn hash(&self, name: &EntryName) -> NameHash {
        self.hasher.hash(name.as_bytes())
    }

    /// Finds a directory's entry by name, from memory if its hash is known there. While the caller
    /// holds the directory's lock the answer stays true.
    pub(super) async fn resolve(&self, dir: &Node, name: &EntryName) -> Result<Resolved, FsError> {
        let entries = dir.entries.as_ref().ok_or(FsError::NotDirectory)?;
        let hash = self.hash(name);
        if let Some(resolved) = entries.resolve(hash, name.as_bytes()) {
            return Ok(resolved);
        }
        let size = dir.row.read().size;
        if size <= READ_ALL_MAX && entries.worth_reading_all(size) {
            self.read_all(dir).await?;
            if let Some(resolved) = entries.resolve(hash, name.as_bytes()) {
                return Ok(resolved);
            }
        }
        let version = entries.version();
        let mut end = key::dir_entry(dir.file.ino, hash, u16::MAX).to_vec();
        end.push(0);
        let rows =
            self.committer.scan(key::dir_hash(dir.file.ino, hash), end.into(), 1 << 16).await?;
        let found: Result<Vec<_>, _> = rows
            .iter()
            .map(|(key, row)| decode_entry(key, row, dir.file.ino).map(|(_, e)| e))
            .collect();
        let bucket = Bucket::of(found?);
        let resolved = bucket.resolve(name.as_bytes());
        self.inodes.count_entries(dir, entries.learn(version, hash, bucket));
        Ok(resolved)
    }

    /// Makes a directory complete in memory, unless it changes meanwhile or another task reads it
    /// already.
    pub(super) async fn read_all(&self, dir: &Node) -> Result<(), FsError> {
        let Some(entries) = &dir.entries else { return Ok(()) };
        let Some(_reading) = entries.start_reading() else { return Ok(()) };
        let version = entries.version();
        let mut all = Vec::new();
        let (mut from, to) = (key::dir(dir.file.ino), key::dir(InodeNo(dir.file.ino.0 + 1)));
        loop {
            let rows = self.committer.scan(from, to.clone(), SCAN_ROWS).await?;
            for (key, row) in &rows {
                all.push(decode_entry(key, row, dir.file.ino)?);
            }
            match rows.last() {
                Some((last, _)) if rows.len() == SCAN_ROWS => from = after(last),
                _ => break,
            }
        }
        self.inodes.count_entries(dir, entries.learn_all(version, all));
        Ok(())
    }

    /// The object of a name. `None`: there is none.
    pub(super) async fn child(
        &self,
        dir: &Node,
        name: &EntryName,
    ) -> Result<Option<(EntryRef, Arc<Node>)>, FsError> {
        for _ in 0..TRIES {
            let version = dir.entries.as_ref().ok_or(FsError::NotDirectory)?.version();
            let Some(place) = self.resolve(dir, name).await?.at else { return Ok(None) };
            if let Some(node) = self.inodes.load(place.ino).await?
                && node.row.read().nlink > 0
            {
                return Ok(Some((place, node)));
            }
            // Removing an object changes its directory's entries before the object itself goes.
            if dir.entries.as_ref().is_some_and(|e| e.version() == version) {
                let what = format!(
                    "an entry of directory {} names inode {}, which does not exist",
                    dir.file.ino, place.ino
                );
                return Err(FsError::Corrupt(what));
            }
        }
        Err(FsError::Busy("the name changes faster than it can be looked up"))
    }

    /// LOOKUP: the object's node and the directory's.
    pub async fn lookup(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &[u8],
    ) -> Result<(Arc<Node>, Arc<Node>), FsError> {
        let dir = self.inodes.directory(dir).await?;
        permission::require(caller, &dir.row.read(), permission::EXECUTE)?;
        let node = match name {
            b"." => dir.clone(),
            b".." => self.parent(&dir).await?,
            name => self.child(&dir, &entry_name(name)?).await?.ok_or(FsError::NotFound)?.1,
        };
        Ok((node, dir))
    }

    /// The parent of a directory; the root is its own.
    pub(super) async fn parent(&self, dir: &Node) -> Result<Arc<Node>, FsError> {
        let parent = dir.row.read().parent;
        let lost = || {
            FsError::Corrupt(format!(
                "the parent {parent} of directory {} does not exist",
                dir.file.ino
            ))
        };
        self.inodes.load(parent).await?.ok_or_else(lost)
    }
}

/// The first key after this one.
pub(super) fn after(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}
