//! The folders that are mounted on.

use super::limited;
use super::{MountError, MountPoint};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The disk under kubelet's folder may be slow; it is not expected to be dead.
const DISK_SECS: u64 = 10;

/// Makes the folder of a target, and those above it. Look first whether it is a mount point: one must not be looked into.
///
/// # Errors
/// [`MountError::NotDirectory`] when something else has the name.
pub async fn create(path: &Path) -> Result<(), MountError> {
    let target = path.to_owned();
    disk(path, "making the folder", move || match std::fs::create_dir_all(&target) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists || error.kind() == ErrorKind::NotADirectory => {
            Err(MountError::NotDirectory { path: target })
        }
        made => made.map_err(|error| kernel_error(&target, "making the folder", &error)),
    })
    .await
}

/// Removes an empty folder. Absent counts as removed. Only when it is no mount point any more.
pub async fn remove(path: &Path) -> Result<(), MountError> {
    let target = path.to_owned();
    disk(path, "removing the folder", move || match std::fs::remove_dir(&target) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotADirectory => Err(MountError::NotDirectory { path: target }),
        gone => gone.map_err(|error| kernel_error(&target, "removing the folder", &error)),
    })
    .await
}

/// A target must be a folder, and nothing may be mounted there.
pub(super) async fn must_be_free(path: &Path, mounts: &[MountPoint]) -> Result<(), MountError> {
    if let Some(mount) = mounts.iter().find(|mount| mount.target == path) {
        return Err(MountError::Busy { path: path.to_owned(), device: mount.device.clone() });
    }
    let target = path.to_owned();
    disk(path, "looking at the target", move || match std::fs::symlink_metadata(&target) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(MountError::NotDirectory { path: target }),
        Err(error) => Err(kernel_error(&target, "looking at the target", &error)),
    })
    .await
}

async fn disk(
    path: &Path,
    doing: &'static str,
    work: impl FnOnce() -> Result<(), MountError> + Send + 'static,
) -> Result<(), MountError> {
    let done = limited::run(Duration::from_secs(DISK_SECS), work, drop).await;
    done.unwrap_or_else(|limited::Late| Err(MountError::Timeout { path: PathBuf::from(path), doing, secs: DISK_SECS }))
}

pub(super) fn kernel_error(path: &Path, doing: &'static str, error: &std::io::Error) -> MountError {
    MountError::Kernel { path: path.to_owned(), doing, why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn folders_are_made_once_and_files_are_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        create(&dir).await.unwrap();
        create(&dir).await.unwrap();
        must_be_free(&dir, &[]).await.unwrap();
        remove(&dir).await.unwrap();
        remove(&dir).await.unwrap();
        let file = root.path().join("file");
        std::fs::write(&file, "x").unwrap();
        for path in [&file, &file.join("below")] {
            assert!(matches!(create(path).await, Err(MountError::NotDirectory { .. })), "{path:?}");
        }
        assert!(matches!(must_be_free(&file, &[]).await, Err(MountError::NotDirectory { .. })));
        assert!(matches!(remove(&file).await, Err(MountError::NotDirectory { .. })));
        assert!(file.exists());
    }

    #[tokio::test]
    async fn a_mount_point_is_named_without_looking_into_it() {
        let mount = MountPoint { target: "/no/such/place".into(), device: "dev".into(), kind: "nfs".into(), read_only: false };
        let refused = must_be_free(Path::new("/no/such/place"), &[mount]).await;
        assert!(matches!(refused, Err(MountError::Busy { device, .. }) if device == "dev"));
    }
}
