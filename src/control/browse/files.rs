//! Looks at the files of an open root.

use super::path::{self, below, find, shown};
use super::{Cursor, Entry, OpenRoot, kind_name, refused};
use crate::control::ControlError;
use crate::fs::FsError;
use crate::fs::api::FileKind;
use crate::fs::key::{self, NameHash};
use crate::types::{Class, EntryName, InodeNo};

/// Most entries of one page of a listing.
pub const LIST_MAX: usize = 10_000;

/// An entry of a folder without its attributes.
pub(super) struct NamedEntry {
    pub position: (NameHash, u16),
    pub name: EntryName,
    pub ino: InodeNo,
    pub kind: FileKind,
}

impl OpenRoot {
    /// The object at a path. A symbolic link is not followed.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a path that leaves the root or goes through a link.
    pub async fn stat(&self, path: &[u8]) -> Result<Entry, ControlError> {
        let found = find(self.files(), path).await?;
        let path = path::join(&path::names(path)?);
        Ok(Entry::new(path, found.ino, found.row, self.dataset()))
    }

    /// Entries of the folder at a path, at most `limit` of them ([`LIST_MAX`]), and where to go on.
    /// A folder that one page holds is sorted by name; otherwise the order is that of the store,
    /// and an entry that is there throughout is listed exactly once.
    ///
    /// # Errors
    /// `Invalid` when the path leads to no folder, or for the cursor of another one.
    pub async fn list(
        &self,
        path: &[u8],
        from: Option<Cursor>,
        limit: usize,
    ) -> Result<(Vec<Entry>, Option<Cursor>), ControlError> {
        let folder = self.folder(path).await?;
        let ino = InodeNo(folder.ino);
        let position = from.map_or(Ok(key::FIRST), |cursor| cursor.position(ino))?;
        let limit = limit.clamp(1, LIST_MAX);
        // One more tells whether there is another page.
        let mut named = self.named(ino, position, limit + 1).await?;
        let more = named.len() > limit;
        named.truncate(limit);
        let next = named.last().filter(|_| more).map(|last| Cursor::new(ino, last.position));
        let mut entries = self.entries(&folder.path, named).await?;
        if from.is_none() && next.is_none() {
            entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        }
        Ok((entries, next))
    }

    async fn folder(&self, path: &[u8]) -> Result<Entry, ControlError> {
        let found = self.stat(path).await?;
        match found.kind {
            FileKind::Directory => Ok(found),
            kind => {
                let why = format!("{} is a {}, not a folder", shown(&found.path), kind_name(kind));
                Err(refused(Class::Invalid, why))
            }
        }
    }

    /// The next entries of a folder, at most `limit`.
    pub(super) async fn named(
        &self,
        folder: InodeNo,
        from: (NameHash, u16),
        limit: usize,
    ) -> Result<Vec<NamedEntry>, FsError> {
        let entries = self.files().entries(folder, from, limit).await?;
        let named = entries.into_iter().map(|(hash, entry)| NamedEntry {
            position: (hash, entry.n),
            name: entry.name,
            ino: entry.ino,
            kind: entry.kind,
        });
        Ok(named.collect())
    }

    /// The attributes of entries of one folder, read many at once.
    pub(super) async fn entries(
        &self,
        folder: &[u8],
        named: Vec<NamedEntry>,
    ) -> Result<Vec<Entry>, FsError> {
        let mut rows = self.files().inodes(named.iter().map(|named| named.ino).collect()).await?;
        let mut entries = Vec::with_capacity(named.len());
        for NamedEntry { name, ino, .. } in named {
            // Two names of one folder may lead to one inode.
            let row = match rows.get(&ino) {
                Some(row) if row.nlink > 1 => Some(row.clone()),
                _ => rows.remove(&ino),
            };
            let row = row.ok_or_else(|| {
                FsError::Corrupt(format!("inode {ino} is named by an entry but does not exist"))
            })?;
            entries.push(Entry::new(below(folder, name.as_bytes()), ino, row, self.dataset()));
        }
        Ok(entries)
    }
}
