//! Restores a file or a tree of a snapshot into the live file system, by reference: rows are
//! written, no chunk is read or stored (R10).
//!
//! Each file and each further name of one appears whole, in one batch with the removal of the
//! object that had the name, whose space is freed by the same batch; a tree appears file by file,
//! so that an interrupted restore has some files restored and the others unchanged. Objects that
//! did not change since the snapshot are left alone. Existing directories are kept, with their
//! other entries, and get the snapshot's attributes. Everything is in the store when the restore
//! returns.
//!
//! An object of a tree that cannot be restored is left out and reported at the end; a store that
//! does not answer ends the restore.
//!
//! Memory: that of a [`Walk`], the identities of the snapshot's packs, and of objects with several
//! names.

mod outcome;

pub use outcome::{Progress, RestoreError, Restored};

use crate::fs::FsError;
use crate::fs::api::{Caller, FileKind, FileRef, SNAPSHOTS_NAME, SetAttr, SetTime};
use crate::fs::dataset::Fs;
use crate::fs::inode::Node;
use crate::fs::names::{Replaceable, given_back};
use crate::fs::replies::ReplySlot;
use crate::fs::row::{Extent, Inode};
use crate::fs::snapshot_fs::{SnapshotFs, SnapshotInode};
use crate::fs::walk::Walk;
use crate::types::{EntryName, InodeNo};
use outcome::{LeftOut, Unplaced};
use std::collections::HashMap;
use std::sync::Arc;

/// Extents read at a time.
const RECORDS: usize = 512;
/// Most objects with several names that are remembered; each name of others becomes an object of
/// its own.
const LINKS_MAX: usize = 1 << 20;
/// Most numbered backups of one name.
const BACKUPS_MAX: u32 = 9999;
/// Most objects that take one name while it is restored, and are kept.
const KEEPS_MAX: u32 = 16;

/// Treatment of an object that has the name of one that is restored. A directory is
/// never replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// Leaves it, and refuses to go on.
    Refuse,
    Replace,
    /// Replaces it, after it was given a backup's name.
    KeepBeside,
}

/// The source in the snapshot and the target; no names: the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub from: Vec<EntryName>,
    pub to: Vec<EntryName>,
    pub overwrite: Overwrite,
}

struct Restore<'a> {
    fs: &'a Fs,
    view: &'a SnapshotFs,
    overwrite: Overwrite,
    progress: &'a Progress,
    links: HashMap<InodeNo, FileRef>,
    /// The target of the tree's top, for messages.
    to: String,
    walk: Walk<'a>,
    /// The live directories that stand for those of the walk.
    into: Vec<FileRef>,
    left_out: LeftOut,
}

fn shown(names: &[EntryName]) -> String {
    let parts = names.iter().map(|name| String::from_utf8_lossy(name.as_bytes()));
    format!("/{}", parts.collect::<Vec<_>>().join("/"))
}

fn at(path: &str) -> impl FnOnce(FsError) -> RestoreError + '_ {
    move |source| RestoreError::Fs { path: path.to_owned(), source }
}

impl Fs {
    /// The guard of a restore; `None` while another one runs.
    pub fn begin_restore(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        self.restoring.try_lock().ok()
    }

    /// Restores from a snapshot of this very dataset, which must be pinned in the catalog until
    /// this returns (R10).
    pub async fn restore(
        &self,
        view: &SnapshotFs,
        route: &Route,
        progress: &Progress,
    ) -> Result<Restored, RestoreError> {
        let path = shown(&route.to);
        let packs = view.packs().await.map_err(at(&path))?;
        let _pin = self.committer.pin(packs);
        let (overwrite, to, walk) = (route.overwrite, path.clone(), Walk::new(view));
        let mut restore = Restore {
            fs: self,
            view,
            overwrite,
            progress,
            links: Default::default(),
            to,
            walk,
            into: Default::default(),
            left_out: Default::default(),
        };
        let done = restore.all(route).await;
        // Also covers what was done before an error: the snapshot may be released when this
        // returns.
        let last = self.committer.last();
        self.retry_until_stopped(|| self.committer.durable(last)).await.map_err(at(&path))?;
        done.and_then(|()| restore.left_out.end(progress.now()))
    }
}

impl Restore<'_> {
    async fn all(&mut self, route: &Route) -> Result<(), RestoreError> {
        let source = self.source(&route.from).await?;
        let path = self.to.clone();
        match route.to.split_last() {
            Some((name, parents)) => {
                if route.to[0].as_bytes() == SNAPSHOTS_NAME {
                    return Err(RestoreError::InTheWay {
                        path,
                        why: "what is in .snapshots cannot be changed",
                    });
                }
                let dir = self.folder(parents).await?;
                let fs = self.fs;
                fs.gate.freeze.passed().await;
                let _call = fs.gate.enter().map_err(at("/"))?;
                self.object(source, dir, name, None).await?;
            }
            None if source.row.kind != FileKind::Directory => {
                return Err(RestoreError::InTheWay {
                    path,
                    why: "only a folder can take the place of the root",
                });
            }
            None if self.overwrite == Overwrite::Refuse => {
                return Err(RestoreError::InTheWay {
                    path,
                    why: "the root is there: replace what differs by force, or restore to another \
                        path",
                });
            }
            None => self.merge(source, self.fs.root_ref(), None),
        }
        while let Some(dir) = self.into.last().copied() {
            if self.progress.is_stopped() {
                return Err(self.stopped());
            }
            // The restore checks in between whether the file system closes, which does not wait for
            // all of it.
            let fs = self.fs;
            fs.gate.freeze.passed().await;
            let call = fs.gate.enter().map_err(at("/"))?;
            let done = self.step(dir).await;
            drop(call);
            match done {
                Err(error) if !error.ends_all() => self.left_out.add(&error),
                done => done?,
            }
        }
        Ok(())
    }

    /// Returns the path of an entry of the directory that was entered last, or of that directory.
    fn path(&self, name: Option<&EntryName>) -> String {
        let mut path = self.to.clone();
        for name in self.walk.names().chain(name) {
            if !path.ends_with('/') {
                path.push('/');
            }
            path += &String::from_utf8_lossy(name.as_bytes());
        }
        path
    }

    fn failed(&self, name: Option<&EntryName>) -> impl FnOnce(FsError) -> RestoreError + use<> {
        let path = self.path(name);
        |source| RestoreError::Fs { path, source }
    }

    /// The next entry of the snapshot's directory that `dir` stands for; its end, if there is none.
    async fn step(&mut self, dir: FileRef) -> Result<(), RestoreError> {
        match self.walk.next().await {
            Ok(Some((name, ino))) => match self.view.inode(ino).await {
                Ok(source) => self.object(source, dir, &name, Some(&name)).await,
                Err(error) => Err(self.failed(Some(&name))(error)),
            },
            Ok(None) => self.close(dir).await,
            Err(error) => {
                // Its damaged entries cannot be known: the directory is as complete as it can be.
                let error = self.failed(None)(error);
                if !error.ends_all() {
                    self.left_out.add(&error);
                    return self.close(dir).await;
                }
                Err(error)
            }
        }
    }

    /// Ends a directory once all its entries are restored, which has changed its times.
    async fn close(&mut self, dir: FileRef) -> Result<(), RestoreError> {
        let failed = self.failed(None);
        self.into.pop();
        match self.walk.leave() {
            Some(like) => self.attributes(dir, &like.row).await.map_err(failed),
            None => Ok(()),
        }
    }

    async fn source(&self, from: &[EntryName]) -> Result<SnapshotInode, RestoreError> {
        let path = shown(from);
        let mut found = self.view.root_inode().clone();
        for name in from {
            found = match self.view.child(&found, name).await {
                Err(FsError::NotFound | FsError::NotDirectory) => {
                    return Err(RestoreError::Missing { path });
                }
                found => found.map_err(at(&path))?,
            };
        }
        Ok(found)
    }

    /// A live directory.
    async fn folder(&self, names: &[EntryName]) -> Result<FileRef, RestoreError> {
        let path = shown(names);
        let mut dir = self.fs.root_ref();
        for name in names {
            dir = match self.fs.names.lookup(&Caller::root(), dir, name.as_bytes()).await {
                Ok((found, _)) if found.entries.is_some() => found.file,
                Ok(_) | Err(FsError::NotFound | FsError::NotDirectory) => {
                    return Err(RestoreError::NoFolder { path });
                }
                Err(source) => return Err(RestoreError::Fs { path, source }),
            };
        }
        Ok(dir)
    }

    /// `below`: its name in the directory that was entered last; the top has none.
    async fn object(
        &mut self,
        source: SnapshotInode,
        dir: FileRef,
        name: &EntryName,
        below: Option<&EntryName>,
    ) -> Result<(), RestoreError> {
        self.fs.committer.ready().await.map_err(|error| self.failed(below)(error))?;
        self.fs
            .names
            .committer
            .step("fs.restore.object")
            .await
            .map_err(|error| self.failed(below)(error))?;
        let there = match self.fs.names.lookup(&Caller::root(), dir, name.as_bytes()).await {
            Err(FsError::NotFound) => None,
            found => Some(found.map_err(|error| self.failed(below)(error))?.0),
        };
        if source.row.kind == FileKind::Directory {
            let made = self.make_folder(&source, dir, (name, there), below).await?;
            self.merge(source, made, below.cloned());
            return Ok(());
        }
        if there.as_ref().is_some_and(|there| self.is_unchanged(&source, there)) {
            return Ok(());
        }
        let placed = self.place(&source, dir, name, there).await;
        placed.map_err(|why| match why {
            Unplaced::Stopped => self.stopped(),
            Unplaced::Fs(error) => self.refused(below, error),
        })?;
        self.progress.add(if source.row.kind == FileKind::Regular { source.row.size } else { 0 });
        Ok(())
    }

    /// Gives what has the name the first free name of a numbered backup, and returns it. A crash
    /// before the replacement leaves it with both names.
    async fn keep(&self, dir: FileRef, name: &EntryName) -> Result<Option<FileRef>, FsError> {
        let there = match self.fs.names.lookup(&Caller::root(), dir, name.as_bytes()).await {
            Err(FsError::NotFound) => return Ok(None),
            found => found?.0,
        };
        if there.entries.is_some() {
            return Err(FsError::IsDirectory);
        }
        self.keep_beside(there.file, dir, name).await?;
        self.fs.names.committer.step("fs.restore.kept").await?;
        Ok(Some(there.file))
    }

    async fn keep_beside(
        &self,
        there: FileRef,
        dir: FileRef,
        name: &EntryName,
    ) -> Result<(), FsError> {
        for n in 1..=BACKUPS_MAX {
            let backup = name.backup(n).map_err(|_| FsError::NameTooLong)?;
            let slot = ReplySlot::unrepeated();
            match self.fs.names.link(&Caller::root(), there, dir, &backup, &slot).await {
                Err(FsError::Exists) => {}
                linked => return linked.map(drop),
            }
        }
        Err(FsError::Invalid("it has too many backups: remove some"))
    }

    fn stopped(&self) -> RestoreError {
        RestoreError::Stopped { done: self.progress.now() }
    }

    fn refused(&self, below: Option<&EntryName>, error: FsError) -> RestoreError {
        let why = match error {
            FsError::Exists => {
                "something is there already: replace it by force, or restore to another path"
            }
            FsError::IsDirectory => "a folder is in the way of a file: move it away first",
            error => return self.failed(below)(error),
        };
        RestoreError::InTheWay { path: self.path(below), why }
    }

    /// Returns whether the name still leads to the very same object, with all its names and
    /// unchanged (R8): programs that have it open go on with it.
    fn is_unchanged(&self, source: &SnapshotInode, there: &Node) -> bool {
        let (old, now) = (&source.row, there.row.read());
        self.overwrite != Overwrite::Refuse
            && there.file.ino == source.ino
            && now.generation == old.generation
            && now.ctime == old.ctime
    }

    async fn make_folder(
        &self,
        source: &SnapshotInode,
        dir: FileRef,
        (name, there): (&EntryName, Option<Arc<Node>>),
        below: Option<&EntryName>,
    ) -> Result<FileRef, RestoreError> {
        let way = |why| RestoreError::InTheWay { path: self.path(below), why };
        match there {
            Some(node) if node.entries.is_none() => {
                Err(way("a file is in the way of a folder: move it away first"))
            }
            Some(_) if self.overwrite == Overwrite::Refuse => Err(way(
                "the folder is there already: replace what differs in it by force, or restore to \
                 another path",
            )),
            Some(node) => Ok(node.file),
            None => {
                // No other user may read it before its attributes are restored.
                let set = SetAttr {
                    mode: Some(0o700),
                    uid: Some(source.row.uid),
                    gid: Some(source.row.gid),
                    ..SetAttr::default()
                };
                let made = self
                    .fs
                    .names
                    .mkdir(&Caller::root(), dir, name, set, &ReplySlot::unrepeated())
                    .await;
                made.map(|made| made.answer.attr.file).map_err(|error| self.failed(below)(error))
            }
        }
    }

    fn merge(&mut self, source: SnapshotInode, into: FileRef, name: Option<EntryName>) {
        self.progress.add(0);
        self.into.push(into);
        self.walk.enter(source, name);
    }

    /// Places the object, or another name of one that was restored before. What is kept is given
    /// its other name after everything that takes long; what takes the name since is kept as well.
    async fn place(
        &mut self,
        source: &SnapshotInode,
        dir: FileRef,
        name: &EntryName,
        there: Option<Arc<Node>>,
    ) -> Result<(), Unplaced> {
        let (row, first) = (&source.row, self.links.get(&source.ino).copied());
        let back = there
            .filter(|_| self.overwrite == Overwrite::Replace)
            .map_or(0, |there| given_back(&there.row.read()));
        let mut content = match row.kind {
            FileKind::Regular if first.is_none() => Some(self.content(row, back).await?),
            _ => None,
        };
        for _ in 0..KEEPS_MAX {
            let replaceable = match self.overwrite {
                Overwrite::Refuse => Replaceable::None,
                Overwrite::Replace => Replaceable::Any,
                Overwrite::KeepBeside => Replaceable::Only(self.keep(dir, name).await?),
            };
            let names = &self.fs.names;
            let Some(first) = first else {
                let content = content.as_mut();
                let Some(placed) = names.place(dir, name, row, content, replaceable).await? else {
                    continue;
                };
                if row.nlink > 1 && self.links.len() < LINKS_MAX {
                    self.links.insert(source.ino, placed);
                }
                return Ok(());
            };
            if names.place_link(first, dir, name, replaceable).await?.is_some() {
                return Ok(());
            }
        }
        Err(FsError::Busy("the name changes faster than it can be replaced").into())
    }

    /// The file's extents as they are, without those that truncations hide or that lie past its
    /// end.
    async fn content(
        &self,
        row: &Inode,
        given_back: u64,
    ) -> Result<super::content::Copied, Unplaced> {
        let mut content = self.fs.contents.begin_copy(row.allocated, given_back)?;
        let record_bytes = 1u32 << row.record_bits;
        let (mut from, end) = (0, row.size.div_ceil(u64::from(record_bytes)));
        while from < end {
            let page = self.view.extents(row.data, from, RECORDS).await?;
            let more = page.len() == RECORDS;
            for (n, extent) in page {
                if self.progress.is_stopped() {
                    return Err(Unplaced::Stopped);
                }
                from = n + 1;
                if n >= end
                    || row
                        .masks
                        .iter()
                        .any(|mask| n >= mask.first && extent.truncations < mask.truncations)
                {
                    continue;
                }
                let left =
                    (row.size - n * u64::from(record_bytes)).min(u64::from(record_bytes)) as u32;
                let mut segments = extent.segments;
                super::content::punch(&mut segments, left, record_bytes);
                if !segments.is_empty() {
                    content.add(n, &Extent { truncations: 0, segments }, record_bytes).await?;
                }
            }
            if !more {
                break;
            }
        }
        Ok(content)
    }

    async fn attributes(&self, dir: FileRef, like: &Inode) -> Result<(), FsError> {
        let mut like = like.clone();
        self.fs.inodes.present(&mut like);
        let set = SetAttr {
            mode: Some(like.mode),
            uid: Some(like.uid),
            gid: Some(like.gid),
            size: None,
            atime: SetTime::To(like.atime),
            mtime: SetTime::To(like.mtime),
        };
        self.fs.committer.ready().await?;
        self.fs
            .names
            .setattr(&Caller::root(), dir, set, None, &ReplySlot::unrepeated())
            .await
            .map(drop)
    }
}
