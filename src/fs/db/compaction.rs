//! A compactor that runs only while there is something to compact.
//!
//! SlateDB's embedded compactor polls: at its defaults an idle database makes 3 requests a second.
//! Here a task watches the manifest that the writer has in memory, starts a compactor when L0 has
//! grown ([`settings::COMPACT_L0`]), and stops it when there is nothing left to compact. Compactors
//! fence each other by an epoch of their own, so that a fenced owner's compactor stops by itself.

use super::clock::Clock;
use super::damage::{Damage, Suspicion};
use super::status::Status;
use super::{DbPlace, fs_error, limited, sealing, settings};
use crate::fs::FsError;
use object_store::path::Path;
use slatedb::admin::{Admin, AdminBuilder};
use slatedb::compactor::{Compaction, Compactor};
use slatedb::config::CompactorOptions;
use slatedb::{CompactorBuilder, Db};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Polling interval of a running compaction.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Pause before the next compactor after one failed.
const PAUSE: Duration = Duration::from_secs(10);
/// The same after a damaged table was found, which may be restored meanwhile.
const PAUSE_DAMAGED: Duration = Duration::from_secs(300);
/// Attempts to stop a compactor.
const STOP_TRIES: u32 = 60;

/// Held by the task that runs a compactor for a database: one at a time in this process. Its clock
/// is the writer's.
#[derive(Clone)]
pub(super) struct CompactorLock {
    one: Arc<tokio::sync::Mutex<()>>,
    clock: Arc<Clock>,
}

impl CompactorLock {
    pub(super) fn new(clock: Arc<Clock>) -> Self {
        Self { one: Arc::default(), clock }
    }

    /// Returns an admin handle whose times are never earlier than those of the writer and its
    /// compactors.
    pub(super) fn admin(&self, place: &DbPlace) -> Admin {
        admin_at(place, &self.clock)
    }

    pub(super) async fn lock(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.one.lock().await
    }
}

/// Compacts whenever L0 has grown to `from` tables, until the database closes or `stop`.
pub(super) async fn compact_until_stopped(
    db: Db,
    mut status: watch::Receiver<Status>,
    place: DbPlace,
    lock: CompactorLock,
    from: usize,
    damage: Arc<Damage>,
    stop: CancellationToken,
) {
    // A checkpoint that finds no room waits for a compaction, however short the visit is.
    let many = (2 * from).min(settings::L0_MAX - settings::L0_ROOM + 1);
    let urgent = status.wait_for(|s| s.closed.is_some() || s.l0 >= many);
    tokio::select! {
        _ = urgent => {}
        () = tokio::time::sleep(settings::COMPACT_DELAY) => {}
        () = stop.cancelled() => return,
    }
    loop {
        // The followed status may be older than what the last compaction has left.
        let is_due = |s: &Status| s.closed.is_some() || db.manifest().l0().len() >= from;
        let due = status.wait_for(is_due);
        let open = tokio::select! {
            due = due => due.is_ok_and(|s| s.closed.is_none()),
            () = stop.cancelled() => false,
        };
        if !open {
            return;
        }
        let pause = match make_room(&db, &place, &lock, &stop).await {
            Ok(()) => {
                damage.tell(&place, None);
                continue;
            }
            Err(error @ FsError::Corrupt(_)) => {
                damage.tell(&place, Some(&error));
                PAUSE_DAMAGED
            }
            Err(error) => {
                tracing::info!(
                    %error,
                    incarnation = %place.incarnation,
                    "compaction stopped early; it starts again by itself"
                );
                PAUSE
            }
        };
        let _ = tokio::time::timeout(pause, stop.cancelled()).await;
    }
}

pub(super) fn admin(place: &DbPlace) -> Admin {
    admin_builder(place).build()
}

/// As [`admin`], by the time of the database.
pub(super) fn admin_at(place: &DbPlace, clock: &Arc<Clock>) -> Admin {
    admin_builder(place).with_system_clock(clock.clone()).build()
}

fn admin_builder(place: &DbPlace) -> AdminBuilder<Path> {
    let builder = AdminBuilder::new(place.path(), place.store());
    match &place.sealer {
        Some(sealer) => builder.with_block_transformer(sealing::transformer(sealer.clone())),
        None => builder,
    }
}

async fn make_room(
    db: &Db,
    place: &DbPlace,
    lock: &CompactorLock,
    stop: &CancellationToken,
) -> Result<(), FsError> {
    let _locked = lock.lock().await;
    let done =
        Running::start(place, settings::compactor(), lock).until(until_done(db, place), stop).await;
    // The compactor's last change is not in the writer's memory yet, and a collection would delete
    // the tables that it replaced.
    let seen = limited("reading the manifest", settings::READ_LIMIT, db.refresh_manifest()).await;
    done.and(seen)
}

/// A compactor of this process.
pub(super) struct Running {
    compactor: Arc<Compactor>,
    task: JoinHandle<Result<(), slatedb::Error>>,
}

impl Running {
    pub(super) fn start(place: &DbPlace, options: CompactorOptions, lock: &CompactorLock) -> Self {
        let builder = CompactorBuilder::new(place.path(), place.store()).with_options(options);
        let mut builder = builder.with_system_clock(lock.clock.clone());
        if let Some(sealer) = &place.sealer {
            builder = builder.with_block_transformer(sealing::transformer(sealer.clone()));
        }
        let compactor = Arc::new(builder.build());
        let task = tokio::spawn({
            let compactor = compactor.clone();
            async move { compactor.run().await }
        });
        Self { compactor, task }
    }

    /// Runs until `done` or `stop`; when this returns, none of its tasks is running.
    pub(super) async fn until<T: Default>(
        mut self,
        done: impl Future<Output = Result<T, FsError>>,
        stop: &CancellationToken,
    ) -> Result<T, FsError> {
        let done = tokio::select! {
            ended = &mut self.task => return Err(match ended {
                Ok(Err(error)) => fs_error("compacting", &error),
                Ok(Ok(())) => FsError::Internal("the compactor ended by itself".to_owned()),
                Err(error) => FsError::Internal(format!("compacting: {error}")),
            }),
            done = done => done,
            () = stop.cancelled() => Ok(T::default()),
        };
        let stopped = self.end().await;
        done.and_then(|done| stopped.map(|()| done))
    }

    /// SlateDB's `stop` finds nothing to stop while its `run` is still starting, and that compactor
    /// would then poll for ever: so the call is retried until `run` has ended.
    async fn end(mut self) -> Result<(), FsError> {
        for _ in 0..STOP_TRIES {
            limited("stopping the compactor", settings::CHANGE_LIMIT, self.compactor.stop())
                .await?;
            if tokio::time::timeout(POLL_INTERVAL, &mut self.task).await.is_ok() {
                return Ok(());
            }
        }
        self.task.abort();
        Err(FsError::Unavailable("stopping the compactor: it still runs".to_owned()))
    }
}

/// Polls until there is nothing left to compact.
async fn until_done(db: &Db, place: &DbPlace) -> Result<(), FsError> {
    let (admin, mut suspicion) = (admin(place), Suspicion::new());
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        suspicion.look(place).await?;
        limited("reading the manifest", settings::READ_LIMIT, db.refresh_manifest()).await?;
        if db.manifest().l0().len() < settings::COMPACT_L0 && !busy(&admin).await? {
            return Ok(());
        }
    }
}

async fn busy(admin: &Admin) -> Result<bool, FsError> {
    let compactions =
        limited("reading the compactions", settings::READ_LIMIT, admin.read_compactions(None))
            .await?;
    Ok(compactions.is_some_and(|c| c.recent_compactions().any(Compaction::active)))
}

/// Waits until L0 has room for a checkpoint's tables.
pub(super) async fn wait_for_room(db: &Db, damage: &Damage) -> Result<(), FsError> {
    let room = |tables: usize| tables + settings::L0_ROOM <= settings::L0_MAX;
    let mut status = db.subscribe();
    let wait = status.wait_for(|s| s.close_reason.is_some() || room(s.current_manifest.l0().len()));
    match tokio::time::timeout(settings::CHANGE_LIMIT, wait).await {
        Ok(_) => Ok(()),
        Err(_) => Err(damage.found().unwrap_or(FsError::Busy(
            "compaction has not made room for a checkpoint yet: try again",
        ))),
    }
}
