//! The file system of one state that is read without an owner: a snapshot's checkpoint, or a head's
//! newest durable state. Restores and comparisons read its rows; [`calls`] serves it to clients.
//! Memory is bounded whatever the file's size.

mod calls;

pub use calls::SnapshotMemory;

use super::FsError;
use super::api::FileKind;
use super::db::{CheckpointId, DbPlace, Reader};
use super::inode::Entry;
use super::key::{self, DataId, NameHash};
use super::mount_group::MountGroup;
use super::names::{NameHasher, clusters, decode_entry};
use super::row::{DirEntryRow, Extent, Inode, Row, Source, Superblock, Usage};
use crate::chunk::{ChunkRef, ChunkStore};
use crate::types::{EntryName, InodeNo, PackId};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use std::collections::{HashMap, HashSet};

/// Entries of one page of a directory.
const PAGE_ENTRIES: usize = 1024;
/// Entries whose names share a hash: R21 allows 2^16, and no honest directory has more than a few.
const COLLISIONS_MAX: usize = 1 << 16;
/// Most rows of one scan of inodes.
const CLUSTER_ROWS: usize = 4096;
/// Concurrent scans of inodes: each may be a request to the store.
const SCANS: usize = 16;

/// An object of the snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInode {
    pub ino: InodeNo,
    pub row: Inode,
}

pub struct SnapshotFs {
    reader: Reader,
    chunks: ChunkStore,
    hasher: NameHasher,
    superblock: Superblock,
    /// As it was at the checkpoint.
    group: Option<MountGroup>,
    root: SnapshotInode,
    /// Where clients are served from; whoever reads a tree once needs none.
    cache: Option<calls::InodeCache>,
}

async fn find(
    reader: &Reader,
    ino: InodeNo,
    group: Option<MountGroup>,
) -> Result<Option<Inode>, FsError> {
    let row = reader.get(&key::inode(ino)).await?;
    row.map(|row| decode(&row, group)).transpose()
}

fn decode(row: &[u8], group: Option<MountGroup>) -> Result<Inode, FsError> {
    let mut row = Inode::decode(row)?;
    if let Some(group) = group {
        group.present(&mut row);
    }
    Ok(row)
}

fn dangling(ino: InodeNo) -> FsError {
    FsError::Corrupt(format!("inode {ino} is named by an entry but does not exist"))
}

/// A part of a read's result.
enum ReadPart {
    Hole(u64),
    Data(Bytes),
    Chunk { chunk: ChunkRef, from: usize, len: usize },
}

impl SnapshotFs {
    /// Without a cache of inodes.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] when the database has no superblock or no root.
    pub async fn new(reader: Reader, chunks: ChunkStore) -> Result<Self, FsError> {
        let row = reader
            .get(&key::superblock())
            .await?
            .ok_or_else(|| FsError::Corrupt("no superblock".to_owned()))?;
        let superblock = Superblock::decode(&row)?;
        let group = MountGroup::of(&superblock);
        let root = find(&reader, InodeNo::ROOT, group).await?;
        let root = root.ok_or_else(|| dangling(InodeNo::ROOT))?;
        Ok(Self {
            reader,
            chunks,
            hasher: NameHasher::new(superblock.name_key),
            superblock,
            group,
            root: SnapshotInode { ino: InodeNo::ROOT, row: root },
            cache: None,
        })
    }

    /// The state at a checkpoint, with the inodes that are looked up cached in `memory`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub async fn open(
        place: &DbPlace,
        checkpoint: CheckpointId,
        chunks: ChunkStore,
        memory: &SnapshotMemory,
    ) -> Result<Self, FsError> {
        let fs = Self::new(Reader::at_checkpoint(place, checkpoint).await?, chunks).await?;
        Ok(Self { cache: Some(memory.cache()), ..fs })
    }

    pub async fn close(&self) -> Result<(), FsError> {
        self.reader.close().await
    }

    /// The counters at the checkpoint.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    pub fn root_inode(&self) -> &SnapshotInode {
        &self.root
    }

    /// # Errors
    /// [`FsError::Corrupt`] when there is none: only inodes that an entry names are requested.
    pub async fn inode(&self, ino: InodeNo) -> Result<SnapshotInode, FsError> {
        let row = self.find(ino).await?.ok_or_else(|| dangling(ino))?;
        Ok(SnapshotInode { ino, row })
    }

    /// The row of an inode, if there is one.
    pub async fn find(&self, ino: InodeNo) -> Result<Option<Inode>, FsError> {
        find(&self.reader, ino, self.group).await
    }

    /// The rows of the inodes `first..=last` that exist.
    pub async fn find_all(
        &self,
        first: InodeNo,
        last: InodeNo,
        limit: usize,
    ) -> Result<Vec<(InodeNo, Inode)>, FsError> {
        let rows =
            self.reader.scan(key::inode(first), key::after(&key::inode(last)), limit).await?;
        let row = |(row_key, row): &(Bytes, Bytes)| match key::Key::parse(row_key) {
            Some(key::Key::Inode(ino)) => Ok((ino, decode(row, self.group)?)),
            _ => Err(FsError::Corrupt("an unexpected key in the inode range".to_owned())),
        };
        rows.iter().map(row).collect()
    }

    /// The rows of those inodes that exist, with as few scans as their numbers allow.
    pub async fn inodes(&self, mut inos: Vec<InodeNo>) -> Result<HashMap<InodeNo, Inode>, FsError> {
        inos.sort_unstable();
        inos.dedup();
        let scans = clusters(&inos).into_iter();
        let scans = scans.map(|(first, last)| self.find_all(first, last, CLUSTER_ROWS));
        let rows = futures::stream::iter(scans).buffer_unordered(SCANS).try_concat().await?;
        Ok(rows.into_iter().filter(|(ino, _)| inos.binary_search(ino).is_ok()).collect())
    }

    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDirectory`].
    pub async fn child(
        &self,
        dir: &SnapshotInode,
        name: &EntryName,
    ) -> Result<SnapshotInode, FsError> {
        if dir.row.kind != FileKind::Directory {
            return Err(FsError::NotDirectory);
        }
        match self.entry(dir.ino, name).await? {
            Some(ino) => self.inode(ino).await,
            None => Err(FsError::NotFound),
        }
    }

    /// Looks up the inode that a name in a directory leads to.
    pub async fn entry(&self, dir: InodeNo, name: &EntryName) -> Result<Option<InodeNo>, FsError> {
        let hash = self.hasher.hash(name.as_bytes());
        let from = key::dir_entry(dir, hash, 0);
        let rows = self
            .reader
            .scan(from, key::after(&key::dir_entry(dir, hash, u16::MAX)), COLLISIONS_MAX)
            .await?;
        for (_, row) in rows {
            let entry = DirEntryRow::decode(&row)?;
            if entry.name == *name {
                return Ok(Some(entry.ino));
            }
        }
        Ok(None)
    }

    /// Up to `limit` entries of a directory from a position on, in the order of their cookies.
    pub async fn entries(
        &self,
        dir: InodeNo,
        from: (NameHash, u16),
        limit: usize,
    ) -> Result<Vec<(NameHash, Entry)>, FsError> {
        let start = key::dir_entry(dir, from.0, from.1);
        let rows =
            self.reader.scan(start, key::dir(InodeNo(dir.0.saturating_add(1))), limit).await?;
        rows.iter().map(|(row_key, row)| decode_entry(row_key, row, dir)).collect()
    }

    /// Every pack that the snapshot refers to.
    pub async fn packs(&self) -> Result<HashSet<PackId>, FsError> {
        let mut pages = self.reader.pages(Bytes::from_static(b"U"), Bytes::from_static(b"V"));
        let mut packs = HashSet::new();
        while let Some(rows) = pages.next().await? {
            for (row_key, row) in &rows {
                let Some(key::Key::Usage(pack)) = key::Key::parse(row_key) else {
                    return Err(FsError::Corrupt(format!(
                        "key {} among pack usage",
                        row_key.escape_ascii()
                    )));
                };
                if Usage::decode(row)?.refs > 0 {
                    packs.insert(pack);
                }
            }
        }
        Ok(packs)
    }

    /// Up to `limit` extents of a file's data from `first` on, masked ones included.
    pub async fn extents(
        &self,
        data: DataId,
        first: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Extent)>, FsError> {
        let rows =
            self.reader.scan(key::extent(data, first), key::extents(data.next()), limit).await?;
        let extent = |(row_key, row): &(Bytes, Bytes)| match key::Key::parse(row_key) {
            Some(key::Key::Extent(_, n)) => Ok((n, Extent::decode(row)?)),
            _ => Err(FsError::Corrupt(format!("key {} among extents", row_key.escape_ascii()))),
        };
        rows.iter().map(extent).collect()
    }

    /// A page of a directory's entries after the key of an earlier page; the second value continues
    /// it.
    pub async fn list(
        &self,
        dir: &SnapshotInode,
        from: Option<Bytes>,
    ) -> Result<(Vec<DirEntryRow>, Option<Bytes>), FsError> {
        let from = from.unwrap_or_else(|| key::dir(dir.ino));
        let end = key::dir(InodeNo(dir.ino.0.saturating_add(1)));
        let rows = self.reader.scan(from, end, PAGE_ENTRIES).await?;
        let next = (rows.len() == PAGE_ENTRIES)
            .then(|| rows.last().map(|(last, _)| key::after(last)))
            .flatten();
        let entries =
            rows.iter().map(|(_, row)| DirEntryRow::decode(row)).collect::<Result<_, _>>()?;
        Ok((entries, next))
    }

    /// Bytes `offset..offset + len` as pieces in order; `None` is a hole of that many bytes. Cut at
    /// the file's size.
    pub async fn pieces(
        &self,
        file: &SnapshotInode,
        offset: u64,
        len: u32,
    ) -> Result<Vec<(u64, Option<Bytes>)>, FsError> {
        let parts = self.parts(file, offset, len).await?;
        let mut chunks: Vec<ChunkRef> = Vec::new();
        for part in &parts {
            match part {
                ReadPart::Chunk { chunk, .. } if chunks.last() != Some(chunk) => {
                    chunks.push(*chunk);
                }
                _ => {}
            }
        }
        // Read together: chunks adjacent in a pack need one request.
        let data = if chunks.is_empty() { vec![] } else { self.chunks.read(&chunks).await? };
        let mut data = chunks.iter().zip(data);
        let mut current: Option<(&ChunkRef, Bytes)> = None;
        let mut pieces = Vec::with_capacity(parts.len());
        for part in parts {
            pieces.push(match part {
                ReadPart::Hole(len) => (len, None),
                ReadPart::Data(bytes) => (bytes.len() as u64, Some(bytes)),
                ReadPart::Chunk { chunk, from, len } => {
                    if current.as_ref().is_none_or(|(at, _)| **at != chunk) {
                        current = data.next();
                    }
                    let end = from.saturating_add(len);
                    let bytes =
                        current.as_ref().map(|(_, bytes)| bytes).filter(|bytes| bytes.len() >= end);
                    let bytes = bytes.ok_or_else(|| {
                        FsError::Corrupt(format!(
                            "chunk {} is shorter than a reference to it",
                            chunk.hash
                        ))
                    })?;
                    (len as u64, Some(bytes.slice(from..end)))
                }
            });
        }
        Ok(pieces)
    }

    async fn parts(
        &self,
        file: &SnapshotInode,
        offset: u64,
        len: u32,
    ) -> Result<Vec<ReadPart>, FsError> {
        let row = &file.row;
        let end = row.size.min(offset.saturating_add(u64::from(len)));
        if row.kind != FileKind::Regular || offset >= end {
            return Ok(vec![]);
        }
        let bits = u32::from(row.record_bits);
        let (first, last) = (offset >> bits, (end - 1) >> bits);
        let limit = usize::try_from(last - first + 1).unwrap_or(usize::MAX);
        let (mut parts, mut at) = (Vec::new(), offset);
        for (n, extent) in self.extents(row.data, first, limit).await? {
            // R5: extents from `first` on that were written before the truncation are holes.
            if n > last
                || row
                    .masks
                    .iter()
                    .any(|mask| n >= mask.first && extent.truncations < mask.truncations)
            {
                continue;
            }
            for segment in extent.segments {
                let start = (n << bits) + u64::from(segment.start);
                let (from, to) = (start.max(at), (start + u64::from(segment.len)).min(end));
                if from >= to {
                    continue;
                }
                if from > at {
                    parts.push(ReadPart::Hole(from - at));
                }
                let skip = usize::try_from(from - start).unwrap_or(usize::MAX);
                let len = usize::try_from(to - from).unwrap_or(usize::MAX);
                parts.push(match segment.source {
                    Source::Inline(bytes) if bytes.len() >= skip.saturating_add(len) => {
                        ReadPart::Data(bytes.slice(skip..skip + len))
                    }
                    Source::Inline(_) => {
                        return Err(FsError::Corrupt(format!(
                            "inode {}: extent {n} lacks bytes that it should hold",
                            file.ino
                        )));
                    }
                    Source::Chunk { chunk, from } => {
                        let from = usize::try_from(from).unwrap_or(usize::MAX).saturating_add(skip);
                        ReadPart::Chunk { chunk, from, len }
                    }
                });
                at = to;
            }
        }
        if at < end {
            parts.push(ReadPart::Hole(end - at));
        }
        Ok(parts)
    }
}
