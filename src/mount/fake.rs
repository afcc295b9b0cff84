//! A mounter that mounts nothing: for tests, and for the user-space mode of `demo`.

use super::target::must_be_free;
use super::{MountError, MountPoint, Mounter, NfsMount, options};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What stands in for the kernel's client: given the mount and its target, it speaks MOUNT with the endpoint.
type OnMount = Arc<dyn Fn(NfsMount, PathBuf) -> BoxFuture<'static, Result<(), MountError>> + Send + Sync>;

/// Keeps a table of mounts in memory, with the checks and errors of the real one. Cheap to clone: clones share the table.
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

    /// `on_mount` runs inside every [`Mounter::mount_nfs`], when the kernel's client would speak to the server.
    pub fn with(
        on_mount: impl Fn(NfsMount, PathBuf) -> BoxFuture<'static, Result<(), MountError>> + Send + Sync + 'static,
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

    /// Puts a mount into the table that nobody asked this one for.
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
        match failures.iter().position(|(kind, _)| *kind == call).and_then(|at| failures.remove(at)) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    fn table(&self) -> Vec<MountPoint> {
        self.inner.mounts.lock().clone()
    }
}

impl Mounter for FakeMounter {
    async fn mount_nfs(&self, what: &NfsMount, target: &Path) -> Result<(), MountError> {
        let read_only = options::kernel(what)?.read_only;
        must_be_free(target, &self.table()).await?;
        self.ask("mount", target)?;
        if let Some(on_mount) = &self.inner.on_mount {
            on_mount(what.clone(), target.to_owned()).await?;
        }
        self.add(MountPoint { target: target.to_owned(), device: what.device.clone(), kind: "nfs".into(), read_only });
        Ok(())
    }

    async fn bind(&self, source: &Path, target: &Path, read_only: bool) -> Result<(), MountError> {
        let table = self.table();
        must_be_free(target, &table).await?;
        self.ask("bind", target)?;
        let Some(of) = table.iter().rev().find(|mount| mount.target == source) else {
            let why = format!("{} is not mounted", source.display());
            return Err(MountError::Kernel { path: target.to_owned(), doing: "binding", why });
        };
        self.add(MountPoint { target: target.to_owned(), read_only: read_only || of.read_only, ..of.clone() });
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
