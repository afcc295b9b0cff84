//! The memory of a process, and its shares.
//!
//! Every buffer and cache of the process has a limit of its own, and all of them are shares of one
//! setting, so that an administrator sets one figure and it holds. Not shares are threads, code,
//! and the allocator's overhead; they live in the remainder. Each open volume takes [`VOLUME`]
//! beside that, for its tasks and bookkeeping.

use super::config::LimitsConfig;
use crate::chunk::ChunkLimits;
use crate::fs::FsMemory;
use crate::fs::db::DbCache;
use crate::nfs::Limits;
use crate::types::ByteSize;

/// The number of parts of the setting; these are given out, the others are the process's own.
const PARTS: u64 = 40;
/// Room for two packs and the data that arrives while they are sent: with less, a long write waits
/// for the store at every pack.
const DIRTY: u64 = 6;
const PACKS: u64 = 5;
/// At 20 ms a request, three requests of 4 MiB ahead of a reader keep 500 MB/s in flight.
const READS: u64 = 3;
const CHUNKS: u64 = 4;
const KNOWN: u64 = 1;
const BLOCKS: u64 = 2;
const METADATA: u64 = 5;
/// Rows that are in no stored table yet.
const UNFLUSHED: u64 = 4;
/// Payload of calls, for each direction.
const CALLS: u64 = 2;

/// The most that an open volume takes beside the shares: its tasks, its manifest, its reply cache
/// (R20), and the inodes and directories that each may cache whatever the others hold.
pub const VOLUME: ByteSize = ByteSize(2 << 20);

/// The most that a process takes, with every volume open and the store unavailable: a container's
/// limit must not be lower. A quarter of the setting is for the allocator's overhead, and for
/// changes that have begun when their share is full.
pub fn process_max(limits: &LimitsConfig) -> ByteSize {
    let own = [limits.dirty_bytes, limits.metadata_cache, limits.block_cache, limits.data_cache];
    let own: u64 = own.into_iter().flatten().map(|size| size.0).sum();
    ByteSize(
        limits.memory.0
            + limits.memory.0 / 4
            + own
            + VOLUME.0.saturating_mul(limits.volumes_max as u64),
    )
}

/// The limits of a process.
pub struct Shares {
    pub fs: FsMemory,
    pub chunks: ChunkLimits,
    pub blocks: DbCache,
    /// For all endpoints together.
    pub nfs: Limits,
}

impl Shares {
    pub fn of(limits: &LimitsConfig) -> Self {
        let part = |parts: u64| limits.memory.0 / PARTS * parts;
        let or = |given: Option<ByteSize>, parts: u64| given.map_or(part(parts), |given| given.0);
        let calls = usize::try_from(part(CALLS)).unwrap_or(usize::MAX);
        Self {
            fs: FsMemory::new(or(limits.dirty_bytes, DIRTY), or(limits.metadata_cache, METADATA)),
            chunks: ChunkLimits {
                cache_bytes: or(limits.data_cache, CHUNKS),
                write_bytes: part(PACKS),
                read_bytes: part(READS),
                dedup_bytes: part(KNOWN),
            },
            blocks: DbCache::new(or(limits.block_cache, BLOCKS)).with_unflushed(part(UNFLUSHED)),
            nfs: Limits { read_bytes: calls, write_bytes: calls, ..Limits::default() },
        }
    }
}

/// Keeps the allocator from holding much more than is in use. glibc gives each thread that
/// allocates an arena of its own, up to eight for each core, and memory freed in one serves no
/// other: the same load took 369 MB with as many arenas as threads, 199 MB with two, and no more
/// CPU time (fewer pages are touched for the first time). Buffers of a few MiB stay in the arenas:
/// mapping each one costs more than filling it.
///
/// To be called before there are threads.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn bound_allocator() {
    const ARENAS: libc::c_int = 2;
    const MAPPED_FROM: libc::c_int = 4 << 20;
    const KEPT_FREE: libc::c_int = 16 << 20;
    for (parameter, value) in [
        (libc::M_ARENA_MAX, ARENAS),
        (libc::M_MMAP_THRESHOLD, MAPPED_FROM),
        (libc::M_TRIM_THRESHOLD, KEPT_FREE),
    ] {
        #[expect(
            unsafe_code,
            reason = "there is no safe binding; mallopt(3) takes any two numbers"
        )]
        // SAFETY: it changes parameters of the allocator under its own lock, and reads no memory of
        // this process.
        let set = unsafe { libc::mallopt(parameter, value) };
        debug_assert_eq!(set, 1, "mallopt({parameter}, {value})");
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn bound_allocator() {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::config::MEMORY_DEFAULT;

    #[test]
    fn what_is_given_out_leaves_room_for_the_rest() {
        let given =
            DIRTY + PACKS + READS + CHUNKS + KNOWN + BLOCKS + METADATA + UNFLUSHED + 2 * CALLS;
        assert!(given <= PARTS * 17 / 20, "{given} of {PARTS}");
        let shares = Shares::of(&LimitsConfig::default());
        assert!(shares.chunks.write_bytes >= 2 * u64::from(crate::chunk::PACK_BYTES));
        assert_eq!(shares.nfs.read_bytes as u64, MEMORY_DEFAULT.0 / 20);
    }

    /// The chart makes a container's limit of the same figures.
    #[test]
    fn the_chart_knows_what_a_process_takes() {
        assert_eq!(process_max(&LimitsConfig::default()), ByteSize((350 << 20) + (512 << 20)));
        let limits = LimitsConfig {
            volumes_max: 12,
            data_cache: Some(ByteSize(1 << 30)),
            ..LimitsConfig::default()
        };
        assert_eq!(process_max(&limits), ByteSize((350 << 20) + (24 << 20) + (1 << 30)));
        let chart = include_str!("../../charts/zerofs-csi/templates/_helpers.tpl");
        assert!(
            chart.contains(&format!("| default 256)) {}", VOLUME.0))
                && chart.contains("| default \"280Mi\"")
        );
    }

    #[test]
    fn what_is_set_by_itself_is_no_share() {
        let limits =
            LimitsConfig { data_cache: Some(ByteSize(1 << 30)), ..LimitsConfig::default() };
        assert_eq!(Shares::of(&limits).chunks.cache_bytes, 1 << 30);
    }
}
