//! A file system as it was at a checkpoint: read only, without an owner, without caches of its own. For restores; bounded
//! memory whatever the file's size.

use super::FsError;
use super::api::FileKind;
use super::db::Reader;
use super::key::{self, NameHash};
use super::row::{DirEntryRow, Inode, Record, Row, Source, Superblock};
use crate::chunk::{ChunkRef, ChunkStore};
use crate::types::{Class, Classify, EntryName, InodeNo};
use bytes::Bytes;

/// Entries of one page of a directory.
const PAGE_ENTRIES: usize = 1024;
/// Entries whose names share a hash: R21 allows 2^16, and no honest directory has more than a few.
const COLLISIONS_MAX: usize = 1 << 16;

/// An object of the view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Viewed {
    pub ino: InodeNo,
    pub row: Inode,
}

pub struct SnapshotView {
    reader: Reader,
    chunks: ChunkStore,
    name_key: [u8; 16],
}

impl SnapshotView {
    /// # Errors
    /// [`FsError::Corrupt`] when the database has no superblock.
    pub async fn new(reader: Reader, chunks: ChunkStore) -> Result<Self, FsError> {
        let row = reader.get(&key::superblock()).await?.ok_or_else(|| FsError::Corrupt("no superblock".to_owned()))?;
        let name_key = Superblock::decode(&row)?.name_key;
        Ok(Self { reader, chunks, name_key })
    }

    pub async fn close(self) -> Result<(), FsError> {
        self.reader.close().await
    }

    pub async fn root(&self) -> Result<Viewed, FsError> {
        self.inode(InodeNo::ROOT).await
    }

    pub async fn inode(&self, ino: InodeNo) -> Result<Viewed, FsError> {
        let row = self.reader.get(&key::inode(ino)).await?;
        let row = row.ok_or_else(|| FsError::Corrupt(format!("inode {ino} is named by an entry but does not exist")))?;
        Ok(Viewed { ino, row: Inode::decode(&row)? })
    }

    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDirectory`].
    pub async fn lookup(&self, dir: &Viewed, name: &EntryName) -> Result<Viewed, FsError> {
        if dir.row.kind != FileKind::Directory {
            return Err(FsError::NotDirectory);
        }
        let hash = NameHash::of(&self.name_key, name.as_bytes());
        let from = key::dir_entry(dir.ino, hash, 0);
        let rows = self.reader.scan(from, after(&key::dir_entry(dir.ino, hash, u16::MAX)), COLLISIONS_MAX).await?;
        for (_, row) in rows {
            let entry = DirEntryRow::decode(&row)?;
            if entry.name == *name {
                return self.inode(entry.ino).await;
            }
        }
        Err(FsError::NotFound)
    }

    /// A page of a directory's entries after the key of an earlier page; the second value continues it.
    pub async fn list(&self, dir: &Viewed, from: Option<Bytes>) -> Result<(Vec<DirEntryRow>, Option<Bytes>), FsError> {
        let from = from.unwrap_or_else(|| key::dir(dir.ino));
        let end = key::dir(InodeNo(dir.ino.0.saturating_add(1)));
        let rows = self.reader.scan(from, end, PAGE_ENTRIES).await?;
        let next = (rows.len() == PAGE_ENTRIES).then(|| rows.last().map(|(last, _)| after(last))).flatten();
        let entries = rows.iter().map(|(_, row)| DirEntryRow::decode(row)).collect::<Result<_, _>>()?;
        Ok((entries, next))
    }

    /// Bytes `offset..offset + len` as pieces in order; `None` is a hole of that many bytes. Cut at the file's size.
    pub async fn read(&self, file: &Viewed, offset: u64, len: u32) -> Result<Vec<(u64, Option<Bytes>)>, FsError> {
        let row = &file.row;
        let end = row.size.min(offset.saturating_add(u64::from(len)));
        if row.kind != FileKind::Regular || offset >= end {
            return Ok(vec![]);
        }
        let bits = u32::from(row.record_bits);
        if !(12..=20).contains(&bits) {
            return Err(FsError::Corrupt(format!("inode {}: records of 2^{bits} bytes", file.ino)));
        }
        let (first, last) = (offset >> bits, (end - 1) >> bits);
        let limit = usize::try_from(last - first + 1).unwrap_or(usize::MAX);
        let rows = self.reader.scan(key::record(row.data, first), after(&key::record(row.data, last)), limit).await?;
        let (mut parts, mut at) = (Vec::new(), offset);
        for (record_key, record) in rows {
            let Some(key::Key::Record(_, n)) = key::Key::parse(&record_key) else {
                return Err(FsError::Corrupt(format!("key {} among records", record_key.escape_ascii())));
            };
            let record = Record::decode(&record)?;
            // R5: records from `first` on that were written before the cut are holes.
            if row.masks.iter().any(|mask| n >= mask.first && record.cut < mask.cut) {
                continue;
            }
            for segment in record.segments {
                let start = (n << bits) + u64::from(segment.start);
                let (from, to) = (start.max(at), (start + u64::from(segment.len)).min(end));
                if from >= to {
                    continue;
                }
                if from > at {
                    parts.push((from - at, None));
                }
                let skip = usize::try_from(from - start).unwrap_or(usize::MAX);
                let bytes = self.segment(&segment.source).await?;
                let wanted = usize::try_from(to - from).unwrap_or(usize::MAX);
                let range = skip..skip.saturating_add(wanted);
                if bytes.len() < range.end {
                    return Err(FsError::Corrupt(format!(
                        "inode {}: record {n} refers to bytes that its chunk does not have",
                        file.ino
                    )));
                }
                parts.push((to - from, Some(bytes.slice(range))));
                at = to;
            }
        }
        if at < end {
            parts.push((end - at, None));
        }
        Ok(parts)
    }

    async fn segment(&self, source: &Source) -> Result<Bytes, FsError> {
        match source {
            Source::Inline(bytes) => Ok(Bytes::copy_from_slice(bytes)),
            Source::Chunk { chunk, from } => {
                let bytes = self.chunk(chunk).await?;
                let from = usize::try_from(*from).unwrap_or(usize::MAX);
                if from > bytes.len() {
                    return Err(FsError::Corrupt(format!("chunk {} is shorter than a reference to it", chunk.hash)));
                }
                Ok(bytes.slice(from..))
            }
        }
    }

    async fn chunk(&self, chunk: &ChunkRef) -> Result<Bytes, FsError> {
        let read = self.chunks.read(std::slice::from_ref(chunk)).await.map_err(|error| match error.class() {
            Class::Corrupt => FsError::Corrupt(error.to_string()),
            _ => FsError::Unavailable(error.to_string()),
        })?;
        read.into_iter().next().ok_or_else(|| FsError::Internal(format!("chunk {} was not read", chunk.hash)))
    }
}

/// The key right after this one.
fn after(key: &[u8]) -> Bytes {
    [key, b"\0"].concat().into()
}
