//! The disk cache: parts of packs on this machine's disk, as they are in the bucket (of an
//! encrypted pool: encrypted).
//!
//! A file has the name of a pack's object, and the parts that were fetched at their own offsets;
//! the rest of it is a hole. No record says which parts are there: a chunk that is read from the
//! file is verified like one from the bucket, and where it is absent or damaged it does not match.
//! So nothing is ever fsynced, and a crash costs nothing but what was not written yet.
//!
//! Invariants:
//! - The files take at most what [`DiskSize`] allows, and less as others fill the disk: those that
//!   were used least recently are removed.
//! - A slow disk hardly delays a reader: what cannot be written soon is not cached.
//! - Memory holds a name and two numbers per file, for at most [`FILES_MAX`].

use crate::bucket::in_place;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use rustix::fs::SeekFrom;
use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

/// Most files; each takes some 250 bytes of memory.
const FILES_MAX: usize = 16 << 10;
/// A fifth of what the disk has free beside the cache …
const SHARE_PART: u64 = 5;
/// … and no more than this.
const SHARE_MAX: u64 = 64 << 30;
/// A cache that is too large loses this part more, so that not every write removes files.
const SPARE_PART: u64 = 16;
/// Writes at once; each holds the bytes of a request.
const WRITES_MAX: usize = 2;
/// How long a write waits for its turn.
const TURN_LIMIT: Duration = Duration::from_millis(50);
/// More than there are fills at once.
const FILLS_MAX: u32 = 1 << 16;
/// Time between two looks at the disk's free space.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Folders within each other that a start looks into; the names of packs have fewer.
const DEPTH_MAX: u32 = 8;
/// The unit of `st_blocks`.
const STAT_BLOCK: u64 = 512;

/// How large the disk cache may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskSize {
    /// At most this many bytes, and nine tenths of what the disk has for it.
    Bytes(u64),
    /// A fifth of what the disk has free, the cache's own files included; 64 GiB at most.
    Share,
}

impl DiskSize {
    /// The bytes allowed on a disk with `free` bytes beside the `used` ones of the cache.
    fn allowed(self, used: u64, free: u64) -> u64 {
        let room = used.saturating_add(free);
        match self {
            Self::Bytes(bytes) => bytes.min(room / 10 * 9),
            Self::Share => (room / SHARE_PART).min(SHARE_MAX),
        }
    }
}

pub(super) struct DiskCache {
    dir: PathBuf,
    size: DiskSize,
    table: Mutex<FileTable>,
    writes: Arc<Semaphore>,
    fills: Arc<Semaphore>,
}

#[derive(Default)]
struct FileTable {
    files: HashMap<String, CachedFile>,
    bytes: u64,
    /// Counts uses.
    clock: u64,
}

struct CachedFile {
    bytes: u64,
    used: u64,
}

impl FileTable {
    fn put(&mut self, key: String, bytes: u64) {
        self.clock += 1;
        let entry = CachedFile { bytes, used: self.clock };
        self.bytes += bytes;
        if let Some(before) = self.files.insert(key, entry) {
            self.bytes -= before.bytes;
        }
    }

    fn touch(&mut self, key: &str) -> bool {
        self.clock += 1;
        let clock = self.clock;
        self.files.get_mut(key).map(|entry| entry.used = clock).is_some()
    }

    fn remove(&mut self, key: &str) {
        if let Some(entry) = self.files.remove(key) {
            self.bytes -= entry.bytes;
        }
    }

    /// Takes out those used least recently, until the others take no more than `allowed`.
    fn evict(&mut self, allowed: u64) -> Vec<String> {
        if self.bytes <= allowed && self.files.len() <= FILES_MAX {
            return Vec::new();
        }
        let (bytes_max, files_max) =
            (allowed - allowed / SPARE_PART, FILES_MAX - FILES_MAX / SPARE_PART as usize);
        let mut oldest: Vec<(u64, String)> =
            self.files.iter().map(|(key, entry)| (entry.used, key.clone())).collect();
        oldest.sort_unstable();
        let mut evicted = Vec::new();
        for (_, key) in oldest {
            if self.bytes <= bytes_max && self.files.len() <= files_max {
                break;
            }
            self.remove(&key);
            evicted.push(key);
        }
        evicted
    }
}

/// Something that will be written, or turn out not to be: [`DiskCache::settled`] waits for it.
pub(super) struct Fill {
    _permit: OwnedSemaphorePermit,
}

impl DiskCache {
    /// Uses the files that an earlier process left, and removes whatever else is in the folder.
    pub(super) async fn open(dir: &Path, size: DiskSize) -> io::Result<Arc<Self>> {
        let dir = dir.to_owned();
        let opened = tokio::task::spawn_blocking(move || Self::open_now(dir, size)).await;
        let cache = Arc::new(opened.map_err(io::Error::other)??);
        tokio::spawn(give_back(Arc::downgrade(&cache)));
        Ok(cache)
    }

    fn open_now(dir: PathBuf, size: DiskSize) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_name() == "packs" {
                scan(&entry.path(), "packs", DEPTH_MAX, &mut found)?;
            } else if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
        // Reads are not written down: a file counts as used when it was last filled.
        found.sort_unstable_by(|(a, at, _), (b, other, _)| at.cmp(other).then(a.cmp(b)));
        let mut table = FileTable::default();
        found.into_iter().for_each(|(key, _, bytes)| table.put(key, bytes));
        let writes = Arc::new(Semaphore::new(WRITES_MAX));
        let fills = Arc::new(Semaphore::new(FILLS_MAX as usize));
        let cache = Self { dir, size, table: Mutex::new(table), writes, fills };
        cache.trim();
        Ok(cache)
    }

    /// Returns whether anything of an object is here.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.lock().touch(key)
    }

    /// See [`in_place::read`]. Not verified.
    pub(super) fn read_in_place(&self, key: &str, ranges: &[Range<u64>]) -> Option<Vec<Bytes>> {
        if !self.has(key) {
            return None;
        }
        in_place::read(&in_place::open(&self.dir.join(key))?, ranges)
    }

    /// Part of an object, zeros where it has a hole. Waits for the disk. Not verified.
    pub(super) async fn read(self: &Arc<Self>, key: String, range: Range<u64>) -> Option<Bytes> {
        if !self.has(&key) {
            return None;
        }
        let cache = self.clone();
        let read = tokio::task::spawn_blocking(move || match cache.read_now(&key, &range) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                if error.kind() == ErrorKind::NotFound {
                    cache.table.lock().remove(&key);
                }
                None
            }
        });
        read.await.ok().flatten()
    }

    fn read_now(&self, key: &str, range: &Range<u64>) -> io::Result<Bytes> {
        let file = File::open(self.dir.join(key))?;
        let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        // Before memory is taken for it.
        if file.metadata()?.len() < range.end {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = BytesMut::zeroed(len);
        file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes.freeze())
    }

    /// Returns whether a range is probably here, and lets the kernel read it into its memory.
    pub(super) async fn will_read(self: &Arc<Self>, key: String, range: Range<u64>) -> bool {
        if !self.has(&key) {
            return false;
        }
        let path = self.dir.join(key);
        let ready = tokio::task::spawn_blocking(move || {
            let is_filled = is_filled(&path, &range);
            if is_filled {
                in_place::will_read(&path, &range);
            }
            is_filled
        });
        ready.await.unwrap_or(false)
    }

    /// Announces a write, before anyone can see that its bytes were read.
    pub(super) fn fill(&self) -> Option<Fill> {
        let _permit = self.fills.clone().try_acquire_owned().ok()?;
        Some(Fill { _permit })
    }

    /// Begins to fill part of an object, unless the disk is busy with others for too long.
    pub(super) async fn write(
        self: &Arc<Self>,
        fill: Fill,
        key: String,
        at: u64,
        bytes: Bytes,
    ) -> Option<JoinHandle<()>> {
        let turn = self.writes.clone().acquire_owned();
        // Never closed.
        let turn = tokio::time::timeout(TURN_LIMIT, turn).await.ok()?.ok()?;
        let cache = self.clone();
        Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = cache.write_now(key, at, &bytes) {
                tracing::debug!(
                    %error,
                    dir = %cache.dir.display(),
                    "the disk cache cannot be written; these chunks are read from the bucket again"
                );
            }
            drop(bytes);
            drop(turn);
            cache.trim();
            drop(fill);
        }))
    }

    fn write_now(&self, key: String, at: u64, bytes: &[u8]) -> io::Result<()> {
        let path = self.dir.join(&key);
        let open =
            || OpenOptions::new().write(true).create(true).truncate(false).open(path.as_path());
        let file = match (open(), path.parent()) {
            (Err(error), Some(folder)) if error.kind() == ErrorKind::NotFound => {
                std::fs::create_dir_all(folder)?;
                open()?
            }
            (opened, _) => opened?,
        };
        let written = file.write_all_at(bytes, at);
        let taken = size(&file.metadata()?);
        self.table.lock().put(key, taken);
        written
    }

    /// Removes what exceeds the size allowed now.
    fn trim(&self) {
        let used = self.table.lock().bytes;
        let allowed = match rustix::fs::statvfs(&self.dir) {
            Ok(disk) => self.size.allowed(used, disk.f_bavail.saturating_mul(disk.f_frsize)),
            // The cache does not grow until the free space is known.
            Err(_) => used,
        };
        let evicted = self.table.lock().evict(allowed);
        for key in evicted {
            let path = self.dir.join(key);
            match std::fs::remove_file(&path) {
                // Fails while the folder has other files.
                Ok(()) => path.parent().map(std::fs::remove_dir).into_iter().for_each(drop),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(
                    %error,
                    path = %path.display(),
                    "a file of the disk cache cannot be removed: remove it"
                ),
            }
        }
    }

    /// Waits for the writes that were announced.
    pub(super) async fn settled(&self) {
        // Never closed.
        drop(self.fills.acquire_many(FILLS_MAX).await);
    }
}

/// Gives the disk back what others need of it, for as long as the cache is in use.
async fn give_back(cache: std::sync::Weak<DiskCache>) {
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let Some(cache) = cache.upgrade() else { return };
        // Cut off when the process ends.
        let _ended = tokio::task::spawn_blocking(move || cache.trim()).await;
    }
}

/// Finds the files below a folder: name, time of the last write, bytes.
fn scan(
    folder: &Path,
    name: &str,
    depth: u32,
    found: &mut Vec<(String, SystemTime, u64)>,
) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(own) = entry.file_name().into_string() else { continue };
        let (path, name) = (entry.path(), format!("{name}/{own}"));
        match entry.file_type()?.is_dir() {
            true if depth > 0 => scan(&path, &name, depth - 1, found)?,
            true => std::fs::remove_dir_all(&path)?,
            false if found.len() >= FILES_MAX => std::fs::remove_file(&path)?,
            false => {
                let meta = entry.metadata()?;
                found.push((name, meta.modified()?, size(&meta)));
            }
        }
    }
    Ok(())
}

fn size(meta: &Metadata) -> u64 {
    meta.blocks().saturating_mul(STAT_BLOCK)
}

/// Returns whether a range of a file has no hole.
fn is_filled(path: &Path, range: &Range<u64>) -> bool {
    let hole =
        File::open(path).and_then(|file| Ok(rustix::fs::seek(file, SeekFrom::Hole(range.start))?));
    hole.is_ok_and(|hole| hole >= range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_gives_way_to_others_on_the_disk() {
        const GIB: u64 = 1 << 30;
        assert_eq!(DiskSize::Share.allowed(0, 100 * GIB), 20 * GIB);
        assert_eq!(
            DiskSize::Share.allowed(20 * GIB, 80 * GIB),
            20 * GIB,
            "its own use is no reason"
        );
        assert_eq!(DiskSize::Share.allowed(20 * GIB, 5 * GIB), 5 * GIB);
        assert_eq!(DiskSize::Share.allowed(0, 10_000 * GIB), 64 * GIB);
        assert_eq!(DiskSize::Bytes(GIB).allowed(0, 100 * GIB), GIB);
        assert_eq!(DiskSize::Bytes(100 * GIB).allowed(0, 10 * GIB), 9 * GIB);
        assert_eq!(DiskSize::Share.allowed(u64::MAX, u64::MAX), 64 * GIB);
    }

    #[tokio::test]
    async fn what_was_used_least_recently_goes_first_and_a_restart_finds_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("left-by-others"), "x").unwrap();
        let size = DiskSize::Bytes(1 << 20);
        let cache = DiskCache::open(dir.path(), size).await.unwrap();
        let key = |n: u32| format!("packs/family/creator/{n}");
        let write = |n: u32| {
            let (cache, fill) = (cache.clone(), cache.fill().expect("there is room"));
            async move {
                let bytes = Bytes::from(vec![n as u8; 100_000]);
                let written = cache.write(fill, key(n), 100_000, bytes).await;
                written.expect("nothing else is written").await.unwrap();
            }
        };
        for n in 0..40 {
            write(n).await;
            assert!(cache.table.lock().bytes <= 1 << 20);
            assert!(cache.has(&key(0)), "used at every step");
        }
        assert!(!cache.has(&key(1)));
        assert!(!dir.path().join(key(1)).exists());
        let read = cache.read(key(39), 100_000..200_000).await.unwrap();
        assert!(read.iter().all(|byte| *byte == 39));
        assert_eq!(cache.read(key(39), 150_000..200_001).await, None, "it ends before");
        assert_eq!(cache.read(key(39), 0..16).await.unwrap(), [0; 16][..], "a hole");
        assert!(cache.will_read(key(39), 120_000..200_000).await);
        assert!(!cache.will_read(key(39), 1 << 30..2 << 30).await);
        cache.settled().await;
        let bytes = cache.table.lock().bytes;
        drop(cache);
        let again = DiskCache::open(dir.path(), size).await.unwrap();
        assert_eq!(again.table.lock().bytes, bytes);
        assert!(again.has(&key(39)));
        assert!(!dir.path().join("left-by-others").exists());
        drop(again);
        let smaller = DiskCache::open(dir.path(), DiskSize::Bytes(300_000)).await.unwrap();
        assert!(smaller.table.lock().bytes <= 300_000 && smaller.has(&key(39)));
        std::fs::remove_file(dir.path().join(key(39))).unwrap();
        assert_eq!(smaller.read(key(39), 100_000..100_001).await, None);
        assert!(!smaller.has(&key(39)), "it is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_disk_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(dir.path(), DiskSize::Share).await.unwrap();
        let busy = cache.writes.acquire_many(WRITES_MAX as u32).await.unwrap();
        let write = || cache.write(cache.fill().unwrap(), "packs/a/b/c".into(), 0, "x".into());
        assert!(write().await.is_none());
        drop(busy);
        write().await.expect("its turn").await.unwrap();
        cache.settled().await;
        assert!(cache.has("packs/a/b/c"));
    }

    #[test]
    fn files_are_bounded_too() {
        let mut table = FileTable::default();
        for n in 0..=FILES_MAX {
            table.put(format!("packs/{n}"), 1);
            table.evict(u64::MAX);
            assert!(table.files.len() <= FILES_MAX);
        }
        assert!(!table.touch("packs/0") && table.touch(&format!("packs/{FILES_MAX}")));
        assert_eq!(table.bytes, table.files.len() as u64);
    }
}
