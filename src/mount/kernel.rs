//! mount(2), umount2(2), syncfs(2) and mountinfo of this machine.

use super::limited::{self, Late};
use super::target::{kernel_error, must_be_free};
use super::{BindMount, MountError, MountPoint, Mounter, NfsMount, mountinfo, options};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Long enough for a server that is busy, short of kubelet's two minutes.
const MOUNT_SECS: u64 = 60;
const BIND_SECS: u64 = 10;
/// Dirty pages were written by [`Mounter::sync`] before, so that few are left.
const UNMOUNT_SECS: u64 = 10;
/// MNT_FORCE and MNT_DETACH do not wait for a server.
const FORCE_SECS: u64 = 5;
const SYNC_SECS: u64 = 30;
const LIST_SECS: u64 = 10;
/// Most mounts stacked on one target that an unmount removes.
const STACK_MAX: usize = 8;

/// The real mounter: needs CAP_SYS_ADMIN, and the kernel's NFS client.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelMounter;

/// Runs a blocking call with its limit; `undo` if it succeeds after the caller has given up.
async fn call<T: Send + 'static>(
    path: &Path,
    doing: &'static str,
    secs: u64,
    work: impl FnOnce(&Path) -> Result<T, Errno> + Send + 'static,
    undo: impl FnOnce(&Path) + Send + 'static,
) -> Result<Result<T, Errno>, MountError> {
    let (target, again) = (path.to_owned(), path.to_owned());
    let unwanted = move |result: Result<T, Errno>| {
        if result.is_ok() {
            undo(&again);
        }
    };
    let done = limited::run(Duration::from_secs(secs), move || work(&target), unwanted).await;
    done.map_err(|Late| MountError::Timeout { path: path.to_owned(), doing, secs })
}

fn failed(path: &Path, doing: &'static str, errno: Errno) -> MountError {
    kernel_error(path, doing, &errno.into()).because(match errno {
        Errno::NODEV => Some("the kernel has no NFSv3 client: load the modules nfs and nfsv3"),
        Errno::PERM => Some("the process needs CAP_SYS_ADMIN (a privileged container)"),
        _ => None,
    })
}

/// Removes a mount that succeeded after its caller had given up.
fn detach(target: &Path) {
    if let Err(error) =
        rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
    {
        tracing::warn!(
            target = %target.display(),
            %error,
            "a mount that completed too late cannot be undone; unmount it by hand"
        );
    }
}

impl Mounter for KernelMounter {
    async fn mount_nfs(&self, what: &NfsMount, target: &Path) -> Result<(), MountError> {
        const DOING: &str = "mounting";
        let options = options::kernel(what)?;
        must_be_free(target, &self.list().await?).await?;
        let nul = |_| MountError::Kernel {
            path: target.to_owned(),
            doing: DOING,
            why: "options hold a NUL byte".into(),
        };
        let data = CString::new(options.data).map_err(nul)?;
        let device = what.device.clone();
        let mount = move |path: &Path| {
            rustix::mount::mount(device, path, "nfs", options.flags, data.as_c_str())
        };
        let mounted = call(target, DOING, MOUNT_SECS, mount, detach).await?;
        mounted.map_err(|errno| {
            let context = options::context(&what.options).filter(|_| errno == Errno::INVAL);
            failed(target, DOING, errno).because(context.map(|context| {
                format!(
                    "perhaps SELinux is off on this node, or its policy does not know the context \
                     {context}"
                )
            }))
        })
    }

    async fn bind(&self, what: &BindMount, target: &Path) -> Result<(), MountError> {
        const DOING: &str = "binding";
        let flags = options::bind(what)?;
        must_be_free(target, &self.list().await?).await?;
        let from = what.source.clone();
        let bind = move |path: &Path| {
            rustix::mount::mount_bind(from, path)?;
            // A bind takes its flags only from a remount of it, and then takes exactly these.
            rustix::mount::mount_remount(path, flags, c"").inspect_err(|_| detach(path))
        };
        call(target, DOING, BIND_SECS, bind, detach)
            .await?
            .map_err(|errno| failed(target, DOING, errno))
    }

    async fn unmount(&self, target: &Path) -> Result<(), MountError> {
        for _ in 0..STACK_MAX {
            let mounts = self.list().await?;
            let Some(top) = mounts.iter().rev().find(|mount| mount.target == target) else {
                return Ok(());
            };
            // MNT_FORCE aborts the calls of every mount of the file system, those of other pods
            // too.
            let only = mounts.iter().filter(|mount| mount.device == top.device).count() == 1;
            unmount_top(target, if only { ONLY } else { SHARED }).await?;
        }
        Err(MountError::Kernel {
            path: target.to_owned(),
            doing: "unmounting",
            why: "too many mounts on one target".into(),
        })
    }

    async fn list(&self) -> Result<Vec<MountPoint>, MountError> {
        const DOING: &str = "reading";
        let path = PathBuf::from("/proc/self/mountinfo");
        let file = path.clone();
        let read =
            limited::run(Duration::from_secs(LIST_SECS), move || std::fs::read(file), drop).await;
        match read {
            Ok(Ok(text)) => Ok(mountinfo::parse(&text)),
            Ok(Err(error)) => Err(kernel_error(&path, DOING, &error)),
            Err(Late) => Err(MountError::Timeout { path, doing: DOING, secs: LIST_SECS }),
        }
    }

    async fn sync(&self, target: &Path) -> Result<(), MountError> {
        const DOING: &str = "writing out dirty pages";
        let sync = |path: &Path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::syncfs(rustix::fs::open(path, flags, Mode::empty())?)
        };
        call(target, DOING, SYNC_SECS, sync, |_| {})
            .await?
            .map_err(|errno| failed(target, DOING, errno))
    }
}

/// The attempts to unmount, in order, with their limits in seconds.
type Attempts = &'static [(UnmountFlags, u64)];

/// For a file system that is mounted elsewhere too: MNT_FORCE would abort the calls of all mounts.
const SHARED: Attempts =
    &[(UnmountFlags::empty(), UNMOUNT_SECS), (UnmountFlags::DETACH, FORCE_SECS)];
/// For the only mount of a file system: MNT_FORCE aborts the calls in flight to a dead server.
const ONLY: Attempts = &[
    (UnmountFlags::empty(), UNMOUNT_SECS),
    (UnmountFlags::FORCE, FORCE_SECS),
    (UnmountFlags::DETACH, FORCE_SECS),
];

async fn unmount_top(target: &Path, attempts: Attempts) -> Result<(), MountError> {
    const DOING: &str = "unmounting";
    let mut error = None;
    for (flags, secs) in attempts {
        let flags = *flags | UnmountFlags::NOFOLLOW;
        let step =
            call(target, DOING, *secs, move |path| rustix::mount::unmount(path, flags), |_| {})
                .await;
        match step {
            // EINVAL: not a mount point, because an earlier attempt completed after all.
            Ok(Ok(()) | Err(Errno::INVAL)) => return Ok(()),
            Ok(Err(errno)) => error = Some(failed(target, DOING, errno)),
            Err(late) => error = Some(late),
        }
        tracing::debug!(
            target = %target.display(),
            ?flags,
            ?error,
            "an unmount attempt failed; trying the next method"
        );
    }
    error.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_mounted_is_unmounted() {
        let dir = tempfile::tempdir().unwrap();
        KernelMounter.unmount(dir.path()).await.unwrap();
        KernelMounter.unmount(Path::new("/no/such/place")).await.unwrap();
    }

    /// Needs root: everything except NFS itself works on any kernel.
    #[tokio::test]
    async fn binds_come_and_go_read_only_too() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target folder"));
        std::fs::create_dir(&source).unwrap();
        std::fs::create_dir(&target).unwrap();
        std::fs::write(source.join("file"), "x").unwrap();
        let what = |read_only, options: &[&str]| BindMount {
            source: source.clone(),
            read_only,
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        match KernelMounter.bind(&what(true, &["noexec,nodiratime"]), &target).await {
            Err(MountError::Kernel { why, .. }) if why.contains("CAP_SYS_ADMIN") => return,
            bound => bound.unwrap(),
        }
        assert_eq!(std::fs::read(target.join("file")).unwrap(), b"x");
        assert!(std::fs::write(target.join("new"), "y").is_err(), "the bind is read-only");
        std::fs::write(source.join("new"), "y").unwrap();
        let seen = KernelMounter.list().await.unwrap();
        let bound = seen.iter().find(|mount| mount.target == target).unwrap();
        assert!(bound.read_only);
        let flags = ["nosuid", "nodev", "noexec", "nodiratime"];
        assert!(
            flags.iter().all(|flag| bound.flags.iter().any(|there| there == flag)),
            "{:?}",
            bound.flags
        );
        let again = KernelMounter.bind(&what(false, &[]), &target).await;
        assert!(matches!(again, Err(MountError::Busy { .. })), "{again:?}");
        KernelMounter.sync(&target).await.unwrap();
        // Busy: an open file keeps it, and it is detached all the same.
        let held = std::fs::File::open(target.join("file")).unwrap();
        KernelMounter.unmount(&target).await.unwrap();
        assert!(!KernelMounter.list().await.unwrap().iter().any(|mount| mount.target == target));
        drop(held);
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn an_nfs_mount_of_nothing_fails_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let what = NfsMount {
            device: "d:/e".into(),
            endpoint: "127.0.0.1:1".parse().unwrap(),
            export: "/e".into(),
            read_only: false,
            options: vec![],
        };
        let refused = KernelMounter.mount_nfs(&what, dir.path()).await.unwrap_err();
        assert!(matches!(refused, MountError::Kernel { .. }), "{refused}");
        let what = NfsMount { options: vec!["soft".into()], ..what };
        assert!(matches!(
            KernelMounter.mount_nfs(&what, dir.path()).await,
            Err(MountError::Option { .. })
        ));
    }
}
