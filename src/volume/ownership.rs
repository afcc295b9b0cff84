//! Who may take a dataset: pure decisions on its record, applied by compare-and-swap.

use super::VolumeError;
use crate::catalog::{Dataset, Owner, State};
use crate::types::SessionId;

/// The owner name of a controller that holds a released dataset for one checkpoint. No node can have it: Kubernetes
/// node names hold no parentheses.
const CARETAKER: &str = "(controller)";

/// Whether the owner is a controller's caretaker, which has no journal and yields to anyone.
pub fn is_caretaker(owner: &Owner) -> bool {
    owner.node == CARETAKER
}

pub(super) fn caretaker(session: SessionId) -> Owner {
    Owner { node: CARETAKER.to_owned(), session }
}

/// What the record said before it was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// Nobody had it open: a failed opening may release it again.
    Released,
    /// This node had it, and may hold a journal of it.
    Ours,
}

/// Writes `me` as the owner, if the record allows it.
pub(super) fn take(dataset: &mut Dataset, me: &Owner) -> Result<Before, VolumeError> {
    let name = || dataset.name.to_string();
    match dataset.state {
        State::Ready => {}
        State::Creating => return Err(VolumeError::Creating { dataset: name() }),
        State::Deleting => return Err(VolumeError::Deleting { dataset: name() }),
        State::Dead => return Err(VolumeError::NotFound { what: format!("dataset {}", dataset.name) }),
    }
    let before = match &dataset.owner {
        None => Before::Released,
        Some(owner) if is_caretaker(owner) => Before::Released,
        Some(owner) if owner.node == me.node => Before::Ours,
        Some(owner) => return Err(VolumeError::Owned { dataset: name(), node: owner.node.clone() }),
    };
    dataset.owner = Some(me.clone());
    Ok(before)
}

/// Whether `me` is in the record, this very session.
pub(super) fn holds(dataset: &Dataset, me: &Owner) -> bool {
    dataset.owner.as_ref() == Some(me)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Properties;
    use crate::types::{FamilyId, Incarnation, Timestamp};

    fn dataset(state: State, owner: Option<Owner>) -> Dataset {
        let incarnation = Incarnation::from_bytes([1; 16]);
        Dataset {
            name: "d".parse().unwrap(),
            incarnation,
            family: FamilyId::from(incarnation),
            origin: None,
            state,
            created: Timestamp::from_nanos(0),
            size: None,
            properties: Properties::default(),
            access_modes: vec![],
            owner,
            handle_secret: [0; 16],
            parameters: Default::default(),
            snapshot_serial: 0,
            detached: false,
        }
    }

    fn owner(node: &str, session: u8) -> Owner {
        Owner { node: node.into(), session: SessionId::from_bytes([session; 16]) }
    }

    #[test]
    fn a_released_dataset_is_free_and_a_restart_takes_its_own_back() {
        let me = owner("a", 1);
        let mut free = dataset(State::Ready, None);
        assert_eq!(take(&mut free, &me).unwrap(), Before::Released);
        assert!(holds(&free, &me));
        let again = owner("a", 2);
        assert_eq!(take(&mut free, &again).unwrap(), Before::Ours);
        assert!(holds(&free, &again) && !holds(&free, &me));
    }

    #[test]
    fn another_node_never_takes_it_and_is_told_whose_it_is() {
        let mut owned = dataset(State::Ready, Some(owner("a", 1)));
        let refused = take(&mut owned, &owner("b", 2));
        assert!(matches!(refused, Err(VolumeError::Owned { node, .. }) if node == "a"));
        assert!(matches!(take(&mut owned, &caretaker(SessionId::from_bytes([3; 16]))), Err(VolumeError::Owned { .. })));
        assert!(holds(&owned, &owner("a", 1)));
    }

    #[test]
    fn a_caretaker_yields_to_anyone() {
        let mut cared = dataset(State::Ready, Some(caretaker(SessionId::from_bytes([3; 16]))));
        assert_eq!(take(&mut cared, &caretaker(SessionId::from_bytes([4; 16]))).unwrap(), Before::Released);
        assert_eq!(take(&mut cared, &owner("a", 1)).unwrap(), Before::Released);
    }

    #[test]
    fn only_a_ready_dataset_is_taken() {
        for state in [State::Creating, State::Deleting, State::Dead] {
            assert!(take(&mut dataset(state, None), &owner("a", 1)).is_err());
        }
    }
}
