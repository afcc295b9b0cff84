//! Every option of the engine. Figures are from measurements on SlateDB 0.18.0 over a store that
//! takes 20 ms a request.

use slatedb::Settings;
use slatedb::config::{
    CompactionWorkerOptions, CompactorOptions, CompressionCodec, DbReaderOptions, ReadOptions,
    ScanOptions,
};
use std::time::Duration;

/// Opening replays the WAL: 2000 WAL objects took 2.3 s, 55 MiB of WAL 12 s of CPU; we keep both
/// far below (see [`ROLL_FLUSHES`]).
pub(super) const OPEN_LIMIT: Duration = Duration::from_secs(120);
pub(super) const READ_LIMIT: Duration = Duration::from_secs(30);
/// Checkpoints, clones and closing wait for L0 room and for uploads.
pub(super) const CHANGE_LIMIT: Duration = Duration::from_secs(60);
/// Time limit for the compaction when a database is handed over: the next owner's compactor fences
/// it.
pub(super) const LEAVE_LIMIT: Duration = Duration::from_secs(1);
/// Deleting removes objects one after another.
pub(super) const DELETE_LIMIT: Duration = Duration::from_secs(600);

/// A MemTable flush begins after this many WAL flushes, …
pub(super) const ROLL_FLUSHES: u32 = 24;
/// … and the flush after this many more waits for it: an opening replays at most 32 WAL objects,
/// each of which it may have to request from the store.
pub(super) const ROLL_AHEAD: u32 = 8;
/// Longest time that it waits.
pub(super) const ROLL_LIMIT: Duration = Duration::from_secs(10);

/// The compactor starts at this many L0 tables …
pub(super) const COMPACT_L0: usize = 8;
/// … but not while the volume is being opened, unless there are twice as many or no room for a
/// checkpoint: the caller that waits for the opening would wait for the compaction too.
pub(super) const COMPACT_DELAY: Duration = Duration::from_secs(10);
/// … and checkpoints want at least this many free places, because `create_checkpoint(All)` waits
/// for ever on a full L0.
pub(super) const L0_ROOM: usize = 4;
pub(super) const L0_MAX: usize = 32;

/// Time for which tables that a compaction replaced are kept for readers; far longer than any call.
pub(super) const COMPACTOR_HOLD: Duration = Duration::from_secs(900);
/// The same where there are no readers: a database that was opened to be rewritten.
pub(super) const REWRITER_HOLD: Duration = Duration::from_millis(100);

pub(super) const CACHE_SHARDS: usize = 8;

/// Default memory for rows that are in no stored table yet, for all databases of a process.
pub(super) const UNFLUSHED_BYTES: u64 = 28 << 20;
/// Bytes of a row beside its key and value: the MemTable's node, and its places in the queue and
/// the WAL.
pub const ROW_BYTES: u64 = 256;

/// Readers and compactions can simply be started again.
pub(super) const RETRIES_OTHERS: u32 = 8;

/// Polls that would cost an idle volume requests happen once a day: fencing is noticed by the next
/// write, and by the owner's lease; while L0 is full SlateDB polls by itself.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// LZ4: rows compress well, and it costs less than the bytes it saves.
const CODEC: CompressionCodec = CompressionCodec::Lz4;

pub(super) fn writer() -> Settings {
    Settings {
        // The committer flushes: SlateDB's own timer has no group commit and would tick while idle.
        flush_interval: None,
        manifest_poll_interval: NEVER,
        manifest_update_timeout: OPEN_LIMIT,
        // Default 64 MiB: recovery time, and memory of each open volume.
        l0_sst_size_bytes: 8 << 20,
        // Default 1 GiB for each database. Only writes between two checks of the memory that all
        // databases share (see `unflushed`) get near it.
        max_unflushed_bytes: 64 << 20,
        l0_max_ssts: L0_MAX,
        l0_max_ssts_per_key: L0_MAX,
        l0_flush_parallelism: 2,
        compression_codec: Some(CODEC),
        // See `compaction`.
        compactor_options: None,
        // WAL fences must never go, and every collection must use the same settings: only
        // `admin::collect_garbage` collects.
        garbage_collector_options: None,
        // Without end: no outage of the store, however long, must cost a volume its unsynced data
        // (R17). Callers have limits of their own.
        object_store_max_retries: None,
        ..Settings::default()
    }
}

pub(super) fn compactor() -> CompactorOptions {
    CompactorOptions {
        poll_interval: Duration::from_millis(500),
        commit_compacted_interval: Duration::from_millis(250),
        max_concurrent_compactions: 2,
        checkpoint_lifetime: COMPACTOR_HOLD,
        // A moved table would still be the ancestor's: a clone could never be detached (R13).
        enable_trivial_move: false,
        object_store_max_retries: Some(RETRIES_OTHERS),
        worker: Some(CompactionWorkerOptions {
            max_concurrent_compactions: 2,
            compactions_poll_interval: Duration::from_millis(250),
            max_sst_size: 64 << 20,
            max_fetch_tasks: 2,
            max_subcompactions: 1,
            compression_codec: Some(CODEC),
            object_store_max_retries: Some(RETRIES_OTHERS),
            ..CompactionWorkerOptions::default()
        }),
        ..CompactorOptions::default()
    }
}

/// The readers for whom the replaced tables are kept after a rewrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableReaders {
    /// The volume is mounted.
    Some,
    /// The database was opened for this alone.
    None,
}

/// Options for rewriting a whole database.
pub(super) fn rewriter(readers: TableReaders) -> CompactorOptions {
    let checkpoint_lifetime = match readers {
        TableReaders::Some => COMPACTOR_HOLD,
        TableReaders::None => REWRITER_HOLD,
    };
    CompactorOptions { checkpoint_lifetime, ..compactor() }
}

pub(super) fn reader() -> DbReaderOptions {
    DbReaderOptions {
        manifest_poll_interval: NEVER,
        object_store_max_retries: Some(RETRIES_OTHERS),
        ..DbReaderOptions::default()
    }
}

pub(super) fn get() -> ReadOptions {
    ReadOptions::default()
}

/// The defaults (one block a request, nothing cached) are bad for a cold store: a scan of a
/// directory would be one GET for 4 KiB.
pub(super) fn scan() -> ScanOptions {
    ScanOptions {
        read_ahead_bytes: 256 << 10,
        cache_blocks: true,
        max_fetch_tasks: 2,
        ..ScanOptions::default()
    }
}
