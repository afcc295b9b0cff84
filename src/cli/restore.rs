//! `dataset restore`: a file or a folder out of a snapshot, to a local path.
//!
//! Nothing outside of the target is ever written: names come one by one as directory entries, which hold no `/` and are
//! never `..`, and every object is made anew (`O_EXCL`) or replaces one by a rename; links in the way are not followed ([`Local`]). What takes
//! the place of something is on the disk before: a crash leaves the one or the other.

use super::args::RestoreArgs;
use super::exit::{Interrupted, Wrong, class_of};
use super::local::{Attributes, Local, Owner, Safety, beside};
use super::report::{Progress, plural};
use super::target::{Opened, split_snapshot};
use crate::app::ByteSize;
use crate::catalog::Snapshot;
use crate::control::RestoreInPlace;
use crate::fs::FsError;
use crate::fs::api::FileKind;
use crate::fs::{SnapshotView, Viewed};
use crate::types::{Class, EntryName, Incarnation, InodeNo, VolumeHandle};
use crate::volume::ReadSnapshot;
use anyhow::{Context, bail};
use rustix::fs::FileType;
use serde::Serialize;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// Bytes read at once.
const PART: u32 = 4 << 20;
/// Files that could not be read, of which the names are told.
const DAMAGED_SHOWN: usize = 20;
/// Folders within folders.
const DEPTH_MAX: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    Refuse,
    Force,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Restored {
    pub objects: u64,
    pub bytes: u64,
    /// Objects whose owner could not be set: that needs root.
    pub owners_not_kept: u64,
}

pub async fn run(args: RestoreArgs) -> anyhow::Result<()> {
    let Some((dataset, snapshot)) = split_snapshot(&args.snapshot) else {
        return Err(Wrong::new(Class::Invalid, format!("{:?}: write DATASET@SNAPSHOT", args.snapshot)));
    };
    // An empty variable of a script does not mean everything.
    if args.path.is_empty() || args.to.as_ref().is_some_and(String::is_empty) {
        return Err(Wrong::new(Class::Invalid, "the path is empty: `/` is all of it"));
    }
    let opened = args.common.pool.open().await?;
    let found = opened.snapshot(dataset, snapshot).await?;
    let Some(target) = &args.target else { return in_place(&args, &opened, &found).await };
    let progress = Progress::new();
    let overwrite = if args.force { Overwrite::Force } else { Overwrite::Refuse };
    let say = |done: &Restored| progress.say(&format!("{} objects, {}", done.objects, ByteSize(done.bytes)));
    let stop = crate::app::stop_signal()?;
    let restored = copy_out(&opened, &found, &args.path, target, overwrite, &say, &stop).await;
    drop(progress);
    args.common.output.print(&restored?, |restored| {
        let owners = match restored.owners_not_kept {
            0 => String::new(),
            n => format!("; {n} belong to you instead of their owners (run as root to keep those)"),
        };
        format!("restored {}, {}{owners}\n", plural(restored.objects, "object"), ByteSize(restored.bytes))
    })
}

/// Through the dataset's owner where it has one.
async fn in_place(args: &RestoreArgs, opened: &Opened, snapshot: &Snapshot) -> anyhow::Result<()> {
    let volume = VolumeHandle { pool: opened.pool.id(), dataset: snapshot.dataset };
    let wanted = RestoreInPlace {
        call: Incarnation::random(),
        snapshot: snapshot.id(),
        from: args.path.clone(),
        to: args.to.clone().unwrap_or_else(|| args.path.clone()),
        overwrite: args.force,
    };
    let progress = Progress::new();
    let say = |now: crate::fs::Restored| progress.say(&format!("{} objects, {}", now.objects, ByteSize(now.bytes)));
    let restored = opened.controller.restore_in_place(volume, &wanted, &say).await;
    drop(progress);
    args.common.output.print(&restored?, |restored| {
        format!("restored {}, {}, in place\n", plural(restored.objects, "object"), ByteSize(restored.bytes))
    })
}

/// Copies what is at `path` of a snapshot to `target`, until it is told to `stop`. A file of a tree that is damaged is left out, and told at the end.
pub async fn copy_out(
    opened: &Opened,
    snapshot: &Snapshot,
    path: &str,
    target: &Path,
    overwrite: Overwrite,
    say: &(dyn Fn(&Restored) + Sync),
    stop: &CancellationToken,
) -> anyhow::Result<Restored> {
    // Kept for as long as it takes, whoever deletes it meanwhile (R14).
    let reading = ReadSnapshot::open(opened.parts.volumes.settings(), &opened.pool.catalog, snapshot.id()).await?;
    let copied = Copy::run(reading.view(), path, target, overwrite, say, stop).await;
    let closed = reading.close().await;
    let done = copied?;
    closed?;
    Ok(done)
}

struct Copy<'a> {
    view: &'a SnapshotView,
    overwrite: Overwrite,
    local: Local,
    /// What the target is called, for people: paths are relative to the folder around it.
    around: &'a Path,
    /// Where a file with several names was put first.
    links: HashMap<InodeNo, PathBuf>,
    done: Restored,
    /// Files of a tree that could not be read, and how many more.
    damaged: Vec<String>,
    more_damaged: u64,
    say: &'a (dyn Fn(&Restored) + Sync),
    stop: &'a CancellationToken,
}

impl<'a> Copy<'a> {
    async fn run(
        view: &'a SnapshotView,
        path: &str,
        target: &'a Path,
        overwrite: Overwrite,
        say: &'a (dyn Fn(&Restored) + Sync),
        stop: &'a CancellationToken,
    ) -> anyhow::Result<Restored> {
        let what = || format!("opening the folder around {}, which must be there", target.display());
        let (local, top) = Local::around(target).with_context(what)?;
        let around = if top.as_os_str().is_empty() { target } else { target.parent().unwrap_or(target) };
        let (links, done, damaged) = Default::default();
        let mut copy = Self { view, overwrite, local, around, links, done, damaged, more_damaged: 0, say, stop };
        copy.path(path, top).await?;
        copy.ended()
    }

    fn ended(self) -> anyhow::Result<Restored> {
        let (objects, mut damaged) = (self.done.objects, self.damaged);
        if damaged.is_empty() {
            return Ok(self.done);
        }
        let count = damaged.len() as u64 + self.more_damaged;
        if self.more_damaged > 0 {
            damaged.push(format!("and {} more", self.more_damaged));
        }
        let files = damaged.join("\n  ");
        let why = format!("restored {objects} objects, and not {count} files, which are damaged (scrub tells more):\n  {files}");
        Err(Wrong::new(Class::Corrupt, why))
    }

    fn shown(&self, target: &Path) -> String {
        self.around.join(target).display().to_string()
    }

    async fn path(&mut self, path: &str, target: PathBuf) -> anyhow::Result<()> {
        let at = self.source(path).await?;
        // A stack rather than recursion: the depth is the snapshot's author's choice.
        let mut folders = Vec::new();
        let mut waiting = vec![(at, target, 0)];
        while let Some((object, target, depth)) = waiting.pop() {
            self.go_on()?;
            if depth > DEPTH_MAX {
                bail!("{}: folders are nested deeper than {DEPTH_MAX}", self.shown(&target));
            }
            if object.row.kind == FileKind::Directory {
                self.make_folder(&target)?;
                self.queue_children(&object, &target, depth, &mut waiting).await?;
                folders.push((object, target));
            } else {
                match self.object(&object, &target).await {
                    Err(error) if depth > 0 && class_of(&error) == Class::Corrupt => {
                        self.leave_out(&error);
                        continue;
                    }
                    done => done?,
                }
            }
            self.done.objects += 1;
            (self.say)(&self.done);
        }
        // Deepest last in, first out: making an entry changes its folder's times.
        while let Some((object, target)) = folders.pop() {
            let safety = if self.overwrite == Overwrite::Force { Safety::Now } else { Safety::Later };
            let owner = self.local.finish_folder(&target, &attributes(&object), safety);
            self.count(owner).with_context(|| format!("setting the attributes of {}", self.shown(&target)))?;
        }
        Ok(())
    }

    async fn source(&self, path: &str) -> anyhow::Result<Viewed> {
        let mut at = self.view.root().await?;
        for name in path.split('/').filter(|name| !name.is_empty() && *name != ".") {
            let wrong = |why: String| Wrong::new(Class::Invalid, format!("path {path:?}: {why}"));
            if name == ".." {
                return Err(wrong("`..` would leave the tree: write the path without it".to_owned()));
            }
            let name = EntryName::try_from(name.as_bytes()).map_err(|error| wrong(error.to_string()))?;
            let is_link = at.row.kind == FileKind::Symlink;
            at = match self.view.lookup(&at, &name).await {
                Err(error @ (FsError::NotFound | FsError::NotDirectory)) => {
                    let why = if is_link {
                        "what it is in is a link: write the path that this leads to".to_owned()
                    } else {
                        error.to_string()
                    };
                    return Err(Wrong::new(Class::NotFound, format!("path {path:?} in the snapshot: {name}: {why}")));
                }
                found => found?,
            };
        }
        Ok(at)
    }

    fn leave_out(&mut self, error: &anyhow::Error) {
        if self.damaged.len() < DAMAGED_SHOWN {
            self.damaged.push(format!("{error:#}"));
        } else {
            self.more_damaged += 1;
        }
    }

    /// What was made so far stays.
    fn go_on(&self) -> anyhow::Result<()> {
        if self.stop.is_cancelled() {
            return Err(Interrupted::new("what is restored so far is whole: repeat it with --force for the rest"));
        }
        Ok(())
    }

    async fn queue_children(
        &self,
        dir: &Viewed,
        target: &Path,
        depth: usize,
        waiting: &mut Vec<(Viewed, PathBuf, usize)>,
    ) -> anyhow::Result<()> {
        let mut from = None;
        loop {
            let (entries, next) = self.view.list(dir, from).await?;
            for entry in entries {
                let child = self.view.inode(entry.ino).await?;
                waiting.push((child, target.join(OsStr::from_bytes(entry.name.as_bytes())), depth + 1));
            }
            match next {
                Some(next) => from = Some(next),
                None => return Ok(()),
            }
        }
    }

    fn make_folder(&mut self, target: &Path) -> anyhow::Result<()> {
        match self.local.make_folder(target) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => match self.local.kind(target) {
                Ok(Some(FileType::Directory)) if self.overwrite == Overwrite::Force => Ok(()),
                Ok(Some(FileType::Directory)) | Err(_) => Err(in_the_way(&self.shown(target), THERE)),
                Ok(_) => {
                    Err(in_the_way(&self.shown(target), "a file is in the way of a folder: move it away, or give another path"))
                }
            },
            made => made.with_context(|| format!("making {}", self.shown(target))),
        }
    }

    async fn object(&mut self, object: &Viewed, target: &Path) -> anyhow::Result<()> {
        let there = self.local.kind(target).with_context(|| format!("looking at {}", self.shown(target)))?;
        let why = match there {
            None => None,
            Some(FileType::Directory) => Some("a folder is in the way of a file: give the file's own path, or move it away"),
            Some(FileType::RegularFile | FileType::Symlink) => (self.overwrite == Overwrite::Refuse).then_some(THERE),
            Some(_) => Some("a device, a pipe or a socket is in the way, which is never replaced: give another path"),
        };
        if let Some(why) = why {
            return Err(in_the_way(&self.shown(target), why));
        }
        let safety = if there.is_some() { Safety::Now } else { Safety::Later };
        // Beside the target under a name of its own, then renamed over it.
        let temporary = beside(target);
        let made = self.make(object, &temporary, target, safety).await;
        let made = made.and_then(|()| {
            let what = || format!("renaming {} into place", self.around.join(&temporary).display());
            self.local.rename(&temporary, target).with_context(what)
        });
        if made.is_err() {
            // What is left of a failed copy is of no use; the error that is shown is the first one.
            let _ = self.local.remove(&temporary);
        }
        made?;
        if object.row.kind == FileKind::Regular && object.row.nlink > 1 {
            self.links.entry(object.ino).or_insert_with(|| target.to_owned());
        }
        Ok(())
    }

    async fn make(&mut self, object: &Viewed, at: &Path, target: &Path, safety: Safety) -> anyhow::Result<()> {
        if object.row.kind == FileKind::Regular && !self.links.contains_key(&object.ino) {
            return self.file(object, at, target, safety).await;
        }
        let shown = self.shown(at);
        let attributes = attributes(object);
        let mut node =
            |kind| self.local.make_node(at, kind, rustix::fs::makedev(object.row.rdev.0, object.row.rdev.1), &attributes);
        let made = match object.row.kind {
            FileKind::Regular => {
                let first = self.links.get(&object.ino).map_or(at, |first| first);
                return self.local.link(first, at).with_context(|| format!("making {shown}"));
            }
            FileKind::Symlink => {
                let to = object.row.target.as_deref().unwrap_or_default();
                self.local.make_link(at, OsStr::from_bytes(to), &attributes)
            }
            FileKind::Fifo => node(FileType::Fifo),
            FileKind::Socket => node(FileType::Socket),
            FileKind::CharDevice => node(FileType::CharacterDevice),
            FileKind::BlockDevice => node(FileType::BlockDevice),
            FileKind::Directory => bail!("{shown}: a folder among files"),
        };
        self.count(made).with_context(|| format!("making {shown}"))
    }

    /// Holes stay holes.
    async fn file(&mut self, object: &Viewed, at: &Path, target: &Path, safety: Safety) -> anyhow::Result<()> {
        let shown = self.shown(at);
        let what = || format!("writing {shown}");
        let file = self.local.make_file(at).with_context(what)?;
        let (mut offset, size) = (0, object.row.size);
        file.set_len(size).with_context(what)?;
        while offset < size {
            self.go_on()?;
            for (len, bytes) in self
                .view
                .read(object, offset, PART)
                .await
                .with_context(|| format!("reading what goes to {}", self.shown(target)))?
            {
                if let Some(bytes) = bytes {
                    file.write_all_at(&bytes, offset).with_context(what)?;
                }
                offset += len;
                self.done.bytes += len;
            }
            (self.say)(&self.done);
        }
        self.count(Local::finish_file(&file, &attributes(object), safety)).with_context(what)
    }

    fn count(&mut self, made: io::Result<Owner>) -> io::Result<()> {
        self.done.owners_not_kept += u64::from(made? == Owner::Mine);
        Ok(())
    }
}

fn attributes(object: &Viewed) -> Attributes {
    let row = &object.row;
    Attributes { mode: row.mode, uid: row.uid, gid: row.gid, atime: row.atime, mtime: row.mtime }
}

const THERE: &str = "something is there already: give another path, or --force to replace files";

fn in_the_way(target: &str, why: &str) -> anyhow::Error {
    Wrong::new(Class::Exists, format!("{target}: {why}"))
}
