//! Copies a file or folder from a snapshot to a local path.
//!
//! Nothing outside of the target is ever written: names come one by one as directory entries, which
//! hold no `/` and are never `..`, and every object is created (`O_EXCL`) or replaces one by a
//! rename; links in the way are not followed ([`Local`]). A replacement is on the disk before it
//! takes the name: a crash leaves the one or the other.
//!
//! An object of a tree that cannot be created is named at once and left out; the rest is restored,
//! and the command fails at the end. Only causes that would keep all other objects from being
//! restored end it early: the store, a full disk, a signal.
//!
//! Bounded memory, whatever the folders hold and however deep they are ([`Walk`], [`Links`]).

use super::exit::{Interrupted, Wrong, class_of};
use super::local::{Attributes, Local, Made, Owner, Safety, beside};
use super::path;
use super::report::{Progress, plural};
use super::target::{Opened, Root};
use crate::fs::api::FileKind;
use crate::fs::{FsError, SnapshotFs, SnapshotInode, Walk};
use crate::types::{ByteSize, Class, Classify, EntryName, InodeNo};
use anyhow::{Context, bail};
use rustix::fs::FileType;
use serde::Serialize;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// Bytes read at once.
const PART: u32 = 4 << 20;

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
    /// Names of an object with several that became objects of their own.
    pub links_not_kept: u64,
}

/// Observer of a restore.
pub trait Watch: Sync {
    /// Progress.
    fn at(&self, _done: &Restored) {}
    /// The failure of one object.
    fn failed(&self, why: &str);
}

/// The observer that ignores everything.
pub struct Unwatched;

impl Watch for Unwatched {
    fn failed(&self, _why: &str) {}
}

impl Watch for Progress {
    fn at(&self, done: &Restored) {
        self.say(&format!("{} objects, {}", done.objects, ByteSize(done.bytes)));
    }

    fn failed(&self, why: &str) {
        self.note(why);
    }
}

/// Copies the object at `path` of a snapshot to `target`, until `stop` is cancelled.
pub async fn copy_out(
    opened: &Opened,
    root: &Root,
    path: &[u8],
    target: &Path,
    overwrite: Overwrite,
    watch: &dyn Watch,
    stop: &CancellationToken,
) -> anyhow::Result<Restored> {
    // The snapshot is retained during the copy, even if it is deleted meanwhile (R14).
    let view = opened.view(root).await?;
    let copied = Copy::run(view.files(), path, target, overwrite, watch, stop).await;
    let closed = view.close().await;
    let done = copied?;
    closed?;
    Ok(done)
}

/// The first paths of objects with several names.
#[derive(Default)]
struct Links {
    first: HashMap<InodeNo, First>,
    bytes: usize,
}

struct First {
    /// The names that lead to it from the folder around the target, with `/` between them.
    path: Vec<u8>,
    /// Names that remain.
    left: u32,
}

impl Links {
    /// Total length of the paths; beyond it, further names become separate objects.
    const BYTES_MAX: usize = 16 << 20;

    fn put(&mut self, ino: InodeNo, nlink: u32, path: Vec<u8>) {
        if self.bytes + path.len() <= Self::BYTES_MAX {
            self.bytes += path.len();
            self.first.insert(ino, First { path, left: nlink - 1 });
        }
    }

    /// Counts one more of its names as created.
    fn made(&mut self, ino: InodeNo) {
        let Some(first) = self.first.get_mut(&ino) else { return };
        first.left -= 1;
        if first.left == 0 {
            self.bytes -= first.path.len();
            self.first.remove(&ino);
        }
    }
}

/// The objects that could not be restored.
#[derive(Default)]
struct Failures {
    objects: u64,
    /// Objects that were restored without their mode or times.
    in_part: u64,
    class: Option<Class>,
}

impl Failures {
    fn add(&mut self, class: Class) {
        // Damage outranks every other class.
        if self.class.is_none() || class == Class::Corrupt {
            self.class = Some(class);
        }
    }
}

struct Copy<'a> {
    view: &'a SnapshotFs,
    overwrite: Overwrite,
    local: Local,
    walk: Walk<'a>,
    target: &'a Path,
    /// The target's name in the folder around it.
    top: OsString,
    links: Links,
    done: Restored,
    failures: Failures,
    watch: &'a dyn Watch,
    stop: &'a CancellationToken,
}

impl<'a> Copy<'a> {
    async fn run(
        view: &'a SnapshotFs,
        path: &[u8],
        target: &'a Path,
        overwrite: Overwrite,
        watch: &'a dyn Watch,
        stop: &'a CancellationToken,
    ) -> anyhow::Result<Restored> {
        let what = || format!("opening the folder around {}, which must exist", target.display());
        let (local, top) = Local::around(target).with_context(what)?;
        let mut copy = Self {
            view,
            overwrite,
            local,
            walk: Walk::new(view),
            target,
            top,
            links: Links::default(),
            done: Restored::default(),
            failures: Failures::default(),
            watch,
            stop,
        };
        copy.all(path).await?;
        copy.ended()
    }

    fn ended(self) -> anyhow::Result<Restored> {
        let Failures { objects: failed, in_part, class } = self.failures;
        let Some(class) = class else { return Ok(self.done) };
        let mut why = format!("restored {}", plural(self.done.objects, "object"));
        if failed > 0 {
            why += &format!("; {failed} could not be restored");
        }
        if in_part > 0 {
            why += &format!("; {in_part} lack their mode or times");
        }
        Err(Wrong::new(class, why + "; each is listed above"))
    }

    /// The path of an entry of the folder that was entered last; without one, of the folder.
    fn shown(&self, name: Option<&EntryName>) -> String {
        let mut shown = self.target.to_owned();
        shown.extend(self.walk.names().chain(name).map(os));
        shown.display().to_string()
    }

    async fn all(&mut self, path: &[u8]) -> anyhow::Result<()> {
        self.go_on()?;
        let at = path::find(self.view, path).await?;
        self.object(at, None).await?;
        while self.walk.depth() > 0 {
            self.go_on()?;
            let done = self.step().await;
            self.left_out(done)?;
            self.watch.at(&self.done);
        }
        Ok(())
    }

    /// Restores the next entry of the folder that was entered last; after the last one, the
    /// folder's own attributes.
    async fn step(&mut self) -> anyhow::Result<()> {
        match self.walk.next().await {
            Ok(Some((name, ino))) => {
                let object = self.view.inode(ino).await;
                let object = object.with_context(|| {
                    format!("reading the source of {}", self.shown(Some(&name)))
                })?;
                self.object(object, Some(name)).await
            }
            Ok(None) => self.leave(),
            Err(error) => {
                let listed = Err(error)
                    .with_context(|| format!("listing the source of {}", self.shown(None)));
                self.left_out(listed)?;
                self.leave()
            }
        }
    }

    fn leave(&mut self) -> anyhow::Result<()> {
        let shown = self.shown(None);
        let Some(folder) = self.walk.leave() else { return Ok(()) };
        let safety = if self.overwrite == Overwrite::Force { Safety::Now } else { Safety::Later };
        let made = self.local.leave(&attributes(&folder), safety);
        // Without the parent folder nothing can continue.
        let made = made.map_err(|error| {
            Wrong::new(Class::Unavailable, format!("returning to the parent of {shown}: {error}"))
        })?;
        self.count(made, || shown);
        Ok(())
    }

    /// Reports an object of a tree that failed, unless the others would fail too.
    fn left_out(&mut self, done: anyhow::Result<()>) -> anyhow::Result<()> {
        let Err(error) = done else { return Ok(()) };
        if ends_all(&error) {
            return Err(error);
        }
        self.failures.objects += 1;
        self.failures.add(class_of(&error));
        self.watch.failed(&format!("not restored: {error:#}"));
        Ok(())
    }

    /// Fails once the command is to stop; everything restored so far stays.
    fn go_on(&self) -> anyhow::Result<()> {
        if self.stop.is_cancelled() {
            return Err(Interrupted::new(
                "every file restored so far is complete; run it again with --force for the rest",
            ));
        }
        Ok(())
    }

    async fn object(
        &mut self,
        object: SnapshotInode,
        name: Option<EntryName>,
    ) -> anyhow::Result<()> {
        if object.row.kind == FileKind::Directory {
            self.enter(object, name)?;
        } else {
            self.file_or_node(&object, name.as_ref()).await?;
        }
        self.done.objects += 1;
        Ok(())
    }

    /// The name in the folder that was entered last.
    fn local_name<'b>(&'b self, name: Option<&'b EntryName>) -> &'b OsStr {
        name.map_or(&self.top, os)
    }

    fn enter(&mut self, folder: SnapshotInode, name: Option<EntryName>) -> anyhow::Result<()> {
        let (at, shown) = (self.local_name(name.as_ref()).to_owned(), self.shown(name.as_ref()));
        match self.local.make_folder(&at) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => match self.local.kind(&at) {
                Ok(Some(FileType::Directory)) if self.overwrite == Overwrite::Force => {}
                Ok(Some(FileType::Directory)) | Err(_) => return Err(in_the_way(&shown, THERE)),
                Ok(_) => {
                    let why =
                        "a file is in the way of a folder: move it away, or choose another path";
                    return Err(in_the_way(&shown, why));
                }
            },
            made => made.with_context(|| format!("creating {shown}"))?,
        }
        self.local.enter(&at).with_context(|| format!("opening {shown}"))?;
        self.walk.enter(folder, name);
        Ok(())
    }

    async fn file_or_node(
        &mut self,
        object: &SnapshotInode,
        name: Option<&EntryName>,
    ) -> anyhow::Result<()> {
        let (at, shown) = (self.local_name(name).to_owned(), self.shown(name));
        let there = self.local.kind(&at).with_context(|| format!("examining {shown}"))?;
        let why = match there {
            None => None,
            Some(FileType::Directory) => {
                Some("a folder is in the way of a file: move it away, or name the file's own path")
            }
            Some(FileType::RegularFile | FileType::Symlink) => {
                (self.overwrite == Overwrite::Refuse).then_some(THERE)
            }
            // A tree that is restored again.
            Some(kind)
                if name.is_some()
                    && self.overwrite == Overwrite::Force
                    && kind == file_type(object.row.kind) =>
            {
                None
            }
            Some(_) => Some(
                "a device, pipe or socket is in the way and is never replaced: choose another \
                 path",
            ),
        };
        if let Some(why) = why {
            return Err(in_the_way(&shown, why));
        }
        let safety = if there.is_some() { Safety::Now } else { Safety::Later };
        // Beside the target under a name of its own, then renamed over it.
        let temporary = beside(&at);
        let made = self.make(object, &temporary, &shown, safety).await;
        let made = made.and_then(|()| {
            self.local
                .rename(&temporary, &at)
                .with_context(|| format!("renaming {shown} into place"))
        });
        if made.is_err() || there.is_some() {
            // A failed copy is of no use, and a rename of one object over another name of itself
            // does nothing; the first error is the one that is reported.
            let _ = self.local.remove(&temporary);
        }
        made?;
        self.remember(object, &at);
        Ok(())
    }

    fn remember(&mut self, object: &SnapshotInode, at: &OsStr) {
        if object.row.nlink < 2 || self.links.first.contains_key(&object.ino) {
            return self.links.made(object.ino);
        }
        let mut path = Vec::new();
        // The target itself is no entry of the walk.
        let around = (self.walk.depth() > 0).then_some(self.top.as_os_str());
        for name in around.into_iter().chain(self.walk.names().map(os)).chain([at]) {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
        }
        self.links.put(object.ino, object.row.nlink, path);
    }

    /// Links another name to an object that was restored already, if that is possible.
    fn link(&mut self, object: &SnapshotInode, at: &OsStr) -> bool {
        let Some(first) = self.links.first.get(&object.ino) else { return false };
        let first = first.path.split(|byte| *byte == b'/').map(OsStr::from_bytes);
        let linked = self.local.link(first, at).is_ok();
        if !linked {
            self.done.links_not_kept += 1;
        }
        linked
    }

    async fn make(
        &mut self,
        object: &SnapshotInode,
        at: &OsStr,
        shown: &str,
        safety: Safety,
    ) -> anyhow::Result<()> {
        if self.link(object, at) {
            return Ok(());
        }
        let row = &object.row;
        let (attributes, what) = (attributes(object), || format!("creating {shown}"));
        let made = match row.kind {
            FileKind::Regular => return self.file(object, at, shown, safety).await,
            FileKind::Symlink => self.local.make_link(
                at,
                OsStr::from_bytes(row.target.as_deref().unwrap_or_default()),
                &attributes,
            ),
            FileKind::Directory => bail!("{shown}: is a folder, not a file"),
            kind => self.local.make_node(
                at,
                file_type(kind),
                rustix::fs::makedev(row.rdev.0, row.rdev.1),
                &attributes,
            ),
        };
        self.count(made.with_context(what)?, || shown.to_owned());
        Ok(())
    }

    /// Holes stay holes.
    async fn file(
        &mut self,
        object: &SnapshotInode,
        at: &OsStr,
        shown: &str,
        safety: Safety,
    ) -> anyhow::Result<()> {
        let what = || format!("writing {shown}");
        let file = self.local.make_file(at).with_context(what)?;
        let (mut offset, size) = (0, object.row.size);
        file.set_len(size).with_context(what)?;
        while offset < size {
            self.go_on()?;
            let read = self.view.pieces(object, offset, PART).await;
            for (len, bytes) in read.with_context(|| format!("reading the source of {shown}"))? {
                if let Some(bytes) = bytes {
                    file.write_all_at(&bytes, offset).with_context(what)?;
                }
                offset += len;
                self.done.bytes += len;
            }
            self.watch.at(&self.done);
        }
        let made = Local::finish_file(&file, &attributes(object), safety).with_context(what)?;
        self.count(made, || shown.to_owned());
        Ok(())
    }

    /// An object whose mode or times cannot be set stays, closed to others as it was created, and
    /// is reported.
    fn count(&mut self, made: Made, shown: impl FnOnce() -> String) {
        self.done.owners_not_kept += u64::from(made.owner == Owner::Mine);
        if let Err(error) = made.attributes {
            self.failures.in_part += 1;
            let why = format!("restored without its mode or times: {}: {error}", shown());
            self.failures.add(class_of(&error.into()));
            self.watch.failed(&why);
        }
    }
}

/// Returns whether the cause would keep all other objects from being restored too: the store, a
/// full disk, a signal.
fn ends_all(error: &anyhow::Error) -> bool {
    if error.is::<Wrong>() {
        return class_of(error) != Class::Exists;
    }
    for cause in error.chain() {
        if let Some(error) = cause.downcast_ref::<FsError>() {
            return error.class() != Class::Corrupt;
        }
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return matches!(
                error.kind(),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem
            );
        }
    }
    true
}

fn os(name: &EntryName) -> &OsStr {
    OsStr::from_bytes(name.as_bytes())
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::Fifo,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharacterDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

fn attributes(object: &SnapshotInode) -> Attributes {
    let row = &object.row;
    Attributes { mode: row.mode, uid: row.uid, gid: row.gid, atime: row.atime, mtime: row.mtime }
}

const THERE: &str = "already exists: choose another path, or use --force to replace files";

fn in_the_way(target: &str, why: &str) -> anyhow::Error {
    Wrong::new(Class::Exists, format!("{target}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_links_is_bounded() {
        let mut links = Links::default();
        (0..100).for_each(|n| links.put(InodeNo(n), 3, vec![b'x'; 1 << 20]));
        assert!(links.bytes <= Links::BYTES_MAX && links.first.len() == 16);
        for n in 0..16 {
            links.made(InodeNo(n));
            assert!(links.first.contains_key(&InodeNo(n)));
            links.made(InodeNo(n));
        }
        assert!(links.first.is_empty() && links.bytes == 0);
    }

    #[test]
    fn one_bad_object_ends_nothing_and_a_full_disk_does() {
        let io = |kind| Err::<(), _>(io::Error::from(kind)).context("making x").unwrap_err();
        for (error, ends) in [
            (io(ErrorKind::PermissionDenied), false),
            (io(ErrorKind::InvalidInput), false),
            (io(ErrorKind::StorageFull), true),
            (FsError::Corrupt(String::new()).into(), false),
            (FsError::Unavailable(String::new()).into(), true),
            (Interrupted::new("x"), true),
            (in_the_way("x", "y"), false),
        ] {
            assert_eq!(ends_all(&error), ends, "{error:#}");
        }
    }
}
