//! Mounts of the demo: the kernel's where it has an NFS client, else the user-space client's.

use super::files::MountedFiles;
use super::user::UserFiles;
use crate::mount::{FakeMounter, MountError};
use crate::nfs::client::{Client, Credentials, FileHandle};
use anyhow::Context;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Connections by staging folder, in place of the kernel's client.
#[derive(Clone, Default)]
pub struct UserMounts {
    table: Arc<Mutex<HashMap<PathBuf, (Client, FileHandle)>>>,
}

impl UserMounts {
    pub fn mounter(&self) -> FakeMounter {
        let table = self.table.clone();
        FakeMounter::with(move |mount, target| {
            let table = table.clone();
            Box::pin(async move {
                let failed = |why: String| MountError::Kernel {
                    path: target.clone(),
                    doing: "mounting in user space",
                    why,
                };
                let client = Client::connect(mount.endpoint, &Credentials::root())
                    .await
                    .map_err(|e| failed(e.to_string()))?;
                let root = client.mount(&mount.export).await.map_err(|e| failed(e.to_string()))?;
                table.lock().insert(target, (client, root));
                Ok(())
            })
        })
    }

    pub fn files(&self, staging: &Path) -> anyhow::Result<MountedFiles> {
        let (client, root) =
            self.table.lock().get(staging).cloned().context("the volume was not mounted")?;
        Ok(MountedFiles::User(Box::new(UserFiles::new(client, root))))
    }
}

pub fn kernel_has_nfs() -> bool {
    let has = || {
        std::fs::read_to_string("/proc/filesystems")
            .is_ok_and(|text| text.lines().any(|line| line.ends_with("\tnfs")))
    };
    if !rustix::process::geteuid().is_root() {
        return false;
    }
    if !has() {
        // Without the module or modprobe the user-space client is used.
        let _ = std::process::Command::new("modprobe")
            .args(["-a", "nfs", "nfsv3"])
            .stderr(std::process::Stdio::null())
            .status();
    }
    has()
}
