//! The collector: removes tombstones' data and packs without references.
//!
//! ```text
//! list catalog ─▶ list packs and databases ─▶ read every root ─▶ list catalog again ─▶ plan (pure) ─▶ sweep
//!      ▲                                                                 │ changed
//!      └─────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Nouns: a **root** is a state that can still be read: the head of a live dataset, its WAL tail
//! included, and every snapshot's checkpoint; a **creator** is the dataset that wrote a pack, and
//! its own state shows whether it may still refer to it (R9).
//!
//! Invariants: an unreadable root aborts the pass (R11); while a snapshot of a family is being made
//! and has no checkpoint yet, no pack of the family is deleted; a record is swapped to `dead`
//! before its effect is touched (R3); age plays no part in deciding what a root may need. A dry run
//! prints the very plan that would be swept.
//!
//! A root that is unchanged since the last collection is not read again ([`heard`]), and one
//! collector reads at a time ([`claim`]).
//!
//! The collector also maintains databases that stay ([`upkeep`]): clones are detached from origins
//! that wait for it, and obsolete objects of released databases are removed.
//!
//! Packs that are mostly dead are rewritten without their dead chunks ([`rewrite`], R12).
//!
//! A crash leaves dead records, which the next pass finishes, and packs, which it finds again.

mod checkpoints;
mod claim;
mod heard;
mod kept;
mod mark;
mod plan;
mod rewrite;
mod sweep;
mod upkeep;

pub use checkpoints::StrayCheckpoint;
pub use claim::Others;
pub use kept::Kept;
pub use plan::{Candidate, DeadPack, Plan, StrayDatabase};
pub use rewrite::Worth;

use super::owner::{Owners, sweep_mailboxes};
use super::{ControlError, Pool};
use crate::catalog::{Dataset, Snapshot};
use crate::chunk::Generation;
use crate::types::{DatasetId, Incarnation, PackId, Timestamp};
use crate::volume::Volumes;
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// Passes of one collection: each frees what the one before made free. A chain of clones as long as
/// R13 allows needs fewer.
const PASSES_MAX: usize = 64;
/// Restarts of a mark because the catalog changed under it.
const MARK_TRIES: usize = 8;

/// The objects of every database, as listed.
pub(super) type Objects = BTreeMap<Incarnation, Vec<crate::bucket::Listed>>;

/// The catalog at one point in time.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    pub(super) datasets: Vec<Dataset>,
    pub(super) snapshots: Vec<Snapshot>,
    /// The number of current readers of each snapshot, by its incarnation.
    pub(super) readers: BTreeMap<Incarnation, usize>,
}

/// The result of a collection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    pub packs: usize,
    pub pack_bytes: u64,
    /// Packs that were mostly dead, and the bytes that their rewriting freed.
    pub rewritten: usize,
    pub rewritten_bytes: u64,
    pub datasets: Vec<String>,
    pub snapshots: Vec<String>,
    /// Clones that are detached now.
    pub detached: Vec<String>,
    /// Databases whose obsolete objects were removed.
    pub databases: usize,
    /// Ends of chains removed long ago, abandoned requests, readers that died, checkpoints that
    /// came too late.
    pub remnants: usize,
    /// Tombstones that are still needed, and why.
    pub kept: Vec<Kept>,
}

/// Memory that the collections of a process share, so that none does again what another did. Losing
/// it costs doing it once more.
#[derive(Clone, Default)]
pub(super) struct Memory(Arc<Mutex<Remembered>>);

#[derive(Default)]
pub(super) struct Remembered {
    /// The root cache: roots that did not change are not read again.
    heard: heard::Heard,
    /// The newest manifest of each database at the last look, if it held no checkpoint of an
    /// unknown snapshot.
    manifests: HashMap<Incarnation, String>,
    /// The number of objects that each database had when it was last collected.
    sizes: HashMap<Incarnation, usize>,
    /// Chunks in the newest generation of a pack; 0 where it cannot be read.
    footers: HashMap<PackId, (Generation, usize)>,
    /// Packs that were not worth rewriting, and their number of references then.
    fruitless: HashMap<PackId, u64>,
    claims: claim::Claims,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock()
    }
}

impl Remembered {
    fn chunks_of(&self, candidate: &Candidate) -> Option<usize> {
        self.footers
            .get(&candidate.pack)
            .filter(|(generation, _)| *generation == candidate.generation)
            .map(|(_, chunks)| *chunks)
    }
}

/// The outcome of a collection that is made only when no other process collects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    Done(Collected),
    /// The process of this node is collecting.
    Another(String),
}

/// The collector of one pool.
pub struct Collector {
    pool: Pool,
    volumes: Volumes,
    owners: Owners,
    memory: Memory,
    worth: Worth,
    /// Most bytes of packs read for rewriting per second.
    rate: Option<u64>,
    say: Say,
    /// `None`: it reads without a claim, concurrently with its holder.
    claim: Option<claim::Claim>,
}

/// A callback for the progress.
type Say = Box<dyn Fn(&Collected) + Send + Sync>;

impl Collector {
    /// `volumes`: those of this process.
    pub(super) fn new(
        pool: Pool,
        volumes: Volumes,
        owners: Owners,
        memory: Memory,
        worth: Worth,
    ) -> Self {
        Self {
            pool,
            volumes,
            owners,
            memory,
            worth,
            rate: None,
            say: Box::new(|_| {}),
            claim: None,
        }
    }

    /// Limits the reading of packs that are rewritten to this many bytes per second, so that other
    /// users of the bucket are not slowed down: however long that takes, packs sealed before stay
    /// as they are (R12).
    #[must_use]
    pub fn at_rate(mut self, rate: Option<u64>) -> Self {
        self.rate = rate;
        self
    }

    /// Reports progress from time to time.
    #[must_use]
    pub fn telling(mut self, say: impl Fn(&Collected) + Send + Sync + 'static) -> Self {
        self.say = Box::new(say);
        self
    }

    /// Takes the claim before anything is read or removed.
    async fn hold_claim(&self) -> Result<(), ControlError> {
        match &self.claim {
            Some(claim) => claim.hold().await,
            None => Ok(()),
        }
    }

    /// Returns the plan of a pass made now.
    pub async fn plan(&self) -> Result<Plan, ControlError> {
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
            let after = self.list().await?;
            match mark {
                Ok(mark) => {
                    if let Some(plan) = plan::plan(&before, &after, &packs, &mark, Timestamp::now())
                    {
                        let detach = upkeep::detachable(&after);
                        let upkeep = self.outgrown(
                            upkeep::overgrown(&after, &databases, SystemTime::now()),
                            &databases,
                        );
                        let (candidates, stored) =
                            plan::candidates(&after, &packs, &mark, self.worth.pack_bytes_min);
                        let rewrite = self.mostly_dead(candidates, &stored).await?;
                        let pending = rewrite::outlived(pending, &packs);
                        let databases = plan::strays(databases, &after);
                        let checkpoints = checkpoints::strays(checkpoints?, &after);
                        return Ok(Plan {
                            databases,
                            checkpoints,
                            detach,
                            upkeep,
                            rewrite,
                            rewrite_pending: pending,
                            ..plan
                        });
                    }
                }
                // The object that could not be read may just have been removed by another
                // collector.
                Err(_) if plan::changed(&before, &after) => {}
                Err(error) => return Err(error),
            }
        }
        Err(ControlError::InProgress {
            what: format!(
                "changes in pool {} that outran the collector {MARK_TRIES} times",
                self.pool.name
            ),
        })
    }

    /// Returns the databases whose size differs from that after their last collection.
    fn outgrown(&self, mut datasets: Vec<DatasetId>, objects: &Objects) -> Vec<DatasetId> {
        let mut memory = self.memory.lock();
        let sizes = &mut memory.sizes;
        sizes.retain(|life, _| objects.contains_key(life));
        let size = |id: &DatasetId| objects.get(&id.incarnation).map_or(0, Vec::len);
        datasets.retain(|id| sizes.get(&id.incarnation) != Some(&size(id)));
        datasets
    }

    /// As [`Self::collect`], unless another process is collecting.
    pub async fn collect_alone(&mut self) -> Result<Turn, ControlError> {
        self.claim = Some(claim::Claim::new(&self.pool, &self.volumes, &self.memory));
        let done = self.collect().await;
        let Some(claim) = self.claim.take() else { return done.map(Turn::Done) };
        if let (Err(ControlError::InProgress { .. }), Some(node)) = (&done, claim.refused()) {
            return Ok(Turn::Another(node));
        }
        let released = claim.release().await;
        done.and_then(|done| released.map(|()| Turn::Done(done)))
    }

    /// As [`Self::collect`], once another process's collection has ended, or after `patience`
    /// concurrently with it: that costs requests, and nothing else.
    pub async fn collect_in_turn(&mut self, patience: Duration) -> Result<Collected, ControlError> {
        let deadline = Instant::now() + patience;
        loop {
            let turn = match self.another_collects().await? {
                Some(node) => Turn::Another(node),
                None => self.collect_alone().await?,
            };
            match turn {
                Turn::Done(done) => return Ok(done),
                Turn::Another(node) if Instant::now() < deadline => {
                    tracing::debug!(
                        pool = self.pool.name,
                        node,
                        "another process collects: waiting"
                    );
                    tokio::time::sleep(claim::LOOK).await;
                }
                Turn::Another(_) => return self.collect().await,
            }
        }
    }

    /// Runs passes until nothing more can be removed. Safe concurrently with other collectors,
    /// which attempt the same.
    pub async fn collect(&self) -> Result<Collected, ControlError> {
        let now = SystemTime::now();
        let catalog = &self.pool.catalog;
        let remnants = catalog.sweep(now).await?
            + catalog.sweep_readers(now).await?
            + sweep_mailboxes(catalog.bucket(), now).await?;
        let mut done = Collected { remnants, ..Collected::default() };
        for _ in 0..PASSES_MAX {
            let plan = Box::pin(self.plan()).await?;
            let (detach, upkeep, rewrite) =
                (plan.detach.clone(), plan.upkeep.clone(), plan.rewrite.clone());
            done.kept = plan.kept.clone();
            let detached = done.detached.len();
            if !plan.is_idle() {
                self.hold_claim().await?;
            }
            let removed = Box::pin(self.sweep(plan, &mut done)).await?;
            self.collect_databases(&upkeep, &mut done).await?;
            self.detach_all(&detach, &mut done).await?;
            (self.say)(&done);
            if !removed && done.detached.len() == detached {
                self.rewrite_packs(&rewrite, &mut done).await?;
                break;
            }
        }
        Ok(done)
    }

    /// Lists datasets before snapshots, so that the datasets' count of snapshots is never newer
    /// than the snapshots (see `plan`).
    async fn list(&self) -> Result<Listing, ControlError> {
        let datasets =
            self.pool.catalog.datasets().await?.into_iter().map(|at| at.record).collect();
        let snapshots =
            self.pool.catalog.snapshots(None).await?.into_iter().map(|at| at.record).collect();
        let readers = self.pool.catalog.readers(None, SystemTime::now()).await?.live;
        Ok(Listing { datasets, snapshots, readers })
    }
}
