//! The lifecycle of one volume in this process, as a pure state machine: what may be done to it
//! next, and which state follows when a step succeeded or failed.
//!
//! ```text
//!                  begin_opening           opened                  begin_closing
//!         ┌──────▶ ──────────────▶ opening ──────▶ open ───────────────────────────────┐
//!         │                         │ │ │            │ lost                            ▼
//!       idle ◀──────────────────────┘ │ └────────────┼────▶ closing: recover ────▶ closing: flush
//!         ▲       nothing is claimed  │              └─────────▶   reopened            │ flushed
//!         │                           ├───▶ closing: settle ──┐                        ▼
//!         │                           └───────────────────────┼──────────────▶ closing: release
//!         │                                                   ▼                        │
//!         └────────────────────────────────────────────────────────────────────────────┘
//!                                                  released
//! ```
//! A volume is **idle** only when the dataset's record does not name this session, and no write of
//! ours that could make it do so is on its way (R33). Until then it keeps its entry in the process.
//! A step of a close that fails leaves the phase as it is, and is retried; whoever wants the volume
//! meanwhile has the close finished first, and then opens it again. Only a volume that has to be
//! opened for its journal is opened at once.
//!
//! A volume whose data nobody needs is **discarded**, from any phase: see [`super::discard`].
//!
//! The type makes no request and has no clock: [`super::closing`] carries the steps out.

/// The phase of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Idle,
    /// The record is being claimed, or the database opened. `recovers`: a journal had to be
    /// recovered before.
    Opening {
        recovers: bool,
    },
    Open,
    Closing(CloseStep),
}

/// The next step of a close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloseStep {
    /// Flush and close the file system, which is open with its calls held.
    Flush,
    /// Open the volume, which replays its journal, and close it again: nothing is open, and the
    /// journal may have changes that the store lacks.
    Recover,
    /// Release the record: the store has all changes.
    Release,
    /// Release the record, or write a version of it that makes a claim void whose write may still
    /// arrive in the store.
    Settle,
    /// Stop the file system, if it is open: nobody needs its data.
    Discard,
}

/// The outcome of the claim of an opening that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClaimOutcome {
    /// Not attempted: nothing is known of the record.
    NotTried,
    /// Refused: the record names another owner, or does not exist.
    Refused,
    /// Unknown: its write may have been done, or may still be.
    Unknown,
    /// Successful, and no journal of the dataset is here: the record names this session.
    Clean,
    /// Successful, and a journal of the dataset may be here: the record names this session.
    NeedsRecovery,
}

/// The reason why a volume is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The volume is unmounted here: it is closed whether it has users or not.
    Unmounted,
    /// The volume is idle, or another node asks for it: it is closed unless it has users.
    Unused,
    /// The claim was revoked (R27): clients are answered STALE.
    Revoked,
    /// The volume is deleted together with its data, whether it has users or not.
    Discarded,
}

/// The next action of a caller that wants a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpenAction {
    Use,
    Open,
    /// Finish its close.
    FinishClose,
}

/// The next action of a caller that closes a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloseAction {
    Nothing,
    InUse,
    /// Take steps until none remains.
    Steps,
}

/// See the module's documentation. Changed only by whoever has locked the entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lifecycle {
    phase: Phase,
    /// A claim of ours may still arrive in the store.
    unsettled: bool,
    /// The dataset is deleted where it is released.
    discards: bool,
}

impl Lifecycle {
    #[cfg(test)]
    pub fn phase(self) -> Phase {
        self.phase
    }

    pub fn is_open(self) -> bool {
        self.phase == Phase::Open
    }

    pub fn is_idle(self) -> bool {
        self.phase == Phase::Idle
    }

    pub fn open_action(self) -> OpenAction {
        match self.phase {
            Phase::Open => OpenAction::Use,
            // An opening that ended without an outcome may have claimed the record.
            Phase::Idle | Phase::Opening { .. } | Phase::Closing(CloseStep::Recover) => {
                OpenAction::Open
            }
            Phase::Closing(
                CloseStep::Flush | CloseStep::Release | CloseStep::Settle | CloseStep::Discard,
            ) => OpenAction::FinishClose,
        }
    }

    pub fn begin_opening(&mut self) {
        let recovers =
            matches!(self.phase, Phase::Closing(CloseStep::Recover) | Phase::Opening { .. });
        self.phase = Phase::Opening { recovers };
    }

    pub fn opened(&mut self) {
        *self = Self { phase: Phase::Open, ..Self::default() };
    }

    pub fn not_opened(&mut self, claim: ClaimOutcome) {
        let recovers = matches!(
            self.phase,
            Phase::Opening { recovers: true } | Phase::Closing(CloseStep::Recover)
        );
        match claim {
            ClaimOutcome::NotTried => {}
            ClaimOutcome::Refused => return self.not_ours(),
            ClaimOutcome::Unknown => self.unsettled = true,
            ClaimOutcome::Clean | ClaimOutcome::NeedsRecovery => self.unsettled = false,
        }
        self.phase = match claim {
            _ if recovers => Phase::Closing(CloseStep::Recover),
            ClaimOutcome::NeedsRecovery => Phase::Closing(CloseStep::Recover),
            ClaimOutcome::Clean => Phase::Closing(CloseStep::Release),
            ClaimOutcome::Unknown => Phase::Closing(CloseStep::Settle),
            ClaimOutcome::NotTried | ClaimOutcome::Refused => Phase::Idle,
        };
    }

    /// The file system failed, or another owner has the dataset: nothing is open. Whether it was
    /// open until now.
    pub fn lost(&mut self) -> bool {
        let was_open = self.is_open();
        if was_open {
            self.phase = Phase::Closing(CloseStep::Recover);
        }
        was_open
    }

    /// `users`: the number of users of the volume.
    pub fn begin_closing(&mut self, reason: CloseReason, users: usize) -> CloseAction {
        match self.phase {
            Phase::Idle => return CloseAction::Nothing,
            phase if reason == CloseReason::Discarded && !self.discards => {
                self.unsettled |= matches!(phase, Phase::Opening { .. });
                (self.phase, self.discards) = (Phase::Closing(CloseStep::Discard), true);
            }
            Phase::Open if reason == CloseReason::Unused && users > 0 => return CloseAction::InUse,
            Phase::Open => self.phase = Phase::Closing(CloseStep::Flush),
            Phase::Opening { .. } => self.phase = Phase::Closing(CloseStep::Recover),
            Phase::Closing(_) => {}
        }
        CloseAction::Steps
    }

    /// The next step of a close that has begun.
    pub fn step(self) -> Option<CloseStep> {
        match self.phase {
            Phase::Closing(step) => Some(step),
            Phase::Idle | Phase::Opening { .. } | Phase::Open => None,
        }
    }

    /// Returns whether the dataset is deleted where it is released.
    pub fn discards(self) -> bool {
        self.discards
    }

    /// Notes that nothing is open: what the journal has is given up.
    pub fn discarded(&mut self) {
        let step = if self.unsettled { CloseStep::Settle } else { CloseStep::Release };
        self.phase = Phase::Closing(step);
    }

    pub fn flushed(&mut self) {
        self.phase = Phase::Closing(CloseStep::Release);
    }

    /// The volume can no longer be flushed or closed: acknowledged changes are in the journal and
    /// in the store.
    pub fn failed(&mut self) {
        self.phase = Phase::Closing(CloseStep::Recover);
    }

    /// The volume was opened to replay its journal, and is to be closed.
    pub fn reopened(&mut self) {
        *self = Self { phase: Phase::Closing(CloseStep::Flush), ..Self::default() };
    }

    /// Notes that the record names another owner, or none.
    pub fn not_ours(&mut self) {
        self.phase = if self.unsettled { Phase::Closing(CloseStep::Settle) } else { Phase::Idle };
    }

    /// Notes that the record does not name this session, and that no write that would make it do so
    /// can arrive.
    pub fn released(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    /// The state of the world outside.
    #[derive(Clone, Copy, Debug, Default)]
    struct World {
        named: bool,
        /// A claim that may still arrive.
        late: bool,
        fs_open: bool,
        /// The journal has changes that the store lacks.
        journal: bool,
    }

    struct Play {
        lifecycle: Lifecycle,
        world: World,
        rng: StdRng,
        fails: u32,
    }

    impl Play {
        fn fails(&mut self) -> bool {
            self.rng.random_range(0..100) < self.fails
        }

        /// Opens as `Volumes` does, with a failure at any point.
        fn open_now(&mut self) -> Result<(), ClaimOutcome> {
            if self.fails() {
                return Err(ClaimOutcome::NotTried);
            }
            if !self.world.named && self.rng.random_range(0..100) < self.fails / 2 {
                return Err(ClaimOutcome::Refused);
            }
            let before = self.world;
            if self.fails() {
                (self.world.named, self.world.late) = match self.rng.random_range(0..3) {
                    0 => (true, before.late),
                    1 => (before.named, true),
                    _ => (before.named, before.late),
                };
                return Err(ClaimOutcome::Unknown);
            }
            // Every claim is a new version: a late one can no longer arrive (R31).
            (self.world.named, self.world.late) = (true, false);
            if self.fails() {
                return Err(if before.named {
                    ClaimOutcome::NeedsRecovery
                } else {
                    ClaimOutcome::Clean
                });
            }
            self.world.fs_open = true;
            Ok(())
        }

        fn open(&mut self) {
            loop {
                match self.lifecycle.open_action() {
                    OpenAction::Use => return,
                    OpenAction::Open => {
                        self.lifecycle.begin_opening();
                        match self.open_now() {
                            Ok(()) => self.lifecycle.opened(),
                            Err(claim) => self.lifecycle.not_opened(claim),
                        }
                        return;
                    }
                    OpenAction::FinishClose => {
                        if !self.steps() && self.lifecycle.open_action() == OpenAction::FinishClose
                        {
                            return;
                        }
                    }
                }
            }
        }

        fn close(&mut self, reason: CloseReason, users: usize) {
            if self.lifecycle.begin_closing(reason, users) == CloseAction::Steps {
                self.steps();
            }
        }

        /// Runs the steps of a close. Returns whether all were done.
        fn steps(&mut self) -> bool {
            while let Some(step) = self.lifecycle.step() {
                if self.fails() {
                    if step == CloseStep::Flush && self.rng.random_bool(0.5) {
                        self.world.fs_open = false;
                        self.lifecycle.failed();
                    }
                    return false;
                }
                match step {
                    CloseStep::Flush => {
                        assert!(self.world.fs_open);
                        (self.world.fs_open, self.world.journal) = (false, false);
                        self.lifecycle.flushed();
                    }
                    CloseStep::Recover if !self.world.named => {
                        // The new owner gave up the journal (R16).
                        self.world.journal = false;
                        self.lifecycle.not_ours();
                    }
                    CloseStep::Recover => match self.open_now() {
                        Ok(()) => self.lifecycle.reopened(),
                        Err(claim) => {
                            self.lifecycle.not_opened(claim);
                            return false;
                        }
                    },
                    CloseStep::Release => {
                        assert!(
                            !self.world.fs_open && !self.world.journal,
                            "released under an open volume, or over a journal"
                        );
                        self.world.named = false;
                        self.lifecycle.released();
                    }
                    CloseStep::Discard => {
                        (self.world.fs_open, self.world.journal) = (false, false);
                        self.lifecycle.discarded();
                    }
                    CloseStep::Settle => {
                        assert!(!self.world.fs_open);
                        (self.world.named, self.world.late) = (false, false);
                        self.lifecycle.released();
                    }
                }
            }
            true
        }

        fn check(&self) {
            let (lifecycle, world) = (self.lifecycle, self.world);
            if lifecycle.is_idle() {
                assert!(
                    !world.named && !world.late && !world.fs_open && !world.journal,
                    "{world:?}"
                );
            }
            let open = match lifecycle.phase() {
                Phase::Open | Phase::Closing(CloseStep::Flush) => true,
                Phase::Closing(CloseStep::Discard) => world.fs_open,
                _ => false,
            };
            assert_eq!(open, world.fs_open, "{lifecycle:?} {world:?}");
            assert!(
                !open || world.named,
                "open, and the record names another: {lifecycle:?} {world:?}"
            );
        }

        fn turn(&mut self) {
            match self.rng.random_range(0..9) {
                0..3 => self.open(),
                3 => self.close(CloseReason::Unmounted, 1),
                4 => {
                    let users = self.rng.random_range(0..2);
                    let was_open = self.lifecycle.is_open();
                    self.close(CloseReason::Unused, users);
                    assert!(
                        users == 0 || self.lifecycle.is_open() == was_open,
                        "closed while it was in use"
                    );
                }
                5 => self.close(CloseReason::Revoked, 1),
                6 if self.lifecycle.is_open() => self.world.journal = true,
                6 if self.world.late => (self.world.named, self.world.late) = (true, false),
                7 if self.lifecycle.lost() => self.world.fs_open = false,
                8 if self.rng.random_bool(0.2) => self.close(CloseReason::Discarded, 1),
                _ => {}
            }
        }
    }

    #[test]
    fn any_sequence_keeps_the_entry_until_the_record_says_released() {
        let mut met = std::collections::BTreeMap::<String, usize>::new();
        for seed in 0..4000 {
            let rng = StdRng::seed_from_u64(seed);
            let mut play = Play {
                lifecycle: Lifecycle::default(),
                world: World::default(),
                rng,
                fails: (seed % 60) as u32,
            };
            for _ in 0..40 {
                play.turn();
                play.check();
                *met.entry(format!("{:?}", play.lifecycle.phase())).or_default() += 1;
            }
            // Without further failures every call succeeds at once.
            play.fails = 0;
            if seed % 2 == 0 {
                play.open();
                assert!(play.lifecycle.is_open(), "{:?}", play.lifecycle);
                play.check();
            }
            play.close(CloseReason::Unmounted, 1);
            assert!(play.lifecycle.is_idle(), "{:?}", play.lifecycle);
            play.check();
        }
        // The opening phase exists only between two turns.
        assert_eq!(met.len(), 7, "{met:?}");
    }

    #[test]
    fn an_opening_that_ended_without_an_outcome_is_recovered() {
        let mut lifecycle = Lifecycle::default();
        lifecycle.begin_opening();
        assert_eq!(lifecycle.open_action(), OpenAction::Open);
        assert_eq!(lifecycle.begin_closing(CloseReason::Unused, 0), CloseAction::Steps);
        assert_eq!(lifecycle.step(), Some(CloseStep::Recover));
    }

    #[test]
    fn a_volume_is_discarded_from_any_phase_without_being_opened() {
        type Change<'a> = &'a dyn Fn(&mut Lifecycle);
        let lost = |lifecycle: &mut Lifecycle| assert!(lifecycle.lost());
        let unknown = |lifecycle: &mut Lifecycle| {
            *lifecycle = Lifecycle::default();
            lifecycle.begin_opening();
            lifecycle.not_opened(ClaimOutcome::Unknown);
        };
        let closing = |lifecycle: &mut Lifecycle| {
            lifecycle.begin_closing(CloseReason::Unmounted, 1);
        };
        let cases: [(Change<'_>, CloseStep); 4] = [
            (&|_| {}, CloseStep::Release),
            (&lost, CloseStep::Release),
            (&closing, CloseStep::Release),
            (&unknown, CloseStep::Settle),
        ];
        for (before, last) in cases {
            let mut lifecycle = Lifecycle::default();
            lifecycle.begin_opening();
            lifecycle.opened();
            before(&mut lifecycle);
            for _ in 0..2 {
                assert_eq!(lifecycle.begin_closing(CloseReason::Discarded, 1), CloseAction::Steps);
                assert_eq!(lifecycle.open_action(), OpenAction::FinishClose);
            }
            assert_eq!(lifecycle.step(), Some(CloseStep::Discard));
            lifecycle.discarded();
            assert_eq!((lifecycle.step(), lifecycle.discards()), (Some(last), true));
            lifecycle.released();
            assert!(lifecycle.is_idle() && !lifecycle.discards());
        }
    }

    #[test]
    fn what_is_in_use_is_closed_as_unused_by_nobody() {
        let mut lifecycle = Lifecycle::default();
        assert_eq!(lifecycle.begin_closing(CloseReason::Unused, 0), CloseAction::Nothing);
        lifecycle.begin_opening();
        lifecycle.opened();
        assert_eq!(lifecycle.begin_closing(CloseReason::Unused, 1), CloseAction::InUse);
        assert_eq!(lifecycle.begin_closing(CloseReason::Unused, 0), CloseAction::Steps);
        assert!(!lifecycle.lost(), "whoever closes it sees to the rest");
        assert_eq!(
            (lifecycle.open_action(), lifecycle.step()),
            (OpenAction::FinishClose, Some(CloseStep::Flush))
        );
    }
}
