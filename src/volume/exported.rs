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
use crate::fs::{Fs, FsError, Throttle};
use crate::types::{EntryName, Incarnation, InodeNo, IoLimits, SnapshotId, Timestamp};
use bytes::Bytes;
use std::sync::Arc;

/// A file system that an edge exports.
pub struct ExportedFs {
    root: FileRef,
    tree: Tree,
    throttle: Option<Arc<Throttle>>,
}

enum Tree {
    /// A live file system and its snapshots.
    Live(Arc<Fs>, SnapDir),
    /// One snapshot, as the root of an export or a read-only volume.
    Snapshot {
        open_snapshots: OpenSnapshots,
        pool: Catalog,
        id: SnapshotId,
        retained_by: RetainedBy,
    },
}

/// The object of a handle.
enum Object<'a> {
    Live(&'a Fs),
    /// The directory of the live file system's snapshots.
    Directory(&'a Fs, &'a SnapDir),
    InSnapshot(InSnapshot),
}

/// An object of a snapshot.
struct InSnapshot {
    snapshot: Arc<OpenSnapshot>,
    /// The object as the snapshot itself knows it.
    file: FileRef,
    /// The snapshot's serial in a live export; `None`: the snapshot is the export.
    serial: Option<u32>,
}

impl InSnapshot {
    /// The number of one of the snapshot's inodes in the export.
    fn ino(&self, ino: InodeNo) -> Result<InodeNo, FsError> {
        let Some(serial) = self.serial else { return Ok(ino) };
        ino.in_snapshot(serial).ok_or_else(|| {
            FsError::Corrupt(format!(
                "inode {ino} of the snapshot of serial {serial} does not fit a fileid"
            ))
        })
    }

    /// The attributes of one of the snapshot's inodes in the export.
    fn attr(&self, attr: Attr) -> Result<Attr, FsError> {
        Ok(Attr { file: FileRef { ino: self.ino(attr.file.ino)?, ..attr.file }, ..attr })
    }

    /// Returns whether this is the root of a snapshot that has the directory of snapshots above it.
    fn is_below_snapshots(&self) -> bool {
        self.serial.is_some() && is_root(self.file)
    }

    async fn readdir(
        &self,
        caller: &Caller,
        after: DirCookie,
        limit: ListLimit,
    ) -> Result<Listing, FsError> {
        let mut listing = self.snapshot.fs().readdir(caller, self.file, after, limit).await?;
        for entry in &mut listing.entries {
            if self.is_below_snapshots() && entry.name == ".." {
                (entry.ino, entry.attr) = (InodeNo::SNAPSHOTS, None);
            } else {
                entry.ino = self.ino(entry.ino)?;
                entry.attr = entry.attr.map(|attr| self.attr(attr)).transpose()?;
            }
        }
        listing.dir = self.attr(listing.dir)?;
        Ok(listing)
    }
}

fn is_root(file: FileRef) -> bool {
    file.ino == InodeNo::ROOT
}

fn is_reserved(dir: FileRef, name: &[u8]) -> bool {
    is_root(dir) && name == SNAPSHOTS_NAME
}

/// The attributes of the directory of snapshots, for its handle.
async fn directory(fs: &Fs, snapshots: &SnapDir, file: FileRef) -> Result<Attr, FsError> {
    if file == SnapDir::FILE { snapshots.attr(fs).await } else { Err(FsError::Stale) }
}

impl ExportedFs {
    pub(super) fn live(
        fs: Arc<Fs>,
        pool: Catalog,
        dataset: Incarnation,
        open_snapshots: OpenSnapshots,
    ) -> Self {
        let snapshots = SnapDir::new(pool, dataset, open_snapshots);
        let throttle = fs.throttle().cloned();
        Self { root: fs.root(), tree: Tree::Live(fs, snapshots), throttle }
    }

    /// One snapshot. It is opened again whenever it was closed as idle.
    ///
    /// # Errors
    /// [`FsError::Stale`] when the snapshot does not exist, or `retained_by` does not retain it.
    pub async fn snapshot(
        open_snapshots: &OpenSnapshots,
        pool: &Catalog,
        id: SnapshotId,
        retained_by: RetainedBy,
    ) -> Result<Self, FsError> {
        let root = open_snapshots.get(pool, id, retained_by).await?.fs().root();
        let (open_snapshots, pool) = (open_snapshots.clone(), pool.clone());
        let tree = Tree::Snapshot { open_snapshots, pool, id, retained_by };
        Ok(Self { root, tree, throttle: None })
    }

    /// Limits the reads of a snapshot.
    #[must_use]
    pub(super) fn limited(self, limits: IoLimits) -> Self {
        Self { throttle: Some(Throttle::new(limits)), ..self }
    }

    async fn object(&self, file: FileRef) -> Result<Object<'_>, FsError> {
        match &self.tree {
            Tree::Live(fs, snapshots) => match file.ino.split() {
                (0, InodeNo::SNAPSHOTS) => Ok(Object::Directory(fs, snapshots)),
                (0, _) => Ok(Object::Live(fs)),
                (serial, ino) => Ok(Object::InSnapshot(InSnapshot {
                    snapshot: snapshots.snapshot(fs, serial).await?,
                    file: FileRef { ino, ..file },
                    serial: Some(serial),
                })),
            },
            Tree::Snapshot { open_snapshots, pool, id, retained_by } => {
                let snapshot = open_snapshots.get(pool, *id, *retained_by).await?;
                Ok(Object::InSnapshot(InSnapshot { snapshot, file, serial: None }))
            }
        }
    }

    /// The live file system, for a call that changes an object: only live ones can be changed.
    fn changing(&self, file: FileRef) -> Result<&Fs, FsError> {
        match &self.tree {
            Tree::Live(fs, _) if file.ino.split().0 == 0 && file.ino != InodeNo::SNAPSHOTS => {
                Ok(fs)
            }
            Tree::Live(..) | Tree::Snapshot { .. } => Err(FsError::ReadOnly),
        }
    }

    /// The live file system, for a call that creates a name.
    fn creating(&self, dir: FileRef, name: &EntryName) -> Result<&Fs, FsError> {
        let fs = self.changing(dir)?;
        if is_reserved(dir, name.as_bytes()) { Err(FsError::Exists) } else { Ok(fs) }
    }

    /// The live file system, for a call that removes a name.
    fn removing(&self, dir: FileRef, name: &EntryName) -> Result<&Fs, FsError> {
        let fs = self.changing(dir)?;
        if is_reserved(dir, name.as_bytes()) { Err(FsError::ReadOnly) } else { Ok(fs) }
    }
}

/// Looks a name up in the directory of snapshots.
async fn lookup_snapshot(
    fs: &Fs,
    snapshots: &SnapDir,
    dir: FileRef,
    name: &[u8],
) -> Result<(Attr, Attr), FsError> {
    match name {
        b"." => directory(fs, snapshots, dir).await.map(|attr| (attr, attr)),
        b".." => Ok((fs.getattr(fs.root()).await?, directory(fs, snapshots, dir).await?)),
        name => {
            let (serial, snapshot, shown) = snapshots.lookup(fs, name).await?;
            let file = snapshot.fs().root();
            let root = InSnapshot { snapshot, file, serial: Some(serial) };
            Ok((root.attr(root.snapshot.fs().getattr(file).await?)?, shown))
        }
    }
}

/// A page of the directory of snapshots.
async fn list_snapshots(
    fs: &Fs,
    snapshots: &SnapDir,
    after: DirCookie,
    limit: ListLimit,
) -> Result<Listing, FsError> {
    let parent = fs.getattr(fs.root()).await?;
    let mut listing = snapshots.list(fs, after, limit).await?;
    let dots = listing.entries.iter_mut().filter(|entry| entry.ino == InodeNo::ROOT);
    dots.for_each(|entry| entry.attr = limit.with_attr.then_some(parent));
    Ok(listing)
}

impl FileSystem for ExportedFs {
    fn root(&self) -> FileRef {
        self.root
    }

    fn write_verifier(&self) -> [u8; 8] {
        match &self.tree {
            Tree::Live(fs, _) => fs.write_verifier(),
            Tree::Snapshot { .. } => [0; 8],
        }
    }

    fn throttle(&self) -> Option<&Arc<Throttle>> {
        self.throttle.as_ref()
    }

    fn ended(&self) -> Option<FsError> {
        match &self.tree {
            Tree::Live(fs, _) => fs.ended(),
            // It is opened again as often as it was closed.
            Tree::Snapshot { .. } => None,
        }
    }

    async fn getattr(&self, file: FileRef) -> Result<Attr, FsError> {
        match self.object(file).await? {
            Object::Live(fs) => fs.getattr(file).await,
            Object::Directory(fs, snapshots) => directory(fs, snapshots, file).await,
            Object::InSnapshot(one) => one.attr(one.snapshot.fs().getattr(one.file).await?),
        }
    }

    async fn setattr(
        &self,
        caller: &Caller,
        file: FileRef,
        set: SetAttr,
        guard: Option<Timestamp>,
    ) -> Result<Change, FsError> {
        self.changing(file)?.setattr(caller, file, set, guard).await
    }

    async fn lookup(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &[u8],
    ) -> Result<(Attr, Attr), FsError> {
        match self.object(dir).await? {
            Object::Live(fs) => match &self.tree {
                Tree::Live(_, snapshots) if is_reserved(dir, name) => {
                    // Fails unless the caller may look up names here.
                    let (root, _) = fs.lookup(caller, dir, b".").await?;
                    Ok((snapshots.attr(fs).await?, root))
                }
                _ => fs.lookup(caller, dir, name).await,
            },
            Object::Directory(fs, snapshots) => lookup_snapshot(fs, snapshots, dir, name).await,
            Object::InSnapshot(one) => {
                let (found, shown) = one.snapshot.fs().lookup(caller, one.file, name).await?;
                let shown = one.attr(shown)?;
                match &self.tree {
                    Tree::Live(fs, snapshots) if is_root(one.file) && name == b".." => {
                        Ok((snapshots.attr(fs).await?, shown))
                    }
                    _ => Ok((one.attr(found)?, shown)),
                }
            }
        }
    }

    async fn access(
        &self,
        caller: &Caller,
        file: FileRef,
        want: u32,
    ) -> Result<(u32, Attr), FsError> {
        match self.object(file).await? {
            Object::Live(fs) => fs.access(caller, file, want).await,
            Object::Directory(fs, snapshots) => {
                let attr = directory(fs, snapshots, file).await?;
                Ok((want & (access::READ | access::LOOKUP), attr))
            }
            Object::InSnapshot(one) => {
                let (granted, attr) = one.snapshot.fs().access(caller, one.file, want).await?;
                Ok((granted, one.attr(attr)?))
            }
        }
    }

    async fn readlink(&self, caller: &Caller, file: FileRef) -> Result<(Bytes, Attr), FsError> {
        match self.object(file).await? {
            Object::Live(fs) => fs.readlink(caller, file).await,
            Object::Directory(..) => Err(FsError::Invalid("not a symbolic link")),
            Object::InSnapshot(one) => {
                let (target, attr) = one.snapshot.fs().readlink(caller, one.file).await?;
                Ok((target, one.attr(attr)?))
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
        match self.object(file).await? {
            Object::Live(fs) => fs.read(caller, file, offset, count).await,
            Object::Directory(..) => Err(FsError::IsDirectory),
            Object::InSnapshot(one) => {
                let read = one.snapshot.fs().read(caller, one.file, offset, count).await?;
                Ok(ReadOut { attr: one.attr(read.attr)?, ..read })
            }
        }
    }

    async fn write(
        &self,
        caller: &Caller,
        file: FileRef,
        offset: u64,
        data: Bytes,
        stability: Stability,
    ) -> Result<Written, FsError> {
        self.changing(file)?.write(caller, file, offset, data, stability).await
    }

    async fn commit(
        &self,
        caller: &Caller,
        file: FileRef,
        offset: u64,
        count: u32,
    ) -> Result<Change, FsError> {
        self.changing(file)?.commit(caller, file, offset, count).await
    }

    async fn create(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        how: CreateHow,
    ) -> Result<Created, FsError> {
        self.creating(dir, name)?.create(caller, dir, name, how).await
    }

    async fn mkdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        set: SetAttr,
    ) -> Result<Created, FsError> {
        self.creating(dir, name)?.mkdir(caller, dir, name, set).await
    }

    async fn make(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        what: Special,
        set: SetAttr,
    ) -> Result<Created, FsError> {
        self.creating(dir, name)?.make(caller, dir, name, what, set).await
    }

    async fn remove(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
    ) -> Result<Change, FsError> {
        self.removing(dir, name)?.remove(caller, dir, name).await
    }

    async fn rmdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
    ) -> Result<Change, FsError> {
        self.removing(dir, name)?.rmdir(caller, dir, name).await
    }

    async fn rename(
        &self,
        caller: &Caller,
        from: (FileRef, &EntryName),
        to: (FileRef, &EntryName),
    ) -> Result<(Change, Change), FsError> {
        self.removing(from.0, from.1)?;
        self.creating(to.0, to.1)?.rename(caller, from, to).await
    }

    async fn link(
        &self,
        caller: &Caller,
        file: FileRef,
        dir: FileRef,
        name: &EntryName,
    ) -> Result<(Attr, Change), FsError> {
        let fs = self.creating(dir, name)?;
        // `ln` and `cp -l` from a snapshot fall back to a copy.
        self.changing(file).map_err(|_| FsError::CrossDevice)?;
        fs.link(caller, file, dir, name).await
    }

    async fn readdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        after: DirCookie,
        limit: ListLimit,
    ) -> Result<Listing, FsError> {
        let mut listing = match self.object(dir).await? {
            Object::Live(fs) => fs.readdir(caller, dir, after, limit).await?,
            Object::Directory(fs, snapshots) => list_snapshots(fs, snapshots, after, limit).await?,
            Object::InSnapshot(one) => one.readdir(caller, after, limit).await?,
        };
        // The attributes of `.snapshots` wherever it is listed: in the root, as itself, and as the
        // parent of a snapshot's root.
        if let Tree::Live(fs, snapshots) = &self.tree
            && limit.with_attr
            && listing.entries.iter().any(|entry| entry.ino == InodeNo::SNAPSHOTS)
        {
            let attr = snapshots.attr(fs).await?;
            let shown = listing.entries.iter_mut().filter(|entry| entry.ino == InodeNo::SNAPSHOTS);
            shown.for_each(|entry| entry.attr = Some(attr));
        }
        Ok(listing)
    }

    async fn statfs(&self) -> Result<StatFs, FsError> {
        match self.object(self.root).await? {
            Object::InSnapshot(one) => one.snapshot.fs().statfs().await,
            Object::Live(fs) | Object::Directory(fs, _) => fs.statfs().await,
        }
    }
}
