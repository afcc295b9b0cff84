//! The folder of a process on its machine: journals, records of staged volumes, the node's name.

use anyhow::Context;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// A state folder, locked by any process or none.
#[derive(Clone, Debug)]
pub struct StateFolder {
    path: PathBuf,
}

/// A state folder, locked for this process until it is dropped (R16: a journal has one writer).
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateFolder {
    /// Makes the folder if it is not there.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path)
            .with_context(|| format!("state folder {}", path.display()))?;
        Ok(Self { path: path.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `None`: another process has it locked.
    pub fn try_lock(&self) -> anyhow::Result<Option<StateDir>> {
        let at = || format!("state folder {}", self.path.display());
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.path.join("lock"))
            .with_context(at)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(StateDir { path: self.path.clone(), _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).with_context(at),
        }
    }
}

impl StateDir {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn journals(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// The name under which this folder's journals are owned: made once per folder, and the same
    /// after a restart.
    pub fn node_name(&self) -> anyhow::Result<String> {
        let path = self.path.join("node-name");
        match std::fs::read_to_string(&path) {
            Ok(name) if !name.trim().is_empty() => return Ok(name.trim().to_owned()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let name = format!("{host}-{:08x}", rand::random::<u32>());
        let new = path.with_extension("new");
        std::fs::write(&new, &name).with_context(|| new.display().to_string())?;
        File::open(&new)
            .and_then(|file| file.sync_all())
            .with_context(|| new.display().to_string())?;
        std::fs::rename(&new, &path).with_context(|| path.display().to_string())?;
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_stays_and_the_folder_has_one_user() {
        let dir = tempfile::tempdir().unwrap();
        let folder = StateFolder::open(dir.path()).unwrap();
        let state = folder.try_lock().unwrap().unwrap();
        let name = state.node_name().unwrap();
        assert_eq!(state.node_name().unwrap(), name);
        assert!(folder.try_lock().unwrap().is_none());
        drop(state);
        assert_eq!(folder.try_lock().unwrap().unwrap().node_name().unwrap(), name);
    }
}
