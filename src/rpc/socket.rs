//! Unix sockets that survive a crash of their process.

use rustix::fs::{Mode, OFlags};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use tokio::net::UnixListener;

/// The treatment of another process that listens under the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Living {
    /// The process was started twice by mistake.
    Refuse,
    /// The other process is being replaced: it keeps its connections, new ones come here.
    Replace,
}

/// A bound name. Dropped, it goes away if it is still this one, and the socket was not handed over.
#[derive(Debug)]
pub struct Name {
    path: PathBuf,
    inode: (u64, u64),
    given: AtomicBool,
}

impl Name {
    /// The name of a socket that somebody else bound, and gave away.
    pub fn of(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), inode: inode(path)?, given: AtomicBool::new(false) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on it is another's.
    pub fn give(&self) {
        self.given.store(true, Ordering::Relaxed);
    }
}

/// Binds under another name and renames, so that there is always a socket that answers, or none.
pub fn bind(path: &Path, living: Living) -> Result<(UnixListener, Name)> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            let why = format!(
                "{}: exists and is not a socket: remove it, or give another endpoint",
                path.display()
            );
            return Err(Error::new(ErrorKind::AlreadyExists, why));
        }
        Ok(_) if living == Living::Refuse && StdStream::connect(path).is_ok() => {
            let why = format!("{}: another process is listening: stop it first", path.display());
            return Err(Error::new(ErrorKind::AddrInUse, why));
        }
        _ => {}
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let draft = draft_name(path);
    remove_if_there(&draft)?;
    let listener = UnixListener::bind(&draft)?;
    std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o600))?;
    let inode = inode(&draft)?;
    std::fs::rename(&draft, path).inspect_err(|_| drop(remove_if_there(&draft)))?;
    Ok((listener, Name { path: path.to_owned(), inode, given: AtomicBool::new(false) }))
}

/// Hidden, so that kubelet's watcher does not take it for a plugin; short, since a socket's path
/// has at most 107 bytes; one for each call.
fn draft_name(path: &Path) -> PathBuf {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    path.with_file_name(format!(
        ".{:x}-{:x}",
        std::process::id(),
        CALLS.fetch_add(1, Ordering::Relaxed)
    ))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn inode(path: &Path) -> Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

impl Drop for Name {
    fn drop(&mut self) {
        if !self.given.load(Ordering::Relaxed)
            && inode(&self.path).is_ok_and(|now| now == self.inode)
            && let Err(error) = remove_if_there(&self.path)
        {
            tracing::warn!(
                socket = %self.path.display(),
                %error,
                "cannot remove the socket; the next start replaces it"
            );
        }
    }
}

/// Checks that sockets can be made in a folder, for a clear error at start.
pub fn check_dir(dir: &Path) -> Result<()> {
    rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("below/csi.sock");
        let (first, name) = bind(&path, Living::Refuse).unwrap();
        assert_eq!(bind(&path, Living::Refuse).unwrap_err().kind(), ErrorKind::AddrInUse);
        std::mem::forget(name);
        drop(first);
        assert!(path.exists(), "as after a crash");
        let (_second, name) = bind(&path, Living::Refuse).unwrap();
        drop(name);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn the_one_replaced_leaves_its_successors_name_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reg.sock");
        let (_old, old_name) = bind(&path, Living::Replace).unwrap();
        let (_new, new_name) = bind(&path, Living::Replace).unwrap();
        drop(old_name);
        assert!(StdStream::connect(&path).is_ok(), "the new one answers");
        drop(new_name);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_of_that_name_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "x").unwrap();
        assert_eq!(bind(&path, Living::Replace).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    }
}
