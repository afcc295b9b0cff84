//! Removes a database's obsolete objects: WAL objects whose rows are in tables, manifests and
//! compaction records that newer ones replaced, tables that compaction rewrote, pins on ancestors
//! that are no longer read.
//!
//! Everything that a checkpoint names stays: snapshots, clones and pins are checkpoints. WAL fences
//! stay for ever: a writer that was delayed since before it was fenced would find its number free.
//! Every collection of a database uses the same settings, whoever runs it.
//!
//! Tables are named by the time of the clock that they were made by, and that is the database's
//! ([`super::clock`]): a clock that was a year ahead for a while has put it a year ahead for good.
//! Therefore the age of tables, and the time for which a compaction holds the tables it replaced,
//! are measured by the database's clock. The age of everything else comes from the store, and is
//! compared with this machine's clock.
//!
//! An open database is collected by its owner only, which refreshes the manifest in its memory
//! first: the tables that a writer reads are those of that manifest. A closed one is collected
//! under a maintenance claim, and a process that opens it meanwhile begins with the newest
//! manifest. A crash leaves garbage that the next collection finds.

use super::clock::Clock;
use super::compaction::{admin, admin_at};
use super::{DbPlace, limited, settings};
use crate::fs::FsError;
use slatedb::admin::Admin;
use slatedb::config::{
    GarbageCollectorDirectoryOptions, GarbageCollectorOptions, GarbageCollectorScheduleOptions,
};
use slatedb::{Db, DbStatus};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Between collections of a database that is written to …
const INTERVAL: Duration = Duration::from_secs(300);
/// … or longer, because each collection reads the manifests of all checkpoints: this much for each.
const INTERVAL_CHECKPOINT: Duration = Duration::from_secs(5);

/// Minimum ages of garbage. Work in progress is protected by SlateDB's own marks; the age protects
/// readers without a checkpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ages {
    /// Age of WAL objects and tables.
    pub data: Duration,
    /// Age of manifests and compaction records.
    pub records: Duration,
}

impl Ages {
    /// The settings of every collection.
    pub(super) fn of(place: &DbPlace) -> Self {
        let data = Duration::from_secs(300);
        // Without a boundary a process that is stopped between choosing a number and using it may
        // think that it has written a manifest that was removed long ago. In one machine's folder a
        // process is not paused for an hour by itself.
        Self { data, records: if has_boundaries(place) { data } else { Duration::from_secs(3600) } }
    }
}

/// Returns whether the store can replace an object conditionally, which the boundaries of collected
/// numbers need. A folder cannot.
fn has_boundaries(place: &DbPlace) -> bool {
    !["file://", "LocalFileSystem"].iter().any(|folder| place.bucket.url().starts_with(folder))
}

fn nothing() -> GarbageCollectorOptions {
    GarbageCollectorOptions {
        manifest_options: None,
        wal_options: None,
        wal_fence_options: None,
        compacted_options: None,
        compactions_options: None,
        detach_options: None,
        metric_level: None,
        boundary_files_enabled: true,
        object_store_max_retries: Some(settings::RETRIES_OTHERS),
    }
}

async fn run(
    admin: &Admin,
    place: &DbPlace,
    options: GarbageCollectorOptions,
) -> Result<(), FsError> {
    let options =
        GarbageCollectorOptions { boundary_files_enabled: has_boundaries(place), ..options };
    limited("collecting the database", settings::DELETE_LIMIT, admin.run_gc_once(options)).await
}

/// `clock`: the database's.
pub(super) async fn collect(
    place: &DbPlace,
    clock: &Arc<Clock>,
    ages: Ages,
) -> Result<(), FsError> {
    let older = |min_age| {
        Some(GarbageCollectorDirectoryOptions { interval: None, min_age, dry_run: false })
    };
    let by_the_store = GarbageCollectorOptions {
        manifest_options: older(ages.records),
        wal_options: older(ages.data),
        compactions_options: older(ages.records),
        ..nothing()
    };
    run(&admin(place), place, by_the_store).await?;
    let by_the_database = GarbageCollectorOptions {
        compacted_options: older(ages.data),
        detach_options: Some(GarbageCollectorScheduleOptions { interval: None }),
        ..nothing()
    };
    run(&admin_at(place, clock), place, by_the_database).await
}

/// Drops a clone's pins on ancestors whose tables it no longer reads. `admin` has the clock that
/// decides how long compacted tables are held.
pub(super) async fn drop_pins(admin: &Admin, place: &DbPlace) -> Result<(), FsError> {
    let detach_options = Some(GarbageCollectorScheduleOptions { interval: None });
    run(admin, place, GarbageCollectorOptions { detach_options, ..nothing() }).await
}

/// Collects an open database while it is written to, and afterwards while there can be garbage
/// left: an idle one makes no request. Runs until the database closes or `stop`.
pub(super) async fn collect_until_stopped(
    db: Db,
    place: DbPlace,
    clock: Arc<Clock>,
    stop: CancellationToken,
) {
    let mut status = db.subscribe();
    // An opening replays, which alone is no reason to collect.
    let (mut seen, _) = position(&mut status);
    loop {
        let changed = status.wait_for(|s| s.close_reason.is_some() || s.durable_seq != seen);
        let open = tokio::select! {
            changed = changed => changed.is_ok_and(|s| s.close_reason.is_none()),
            () = stop.cancelled() => false,
        };
        if !open {
            return;
        }
        let mut last_change = Instant::now();
        // The tables that the last compaction replaced are kept for readers, and then must reach
        // the minimum age.
        let settled = settings::COMPACTOR_HOLD + Ages::of(&place).records;
        while last_change.elapsed() < settled {
            let checkpoints = u32::try_from(db.manifest().checkpoints().len()).unwrap_or(u32::MAX);
            let interval = INTERVAL.max(INTERVAL_CHECKPOINT.saturating_mul(checkpoints));
            if tokio::time::timeout(interval, stop.cancelled()).await.is_ok() {
                return;
            }
            let (now, closed) = position(&mut status);
            if closed {
                return;
            }
            if now != seen {
                (seen, last_change) = (now, Instant::now());
            }
            if let Err(error) = collect_open(&db, &place, &clock, Ages::of(&place)).await {
                tracing::info!(
                    %error,
                    incarnation = %place.incarnation,
                    "the database was not collected; it is tried again later"
                );
            }
        }
    }
}

/// Returns the durable position of the database, and whether it is closed.
fn position(status: &mut watch::Receiver<DbStatus>) -> (u64, bool) {
    let now = status.borrow_and_update();
    (now.durable_seq, now.close_reason.is_some())
}

pub(super) async fn collect_open(
    db: &Db,
    place: &DbPlace,
    clock: &Arc<Clock>,
    ages: Ages,
) -> Result<(), FsError> {
    limited("reading the manifest", settings::READ_LIMIT, db.refresh_manifest()).await?;
    collect(place, clock, ages).await
}
