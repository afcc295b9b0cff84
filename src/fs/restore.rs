//! A file or a tree of a snapshot back into the live file system, by reference: rows are written, no chunk is read or stored (R10).
//!
//! Each file and each further name of one appears whole, in one batch with the removal of what had the name; a tree appears file by file, so that one that is interrupted
//! has some of its files restored and the others as they were. What did not change since the snapshot is left alone. Directories that are there are kept, with what else is in them, and get the
//! snapshot's attributes. Everything is in the store when the restore returns.
//!
//! Memory: a page of entries for each level of the tree, the identities of the snapshot's packs, and of files with several names.

use super::FsError;
use super::api::{Caller, FileKind, FileRef, SNAPSHOTS_NAME, SetAttr, SetTime};
use super::dataset::Fs;
use super::names::{First, Overwrite};
use super::row::{Inode, Record};
use super::view::{SnapshotView, Viewed};
use crate::types::{Class, Classify, EntryName, InodeNo};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Records read at a time.
const RECORDS: usize = 512;
/// Folders within folders.
const DEPTH_MAX: usize = 1024;
/// Files with several names that are remembered; the names of others become files of their own.
const LINKS_MAX: usize = 1 << 20;

/// How far a restore is.
#[derive(Debug, Default)]
pub struct Progress {
    objects: AtomicU64,
    bytes: AtomicU64,
}

/// What was restored: objects, and the bytes that the files hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Restored {
    pub objects: u64,
    pub bytes: u64,
}

impl Progress {
    pub fn now(&self) -> Restored {
        Restored { objects: self.objects.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }

    fn add(&self, bytes: u64) {
        self.objects.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Why something was not restored; what was before it, is.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("{path} is not in the snapshot")]
    Missing { path: String },
    #[error("the folder {path} does not exist: make it, or restore to another path")]
    NoFolder { path: String },
    #[error("{path}: {why}")]
    InTheWay { path: String, why: &'static str },
    #[error("{path}: {source}")]
    Fs {
        path: String,
        #[source]
        source: FsError,
    },
}

impl Classify for RestoreError {
    fn class(&self) -> Class {
        match self {
            Self::Missing { .. } | Self::NoFolder { .. } => Class::NotFound,
            Self::InTheWay { .. } => Class::Exists,
            Self::Fs { source, .. } => source.class(),
        }
    }
}

/// From where in the snapshot to where; no names: the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub from: Vec<EntryName>,
    pub to: Vec<EntryName>,
    pub overwrite: Overwrite,
}

/// What is left to be done, the next on top.
enum Step {
    Object {
        ino: InodeNo,
        dir: FileRef,
        name: EntryName,
        path: String,
        depth: usize,
    },
    /// Entries of a directory of the snapshot, for a live one.
    Page {
        of: InodeNo,
        into: FileRef,
        from: Option<Bytes>,
        path: String,
        depth: usize,
    },
    /// All that is in a directory is there: making it has changed its times.
    Close {
        like: Box<Inode>,
        dir: FileRef,
        path: String,
    },
}

struct Restore<'a> {
    fs: &'a Fs,
    view: &'a SnapshotView,
    overwrite: Overwrite,
    progress: &'a Progress,
    links: HashMap<InodeNo, FileRef>,
    steps: Vec<Step>,
}

fn shown(names: &[EntryName]) -> String {
    let parts = names.iter().map(|name| String::from_utf8_lossy(name.as_bytes()));
    format!("/{}", parts.collect::<Vec<_>>().join("/"))
}

fn at(path: &str) -> impl FnOnce(FsError) -> RestoreError + '_ {
    move |source| RestoreError::Fs { path: path.to_owned(), source }
}

impl Fs {
    /// For whoever restores, until it is dropped; `None` while another does.
    pub fn begin_restore(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        self.restoring.try_lock().ok()
    }

    /// Restores from a snapshot of this very dataset, which must be pinned in the catalog until this returns (R10).
    pub async fn restore(&self, view: &SnapshotView, route: &Route, progress: &Progress) -> Result<Restored, RestoreError> {
        let path = shown(&route.to);
        let packs = view.packs().await.map_err(at(&path))?;
        let _pin = self.names.committer.pin(packs);
        let (links, steps) = Default::default();
        let mut restore = Restore { fs: self, view, overwrite: route.overwrite, progress, links, steps };
        let done = restore.all(route).await;
        // Also of what was done before an error: the snapshot may be let go when this returns.
        let last = self.names.committer.last();
        self.insist(|| self.names.committer.durable(last)).await.map_err(at(&path))?;
        done.map(|()| progress.now())
    }
}

impl Restore<'_> {
    async fn all(&mut self, route: &Route) -> Result<(), RestoreError> {
        let source = self.source(&route.from).await?;
        let path = shown(&route.to);
        match route.to.split_last() {
            Some((name, parents)) => {
                if route.to[0].as_bytes() == SNAPSHOTS_NAME {
                    return Err(RestoreError::InTheWay { path, why: "what is in .snapshots cannot be changed" });
                }
                let dir = self.folder(parents).await?;
                self.steps.push(Step::Object { ino: source.ino, dir, name: name.clone(), path, depth: 0 });
            }
            None if source.row.kind != FileKind::Directory => {
                return Err(RestoreError::InTheWay { path, why: "only a folder can take the place of the root" });
            }
            None if self.overwrite == Overwrite::Refuse => {
                return Err(RestoreError::InTheWay {
                    path,
                    why: "the root is there: replace what differs by force, or restore to another path",
                });
            }
            None => self.merge(&source, self.fs.root_ref(), path, 0),
        }
        while let Some(step) = self.steps.pop() {
            // Closing the file system does not wait for all of it.
            let fs = self.fs;
            let call = fs.gate.enter().map_err(at("/"))?;
            let done = self.step(step).await;
            drop(call);
            done?;
        }
        Ok(())
    }

    async fn source(&self, from: &[EntryName]) -> Result<Viewed, RestoreError> {
        let path = shown(from);
        let mut found = self.view.root().await.map_err(at(&path))?;
        for name in from {
            found = match self.view.lookup(&found, name).await {
                Err(FsError::NotFound | FsError::NotDirectory) => return Err(RestoreError::Missing { path }),
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
                Ok(_) | Err(FsError::NotFound | FsError::NotDirectory) => return Err(RestoreError::NoFolder { path }),
                Err(source) => return Err(RestoreError::Fs { path, source }),
            };
        }
        Ok(dir)
    }

    async fn step(&mut self, step: Step) -> Result<(), RestoreError> {
        match step {
            Step::Object { ino, dir, name, path, depth } => self.object(ino, dir, &name, path, depth).await,
            Step::Page { of, into, from, path, depth } => {
                let row = self.view.inode(of).await.map_err(at(&path))?;
                let (entries, next) = self.view.list(&row, from).await.map_err(at(&path))?;
                if next.is_some() {
                    self.steps.push(Step::Page { of, into, from: next, path: path.clone(), depth });
                }
                for entry in entries {
                    let name = String::from_utf8_lossy(entry.name.as_bytes());
                    let path = format!("{}/{name}", path.trim_end_matches('/'));
                    self.steps.push(Step::Object { ino: entry.ino, dir: into, name: entry.name, path, depth: depth + 1 });
                }
                Ok(())
            }
            Step::Close { like, dir, path } => self.attributes(dir, &like).await.map_err(at(&path)),
        }
    }

    async fn object(
        &mut self,
        ino: InodeNo,
        dir: FileRef,
        name: &EntryName,
        path: String,
        depth: usize,
    ) -> Result<(), RestoreError> {
        if depth > DEPTH_MAX {
            return Err(RestoreError::InTheWay { path, why: "folders are nested deeper than 1024" });
        }
        let source = self.view.inode(ino).await.map_err(at(&path))?;
        self.fs.names.committer.ready().await.map_err(at(&path))?;
        self.fs.names.committer.step("fs.restore.object").await.map_err(at(&path))?;
        if source.row.kind == FileKind::Directory {
            let made = self.make_folder(&source, dir, name, &path).await?;
            self.merge(&source, made, path, depth);
            return Ok(());
        }
        if self.is_unchanged(&source, dir, name).await.map_err(at(&path))? {
            return Ok(());
        }
        let placed = match self.links.get(&ino) {
            // Another name of a file that was restored before.
            Some(first) => self.fs.names.place_link(*first, dir, name, self.overwrite).await,
            None => self.place(&source, dir, name).await,
        };
        placed.map_err(|source| match source {
            FsError::Exists => RestoreError::InTheWay {
                path: path.clone(),
                why: "something is there already: replace it by force, or restore to another path",
            },
            FsError::IsDirectory => {
                RestoreError::InTheWay { path: path.clone(), why: "a folder is in the way of a file: move it away first" }
            }
            source => RestoreError::Fs { path: path.clone(), source },
        })?;
        self.progress.add(if source.row.kind == FileKind::Regular { source.row.size } else { 0 });
        Ok(())
    }

    /// Whether the name still is the very object, with all its names and as it was (R8): whoever has it open goes on with it.
    async fn is_unchanged(&self, source: &Viewed, dir: FileRef, name: &EntryName) -> Result<bool, FsError> {
        if self.overwrite == Overwrite::Refuse {
            return Ok(false);
        }
        let there = match self.fs.names.lookup(&Caller::root(), dir, name.as_bytes()).await {
            Ok((there, _)) => there,
            Err(FsError::NotFound) => return Ok(false),
            Err(error) => return Err(error),
        };
        let (old, now) = (&source.row, there.row.read());
        Ok(there.file.ino == source.ino && now.generation == old.generation && now.ctime == old.ctime)
    }

    async fn make_folder(&self, source: &Viewed, dir: FileRef, name: &EntryName, path: &str) -> Result<FileRef, RestoreError> {
        let (names, root) = (&self.fs.names, Caller::root());
        let there = match names.lookup(&root, dir, name.as_bytes()).await {
            Err(FsError::NotFound) => None,
            found => Some(found.map_err(at(path))?.0),
        };
        let way = |why| RestoreError::InTheWay { path: path.to_owned(), why };
        match there {
            Some(node) if node.entries.is_none() => Err(way("a file is in the way of a folder: move it away first")),
            Some(_) if self.overwrite == Overwrite::Refuse => {
                Err(way("the folder is there already: replace what differs in it by force, or restore to another path"))
            }
            Some(node) => Ok(node.file),
            None => {
                // Nobody else looks in before it is as it was.
                let set = SetAttr { mode: Some(0o700), uid: Some(source.row.uid), gid: Some(source.row.gid), ..SetAttr::default() };
                let made = names.mkdir(&root, dir, name, set, &First::unrepeated()).await;
                made.map(|made| made.answer.attr.file).map_err(at(path))
            }
        }
    }

    fn merge(&mut self, source: &Viewed, into: FileRef, path: String, depth: usize) {
        self.progress.add(0);
        self.steps.push(Step::Close { like: Box::new(source.row.clone()), dir: into, path: path.clone() });
        self.steps.push(Step::Page { of: source.ino, into, from: None, path, depth });
    }

    async fn place(&mut self, source: &Viewed, dir: FileRef, name: &EntryName) -> Result<(), FsError> {
        let row = &source.row;
        let content = if row.kind == FileKind::Regular { Some(self.content(row).await?) } else { None };
        let placed = self.fs.names.place(dir, name, row, content, self.overwrite).await?;
        if row.nlink > 1 && row.kind == FileKind::Regular && self.links.len() < LINKS_MAX {
            self.links.insert(source.ino, placed);
        }
        Ok(())
    }

    /// The file's records as they are, without what truncations hide and what is past its end.
    async fn content(&self, row: &Inode) -> Result<super::content::Copied, FsError> {
        let mut content = self.fs.names.contents.begin_copy(row.allocated)?;
        let record_bytes = 1u32 << row.record_bits;
        let (mut from, end) = (0, row.size.div_ceil(u64::from(record_bytes)));
        while from < end {
            let page = self.view.records(row.data, from, RECORDS).await?;
            let more = page.len() == RECORDS;
            for (n, record) in page {
                from = n + 1;
                if n >= end || row.masks.iter().any(|mask| n >= mask.first && record.cut < mask.cut) {
                    continue;
                }
                let left = (row.size - n * u64::from(record_bytes)).min(u64::from(record_bytes)) as u32;
                let mut segments = record.segments;
                super::content::punch(&mut segments, left, record_bytes);
                if !segments.is_empty() {
                    content.add(n, &Record { cut: 0, segments }, record_bytes).await?;
                }
            }
            if !more {
                break;
            }
        }
        Ok(content)
    }

    async fn attributes(&self, dir: FileRef, like: &Inode) -> Result<(), FsError> {
        let set = SetAttr {
            mode: Some(like.mode),
            uid: Some(like.uid),
            gid: Some(like.gid),
            size: None,
            atime: SetTime::To(like.atime),
            mtime: SetTime::To(like.mtime),
        };
        self.fs.names.committer.ready().await?;
        self.fs.names.setattr(&Caller::root(), dir, set, None, &First::unrepeated()).await.map(drop)
    }
}
