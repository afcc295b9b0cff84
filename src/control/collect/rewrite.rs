//! Rewriting packs that are mostly dead (R12).
//!
//! ```text
//! few references ─▶ marker ─▶ heads seal it ─▶ roots read by chunk ─▶ next generation ─▶ delete older
//! ```
//!
//! Why nothing is lost: a chunk in use comes from an earlier use of it, from deduplication, or from
//! a pack just stored. The pack is settled, so that nothing more is stored in it (R9). A chunk that
//! no root uses at a mark is never used again, because deduplication does not find it:
//! - A head that is ready when the mark lists the catalog has sealed the pack, or refers to nothing
//!   in it. A sealed pack stays sealed: when its last reference goes and a restore in place brings
//!   it back, it comes back sealed, also from a journal.
//! - Any other head is opened after the mark, because one that turned ready during it makes it void
//!   (R11). It learns of packs that it did not store itself only from the footer of their first
//!   object, after it has listed the markers. The pack's marker was written before the mark, and
//!   stays until the first object is gone. Snapshots need not be asked: only their clones could use
//!   the unsealed packs that they refer to.
//!
//! A snapshot that came or went during the mark makes it void. A restore in place uses a snapshot's
//! chunks, which are in use by that snapshot: it stays a root until the restored rows are durable
//! (R10). So garbage stays garbage: after a crash at any step, or beside another collector, every
//! generation holds all chunks in use, and older ones may be deleted at any time.

use super::mark::Seen;
use super::plan::{Candidate, PackObject, changed};
use super::{Collected, Collector, Kept, Listing, Memory};
use crate::catalog::{Dataset, State};
use crate::chunk::{ChunkError, ChunkStore, RewritePending, Rewritten};
use crate::control::ControlError;
use crate::control::owner::{OwnerRequest, Owners};
use crate::control::pace::Pace;
use crate::types::{ChunkHash, FamilyId, Incarnation, PackId};
use crate::volume::VolumeError;
use futures::{StreamExt, TryStreamExt};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Footers read in one collection, of the packs with the fewest references for their bytes. What
/// was read is remembered.
const FOOTERS_MAX: usize = 256;
const FOOTERS_AT_ONCE: usize = 8;
/// A pack is examined more closely when it has at most this many references per 100 chunks.
const REFERRED_MAX: u64 = 50;
/// Chunks whose use is marked at once: about 50 bytes each.
const CHUNKS_MAX: usize = 512 << 10;
/// Every extent row of a family is read for a rewrite: beside [`Worth::freed_bytes_min`] it must
/// free at least 1/`FREED_PART` of the bytes that the family stores.
const FREED_PART: u64 = 100;
/// Packs that an owner is asked to seal with one request.
const SEALED_AT_ONCE: usize = 64;

/// Thresholds from which a rewrite is worth its cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worth {
    /// Smaller packs are left as they are.
    pub pack_bytes_min: u64,
    /// Bytes that the packs of a family must free together.
    pub freed_bytes_min: u64,
}

impl Default for Worth {
    fn default() -> Self {
        Self { pack_bytes_min: 1 << 20, freed_bytes_min: 4 << 20 }
    }
}

impl Collector {
    /// Those of the candidates that are mostly dead by their footers. Few of them are no work worth
    /// doing.
    pub(super) async fn mostly_dead(
        &self,
        mut candidates: Vec<Candidate>,
        stored: &BTreeMap<FamilyId, u64>,
    ) -> Result<Vec<Candidate>, ControlError> {
        self.memory.forget_others(&candidates);
        candidates.retain(|c| self.memory.lock().fruitless.get(&c.pack) != Some(&c.refs));
        candidates.sort_by_key(|c| (c.refs.saturating_mul(1 << 20) / c.bytes.max(1), c.pack));
        let unknown: Vec<Candidate> = {
            let memory = self.memory.lock();
            candidates
                .iter()
                .filter(|c| memory.chunks_of(c).is_none())
                .take(FOOTERS_MAX)
                .cloned()
                .collect()
        };
        let counted = futures::stream::iter(unknown).map(|candidate| async move {
            let chunks = match self
                .store(candidate.family)
                .contents_of(candidate.pack, candidate.generation)
                .await
            {
                Ok((chunks, _)) => Some(chunks.len()),
                Err(ChunkError::Missing { .. }) => None,
                // Reporting a damaged chunk is left to a reader or a scrub; the collection goes on.
                Err(error @ (ChunkError::Corrupt { .. } | ChunkError::CorruptPack { .. })) => {
                    tracing::error!(
                        pack = %candidate.pack,
                        %error,
                        "a pack cannot be rewritten: run scrub"
                    );
                    None
                }
                Err(error) => return Err(ControlError::Unavailable(error.to_string())),
            };
            Ok::<_, ControlError>((candidate, chunks))
        });
        let counted: Vec<_> = counted.buffer_unordered(FOOTERS_AT_ONCE).try_collect().await?;
        let mut memory = self.memory.lock();
        for (candidate, chunks) in counted {
            memory.footers.insert(candidate.pack, (candidate.generation, chunks.unwrap_or(0)));
        }
        let dead = |c: &Candidate| {
            memory.chunks_of(c).is_some_and(|chunks| c.refs * 100 <= chunks as u64 * REFERRED_MAX)
        };
        candidates.retain(dead);
        let mut marked = 0;
        candidates.retain(|c| {
            marked += memory.chunks_of(c).unwrap_or(0);
            marked <= CHUNKS_MAX
        });
        let freed = |family: FamilyId| -> u64 {
            candidates.iter().filter(|c| c.family == family).map(|c| c.bytes / 2).sum()
        };
        let worth: BTreeMap<FamilyId, bool> = stored
            .iter()
            .map(|(f, bytes)| (*f, freed(*f) >= self.worth.freed_bytes_min.max(bytes / FREED_PART)))
            .collect();
        candidates.retain(|c| worth.get(&c.family) == Some(&true));
        Ok(candidates)
    }

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
        let mut seen = Seen::default();
        for family in families {
            self.mark_chunks(&before, family, &wanted, &mut seen).await?;
        }
        let after = self.list().await?;
        if changed(&before, &after) {
            tracing::debug!(
                pool = self.pool.name,
                "datasets or snapshots came or went: packs are rewritten next time"
            );
            return Ok(());
        }
        let mut pace = Pace::new(self.rate);
        for candidate in candidates
            .iter()
            .filter(|c| !seen.unsealed.contains(&c.pack) && !seen.unborn.contains(&c.family))
        {
            let Some(live) = seen.live.get(&candidate.pack).filter(|live| !live.is_empty()) else {
                continue;
            };
            self.rewrite(candidate, live, done).await?;
            (self.say)(done);
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

    /// Lists the rewrite-pending markers of a pool, before its packs.
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
                self.memory.lock().fruitless.insert(candidate.pack, candidate.refs);
            }
            // Another collection's work.
            Err(ChunkError::Missing { .. }) => {}
            Err(error @ (ChunkError::Corrupt { .. } | ChunkError::CorruptPack { .. })) => {
                tracing::error!(
                    pack = %candidate.pack,
                    %error,
                    "a pack is not rewritten, because what is in use of it is damaged: run scrub"
                );
                done.kept.push(Kept {
                    what: format!("pack {}", candidate.pack),
                    why: error.to_string(),
                });
            }
            Err(error) => return Err(ControlError::Unavailable(error.to_string())),
        }
        Ok(())
    }

    /// Has every head that knows a candidate seal it. One that cannot be reached keeps its packs as
    /// they are.
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
                    let what = format!("packs that dataset {} refers to, mostly dead", head.name);
                    done.kept.push(Kept { what, why: error.to_string() });
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

/// Returns the markers of packs whose first object is gone: a pack's name is used once, so that it
/// never comes back (R9).
pub(super) fn outlived(pending: Vec<RewritePending>, packs: &[PackObject]) -> Vec<String> {
    if pending.is_empty() {
        return vec![];
    }
    let first: HashSet<(FamilyId, PackId)> =
        packs.iter().filter(|p| p.generation == 0).map(|p| (p.family, p.pack)).collect();
    pending.into_iter().filter(|a| !first.contains(&(a.family, a.pack))).map(|a| a.key).collect()
}

impl Memory {
    /// Drops the entries of packs that no longer exist.
    fn forget_others(&self, candidates: &[Candidate]) {
        let there: HashSet<PackId> = candidates.iter().map(|c| c.pack).collect();
        let mut memory = self.lock();
        memory.footers.retain(|pack, _| there.contains(pack));
        memory.fruitless.retain(|pack, _| there.contains(pack));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Epoch;

    #[test]
    fn a_pack_stays_announced_as_long_as_anybody_could_learn_from_it() {
        let family = FamilyId::from_bytes([1; 16]);
        let pack = |seq| PackId { creator: Incarnation::from_bytes([2; 16]), epoch: Epoch(3), seq };
        let object = |seq, generation| PackObject { family, pack: pack(seq), generation, bytes: 1 };
        let pending = |of: FamilyId, seq| {
            RewritePending::parse(&format!("rewrite-pending/{of}/{}", pack(seq))).unwrap()
        };
        let all = vec![
            pending(family, 1),
            pending(family, 2),
            pending(family, 3),
            pending(FamilyId::from_bytes([9; 16]), 1),
        ];
        // One as it was stored, and with a later generation beside it; one that has only that; one
        // that is gone.
        let packs = [object(1, 0), object(1, 1), object(2, 1)];
        let expected: Vec<String> = all[1..].iter().map(|a| a.key.clone()).collect();
        assert_eq!(outlived(all.clone(), &packs), expected);
        assert_eq!(outlived(all[..1].to_vec(), &packs), Vec::<String>::new());
        for strange in ["rewrite-pending/x", "rewrite-pending/x/y", "packs/x/y"] {
            assert_eq!(RewritePending::parse(strange), None);
        }
    }
}
