//! Chunks kept near: what all chunk stores of a process share.

use std::path::Path;

/// Verified chunks in memory, and if a folder is given their stored form on disk. One for the process; cheap to clone.
#[derive(Clone)]
pub struct ChunkCache {}

impl ChunkCache {
    /// In memory only, at most `bytes`.
    pub fn memory(_bytes: u64) -> Self {
        todo!()
    }

    /// In memory and in files below `dir`, which this cache owns: at most `disk_bytes` there. What is read from the disk is opened and
    /// verified like what is read from the bucket, and encrypted pools are encrypted there too.
    pub async fn with_disk(_bytes: u64, _dir: &Path, _disk_bytes: u64) -> std::io::Result<Self> {
        todo!()
    }
}
