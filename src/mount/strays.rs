//! Stray files in a target folder, written while nothing was mounted. Kubelet and the driver remove
//! only empty folders, so that the pod would stay Terminating for ever, and the files may be user
//! data: they are moved away.

use super::target::disk;
use super::{MountError, remove_target};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Most times that files may be moved from one target.
const TIMES_MAX: u32 = 100;

/// Removes the folder of an unmounted target. One of kubelet's that holds files is moved whole to
/// `<kubelet's folder>/plugins/<driver>/strays/<pod>/<volume>`, which is on the same disk.
///
/// # Errors
/// [`MountError::NotEmpty`] for a folder that holds files, where it cannot be moved.
pub async fn remove_or_move_away(target: &Path, driver: &str) -> Result<(), MountError> {
    let error = match remove_target(target).await {
        Err(error @ MountError::NotEmpty { .. }) => error,
        removed => return removed,
    };
    let Some(place) = place(target, driver) else { return Err(error) };
    let from = target.to_owned();
    let moved = disk(target, "moving files away", move || Ok(rename(&from, &place))).await?;
    match moved {
        Some(to) => {
            let (target, to) = (target.display(), to.display());
            tracing::warn!(
                %target,
                %to,
                "moved files that do not belong to the volume out of a pod's volume folder; delete \
                 them if they are not needed"
            );
            Ok(())
        }
        None => Err(error),
    }
}

/// The location that the files of a pod's target are moved to; `None` if it is not a target of
/// kubelet's.
fn place(target: &Path, driver: &str) -> Option<PathBuf> {
    let mut names = target.iter().rev();
    let mut name_is = |wanted: &str| names.next() == Some(OsStr::new(wanted));
    let mount = name_is("mount");
    let volume = names.next()?;
    let mut name_is = |wanted: &str| names.next() == Some(OsStr::new(wanted));
    let plugin = name_is("kubernetes.io~csi") && name_is("volumes");
    let pod = names.next()?;
    let pods = names.next() == Some(OsStr::new("pods"));
    let root = target.ancestors().nth(6)?;
    (mount && plugin && pods)
        .then(|| root.join("plugins").join(driver).join("strays").join(pod).join(volume))
}

/// Moves it to a name that is free: earlier files stay.
fn rename(from: &Path, place: &Path) -> Option<PathBuf> {
    std::fs::create_dir_all(place.parent()?).ok()?;
    let names = (1..TIMES_MAX).map(|n| PathBuf::from(format!("{}.{n}", place.display())));
    let to =
        std::iter::once(place.to_owned()).chain(names).find(|to| to.symlink_metadata().is_err())?;
    std::fs::rename(from, &to).ok().map(|()| to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pods_target_has_a_place() {
        let target = Path::new("/k/pods/uid/volumes/kubernetes.io~csi/pvc-1/mount");
        assert_eq!(place(target, "d").unwrap(), Path::new("/k/plugins/d/strays/uid/pvc-1"));
        for other in [
            "/",
            "/etc",
            "/mount",
            "/k/pods/uid/volumes/kubernetes.io~csi/pvc-1",
            "/k/pods/uid/volumes/kubernetes.io~nfs/pvc-1/mount",
            "/k/pots/uid/volumes/kubernetes.io~csi/pvc-1/mount",
            "pods/uid/volumes/kubernetes.io~csi/pvc-1/mount/x",
        ] {
            assert_eq!(place(Path::new(other), "d"), None, "{other}");
        }
    }

    #[tokio::test]
    async fn what_was_moved_before_stays() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("pods/uid/volumes/kubernetes.io~csi/pvc-1/mount");
        for text in ["first", "second"] {
            std::fs::create_dir_all(&target).unwrap();
            std::fs::write(target.join("file"), text).unwrap();
            remove_or_move_away(&target, "d").await.unwrap();
            assert!(!target.exists());
        }
        let strays = root.path().join("plugins/d/strays/uid");
        let texts = ["pvc-1/file", "pvc-1.1/file"]
            .map(|file| std::fs::read_to_string(strays.join(file)).unwrap());
        assert_eq!(texts, ["first", "second"]);
        remove_or_move_away(&target, "d").await.unwrap();
    }
}
