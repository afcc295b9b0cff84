//! The state machine of one volume in this process, as a pure value: the next steps that are
//! allowed, and the state after a step that succeeded or failed.
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
//! ours that could make it do so is in flight (R33). Until then it keeps its place in the process.
//! A step of a close that fails leaves the phase as it is, and is retried; a caller that wants the
//! volume meanwhile has the close finished first, and then opens it again. Only a volume that has
//! to be opened for its journal is opened at once.
//!
//! The type makes no request and knows no time: [`super::closing`] does the steps.

/// The phase of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Idle,
    /// The record is being claimed, or the database opened. `owed`: a journal had to be recovered
    /// before.
    Opening {
        owed: bool,
    },
    Open,
    Closing(Step),
}

/// The next step of a close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The file system is open, and its calls are held: it has to be flushed and closed.
    Flush,
    /// Nothing is open, and the journal may have what the store lacks: it has to be opened, which
    /// replays the journal, and closed.
    Recover,
    /// The store has everything: the record has to be released.
    Release,
    /// A claim may still arrive in the store: the record needs a version that makes it void, or has
    /// to be released.
    Settle,
}

/// The state of a claim whose opening failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// The claim was not attempted: the record is unknown.
    NotTried,
    /// The record names another owner, or does not exist: the dataset is unavailable, and this
    /// session has no part of it.
    Refused,
    /// The write of the claim may have been done, or may still be.
    Unknown,
    /// The record names this session, which had nothing of the dataset to lose before.
    Clean,
    /// The record names this session, and a journal of the dataset may be here.
    Owed,
}

/// The reason why a volume is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The volume is unmounted here, even if it still has holders.
    Unmounted,
    /// The volume is not in use, or another node asks for it: it is closed unless it has a holder
    /// here.
    Unused,
    /// The claim was revoked (R27): its clients get STALE.
    Revoked,
}

/// The next action of a caller that wants a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    Use,
    Open,
    /// The close of the volume has to be finished first.
    Close,
}

/// The next action of a caller that closes a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Close {
    Nothing,
    InUse,
    /// Take the steps until there is none left.
    Steps,
}

/// See the module's documentation. Only the holder of the place's turn changes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Life {
    phase: Phase,
    /// A claim of ours may still arrive in the store.
    unsettled: bool,
}

impl Life {
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

    pub fn want(self) -> Want {
        match self.phase {
            Phase::Open => Want::Use,
            // An opening that ended without a result may have claimed.
            Phase::Idle | Phase::Opening { .. } | Phase::Closing(Step::Recover) => Want::Open,
            Phase::Closing(Step::Flush | Step::Release | Step::Settle) => Want::Close,
        }
    }

    pub fn begin_opening(&mut self) {
        let owed = matches!(self.phase, Phase::Closing(Step::Recover) | Phase::Opening { .. });
        self.phase = Phase::Opening { owed };
    }

    pub fn opened(&mut self) {
        *self = Self { phase: Phase::Open, unsettled: false };
    }

    pub fn not_opened(&mut self, claim: Claim) {
        let owed =
            matches!(self.phase, Phase::Opening { owed: true } | Phase::Closing(Step::Recover));
        match claim {
            Claim::NotTried => {}
            Claim::Refused => return self.not_ours(),
            Claim::Unknown => self.unsettled = true,
            Claim::Clean | Claim::Owed => self.unsettled = false,
        }
        self.phase = match claim {
            _ if owed => Phase::Closing(Step::Recover),
            Claim::Owed => Phase::Closing(Step::Recover),
            Claim::Clean => Phase::Closing(Step::Release),
            Claim::Unknown => Phase::Closing(Step::Settle),
            Claim::NotTried | Claim::Refused => Phase::Idle,
        };
    }

    /// Notes that the file system has failed, or is another owner's: it is no longer open. Returns
    /// whether it was open until now.
    pub fn lost(&mut self) -> bool {
        let was_open = self.is_open();
        if was_open {
            self.phase = Phase::Closing(Step::Recover);
        }
        was_open
    }

    /// `users`: the number of holders.
    pub fn begin_closing(&mut self, reason: Reason, users: usize) -> Close {
        match self.phase {
            Phase::Idle => return Close::Nothing,
            Phase::Open if reason == Reason::Unused && users > 0 => return Close::InUse,
            Phase::Open => self.phase = Phase::Closing(Step::Flush),
            Phase::Opening { .. } => self.phase = Phase::Closing(Step::Recover),
            Phase::Closing(_) => {}
        }
        Close::Steps
    }

    /// The next step of the close that was begun.
    pub fn step(self) -> Option<Step> {
        match self.phase {
            Phase::Closing(step) => Some(step),
            Phase::Idle | Phase::Opening { .. } | Phase::Open => None,
        }
    }

    pub fn flushed(&mut self) {
        self.phase = Phase::Closing(Step::Release);
    }

    /// Notes that the volume can no longer be flushed or closed: acknowledged changes are in the
    /// journal and in the store.
    pub fn failed(&mut self) {
        self.phase = Phase::Closing(Step::Recover);
    }

    /// Notes that the volume was opened for its journal, and is to be closed.
    pub fn reopened(&mut self) {
        *self = Self { phase: Phase::Closing(Step::Flush), unsettled: false };
    }

    /// Notes that the record names another owner, or none.
    pub fn not_ours(&mut self) {
        self.phase = if self.unsettled { Phase::Closing(Step::Settle) } else { Phase::Idle };
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

    /// The actual state outside the process.
    #[derive(Clone, Copy, Debug, Default)]
    struct World {
        named: bool,
        /// A claim that may still arrive.
        late: bool,
        fs_open: bool,
        /// The journal has what the store lacks.
        journal: bool,
    }

    struct Play {
        life: Life,
        world: World,
        rng: StdRng,
        fails: u32,
    }

    impl Play {
        fn fails(&mut self) -> bool {
            self.rng.random_range(0..100) < self.fails
        }

        /// Opens as `Volumes` does, with a failure at any point.
        fn open_now(&mut self) -> Result<(), Claim> {
            if self.fails() {
                return Err(Claim::NotTried);
            }
            if !self.world.named && self.rng.random_range(0..100) < self.fails / 2 {
                return Err(Claim::Refused);
            }
            let before = self.world;
            if self.fails() {
                (self.world.named, self.world.late) = match self.rng.random_range(0..3) {
                    0 => (true, before.late),
                    1 => (before.named, true),
                    _ => (before.named, before.late),
                };
                return Err(Claim::Unknown);
            }
            // Every claim is a new version: a late write can no longer succeed (R31).
            (self.world.named, self.world.late) = (true, false);
            if self.fails() {
                return Err(if before.named { Claim::Owed } else { Claim::Clean });
            }
            self.world.fs_open = true;
            Ok(())
        }

        fn open(&mut self) {
            loop {
                match self.life.want() {
                    Want::Use => return,
                    Want::Open => {
                        self.life.begin_opening();
                        match self.open_now() {
                            Ok(()) => self.life.opened(),
                            Err(claim) => self.life.not_opened(claim),
                        }
                        return;
                    }
                    Want::Close => {
                        if !self.steps() && self.life.want() == Want::Close {
                            return;
                        }
                    }
                }
            }
        }

        fn close(&mut self, reason: Reason, users: usize) {
            if self.life.begin_closing(reason, users) == Close::Steps {
                self.steps();
            }
        }

        /// Runs the steps of a close. Returns whether all were done.
        fn steps(&mut self) -> bool {
            while let Some(step) = self.life.step() {
                if self.fails() {
                    if step == Step::Flush && self.rng.random_bool(0.5) {
                        self.world.fs_open = false;
                        self.life.failed();
                    }
                    return false;
                }
                match step {
                    Step::Flush => {
                        assert!(self.world.fs_open);
                        (self.world.fs_open, self.world.journal) = (false, false);
                        self.life.flushed();
                    }
                    Step::Recover if !self.world.named => {
                        // The new owner took the journal's changes for lost (R16).
                        self.world.journal = false;
                        self.life.not_ours();
                    }
                    Step::Recover => match self.open_now() {
                        Ok(()) => self.life.reopened(),
                        Err(claim) => {
                            self.life.not_opened(claim);
                            return false;
                        }
                    },
                    Step::Release => {
                        assert!(
                            !self.world.fs_open && !self.world.journal,
                            "released under an open volume, or over a journal"
                        );
                        self.world.named = false;
                        self.life.released();
                    }
                    Step::Settle => {
                        assert!(!self.world.fs_open);
                        (self.world.named, self.world.late) = (false, false);
                        self.life.released();
                    }
                }
            }
            true
        }

        fn check(&self) {
            let (life, world) = (self.life, self.world);
            if life.is_idle() {
                assert!(
                    !world.named && !world.late && !world.fs_open && !world.journal,
                    "{world:?}"
                );
            }
            let open = matches!(life.phase(), Phase::Open | Phase::Closing(Step::Flush));
            assert_eq!(open, world.fs_open, "{life:?} {world:?}");
            assert!(!open || world.named, "open, and the record names another: {life:?} {world:?}");
        }

        fn turn(&mut self) {
            match self.rng.random_range(0..8) {
                0..3 => self.open(),
                3 => self.close(Reason::Unmounted, 1),
                4 => {
                    let users = self.rng.random_range(0..2);
                    let was_open = self.life.is_open();
                    self.close(Reason::Unused, users);
                    assert!(
                        users == 0 || self.life.is_open() == was_open,
                        "closed while it was in use"
                    );
                }
                5 => self.close(Reason::Revoked, 1),
                6 if self.life.is_open() => self.world.journal = true,
                6 if self.world.late => (self.world.named, self.world.late) = (true, false),
                7 if self.life.lost() => self.world.fs_open = false,
                _ => {}
            }
        }
    }

    #[test]
    fn any_sequence_keeps_the_place_until_the_record_says_released() {
        let mut met = std::collections::BTreeMap::<String, usize>::new();
        for seed in 0..4000 {
            let rng = StdRng::seed_from_u64(seed);
            let mut play = Play {
                life: Life::default(),
                world: World::default(),
                rng,
                fails: (seed % 60) as u32,
            };
            for _ in 0..40 {
                play.turn();
                play.check();
                *met.entry(format!("{:?}", play.life.phase())).or_default() += 1;
            }
            // Once nothing fails, a request succeeds at the first attempt.
            play.fails = 0;
            if seed % 2 == 0 {
                play.open();
                assert!(play.life.is_open(), "{:?}", play.life);
                play.check();
            }
            play.close(Reason::Unmounted, 1);
            assert!(play.life.is_idle(), "{:?}", play.life);
            play.check();
        }
        // The opening phase exists only between two turns.
        assert_eq!(met.len(), 6, "{met:?}");
    }

    #[test]
    fn an_opening_that_ended_without_a_word_is_recovered() {
        let mut life = Life::default();
        life.begin_opening();
        assert_eq!(life.want(), Want::Open);
        assert_eq!(life.begin_closing(Reason::Unused, 0), Close::Steps);
        assert_eq!(life.step(), Some(Step::Recover));
    }

    #[test]
    fn what_is_in_use_is_closed_as_unused_by_nobody() {
        let mut life = Life::default();
        assert_eq!(life.begin_closing(Reason::Unused, 0), Close::Nothing);
        life.begin_opening();
        life.opened();
        assert_eq!(life.begin_closing(Reason::Unused, 1), Close::InUse);
        assert_eq!(life.begin_closing(Reason::Unused, 0), Close::Steps);
        assert!(!life.lost(), "whoever closes it sees to the rest");
        assert_eq!((life.want(), life.step()), (Want::Close, Some(Step::Flush)));
    }
}
