//! Detaches a clone from its ancestors (R13).
//!
//! ```text
//! compact every table into tables of its own ─▶ no manifest reads an ancestor's ─▶ drop the pins
//! ```
//! A clone's database reads its ancestors' tables, which its pins (unnamed checkpoints in their
//! manifests) keep. Every step may be retried, and a crash between any two leaves pins, never a
//! table that is read and not pinned: SlateDB drops a pin only once no manifest that a live
//! checkpoint names reads that ancestor's tables.
//!
//! The process that has the database open for writing does it: the tables that a writer reads are
//! those of the manifest in its memory, which only its own process can refresh before they are
//! deleted.

use super::compaction::{CompactorLock, POLL_INTERVAL, Running};
use super::damage::Suspicion;
use super::settings::TableReaders;
use super::{DbPlace, collection, limited, settings};
use crate::fs::FsError;
use slatedb::compactor::{CompactionSpec, CompactionStatus, SourceId};
use slatedb::{Db, VersionedManifest};
use tokio_util::sync::CancellationToken;

/// Other compactions may take tables of the plan before it is accepted: a new one is made this many
/// times.
const PLANS: u32 = 8;

/// The state of a clone's database with regard to its ancestors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Detached {
    /// The database reads no ancestor.
    Whole,
    /// All is rewritten, but older states still read the ancestors' tables: the clone's own earlier
    /// snapshots, or tables that readers may hold for some minutes.
    Held,
}

pub(super) async fn detach(
    db: &Db,
    place: &DbPlace,
    readers: TableReaders,
    lock: &CompactorLock,
    stop: &CancellationToken,
) -> Result<Detached, FsError> {
    let failpoints = place.bucket.failpoints();
    let newest = async || {
        limited("reading the manifest", settings::READ_LIMIT, db.refresh_manifest()).await?;
        Ok::<_, FsError>(db.manifest())
    };
    if newest().await?.external_dbs().is_empty() {
        return Ok(Detached::Whole);
    }
    let inherits = |manifest: &VersionedManifest| {
        manifest.external_dbs().iter().any(|db| !db.sst_ids.is_empty())
    };
    if inherits(&newest().await?) {
        let _locked = lock.lock().await;
        for _ in 0..PLANS {
            Running::start(place, settings::rewriter(readers), lock)
                .until(rewrite(db, place, lock), stop)
                .await?;
            if stop.is_cancelled() {
                return Err(FsError::Unavailable(
                    "detaching: the database is being closed; retry".to_owned(),
                ));
            }
            if !inherits(&newest().await?) {
                break;
            }
        }
        super::step(failpoints, "fs.db.detach.rewritten").await?;
    }
    if inherits(&newest().await?) {
        return Err(FsError::Busy("detaching: other compactions came first each time; retry"));
    }
    if readers == TableReaders::None {
        tokio::time::sleep(settings::REWRITER_HOLD * 2).await;
    }
    collection::drop_pins(&lock.admin(place), place).await?;
    super::step(failpoints, "fs.db.detach.dropped").await?;
    Ok(if newest().await?.external_dbs().is_empty() { Detached::Whole } else { Detached::Held })
}

/// Every table and run, as one run. Tables that are written meanwhile are the clone's own.
fn whole(manifest: &VersionedManifest) -> CompactionSpec {
    let tables = manifest.l0().iter().map(|view| SourceId::SstView(view.id));
    let runs = manifest.compacted().iter().map(|run| SourceId::SortedRun(run.id));
    let lowest = manifest.compacted().iter().map(|run| run.id).min().unwrap_or(0);
    CompactionSpec::new(tables.chain(runs).collect(), lowest)
}

/// Submits the plan and waits until it has succeeded or failed.
async fn rewrite(db: &Db, place: &DbPlace, lock: &CompactorLock) -> Result<(), FsError> {
    let admin = lock.admin(place);
    // The record of compactions is made by a compactor's first start.
    while limited("reading the compactions", settings::READ_LIMIT, admin.read_compactions(None))
        .await?
        .is_none()
    {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    limited("reading the manifest", settings::READ_LIMIT, db.refresh_manifest()).await?;
    let submitted = admin.submit_compaction(whole(&db.manifest()));
    let id = limited("submitting a compaction", settings::CHANGE_LIMIT, submitted).await?.id();
    let mut suspicion = Suspicion::new();
    loop {
        suspicion.look(place).await?;
        let found =
            limited("reading a compaction", settings::READ_LIMIT, admin.read_compaction(id, None))
                .await?;
        // A compaction that is no longer in the record has ended.
        if found.is_none_or(|found| {
            matches!(found.status(), CompactionStatus::Completed | CompactionStatus::Failed)
        }) {
            return Ok(());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
