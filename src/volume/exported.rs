//! The file system that clients see: a live one with its snapshots below `/.snapshots`, or one
//! snapshot by itself.
//!
//! ```text
//! fileid   20 bits: serial (0: live)   44 bits: inode
//!
//! /                         live, inode 1
//! /.snapshots               serial 0, the inode that no file system has
//! /.snapshots/<name>        serial of the snapshot, inode 1
//! /.snapshots/<name>/…      serial of the snapshot, inode as it was
//! ```
//! A handle holds the fileid and the generation, so it names snapshot and inode, also after
//! restarts (R7). A handle of a deleted snapshot is stale.
//!
//! The name `.snapshots` in the live root always leads to the directory of snapshots, whether the
//! root lists it or not ([`Snapdir`](crate::catalog::Snapdir)), as `.zfs` does in ZFS. So no client
//! can make, remove or rename an entry of that name there.

use super::open_snapshots::{OpenSnapshot, OpenSnapshots, RetainedBy};
use super::snapdir::SnapDir;
use crate::catalog::Catalog;
use crate::fs::api::*;
use crate::fs::{Fs, FsError};
use crate::types::{EntryName, InodeNo, SnapshotId, Timestamp};
use bytes::Bytes;
use std::sync::Arc;

/// A file system that an edge exports.
pub enum ExportedFs {
    Live(LiveFs),
    Snapshot(SnapshotExport),
}

/// A live file system and its snapshots.
pub struct LiveFs {
    fs: Arc<Fs>,
    snapshots: SnapDir,
}

/// One snapshot, as the root of an export or a read-only volume.
pub struct SnapshotExport {
    pool: Catalog,
    id: SnapshotId,
    retained_by: RetainedBy,
    open_snapshots: OpenSnapshots,
    root: FileRef,
}

/// The location of a handle in the tree of a live export.
enum Location {
    Live,
    Directory,
    /// In the snapshot of this serial, with the handle as the snapshot itself knows it.
    Inside(u32, FileRef),
}

fn location(file: FileRef) -> Location {
    match file.ino.split() {
        (0, InodeNo::SNAPSHOTS) => Location::Directory,
        (0, _) => Location::Live,
        (serial, ino) => Location::Inside(serial, FileRef { ino, ..file }),
    }
}

/// The inode number of a snapshot's inode in the live export.
fn shown(serial: u32, ino: InodeNo) -> Result<InodeNo, FsError> {
    ino.in_snapshot(serial).ok_or_else(|| {
        FsError::Corrupt(format!(
            "inode {ino} of the snapshot of serial {serial} does not fit a fileid"
        ))
    })
}

fn attr(serial: u32, attr: Attr) -> Result<Attr, FsError> {
    let ino = shown(serial, attr.file.ino)?;
    Ok(Attr { file: FileRef { ino, ..attr.file }, ..attr })
}

fn is_root(file: FileRef) -> bool {
    file.ino == InodeNo::ROOT
}

/// Only the live file system can be changed.
fn live(files: &[FileRef]) -> Result<(), FsError> {
    if files.iter().all(|file| matches!(location(*file), Location::Live)) {
        Ok(())
    } else {
        Err(FsError::ReadOnly)
    }
}

fn is_reserved(dir: FileRef, name: &EntryName) -> bool {
    is_root(dir) && name.as_bytes() == SNAPSHOTS_NAME
}

/// Checks a name that is to be created in a live directory.
fn new_name(dir: FileRef, name: &EntryName) -> Result<(), FsError> {
    live(&[dir])?;
    if is_reserved(dir, name) { Err(FsError::Exists) } else { Ok(()) }
}

/// Checks a name that is to be removed from a live directory.
fn old_name(dir: FileRef, name: &EntryName) -> Result<(), FsError> {
    live(&[dir])?;
    if is_reserved(dir, name) { Err(FsError::ReadOnly) } else { Ok(()) }
}

impl LiveFs {
    pub(super) fn new(
        fs: Arc<Fs>,
        pool: Catalog,
        dataset: crate::types::Incarnation,
        open_snapshots: OpenSnapshots,
    ) -> Self {
        Self { fs, snapshots: SnapDir::new(pool, dataset, open_snapshots) }
    }

    async fn snapshot(&self, serial: u32) -> Result<Arc<OpenSnapshot>, FsError> {
        self.snapshots.snapshot(&self.fs, serial).await
    }

    async fn directory(&self, file: FileRef) -> Result<Attr, FsError> {
        if file == SnapDir::FILE {
            self.snapshots.attr(&self.fs).await
        } else {
            Err(FsError::Stale)
        }
    }

    async fn getattr(&self, file: FileRef) -> Result<Attr, FsError> {
        match location(file) {
            Location::Live => self.fs.getattr(file).await,
            Location::Directory => self.directory(file).await,
            Location::Inside(serial, file) => {
                attr(serial, self.snapshot(serial).await?.fs().getattr(file).await?)
            }
        }
    }

    async fn lookup(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &[u8],
    ) -> Result<(Attr, Attr), FsError> {
        match location(dir) {
            Location::Live if is_root(dir) && name == SNAPSHOTS_NAME => {
                // Fails unless the caller may look up names here.
                let (root, _) = self.fs.lookup(caller, dir, b".").await?;
                Ok((self.snapshots.attr(&self.fs).await?, root))
            }
            Location::Live => self.fs.lookup(caller, dir, name).await,
            Location::Directory => self.lookup_snapshot(dir, name).await,
            Location::Inside(serial, inner) => {
                let snapshot = self.snapshot(serial).await?;
                let (found, shown) = snapshot.fs().lookup(caller, inner, name).await?;
                let shown = attr(serial, shown)?;
                match is_root(inner) && name == b".." {
                    true => Ok((self.snapshots.attr(&self.fs).await?, shown)),
                    false => Ok((attr(serial, found)?, shown)),
                }
            }
        }
    }

    async fn lookup_snapshot(&self, dir: FileRef, name: &[u8]) -> Result<(Attr, Attr), FsError> {
        match name {
            b"." => self.directory(dir).await.map(|attr| (attr, attr)),
            b".." => Ok((self.fs.getattr(self.fs.root()).await?, self.directory(dir).await?)),
            name => {
                let (serial, snapshot, shown) = self.snapshots.lookup(&self.fs, name).await?;
                let fs = snapshot.fs();
                Ok((attr(serial, fs.getattr(fs.root()).await?)?, shown))
            }
        }
    }

    async fn access(
        &self,
        caller: &Caller,
        file: FileRef,
        want: u32,
    ) -> Result<(u32, Attr), FsError> {
        match location(file) {
            Location::Live => self.fs.access(caller, file, want).await,
            Location::Directory => {
                Ok((want & (access::READ | access::LOOKUP), self.directory(file).await?))
            }
            Location::Inside(serial, file) => {
                let (granted, shown) =
                    self.snapshot(serial).await?.fs().access(caller, file, want).await?;
                Ok((granted, attr(serial, shown)?))
            }
        }
    }

    async fn readlink(&self, caller: &Caller, file: FileRef) -> Result<(Bytes, Attr), FsError> {
        match location(file) {
            Location::Live => self.fs.readlink(caller, file).await,
            Location::Directory => Err(FsError::Invalid("not a symbolic link")),
            Location::Inside(serial, file) => {
                let (target, shown) =
                    self.snapshot(serial).await?.fs().readlink(caller, file).await?;
                Ok((target, attr(serial, shown)?))
            }
        }
    }

    async fn read(
        &self,
        caller: &Caller,
        file: FileRef,
        offset: u64,
        count: u32,
    ) -> Result<ReadOut, FsError> {
        match location(file) {
            Location::Live => self.fs.read(caller, file, offset, count).await,
            Location::Directory => Err(FsError::IsDirectory),
            Location::Inside(serial, file) => {
                let read =
                    self.snapshot(serial).await?.fs().read(caller, file, offset, count).await?;
                Ok(ReadOut { attr: attr(serial, read.attr)?, ..read })
            }
        }
    }

    async fn readdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        after: DirCookie,
        limit: ListLimit,
    ) -> Result<Listing, FsError> {
        let mut listing = match location(dir) {
            Location::Live => self.fs.readdir(caller, dir, after, limit).await?,
            Location::Directory => {
                let live = self.fs.getattr(self.fs.root()).await?;
                let mut listing = self.snapshots.list(&self.fs, after, limit).await?;
                let dots = listing.entries.iter_mut().filter(|entry| entry.ino == InodeNo::ROOT);
                dots.for_each(|entry| entry.attr = limit.with_attr.then_some(live));
                listing
            }
            Location::Inside(serial, inner) => {
                self.list_inside(caller, (serial, inner), after, limit).await?
            }
        };
        // The attributes of `.snapshots` wherever it is listed: in the root, as itself, and as the
        // parent of a snapshot's root.
        if limit.with_attr && listing.entries.iter().any(|entry| entry.ino == InodeNo::SNAPSHOTS) {
            let snapshots = self.snapshots.attr(&self.fs).await?;
            let shown = listing.entries.iter_mut().filter(|entry| entry.ino == InodeNo::SNAPSHOTS);
            shown.for_each(|entry| entry.attr = Some(snapshots));
        }
        Ok(listing)
    }

    async fn list_inside(
        &self,
        caller: &Caller,
        (serial, dir): (u32, FileRef),
        after: DirCookie,
        limit: ListLimit,
    ) -> Result<Listing, FsError> {
        let mut listing =
            self.snapshot(serial).await?.fs().readdir(caller, dir, after, limit).await?;
        for entry in &mut listing.entries {
            if is_root(dir) && entry.name == ".." {
                (entry.ino, entry.attr) = (InodeNo::SNAPSHOTS, None);
            } else {
                entry.ino = shown(serial, entry.ino)?;
                entry.attr = entry.attr.map(|of| attr(serial, of)).transpose()?;
            }
        }
        listing.dir = attr(serial, listing.dir)?;
        Ok(listing)
    }
}

impl SnapshotExport {
    /// # Errors
    /// [`FsError::Stale`] when the snapshot does not exist, or `retained_by` does not retain it.
    pub async fn open(
        open_snapshots: &OpenSnapshots,
        pool: &Catalog,
        id: SnapshotId,
        retained_by: RetainedBy,
    ) -> Result<Self, FsError> {
        let root = open_snapshots.get(pool, id, retained_by).await?.fs().root();
        Ok(Self {
            pool: pool.clone(),
            id,
            retained_by,
            open_snapshots: open_snapshots.clone(),
            root,
        })
    }

    async fn snapshot(&self) -> Result<Arc<OpenSnapshot>, FsError> {
        self.open_snapshots.get(&self.pool, self.id, self.retained_by).await
    }
}

/// A call that snapshots answer, too.
macro_rules! either {
    ($self:ident, $call:ident($($argument:expr),*)) => {
        match $self {
            Self::Live(live) => live.$call($($argument),*).await,
            Self::Snapshot(one) => one.snapshot().await?.fs().$call($($argument),*).await,
        }
    };
}

/// The live file system, for a call that changes it; `check` fails for objects that may not be
/// changed.
macro_rules! changing {
    ($self:ident, $check:expr) => {
        match $self {
            Self::Live(live) => {
                $check?;
                &live.fs
            }
            Self::Snapshot(_) => return Err(FsError::ReadOnly),
        }
    };
}

impl FileSystem for ExportedFs {
    fn root(&self) -> FileRef {
        match self {
            Self::Live(live) => live.fs.root(),
            Self::Snapshot(one) => one.root,
        }
    }

    fn write_verifier(&self) -> [u8; 8] {
        match self {
            Self::Live(live) => live.fs.write_verifier(),
            Self::Snapshot(_) => [0; 8],
        }
    }

    async fn getattr(&self, file: FileRef) -> Result<Attr, FsError> {
        either!(self, getattr(file))
    }

    async fn setattr(
        &self,
        caller: &Caller,
        file: FileRef,
        set: SetAttr,
        guard: Option<Timestamp>,
    ) -> Result<Change, FsError> {
        changing!(self, live(&[file])).setattr(caller, file, set, guard).await
    }

    async fn lookup(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &[u8],
    ) -> Result<(Attr, Attr), FsError> {
        either!(self, lookup(caller, dir, name))
    }

    async fn access(
        &self,
        caller: &Caller,
        file: FileRef,
        want: u32,
    ) -> Result<(u32, Attr), FsError> {
        either!(self, access(caller, file, want))
    }

    async fn readlink(&self, caller: &Caller, file: FileRef) -> Result<(Bytes, Attr), FsError> {
        either!(self, readlink(caller, file))
    }

    async fn read(
        &self,
        caller: &Caller,
        file: FileRef,
        offset: u64,
        count: u32,
    ) -> Result<ReadOut, FsError> {
        either!(self, read(caller, file, offset, count))
    }

    async fn write(
        &self,
        caller: &Caller,
        file: FileRef,
        offset: u64,
        data: Bytes,
        stability: Stability,
    ) -> Result<Written, FsError> {
        changing!(self, live(&[file])).write(caller, file, offset, data, stability).await
    }

    async fn commit(
        &self,
        caller: &Caller,
        file: FileRef,
        offset: u64,
        count: u32,
    ) -> Result<Change, FsError> {
        changing!(self, live(&[file])).commit(caller, file, offset, count).await
    }

    async fn create(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        how: CreateHow,
    ) -> Result<Created, FsError> {
        changing!(self, new_name(dir, name)).create(caller, dir, name, how).await
    }

    async fn mkdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        set: SetAttr,
    ) -> Result<Created, FsError> {
        changing!(self, new_name(dir, name)).mkdir(caller, dir, name, set).await
    }

    async fn make(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        what: Special,
        set: SetAttr,
    ) -> Result<Created, FsError> {
        changing!(self, new_name(dir, name)).make(caller, dir, name, what, set).await
    }

    async fn remove(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
    ) -> Result<Change, FsError> {
        changing!(self, old_name(dir, name)).remove(caller, dir, name).await
    }

    async fn rmdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
    ) -> Result<Change, FsError> {
        changing!(self, old_name(dir, name)).rmdir(caller, dir, name).await
    }

    async fn rename(
        &self,
        caller: &Caller,
        from: (FileRef, &EntryName),
        to: (FileRef, &EntryName),
    ) -> Result<(Change, Change), FsError> {
        changing!(self, old_name(from.0, from.1).and_then(|()| new_name(to.0, to.1)))
            .rename(caller, from, to)
            .await
    }

    async fn link(
        &self,
        caller: &Caller,
        file: FileRef,
        dir: FileRef,
        name: &EntryName,
    ) -> Result<(Attr, Change), FsError> {
        let check = || {
            new_name(dir, name)?;
            // `ln` and `cp -l` from a snapshot fall back to a copy.
            live(&[file]).map_err(|_| FsError::CrossDevice)
        };
        changing!(self, check()).link(caller, file, dir, name).await
    }

    async fn readdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        after: DirCookie,
        limit: ListLimit,
    ) -> Result<Listing, FsError> {
        either!(self, readdir(caller, dir, after, limit))
    }

    async fn statfs(&self) -> Result<StatFs, FsError> {
        match self {
            Self::Live(live) => live.fs.statfs().await,
            Self::Snapshot(one) => one.snapshot().await?.fs().statfs().await,
        }
    }
}
