//! The trait for mount(2) and umount2(2).

use crate::types::{Class, Classify};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, thiserror::Error)]
pub enum MountError {
    #[error("{path}: already a mount point of {device}")]
    Busy { path: PathBuf, device: String },
    #[error("{path}: not a directory: move it away, then retry")]
    NotDirectory { path: PathBuf },
    #[error(
        "{path}: holds files that do not belong to the volume: move them away, so that the pod can \
         terminate"
    )]
    NotEmpty { path: PathBuf },
    #[error("mount option {option:?} is not allowed: use only {allowed}")]
    Option { option: String, allowed: &'static str },
    #[error("{path}: {doing}: {why}")]
    Kernel { path: PathBuf, doing: &'static str, why: String },
    #[error("{path}: {doing} did not finish within {secs} s")]
    Timeout { path: PathBuf, doing: &'static str, secs: u64 },
}

impl MountError {
    /// Adds what the kernel's reason means here.
    pub(super) fn because(mut self, meaning: Option<impl std::fmt::Display>) -> Self {
        if let (Self::Kernel { why, .. }, Some(meaning)) = (&mut self, meaning) {
            *why = format!("{why}: {meaning}");
        }
        self
    }
}

impl Classify for MountError {
    fn class(&self) -> Class {
        match self {
            Self::Option { .. } => Class::Invalid,
            Self::Busy { .. } | Self::NotDirectory { .. } | Self::NotEmpty { .. } => {
                Class::Precondition
            }
            Self::Kernel { .. } => Class::Internal,
            Self::Timeout { .. } => Class::Unavailable,
        }
    }
}

/// An NFSv3 mount of one volume from its own loopback endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NfsMount {
    /// Shown as the device in mountinfo, and recognised there after a restart.
    pub device: String,
    pub endpoint: SocketAddr,
    pub export: String,
    pub read_only: bool,
    /// Mount options asked for beyond the driver's own; checked against the list of those allowed.
    pub options: Vec<String>,
}

/// A bind mount of an existing mount at a second target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindMount {
    /// An existing mount of the volume.
    pub source: PathBuf,
    pub read_only: bool,
    /// All options asked for. Linux keeps `noexec`, `noatime` and the like for each mount point, so
    /// that each bind mount gets them again; those of the file system itself are the source's.
    pub options: Vec<String>,
}

/// A line of /proc/self/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    pub target: PathBuf,
    pub device: String,
    pub kind: String,
    pub read_only: bool,
    /// The options of this mount point as the kernel shows them, `ro` and `rw` left out.
    pub flags: Vec<String>,
}

/// The kernel operations that the node needs. None touches the file system under a mount point
/// of ours.
pub trait Mounter: Clone + Send + Sync + 'static {
    fn mount_nfs(
        &self,
        what: &NfsMount,
        target: &Path,
    ) -> impl Future<Output = Result<(), MountError>> + Send;
    fn bind(
        &self,
        what: &BindMount,
        target: &Path,
    ) -> impl Future<Output = Result<(), MountError>> + Send;
    /// An absent mount counts as unmounted. Never blocks longer than its limits: umount2, then
    /// MNT_FORCE, then MNT_DETACH.
    fn unmount(&self, target: &Path) -> impl Future<Output = Result<(), MountError>> + Send;
    fn list(&self) -> impl Future<Output = Result<Vec<MountPoint>, MountError>> + Send;
    /// Writes the mount's dirty pages to the server (syncfs), within a time limit.
    fn sync(&self, target: &Path) -> impl Future<Output = Result<(), MountError>> + Send;
}
