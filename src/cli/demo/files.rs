//! A mounted volume as the demo sees it: through the kernel, or through the user-space NFS client.

use super::attributes::{NewAttributes, Stat};
use super::kernel::KernelFiles;
use super::user::UserFiles;
use bytes::Bytes;

/// A mounted volume.
pub enum MountedFiles {
    Kernel(KernelFiles),
    User(Box<UserFiles>),
}

macro_rules! both {
    ($self:ident, $files:ident => $call:expr) => {
        match $self {
            Self::Kernel($files) => $call.await,
            Self::User($files) => $call.await,
        }
    };
}

impl MountedFiles {
    pub async fn mkdir(&self, path: &str) -> anyhow::Result<()> {
        both!(self, files => files.mkdir(path))
    }
    pub async fn create(&self, path: &str) -> anyhow::Result<()> {
        both!(self, files => files.create(path))
    }
    pub async fn write(&self, path: &str, at: u64, data: Bytes) -> anyhow::Result<()> {
        both!(self, files => files.write(path, at, data))
    }
    /// Flushes everything written to the file to the store.
    pub async fn fsync(&self, path: &str) -> anyhow::Result<()> {
        both!(self, files => files.fsync(path))
    }
    pub async fn truncate(&self, path: &str, size: u64) -> anyhow::Result<()> {
        both!(self, files => files.truncate(path, size))
    }
    pub async fn symlink(&self, path: &str, target: &str) -> anyhow::Result<()> {
        both!(self, files => files.symlink(path, target))
    }
    pub async fn link(&self, path: &str, of: &str) -> anyhow::Result<()> {
        both!(self, files => files.link(path, of))
    }
    pub async fn remove(&self, path: &str) -> anyhow::Result<()> {
        both!(self, files => files.remove(path))
    }
    pub async fn rename(&self, from: &str, to: &str) -> anyhow::Result<()> {
        both!(self, files => files.rename(from, to))
    }
    pub async fn set(&self, path: &str, attributes: NewAttributes) -> anyhow::Result<()> {
        both!(self, files => files.set(path, attributes))
    }
    pub async fn chmod(&self, path: &str, mode: u32) -> anyhow::Result<()> {
        both!(self, files => files.chmod(path, mode))
    }
    pub async fn stat(&self, path: &str) -> anyhow::Result<Stat> {
        both!(self, files => files.stat(path))
    }
    pub async fn list(&self, path: &str) -> anyhow::Result<Vec<String>> {
        both!(self, files => files.list(path))
    }
    pub async fn readlink(&self, path: &str) -> anyhow::Result<String> {
        both!(self, files => files.readlink(path))
    }
    pub async fn read(&self, path: &str, at: u64, len: usize) -> anyhow::Result<Vec<u8>> {
        both!(self, files => files.read(path, at, len))
    }
}
