//! Rewriting packs that are mostly dead (R12).
//!
//! ```text
//! few references for its chunks ─▶ every head seals it ─▶ every root is read by chunk ─▶ next generation ─▶ the older one goes
//! ```
//!
//! Why nothing is lost: a chunk in use comes from an earlier use of it, from deduplication, or from what was just stored. The pack is settled, so that
//! nothing is stored in it any more (R9), and sealed by every head that knows it, so that deduplication does not find it: what no root uses at a mark
//! that began after that, nothing ever uses again. A head or snapshot that came or went during the mark makes it void (R11). A restore in place uses a
//! snapshot's chunks, which are in use by that snapshot: it stays a root until the restored rows are durable (R10).

use super::mark::Seen;
use super::plan::{Candidate, changed};
use super::{Collected, Collector, Kept, Listing, Memory};
use crate::catalog::{Dataset, State};
use crate::chunk::{ChunkError, ChunkStore, Rewritten};
use crate::control::pace::Pace;
use crate::control::{ControlError, mail};
use crate::types::{ChunkHash, FamilyId, Incarnation, PackId, SessionId};
use crate::volume::{VolumeError, is_caretaker, seal_released};
use futures::{StreamExt, TryStreamExt};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Footers read in one collection, of the packs with the fewest references for their bytes. What was read is remembered.
const FOOTERS_MAX: usize = 256;
const FOOTERS_AT_ONCE: usize = 8;
/// A pack is looked at more closely when its references are at most so many of 100 chunks.
const REFERRED_MAX: u64 = 50;
/// Chunks whose use is marked at once: about 50 bytes each.
const CHUNKS_MAX: usize = 512 << 10;
/// Every row of a family's records is read for a rewriting: beside [`Worth::freed_bytes_min`] it must free one part of so many of what the
/// family stores.
const FREED_PART: u64 = 100;
/// Packs that an owner is asked to seal with one letter.
const SEALED_AT_ONCE: usize = 64;

/// What is worth rewriting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worth {
    /// Smaller packs are left as they are.
    pub pack_bytes_min: u64,
    /// What the packs of a family must free together.
    pub freed_bytes_min: u64,
}

impl Default for Worth {
    fn default() -> Self {
        Self { pack_bytes_min: 1 << 20, freed_bytes_min: 4 << 20 }
    }
}

impl Collector {
    /// Those of the candidates that are mostly dead by their footers. Few of them are no work worth doing.
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
            candidates.iter().filter(|c| memory.chunks_of(c).is_none()).take(FOOTERS_MAX).cloned().collect()
        };
        let counted = futures::stream::iter(unknown).map(|candidate| async move {
            let chunks = match self.store(candidate.family).contents_of(candidate.pack, candidate.generation).await {
                Ok((chunks, _)) => Some(chunks.len()),
                Err(ChunkError::Missing { .. }) => None,
                // It is a reader's, or a scrub's, to raise the alarm about a chunk; the collection goes on.
                Err(error @ (ChunkError::Corrupt { .. } | ChunkError::CorruptPack { .. })) => {
                    tracing::error!(pack = %candidate.pack, %error, "a pack cannot be rewritten: run scrub");
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
        let dead = |c: &Candidate| memory.chunks_of(c).is_some_and(|chunks| c.refs * 100 <= chunks as u64 * REFERRED_MAX);
        candidates.retain(dead);
        let mut marked = 0;
        candidates.retain(|c| {
            marked += memory.chunks_of(c).unwrap_or(0);
            marked <= CHUNKS_MAX
        });
        let freed = |family: FamilyId| -> u64 { candidates.iter().filter(|c| c.family == family).map(|c| c.bytes / 2).sum() };
        let worth: BTreeMap<FamilyId, bool> =
            stored.iter().map(|(f, bytes)| (*f, freed(*f) >= self.worth.freed_bytes_min.max(bytes / FREED_PART))).collect();
        candidates.retain(|c| worth.get(&c.family) == Some(&true));
        Ok(candidates)
    }

    pub(super) async fn rewrite_packs(&self, candidates: &[Candidate], done: &mut Collected) -> Result<(), ControlError> {
        if candidates.is_empty() {
            return Ok(());
        }
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
            tracing::debug!(pool = self.pool.name, "datasets or snapshots came or went: packs are rewritten next time");
            return Ok(());
        }
        let mut pace = Pace::new(self.rate);
        for candidate in candidates.iter().filter(|c| !seen.unsealed.contains(&c.pack) && !seen.unborn.contains(&c.family)) {
            let Some(live) = seen.live.get(&candidate.pack).filter(|live| !live.is_empty()) else { continue };
            self.rewrite(candidate, live, done).await?;
            (self.say)(done);
            pace.spend(candidate.bytes).await;
        }
        Ok(())
    }

    async fn rewrite(&self, candidate: &Candidate, live: &HashSet<ChunkHash>, done: &mut Collected) -> Result<(), ControlError> {
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
                tracing::error!(pack = %candidate.pack, %error, "a pack is not rewritten, because what is in use of it is damaged: run scrub");
                done.kept.push(Kept { what: format!("pack {}", candidate.pack), why: error.to_string() });
            }
            Err(error) => return Err(ControlError::Unavailable(error.to_string())),
        }
        Ok(())
    }

    /// Has every head that knows a candidate seal it. One that cannot be reached keeps its packs as they are.
    async fn seal(&self, catalog: &Listing, candidates: &[Candidate], done: &mut Collected) -> Result<(), ControlError> {
        let mut wanted = HashMap::<Incarnation, Vec<PackId>>::new();
        for candidate in candidates {
            for head in &candidate.unsealed {
                wanted.entry(*head).or_default().push(candidate.pack);
            }
        }
        let mut silent = HashSet::new();
        for head in catalog.datasets.iter().filter(|d| d.state == State::Ready) {
            let Some(packs) = wanted.get(&head.incarnation) else { continue };
            for packs in packs.chunks(SEALED_AT_ONCE) {
                if let Err(error) = self.seal_in(head, packs, &mut silent).await {
                    let what = format!("packs that dataset {} refers to, mostly dead", head.name);
                    done.kept.push(Kept { what, why: error.to_string() });
                    break;
                }
            }
        }
        Ok(())
    }

    async fn seal_in(&self, head: &Dataset, packs: &[PackId], silent: &mut HashSet<SessionId>) -> Result<(), ControlError> {
        let id = head.id();
        match (self.volumes.get(id), head.owner.as_ref().filter(|owner| !is_caretaker(owner))) {
            (Some(volume), _) => Ok(volume.fs.seal(packs).await?),
            (None, Some(owner)) => {
                self.ask(owner, silent, mail::ask_to_seal(&self.pool, head, owner, packs, self.owner_timeout)).await
            }
            (None, None) => match seal_released(self.volumes.settings(), &self.pool.catalog, id, packs).await {
                // Its record is no head's any more: the mark finds that out.
                Err(VolumeError::NotFound { .. } | VolumeError::Deleting { .. }) => Ok(()),
                sealed => Ok(sealed?),
            },
        }
    }

    pub(super) fn store(&self, family: FamilyId) -> ChunkStore {
        self.volumes.settings().chunks(&self.pool.catalog, family)
    }
}

impl Memory {
    /// Keeps nothing of packs that are not there any more.
    fn forget_others(&self, candidates: &[Candidate]) {
        let there: HashSet<PackId> = candidates.iter().map(|c| c.pack).collect();
        let mut memory = self.lock();
        memory.footers.retain(|pack, _| there.contains(pack));
        memory.fruitless.retain(|pack, _| there.contains(pack));
    }
}
