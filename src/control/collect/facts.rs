//! The facts of one pass: what is listed, read and remembered before anything is decided.

use super::candidates::{Candidate, RewriteThreshold, candidates};
use super::checkpoints::StrayCheckpoint;
use super::plan::{Mark, PackObject, changed};
use super::{Collector, Listing, Objects};
use crate::chunk::{ChunkError, RewritePending};
use crate::control::ControlError;
use crate::types::{FamilyId, Incarnation, PackId, Timestamp};
use futures::{StreamExt, TryStreamExt};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Restarts of a mark because the catalog changed under it.
const MARK_TRIES: usize = 8;
/// Most footers read in one pass, of the packs with the fewest references for their bytes. The
/// counts are cached.
const FOOTERS_MAX: usize = 256;
const FOOTERS_AT_ONCE: usize = 8;

#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) now: Timestamp,
    /// Listed after every root was read. The part of it that decides which roots there are was the
    /// same before (R11).
    pub(super) catalog: Listing,
    /// Listed between the two listings of the catalog, as are the databases.
    pub(super) packs: Vec<PackObject>,
    pub(super) databases: Objects,
    /// Listed before the packs.
    pub(super) pending: Vec<RewritePending>,
    pub(super) mark: Mark,
    /// Checkpoints named after snapshots that were not in the first listing of the catalog.
    pub(super) checkpoints: Vec<StrayCheckpoint>,
    /// Packs that may be rewritten, and the bytes that each family stores.
    pub(super) candidates: Vec<Candidate>,
    pub(super) stored: BTreeMap<FamilyId, u64>,
    /// Chunks in candidates, as far as they were counted; 0 where the footer cannot be read.
    pub(super) chunks: HashMap<PackId, usize>,
    pub(super) threshold: RewriteThreshold,
    /// The number of objects that each database had when it was last collected.
    pub(super) collected_sizes: HashMap<Incarnation, usize>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            now: Timestamp::from_nanos(0),
            catalog: Listing::default(),
            packs: vec![],
            databases: Objects::new(),
            pending: vec![],
            mark: Mark::default(),
            checkpoints: vec![],
            candidates: vec![],
            stored: BTreeMap::new(),
            chunks: HashMap::new(),
            threshold: RewriteThreshold::default(),
            collected_sizes: HashMap::new(),
        }
    }
}

impl Collector {
    /// Reads the roots until the catalog is the same afterwards as before.
    ///
    /// # Errors
    /// When a root cannot be read: nothing may be swept then (R11).
    pub(super) async fn gather(&self) -> Result<Facts, ControlError> {
        for _ in 0..MARK_TRIES {
            let before = self.list().await?;
            self.pool.step("collect.catalog").await?;
            let pending = self.rewrite_pending().await?;
            let packs = self.packs().await?;
            let databases = self.databases().await?;
            self.pool.step("collect.listed").await?;
            let mark = Box::pin(self.mark(&before, &databases)).await;
            self.pool.step("collect.marked").await?;
            let checkpoints = self.unknown_checkpoints(&before, &databases).await;
            let catalog = self.list().await?;
            // The mark proves nothing then (R11); a root that could not be read may just have been
            // removed by another collector.
            if changed(&before, &catalog) {
                continue;
            }
            let facts = Facts {
                now: Timestamp::now(),
                mark: mark?,
                checkpoints: checkpoints?,
                catalog,
                packs,
                databases,
                pending,
                threshold: self.threshold,
                ..Facts::default()
            };
            return self.recall(facts).await;
        }
        Err(ControlError::InProgress {
            what: format!(
                "pool {} (datasets or snapshots changed during each of {MARK_TRIES} marks)",
                self.pool.name
            ),
        })
    }

    /// Adds what is remembered from earlier passes, and reads the footers that are not.
    async fn recall(&self, mut facts: Facts) -> Result<Facts, ControlError> {
        (facts.candidates, facts.stored) = candidates(&facts);
        {
            let mut memory = self.memory.lock();
            memory.retain_packs(&facts.candidates);
            memory.retain_databases(&facts.databases);
            facts.collected_sizes = memory.sizes.clone();
            let not_worth = &memory.not_worth_rewriting;
            facts.candidates.retain(|c| not_worth.get(&c.pack) != Some(&c.refs));
        }
        self.read_footers(&facts.candidates).await?;
        let memory = self.memory.lock();
        let known = facts.candidates.iter().filter_map(|c| Some((c.pack, memory.chunks_of(c)?)));
        facts.chunks = known.collect();
        drop(memory);
        Ok(facts)
    }

    /// Counts the chunks of the first candidates that are not counted yet.
    async fn read_footers(&self, candidates: &[Candidate]) -> Result<(), ControlError> {
        let unknown: Vec<Candidate> = {
            let memory = self.memory.lock();
            let unknown = candidates.iter().filter(|c| memory.chunks_of(c).is_none());
            unknown.take(FOOTERS_MAX).cloned().collect()
        };
        let counted = futures::stream::iter(unknown).map(|candidate| async move {
            let store = self.store(candidate.family);
            let chunks = match store.contents_of(candidate.pack, candidate.generation).await {
                Ok((chunks, _)) => chunks.len(),
                Err(ChunkError::Missing { .. }) => 0,
                // Reporting a damaged chunk is left to a reader or a scrub; the collection goes on.
                Err(error @ (ChunkError::Corrupt { .. } | ChunkError::CorruptPack { .. })) => {
                    tracing::error!(
                        pack = %candidate.pack,
                        %error,
                        "a pack cannot be rewritten because its footer is damaged; run scrub"
                    );
                    0
                }
                Err(error) => return Err(ControlError::Unavailable(error.to_string())),
            };
            Ok::<_, ControlError>((candidate, chunks))
        });
        let counted: Vec<_> = counted.buffer_unordered(FOOTERS_AT_ONCE).try_collect().await?;
        let mut memory = self.memory.lock();
        for (candidate, chunks) in counted {
            memory.footers.insert(candidate.pack, (candidate.generation, chunks));
        }
        Ok(())
    }
}

impl super::Remembered {
    /// Forgets packs that are no candidates any longer.
    fn retain_packs(&mut self, candidates: &[Candidate]) {
        let there: HashSet<PackId> = candidates.iter().map(|c| c.pack).collect();
        self.footers.retain(|pack, _| there.contains(pack));
        self.not_worth_rewriting.retain(|pack, _| there.contains(pack));
    }

    /// Forgets databases that are gone.
    fn retain_databases(&mut self, databases: &Objects) {
        self.sizes.retain(|incarnation, _| databases.contains_key(incarnation));
    }

    fn chunks_of(&self, candidate: &Candidate) -> Option<usize> {
        self.footers
            .get(&candidate.pack)
            .filter(|(generation, _)| *generation == candidate.generation)
            .map(|(_, chunks)| *chunks)
    }
}
