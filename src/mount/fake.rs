//! A mounter that mounts nothing: for tests, and for the user-space mode of `demo`.

use super::target::{must_be_free, resolve};
use super::{BindMount, MountError, MountPoint, Mounter, NfsMount, options};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A substitute for the kernel's client: given the mount and its target, it speaks MOUNT with the
/// endpoint.
type OnMount =
    Arc<dyn Fn(NfsMount, PathBuf) -> BoxFuture<'static, Result<(), MountError>> + Send + Sync>;

/// Keeps a table of mounts in memory, with the checks and errors of the real one; as in the
/// kernel's, its paths have no symbolic links. Cheap to clone: clones share the table.
#[derive(Clone, Default)]
pub struct FakeMounter {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    mounts: Mutex<Vec<MountPoint>>,
    asked: Mutex<Vec<String>>,
    failures: Mutex<VecDeque<(&'static str, MountError)>>,
    on_mount: Option<OnMount>,
}

impl FakeMounter {
    pub fn new() -> Self {
        Self::default()
    }

    /// `on_mount` runs inside every [`Mounter::mount_nfs`], when the kernel's client would speak to
    /// the server.
    pub fn with(
        on_mount: impl Fn(NfsMount, PathBuf) -> BoxFuture<'static, Result<(), MountError>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self { inner: Arc::new(Inner { on_mount: Some(Arc::new(on_mount)), ..Inner::default() }) }
    }

    /// Makes the next call of a kind (`mount`, `bind`, `unmount`, `list`, `sync`) fail.
    pub fn fail_next(&self, call: &'static str, error: MountError) {
        self.inner.failures.lock().push_back((call, error));
    }

    /// Everything asked for so far, in order: `<kind> <target>`.
    pub fn asked(&self) -> Vec<String> {
        self.inner.asked.lock().clone()
    }

    /// Adds a foreign mount to the table.
    pub fn add(&self, mount: MountPoint) {
        self.inner.mounts.lock().push(mount);
    }

    /// Forgets every mount, as a reboot does.
    pub fn reboot(&self) {
        self.inner.mounts.lock().clear();
    }

    fn ask(&self, call: &'static str, target: &Path) -> Result<(), MountError> {
        self.inner.asked.lock().push(format!("{call} {}", target.display()));
        let mut failures = self.inner.failures.lock();
        match failures.iter().position(|(kind, _)| *kind == call).and_then(|at| failures.remove(at))
        {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    fn table(&self) -> Vec<MountPoint> {
        self.inner.mounts.lock().clone()
    }
}

/// The flags that mountinfo would show for a mount point.
fn flags(options: &[String]) -> Vec<String> {
    let words = options.iter().flat_map(|text| text.split(','));
    let own = words.filter(|word| ["noexec", "noatime", "nodiratime", "relatime"].contains(word));
    ["nosuid", "nodev"].into_iter().chain(own).map(str::to_owned).collect()
}

impl Mounter for FakeMounter {
    async fn mount_nfs(&self, what: &NfsMount, target: &Path) -> Result<(), MountError> {
        let read_only = options::kernel(what)?.read_only;
        must_be_free(target, &self.table()).await?;
        self.ask("mount", target)?;
        if let Some(on_mount) = &self.inner.on_mount {
            on_mount(what.clone(), target.to_owned()).await?;
        }
        let (target, device, flags) =
            (resolve(target).await?, what.device.clone(), flags(&what.options));
        self.add(MountPoint { target, device, kind: "nfs".into(), read_only, flags });
        Ok(())
    }

    async fn bind(&self, what: &BindMount, target: &Path) -> Result<(), MountError> {
        options::bind(what)?;
        let table = self.table();
        must_be_free(target, &table).await?;
        self.ask("bind", target)?;
        let source = resolve(&what.source).await?;
        let Some(of) = table.iter().rev().find(|mount| mount.target == source) else {
            let why = format!("{} is not mounted", source.display());
            return Err(MountError::Kernel { path: target.to_owned(), doing: "binding", why });
        };
        let read_only = what.read_only || of.read_only;
        self.add(MountPoint {
            target: resolve(target).await?,
            read_only,
            flags: flags(&what.options),
            ..of.clone()
        });
        Ok(())
    }

    async fn unmount(&self, target: &Path) -> Result<(), MountError> {
        self.ask("unmount", target)?;
        self.inner.mounts.lock().retain(|mount| mount.target != target);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<MountPoint>, MountError> {
        self.ask("list", Path::new("/proc/self/mountinfo"))?;
        Ok(self.table())
    }

    async fn sync(&self, target: &Path) -> Result<(), MountError> {
        self.ask("sync", target)
    }
}
