//! Decides which packs are worth rewriting, without reading every extent. Pure.

use super::facts::Facts;
use super::plan::{PackObject, is_settled, newest};
use crate::chunk::{Generation, RewritePending};
use crate::types::{FamilyId, Incarnation, PackId};
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};

/// A pack is mostly dead when it has at most this many references per 100 chunks.
const REFERRED_PERCENT_MAX: u64 = 50;
/// Chunks whose use is marked at once: about 50 bytes each.
const CHUNKS_MAX: usize = 512 << 10;
/// Every extent of a family is read for a rewrite: beside [`RewriteThreshold::freed_bytes_min`] it
/// must free at least 1/`FREED_PART` of the bytes that the family stores.
const FREED_PART: u64 = 100;

/// Thresholds from which a rewrite is worth its cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RewriteThreshold {
    /// Smaller packs are left as they are.
    pub pack_bytes_min: u64,
    /// Bytes that the packs of a family must free together.
    pub freed_bytes_min: u64,
}

impl Default for RewriteThreshold {
    fn default() -> Self {
        Self { pack_bytes_min: 1 << 20, freed_bytes_min: 4 << 20 }
    }
}

/// A pack in use that may be rewritten without its dead chunks (R12).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Candidate {
    pub family: FamilyId,
    #[serde(serialize_with = "as_text")]
    pub pack: PackId,
    pub generation: Generation,
    pub bytes: u64,
    pub refs: u64,
    /// Heads that seal it first.
    pub unsealed: Vec<Incarnation>,
}

fn as_text<S: serde::Serializer>(pack: &PackId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(pack)
}

/// The packs in use that are large enough and take no more chunks, those with the fewest references
/// for their bytes first; and the bytes that each family stores.
pub(super) fn candidates(facts: &Facts) -> (Vec<Candidate>, BTreeMap<FamilyId, u64>) {
    let newest = newest(&facts.packs);
    let (mut found, mut stored) = (Vec::new(), BTreeMap::<FamilyId, u64>::new());
    for object in &facts.packs {
        *stored.entry(object.family).or_default() += object.bytes;
        let Some(used) = facts.mark.referenced.get(&object.pack) else { continue };
        let is_newest = newest.get(&object.pack).copied().unwrap_or(0) == object.generation;
        if is_newest
            && object.bytes >= facts.threshold.pack_bytes_min
            && is_settled(&facts.catalog, &facts.mark, object)
        {
            found.push(Candidate {
                family: object.family,
                pack: object.pack,
                generation: object.generation,
                bytes: object.bytes,
                refs: used.refs,
                unsealed: used.unsealed.clone(),
            });
        }
    }
    found.sort_by_key(|c| (c.refs.saturating_mul(1 << 20) / c.bytes.max(1), c.pack));
    (found, stored)
}

/// Returns the candidates that are mostly dead, where rewriting them frees enough.
pub(super) fn mostly_dead(facts: &Facts) -> Vec<Candidate> {
    let chunks_of = |c: &Candidate| facts.chunks.get(&c.pack).copied();
    let is_mostly_dead = |c: &&Candidate| {
        chunks_of(c).is_some_and(|chunks| c.refs * 100 <= chunks as u64 * REFERRED_PERCENT_MAX)
    };
    let mut marked = 0;
    let fits = |c: &&Candidate| {
        marked += chunks_of(c).unwrap_or(0);
        marked <= CHUNKS_MAX
    };
    let mut dead: Vec<Candidate> =
        facts.candidates.iter().filter(is_mostly_dead).filter(fits).cloned().collect();
    let mut freed = BTreeMap::<FamilyId, u64>::new();
    for candidate in &dead {
        *freed.entry(candidate.family).or_default() += candidate.bytes / 2;
    }
    let is_worth = |family: &FamilyId| {
        let part = facts.stored.get(family).copied().unwrap_or(0) / FREED_PART;
        let least = facts.threshold.freed_bytes_min.max(part);
        freed.get(family).is_some_and(|freed| *freed >= least)
    };
    dead.retain(|c| is_worth(&c.family));
    dead
}

/// Rewrite-pending markers of packs whose first object is gone: a pack's name is used once, so that
/// it never comes back (R9).
pub(super) fn obsolete_markers(pending: &[RewritePending], packs: &[PackObject]) -> Vec<String> {
    if pending.is_empty() {
        return vec![];
    }
    let first: HashSet<(FamilyId, PackId)> =
        packs.iter().filter(|p| p.generation == 0).map(|p| (p.family, p.pack)).collect();
    let obsolete = pending.iter().filter(|marker| !first.contains(&(marker.family, marker.pack)));
    obsolete.map(|marker| marker.key.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Epoch;

    #[test]
    fn a_pack_stays_pending_as_long_as_anybody_could_learn_from_it() {
        let family = FamilyId::from_bytes([1; 16]);
        let pack = |seq| PackId { creator: Incarnation::from_bytes([2; 16]), epoch: Epoch(3), seq };
        let object = |seq, generation| PackObject { family, pack: pack(seq), generation, bytes: 1 };
        let pending = |of: FamilyId, seq| {
            RewritePending::parse(&format!("rewrite-pending/{of}/{}", pack(seq))).unwrap()
        };
        let all = [
            pending(family, 1),
            pending(family, 2),
            pending(family, 3),
            pending(FamilyId::from_bytes([9; 16]), 1),
        ];
        // One as it was stored, and with a later generation beside it; one that has only that; one
        // that is gone.
        let packs = [object(1, 0), object(1, 1), object(2, 1)];
        let expected: Vec<String> = all[1..].iter().map(|a| a.key.clone()).collect();
        assert_eq!(obsolete_markers(&all, &packs), expected);
        assert_eq!(obsolete_markers(&all[..1], &packs), Vec::<String>::new());
        for strange in ["rewrite-pending/x", "rewrite-pending/x/y", "packs/x/y"] {
            assert_eq!(RewritePending::parse(strange), None);
        }
    }

    /// Each half dead by its references, of 16 MiB.
    fn facts(packs: u64, refs: u64) -> Facts {
        let family = FamilyId::from_bytes([1; 16]);
        let pack = |seq| PackId { creator: Incarnation::from_bytes([2; 16]), epoch: Epoch(3), seq };
        let candidate = |seq| Candidate {
            family,
            pack: pack(seq),
            generation: 0,
            bytes: 16 << 20,
            refs,
            unsealed: vec![],
        };
        Facts {
            candidates: (0..packs).map(candidate).collect(),
            stored: BTreeMap::from([(family, packs * (16 << 20))]),
            chunks: (0..packs).map(|seq| (pack(seq), 100)).collect(),
            ..Facts::default()
        }
    }

    #[test]
    fn packs_are_rewritten_where_that_frees_enough() {
        assert_eq!(mostly_dead(&facts(3, 50)).len(), 3);
        assert_eq!(mostly_dead(&facts(3, 51)), [], "more than half is in use");
        let mut few = facts(1, 10);
        few.threshold.freed_bytes_min = (8 << 20) + 1;
        assert_eq!(mostly_dead(&few), [], "one pack frees 8 MiB");
        let mut large = facts(1, 10);
        large.stored.values_mut().for_each(|bytes| *bytes = 1 << 40);
        assert_eq!(mostly_dead(&large), [], "less than a hundredth of the family");
        let unread = Facts { chunks: Default::default(), ..facts(3, 10) };
        assert_eq!(mostly_dead(&unread), [], "footers that were not read yet");
        let mut many = facts(6, 10);
        many.chunks.values_mut().for_each(|chunks| *chunks = CHUNKS_MAX / 4);
        assert_eq!(mostly_dead(&many).len(), 4, "the rest is for the next pass");
    }
}
