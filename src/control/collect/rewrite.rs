//! Rewriting packs that are mostly dead (R12).
//!
//! ```text
//! few references ─▶ marker ─▶ heads seal it ─▶ roots read by chunk ─▶ next generation ─▶ delete
//! ```
//!
//! Why nothing is lost: a chunk in use comes from an earlier use of it, from deduplication, or from
//! a pack just stored. The pack is settled, so that nothing more is stored in it (R9). A chunk that
//! no root uses at a mark is never used again, because deduplication does not find it:
//! - A head that is ready when the mark lists the catalog has sealed the pack, or refers to nothing
//!   in it. A sealed pack stays sealed: when its last reference goes and a restore in place brings
//!   it back, it comes back sealed, also from a journal.
//! - Any other head is opened after the mark, because one that became ready during it makes it void
//!   (R11). It learns about a pack that it did not store itself only from the footer of the first
//!   object, after it has listed the markers. The pack had its marker before the mark, and has it
//!   until the first object is gone. Snapshots need not seal: only their clones could use the
//!   unsealed packs that they refer to.
//!
//! A snapshot that came or went during the mark makes it void. A restore in place uses a snapshot's
//! chunks, which are in use by that snapshot: it stays a root until the restored rows are durable
//! (R10). So garbage stays garbage: after a crash at any step, or beside another collector, every
//! generation holds all chunks in use, and older ones may be deleted at any time.

use super::candidates::Candidate;
use super::mark::ChunkUse;
use super::plan::changed;
use super::{Collected, Collector, Listing, Retained};
use crate::catalog::{Dataset, State};
use crate::chunk::{ChunkError, ChunkStore, RewritePending, Rewritten};
use crate::control::ControlError;
use crate::control::owner::{OwnerRequest, Owners};
use crate::control::pace::Pace;
use crate::types::{ChunkHash, FamilyId, Incarnation, PackId};
use crate::volume::VolumeError;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Packs that an owner is asked to seal with one request.
const SEALED_AT_ONCE: usize = 64;

impl Collector {
    pub(super) async fn rewrite_packs(
        &self,
        candidates: &[Candidate],
        done: &mut Collected,
    ) -> Result<(), ControlError> {
        if candidates.is_empty() {
            return Ok(());
        }
        self.mark_rewrite_pending(candidates).await?;
        self.pool.step("collect.rewrite-pending").await?;
        let before = self.list().await?;
        self.seal(&before, candidates, done).await?;
        self.pool.step("collect.sealed").await?;
        let before = self.list().await?;
        self.pool.step("collect.rewrite.listed").await?;
        let families: HashSet<FamilyId> = candidates.iter().map(|c| c.family).collect();
        let wanted: HashSet<PackId> = candidates.iter().map(|c| c.pack).collect();
        let mut found = ChunkUse::default();
        for family in families {
            self.mark_chunks(&before, family, &wanted, &mut found).await?;
        }
        let after = self.list().await?;
        if changed(&before, &after) {
            tracing::debug!(
                pool = self.pool.name,
                "datasets or snapshots came or went: the next collection rewrites packs"
            );
            return Ok(());
        }
        let mut pace = Pace::new(self.rate);
        for candidate in candidates
            .iter()
            .filter(|c| !found.unsealed.contains(&c.pack))
            .filter(|c| !found.pending_snapshots.contains(&c.family))
        {
            let Some(live) = found.live.get(&candidate.pack).filter(|live| !live.is_empty()) else {
                continue;
            };
            self.rewrite(candidate, live, done).await?;
            (self.progress)(done);
            pace.spend(candidate.bytes).await;
        }
        Ok(())
    }

    /// Writes markers for packs whose first object exists: deduplication learns nothing from later
    /// ones.
    async fn mark_rewrite_pending(&self, candidates: &[Candidate]) -> Result<(), ControlError> {
        let mut packs = BTreeMap::<FamilyId, Vec<PackId>>::new();
        for candidate in candidates.iter().filter(|c| c.generation == 0) {
            packs.entry(candidate.family).or_default().push(candidate.pack);
        }
        for (family, packs) in packs {
            let pending = self.store(family).mark_rewrite_pending(&packs).await;
            pending.map_err(|error| ControlError::Unavailable(error.to_string()))?;
        }
        Ok(())
    }

    /// The rewrite-pending markers of the pool, which are listed before its packs.
    pub(super) async fn rewrite_pending(&self) -> Result<Vec<RewritePending>, ControlError> {
        let listed = self.pool.catalog.bucket().list(RewritePending::PREFIX).await?;
        Ok(listed.iter().filter_map(|object| RewritePending::parse(&object.key)).collect())
    }

    async fn rewrite(
        &self,
        candidate: &Candidate,
        live: &HashSet<ChunkHash>,
        done: &mut Collected,
    ) -> Result<(), ControlError> {
        match self.store(candidate.family).rewrite(candidate.pack, live).await {
            Ok(Rewritten::Done { before, after }) => {
                done.rewritten += 1;
                done.rewritten_bytes += before.saturating_sub(after);
            }
            Ok(Rewritten::Kept) => {
                self.memory.lock().not_worth_rewriting.insert(candidate.pack, candidate.refs);
            }
            // Another collection has rewritten it.
            Err(ChunkError::Missing { .. }) => {}
            Err(error @ (ChunkError::Corrupt { .. } | ChunkError::CorruptPack { .. })) => {
                tracing::error!(
                    pack = %candidate.pack,
                    %error,
                    "a pack is not rewritten because chunks in use of it are damaged; run scrub"
                );
                done.retained.push(Retained {
                    what: format!("pack {}", candidate.pack),
                    why: error.to_string(),
                });
            }
            Err(error) => return Err(ControlError::Unavailable(error.to_string())),
        }
        Ok(())
    }

    /// Has every head that refers to a candidate seal it. The packs of one that cannot be reached
    /// stay as they are.
    async fn seal(
        &self,
        catalog: &Listing,
        candidates: &[Candidate],
        done: &mut Collected,
    ) -> Result<(), ControlError> {
        let mut wanted = HashMap::<Incarnation, Vec<PackId>>::new();
        for candidate in candidates {
            for head in &candidate.unsealed {
                wanted.entry(*head).or_default().push(candidate.pack);
            }
        }
        let owners = self.owners.waiting_once();
        for head in catalog.datasets.iter().filter(|d| d.state == State::Ready) {
            let Some(packs) = wanted.get(&head.incarnation) else { continue };
            for packs in packs.chunks(SEALED_AT_ONCE) {
                if let Err(error) = self.seal_in(&owners, head, packs).await {
                    let what = format!("mostly dead packs of dataset {}", head.name);
                    done.retained.push(Retained { what, why: error.to_string() });
                    break;
                }
            }
        }
        Ok(())
    }

    async fn seal_in(
        &self,
        owners: &Owners,
        head: &Dataset,
        packs: &[PackId],
    ) -> Result<(), ControlError> {
        let request = OwnerRequest::Seal { packs: packs.to_vec() };
        match owners.perform(&self.pool, head, &request).await {
            // Its record is no longer a head's: the mark finds that out.
            Err(
                ControlError::NotFound { .. }
                | ControlError::Volume(VolumeError::NotFound { .. } | VolumeError::Deleting { .. }),
            ) => Ok(()),
            sealed => sealed,
        }
    }

    pub(super) fn store(&self, family: FamilyId) -> ChunkStore {
        self.volumes.settings().chunks(&self.pool.catalog, family)
    }
}
