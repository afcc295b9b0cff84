//! A compactor that runs only while there is something to compact.
//!
//! SlateDB's embedded compactor polls: at its defaults an idle database makes 3 requests a second. Here a task watches the manifest that
//! the writer has in memory, starts a compactor when L0 has grown to [`settings::COMPACT_L0`] tables, and stops it when the compactor has
//! nothing left. Compactors fence each other by an epoch of their own, so that a fenced owner's compactor stops by itself.

use super::{DbPlace, fs_error, limited, sealing, settings};
use crate::fs::FsError;
use slatedb::admin::{Admin, AdminBuilder};
use slatedb::{CompactorBuilder, Db};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often a running compaction is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// After a compactor failed, the next one starts no sooner.
const PAUSE: Duration = Duration::from_secs(10);

/// Runs until the database closes or `stop`.
pub(super) async fn keep(db: Db, place: DbPlace, stop: CancellationToken) {
    let mut status = db.subscribe();
    loop {
        let due = status.wait_for(|s| s.close_reason.is_some() || s.current_manifest.l0().len() >= settings::COMPACT_L0);
        let open = tokio::select! {
            due = due => due.is_ok_and(|s| s.close_reason.is_none()),
            () = stop.cancelled() => false,
        };
        if !open {
            return;
        }
        if let Err(error) = run(&db, &place, &stop).await {
            tracing::info!(%error, incarnation = %place.incarnation, "compaction stopped early; it starts again by itself");
            let _ = tokio::time::timeout(PAUSE, stop.cancelled()).await;
        }
    }
}

pub(super) fn admin(place: &DbPlace) -> Admin {
    let builder = AdminBuilder::new(place.path(), place.store());
    match &place.sealer {
        Some(sealer) => builder.with_block_transformer(sealing::transformer(sealer.clone())).build(),
        None => builder.build(),
    }
}

async fn run(db: &Db, place: &DbPlace, stop: &CancellationToken) -> Result<(), FsError> {
    let mut builder = CompactorBuilder::new(place.path(), place.store()).with_options(settings::compactor());
    if let Some(sealer) = &place.sealer {
        builder = builder.with_block_transformer(sealing::transformer(sealer.clone()));
    }
    let compactor = Arc::new(builder.build());
    let mut running = tokio::spawn({
        let compactor = compactor.clone();
        async move { compactor.run().await }
    });
    let done = tokio::select! {
        ended = &mut running => return match ended {
            Ok(ended) => ended.map_err(|error| fs_error("compacting", &error)),
            Err(error) => Err(FsError::Internal(format!("compacting: {error}"))),
        },
        done = until_done(db, place) => done,
        () = stop.cancelled() => Ok(()),
    };
    let stopped = limited("stopping the compactor", settings::CHANGE_LIMIT, compactor.stop()).await;
    done.and(stopped)
}

/// Looks until there is nothing left to compact.
async fn until_done(db: &Db, place: &DbPlace) -> Result<(), FsError> {
    let admin = admin(place);
    loop {
        tokio::time::sleep(LOOK).await;
        limited("reading the manifest", settings::READ_LIMIT, db.refresh_manifest()).await?;
        if db.manifest().l0().len() < settings::COMPACT_L0 && !busy(&admin).await? {
            return Ok(());
        }
    }
}

async fn busy(admin: &Admin) -> Result<bool, FsError> {
    let compactions = limited("reading the compactions", settings::READ_LIMIT, admin.read_compactions(None)).await?;
    Ok(compactions.is_some_and(|c| c.recent_compactions().any(slatedb::compactor::Compaction::active)))
}

/// Waits until L0 can take what a checkpoint puts there.
pub(super) async fn wait_for_room(db: &Db) -> Result<(), FsError> {
    let room = |tables: usize| tables + settings::L0_ROOM <= settings::L0_MAX;
    let mut status = db.subscribe();
    let wait = status.wait_for(|s| s.close_reason.is_some() || room(s.current_manifest.l0().len()));
    match tokio::time::timeout(settings::CHANGE_LIMIT, wait).await {
        Ok(_) => Ok(()),
        Err(_) => Err(FsError::Busy("compaction has not made room for a checkpoint yet: try again")),
    }
}
