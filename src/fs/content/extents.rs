//! Decoded extents, cached for all volumes of the process.

use super::{Contents, segments};
use crate::fs::inode::Node;
use crate::fs::key::{self, DataId, Key};
use crate::fs::row::{Extent, Inode, Row, Source, TruncationMask};
use crate::fs::{FsError, content::segments::inline_bytes};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Memory that a cached extent takes beside its segments.
const RECORD_BYTES: usize = 160;
const SEGMENT_BYTES: usize = 112;
/// Rows are read in aligned groups of this many: a neighbour costs a tenth of a lookup of its own.
const GROUP: u64 = 16;
/// Most rows of one scan.
const SCAN_ROWS: u64 = 2048;

type CachedExtent = Option<Arc<Extent>>;

/// An open volume's number, data id, extent number.
type ExtentKey = (u64, DataId, u64);

/// Decoded extents of all volumes of a process; absence is cached too.
#[derive(Clone)]
pub(super) struct ExtentCache {
    cache: foyer::Cache<ExtentKey, CachedExtent>,
    volumes: Arc<AtomicU64>,
}

/// One open volume's part of it.
pub(super) struct Extents {
    cache: foyer::Cache<ExtentKey, CachedExtent>,
    volume: u64,
}

impl ExtentCache {
    pub fn new(bytes: u64) -> Self {
        let weight = |_: &ExtentKey, entry: &CachedExtent| {
            RECORD_BYTES
                + entry
                    .as_ref()
                    .map_or(0, |r| r.segments.len() * SEGMENT_BYTES + inline_bytes(&r.segments))
        };
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let cache =
            foyer::CacheBuilder::new(bytes).with_name("extents").with_weighter(weight).build();
        Self { cache, volumes: Arc::default() }
    }

    /// Returns the part of one opening, which does not find entries of an earlier one.
    pub fn volume(&self) -> Extents {
        Extents { cache: self.cache.clone(), volume: self.volumes.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Extents {
    pub fn get(&self, data: DataId, n: u64) -> Option<CachedExtent> {
        self.cache.get(&(self.volume, data, n)).map(|entry| entry.value().clone())
    }

    pub fn put(&self, data: DataId, n: u64, entry: CachedExtent) {
        self.cache.insert((self.volume, data, n), entry);
    }
}

/// Returns whether an extent written at `cut` is visible, or a truncation has made it a hole (R5).
pub(super) fn is_visible(masks: &[TruncationMask], n: u64, truncations: u32) -> bool {
    !masks.iter().any(|mask| mask.first <= n && truncations < mask.truncations)
}

/// An extent as the file shows it.
pub(super) fn visible<'a>(
    masks: &[TruncationMask],
    n: u64,
    extent: Option<&'a Arc<Extent>>,
) -> Option<&'a Arc<Extent>> {
    extent.filter(|r| is_visible(masks, n, r.truncations))
}

/// Decodes and checks a row of `X`.
pub(super) fn decode(row: &[u8], bits: u8) -> Result<Extent, FsError> {
    let extent = Extent::decode(row)?;
    segments::check(&extent, 1 << bits)?;
    Ok(extent)
}

impl Contents {
    /// Extents of a file, present or not, from the cache or the database.
    pub(super) async fn load(
        &self,
        node: &Node,
        row: &Inode,
        range: RangeInclusive<u64>,
    ) -> Result<BTreeMap<u64, CachedExtent>, FsError> {
        let mut found = BTreeMap::new();
        let mut missing = None;
        for n in range.clone() {
            match self.extents.get(row.data, n) {
                Some(entry) => {
                    found.insert(n, entry);
                }
                None => {
                    let (first, _) = missing.unwrap_or((n, n));
                    missing = Some((first, n));
                }
            }
        }
        let Some((first, last)) = missing else { return Ok(found) };
        let mut at = first & !(GROUP - 1);
        while at <= last {
            let stop = (last | (GROUP - 1)).min(at + SCAN_ROWS - 1);
            let scanned = self.scan_extents(node, row, at, stop).await?;
            found.extend(scanned.into_iter().filter(|(n, _)| range.contains(n)));
            at = stop + 1;
        }
        Ok(found)
    }

    async fn scan_extents(
        &self,
        node: &Node,
        row: &Inode,
        first: u64,
        last: u64,
    ) -> Result<BTreeMap<u64, CachedExtent>, FsError> {
        let version = node.content.state().version;
        let count = usize::try_from(last - first + 1).unwrap_or(usize::MAX);
        let rows = self
            .committer
            .scan(key::extent(row.data, first), key::extent(row.data, last + 1), count)
            .await?;
        let mut entries: BTreeMap<u64, CachedExtent> = (first..=last).map(|n| (n, None)).collect();
        for (key, value) in rows {
            let Some(Key::Extent(_, n)) = Key::parse(&key) else { continue };
            entries.insert(n, Some(Arc::new(decode(&value, row.record_bits)?)));
        }
        self.tell_known(entries.values());
        let state = node.content.state();
        if state.version == version {
            entries.iter().for_each(|(n, entry)| self.extents.put(row.data, *n, entry.clone()));
        }
        drop(state);
        Ok(entries)
    }

    /// Adds chunks that the dataset already refers to to the index of deduplication.
    fn tell_known<'a>(&self, entries: impl Iterator<Item = &'a CachedExtent>) {
        let chunks: Vec<_> = entries
            .flatten()
            .flat_map(|r| &r.segments)
            .filter_map(|s| match &s.source {
                Source::Chunk { chunk, .. } => Some(*chunk),
                Source::Inline(_) => None,
            })
            .collect();
        if !chunks.is_empty() {
            self.packer.learn(&chunks);
        }
    }
}
