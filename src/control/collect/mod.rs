//! The collector: removes what is tombstoned and the packs that nothing refers to.
//!
//! ```text
//! list catalog ─▶ list packs ─▶ read every root ─▶ list catalog again ─▶ plan (pure) ─▶ sweep
//!      ▲                                                   │ changed
//!      └───────────────────────────────────────────────────┘
//! ```
//!
//! Nouns: a **root** is a state that somebody can still read: the head of a live dataset, its WAL tail included, and every
//! snapshot's checkpoint; a **creator** is the dataset that wrote a pack, and its own word says whether it may still refer
//! to it (R9).
//!
//! Invariants: an unreadable root aborts the pass (R11); while a snapshot of a family is being made and shows no checkpoint,
//! no pack of the family goes; a record is swapped to `dead` before its effect is touched (R3);
//! age plays no part in what a root may need. A dry run prints the very plan that would be swept.
//!
//! A crash leaves dead records, which the next pass finishes, and packs, which it finds again. Not done here: rewriting
//! packs that are mostly dead (R12).

mod mark;
mod plan;
mod sweep;

pub use plan::{DeadPack, Kept, Plan, StrayDatabase};

use super::{ControlError, Pool};
use crate::catalog::{Dataset, Snapshot};
use crate::fs::db::DbCache;
use crate::types::Timestamp;
use serde::Serialize;

/// Passes of one collection: each frees what the one before made free. A chain of clones as long as R13 allows needs fewer.
const PASSES_MAX: usize = 64;
/// Restarts of a mark because the catalog changed under it.
const MARK_TRIES: usize = 8;

/// The catalog at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    pub(super) datasets: Vec<Dataset>,
    pub(super) snapshots: Vec<Snapshot>,
}

/// What a collection removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    pub packs: usize,
    pub pack_bytes: u64,
    pub datasets: Vec<String>,
    pub snapshots: Vec<String>,
    /// What is tombstoned but still needed, and why.
    pub kept: Vec<Kept>,
}

/// The collector of one pool.
pub struct Collector {
    pool: Pool,
    cache: DbCache,
}

impl Collector {
    pub fn new(pool: Pool, cache: DbCache) -> Self {
        Self { pool, cache }
    }

    /// What a pass would do now.
    pub async fn plan(&self) -> Result<Plan, ControlError> {
        for _ in 0..MARK_TRIES {
            let databases = self.databases().await?;
            let before = self.list().await?;
            let packs = self.packs().await?;
            self.pool.step("collect.listed").await?;
            let mark = Box::pin(self.mark(&before)).await;
            let after = self.list().await?;
            match mark {
                Ok(mark) => {
                    if let Some(plan) = plan::plan(&before, &after, &packs, &mark, Timestamp::now()) {
                        return Ok(Plan { databases: plan::strays(databases, &after), ..plan });
                    }
                }
                // What could not be read may just have been removed by another collector.
                Err(_) if plan::changed(&before, &after) => {}
                Err(error) => return Err(error),
            }
        }
        Err(ControlError::InProgress {
            what: format!("changes in pool {} that outran the collector {MARK_TRIES} times", self.pool.name),
        })
    }

    /// Passes until nothing more can be removed.
    pub async fn collect(&self) -> Result<Collected, ControlError> {
        let mut done = Collected::default();
        for _ in 0..PASSES_MAX {
            let plan = Box::pin(self.plan()).await?;
            done.kept = plan.kept.clone();
            if !Box::pin(self.sweep(plan, &mut done)).await? {
                break;
            }
        }
        Ok(done)
    }

    async fn list(&self) -> Result<Listing, ControlError> {
        let datasets = self.pool.catalog.datasets().await?.into_iter().map(|at| at.record).collect();
        let snapshots = self.pool.catalog.snapshots(None).await?.into_iter().map(|at| at.record).collect();
        Ok(Listing { datasets, snapshots })
    }
}
