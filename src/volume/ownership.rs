//! Who may take a dataset: pure decisions on its record, applied by compare-and-swap.
//!
//! An owner takes back without waiting what its own folder of journals has (a process holds the folder's lock, so that the run before it is over), and
//! nothing because of a name: two nodes of one name may both be alive. What another has is taken only with a [`Forfeit`].

use super::VolumeError;
use super::lease::Forfeit;
use crate::catalog::{Dataset, Form, Owner, State};
use crate::types::SessionId;

/// The owner name of a controller that holds a released dataset for one checkpoint. No node can have it: Kubernetes
/// node names hold no parentheses.
const CARETAKER: &str = "(controller)";

/// Whether the owner is a controller's caretaker, which has no journal and yields to anyone.
pub fn is_caretaker(owner: &Owner) -> bool {
    owner.node == CARETAKER
}

pub(super) fn caretaker(session: SessionId) -> Owner {
    Owner::new(CARETAKER, session)
}

/// What the record said before it was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// Nobody had it open: a failed opening may release it again.
    Released,
    /// This node had it, and may hold a journal of it.
    Ours,
    /// Another had it, and may hold a journal of it: what only that one holds is lost.
    Another,
}

/// Writes `me` as the owner, if the record allows it.
pub(super) fn take(dataset: &mut Dataset, me: &Owner, forfeit: Option<&Forfeit>) -> Result<Before, VolumeError> {
    let before = may_take(dataset, me, forfeit)?;
    dataset.owner = Some(me.clone());
    Ok(before)
}

/// Whether `me` may become the owner.
pub(super) fn may_take(dataset: &Dataset, me: &Owner, forfeit: Option<&Forfeit>) -> Result<Before, VolumeError> {
    let name = || dataset.name.to_string();
    match dataset.state {
        State::Ready => {}
        State::Creating => return Err(VolumeError::Creating { dataset: name() }),
        State::Deleting => return Err(VolumeError::Deleting { dataset: name() }),
        State::Dead => return Err(VolumeError::NotFound { what: format!("dataset {}", dataset.name) }),
    }
    if dataset.form == Form::Snapshot {
        return Err(VolumeError::ReadOnly { dataset: name() });
    }
    let id = dataset.id();
    match &dataset.owner {
        None => Ok(Before::Released),
        Some(owner) if is_caretaker(owner) => Ok(Before::Released),
        Some(owner) if owner.session == me.session => Ok(Before::Ours),
        Some(owner) if owner.home.is_some() && owner.home == me.home => Ok(Before::Ours),
        Some(owner) if forfeit.is_some_and(|forfeit| forfeit.covers(id, owner)) => Ok(Before::Another),
        Some(owner) => Err(VolumeError::Owned { dataset: name(), node: owner.node.clone(), owner: Box::new(owner.clone()) }),
    }
}

/// Whether `me` is in the record, this very session.
pub(super) fn holds(dataset: &Dataset, me: &Owner) -> bool {
    dataset.owner.as_ref().is_some_and(|owner| owner.session == me.session && owner.node == me.node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Properties;
    use crate::types::{FamilyId, HomeId, Incarnation, Timestamp};

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
            form: Form::Writable,
            restoring: None,
        }
    }

    fn owner(node: &str, session: u8) -> Owner {
        Owner::new(node, SessionId::from_bytes([session; 16]))
    }

    fn at_home(owner: Owner, home: u8) -> Owner {
        Owner { home: Some(HomeId::from_bytes([home; 16])), ..owner }
    }

    #[test]
    fn a_released_dataset_is_free_and_a_restart_takes_its_own_back() {
        let me = at_home(owner("a", 1), 1);
        let mut free = dataset(State::Ready, None);
        assert_eq!(take(&mut free, &me, None).unwrap(), Before::Released);
        assert!(holds(&free, &me));
        let again = at_home(owner("a", 2), 1);
        assert_eq!(take(&mut free, &again, None).unwrap(), Before::Ours);
        assert!(holds(&free, &again) && !holds(&free, &me));
    }

    #[test]
    fn a_name_is_no_proof_of_being_the_one_before() {
        for twin in [at_home(owner("a", 2), 2), owner("a", 2)] {
            for before in [at_home(owner("a", 1), 1), owner("a", 1)] {
                let mut owned = dataset(State::Ready, Some(before));
                assert!(matches!(take(&mut owned, &twin, None), Err(VolumeError::Owned { .. })));
            }
        }
    }

    #[test]
    fn another_node_never_takes_it_and_is_told_whose_it_is() {
        let mut owned = dataset(State::Ready, Some(owner("a", 1)));
        let refused = take(&mut owned, &owner("b", 2), None);
        assert!(matches!(refused, Err(VolumeError::Owned { node, .. }) if node == "a"));
        let controller = caretaker(SessionId::from_bytes([3; 16]));
        assert!(matches!(take(&mut owned, &controller, None), Err(VolumeError::Owned { .. })));
        assert!(holds(&owned, &owner("a", 1)));
    }

    #[test]
    fn a_caretaker_yields_to_anyone() {
        let mut cared = dataset(State::Ready, Some(caretaker(SessionId::from_bytes([3; 16]))));
        assert_eq!(take(&mut cared, &caretaker(SessionId::from_bytes([4; 16])), None).unwrap(), Before::Released);
        assert_eq!(take(&mut cared, &owner("a", 1), None).unwrap(), Before::Released);
    }

    #[test]
    fn a_snapshot_has_no_owner() {
        let mut frozen = Dataset { form: Form::Snapshot, ..dataset(State::Ready, None) };
        assert!(matches!(take(&mut frozen, &owner("a", 1), None), Err(VolumeError::ReadOnly { .. })));
        assert_eq!(frozen.owner, None);
    }

    #[test]
    fn only_a_ready_dataset_is_taken() {
        for state in [State::Creating, State::Deleting, State::Dead] {
            assert!(take(&mut dataset(state, None), &owner("a", 1), None).is_err());
        }
    }
}
