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

mod failures;
mod links;
mod options;

pub use options::{Effect, How, Overwrite, Restored, Unwatched, Watch};

use self::failures::{Failures, THERE, ends_all, in_the_way, interrupted, unless};
use self::links::Links;
use super::exit::{Wrong, class_of};
use super::files::{Files, Object};
use super::local::{Attributes, Local, Made, Owner, Safety, beside};
use super::tree::Tree;
use crate::fs::api::FileKind;
use crate::types::{Class, EntryName, plural};
use anyhow::{Context, bail};
use rustix::fs::FileType;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// Copies the object at `path` of a snapshot to `target`, until `stop` is cancelled. The snapshot
/// stays retained while its files are open, even if it is deleted meanwhile (R14).
pub async fn copy_out(
    files: Files<'_>,
    path: &[u8],
    target: &Path,
    how: How,
    watch: &dyn Watch,
    stop: &CancellationToken,
) -> anyhow::Result<Restored> {
    Copy::run(files, path, target, how, watch, stop).await
}

struct Copy<'a> {
    files: Files<'a>,
    how: How,
    local: Local,
    /// In a dry run, the depth of the walk at which it entered a folder that is not there.
    absent_from: Option<usize>,
    walk: Tree<'a>,
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
        files: Files<'a>,
        path: &[u8],
        target: &'a Path,
        how: How,
        watch: &'a dyn Watch,
        stop: &'a CancellationToken,
    ) -> anyhow::Result<Restored> {
        let what = || format!("opening the folder around {}, which must exist", target.display());
        let (local, top) = Local::around(target).with_context(what)?;
        let mut copy = Self {
            files,
            how,
            local,
            absent_from: None,
            walk: Tree::new(files),
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
        let done = if self.is_dry() { "would restore" } else { "restored" };
        let mut why = format!("{done} {}", plural(self.done.objects, "object"));
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
        let at = self.files.find(path).await?;
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
        let next = unless(self.stop, self.walk.next()).await?;
        match next {
            Ok(Some((name, object))) => {
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
        let depth = self.walk.depth();
        let Some(folder) = self.walk.leave() else { return Ok(()) };
        if self.is_dry() {
            return self.leave_unwritten(depth);
        }
        let safety = match self.how.overwrite {
            Overwrite::Refuse => Safety::Later,
            Overwrite::Force | Overwrite::Changed => Safety::Now,
        };
        let made = self.local.leave(&attributes(&folder), safety);
        // Without the parent folder nothing can continue.
        let made = made.map_err(|error| {
            Wrong::new(Class::Unavailable, format!("returning to the parent of {shown}: {error}"))
        })?;
        self.count(made, || shown);
        Ok(())
    }

    fn is_dry(&self) -> bool {
        self.how.effect == Effect::DryRun
    }

    /// Leaves a folder in a dry run.
    fn leave_unwritten(&mut self, depth: usize) -> anyhow::Result<()> {
        match self.absent_from {
            Some(at) if at == depth => self.absent_from = None,
            Some(_) => {}
            None => self.local.go_back().context("returning to the parent folder")?,
        }
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
            return Err(interrupted());
        }
        Ok(())
    }

    async fn object(&mut self, object: Object, name: Option<EntryName>) -> anyhow::Result<()> {
        if object.kind == FileKind::Directory {
            self.enter(object, name)?;
            self.done.objects += 1;
            return Ok(());
        }
        self.file_or_node(&object, name.as_ref()).await
    }

    /// The kind of what has a name in the folder that was entered last.
    fn kind(&self, name: &OsStr) -> io::Result<Option<FileType>> {
        match self.absent_from {
            Some(_) => Ok(None),
            None => self.local.kind(name),
        }
    }

    /// Returns whether a file or link is as in the snapshot, by what a listing shows of it.
    fn is_same(&self, object: &Object, name: &OsStr) -> io::Result<bool> {
        match object.kind {
            FileKind::Regular => self.local.is_file(name, object.size, &attributes(object)),
            FileKind::Symlink => {
                let target = object.target.as_deref().unwrap_or_default();
                self.local.is_link(name, OsStr::from_bytes(target))
            }
            _ => Ok(false),
        }
    }

    /// The name in the folder that was entered last.
    fn local_name<'b>(&'b self, name: Option<&'b EntryName>) -> &'b OsStr {
        name.map_or(&self.top, os)
    }

    fn enter(&mut self, folder: Object, name: Option<EntryName>) -> anyhow::Result<()> {
        let (at, shown) = (self.local_name(name.as_ref()).to_owned(), self.shown(name.as_ref()));
        let make = |local: &Local| match self.how.effect {
            Effect::DryRun => match self.kind(&at)? {
                Some(_) => Err(ErrorKind::AlreadyExists.into()),
                None => Ok(()),
            },
            Effect::Replace | Effect::KeepBeside => local.make_folder(&at),
        };
        let is_new = match make(&self.local) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => match self.local.kind(&at) {
                Ok(Some(FileType::Directory)) if self.how.overwrite != Overwrite::Refuse => false,
                Ok(Some(FileType::Directory)) | Err(_) => return Err(in_the_way(&shown, THERE)),
                Ok(_) => {
                    let why =
                        "a file is in the way of a folder: move it away, or choose another path";
                    return Err(in_the_way(&shown, why));
                }
            },
            made => made.map(|()| true).with_context(|| format!("creating {shown}"))?,
        };
        self.walk.enter(folder, name);
        if self.is_dry() && is_new {
            self.absent_from.get_or_insert(self.walk.depth());
        }
        if self.absent_from.is_some() {
            return Ok(());
        }
        let entered = match self.is_dry() {
            true => self.local.look_into(&at),
            false => self.local.enter(&at),
        };
        if entered.is_err() {
            self.walk.leave();
        }
        entered.with_context(|| format!("opening {shown}"))
    }

    async fn file_or_node(
        &mut self,
        object: &Object,
        name: Option<&EntryName>,
    ) -> anyhow::Result<()> {
        let (at, shown) = (self.local_name(name).to_owned(), self.shown(name));
        let there = self.kind(&at).with_context(|| format!("examining {shown}"))?;
        if self.how.overwrite == Overwrite::Changed
            && there.is_some()
            && self.is_same(object, &at).with_context(|| format!("examining {shown}"))?
        {
            self.done.unchanged += 1;
            self.remember(object, &at);
            return Ok(());
        }
        let why = match there {
            None => None,
            Some(FileType::Directory) => {
                Some("a folder is in the way of a file: move it away, or name the file's own path")
            }
            Some(FileType::RegularFile | FileType::Symlink) => {
                (self.how.overwrite == Overwrite::Refuse).then_some(THERE)
            }
            // A tree that is restored again.
            Some(kind)
                if name.is_some()
                    && self.how.overwrite != Overwrite::Refuse
                    && kind == file_type(object.kind) =>
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
        if self.is_dry() {
            let is_file = object.kind == FileKind::Regular;
            self.done.bytes += if is_file { object.size } else { 0 };
            self.count_object(there);
            return Ok(());
        }
        let safety = if there.is_some() { Safety::Now } else { Safety::Later };
        // Beside the target under a name of its own, then renamed over it.
        let temporary = beside(&at);
        let made = self.make(object, &temporary, &shown, safety).await;
        if made.is_err() {
            // A failed copy is of no use; the first error is the one that is reported.
            let _ = self.local.remove(&temporary);
        }
        made?;
        self.put_in_place(&temporary, &at, &shown)?;
        self.count_object(there);
        self.remember(object, &at);
        Ok(())
    }

    /// Gives a finished object its name. What took the name while the object was copied is treated
    /// as what was there before: it is left, or kept, unless it may be replaced.
    fn put_in_place(&self, temporary: &OsStr, at: &OsStr, shown: &str) -> anyhow::Result<()> {
        let placed = match (self.how.effect, self.how.overwrite) {
            (Effect::KeepBeside, _) => {
                return self
                    .local
                    .replace_keeping(temporary, at)
                    .with_context(|| format!("keeping {shown}"));
            }
            (_, Overwrite::Refuse) => self.local.rename_new(temporary, at),
            _ => self.local.rename(temporary, at),
        };
        // Also where it succeeded: a rename of one object over another name of itself does nothing.
        let _ = self.local.remove(temporary);
        match placed {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(in_the_way(shown, THERE)),
            placed => placed.with_context(|| format!("renaming {shown} into place")),
        }
    }

    fn count_object(&mut self, replaced: Option<FileType>) {
        self.done.objects += 1;
        self.done.replaced += u64::from(replaced.is_some());
    }

    fn remember(&mut self, object: &Object, at: &OsStr) {
        if object.nlink < 2 || self.links.first.contains_key(&object.ino) {
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
        self.links.put(object.ino, object.nlink, path);
    }

    /// Links another name to an object that was restored already, if that is possible.
    fn link(&mut self, object: &Object, at: &OsStr) -> bool {
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
        object: &Object,
        at: &OsStr,
        shown: &str,
        safety: Safety,
    ) -> anyhow::Result<()> {
        if self.link(object, at) {
            return Ok(());
        }
        let row = object;
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
        object: &Object,
        at: &OsStr,
        shown: &str,
        safety: Safety,
    ) -> anyhow::Result<()> {
        let what = || format!("writing {shown}");
        let file = self.local.make_file(at).with_context(what)?;
        file.set_len(object.size).with_context(what)?;
        let source = || format!("reading the source of {shown}");
        let opened = unless(self.stop, self.files.read(object)).await?;
        let (mut reading, mut offset) = (opened.with_context(source)?, 0);
        while let Some((len, bytes)) =
            unless(self.stop, reading.next()).await?.with_context(source)?
        {
            if let Some(bytes) = bytes {
                file.write_all_at(&bytes, offset).with_context(what)?;
            }
            offset += len;
            self.done.bytes += len;
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

fn attributes(object: &Object) -> Attributes {
    Attributes {
        mode: object.mode,
        uid: object.uid,
        gid: object.gid,
        atime: object.atime,
        mtime: object.mtime,
    }
}
