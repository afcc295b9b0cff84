//! READDIR and READDIRPLUS.
//!
//! Entries come in the order of their cookies, which is that of their keys (R21): an entry that
//! exists throughout is listed exactly once, whatever is created and removed meanwhile. A directory
//! read from end to end without a change becomes complete in memory; one of usual size is read
//! whole when its listing begins.
//!
//! Attributes come from memory, and otherwise from the inodes' rows. Names are in the order of
//! their hashes, inode numbers are not, so that the inodes of one page lie all over a large
//! directory: rows are read for as many entries ahead as memory holds, in order of inode number,
//! where neighbours share a scan.

use super::Names;
use super::lookup::{READ_ALL_MAX, decode_entry};
use crate::fs::FsError;
use crate::fs::api::{
    Attr, Caller, DirCookie, DirEntry, FileRef, ListLimit, Listing, SNAPSHOTS_NAME,
};
use crate::fs::committer::Ticket;
use crate::fs::inode::{Entry, Position};
use crate::fs::inode::{Node, attr};
use crate::fs::key::{self, Key, NameHash};
use crate::fs::permission;
use crate::fs::row::{Inode, Row};
use crate::types::InodeNo;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use std::collections::HashMap;
use std::sync::Arc;

/// Inodes whose numbers are no further apart are read with one scan: an unneeded row costs less
/// than another lookup.
const CLUSTER_GAP: u64 = 16;
/// Most rows of one such scan.
const CLUSTER_ROWS: u64 = 4096;
/// Concurrent reads of that kind: each may be a request to the store.
const READS_AT_ONCE: usize = 16;
/// Most entries fetched at a time, whatever the caller's limit.
const FETCH_MAX: usize = 8192;
/// Most inodes whose rows are read ahead of a listing, which one call waits for.
const AHEAD_MAX: usize = 16_384;

/// The entries of one answer, up to its limit.
pub struct Page {
    pub entries: Vec<DirEntry>,
    limit: ListLimit,
    bytes: usize,
    /// Set when an entry no longer fitted.
    pub full: bool,
}

impl Page {
    pub fn new(limit: ListLimit) -> Self {
        Self { entries: Vec::new(), limit, bytes: 0, full: false }
    }

    pub fn add(&mut self, name: Bytes, ino: InodeNo, cookie: DirCookie) {
        let bytes = self.bytes + name.len() + self.limit.entry_bytes;
        self.full = self.full || self.entries.len() >= self.limit.entries.max(1);
        self.full = self.full || (bytes > self.limit.bytes && !self.entries.is_empty());
        if !self.full {
            self.bytes = bytes;
            self.entries.push(DirEntry { name, ino, cookie, attr: None });
        }
    }

    /// The number of entries that could still fit, plus one to see whether that is all.
    pub fn wanted(&self) -> usize {
        let by_bytes = self.limit.bytes.saturating_sub(self.bytes) / (self.limit.entry_bytes + 1);
        by_bytes
            .min(self.limit.entries.saturating_sub(self.entries.len()))
            .saturating_add(1)
            .min(FETCH_MAX)
    }
}

/// The answer to a request for a page of a directory.
pub struct Listed {
    pub listing: Listing,
    pub dir: Arc<Node>,
    /// The last batch that the attributes may show, where there is no node in memory (R15).
    pub seen: Ticket,
}

impl Names {
    pub async fn readdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        after: DirCookie,
        limit: ListLimit,
    ) -> Result<Listed, FsError> {
        let dir = self.inodes.directory(dir).await?;
        permission::require(caller, &dir.row.read(), permission::READ)?;
        let mut from = key::position_after(after).ok_or(FsError::BadCookie)?;
        let mut page = Page::new(limit);
        if after.0 < 1 {
            page.add(Bytes::from_static(b"."), dir.file.ino, DirCookie(1));
        }
        if after.0 < 2 {
            page.add(Bytes::from_static(b".."), dir.row.read().parent, DirCookie(2));
        }
        if after < key::COOKIE_SNAPSHOTS && dir.file.ino == InodeNo::ROOT && self.shows_snapshots()
        {
            page.add(Bytes::from_static(SNAPSHOTS_NAME), InodeNo::SNAPSHOTS, key::COOKIE_SNAPSHOTS);
        }
        if after.0 < 2 && self.is_worth_reading_whole(&dir, page.wanted()) {
            self.read_all(&dir).await?;
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
        let seen = if limit.with_attr {
            self.attach(&dir, from, &mut page.entries).await?
        } else {
            Ticket::default()
        };
        let listing = Listing { entries: page.entries, eof: !page.full, dir: dir.attr() };
        Ok(Listed { listing, dir, seen })
    }

    /// Returns whether a listing that begins reads the whole directory at once: one of more than
    /// one page that fits into memory.
    fn is_worth_reading_whole(&self, dir: &Node, page: usize) -> bool {
        let size = dir.row.read().size;
        let fits = size <= READ_ALL_MAX.min(self.inodes.directory_max() as u64);
        size > page as u64
            && fits
            && dir.entries.as_ref().is_some_and(|entries| !entries.is_complete())
    }

    /// Up to `max` entries from a position on; fewer at the end of the directory.
    async fn fetch(
        &self,
        dir: &Node,
        from: Position,
        max: usize,
    ) -> Result<Vec<(NameHash, Entry)>, FsError> {
        let entries = dir.entries.as_ref().ok_or(FsError::NotDirectory)?;
        if let Some(listed) = entries.list(from, max) {
            return Ok(listed);
        }
        let version = entries.version();
        let (start, end) =
            (key::dir_entry(dir.file.ino, from.0, from.1), key::dir(InodeNo(dir.file.ino.0 + 1)));
        let rows = self.committer.scan(start, end, max).await?;
        let fetched: Result<Vec<_>, _> =
            rows.iter().map(|(key, row)| decode_entry(key, row, dir.file.ino)).collect();
        let fetched = fetched?;
        let grown = entries.read_through(
            version,
            from,
            &fetched,
            fetched.len() < max,
            self.inodes.directory_max(),
        );
        self.inodes.count_entries(dir, grown);
        Ok(fetched)
    }

    /// Adds the objects' attributes to entries: from memory, the others with as few scans as their
    /// inode numbers allow. `next`: where the page ends.
    async fn attach(
        &self,
        dir: &Node,
        next: Position,
        entries: &mut [DirEntry],
    ) -> Result<Ticket, FsError> {
        let mut seen = Ticket::default();
        let mut missing = Vec::new();
        for (at, entry) in entries.iter_mut().enumerate() {
            match self.inodes.cached_attr(entry.ino) {
                Some(cached) => {
                    entry.attr = cached.attr;
                    seen = seen.max(cached.last);
                }
                None => missing.push(at),
            }
        }
        if missing.is_empty() {
            return Ok(seen);
        }
        // The snapshot directory's attributes come from the floor that serves snapshots.
        missing.retain(|at| entries[*at].ino != InodeNo::SNAPSHOTS);
        let wanted: Vec<InodeNo> = missing.iter().map(|at| entries[*at].ino).collect();
        let found = self.read_rows(&wanted, self.ahead(dir, next, wanted.len())).await?;
        for at in missing {
            let entry = &mut entries[at];
            // A missing row is an object that was removed meanwhile. An inode may have several
            // names here.
            entry.attr = found.get(&entry.ino).copied();
        }
        // Everything that the rows show has been submitted.
        Ok(self.committer.last())
    }

    /// The inodes that a listing will need next, if the directory is complete in memory: as many as
    /// fit into the row cache beside the page's own without evicting each other.
    fn ahead(&self, dir: &Node, next: Position, page: usize) -> Vec<InodeNo> {
        let room = (self.inodes.rows_max() / 4 * 3).saturating_sub(page).min(AHEAD_MAX);
        dir.entries.as_ref().and_then(|entries| entries.list_inos(next, room)).unwrap_or_default()
    }

    /// Attributes of `wanted`. Reads the rows of the inodes `ahead` too, into the row cache.
    async fn read_rows(
        &self,
        wanted: &[InodeNo],
        ahead: Vec<InodeNo>,
    ) -> Result<HashMap<InodeNo, Attr>, FsError> {
        let fill = self.inodes.new_fill();
        let mut inos = ahead;
        inos.retain(|ino| self.inodes.begin_fill(*ino, fill));
        for ino in wanted {
            self.inodes.begin_fill(*ino, fill);
        }
        inos.extend_from_slice(wanted);
        inos.sort_unstable();
        inos.dedup();
        let mut found: HashMap<InodeNo, Attr> = HashMap::with_capacity(wanted.len());
        let reads = stream::iter(clusters(&inos)).map(|cluster| self.read_cluster(cluster).boxed());
        let mut reads = reads.buffer_unordered(READS_AT_ONCE);
        while let Some((rows, submitted)) = reads.try_next().await? {
            for (ino, row) in rows.into_iter().filter(|(ino, _)| inos.binary_search(ino).is_ok()) {
                found.insert(ino, attr(FileRef { ino, generation: row.generation }, &row));
                self.inodes.fill_row(ino, fill, row, submitted);
            }
        }
        Ok(found)
    }

    fn decode(&self, row: &[u8]) -> Result<Inode, FsError> {
        let mut row = Inode::decode(row)?;
        self.inodes.present(&mut row);
        Ok(row)
    }

    /// The rows of a range, and a batch that they contain.
    async fn read_cluster(
        &self,
        (first, last): (InodeNo, InodeNo),
    ) -> Result<(Vec<(InodeNo, Inode)>, Ticket), FsError> {
        if first == last {
            // In a directory larger than memory most are isolated: a scan would read a quarter of a
            // MiB ahead for each.
            let row = self.committer.get(&key::inode(first)).await?;
            let row = row.map(|row| Ok::<_, FsError>((first, self.decode(&row)?))).transpose()?;
            return Ok((row.into_iter().collect(), self.committer.last()));
        }
        let rows = self
            .committer
            .scan(key::inode(first), key::inode(InodeNo(last.0 + 1)), CLUSTER_ROWS as usize)
            .await?;
        let submitted = self.committer.last();
        let row = |(row_key, row): &(Bytes, Bytes)| match Key::parse(row_key) {
            Some(Key::Inode(ino)) => Ok((ino, self.decode(row)?)),
            _ => Err(FsError::Corrupt("an unexpected key in the inode range".to_owned())),
        };
        Ok((rows.iter().map(row).collect::<Result<_, _>>()?, submitted))
    }
}

/// Ranges, both ends included, that cover ascending numbers without going through large gaps.
pub fn clusters(inos: &[InodeNo]) -> Vec<(InodeNo, InodeNo)> {
    let mut clusters: Vec<(InodeNo, InodeNo)> = Vec::new();
    for ino in inos {
        match clusters.last_mut() {
            Some((first, last))
                if ino.0 - last.0 <= CLUSTER_GAP && ino.0 - first.0 < CLUSTER_ROWS =>
            {
                *last = *ino;
            }
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
