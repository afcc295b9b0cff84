//! The name of a slot's snapshot, from what is there: pure.

use super::CLOCK_SKEW;
use super::rules::Rules;
use crate::catalog::{Snapshot, State};
use crate::control::ControlError;
use crate::types::{SnapshotName, Timestamp};

/// Names that are tried for a slot, where those before are taken by snapshots of a wrong clock.
const NAMES_MAX: u32 = 9;

/// A snapshot of the dataset that may have the name of a slot.
#[derive(Clone, Copy)]
pub(super) struct NamedSnapshot<'a> {
    pub name: &'a SnapshotName,
    pub created: Timestamp,
    pub serial: u32,
    pub state: &'a State,
}

impl<'a> NamedSnapshot<'a> {
    pub fn of(snapshot: &'a Snapshot) -> Self {
        let Snapshot { name, created, serial, state, .. } = snapshot;
        Self { name, created: *created, serial: *serial, state }
    }

    /// Returns whether a wrong clock made it: its time is ahead, or it is said to be younger than
    /// one that was begun after it.
    fn is_misdated(&self, now: Timestamp, there: &[Self]) -> bool {
        let is_older = |later: &Self| {
            later.serial > self.serial && later.created.saturating_add(CLOCK_SKEW) < self.created
        };
        self.created > now.saturating_add(CLOCK_SKEW) || there.iter().any(is_older)
    }
}

/// The name of the snapshot that a slot needs; `None`: it is made.
///
/// A snapshot of that name that a wrong clock made was not made at this slot; the name of one that
/// was deleted is free only once it was collected. Then the next name is used.
pub(super) fn name_to_make(
    rules: &Rules,
    slot: Timestamp,
    now: Timestamp,
    there: &[NamedSnapshot<'_>],
) -> Result<Option<SnapshotName>, ControlError> {
    for attempt in 0..NAMES_MAX {
        let name = rules
            .name(slot, attempt)
            .map_err(|error| ControlError::Invalid(format!("snapshot name: {error}")))?;
        let Some(found) = there.iter().find(|found| *found.name == name) else {
            return Ok(Some(name));
        };
        if found.is_misdated(now, there) {
            continue;
        }
        match found.state {
            State::Ready => return Ok(None),
            State::Creating => return Ok(Some(name)),
            State::Deleting | State::Dead => {}
        }
    }
    let why = "all names of the slot are taken: delete snapshots whose time is in the future";
    Err(ControlError::Precondition(why.to_owned()))
}
