//! Folders of this machine, as a restore writes to them: one is entered after the other from the
//! folder around the target, and no link is followed on the way, whatever other programs do there
//! meanwhile. New objects are accessible to no other user until their own mode is set.
//!
//! Names are those of entries of the folder that was entered last; `.` is that folder.
//!
//! Bounded whatever the depth: the innermost [`FDS_HELD`] folders are open. One further up is
//! opened again from the one below it, and must be the folder that it was.

use crate::types::Timestamp;
use rustix::fs::{
    AtFlags, CWD, Dev, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid,
};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A folder in which names are looked up, whether it can be listed or not.
const WAY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Opens the object itself, not the target of a link.
const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
const FDS_HELD: usize = 16;
/// Most numbered backups of one name.
const BACKUPS_MAX: u32 = 9999;
/// Most objects that take one name while it is restored, and are kept.
const KEEPS_MAX: u32 = 16;
/// An id that chown(2) takes for "leave it as it is".
const NO_ID: u32 = u32::MAX;

pub struct Local {
    /// The folder around the target, and those that were entered from there.
    levels: Vec<OpenFolder>,
}

struct OpenFolder {
    fd: Option<OwnedFd>,
    /// Device and inode number.
    id: (u64, u64),
}

/// The attributes that an object gets.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub atime: Timestamp,
    pub mtime: Timestamp,
}

/// The owner that could be set: setting it needs root, and a user namespace that has the ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Kept,
    Mine,
}

/// The outcome of setting the attributes of an object that is there.
#[derive(Debug)]
pub struct Made {
    pub owner: Owner,
    /// Its mode and times; not every file system keeps them.
    pub attributes: io::Result<()>,
}

/// When a new object has to be durable: before it replaces an existing one, or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Safety {
    Now,
    Later,
}

impl Attributes {
    fn times(&self) -> Timestamps {
        let spec =
            |at: Timestamp| Timespec { tv_sec: at.secs(), tv_nsec: i64::from(at.subsec_nanos()) };
        Timestamps { last_access: spec(self.atime), last_modification: spec(self.mtime) }
    }

    /// A set-id bit never goes to someone who is not its owner.
    fn mode(&self, owner: Owner) -> Mode {
        Mode::from_raw_mode(self.mode & if owner == Owner::Kept { 0o7777 } else { 0o1777 })
    }

    /// The owner first: changing it clears bits of the mode.
    fn set(
        &self,
        chown: impl FnOnce(Option<Uid>, Option<Gid>) -> rustix::io::Result<()>,
        rest: impl FnOnce(Mode, &Timestamps) -> rustix::io::Result<()>,
    ) -> Made {
        let (owner, failed) = match self.chown(chown) {
            Ok(owner) => (owner, None),
            Err(error) => (Owner::Mine, Some(error)),
        };
        let set = rest(self.mode(owner), &self.times()).map_err(io::Error::from);
        Made { owner, attributes: failed.map_or(set, Err) }
    }

    fn chown(
        &self,
        chown: impl FnOnce(Option<Uid>, Option<Gid>) -> rustix::io::Result<()>,
    ) -> io::Result<Owner> {
        if self.uid == NO_ID || self.gid == NO_ID {
            return Ok(Owner::Mine);
        }
        match chown(Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid))) {
            Ok(()) => Ok(Owner::Kept),
            // The last one: the user namespace does not have the id.
            Err(Errno::PERM | Errno::ACCESS | Errno::INVAL) => Ok(Owner::Mine),
            Err(error) => Err(error.into()),
        }
    }

    /// Sets the attributes of an open object.
    fn set_open(&self, fd: impl AsFd) -> Made {
        self.set(
            |uid, gid| rustix::fs::fchown(&fd, uid, gid),
            |mode, times| rustix::fs::fchmod(&fd, mode).and(rustix::fs::futimens(&fd, times)),
        )
    }
}

fn id(fd: impl AsFd) -> io::Result<(u64, u64)> {
    let found = rustix::fs::fstat(fd)?;
    Ok((found.st_dev, found.st_ino))
}

/// An object that cannot be opened is changed by its path alone.
fn chmod_held(held: &OwnedFd, mode: Mode) -> rustix::io::Result<()> {
    rustix::fs::chmodat(
        CWD,
        format!("/proc/self/fd/{}", held.as_raw_fd()).as_str(),
        mode,
        AtFlags::empty(),
    )
}

impl Local {
    /// The folder around a target, and the target's name in it. Links in the user's own path are
    /// followed.
    pub fn around(target: &Path) -> io::Result<(Self, OsString)> {
        let (folder, name) = match (target.parent(), target.file_name()) {
            (Some(folder), Some(name)) if folder.as_os_str().is_empty() => (Path::new("."), name),
            (Some(folder), Some(name)) => (folder, name),
            _ => (target, OsStr::new(".")),
        };
        let fd = rustix::fs::openat(CWD, folder, WAY, Mode::empty())?;
        Ok((Self { levels: vec![OpenFolder { id: id(&fd)?, fd: Some(fd) }] }, name.to_owned()))
    }

    /// The folder that was entered last.
    fn folder(&self) -> io::Result<&OwnedFd> {
        self.levels
            .last()
            .and_then(|level| level.fd.as_ref())
            .ok_or_else(|| io::Error::other("no folder is open"))
    }

    /// The kind of the object with that name.
    pub fn kind(&self, name: &OsStr) -> io::Result<Option<FileType>> {
        match rustix::fs::statat(self.folder()?, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            found => Ok(Some(FileType::from_raw_mode(found?.st_mode))),
        }
    }

    pub fn make_folder(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(self.folder()?, name, Mode::RWXU)?)
    }

    /// Enters a folder. One of ours without permissions for ourselves gets them until it is left.
    pub fn enter(&mut self, name: &OsStr) -> io::Result<()> {
        let around = self.folder()?;
        let held = rustix::fs::openat(around, name, WAY | OFlags::NOFOLLOW, Mode::empty())?;
        let found = rustix::fs::fstat(&held)?;
        let mode = Mode::from_raw_mode(found.st_mode & 0o7777);
        if found.st_uid == rustix::process::geteuid().as_raw() && !mode.contains(Mode::RWXU) {
            chmod_held(&held, mode | Mode::RWXU)?;
        }
        let fd = rustix::fs::openat(&held, ".", FOLDER, Mode::empty())?;
        self.push(fd)
    }

    fn push(&mut self, fd: OwnedFd) -> io::Result<()> {
        self.levels.push(OpenFolder { id: id(&fd)?, fd: Some(fd) });
        // The first two have nothing below that leads back to them: the target may be `.`.
        if let Some(outer) = self.levels.len().checked_sub(FDS_HELD + 1).filter(|outer| *outer > 1)
        {
            self.levels[outer].fd = None;
        }
        Ok(())
    }

    /// As [`Self::enter`], of a folder that is not to be changed.
    pub fn look_into(&mut self, name: &OsStr) -> io::Result<()> {
        let fd = rustix::fs::openat(self.folder()?, name, FOLDER, Mode::empty())?;
        self.push(fd)
    }

    /// Goes back to the folder around the one that was entered last.
    pub fn go_back(&mut self) -> io::Result<()> {
        self.pop().map(drop)
    }

    /// Goes back, and returns the folder that was entered last.
    fn pop(&mut self) -> io::Result<OwnedFd> {
        let fd = self
            .levels
            .pop()
            .and_then(|level| level.fd)
            .ok_or_else(|| io::Error::other("no folder is open"))?;
        if let Some(around) = self.levels.last_mut()
            && around.fd.is_none()
        {
            let up = rustix::fs::openat(&fd, "..", FOLDER, Mode::empty())?;
            if id(&up)? != around.id {
                return Err(io::Error::other(
                    "the folder was moved away while it was being restored",
                ));
            }
            around.fd = Some(up);
        }
        Ok(fd)
    }

    /// Returns whether a regular file has this size, mode and modification time.
    pub fn is_file(&self, name: &OsStr, size: u64, like: &Attributes) -> io::Result<bool> {
        let found = rustix::fs::statat(self.folder()?, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mtime = Timestamp::from_parts(found.st_mtime, found.st_mtime_nsec as u32);
        Ok(FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
            && u64::try_from(found.st_size) == Ok(size)
            && found.st_mode & 0o7777 == like.mode & 0o7777
            && mtime == like.mtime)
    }

    /// Returns whether it is a symbolic link to this target.
    pub fn is_link(&self, name: &OsStr, target: &OsStr) -> io::Result<bool> {
        match rustix::fs::readlinkat(self.folder()?, name, Vec::new()) {
            Ok(found) => Ok(found.as_bytes() == target.as_bytes()),
            Err(Errno::INVAL) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives an object a name that leads to nothing.
    ///
    /// # Errors
    /// `AlreadyExists`, at whichever moment the name was taken.
    pub fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let folder = self.folder()?;
        match rustix::fs::renameat_with(folder, from, folder, to, RenameFlags::NOREPLACE) {
            Err(error) if is_unsupported(error) => {}
            renamed => return Ok(renamed?),
        }
        match rustix::fs::linkat(folder, from, folder, to, AtFlags::empty()) {
            Err(Errno::PERM | Errno::NOTSUP | Errno::NOSYS) => {}
            linked => {
                return Ok(
                    linked.and_then(|()| rustix::fs::unlinkat(folder, from, AtFlags::empty()))?
                );
            }
        }
        // A file system that can do neither has nothing better.
        if self.kind(to)?.is_some() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.rename(from, to)
    }

    /// Gives a finished object a name, and what has the name the first free name of a numbered
    /// backup: whatever that is by then. Where the file system can exchange names, the name leads
    /// to something throughout.
    pub fn replace_keeping(&self, made: &OsStr, name: &OsStr) -> io::Result<()> {
        let discard = |error| {
            let _ = self.remove(made);
            Err(error)
        };
        let folder = self.folder()?;
        for _ in 0..KEEPS_MAX {
            match self.rename_new(made, name) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return discard(error),
                Ok(()) => return Ok(()),
            }
            let exchange =
                || rustix::fs::renameat_with(folder, made, folder, name, RenameFlags::EXCHANGE);
            match exchange() {
                // `made` leads to what was there, which must not be discarded.
                Ok(()) => {
                    let moved = self.move_beside(made, name);
                    let left = |error| {
                        let made = made.display();
                        io::Error::other(format!("{error}; what was replaced is {made} beside it"))
                    };
                    return moved.map(drop).map_err(left);
                }
                Err(Errno::NOENT) => {}
                Err(error) if is_unsupported(error) => {
                    let backup = match self.move_beside(name, name) {
                        Err(error) if error.kind() == ErrorKind::NotFound => continue,
                        Err(error) => return discard(error),
                        Ok(backup) => backup,
                    };
                    match self.rename_new(made, name) {
                        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                        Err(error) => {
                            let _ = self.rename_new(&backup, name);
                            return discard(error);
                        }
                        Ok(()) => return Ok(()),
                    }
                }
                Err(error) => return discard(error.into()),
            }
        }
        discard(io::Error::other("its name changes faster than it can be replaced"))
    }

    /// Gives an object the first free name of a numbered backup of `name`, and returns that.
    fn move_beside(&self, object: &OsStr, name: &OsStr) -> io::Result<OsString> {
        for n in 1..=BACKUPS_MAX {
            let mut backup = name.to_owned();
            backup.push(format!(".~{n}"));
            match self.rename_new(object, &backup) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                moved => return moved.map(|()| backup),
            }
        }
        Err(io::Error::other("it has too many backups: remove some"))
    }

    /// Gives the folder that was entered last its attributes, and goes back to the one around it.
    ///
    /// # Errors
    /// The parent folder cannot be reached.
    pub fn leave(&mut self, attributes: &Attributes, safety: Safety) -> io::Result<Made> {
        let fd = self.pop()?;
        let mut made = attributes.set_open(&fd);
        if safety == Safety::Now && made.attributes.is_ok() {
            made.attributes = rustix::fs::fsync(&fd).map_err(io::Error::from);
        }
        Ok(made)
    }

    pub fn make_file(&self, name: &OsStr) -> io::Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(self.folder()?, name, flags, Mode::RUSR | Mode::WUSR)?))
    }

    pub fn finish_file(file: &File, attributes: &Attributes, safety: Safety) -> io::Result<Made> {
        let made = attributes.set_open(file);
        if safety == Safety::Now {
            file.sync_all()?;
        }
        Ok(made)
    }

    pub fn make_link(&self, name: &OsStr, to: &OsStr, attributes: &Attributes) -> io::Result<Made> {
        rustix::fs::symlinkat(to, self.folder()?, name)?;
        self.finish_node(name, FileType::Symlink, attributes)
    }

    pub fn make_node(
        &self,
        name: &OsStr,
        kind: FileType,
        device: Dev,
        attributes: &Attributes,
    ) -> io::Result<Made> {
        rustix::fs::mknodat(self.folder()?, name, kind, Mode::empty(), device)?;
        self.finish_node(name, kind, attributes)
    }

    /// Opening a pipe or a device would do something: it is held by its path alone.
    fn finish_node(
        &self,
        name: &OsStr,
        kind: FileType,
        attributes: &Attributes,
    ) -> io::Result<Made> {
        let folder = self.folder()?;
        let held = rustix::fs::openat(
            folder,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let found = rustix::fs::fstat(&held)?;
        if FileType::from_raw_mode(found.st_mode) != kind || found.st_nlink != 1 {
            return Err(io::Error::other("it was replaced by another process meanwhile"));
        }
        let chmod = |mode| if kind == FileType::Symlink { Ok(()) } else { chmod_held(&held, mode) };
        Ok(attributes.set(
            |uid, gid| rustix::fs::chownat(&held, "", uid, gid, AtFlags::EMPTY_PATH),
            |mode, times| {
                chmod(mode).and(rustix::fs::utimensat(
                    folder,
                    name,
                    times,
                    AtFlags::SYMLINK_NOFOLLOW,
                ))
            },
        ))
    }

    /// Links a further name to an object. `first`: the names that lead to it from the folder around
    /// the target.
    pub fn link<'a>(&self, first: impl Iterator<Item = &'a OsStr>, name: &OsStr) -> io::Result<()> {
        let mut first = first.peekable();
        let mut around: Option<OwnedFd> = None;
        let top =
            self.levels.first().and_then(|level| level.fd.as_ref()).ok_or(ErrorKind::NotFound)?;
        while let Some(at) = first.next() {
            let from = around.as_ref().unwrap_or(top);
            if first.peek().is_none() {
                rustix::fs::linkat(from, at, self.folder()?, name, AtFlags::empty())?;
            } else {
                around = Some(rustix::fs::openat(from, at, WAY | OFlags::NOFOLLOW, Mode::empty())?);
            }
        }
        Ok(())
    }

    /// In one folder.
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let folder = self.folder()?;
        Ok(rustix::fs::renameat(folder, from, folder, to)?)
    }

    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(self.folder()?, name, AtFlags::empty())?)
    }
}

/// The file system does not know the kind of rename.
fn is_unsupported(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::NOSYS | Errno::NOTSUP)
}

/// A new name beside another one.
pub fn beside(name: &OsStr) -> OsString {
    let mut long = name.to_owned();
    long.push(format!(".restore-{:08x}", rand::random::<u32>()));
    if long.len() > 255 { format!(".restore-{:016x}", rand::random::<u64>()).into() } else { long }
}

#[cfg(test)]
mod tests;
