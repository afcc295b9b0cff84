//! A database open for writing.

use super::clock::Clock;
use super::damage::Damage;
use super::detach::{self, Detached};
use super::settings::TableReaders;
use super::status::{self, Status};
use super::unflushed::Account;
use super::{
    CheckpointId, DbPlace, Ops, collection, compaction, fs_error, limited, named, sealing, settings,
};
use crate::fs::FsError;
use crate::types::{Epoch, Incarnation};
use bytes::Bytes;
use futures::FutureExt;
use slatedb::config::{CheckpointOptions, CheckpointScope, CloseOptions, FlushOptions, FlushType};
use slatedb::{CloseReason, Db, DbSnapshot, VersionedManifest, WriteBatch};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A database open for writing. Only the committer holds one (R4).
pub struct Database {
    pub(super) db: Db,
    place: DbPlace,
    epoch: Epoch,
    clock: Arc<Clock>,
    memory: Arc<Account>,
    /// WAL flushes that no MemTable flush covers that has begun, counted from those that the
    /// opening replayed.
    flushes: AtomicU32,
    /// Held by the MemTable flush in progress.
    rolling: Arc<tokio::sync::Mutex<()>>,
    maintenance: TaskTracker,
    lock: compaction::CompactorLock,
    damage: Arc<Damage>,
    status: watch::Receiver<Status>,
    stop: CancellationToken,
}

impl Drop for Database {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Database {
    /// Opens, creating it if absent; fences every earlier opener. `expected`: fail unless the
    /// writer epoch is still this one (R16).
    pub async fn open(place: &DbPlace, expected: Option<Epoch>) -> Result<Self, FsError> {
        Self::open_beside(place, expected, None).await
    }

    /// As [`Self::open`]. `wal_cache`: the node's file of WAL objects that it has put, which an
    /// opening after a kill need not read from the store.
    pub async fn open_beside(
        place: &DbPlace,
        expected: Option<Epoch>,
        wal_cache: Option<PathBuf>,
    ) -> Result<Self, FsError> {
        let database = Self::open_with(place, expected, wal_cache, settings::COMPACT_L0).await?;
        let (db, clock, stop) =
            (database.db.clone(), database.clock.clone(), database.stop.clone());
        let place = database.place.clone();
        database.maintenance.spawn(collection::collect_until_stopped(db, place, clock, stop));
        Ok(database)
    }

    /// As [`Self::open`], for one operation on a database that nobody has open: its maintenance is
    /// left to the next owner, so that the operation takes the same few requests whatever the size.
    /// Only an L0 without room for a checkpoint is compacted.
    pub async fn visit(place: &DbPlace, expected: Option<Epoch>) -> Result<Self, FsError> {
        let compact_l0 = settings::L0_MAX - settings::L0_ROOM + 1;
        Self::open_with(place, expected, None, compact_l0).await
    }

    async fn open_with(
        place: &DbPlace,
        expected: Option<Epoch>,
        wal_cache: Option<PathBuf>,
        compact_l0: usize,
    ) -> Result<Self, FsError> {
        let clock = Arc::new(Clock::default());
        let (mut db, mut replayed) = build(place, expected, wal_cache.clone(), &clock).await?;
        if clock.go_on_from(last_time(&db.manifest())) {
            // The first opening may have named a table by a time that is already refused.
            let opened = Epoch(db.manifest().writer_epoch());
            drop(db);
            (db, replayed) = build(place, Some(opened), wal_cache, &clock).await?;
        }
        let (epoch, place) = (Epoch(db.manifest().writer_epoch()), place.reading_always());
        let (maintenance, stop) = (TaskTracker::new(), CancellationToken::new());
        let lock = compaction::CompactorLock::new(clock.clone());
        let damage = Arc::new(Damage::none());
        let status = status::follow(&db);
        maintenance.spawn(compaction::compact_until_stopped(
            db.clone(),
            status.clone(),
            place.clone(),
            lock.clone(),
            compact_l0,
            damage.clone(),
            stop.clone(),
        ));
        let memory = place.cache.unflushed.account({
            let db = db.clone();
            move || flush_table(db.clone()).boxed()
        });
        maintenance.spawn(free_stored(status.clone(), memory.clone(), stop.clone()));
        let flushes = AtomicU32::new(u32::try_from(replayed).unwrap_or(u32::MAX / 2));
        Ok(Self {
            db,
            place,
            epoch,
            clock,
            memory,
            flushes,
            rolling: Arc::default(),
            maintenance,
            lock,
            damage,
            status,
            stop,
        })
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The incarnation that the database belongs to.
    pub fn incarnation(&self) -> Incarnation {
        self.place.incarnation
    }

    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, FsError> {
        limited(
            "reading a row",
            settings::READ_LIMIT,
            self.db.get_with_options(key, &settings::get()),
        )
        .await
    }

    /// As [`Self::get`], for a row that is part of every write. To be called once, before the first
    /// write of an opening: the clock of its writes continues from that of the last one.
    pub async fn get_newest(&self, key: &[u8]) -> Result<Option<Bytes>, FsError> {
        let options = settings::get();
        let row = limited(
            "reading a row",
            settings::READ_LIMIT,
            self.db.get_key_value_with_options(key, &options),
        )
        .await?;
        let written = row.as_ref().map_or(i64::MIN, |row| row.create_ts);
        self.clock.go_on_from(written);
        Ok(row.map(|row| row.value))
    }

    /// Rows of `from..to` in order, at most `limit`.
    pub async fn scan(
        &self,
        from: Bytes,
        to: Bytes,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, FsError> {
        if from >= to || limit == 0 {
            return Ok(Vec::new());
        }
        limited("scanning rows", settings::READ_LIMIT, async {
            collect(self.db.scan_with_options(from..to, &settings::scan()).await?, limit).await
        })
        .await
    }

    /// Returns a view of all rows as of now, whatever is written later. Not for long use: a view
    /// keeps compacted tables alive for 15 minutes only.
    pub fn view(&self) -> Result<View, FsError> {
        self.db
            .snapshot()
            .map(|snapshot| View { snapshot })
            .map_err(|error| fs_error("taking a view", &error))
    }

    /// The database's share of the memory that all databases have together.
    pub fn memory(&self) -> &Account {
        &self.memory
    }

    /// Writes to memory; the order of calls is the order of effects. Waits while too much is
    /// unflushed, without a time limit: an abandoned write could still take effect.
    pub async fn write(&self, ops: Ops) -> Result<(), FsError> {
        self.write_counted(ops, 0).await
    }

    /// As [`Self::write`], for changes whose bytes were counted already ([`Account::take`]).
    pub async fn write_counted(&self, ops: Ops, counted: u64) -> Result<(), FsError> {
        if ops.is_empty() {
            return Ok(());
        }
        let row = |(key, value): &(Bytes, Option<Bytes>)| {
            key.len() + value.as_ref().map_or(0, Bytes::len)
        };
        let bytes =
            ops.iter().map(row).sum::<usize>() as u64 + ops.len() as u64 * settings::ROW_BYTES;
        self.memory.take(bytes.saturating_sub(counted));
        let mut batch = WriteBatch::new();
        for (key, value) in ops {
            match value {
                Some(value) => batch.put_bytes(key, value),
                None => batch.delete(key),
            }
        }
        let written =
            self.db.write(batch).await.map_err(|error| fs_error("writing rows", &error))?;
        self.memory.give_back(counted.saturating_sub(bytes));
        self.memory.in_table(written.seqnum(), bytes);
        Ok(())
    }

    /// Flushes everything written before the call to the object store: one PUT when there is
    /// anything to write, else none. Waits through an outage of the store; its callers have time
    /// limits of their own.
    pub async fn flush(&self) -> Result<(), FsError> {
        self.db.flush().await.map_err(|error| fs_error("flushing", &error))?;
        match self.flushes.fetch_add(1, Ordering::Relaxed) + 1 {
            settings::ROLL_FLUSHES.. => self.roll().await,
            settings::ROLL_AHEAD.. => drop(self.rolling_lock().await),
            _ => {}
        }
        Ok(())
    }

    fn has_l0_room(&self) -> bool {
        self.db.manifest().l0().len() + settings::L0_ROOM <= settings::L0_MAX
    }

    /// As [`Self::roll`], and waits for it: the next opening has nothing to replay of what was
    /// flushed. Where L0 is full it would wait for a compaction, and does nothing.
    pub async fn rolled(&self) -> Result<(), FsError> {
        if !self.has_l0_room() {
            return Ok(());
        }
        let options = FlushOptions { flush_type: FlushType::MemTable };
        self.flushes.store(0, Ordering::Relaxed);
        limited(
            "flushing the MemTable",
            settings::CHANGE_LIMIT,
            self.db.flush_with_options(options),
        )
        .await
    }

    /// Waits until no MemTable flush is in progress. `None`: L0 is full, so none would end before a
    /// compaction has made room; or it takes too long.
    async fn rolling_lock(&self) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        if !self.has_l0_room() {
            return None;
        }
        tokio::time::timeout(settings::ROLL_LIMIT, self.rolling.clone().lock_owned()).await.ok()
    }

    /// Starts a MemTable flush once the previous one has ended, which bounds the next opening's
    /// replay. No caller waits for it; a failure shows at the next write.
    async fn roll(&self) {
        let Some(lock) = self.rolling_lock().await else { return };
        self.flushes.store(0, Ordering::Relaxed);
        let db = self.db.clone();
        tokio::spawn(async move {
            let _locked = lock;
            flush_table(db).await;
        });
    }

    /// A named checkpoint of everything written so far; the existing one when there is one of that
    /// name (R14).
    pub async fn checkpoint(&self, name: &str) -> Result<CheckpointId, FsError> {
        // Others delete checkpoints: the manifest in this process's memory may be stale.
        limited("reading the manifest", settings::READ_LIMIT, self.db.refresh_manifest()).await?;
        if let Some(existing) = named(&self.db.manifest(), name) {
            return Ok(existing);
        }
        compaction::wait_for_room(&self.db, &self.damage).await?;
        // The checkpoint flushes the MemTable.
        self.flushes.store(0, Ordering::Relaxed);
        let options =
            CheckpointOptions { name: Some(name.to_owned()), ..CheckpointOptions::default() };
        let created = self.db.create_checkpoint(CheckpointScope::All, &options);
        limited("taking a checkpoint", settings::CHANGE_LIMIT, created)
            .await
            .map(|created| created.id.into())
    }

    /// Detaches a clone (R13). While the volume is mounted the first call rewrites, and a call some
    /// minutes later finds it detached. May be called again at any time.
    pub async fn detach(&self) -> Result<Detached, FsError> {
        self.detach_for(TableReaders::Some).await
    }

    pub(super) async fn detach_for(&self, readers: TableReaders) -> Result<Detached, FsError> {
        detach::detach(&self.db, &self.place, readers, &self.lock, &self.stop).await
    }

    /// The damage that keeps the database from being compacted.
    pub fn damage(&self) -> Option<FsError> {
        self.damage.found()
    }

    /// Returns the reason why nothing can be written: L0 is full, and a damaged table keeps it so.
    pub fn blocked(&self) -> Option<FsError> {
        self.damage().filter(|_| self.db.manifest().l0().len() >= settings::L0_MAX)
    }

    #[cfg(test)]
    pub(super) async fn collect(&self, ages: collection::Ages) -> Result<(), FsError> {
        collection::collect_open(&self.db, &self.place, &self.clock, ages).await
    }

    /// Asks the store whether another opener has fenced this one; normally only the next write
    /// finds out.
    pub async fn verify_owner(&self) -> Result<(), FsError> {
        limited("reading the manifest", settings::READ_LIMIT, self.db.refresh_manifest()).await
    }

    /// Resolves as soon as the database is fenced or has failed: from then on nothing may be
    /// acknowledged.
    pub async fn closed(&self) -> FsError {
        let mut status = self.status.clone();
        let reason = match status.wait_for(|status| status.closed.is_some()).await {
            Ok(status) => status.closed,
            Err(_) => None,
        };
        match reason {
            Some(CloseReason::Fenced) => FsError::Fenced,
            // SlateDB calls every other failure a panic; the failure itself comes with the next
            // call.
            Some(CloseReason::Panic) => match self.db.snapshot() {
                Err(error) => fs_error("the database stopped", &error),
                Ok(_) => FsError::Internal("the database stopped".into()),
            },
            _ => FsError::Unavailable("the database is closed".into()),
        }
    }

    /// Flushes to L0, so that the next opening replays nothing, or to the WAL where L0 is full;
    /// then closes. May be retried.
    pub async fn close(&self) -> Result<(), FsError> {
        self.close_with(
            if self.has_l0_room() { FlushType::MemTable } else { FlushType::Wal },
            settings::CHANGE_LIMIT,
        )
        .await
    }

    /// Closes a flushed database as fast as possible: the next opening replays what
    /// [`Self::rolled`] has left.
    pub async fn hand_over(&self) -> Result<(), FsError> {
        self.close_with(FlushType::Wal, settings::LEAVE_LIMIT).await
    }

    /// `maintenance_limit`: time limit for compaction and collection to stop.
    async fn close_with(
        &self,
        flush_type: FlushType,
        maintenance_limit: Duration,
    ) -> Result<(), FsError> {
        // SlateDB counts itself closed before it flushes, and does not flush again: the WAL has
        // everything, or its caller has not flushed.
        if let Some(CloseReason::Clean) = self.db.subscribe().borrow().close_reason {
            return Ok(());
        }
        self.stop.cancel();
        self.maintenance.close();
        if tokio::time::timeout(maintenance_limit, self.maintenance.wait()).await.is_err() {
            tracing::debug!(
                "compaction or collection did not stop in time; the next owner's compactor fences \
                 this one"
            );
        }
        let options = CloseOptions::default().with_flush_type(Some(flush_type));
        limited("closing the database", settings::CHANGE_LIMIT, self.db.close_with_options(options))
            .await
    }
}

async fn flush_table(db: Db) {
    let options = FlushOptions { flush_type: FlushType::MemTable };
    let flushed = tokio::time::timeout(settings::OPEN_LIMIT, db.flush_with_options(options)).await;
    if !matches!(flushed, Ok(Ok(()))) {
        tracing::debug!("a MemTable flush did not finish; the next one covers it");
    }
}

/// Frees the memory of rows as the tables that hold them are stored.
async fn free_stored(
    mut status: watch::Receiver<Status>,
    memory: Arc<Account>,
    stop: CancellationToken,
) {
    loop {
        let last = status.borrow_and_update().stored;
        memory.stored(last);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = status.changed() => if changed.is_err() { return },
        }
    }
}

/// Builds the database. Returns it and the number of WAL objects that it replayed.
async fn build(
    place: &DbPlace,
    expected: Option<Epoch>,
    wal_cache: Option<PathBuf>,
    clock: &Arc<Clock>,
) -> Result<(Db, usize), FsError> {
    let store = place.opening_store();
    let store = Arc::new(match wal_cache {
        Some(file) => store.with_wal_cache(file),
        None => store,
    });
    let mut builder = Db::builder(place.path(), store.clone())
        .with_settings(settings::writer())
        .with_system_clock(clock.clone())
        .with_db_cache(place.cache.cache.clone(), place.cache_id());
    if let Some(Epoch(expected)) = expected {
        builder = builder.with_expected_epoch(expected);
    }
    if let Some(sealer) = &place.sealer {
        builder = builder.with_block_transformer(sealing::transformer(sealer.clone()));
    }
    let db = limited("opening the database", settings::OPEN_LIMIT, builder.build()).await?;
    Ok((db, store.opened()))
}

/// The latest time that a manifest knows of, in milliseconds since 1970: no write and no new table
/// may be of an earlier one.
pub(super) fn last_time(manifest: &VersionedManifest) -> i64 {
    let tables = manifest.l0().iter().flat_map(|view| [view.id, view.sst.id.value()]);
    let compacted = [manifest.last_compacted_l0_sst_view_id(), manifest.last_compacted_l0_sst_id()];
    let millis = tables
        .chain(compacted.into_iter().flatten())
        .map(|id| i64::try_from(id.timestamp_ms()).unwrap_or(0))
        .max();
    manifest.last_l0_clock_tick().max(millis.unwrap_or(i64::MIN))
}

/// All rows of a database at one moment.
pub struct View {
    snapshot: Arc<DbSnapshot>,
}

impl View {
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, FsError> {
        limited(
            "reading a row",
            settings::READ_LIMIT,
            self.snapshot.get_with_options(key, &settings::get()),
        )
        .await
    }

    /// Rows of `from..to` in order, at most `limit`.
    pub async fn scan(
        &self,
        from: Bytes,
        to: Bytes,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, FsError> {
        if from >= to || limit == 0 {
            return Ok(Vec::new());
        }
        limited("scanning rows", settings::READ_LIMIT, async {
            collect(self.snapshot.scan_with_options(from..to, &settings::scan()).await?, limit)
                .await
        })
        .await
    }
}

pub(super) async fn collect(
    mut rows: slatedb::DbIterator,
    limit: usize,
) -> Result<Vec<(Bytes, Bytes)>, slatedb::Error> {
    let mut found = Vec::new();
    while found.len() < limit {
        match rows.next().await? {
            Some(row) => found.push((row.key, row.value)),
            None => break,
        }
    }
    Ok(found)
}
