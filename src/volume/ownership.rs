//! The rules of taking a dataset: pure decisions on its record, applied by compare-and-swap.
//!
//! An owner takes back a dataset of its own journal directory once the session before it is known
//! to have ended ([`super::journal_dir`]), and nothing because of a name: two nodes of one name may
//! both be alive. Another owner's dataset is taken only when its lease has expired.
//!
//! Every claim has an id of its own, also one by the session that owned the dataset before (R31):
//! findings about an earlier claim and operations that are still under way for it (its release, a
//! revocation, the verdict that its lease has expired) have no effect on a later one.

#[cfg(test)]
mod explore;
#[cfg(test)]
mod model;

use super::VolumeError;
use super::lease::ExpiredLease;
use crate::catalog::{Dataset, Form, Owner, State};
use crate::types::{ClaimId, JournalDirId, SessionId};

/// The owner name of a maintenance claim. No node can have it: Kubernetes node names contain no
/// parentheses.
const MAINTENANCE: &str = "(controller)";

/// Returns whether this is a maintenance claim, which has no journal and yields to anyone.
pub fn is_maintenance(owner: &Owner) -> bool {
    owner.node == MAINTENANCE
}

/// A fresh maintenance claim.
pub(super) fn maintenance_claim(session: SessionId) -> Owner {
    Owner::new(MAINTENANCE, session)
}

/// A fresh maintenance claim of a release by force: it names the journal directory of the earlier
/// owner until that journal is void.
pub(super) fn voiding_claim(session: SessionId, journal_dir_id: Option<JournalDirId>) -> Owner {
    Owner { journal_dir_id, ..maintenance_claim(session) }
}

/// The directory of the journal that a maintenance claim has yet to void.
pub fn unvoided_journal_dir(owner: &Owner) -> Option<JournalDirId> {
    owner.journal_dir_id.filter(|_| is_maintenance(owner))
}

/// The state of the record before it was claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// Released: a failed opening may release it again.
    Released,
    /// Released by force, and interrupted before the journal in this directory was void (R34).
    Unfinished(JournalDirId),
    /// Owned by this node, which may hold a journal of it.
    Ours,
    /// Owned by another node, which may hold a journal of it: changes that only the journal holds
    /// are lost.
    Another,
}

/// Claims the dataset for `me`, if the record allows it. The claim of `me` is fresh (R31).
pub(super) fn take(
    dataset: &mut Dataset,
    me: &Owner,
    expired: Option<&ExpiredLease>,
) -> Result<Before, VolumeError> {
    let before = may_take(dataset, me, expired)?;
    dataset.owner = Some(match before {
        // Should this claim be interrupted too, the next one goes on.
        Before::Unfinished(dir) if is_maintenance(me) => {
            Owner { journal_dir_id: Some(dir), ..me.clone() }
        }
        _ => me.clone(),
    });
    Ok(before)
}

/// Decides whether `me` may become the owner.
pub(super) fn may_take(
    dataset: &Dataset,
    me: &Owner,
    expired: Option<&ExpiredLease>,
) -> Result<Before, VolumeError> {
    let name = || dataset.name.to_string();
    match dataset.state {
        State::Ready => {}
        State::Creating => return Err(VolumeError::Creating { dataset: name() }),
        State::Deleting => return Err(VolumeError::Deleting { dataset: name() }),
        State::Dead => {
            return Err(VolumeError::NotFound { what: format!("dataset {}", dataset.name) });
        }
    }
    if dataset.form == Form::Snapshot {
        return Err(VolumeError::ReadOnly { dataset: name() });
    }
    let id = dataset.id();
    match &dataset.owner {
        None => Ok(Before::Released),
        Some(owner) if is_maintenance(owner) => {
            Ok(unvoided_journal_dir(owner).map_or(Before::Released, Before::Unfinished))
        }
        // A session's volume may be open, and yields to no maintenance claim of the session.
        Some(owner) if owner.session == me.session && !is_maintenance(me) => Ok(Before::Ours),
        Some(owner) if expired.is_some_and(|expired| expired.covers(id, owner)) => {
            let is_same_dir =
                owner.journal_dir_id.is_some() && owner.journal_dir_id == me.journal_dir_id;
            Ok(if is_same_dir { Before::Ours } else { Before::Another })
        }
        Some(owner) => Err(VolumeError::Owned {
            dataset: name(),
            node: owner.node.clone(),
            owner: Box::new(owner.clone()),
        }),
    }
}

/// The ids under which one opening may be found in the record. A claim whose lease had expired is
/// written again under a fresh id: until the outcome of that write is known, the record may name
/// either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Claims {
    current: ClaimId,
    next: Option<ClaimId>,
}

impl Claims {
    pub fn new(claim: ClaimId) -> Self {
        Self { current: claim, next: None }
    }

    pub fn contain(&self, claim: ClaimId) -> bool {
        self.current == claim || self.next == Some(claim)
    }

    /// Claims the record again for the same owner; `false`: it names another claim by now. The id
    /// is `fresh`, unless the outcome of an earlier write is unknown.
    pub fn renew(&mut self, dataset: &mut Dataset, fresh: ClaimId) -> bool {
        let Some(owner) = dataset.owner.as_mut().filter(|owner| self.contain(owner.claim)) else {
            return false;
        };
        if self.next == Some(owner.claim) {
            // The write had succeeded, and others may have judged the claim since.
            *self = Self::new(owner.claim);
        }
        owner.claim = *self.next.get_or_insert(fresh);
        true
    }

    /// Notes that the record was written with `claim`.
    pub fn renewed(&mut self, claim: ClaimId) {
        *self = Self::new(claim);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Properties;
    use crate::types::{FamilyId, Incarnation, JournalDirId, Timestamp};

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
            modified: false,
            restoring: None,
            ephemeral: false,
            naming: Default::default(),
        }
    }

    fn owner(node: &str, session: u8) -> Owner {
        Owner::new(node, SessionId::from_bytes([session; 16]))
    }

    fn holds(dataset: &Dataset, me: &Owner) -> bool {
        dataset.owner.as_ref().is_some_and(|owner| owner.claim == me.claim)
    }

    fn claim(n: u8) -> ClaimId {
        ClaimId::from_bytes([n; 16])
    }

    fn with_journals(owner: Owner, dir: u8) -> Owner {
        Owner { journal_dir_id: Some(JournalDirId::from_bytes([dir; 16])), ..owner }
    }

    #[test]
    fn a_released_dataset_is_free_and_a_restart_takes_its_own_back() {
        let me = with_journals(owner("a", 1), 1);
        let mut free = dataset(State::Ready, None);
        assert_eq!(take(&mut free, &me, None).unwrap(), Before::Released);
        assert!(holds(&free, &me));
        let again = with_journals(owner("a", 2), 1);
        assert!(
            matches!(take(&mut free, &again, None), Err(VolumeError::Owned { .. })),
            "the folder may be a copy"
        );
        let over = ExpiredLease::of(free.id(), me.clone());
        assert_eq!(take(&mut free, &again, Some(&over)).unwrap(), Before::Ours);
        assert!(holds(&free, &again) && !holds(&free, &me));
    }

    #[test]
    fn a_session_that_claims_again_does_so_under_another_id() {
        let first = owner("a", 1);
        let mut owned = dataset(State::Ready, Some(first.clone()));
        let again = owner("a", 1);
        assert_eq!(take(&mut owned, &again, None).unwrap(), Before::Ours);
        assert!(holds(&owned, &again) && !holds(&owned, &first));
    }

    #[test]
    fn a_claim_is_renewed_under_another_id_each_time_it_may_have_been_seen() {
        let mut claims = Claims::new(claim(1));
        let mut record = dataset(State::Ready, Some(Owner { claim: claim(1), ..owner("a", 1) }));
        let before = record.clone();
        assert!(claims.renew(&mut record, claim(2)));
        let written = record.clone();
        // The outcome of the write is unknown: the record may be either.
        for mut found in [before, written.clone()] {
            assert!(claims.contain(found.owner.as_ref().unwrap().claim));
            let mut tried = claims;
            assert!(tried.renew(&mut found, claim(3)));
            let expected = if tried.contain(claim(1)) { claim(2) } else { claim(3) };
            assert_eq!(found.owner.as_ref().unwrap().claim, expected);
            tried.renewed(expected);
            assert!(tried.contain(expected) && !tried.contain(claim(1)));
        }
        let mut others = dataset(State::Ready, Some(owner("b", 2)));
        let unchanged = others.clone();
        assert!(!claims.renew(&mut others, claim(4)) && others == unchanged);
        assert!(!claims.renew(&mut dataset(State::Ready, None), claim(4)));
    }

    #[test]
    fn a_name_is_no_proof_of_being_the_one_before() {
        for twin in [with_journals(owner("a", 2), 2), owner("a", 2)] {
            for before in [with_journals(owner("a", 1), 1), owner("a", 1)] {
                let mut owned = dataset(State::Ready, Some(before));
                assert!(matches!(take(&mut owned, &twin, None), Err(VolumeError::Owned { .. })));
            }
        }
    }

    #[test]
    fn another_node_never_takes_it_and_is_told_whose_it_is() {
        let theirs = owner("a", 1);
        let mut owned = dataset(State::Ready, Some(theirs.clone()));
        let refused = take(&mut owned, &owner("b", 2), None);
        assert!(matches!(refused, Err(VolumeError::Owned { node, .. }) if node == "a"));
        for session in [1, 3] {
            let controller = maintenance_claim(SessionId::from_bytes([session; 16]));
            assert!(matches!(take(&mut owned, &controller, None), Err(VolumeError::Owned { .. })));
        }
        assert!(holds(&owned, &theirs));
    }

    #[test]
    fn a_maintenance_claim_yields_to_anyone() {
        let mut cared =
            dataset(State::Ready, Some(maintenance_claim(SessionId::from_bytes([3; 16]))));
        assert_eq!(
            take(&mut cared, &maintenance_claim(SessionId::from_bytes([4; 16])), None).unwrap(),
            Before::Released
        );
        assert_eq!(take(&mut cared, &owner("a", 1), None).unwrap(), Before::Released);
    }

    #[test]
    fn a_journal_that_is_not_void_yet_is_remembered_by_every_maintenance_claim() {
        let (session, dir) = (SessionId::from_bytes([3; 16]), JournalDirId::from_bytes([1; 16]));
        let mut forced = dataset(State::Ready, Some(voiding_claim(session, Some(dir))));
        for _ in 0..2 {
            assert_eq!(
                take(&mut forced, &maintenance_claim(session), None).unwrap(),
                Before::Unfinished(dir)
            );
            assert_eq!(forced.owner.as_ref().and_then(unvoided_journal_dir), Some(dir));
        }
        let me = with_journals(owner("a", 2), 1);
        assert_eq!(take(&mut forced, &me, None).unwrap(), Before::Unfinished(dir));
        assert_eq!(forced.owner.as_ref().and_then(unvoided_journal_dir), None);
    }

    #[test]
    fn a_snapshot_has_no_owner() {
        let mut frozen = Dataset { form: Form::Snapshot, ..dataset(State::Ready, None) };
        assert!(matches!(
            take(&mut frozen, &owner("a", 1), None),
            Err(VolumeError::ReadOnly { .. })
        ));
        assert_eq!(frozen.owner, None);
    }

    #[test]
    fn only_a_ready_dataset_is_taken() {
        for state in [State::Creating, State::Deleting, State::Dead] {
            assert!(take(&mut dataset(state, None), &owner("a", 1), None).is_err());
        }
    }
}
