//! The ledger of one packer's packs: which of them a batch may still refer to, and so how far they
//! are `settled` (R9). Pure.
//!
//! ```text
//!            close              put ended
//!   open ───────────▶ in flight ───────────▶ stored ─┐
//!    │                  │                            ├─ no holds left: ended
//!    └──── discard ─────┴───── put failed ─▶ lost ───┘
//! ```
//!
//! A *hold* is a pending reference: a caller may still submit a batch that refers to the pack.
//! Packs end in any order; `settled` is the last one before the first that has not ended. A pack
//! above `settled` may be held again, even when it has no holds at the moment: no superblock can
//! have called it settled. One at or below it may not.

use std::collections::VecDeque;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PackState {
    Open,
    InFlight,
    Stored,
    /// Its PUT failed, or it was discarded while open: nothing may refer to it.
    Lost,
}

#[derive(Debug)]
struct Pack {
    state: PackState,
    holds: u64,
}

/// The packs of one packer, numbered from 1.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    settled: u64,
    /// The packs after `settled`, in order.
    packs: VecDeque<Pack>,
}

/// The state of a pack after a hold on it was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// No batch will refer to this open pack: it need not be stored, and counts as lost.
    NothingInOpen,
    Other,
}

impl Ledger {
    /// Opens a new pack, held once by its opener.
    pub(super) fn open(&mut self) -> u64 {
        self.packs.push_back(Pack { state: PackState::Open, holds: 1 });
        self.settled + self.packs.len() as u64
    }

    fn pack(&mut self, seq: u64) -> Option<&mut Pack> {
        let index = seq.checked_sub(self.settled)?.checked_sub(1)?;
        self.packs.get_mut(usize::try_from(index).ok()?)
    }

    /// Takes a hold on a pack, if references to it may still be made without asking the dataset.
    pub(super) fn hold(&mut self, seq: u64) -> bool {
        match self.pack(seq) {
            Some(pack) if pack.state != PackState::Lost => {
                pack.holds += 1;
                true
            }
            _ => false,
        }
    }

    pub(super) fn release(&mut self, seq: u64) -> Left {
        let Some(pack) = self.pack(seq) else { return Left::Other };
        pack.holds = pack.holds.saturating_sub(1);
        let left = if pack.state == PackState::Open && pack.holds == 0 {
            pack.state = PackState::Lost;
            Left::NothingInOpen
        } else {
            Left::Other
        };
        self.advance();
        left
    }

    /// The pack takes no more chunks and is in flight.
    pub(super) fn close(&mut self, seq: u64) {
        if let Some(pack) = self.pack(seq)
            && pack.state == PackState::Open
        {
            pack.state = PackState::InFlight;
        }
    }

    pub(super) fn put_ended(&mut self, seq: u64, stored: bool) {
        if let Some(pack) = self.pack(seq) {
            pack.state = if stored { PackState::Stored } else { PackState::Lost };
            self.advance();
        }
    }

    fn advance(&mut self) {
        while let Some(Pack { state: PackState::Stored | PackState::Lost, holds: 0 }) =
            self.packs.front()
        {
            self.packs.pop_front();
            self.settled += 1;
        }
    }

    pub(super) fn settled(&self) -> u64 {
        self.settled
    }

    /// Stored, and above `settled`.
    pub(super) fn is_unsettled(&mut self, seq: u64) -> bool {
        self.pack(seq).is_some_and(|pack| pack.state == PackState::Stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Op {
        Open,
        Hold(u64),
        Release(usize),
        Close(u64),
        Ended(u64, bool),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let seq = || 0u64..12;
        proptest::collection::vec(
            prop_oneof![
                2 => Just(Op::Open),
                3 => seq().prop_map(Op::Hold),
                6 => any::<usize>().prop_map(Op::Release),
                3 => seq().prop_map(Op::Close),
                3 => (seq(), prop::bool::weighted(0.8)).prop_map(|(s, ok)| Op::Ended(s, ok)),
            ],
            0..120,
        )
    }

    /// The obviously right model: it remembers everything for ever and computes `settled` again
    /// each time.
    #[derive(Default)]
    struct Model {
        packs: BTreeMap<u64, (PackState, u64)>,
        highest_settled: u64,
    }

    impl Model {
        fn settled(&mut self) -> u64 {
            let ended = |&(state, holds): &(PackState, u64)| {
                matches!(state, PackState::Stored | PackState::Lost) && holds == 0
            };
            let settled = self.packs.values().take_while(|pack| ended(pack)).count() as u64;
            assert!(settled >= self.highest_settled, "a settled pack came back");
            self.highest_settled = settled;
            settled
        }
    }

    proptest! {
        #[test]
        fn the_books_agree_with_a_model(ops in ops()) {
            let (mut ledger, mut model) = (Ledger::default(), Model::default());
            let mut held = Vec::new();
            for op in ops {
                match op {
                    Op::Open => {
                        let seq = ledger.open();
                        prop_assert_eq!(seq, model.packs.len() as u64 + 1);
                        model.packs.insert(seq, (PackState::Open, 1));
                        held.push(seq);
                    }
                    Op::Hold(seq) => {
                        let settled = model.settled();
                        let pack = model.packs.get_mut(&seq);
                        let pack = pack
                            .filter(|(state, _)| seq > settled && *state != PackState::Lost);
                        prop_assert_eq!(ledger.hold(seq), pack.is_some());
                        if let Some((_, holds)) = pack {
                            *holds += 1;
                            held.push(seq);
                        }
                    }
                    Op::Release(which) if !held.is_empty() => {
                        let seq = held.swap_remove(which % held.len());
                        let (state, holds) = model.packs.get_mut(&seq).unwrap();
                        *holds -= 1;
                        let idle = *state == PackState::Open && *holds == 0;
                        if idle {
                            *state = PackState::Lost;
                        }
                        prop_assert_eq!(ledger.release(seq) == Left::NothingInOpen, idle);
                    }
                    Op::Close(seq) => {
                        ledger.close(seq);
                        if let Some((state @ PackState::Open, _)) = model.packs.get_mut(&seq) {
                            *state = PackState::InFlight;
                        }
                    }
                    Op::Ended(seq, ok) => {
                        if let Some((state @ PackState::InFlight, _)) = model.packs.get_mut(&seq) {
                            *state = if ok { PackState::Stored } else { PackState::Lost };
                            ledger.put_ended(seq, ok);
                        }
                    }
                    Op::Release(_) => {}
                }
                let settled = model.settled();
                prop_assert_eq!(ledger.settled(), settled);
                prop_assert!(
                    held.iter().all(|&seq| seq > settled),
                    "a held pack was called settled"
                );
                for (&seq, &(state, _)) in &model.packs {
                    let unsettled = seq > settled && state == PackState::Stored;
                    prop_assert_eq!(ledger.is_unsettled(seq), unsettled);
                }
            }
        }
    }
}
