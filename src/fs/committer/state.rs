//! The state that a submit changes: order, pending rows, `U` and `S`. Pure; the committer keeps it
//! under its one short mutex.

use super::overlay::{Overlay, Pending};
use super::{Batch, QUEUE_BYTES_MAX, Ticket, Totals};
use crate::fs::db::Ops;
use crate::fs::row::{Row, Superblock, Usage};
use crate::fs::{FsError, key};
use crate::types::PackId;
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// The state as of the last submitted batch.
///
/// `usage` holds one entry for each pack that the dataset refers to: about 100 bytes a pack, so 3
/// MiB for a TiB in packs of 32 MiB.
pub(super) struct CommitState {
    stopped: Option<FsError>,
    /// The last batch is in the queue.
    closing: bool,
    superblock: Superblock,
    usage: HashMap<PackId, Usage>,
    /// Packs whose `U` row has to be written.
    touched: BTreeSet<PackId>,
    overlay: Overlay,
    queue: Vec<Queued>,
    /// Bytes of queued batches, and of those that are being written.
    queue_bytes: usize,
    /// Returns whether this opening stored a pack without references and has not settled it (R10).
    is_unsettled: Option<PackCheck>,
    /// Packs of snapshots that are pinned in the catalog (R10), by pin.
    pins: Vec<(u64, Arc<HashSet<PackId>>)>,
    pinned: u64,
}

const TAKES_NONE: FsError = FsError::Busy("the pack takes no new references: store the data again");

/// A predicate on packs.
pub(super) type PackCheck = Arc<dyn Fn(PackId) -> bool + Send + Sync>;

/// A batch with its place in the order.
pub(super) struct Queued {
    pub seq: u64,
    pub batch: Batch,
}

/// Batches that are written together, and the rows that the committer adds.
pub(super) struct Group {
    pub batches: Vec<Queued>,
    pub last: u64,
    pub bytes: usize,
    pub superblock: Superblock,
    usage: Vec<(Bytes, Option<Bytes>)>,
}

/// The fields of `S` that are known only at the moment of writing.
#[derive(Clone, Copy)]
pub(super) struct Marks {
    pub next_inode: u64,
    pub next_data: u64,
    pub settled: u64,
}

impl CommitState {
    pub fn new(superblock: Superblock, usage: HashMap<PackId, Usage>) -> Self {
        Self {
            stopped: None,
            closing: false,
            superblock,
            usage,
            touched: BTreeSet::new(),
            overlay: Overlay::default(),
            queue: Vec::new(),
            queue_bytes: 0,
            is_unsettled: None,
            pins: Vec::new(),
            pinned: 0,
        }
    }

    pub fn refer_only_to(&mut self, is_unsettled: PackCheck) {
        self.is_unsettled = Some(is_unsettled);
    }

    /// Adds a pin and returns its number.
    pub fn pin(&mut self, packs: Arc<HashSet<PackId>>) -> u64 {
        self.pinned += 1;
        self.pins.push((self.pinned, packs));
        self.pinned
    }

    pub fn unpin(&mut self, pin: u64) {
        self.pins.retain(|(at, _)| *at != pin);
    }

    pub fn stop(&mut self, reason: FsError) {
        self.stopped.get_or_insert(reason);
    }

    pub fn last(&self) -> Ticket {
        Ticket(self.superblock.batch_seq)
    }

    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    pub fn totals(&self) -> Totals {
        Totals { inodes: self.superblock.inodes, allocated: self.superblock.allocated }
    }

    pub fn open_packs(&self) -> Vec<PackId> {
        self.usage.iter().filter(|(_, usage)| !usage.sealed).map(|(pack, _)| *pack).collect()
    }

    pub fn usage(&self, pack: PackId) -> Usage {
        self.usage.get(&pack).copied().unwrap_or_default()
    }

    pub fn queue_bytes(&self) -> usize {
        self.queue_bytes
    }

    pub fn seal(&mut self, packs: &[PackId]) {
        for pack in packs {
            if let Some(usage) = self.usage.get_mut(pack) {
                usage.sealed = true;
                self.touched.insert(*pack);
            }
        }
    }

    /// See [`super::Committer::submit`]. On an error nothing has changed.
    pub fn submit(&mut self, batch: Batch) -> Result<Ticket, FsError> {
        if let Some(reason) = &self.stopped {
            return Err(reason.clone());
        }
        let bytes = batch.bytes();
        if self.queue_bytes + bytes > QUEUE_BYTES_MAX {
            return Err(FsError::Busy("too many changes are waiting for the store"));
        }
        if batch.fresh.iter().any(|pack| !self.takes_fresh(*pack)) {
            return Err(TAKES_NONE);
        }
        let usage = self.counted(&batch.refs)?;
        let inodes = count("inodes in use", self.superblock.inodes, batch.inodes)?;
        let allocated = count("allocated bytes", self.superblock.allocated, batch.allocated)?;

        let seq = self.superblock.batch_seq + 1;
        self.superblock.batch_seq = seq;
        self.superblock.inodes = inodes;
        self.superblock.allocated = allocated;
        if batch.fs_group.is_some() {
            self.superblock.fs_group = batch.fs_group;
            self.superblock.fs_group_epoch = self.superblock.fs_group_epoch.wrapping_add(1);
        }
        for (pack, usage) in usage {
            self.set_usage(pack, usage);
        }
        for (key, value) in &batch.rows {
            self.overlay.set(seq, key.clone(), value.clone());
        }
        self.queue_bytes += bytes;
        self.queue.push(Queued { seq, batch });
        Ok(Ticket(seq))
    }

    /// The counts after `refs`, each pack once.
    fn counted(&self, refs: &[(PackId, i64)]) -> Result<Vec<(PackId, Usage)>, FsError> {
        let mut deltas: Vec<(PackId, i64)> = refs.to_vec();
        deltas.sort_unstable_by_key(|(pack, _)| *pack);
        deltas.dedup_by(|next, sum| {
            let same = next.0 == sum.0;
            if same {
                sum.1 = sum.1.saturating_add(next.1);
            }
            same
        });
        let after = |(pack, delta): (PackId, i64)| {
            let usage = self.usage(pack);
            let comes_back = delta > 0 && !self.may_begin(pack, usage);
            if comes_back && !self.pins.iter().any(|(_, packs)| packs.contains(&pack)) {
                return Err(TAKES_NONE);
            }
            let refs = usage.refs.checked_add_signed(delta);
            let refs = refs.ok_or_else(|| {
                FsError::Corrupt(format!(
                    "pack {pack}: {} references changed by {delta}",
                    usage.refs
                ))
            })?;
            Ok((pack, Usage { refs, sealed: usage.sealed || comes_back }))
        };
        deltas.into_iter().map(after).collect()
    }

    /// Returns whether the pack takes references to chunks of which the dataset uses none yet (R10,
    /// R12).
    fn takes_fresh(&self, pack: PackId) -> bool {
        let usage = self.usage(pack);
        !usage.sealed && self.may_begin(pack, usage)
    }

    /// Returns whether the dataset may begin to refer to the pack. A settled pack to which it has
    /// no reference may be rewritten without its consent: through a pinned snapshot such a pack
    /// comes back sealed, because only the chunks that the snapshot uses can be relied on (R12).
    fn may_begin(&self, pack: PackId, usage: Usage) -> bool {
        usage.refs > 0 || self.is_unsettled.as_ref().is_none_or(|is_unsettled| is_unsettled(pack))
    }

    fn set_usage(&mut self, pack: PackId, usage: Usage) {
        self.touched.insert(pack);
        match usage.refs {
            0 => self.usage.remove(&pack),
            _ => self.usage.insert(pack, usage),
        };
    }

    /// The pending value of a row; `None` when SlateDB has the newest.
    pub fn pending(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.overlay.get(key)
    }

    pub fn pending_range(&self, from: &Bytes, to: &Bytes, limit: usize) -> Pending {
        self.overlay.range(from, to, limit)
    }

    /// Everything queued, to be written together; `None` when nothing is.
    pub fn take(&mut self, marks: Marks) -> Option<Group> {
        let last = self.queue.last()?.seq;
        let batches = std::mem::take(&mut self.queue);
        let superblock = &mut self.superblock;
        superblock.next_inode = superblock.next_inode.max(marks.next_inode);
        superblock.next_data = superblock.next_data.max(marks.next_data);
        superblock.settled = superblock.settled.max(marks.settled);
        let superblock = superblock.clone();
        let touched = std::mem::take(&mut self.touched);
        let usage = touched
            .into_iter()
            .map(|pack| (key::usage(pack), self.usage.get(&pack).map(Row::encode)))
            .collect();
        let bytes = batches.iter().map(|queued| queued.batch.bytes()).sum();
        Some(Group { batches, last, bytes, superblock, usage })
    }

    /// Queued batches after `seq`; none if batches between the two were taken from the queue.
    pub fn queued_after(&self, seq: u64) -> &[Queued] {
        let skipped = self
            .queue
            .first()
            .and_then(|first| (seq + 1).checked_sub(first.seq))
            .and_then(|n| usize::try_from(n).ok());
        skipped.and_then(|skipped| self.queue.get(skipped..)).unwrap_or_default()
    }

    /// The group has reached SlateDB.
    pub fn written(&mut self, group: &Group) {
        let keys =
            group.batches.iter().flat_map(|queued| queued.batch.rows.iter().map(|(key, _)| key));
        self.overlay.written(group.last, keys);
        self.queue_bytes = self.queue_bytes.saturating_sub(group.bytes);
    }

    /// Begins a new owner's epoch, in which packs are numbered from the start (R9).
    pub fn raise_epoch(&mut self, epoch: u64) {
        self.superblock.writer_epoch = epoch;
        self.superblock.settled = 0;
    }

    /// Gives the last batch its place in the order, and refuses all later ones. May be called
    /// again.
    pub fn finish(&mut self, reason: FsError) -> Result<Ticket, FsError> {
        if self.closing {
            return Ok(self.last());
        }
        let last = self.submit(Batch::default())?;
        self.closing = true;
        self.stop(reason);
        Ok(last)
    }
}

impl Group {
    /// The batches after `seq`.
    pub fn after(&self, seq: u64) -> &[Queued] {
        let from = self.batches.partition_point(|queued| queued.seq <= seq);
        self.batches.get(from..).unwrap_or_default()
    }

    /// The rows of the one SlateDB write, in order where batches set one row several times.
    pub fn ops(&self) -> Ops {
        let rows = self.batches.iter().flat_map(|queued| queued.batch.rows.iter().cloned());
        let own =
            self.usage.iter().cloned().chain([(key::superblock(), Some(self.superblock.encode()))]);
        rows.chain(own).collect()
    }
}

fn count(what: &str, now: u64, delta: i64) -> Result<u64, FsError> {
    now.checked_add_signed(delta)
        .ok_or_else(|| FsError::Corrupt(format!("{what}: {now} changed by {delta}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, Incarnation};

    fn superblock() -> Superblock {
        super::super::start::first_superblock([7; 16])
    }

    fn state() -> CommitState {
        CommitState::new(superblock(), HashMap::new())
    }

    fn pack(seq: u64) -> PackId {
        PackId { creator: Incarnation::from_bytes([1; 16]), epoch: Epoch(1), seq }
    }

    fn marks() -> Marks {
        Marks { next_inode: 9, next_data: 8, settled: 3 }
    }

    #[test]
    fn a_group_holds_rows_counts_and_superblock() {
        let mut state = state();
        let row = |v: u8| (Bytes::from_static(b"Ikey"), Some(Bytes::copy_from_slice(&[v])));
        state
            .submit(Batch {
                rows: vec![row(1)],
                refs: vec![(pack(1), 2), (pack(1), 1)],
                inodes: 1,
                ..Batch::default()
            })
            .unwrap();
        state
            .submit(Batch {
                rows: vec![row(2)],
                refs: vec![(pack(1), -3)],
                allocated: 10,
                ..Batch::default()
            })
            .unwrap();
        assert_eq!(state.pending(b"Ikey"), Some(Some(Bytes::from_static(&[2]))));
        let group = state.take(marks()).unwrap();
        assert_eq!((group.batches.len(), group.last), (2, 2));
        assert_eq!(
            (group.superblock.inodes, group.superblock.allocated, group.superblock.batch_seq),
            (1, 10, 2)
        );
        assert_eq!(
            (group.superblock.next_inode, group.superblock.next_data, group.superblock.settled),
            (9, 8, 3)
        );
        let ops = group.ops();
        assert_eq!(ops.len(), 4);
        assert!(ops.contains(&(key::usage(pack(1)), None)));
        state.written(&group);
        assert_eq!((state.pending(b"Ikey"), state.queue_bytes()), (None, 0));
        assert!(state.take(marks()).is_none());
    }

    #[test]
    fn a_negative_count_changes_nothing() {
        let mut state = state();
        state.submit(Batch { refs: vec![(pack(1), 1)], ..Batch::default() }).unwrap();
        let before = state.superblock().clone();
        let bad = [
            Batch { refs: vec![(pack(2), 1), (pack(1), -2)], ..Batch::default() },
            Batch { inodes: -1, refs: vec![(pack(2), 1)], ..Batch::default() },
            Batch { allocated: -1, ..Batch::default() },
        ];
        for batch in bad {
            assert!(matches!(state.submit(batch), Err(FsError::Corrupt(_))));
        }
        assert_eq!(state.superblock(), &before);
        assert_eq!((state.usage(pack(1)).refs, state.usage(pack(2)).refs), (1, 0));
    }

    #[test]
    fn a_sealed_pack_takes_no_references_and_gives_them_up() {
        let mut state = state();
        state.submit(Batch { refs: vec![(pack(1), 2)], ..Batch::default() }).unwrap();
        state.seal(&[pack(1), pack(2)]);
        let found = Batch { refs: vec![(pack(1), 1)], fresh: vec![pack(1)], ..Batch::default() };
        assert!(matches!(state.submit(found), Err(FsError::Busy(_))));
        let exchanged = Batch { fresh: vec![pack(1)], ..Batch::default() };
        assert!(
            matches!(state.submit(exchanged), Err(FsError::Busy(_))),
            "one chunk of it for another"
        );
        state
            .submit(Batch { refs: vec![(pack(1), 1)], ..Batch::default() })
            .expect("a chunk that was cut in two");
        state.submit(Batch { refs: vec![(pack(1), -2)], ..Batch::default() }).unwrap();
        assert_eq!(state.usage(pack(1)), Usage { refs: 1, sealed: true });
        assert_eq!(state.usage(pack(2)), Usage::default());
    }

    #[test]
    fn only_an_unsettled_pack_takes_its_first_reference() {
        let mut state = state();
        state.refer_only_to(Arc::new(|asked| asked == pack(1)));
        let one = |n: u64, delta: i64| Batch { refs: vec![(pack(n), delta)], ..Batch::default() };
        assert!(matches!(state.submit(one(2, 1)), Err(FsError::Busy(_))));
        state.submit(one(1, 1)).unwrap();
        state.refer_only_to(Arc::new(|_| false));
        state.submit(one(1, 1)).unwrap();
        state.submit(one(1, -2)).unwrap();
        assert!(
            matches!(state.submit(one(1, 1)), Err(FsError::Busy(_))),
            "what was given up is never referred to again"
        );
        let pin = state.pin(Arc::new([pack(2)].into()));
        state.submit(one(2, 1)).expect("a pack of a pinned snapshot");
        state.submit(one(2, -1)).unwrap();
        state.unpin(pin);
        assert!(matches!(state.submit(one(2, 1)), Err(FsError::Busy(_))));
    }

    #[test]
    fn what_comes_back_by_a_pin_is_sealed() {
        let mut state = state();
        let fresh =
            |n: u64| Batch { refs: vec![(pack(n), 1)], fresh: vec![pack(n)], ..Batch::default() };
        let refs = |n: u64, delta: i64| Batch { refs: vec![(pack(n), delta)], ..Batch::default() };
        state.refer_only_to(Arc::new(|asked| asked == pack(1)));
        let _pin = state.pin(Arc::new([pack(1), pack(2)].into()));
        assert!(
            matches!(state.submit(fresh(2)), Err(FsError::Busy(_))),
            "found before it was given up"
        );
        state.submit(refs(1, 1)).unwrap();
        state.submit(fresh(1)).expect("it is not settled");
        assert_eq!(
            (state.usage(pack(1)), state.usage(pack(2))),
            (Usage { refs: 2, sealed: false }, Usage::default())
        );
        for _ in 0..2 {
            state.submit(refs(2, 2)).unwrap();
            assert_eq!(state.usage(pack(2)), Usage { refs: 2, sealed: true });
            assert!(matches!(state.submit(fresh(2)), Err(FsError::Busy(_))));
            assert_eq!(state.open_packs(), [pack(1)]);
            state.submit(refs(2, -2)).unwrap();
        }
        state.refer_only_to(Arc::new(|_| false));
        state.submit(refs(1, 1)).unwrap();
        assert!(!state.usage(pack(1)).sealed, "it was in use all the time");
    }

    #[test]
    fn what_is_queued_after_a_batch_has_no_gap() {
        let mut state = state();
        for _ in 0..3 {
            state.submit(Batch::default()).unwrap();
        }
        let after = |state: &CommitState, seq| {
            state.queued_after(seq).iter().map(|queued| queued.seq).collect::<Vec<_>>()
        };
        assert_eq!(
            (after(&state, 0), after(&state, 2), after(&state, 3)),
            (vec![1, 2, 3], vec![3], vec![])
        );
        let group = state.take(marks()).unwrap();
        assert_eq!(group.after(1).iter().map(|queued| queued.seq).collect::<Vec<_>>(), [2, 3]);
        state.submit(Batch::default()).unwrap();
        assert_eq!(
            (after(&state, 1), after(&state, 3)),
            (vec![], vec![4]),
            "batches 2 and 3 are being written and come first"
        );
    }

    #[test]
    fn nothing_is_taken_after_a_stop() {
        let mut state = state();
        state.stop(FsError::Fenced);
        state.stop(FsError::NotFound);
        assert!(matches!(state.submit(Batch::default()), Err(FsError::Fenced)));
    }

    #[test]
    fn a_changed_group_raises_its_epoch() {
        let mut state = state();
        state.submit(Batch { fs_group: Some(5), ..Batch::default() }).unwrap();
        assert_eq!((state.superblock().fs_group, state.superblock().fs_group_epoch), (Some(5), 1));
    }
}
