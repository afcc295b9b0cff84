//! Folders of this machine, as a restore writes to them: everything is reached name by name from the folder around the target, and no link is
//! followed on the way, whoever else may write there meanwhile. What is made is open to nobody else until its own mode is set.
//!
//! Paths are relative to that folder, and hold neither `..` nor `.`; the empty one is the folder itself.

use crate::types::Timestamp;
use rustix::fs::{AtFlags, CWD, Dev, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A folder that things are looked up in, whether it can be listed or not.
const WAY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// What is found is what has the name, not what it leads to.
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

pub struct Local {
    top: Arc<OwnedFd>,
    /// The folder that was looked into last.
    last: (PathBuf, Arc<OwnedFd>),
}

/// What an object shall have.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub atime: Timestamp,
    pub mtime: Timestamp,
}

/// Whether an owner could be set: that needs root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Kept,
    Mine,
}

/// Whether what is made has to survive a crash before it takes the place of something good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Safety {
    Now,
    Later,
}

impl Attributes {
    fn times(&self) -> Timestamps {
        let spec = |at: Timestamp| Timespec { tv_sec: at.secs(), tv_nsec: i64::from(at.subsec_nanos()) };
        Timestamps { last_access: spec(self.atime), last_modification: spec(self.mtime) }
    }

    /// A set-id bit never goes to someone who is not its owner.
    fn mode(&self, owner: Owner) -> Mode {
        Mode::from_raw_mode(self.mode & if owner == Owner::Kept { 0o7777 } else { 0o1777 })
    }

    fn ids(&self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }

    /// To what is open. The mode comes last but for the times: a change of the owner takes bits away.
    fn set(&self, fd: impl AsFd) -> io::Result<Owner> {
        let (uid, gid) = self.ids();
        let owner = owned(rustix::fs::fchown(&fd, uid, gid))?;
        rustix::fs::fchmod(&fd, self.mode(owner))?;
        rustix::fs::futimens(&fd, &self.times())?;
        Ok(owner)
    }
}

fn owned(done: rustix::io::Result<()>) -> io::Result<Owner> {
    match done.map_err(io::Error::from) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(Owner::Mine),
        done => done.map(|()| Owner::Kept),
    }
}

impl Local {
    /// The folder around a target, and the target in it. The user's own words are followed wherever they lead.
    pub fn around(target: &Path) -> io::Result<(Self, PathBuf)> {
        let (folder, name) = match (target.parent(), target.file_name()) {
            (Some(folder), Some(name)) if folder.as_os_str().is_empty() => (Path::new("."), PathBuf::from(name)),
            (Some(folder), Some(name)) => (folder, PathBuf::from(name)),
            _ => (target, PathBuf::new()),
        };
        let top = Arc::new(rustix::fs::openat(CWD, folder, WAY, Mode::empty())?);
        Ok((Self { last: (PathBuf::new(), top.clone()), top }, name))
    }

    fn folder(&mut self, path: &Path) -> io::Result<Arc<OwnedFd>> {
        let (mut at, rest) = match path.strip_prefix(&self.last.0) {
            Ok(rest) => (self.last.1.clone(), rest),
            Err(_) => (self.top.clone(), path),
        };
        for name in rest {
            at = Arc::new(rustix::fs::openat(&at, name, WAY | OFlags::NOFOLLOW, Mode::empty())?);
        }
        self.last = (path.to_owned(), at.clone());
        Ok(at)
    }

    /// The folder that an object is in, and its name there.
    fn at<'a>(&mut self, path: &'a Path) -> io::Result<(Arc<OwnedFd>, &'a OsStr)> {
        match (path.parent(), path.file_name()) {
            (Some(folder), Some(name)) => Ok((self.folder(folder)?, name)),
            _ => Ok((self.top.clone(), OsStr::new("."))),
        }
    }

    /// What is there.
    pub fn kind(&mut self, path: &Path) -> io::Result<Option<FileType>> {
        let (folder, name) = self.at(path)?;
        match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => Ok(None),
            found => Ok(Some(FileType::from_raw_mode(found?.st_mode))),
        }
    }

    pub fn make_folder(&mut self, path: &Path) -> io::Result<()> {
        let (folder, name) = self.at(path)?;
        Ok(rustix::fs::mkdirat(&folder, name, Mode::RWXU)?)
    }

    /// When all that is in it is there.
    pub fn finish_folder(&mut self, path: &Path, attributes: &Attributes, safety: Safety) -> io::Result<Owner> {
        let (folder, name) = self.at(path)?;
        let fd = rustix::fs::openat(&folder, name, FOLDER, Mode::empty())?;
        let owner = attributes.set(&fd)?;
        if safety == Safety::Now {
            rustix::fs::fsync(&fd)?;
        }
        Ok(owner)
    }

    pub fn make_file(&mut self, path: &Path) -> io::Result<File> {
        let (folder, name) = self.at(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&folder, name, flags, Mode::RUSR | Mode::WUSR)?))
    }

    pub fn finish_file(file: &File, attributes: &Attributes, safety: Safety) -> io::Result<Owner> {
        let owner = attributes.set(file)?;
        if safety == Safety::Now {
            file.sync_all()?;
        }
        Ok(owner)
    }

    pub fn make_link(&mut self, path: &Path, to: &OsStr, attributes: &Attributes) -> io::Result<Owner> {
        let (folder, name) = self.at(path)?;
        rustix::fs::symlinkat(to, &folder, name)?;
        self.finish_node(path, FileType::Symlink, attributes)
    }

    pub fn make_node(&mut self, path: &Path, kind: FileType, device: Dev, attributes: &Attributes) -> io::Result<Owner> {
        let (folder, name) = self.at(path)?;
        rustix::fs::mknodat(&folder, name, kind, Mode::empty(), device)?;
        self.finish_node(path, kind, attributes)
    }

    /// Opening a pipe or a device would do something: it is held by its path alone.
    fn finish_node(&mut self, path: &Path, kind: FileType, attributes: &Attributes) -> io::Result<Owner> {
        let (folder, name) = self.at(path)?;
        let held = rustix::fs::openat(&folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let found = rustix::fs::fstat(&held)?;
        if FileType::from_raw_mode(found.st_mode) != kind || found.st_nlink != 1 {
            return Err(io::Error::other("somebody else put something in its place"));
        }
        let (uid, gid) = attributes.ids();
        let owner = owned(rustix::fs::chownat(&held, "", uid, gid, AtFlags::EMPTY_PATH))?;
        if kind != FileType::Symlink {
            let held = format!("/proc/self/fd/{}", held.as_raw_fd());
            rustix::fs::chmodat(CWD, held.as_str(), attributes.mode(owner), AtFlags::empty())?;
        }
        rustix::fs::utimensat(&folder, name, &attributes.times(), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(owner)
    }

    /// Another name of a file.
    pub fn link(&mut self, first: &Path, path: &Path) -> io::Result<()> {
        let (from, first) = self.at(first)?;
        let (to, name) = self.at(path)?;
        Ok(rustix::fs::linkat(&from, first, &to, name, AtFlags::empty())?)
    }

    /// In one folder.
    pub fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let ((from_folder, from), (to_folder, to)) = (self.at(from)?, self.at(to)?);
        Ok(rustix::fs::renameat(&from_folder, from, &to_folder, to)?)
    }

    pub fn remove(&mut self, path: &Path) -> io::Result<()> {
        let (folder, name) = self.at(path)?;
        Ok(rustix::fs::unlinkat(&folder, name, AtFlags::empty())?)
    }
}

/// A name beside another one, which nobody has yet.
pub fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    let mut long = OsString::from(name);
    long.push(format!(".restore-{:08x}", rand::random::<u32>()));
    if long.len() > 255 {
        path.with_file_name(format!(".restore-{:016x}", rand::random::<u64>()))
    } else {
        path.with_file_name(long)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};

    const PLAIN: Attributes =
        Attributes { mode: 0o666, uid: 0, gid: 0, atime: Timestamp::from_nanos(0), mtime: Timestamp::from_nanos(0) };

    fn mine() -> Attributes {
        Attributes { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw(), ..PLAIN }
    }

    /// A target with a folder in it, and a folder that is none of the restore's business.
    fn room() -> (tempfile::TempDir, Local, PathBuf) {
        let room = tempfile::tempdir().unwrap();
        std::fs::create_dir(room.path().join("outside")).unwrap();
        std::fs::write(room.path().join("outside/theirs"), "theirs").unwrap();
        let (mut local, target) = Local::around(&room.path().join("to")).unwrap();
        local.make_folder(&target).unwrap();
        local.make_folder(&target.join("sub")).unwrap();
        // One that has looked into nothing yet.
        let (local, _) = Local::around(&room.path().join("to")).unwrap();
        (room, local, target)
    }

    fn swap(room: &Path, folder: &str) {
        std::fs::rename(room.join(folder), room.join("away")).unwrap();
        symlink(room.join("outside"), room.join(folder)).unwrap();
    }

    #[test]
    fn a_folder_that_became_a_link_leads_nowhere() {
        for (folder, inside) in [("to/sub", "sub/new"), ("to", "new"), ("to", "sub/new")] {
            for used in [false, true] {
                let (room, mut local, target) = room();
                let (new, theirs) = (target.join(inside), target.join(inside).with_file_name("theirs"));
                if used {
                    local.make_file(&target.join(inside).with_file_name("before")).unwrap();
                }
                swap(room.path(), folder);
                // What was open before is the folder that was meant, wherever it is by now.
                assert_eq!(local.make_file(&new).is_ok(), used, "{folder} {inside}");
                let _ = local.make_folder(&new.with_file_name("folder"));
                let _ = local.make_link(&new.with_file_name("link"), OsStr::new("x"), &mine());
                let _ = local.link(&new, &new.with_file_name("second"));
                let _ = local.rename(&new, &theirs);
                let _ = local.remove(&theirs);
                let left: Vec<_> =
                    std::fs::read_dir(room.path().join("outside")).unwrap().map(|e| e.unwrap().file_name()).collect();
                assert_eq!(left, ["theirs"]);
                assert_eq!(std::fs::read(room.path().join("outside/theirs")).unwrap(), b"theirs");
                assert!(local.finish_folder(Path::new(folder), &mine(), Safety::Now).is_err());
            }
        }
    }

    #[test]
    fn attributes_go_to_what_was_made_alone() {
        let (room, mut local, target) = room();
        let theirs = room.path().join("outside/theirs");
        std::fs::set_permissions(&theirs, std::fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&theirs, room.path().join("to/link")).unwrap();
        std::fs::hard_link(&theirs, room.path().join("to/hard")).unwrap();
        for name in ["link", "hard"] {
            for kind in [FileType::Fifo, FileType::RegularFile] {
                assert!(local.finish_node(&target.join(name), kind, &mine()).is_err(), "{name}");
            }
        }
        assert_eq!(std::fs::metadata(&theirs).unwrap().permissions().mode() & 0o777, 0o600);
        local.make_node(&target.join("fifo"), FileType::Fifo, 0, &mine()).unwrap();
        assert_eq!(std::fs::metadata(room.path().join("to/fifo")).unwrap().permissions().mode() & 0o777, 0o666);
        // A name that is taken is not used, a link in its place neither.
        for name in ["link", "hard", "fifo", "sub"] {
            assert_eq!(local.make_file(&target.join(name)).unwrap_err().kind(), ErrorKind::AlreadyExists, "{name}");
        }
    }

    #[test]
    fn what_is_made_is_closed_until_it_is_finished() {
        let (room, mut local, target) = room();
        let mode = |name: &str| std::fs::metadata(room.path().join(name)).unwrap().permissions().mode() & 0o777;
        let mut file = local.make_file(&target.join("sub/file")).unwrap();
        file.write_all(b"content").unwrap();
        assert_eq!((mode("to"), mode("to/sub"), mode("to/sub/file")), (0o700, 0o700, 0o600));
        assert_eq!(Local::finish_file(&file, &mine(), Safety::Now).unwrap(), Owner::Kept);
        let open = Attributes { mode: 0o755, ..mine() };
        assert_eq!(local.finish_folder(&target.join("sub"), &open, Safety::Now).unwrap(), Owner::Kept);
        assert_eq!((mode("to"), mode("to/sub"), mode("to/sub/file")), (0o700, 0o755, 0o666));
        assert_eq!(local.kind(&target.join("none")).unwrap(), None);
        assert_eq!(local.kind(&target).unwrap(), Some(FileType::Directory));
    }
}
