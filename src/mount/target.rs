//! Target folders.

use super::limited;
use super::{MountError, MountPoint};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The disk under kubelet's folder may be slow; it is not expected to be dead.
const DISK_SECS: u64 = 10;

/// Makes the folder of a target, and its parents. Check first that it is not a mount point, which
/// must not be accessed.
///
/// # Errors
/// [`MountError::NotDirectory`] when something else has the name.
pub async fn create(path: &Path) -> Result<(), MountError> {
    let target = path.to_owned();
    disk(path, "creating the folder", move || match std::fs::create_dir_all(&target) {
        Err(error)
            if error.kind() == ErrorKind::AlreadyExists
                || error.kind() == ErrorKind::NotADirectory =>
        {
            Err(MountError::NotDirectory { path: target })
        }
        made => made.map_err(|error| kernel_error(&target, "creating the folder", &error)),
    })
    .await
}

/// The path as mountinfo writes it: without symbolic links above the target, which is itself not
/// accessed, because it may be a mount of a dead server. A path that cannot be resolved is returned
/// unchanged: the call that uses it reports the error.
///
/// # Errors
/// Only [`MountError::Timeout`].
pub async fn resolve(path: &Path) -> Result<PathBuf, MountError> {
    let target = path.to_owned();
    disk(path, "resolving symbolic links", move || {
        let above = target
            .ancestors()
            .skip(1)
            .find_map(|above| Some((above, std::fs::canonicalize(above).ok()?)));
        Ok(
            match above.and_then(|(above, real)| Some(real.join(target.strip_prefix(above).ok()?)))
            {
                Some(real) => real,
                None => target,
            },
        )
    })
    .await
}

/// Removes an empty folder. Absent counts as removed. Only for a folder that is not a mount point.
pub async fn remove(path: &Path) -> Result<(), MountError> {
    let target = path.to_owned();
    disk(path, "removing the folder", move || match std::fs::remove_dir(&target) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
            Err(MountError::NotEmpty { path: target })
        }
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            Err(MountError::NotDirectory { path: target })
        }
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
    disk(path, "examining the target", move || match std::fs::symlink_metadata(&target) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(MountError::NotDirectory { path: target }),
        Err(error) => Err(kernel_error(&target, "examining the target", &error)),
    })
    .await
}

pub(super) async fn disk<T: Send + 'static>(
    path: &Path,
    doing: &'static str,
    work: impl FnOnce() -> Result<T, MountError> + Send + 'static,
) -> Result<T, MountError> {
    let done = limited::run(Duration::from_secs(DISK_SECS), work, drop).await;
    done.unwrap_or_else(|limited::Late| {
        Err(MountError::Timeout { path: PathBuf::from(path), doing, secs: DISK_SECS })
    })
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
        assert!(matches!(remove(root.path()).await, Err(MountError::NotEmpty { .. })));
        assert!(file.exists());
    }

    #[tokio::test]
    async fn links_above_a_target_are_resolved_and_the_target_is_not_looked_at() {
        let root = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(root.path()).unwrap();
        std::fs::create_dir_all(root.join("disk/kubelet/pods")).unwrap();
        std::os::unix::fs::symlink("disk/kubelet", root.join("kubelet")).unwrap();
        std::os::unix::fs::symlink("/proc/self/loop", root.join("kubelet/target")).unwrap();
        for (given, real) in [
            ("kubelet/pods/1/mount", "disk/kubelet/pods/1/mount"),
            ("kubelet/target", "disk/kubelet/target"),
            ("kubelet", "kubelet"),
            ("no/such/place", "no/such/place"),
        ] {
            assert_eq!(resolve(&root.join(given)).await.unwrap(), root.join(real));
        }
        assert_eq!(resolve(Path::new("/")).await.unwrap(), Path::new("/"));
        let odd = root.join("x".repeat(3000));
        assert_eq!(resolve(&odd).await.unwrap(), odd);
    }

    #[tokio::test]
    async fn a_mount_point_is_named_without_looking_into_it() {
        let (target, device, kind) = ("/no/such/place".into(), "dev".into(), "nfs".into());
        let mount = MountPoint { target, device, kind, read_only: false, flags: vec![] };
        let refused = must_be_free(Path::new("/no/such/place"), &[mount]).await;
        assert!(matches!(refused, Err(MountError::Busy { device, .. }) if device == "dev"));
    }
}
