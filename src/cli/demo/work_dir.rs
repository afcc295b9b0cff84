//! The demo's temporary folder.

use anyhow::Context;
use std::path::{Path, PathBuf};

/// A temporary folder, removed at the end.
pub struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    pub fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!(
            "zerofs-demo-{}-{:08x}",
            std::process::id(),
            rand::random::<u32>()
        ));
        std::fs::create_dir_all(path.join("pool")).with_context(|| path.display().to_string())?;
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        // Never below a mount: after a failure mounts may remain, and the folder with them.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        if mounts.contains(&self.path.display().to_string()) {
            eprintln!(
                "not removed, because something is still mounted there: {}",
                self.path.display()
            );
        } else if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}
