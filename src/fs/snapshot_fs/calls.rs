//! The calls of [`FileSystem`] on a snapshot: those that only read. Every other one is `ROFS`, the
//! trait's default.
//!
//! Inode numbers, generations, cookies and times are those of the live file system at that moment,
//! so that a comparison of the two shows the differences and nothing else. Permissions are those of
//! the live file system, too; ACCESS never grants a change.
//!
//! Memory is bounded: inodes are in one cache of the process ([`SnapshotMemory`]), tables' blocks
//! and chunks are in the shared caches.

use super::{SnapshotFs, SnapshotInode, dangling};
use crate::fs::FsError;
use crate::fs::api::*;
use crate::fs::inode::attr;
use crate::fs::key;
use crate::fs::names::{Page, entry_name};
use crate::fs::permission;
use crate::fs::row::Inode;
use crate::types::InodeNo;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The memory of a cached inode, roughly.
const INODE_BYTES: usize = 320;
/// Zeros of holes are handed out in pieces of this buffer.
const ZEROS: &[u8] = &[0; 64 << 10];

/// The number of an open snapshot, and an inode number in it.
type InodeKey = (u64, u64);

/// The inode cache of all snapshots that a process reads. Cheap to clone.
#[derive(Clone)]
pub struct SnapshotMemory {
    inodes: foyer::Cache<InodeKey, Arc<Inode>>,
    opened: Arc<AtomicU64>,
}

impl SnapshotMemory {
    pub fn new(bytes: u64) -> Self {
        let weight =
            |_: &InodeKey, row: &Arc<Inode>| INODE_BYTES + row.target.as_ref().map_or(0, Vec::len);
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let inodes =
            foyer::CacheBuilder::new(bytes).with_name("snapshot_fs").with_weighter(weight).build();
        Self { inodes, opened: Arc::default() }
    }

    pub(super) fn cache(&self) -> InodeCache {
        let snapshot = self.opened.fetch_add(1, Ordering::Relaxed);
        InodeCache { memory: self.clone(), snapshot }
    }
}

/// The part of the cache that is one snapshot's.
pub(super) struct InodeCache {
    memory: SnapshotMemory,
    snapshot: u64,
}

impl InodeCache {
    fn get(&self, ino: InodeNo) -> Option<Arc<Inode>> {
        self.memory.inodes.get(&(self.snapshot, ino.0)).map(|hit| hit.value().clone())
    }

    fn insert(&self, ino: InodeNo, row: Arc<Inode>) {
        self.memory.inodes.insert((self.snapshot, ino.0), row);
    }
}

impl SnapshotFs {
    async fn row(&self, ino: InodeNo) -> Result<Option<Arc<Inode>>, FsError> {
        if let Some(hit) = self.cached(ino) {
            return Ok(Some(hit));
        }
        Ok(self.find(ino).await?.map(|row| self.cache_row(ino, row)))
    }

    fn cached(&self, ino: InodeNo) -> Option<Arc<Inode>> {
        self.cache.as_ref().and_then(|cache| cache.get(ino))
    }

    fn cache_row(&self, ino: InodeNo, row: Inode) -> Arc<Inode> {
        let row = Arc::new(row);
        if let Some(cache) = &self.cache {
            cache.insert(ino, row.clone());
        }
        row
    }

    /// Looks up the inode that a handle names.
    async fn object(&self, file: FileRef) -> Result<Arc<Inode>, FsError> {
        let row = self.row(file.ino).await?.ok_or(FsError::Stale)?;
        if row.generation != file.generation || row.nlink == 0 {
            Err(FsError::Stale)
        } else {
            Ok(row)
        }
    }

    async fn directory(&self, file: FileRef) -> Result<Arc<Inode>, FsError> {
        let row = self.object(file).await?;
        if row.kind == FileKind::Directory { Ok(row) } else { Err(FsError::NotDirectory) }
    }

    /// Looks up the inode that an entry or a directory's parent names.
    async fn named(&self, ino: InodeNo) -> Result<Attr, FsError> {
        let row = self.row(ino).await?.ok_or_else(|| dangling(ino))?;
        Ok(attr_of(ino, &row))
    }

    /// Adds attributes to a page's entries, with as few scans as their inode numbers allow.
    async fn attach(&self, entries: &mut [DirEntry]) -> Result<(), FsError> {
        let mut found: HashMap<InodeNo, Attr> = HashMap::with_capacity(entries.len());
        let mut missing = Vec::new();
        for entry in entries.iter() {
            match self.cached(entry.ino) {
                Some(row) => {
                    found.insert(entry.ino, attr_of(entry.ino, &row));
                }
                None => missing.push(entry.ino),
            }
        }
        for (ino, row) in self.inodes(missing).await? {
            found.insert(ino, attr_of(ino, &self.cache_row(ino, row)));
        }
        entries.iter_mut().for_each(|entry| entry.attr = found.get(&entry.ino).copied());
        Ok(())
    }
}

fn attr_of(ino: InodeNo, row: &Inode) -> Attr {
    attr(FileRef { ino, generation: row.generation }, row)
}

fn regular(row: &Inode) -> Result<(), FsError> {
    match row.kind {
        FileKind::Regular => Ok(()),
        FileKind::Directory => Err(FsError::IsDirectory),
        _ => Err(FsError::Invalid("only a regular file holds data")),
    }
}

fn zeros(mut len: u64, out: &mut Vec<Bytes>) {
    while len > 0 {
        let part = Bytes::from_static(ZEROS)
            .slice(..usize::try_from(len).unwrap_or(usize::MAX).min(ZEROS.len()));
        len -= part.len() as u64;
        out.push(part);
    }
}

impl FileSystem for SnapshotFs {
    fn root(&self) -> FileRef {
        FileRef { ino: self.root.ino, generation: self.root.row.generation }
    }

    /// Nothing is ever written.
    fn write_verifier(&self) -> [u8; 8] {
        [0; 8]
    }

    async fn getattr(&self, file: FileRef) -> Result<Attr, FsError> {
        Ok(attr(file, &*self.object(file).await?))
    }

    async fn lookup(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &[u8],
    ) -> Result<(Attr, Attr), FsError> {
        let row = self.directory(dir).await?;
        permission::require(caller, &row, permission::EXECUTE)?;
        let shown = attr(dir, &row);
        let found = match name {
            b"." => shown,
            b".." => self.named(row.parent).await?,
            name => match self.entry(dir.ino, &entry_name(name)?).await? {
                Some(ino) => self.named(ino).await?,
                None => return Err(FsError::NotFound),
            },
        };
        Ok((found, shown))
    }

    async fn access(
        &self,
        caller: &Caller,
        file: FileRef,
        want: u32,
    ) -> Result<(u32, Attr), FsError> {
        const CHANGES: u32 = access::MODIFY | access::EXTEND | access::DELETE;
        let row = self.object(file).await?;
        Ok((permission::granted(caller, &row, want & !CHANGES), attr(file, &row)))
    }

    async fn readlink(&self, _: &Caller, file: FileRef) -> Result<(Bytes, Attr), FsError> {
        let row = self.object(file).await?;
        let target = row.target.clone().ok_or(FsError::Invalid("not a symbolic link"))?;
        Ok((target.into(), attr(file, &row)))
    }

    async fn read(
        &self,
        caller: &Caller,
        file: FileRef,
        offset: u64,
        count: u32,
    ) -> Result<ReadOut, FsError> {
        let row = self.object(file).await?;
        regular(&row)?;
        permission::may_read_data(caller, &row)?;
        let viewed = SnapshotInode { ino: file.ino, row: Inode::clone(&row) };
        let pieces = self.pieces(&viewed, offset, count.min(IO_BYTES_MAX as u32)).await?;
        let (mut data, mut end) = (Vec::with_capacity(pieces.len()), offset);
        for (len, bytes) in pieces {
            end = end.saturating_add(len);
            match bytes {
                Some(bytes) => data.push(bytes),
                None => zeros(len, &mut data),
            }
        }
        Ok(ReadOut { data, eof: end >= row.size, attr: attr(file, &row) })
    }

    async fn readdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        after: DirCookie,
        limit: ListLimit,
    ) -> Result<Listing, FsError> {
        let row = self.directory(dir).await?;
        permission::require(caller, &row, permission::READ)?;
        let mut from = key::position_after(after).ok_or(FsError::BadCookie)?;
        let mut page = Page::new(limit);
        if after.0 < 1 {
            page.add(Bytes::from_static(b"."), dir.ino, DirCookie(1));
        }
        if after.0 < 2 {
            page.add(Bytes::from_static(b".."), row.parent, DirCookie(2));
        }
        let mut more = true;
        while more && !page.full {
            let wanted = page.wanted();
            let fetched = self.entries(dir.ino, from, wanted).await?;
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
        Ok(Listing { entries: page.entries, eof: !page.full, dir: attr(dir, &row) })
    }

    /// Reports a full file system, with the figures of the checkpoint.
    async fn statfs(&self) -> Result<StatFs, FsError> {
        let superblock = self.superblock();
        let (total_bytes, total_inodes) = (superblock.allocated, superblock.inodes);
        Ok(StatFs { total_bytes, free_bytes: 0, total_inodes, free_inodes: 0 })
    }
}
