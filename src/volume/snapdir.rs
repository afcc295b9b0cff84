//! The directory `/.snapshots` of a live file system: its entries, and the snapshot that a fileid
//! belongs to.
//!
//! Entries come in the order of serials, which are never reused: a position stays valid whatever is
//! created and deleted. Listing it opens no snapshot, so entries carry no attributes of their own;
//! looking one up does.
//!
//! Any process that makes or deletes a snapshot changes it, in the bucket. Its ctime advances when
//! this process notices that (R8).

use super::views::{Keeper, View, Views};
use crate::catalog::{Catalog, State};
use crate::fs::api::{Attr, DirCookie, FileKind, FileRef, ListLimit, Listing};
use crate::fs::{Fs, FsError, Page};
use crate::types::{Class, Classify, Incarnation, InodeNo, SnapshotId, Timestamp};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A listing is trusted for this long by callers that list the directory …
const FRESH: Duration = Duration::from_secs(1);
/// … and for this long by lookups of a name that was there: a view notices by itself when its
/// snapshot is gone.
const KNOWN: Duration = Duration::from_secs(5);
/// Mode of the directory itself: everybody may read it.
const MODE: u32 = 0o555;
/// Positions of `.` and `..`; that of an entry is its serial and this.
const DOTS: u64 = 2;

/// A snapshot's entry in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    serial: u32,
    name: Bytes,
    id: SnapshotId,
}

struct Known {
    shown: Vec<Shown>,
    ctime: Timestamp,
    at: Instant,
}

/// The snapshots of one dataset.
pub(super) struct SnapDir {
    pool: Catalog,
    dataset: Incarnation,
    views: Views,
    known: Mutex<Option<Arc<Known>>>,
    /// Held by the caller that lists the catalog.
    asking: tokio::sync::Mutex<()>,
}

impl SnapDir {
    pub fn new(pool: Catalog, dataset: Incarnation, views: Views) -> Self {
        Self {
            pool,
            dataset,
            views,
            known: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    /// The handle of the directory.
    pub const FILE: FileRef = FileRef { ino: InodeNo::SNAPSHOTS, generation: 0 };

    /// Returns the listing if it was made after `since`.
    fn listed_after(&self, since: Option<Instant>) -> Option<Arc<Known>> {
        let known = self.known.lock();
        known.as_ref().filter(|known| since.is_none_or(|since| known.at >= since)).cloned()
    }

    /// Returns the snapshots from a listing at most `age` old. `live`: its clock gives the
    /// directory's ctime.
    async fn listed(&self, live: &Fs, age: Duration) -> Result<Arc<Known>, FsError> {
        // A listing made after this moment is fresh enough for every waiter.
        let since = Instant::now().checked_sub(age);
        if let Some(known) = since.and_then(|since| self.listed_after(Some(since))) {
            return Ok(known);
        }
        let _asking = self.asking.lock().await;
        if let Some(known) = since.and_then(|since| self.listed_after(Some(since))) {
            return Ok(known);
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
        let mut shown: Vec<Shown> = records
            .map(|s| Shown {
                serial: s.serial,
                name: Bytes::copy_from_slice(s.name.as_str().as_bytes()),
                id: s.id(),
            })
            .collect();
        shown.sort_unstable_by_key(|shown| shown.serial);
        let ctime = match self.listed_after(None) {
            Some(before) if before.shown == shown => before.ctime,
            Some(before) => live.ctime_after(before.ctime),
            None => live.ctime_after(Timestamp::from_nanos(0)),
        };
        let known = Arc::new(Known { shown, ctime, at });
        *self.known.lock() = Some(known.clone());
        Ok(known)
    }

    pub async fn attr(&self, live: &Fs) -> Result<Attr, FsError> {
        Ok(attr(&*self.listed(live, FRESH).await?))
    }

    /// The serial of a name, and the snapshot's view.
    pub async fn lookup(&self, live: &Fs, name: &[u8]) -> Result<(u32, Arc<View>, Attr), FsError> {
        // An unknown name may be new: the creator of a snapshot looks it up at once.
        for age in [KNOWN, Duration::ZERO] {
            let known = self.listed(live, age).await?;
            if let Some(shown) = known.shown.iter().find(|shown| shown.name == name) {
                match self.views.get(&self.pool, shown.id, Keeper::Reader).await {
                    // Deleted since it was listed.
                    Err(FsError::Stale) => {}
                    view => return Ok((shown.serial, view?, attr(&known))),
                }
            }
        }
        Err(FsError::NotFound)
    }

    /// The view of the snapshot that a handle is in.
    ///
    /// # Errors
    /// [`FsError::Stale`] when it is deleted.
    pub async fn view(&self, live: &Fs, serial: u32) -> Result<Arc<View>, FsError> {
        let id_of = |known: &Known| {
            known.shown.iter().find(|shown| shown.serial == serial).map(|shown| shown.id)
        };
        // Serials are never reused: an old listing is still right, and the view checks that the
        // snapshot still exists.
        let mut id = self.listed_after(None).and_then(|known| id_of(&known));
        if id.is_none() {
            id = id_of(&*self.listed(live, FRESH).await?);
        }
        self.views.get(&self.pool, id.ok_or(FsError::Stale)?, Keeper::Reader).await
    }

    /// Opens no snapshot.
    pub async fn list(
        &self,
        live: &Fs,
        after: DirCookie,
        limit: ListLimit,
    ) -> Result<Listing, FsError> {
        let age = if after == DirCookie::default() { FRESH } else { KNOWN };
        let known = self.listed(live, age).await?;
        let mut page = Page::new(limit);
        if after.0 < 1 {
            page.add(Bytes::from_static(b"."), InodeNo::SNAPSHOTS, DirCookie(1));
        }
        if after.0 < DOTS {
            page.add(Bytes::from_static(b".."), InodeNo::ROOT, DirCookie(DOTS));
        }
        for shown in &known.shown {
            let cookie = DirCookie(u64::from(shown.serial) + DOTS);
            let Some(root) = InodeNo::ROOT.in_snapshot(shown.serial).filter(|_| cookie > after)
            else {
                continue;
            };
            page.add(shown.name.clone(), root, cookie);
        }
        Ok(Listing { entries: page.entries, eof: !page.full, dir: attr(&known) })
    }
}

fn attr(known: &Known) -> Attr {
    let count = known.shown.len();
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
        atime: known.ctime,
        mtime: known.ctime,
        ctime: known.ctime,
    }
}
