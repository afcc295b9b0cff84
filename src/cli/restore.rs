//! `dataset restore`: a file or a folder out of a snapshot, to a local path.
//!
//! Nothing outside of the target is ever written: names come one by one as directory entries, which hold no `/` and are
//! never `..`, and every object is made anew (`O_EXCL`) or replaces one by a rename, so that a link in the way is not followed.

use super::args::RestoreArgs;
use super::exit::Wrong;
use super::report::Progress;
use super::target::{Opened, split_snapshot};
use crate::app::ByteSize;
use crate::catalog::Snapshot;
use crate::control::RestoreInPlace;
use crate::fs::FsError;
use crate::fs::api::FileKind;
use crate::fs::{SnapshotView, Viewed};
use crate::types::{Class, EntryName, Incarnation, InodeNo, Timestamp, VolumeHandle};
use crate::volume::ReadSnapshot;
use anyhow::{Context, bail};
use serde::Serialize;
use std::collections::HashMap;
use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Bytes read at once.
const PART: u32 = 4 << 20;
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
    let opened = args.common.pool.open().await?;
    let found = opened.snapshot(dataset, snapshot).await?;
    let Some(target) = &args.target else { return in_place(&args, &opened, &found).await };
    let progress = Progress::new();
    let overwrite = if args.force { Overwrite::Force } else { Overwrite::Refuse };
    let say = |done: &Restored| progress.say(&format!("{} objects, {}", done.objects, ByteSize(done.bytes)));
    let restored = copy_out(&opened, &found, &args.path, target, overwrite, &say).await;
    drop(progress);
    args.common.output.print(&restored?, |restored| {
        let owners = match restored.owners_not_kept {
            0 => String::new(),
            n => format!("; {n} belong to you instead of their owners (run as root to keep those)"),
        };
        format!("restored {} objects, {}{owners}\n", restored.objects, ByteSize(restored.bytes))
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
    args.common
        .output
        .print(&restored?, |restored| format!("restored {} objects, {}, in place\n", restored.objects, ByteSize(restored.bytes)))
}

/// Copies what is at `path` of a snapshot to `target`.
pub async fn copy_out(
    opened: &Opened,
    snapshot: &Snapshot,
    path: &str,
    target: &Path,
    overwrite: Overwrite,
    say: &(dyn Fn(&Restored) + Sync),
) -> anyhow::Result<Restored> {
    // Kept for as long as it takes, whoever deletes it meanwhile (R14).
    let reading = ReadSnapshot::open(opened.parts.volumes.settings(), &opened.pool.catalog, snapshot.id()).await?;
    let mut copy = Copy { view: reading.view(), overwrite, links: HashMap::new(), done: Restored::default(), say };
    let copied = copy.path(path, target).await;
    let done = copy.done;
    let closed = reading.close().await;
    copied?;
    closed?;
    Ok(done)
}

struct Copy<'a> {
    view: &'a SnapshotView,
    overwrite: Overwrite,
    /// Where a file with several names was put first.
    links: HashMap<InodeNo, PathBuf>,
    done: Restored,
    say: &'a (dyn Fn(&Restored) + Sync),
}

impl Copy<'_> {
    async fn path(&mut self, path: &str, target: &Path) -> anyhow::Result<()> {
        let mut at = self.view.root().await?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let wrong = |why: String| Wrong::new(Class::Invalid, format!("path {path:?}: {why}"));
            let name = EntryName::try_from(name.as_bytes()).map_err(|error| wrong(error.to_string()))?;
            at = match self.view.lookup(&at, &name).await {
                Err(error @ (FsError::NotFound | FsError::NotDirectory)) => {
                    return Err(Wrong::new(Class::NotFound, format!("path {path:?} in the snapshot: {name}: {error}")));
                }
                found => found?,
            };
        }
        // A stack rather than recursion: the depth is the snapshot's author's choice.
        let mut folders = Vec::new();
        let mut waiting = vec![(at, target.to_owned(), 0)];
        while let Some((object, target, depth)) = waiting.pop() {
            if depth > DEPTH_MAX {
                bail!("{}: folders are nested deeper than {DEPTH_MAX}", target.display());
            }
            if object.row.kind == FileKind::Directory {
                self.make_folder(&target)?;
                self.queue_children(&object, &target, depth, &mut waiting).await?;
                folders.push((object, target));
            } else {
                self.object(&object, &target).await?;
            }
            self.done.objects += 1;
            (self.say)(&self.done);
        }
        // Deepest last in, first out: making an entry changes its folder's times.
        while let Some((object, target)) = folders.pop() {
            self.attributes(&object, &target)?;
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
                waiting.push((child, target.join(std::ffi::OsStr::from_bytes(entry.name.as_bytes())), depth + 1));
            }
            match next {
                Some(next) => from = Some(next),
                None => return Ok(()),
            }
        }
    }

    fn make_folder(&self, target: &Path) -> anyhow::Result<()> {
        match std::fs::create_dir(target) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => match std::fs::symlink_metadata(target) {
                Ok(meta) if meta.is_dir() && self.overwrite == Overwrite::Force => Ok(()),
                _ => Err(in_the_way(target)),
            },
            made => made.with_context(|| format!("making {}", target.display())),
        }
    }

    async fn object(&mut self, object: &Viewed, target: &Path) -> anyhow::Result<()> {
        if std::fs::symlink_metadata(target).is_ok_and(|meta| self.overwrite == Overwrite::Refuse || meta.is_dir()) {
            return Err(in_the_way(target));
        }
        // Beside the target under a name of its own, then renamed over it.
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".restore-{:08x}", rand::random::<u32>()));
        let temporary = if target.as_os_str().as_bytes().len() + 20 > 4096 || name.as_bytes().len() > 255 {
            target.with_file_name(format!(".restore-{:016x}", rand::random::<u64>()))
        } else {
            target.with_file_name(name)
        };
        let made = self.make(object, &temporary).await;
        let made = made.and_then(|()| {
            std::fs::rename(&temporary, target).with_context(|| format!("renaming {} into place", temporary.display()))
        });
        if made.is_err() {
            // What is left of a failed copy is of no use; the error that is shown is the first one.
            let _ = std::fs::remove_file(&temporary);
        }
        made?;
        if object.row.kind == FileKind::Regular && object.row.nlink > 1 {
            self.links.entry(object.ino).or_insert_with(|| target.to_owned());
        }
        Ok(())
    }

    async fn make(&mut self, object: &Viewed, at: &Path) -> anyhow::Result<()> {
        let what = || format!("making {}", at.display());
        if let Some(first) = self.links.get(&object.ino) {
            return std::fs::hard_link(first, at).with_context(what);
        }
        let node =
            |kind| rustix::fs::mknodat(rustix::fs::CWD, at, kind, rustix::fs::Mode::empty(), device(object)).with_context(what);
        match object.row.kind {
            FileKind::Regular => self.file(object, at).await?,
            FileKind::Symlink => {
                let to = object.row.target.as_deref().unwrap_or_default();
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(to), at).with_context(what)?;
            }
            FileKind::Fifo => node(rustix::fs::FileType::Fifo)?,
            FileKind::Socket => node(rustix::fs::FileType::Socket)?,
            FileKind::CharDevice => node(rustix::fs::FileType::CharacterDevice)?,
            FileKind::BlockDevice => node(rustix::fs::FileType::BlockDevice)?,
            FileKind::Directory => bail!("{}: a folder among files", at.display()),
        }
        self.attributes(object, at)
    }

    /// Holes stay holes.
    async fn file(&mut self, object: &Viewed, at: &Path) -> anyhow::Result<()> {
        let what = || format!("writing {}", at.display());
        let file = File::create_new(at).with_context(what)?;
        file.set_permissions(Permissions::from_mode(0o600)).with_context(what)?;
        let (mut offset, size) = (0, object.row.size);
        file.set_len(size).with_context(what)?;
        while offset < size {
            for (len, bytes) in self.view.read(object, offset, PART).await.with_context(what)? {
                if let Some(bytes) = bytes {
                    file.write_all_at(&bytes, offset).with_context(what)?;
                }
                offset += len;
                self.done.bytes += len;
            }
            (self.say)(&self.done);
        }
        Ok(())
    }

    fn attributes(&mut self, object: &Viewed, at: &Path) -> anyhow::Result<()> {
        let (row, what) = (&object.row, || format!("setting the attributes of {}", at.display()));
        let owned = std::os::unix::fs::lchown(at, Some(row.uid), Some(row.gid));
        let kept = match owned {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => false,
            owned => owned.map(|()| true).with_context(what)?,
        };
        if !kept {
            self.done.owners_not_kept += 1;
        }
        if row.kind != FileKind::Symlink {
            // A set-id bit never goes to someone who is not its owner.
            let mode = if kept { row.mode & 0o7777 } else { row.mode & 0o1777 };
            std::fs::set_permissions(at, Permissions::from_mode(mode)).with_context(what)?;
        }
        let spec = |at: Timestamp| rustix::fs::Timespec { tv_sec: at.secs(), tv_nsec: i64::from(at.subsec_nanos()) };
        let times = rustix::fs::Timestamps { last_access: spec(row.atime), last_modification: spec(row.mtime) };
        rustix::fs::utimensat(rustix::fs::CWD, at, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).with_context(what)
    }
}

fn device(object: &Viewed) -> rustix::fs::Dev {
    rustix::fs::makedev(object.row.rdev.0, object.row.rdev.1)
}

fn in_the_way(target: &Path) -> anyhow::Error {
    Wrong::new(
        Class::Exists,
        format!("{}: something is there already: give another path, or --force to replace files", target.display()),
    )
}
