//! READDIR and READDIRPLUS.
//!
//! Entries come in the order of their cookies, which is that of their keys (R21): an entry that is there all the time is listed exactly once
//! whatever is created and removed meanwhile. A directory read from end to end without a change becomes complete in memory.

use super::Names;
use super::entries::{Entry, Position};
use super::lookup::decode_entry;
use crate::fs::FsError;
use crate::fs::api::{Caller, DirCookie, DirEntry, FileRef, ListLimit, Listing};
use crate::fs::key::{self, Key, NameHash};
use crate::fs::node::Node;
use crate::fs::permission;
use crate::fs::row::{Inode, Row};
use crate::types::InodeNo;
use bytes::Bytes;
use std::sync::Arc;

/// Inodes whose numbers are no further apart are read with one scan: a row that is read in vain costs less than another look.
const CLUSTER_GAP: u64 = 16;
/// Most rows of one such scan.
const CLUSTER_ROWS: u64 = 4096;
/// Most entries fetched at a time, whatever the caller's limit.
const FETCH_MAX: usize = 8192;

/// The entries of one answer, up to its limit.
struct Page {
    entries: Vec<DirEntry>,
    limit: ListLimit,
    bytes: usize,
    full: bool,
}

impl Page {
    fn new(limit: ListLimit) -> Self {
        Self { entries: Vec::new(), limit, bytes: 0, full: false }
    }

    fn add(&mut self, name: Bytes, ino: InodeNo, cookie: DirCookie) {
        let bytes = self.bytes + name.len() + self.limit.entry_bytes;
        self.full = self.full || self.entries.len() >= self.limit.entries.max(1);
        self.full = self.full || (bytes > self.limit.bytes && !self.entries.is_empty());
        if !self.full {
            self.bytes = bytes;
            self.entries.push(DirEntry { name, ino, cookie, attr: None });
        }
    }

    /// How many more entries could fit, and one more to tell whether that is all.
    fn wanted(&self) -> usize {
        let by_bytes = self.limit.bytes.saturating_sub(self.bytes) / (self.limit.entry_bytes + 1);
        by_bytes.min(self.limit.entries.saturating_sub(self.entries.len())).saturating_add(1).min(FETCH_MAX)
    }
}

impl Names {
    pub async fn readdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        after: DirCookie,
        limit: ListLimit,
    ) -> Result<(Listing, Arc<Node>), FsError> {
        let dir = self.directory(dir).await?;
        permission::require(caller, &dir.row.read(), permission::READ)?;
        let mut from = key::position_after(after).ok_or(FsError::BadCookie)?;
        let mut page = Page::new(limit);
        if after.0 < 1 {
            page.add(Bytes::from_static(b"."), dir.file.ino, DirCookie(1));
        }
        if after.0 < 2 {
            page.add(Bytes::from_static(b".."), dir.row.read().parent, DirCookie(2));
        }
        let mut more = true;
        while more && !page.full {
            let wanted = page.wanted();
            let fetched = self.fetch(&dir, from, wanted).await?;
            more = fetched.len() == wanted;
            for (hash, entry) in fetched {
                let cookie = key::cookie(hash, entry.n);
                page.add(Vec::from(entry.name).into(), entry.ino, cookie);
                from = key::position_after(cookie).unwrap_or(from);
            }
        }
        if limit.with_attr {
            self.attach(&mut page.entries).await?;
        }
        let listing = Listing { entries: page.entries, eof: !page.full, dir: dir.attr() };
        Ok((listing, dir))
    }

    /// Up to `max` entries from a position on; fewer at the end of the directory.
    async fn fetch(&self, dir: &Node, from: Position, max: usize) -> Result<Vec<(NameHash, Entry)>, FsError> {
        let entries = dir.entries.as_ref().ok_or(FsError::NotDirectory)?;
        if let Some(listed) = entries.list(from, max) {
            return Ok(listed);
        }
        let version = entries.version();
        let (start, end) = (key::dir_entry(dir.file.ino, from.0, from.1), key::dir(InodeNo(dir.file.ino.0 + 1)));
        let rows = self.committer.scan(start, end, max).await?;
        let fetched: Result<Vec<_>, _> = rows.iter().map(|(key, row)| decode_entry(key, row, dir.file.ino)).collect();
        let fetched = fetched?;
        let grown = entries.read_through(version, from, &fetched, fetched.len() < max, self.table.directory_max());
        self.table.count_entries(dir, grown);
        Ok(fetched)
    }

    /// Gives entries their objects' attributes: from memory, the others with as few scans as their numbers allow.
    async fn attach(&self, entries: &mut [DirEntry]) -> Result<(), FsError> {
        let shown = |node: &Node| Some(node.attr()).filter(|attr| attr.nlink > 0);
        let mut missing = Vec::new();
        for (at, entry) in entries.iter_mut().enumerate() {
            match self.table.peek(entry.ino) {
                Some(node) => entry.attr = shown(&node),
                None => missing.push(at),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let loaded = self.load_many(missing.iter().map(|at| entries[*at].ino)).await?;
        for at in missing {
            // What another task was loading, or was thrown out again at once.
            let entry = &mut entries[at];
            let node = match loaded.get(&entry.ino) {
                Some(node) => Some(node.clone()),
                None => self.load(entry.ino).await?,
            };
            entry.attr = node.and_then(|node| shown(&node));
        }
        Ok(())
    }

    async fn load_many(
        &self,
        inos: impl Iterator<Item = InodeNo>,
    ) -> Result<std::collections::HashMap<InodeNo, Arc<Node>>, FsError> {
        let mut claim = self.table.claim(inos);
        let claimed = claim.inos();
        let mut loaded = std::collections::HashMap::with_capacity(claimed.len());
        for (first, last) in clusters(&claimed) {
            let rows = self.committer.scan(key::inode(first), key::inode(InodeNo(last.0 + 1)), CLUSTER_ROWS as usize).await?;
            let last = self.committer.last();
            for (key, row) in rows {
                let Some(Key::Inode(ino)) = Key::parse(&key) else {
                    return Err(FsError::Corrupt("a key among the inodes is none of them".to_owned()));
                };
                if claimed.binary_search(&ino).is_ok() {
                    loaded.insert(ino, claim.fill(Node::new(ino, Inode::decode(&row)?, last)));
                }
            }
        }
        Ok(loaded)
    }
}

/// Ranges, both ends included, that cover ascending numbers without going through large gaps.
fn clusters(inos: &[InodeNo]) -> Vec<(InodeNo, InodeNo)> {
    let mut clusters: Vec<(InodeNo, InodeNo)> = Vec::new();
    for ino in inos {
        match clusters.last_mut() {
            Some((first, last)) if ino.0 - last.0 <= CLUSTER_GAP && ino.0 - first.0 < CLUSTER_ROWS => *last = *ino,
            _ => clusters.push((*ino, *ino)),
        }
    }
    clusters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_bridge_small_gaps_and_stay_small() {
        let inos = [1, 2, 10, 26, 43, 100].map(InodeNo);
        let ranges: Vec<_> = clusters(&inos).iter().map(|(a, b)| (a.0, b.0)).collect();
        assert_eq!(ranges, [(1, 26), (43, 43), (100, 100)]);
        let many: Vec<_> = (0..10_000).map(InodeNo).collect();
        assert!(clusters(&many).iter().all(|(a, b)| b.0 - a.0 < CLUSTER_ROWS));
        assert_eq!(clusters(&many).iter().map(|(a, b)| b.0 - a.0 + 1).sum::<u64>(), 10_000);
    }

    #[test]
    fn a_page_keeps_both_limits_but_has_an_entry() {
        let limit = ListLimit { entries: 3, bytes: 30, entry_bytes: 8, with_attr: false };
        let mut page = Page::new(limit);
        let mut add = |name: &'static str| {
            page.add(Bytes::from_static(name.as_bytes()), InodeNo(1), DirCookie(9));
            page.entries.len()
        };
        assert_eq!(["01234567890123456789012345", "a"].map(&mut add), [1, 1]);
        let mut page = Page::new(limit);
        let mut add = |name: &'static str| {
            page.add(Bytes::from_static(name.as_bytes()), InodeNo(1), DirCookie(9));
            page.entries.len()
        };
        assert_eq!(["a", "b", "c", "d"].map(&mut add), [1, 2, 3, 3]);
    }
}
