//! The directory `/.snapshots` of a live file system: its entries, and the snapshot of a fileid.
//!
//! Entries come in the order of serials, which are never reused: a position stays valid whatever is
//! created and deleted. Listing it opens no snapshot, so entries carry no attributes of their own;
//! looking one up does.
//!
//! The directory changes in the bucket, when any process makes or deletes a snapshot. Its ctime
//! grows when this process notices that (R8).

use super::open_snapshots::{OpenSnapshot, OpenSnapshots, RetainedBy};
use crate::catalog::{Catalog, State};
use crate::fs::api::{Attr, DirCookie, FileKind, FileRef, ListLimit, Listing};
use crate::fs::{Fs, FsError, Page};
use crate::types::{Class, Classify, Incarnation, InodeNo, SnapshotId, Timestamp};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time for which a listing is valid for a listing of the directory …
const FRESH: Duration = Duration::from_secs(1);
/// … and for the lookup of a name: an open snapshot notices by itself when it is deleted.
const LOOKUP_FRESH: Duration = Duration::from_secs(5);
/// The mode of the directory: everybody may read it.
const MODE: u32 = 0o555;
/// The positions of `.` and `..` come first; that of an entry is its serial plus this.
const DOTS: u64 = 2;

/// An entry of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    serial: u32,
    name: Bytes,
    id: SnapshotId,
}

struct SnapshotList {
    entries: Vec<Entry>,
    ctime: Timestamp,
    at: Instant,
}

/// The snapshots of one dataset.
pub(super) struct SnapDir {
    pool: Catalog,
    dataset: Incarnation,
    open_snapshots: OpenSnapshots,
    list: Mutex<Option<Arc<SnapshotList>>>,
    /// Locked by whoever lists the catalog.
    asking: tokio::sync::Mutex<()>,
}

impl SnapDir {
    pub fn new(pool: Catalog, dataset: Incarnation, open_snapshots: OpenSnapshots) -> Self {
        Self {
            pool,
            dataset,
            open_snapshots,
            list: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    /// The handle of the directory.
    pub const FILE: FileRef = FileRef { ino: InodeNo::SNAPSHOTS, generation: 0 };

    /// The last listing, if it is newer than `since`.
    fn listed_after(&self, since: Option<Instant>) -> Option<Arc<SnapshotList>> {
        let list = self.list.lock();
        list.as_ref().filter(|list| since.is_none_or(|since| list.at >= since)).cloned()
    }

    /// The snapshots, as listed at most `age` ago. `live`: the clock of the directory's ctime.
    async fn listed(&self, live: &Fs, age: Duration) -> Result<Arc<SnapshotList>, FsError> {
        // A listing that begins after this moment is fresh enough for every waiting caller.
        let since = Instant::now().checked_sub(age);
        if let Some(list) = since.and_then(|since| self.listed_after(Some(since))) {
            return Ok(list);
        }
        let _asking = self.asking.lock().await;
        if let Some(list) = since.and_then(|since| self.listed_after(Some(since))) {
            return Ok(list);
        }
        let at = Instant::now();
        let records =
            self.pool.snapshots(Some(self.dataset)).await.map_err(|error| match error.class() {
                Class::Corrupt => FsError::Corrupt(error.to_string()),
                _ => FsError::Unavailable(error.to_string()),
            })?;
        let records = records
            .into_iter()
            .map(|at| at.record)
            .filter(|s| s.state == State::Ready && !s.implied);
        let mut entries: Vec<Entry> = records
            .map(|s| Entry {
                serial: s.serial,
                name: Bytes::copy_from_slice(s.name.as_str().as_bytes()),
                id: s.id(),
            })
            .collect();
        entries.sort_unstable_by_key(|entry| entry.serial);
        let ctime = match self.listed_after(None) {
            Some(before) if before.entries == entries => before.ctime,
            Some(before) => live.ctime_after(before.ctime),
            None => live.ctime_after(Timestamp::from_nanos(0)),
        };
        let list = Arc::new(SnapshotList { entries, ctime, at });
        *self.list.lock() = Some(list.clone());
        Ok(list)
    }

    pub async fn attr(&self, live: &Fs) -> Result<Attr, FsError> {
        Ok(attr(&*self.listed(live, FRESH).await?))
    }

    /// The serial of a name, and its open snapshot.
    pub async fn lookup(
        &self,
        live: &Fs,
        name: &[u8],
    ) -> Result<(u32, Arc<OpenSnapshot>, Attr), FsError> {
        // An unknown name may be new: whoever has just made the snapshot looks it up.
        for age in [LOOKUP_FRESH, Duration::ZERO] {
            let list = self.listed(live, age).await?;
            if let Some(entry) = list.entries.iter().find(|entry| entry.name == name) {
                match self.open_snapshots.get(&self.pool, entry.id, RetainedBy::Reader).await {
                    // Deleted since it was listed.
                    Err(FsError::Stale) => {}
                    snapshot => return Ok((entry.serial, snapshot?, attr(&list))),
                }
            }
        }
        Err(FsError::NotFound)
    }

    /// The open snapshot of a handle.
    ///
    /// # Errors
    /// [`FsError::Stale`] when it is deleted.
    pub async fn snapshot(&self, live: &Fs, serial: u32) -> Result<Arc<OpenSnapshot>, FsError> {
        let id_of = |list: &SnapshotList| {
            list.entries.iter().find(|entry| entry.serial == serial).map(|entry| entry.id)
        };
        // Serials are never reused, so an old listing is right; the open snapshot notices its
        // deletion.
        let mut id = self.listed_after(None).and_then(|list| id_of(&list));
        if id.is_none() {
            id = id_of(&*self.listed(live, FRESH).await?);
        }
        self.open_snapshots.get(&self.pool, id.ok_or(FsError::Stale)?, RetainedBy::Reader).await
    }

    /// Opens no snapshot.
    pub async fn list(
        &self,
        live: &Fs,
        after: DirCookie,
        limit: ListLimit,
    ) -> Result<Listing, FsError> {
        let age = if after == DirCookie::default() { FRESH } else { LOOKUP_FRESH };
        let list = self.listed(live, age).await?;
        let mut page = Page::new(limit);
        if after.0 < 1 {
            page.add(Bytes::from_static(b"."), InodeNo::SNAPSHOTS, DirCookie(1));
        }
        if after.0 < DOTS {
            page.add(Bytes::from_static(b".."), InodeNo::ROOT, DirCookie(DOTS));
        }
        for entry in &list.entries {
            let cookie = DirCookie(u64::from(entry.serial) + DOTS);
            let Some(root) = InodeNo::ROOT.in_snapshot(entry.serial).filter(|_| cookie > after)
            else {
                continue;
            };
            page.add(entry.name.clone(), root, cookie);
        }
        Ok(Listing { entries: page.entries, eof: !page.full, dir: attr(&list) })
    }
}

fn attr(list: &SnapshotList) -> Attr {
    let count = list.entries.len();
    Attr {
        file: SnapDir::FILE,
        kind: FileKind::Directory,
        mode: MODE,
        uid: 0,
        gid: 0,
        nlink: u32::try_from(count).unwrap_or(u32::MAX).saturating_add(2),
        size: count as u64,
        allocated: 0,
        rdev: (0, 0),
        atime: list.ctime,
        mtime: list.ctime,
        ctime: list.ctime,
    }
}
