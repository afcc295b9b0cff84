//! The collector: removes tombstoned datasets and snapshots, and packs that nothing refers to.
//!
//! ```text
//! gather: list catalog ─▶ list packs and databases ─▶ read every root ─▶ list catalog again
//!              ▲                                                           changed │     │
//!              └───────────────────────────────────────────────────────────────────┘     ▼
//!                                                               facts ─▶ plan (pure) ─▶ sweep
//! ```
//!
//! Nouns: a **root** is a state that can still be read: the head of a live dataset, its WAL tail
//! included, and every snapshot's checkpoint; a **creator** is the dataset that wrote a pack: its
//! own superblock decides whether it may still refer to it (R9).
//!
//! Invariants: an unreadable root aborts the pass (R11); while a snapshot of a family is being made
//! and has no checkpoint yet, no pack of the family is deleted; a record is swapped to `dead`
//! before its effect is touched (R3); age plays no part in what a root may need. A dry run prints
//! the very plan that would be swept: [`plan`] is a function of the [`facts`] alone.
//!
//! A root that has not changed since the last collection is not read again ([`root_cache`]), and
//! one collector reads at a time ([`claim`]).
//!
//! Databases that stay are maintained ([`maintenance`]): clones are detached from origins that wait
//! for it, and obsolete objects of released databases are removed.
//!
//! Packs that are mostly dead are rewritten without their dead chunks ([`rewrite`], R12).
//!
//! A crash leaves dead records, which the next pass finishes, and packs, which it finds again.

mod candidates;
mod checkpoints;
mod claim;
mod facts;
mod maintenance;
mod mark;
mod plan;
mod retained;
mod rewrite;
mod root_cache;
mod sweep;

pub use candidates::{Candidate, RewriteThreshold};
pub use checkpoints::StrayCheckpoint;
pub use claim::Others;
pub use plan::{DeadPack, Plan, StrayDatabase};
pub use retained::Retained;

use super::controller::group::finish_groups;
use super::owner::{Owners, sweep_mailboxes};
use super::{ControlError, Pool};
use crate::catalog::{Dataset, Snapshot};
use crate::chunk::Generation;
use crate::types::{Incarnation, PackId, Timestamp};
use crate::volume::Volumes;
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Passes of one collection: each frees what the one before made free. A chain of clones as long as
/// R13 allows needs fewer.
const PASSES_MAX: usize = 64;

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
    /// Packs that were mostly dead, and the bytes that rewriting them freed.
    pub rewritten: usize,
    pub rewritten_bytes: u64,
    pub datasets: Vec<String>,
    pub snapshots: Vec<String>,
    /// Clones that were detached from their origins.
    pub detached: Vec<String>,
    /// Databases whose obsolete objects were removed.
    pub databases: usize,
    /// Old ends of records, deleted or unfinished group snapshots, abandoned requests, readers that
    /// died, checkpoints that came too late.
    pub remnants: usize,
    /// Tombstones and other things that stay for now, and why.
    pub retained: Vec<Retained>,
}

/// The memory that the collections of a process share, so that none does again what another did.
/// Losing it costs doing it once more.
#[derive(Clone, Default)]
pub(super) struct Memory(Arc<Mutex<Remembered>>);

#[derive(Default)]
pub(super) struct Remembered {
    /// The root cache: roots that did not change are not read again.
    roots: root_cache::RootCache,
    /// The newest manifest of each database when it was last read, if it had no checkpoint of an
    /// unknown snapshot.
    manifests: HashMap<Incarnation, String>,
    /// The number of objects that each database had when it was last collected.
    sizes: HashMap<Incarnation, usize>,
    /// Chunks in the newest generation of a pack; 0 where it cannot be read.
    footers: HashMap<PackId, (Generation, usize)>,
    /// Packs of which too much is in use, with their number of references then.
    not_worth_rewriting: HashMap<PackId, u64>,
    claims: claim::Claims,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock()
    }
}

/// The outcome of a collection that is made only when no other process collects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExclusiveCollection {
    Done(Collected),
    /// A process of this node is collecting.
    HeldBy(String),
}

/// The collector of one pool.
pub struct Collector {
    pool: Pool,
    volumes: Volumes,
    owners: Owners,
    memory: Memory,
    threshold: RewriteThreshold,
    /// Notified when a session reports a damaged volume.
    damage_reported: Arc<Notify>,
    /// Most bytes of packs read for rewriting per second.
    rate: Option<u64>,
    progress: Progress,
    /// `None`: it reads without a claim, concurrently with its holder.
    claim: Option<claim::Claim>,
}

/// A callback for the progress.
type Progress = Box<dyn Fn(&Collected) + Send + Sync>;

impl Collector {
    /// `volumes`: those of this process.
    pub(super) fn new(
        pool: Pool,
        volumes: Volumes,
        owners: Owners,
        memory: Memory,
        threshold: RewriteThreshold,
        damage_reported: Arc<Notify>,
    ) -> Self {
        Self {
            pool,
            volumes,
            owners,
            memory,
            threshold,
            damage_reported,
            rate: None,
            progress: Box::new(|_| {}),
            claim: None,
        }
    }

    /// Limits the bytes per second read of packs that are rewritten, so that other users of the
    /// bucket are not slowed down: however long that takes, packs sealed before stay as they are
    /// (R12).
    #[must_use]
    pub fn at_rate(mut self, rate: Option<u64>) -> Self {
        self.rate = rate;
        self
    }

    /// Reports progress from time to time.
    #[must_use]
    pub fn reporting(mut self, progress: impl Fn(&Collected) + Send + Sync + 'static) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Called before anything is read or removed.
    async fn hold_claim(&self) -> Result<(), ControlError> {
        match &self.claim {
            Some(claim) => claim.hold().await,
            None => Ok(()),
        }
    }

    /// Returns the plan of a pass that would start now.
    pub async fn plan(&self) -> Result<Plan, ControlError> {
        Ok(plan::plan(&self.gather().await?))
    }

    /// As [`Self::collect`], unless another process is collecting.
    pub async fn collect_exclusively(&mut self) -> Result<ExclusiveCollection, ControlError> {
        self.claim = Some(claim::Claim::new(&self.pool, &self.volumes, &self.memory));
        let done = self.collect().await;
        let Some(claim) = self.claim.take() else { return done.map(ExclusiveCollection::Done) };
        if let (Err(ControlError::InProgress { .. }), Some(node)) = (&done, claim.refused()) {
            return Ok(ExclusiveCollection::HeldBy(node));
        }
        let released = claim.release().await;
        done.and_then(|done| released.map(|()| ExclusiveCollection::Done(done)))
    }

    /// As [`Self::collect`], once no other process is collecting, or after `patience` concurrently
    /// with it: that costs requests, and nothing else.
    pub async fn collect_or_wait(&mut self, patience: Duration) -> Result<Collected, ControlError> {
        let deadline = Instant::now() + patience;
        loop {
            let turn = match self.another_collects().await? {
                Some(node) => ExclusiveCollection::HeldBy(node),
                None => self.collect_exclusively().await?,
            };
            match turn {
                ExclusiveCollection::Done(done) => return Ok(done),
                ExclusiveCollection::HeldBy(node) if Instant::now() < deadline => {
                    tracing::debug!(
                        pool = self.pool.name,
                        node,
                        "another process is collecting; waiting for it"
                    );
                    tokio::time::sleep(claim::POLL).await;
                }
                ExclusiveCollection::HeldBy(_) => return self.collect().await,
            }
        }
    }

    /// Makes passes until nothing more can be removed. Safe concurrently with other collectors,
    /// which attempt the same.
    pub async fn collect(&self) -> Result<Collected, ControlError> {
        let now = SystemTime::now();
        let catalog = &self.pool.catalog;
        let mailboxes = sweep_mailboxes(catalog.bucket(), now).await?;
        if mailboxes.damage_reported {
            // Before anything is read: the damage may end the collection.
            self.damage_reported.notify_one();
        }
        let is_old = |created| plan::is_old(created, Timestamp::now());
        let groups = finish_groups(&self.pool, is_old).await?;
        let remnants = catalog.sweep(now).await?
            + catalog.sweep_readers(now).await?
            + mailboxes.removed
            + groups;
        let mut done = Collected { remnants, ..Collected::default() };
        for _ in 0..PASSES_MAX {
            let plan = Box::pin(self.plan()).await?;
            let (detach, maintenance, rewrite) =
                (plan.detach.clone(), plan.maintenance.clone(), plan.rewrite.clone());
            done.retained = plan.retained.clone();
            let detached = done.detached.len();
            if !plan.is_idle() {
                self.hold_claim().await?;
            }
            let removed = Box::pin(self.sweep(plan, &mut done)).await?;
            self.collect_databases(&maintenance, &mut done).await?;
            self.detach_all(&detach, &mut done).await?;
            (self.progress)(&done);
            if !removed && done.detached.len() == detached {
                self.rewrite_packs(&rewrite, &mut done).await?;
                break;
            }
        }
        Ok(done)
    }

    /// Lists datasets before snapshots, so that a dataset's counter of snapshots is never newer
    /// than they are (see [`plan::changed`]).
    async fn list(&self) -> Result<Listing, ControlError> {
        let datasets =
            self.pool.catalog.datasets().await?.into_iter().map(|at| at.record).collect();
        let snapshots =
            self.pool.catalog.snapshots(None).await?.into_iter().map(|at| at.record).collect();
        let readers = self.pool.catalog.readers(None, SystemTime::now()).await?.live;
        Ok(Listing { datasets, snapshots, readers })
    }
}
