//! Plans of small pools.

use super::*;
use crate::catalog::{Form, Properties};
use crate::types::{FamilyId, NameKey, Timestamp};

const NOW: Timestamp = Timestamp::from_nanos(1_000_000_000);

fn family(n: u8) -> FamilyId {
    FamilyId::from(Incarnation::from_bytes([n; 16]))
}

pub fn dataset(n: u8, state: State, origin: Option<SnapshotId>) -> Dataset {
    let incarnation = Incarnation::from_bytes([n; 16]);
    Dataset {
        name: format!("d{n}").parse().unwrap(),
        incarnation,
        family: family(1),
        origin,
        state,
        created: Timestamp::from_nanos(0),
        size: None,
        properties: Properties::default(),
        access_modes: vec![],
        owner: None,
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

pub fn snapshot(n: u8, of: &Dataset, state: State, dependants: &[u8]) -> Snapshot {
    Snapshot {
        name: format!("s{n}").parse().unwrap(),
        incarnation: Incarnation::from_bytes([n; 16]),
        dataset: of.id(),
        family: of.family,
        state,
        created: Timestamp::from_nanos(0),
        checkpoint: Some([n; 16]),
        size: None,
        referenced: None,
        properties: Properties::default(),
        dependants: dependants.iter().map(|d| Incarnation::from_bytes([*d; 16])).collect(),
        serial: u32::from(n),
        implied: false,
        slot: None,
        holds: BTreeSet::new(),
        group: None,
    }
}

fn pack(creator: u8, epoch: u64, seq: u64) -> PackObject {
    let pack = PackId { creator: Incarnation::from_bytes([creator; 16]), epoch: Epoch(epoch), seq };
    PackObject { family: family(1), pack, generation: 0, bytes: 10 }
}

fn plan_of(catalog: &Listing, mark: &Mark, packs: &[PackObject], now: Timestamp) -> Plan {
    let (catalog, mark, packs) = (catalog.clone(), mark.clone(), packs.to_vec());
    plan(&Facts { now, catalog, mark, packs, ..Facts::default() })
}

fn swept(listing: &Listing, mark: &Mark, object: &PackObject) -> bool {
    plan_of(listing, mark, std::slice::from_ref(object), NOW).packs.len() == 1
}

#[test]
fn a_pack_goes_only_on_its_creators_word() {
    let listing = Listing {
        datasets: vec![dataset(1, State::Ready, None), dataset(2, State::Dead, None)],
        snapshots: vec![],
        ..Listing::default()
    };
    let mut mark = Mark::default();
    mark.creators.insert(Incarnation::from_bytes([1; 16]), (Epoch(3), 5));
    assert!(swept(&listing, &mark, &pack(1, 2, 99)), "an earlier epoch");
    assert!(swept(&listing, &mark, &pack(1, 3, 5)), "settled");
    assert!(!swept(&listing, &mark, &pack(1, 3, 6)), "not settled yet");
    assert!(!swept(&listing, &mark, &pack(1, 4, 0)), "an epoch that S does not know yet");
    assert!(swept(&listing, &mark, &pack(2, 1, 1)), "the creator is dead");
    assert!(swept(&listing, &mark, &pack(9, 1, 1)), "the creator has no record");
    mark.referenced.insert(pack(1, 2, 99).pack, PackUse { refs: 1, unsealed: vec![] });
    assert!(!swept(&listing, &mark, &pack(1, 2, 99)), "referenced");
    mark.creators.clear();
    assert!(!swept(&listing, &mark, &pack(1, 1, 1)), "a live creator whose S is not in the mark");
}

#[test]
fn any_record_that_comes_goes_or_changes_state_restarts_the_mark() {
    let one = dataset(1, State::Ready, None);
    let before = Listing { datasets: vec![one.clone()], snapshots: vec![], ..Listing::default() };
    let born = Listing {
        datasets: vec![one.clone(), dataset(2, State::Ready, None)],
        snapshots: vec![],
        ..Listing::default()
    };
    let gone = Listing::default();
    let turned = Listing {
        datasets: vec![dataset(1, State::Deleting, None)],
        snapshots: vec![],
        ..Listing::default()
    };
    let taken =
        Listing { snapshots: vec![snapshot(7, &one, State::Creating, &[])], ..before.clone() };
    let mut passed = before.clone();
    passed.datasets[0].snapshot_serial += 1;
    for after in [born, gone, turned, taken, passed] {
        assert!(changed(&before, &after), "{after:?}");
    }
    assert!(!changed(&before, &before));
}

#[test]
fn tombstones_wait_for_what_depends() {
    let source = dataset(1, State::Deleting, None);
    let cut = snapshot(7, &source, State::Deleting, &[2]);
    let clone = dataset(2, State::Ready, Some(cut.id()));
    let mark = Mark::default();
    let held = Listing {
        datasets: vec![source.clone(), clone],
        snapshots: vec![cut.clone()],
        ..Listing::default()
    };
    let planned = plan_of(&held, &mark, &[], NOW);
    assert!(planned.is_empty());
    let told: Vec<_> =
        planned.retained.iter().map(|it| format!("{}: {}", it.what, it.why)).collect();
    assert_eq!(
        told,
        ["snapshot s7 of dataset d1: clone d2 depends on it", "dataset d1: it has 1 snapshot"]
    );

    let freed = Listing {
        datasets: vec![source.clone()],
        snapshots: vec![cut.clone()],
        ..Listing::default()
    };
    let planned = plan_of(&freed, &mark, &[], NOW);
    assert_eq!((planned.snapshots, planned.datasets), (vec![cut.id()], vec![source.id()]));

    let readers = BTreeMap::from([(cut.incarnation, 1)]);
    let read = Listing { readers, ..freed.clone() };
    assert!(plan_of(&read, &mark, &[], NOW).is_empty(), "somebody reads it");
    let dead = Listing { snapshots: vec![Snapshot { state: State::Dead, ..cut.clone() }], ..read };
    assert_eq!(plan_of(&dead, &mark, &[], NOW).snapshots, [cut.id()], "its removal has begun");

    let itself = snapshot(7, &source, State::Deleting, &[1]);
    let both = Listing { snapshots: vec![itself.clone()], ..freed.clone() };
    assert_eq!(
        plan_of(&both, &mark, &[], NOW).snapshots,
        [itself.id()],
        "a restore that never ended"
    );
    let restoring =
        |of| Dataset { restoring: of, detached: true, ..dataset(1, State::Ready, None) };
    let live = Listing { datasets: vec![restoring(Some(itself.id()))], ..both.clone() };
    assert!(plan_of(&live, &mark, &[], NOW).is_empty(), "a restore that may go on");
    let ended = Listing { datasets: vec![restoring(None)], ..both };
    assert_eq!(
        plan_of(&ended, &mark, &[], NOW).snapshots,
        [itself.id()],
        "a restore that was ended by another owner"
    );

    let bare = snapshot(7, &source, State::Deleting, &[]);
    let intent = dataset(3, State::Creating, Some(bare.id()));
    let begun =
        Listing { datasets: vec![source, intent], snapshots: vec![bare], ..Listing::default() };
    assert!(
        plan_of(&begun, &mark, &[], NOW).is_empty(),
        "a clone that is being made needs its source"
    );
    assert_ne!(NameKey::of("dataset", "d1"), NameKey::of("snapshot", "d1"));
}

#[test]
fn a_snapshot_that_may_still_become_a_root_keeps_its_familys_packs() {
    let source = dataset(1, State::Ready, None);
    let cut = Snapshot { checkpoint: None, ..snapshot(7, &source, State::Creating, &[]) };
    let listing = Listing {
        datasets: vec![source.clone(), dataset(2, State::Dead, None)],
        snapshots: vec![cut.clone()],
        ..Listing::default()
    };
    let mut mark = Mark::default();
    mark.creators.insert(source.incarnation, (Epoch(3), 5));
    assert!(swept(&listing, &mark, &pack(1, 2, 9)));
    mark.pending_snapshots.insert(cut.family, cut.id());
    assert!(!swept(&listing, &mark, &pack(1, 2, 9)));
    let elsewhere = PackObject { family: family(9), ..pack(2, 1, 1) };
    assert!(swept(&listing, &mark, &elsewhere), "another family's");
    let retained = plan_of(&listing, &mark, &[], NOW).retained;
    let [Retained { what, why }] = retained.as_slice() else {
        panic!("the report says what is waited for: {retained:?}")
    };
    assert!(what.contains("packs of d1"), "{what}");
    let cure = "snapshot d1@s7 was started at 1970-01-01T00:00:00Z and is not finished: retry \
        `dataset snapshot create d1 s7`, or delete it";
    assert_eq!(*why, format!("{cure}; it is abandoned after 1day"));
}

#[test]
fn only_intents_that_cannot_be_finished_or_are_old_are_abandoned() {
    let mark = Mark::default();
    let abandoned = |datasets: Vec<Dataset>, cut: &Snapshot, now| {
        let listing = Listing { datasets, snapshots: vec![cut.clone()], ..Listing::default() };
        plan_of(&listing, &mark, &[], now).abandoned_snapshots
    };
    let (live, gone) = (dataset(1, State::Ready, None), dataset(1, State::Deleting, None));
    let cut = Snapshot { checkpoint: None, ..snapshot(7, &live, State::Creating, &[]) };
    assert_eq!(abandoned(vec![live.clone()], &cut, NOW), []);
    assert_eq!(abandoned(vec![gone.clone()], &cut, NOW), [cut.id()]);
    assert_eq!(abandoned(vec![], &cut, NOW), [cut.id()]);
    let late = Timestamp::from_nanos(0).saturating_add(INTENT_AGE_MAX + Duration::from_secs(1));
    assert_eq!(abandoned(vec![live.clone()], &cut, late), [cut.id()]);
    for state in [State::Ready, State::Deleting, State::Dead] {
        let done = Snapshot { state, ..cut.clone() };
        assert_eq!(abandoned(vec![gone.clone()], &done, late), []);
    }
}

#[test]
fn only_clones_that_nobody_finishes_are_abandoned() {
    let mark = Mark::default();
    let unfinished = |state, now| {
        let listing = Listing { datasets: vec![dataset(1, state, None)], ..Listing::default() };
        plan_of(&listing, &mark, &[], now).abandoned_clones.len()
    };
    let late = Timestamp::from_nanos(0).saturating_add(INTENT_AGE_MAX + Duration::from_secs(1));
    assert_eq!((unfinished(State::Creating, NOW), unfinished(State::Creating, late)), (0, 1));
    for state in [State::Ready, State::Deleting, State::Dead] {
        assert_eq!(unfinished(state, late), 0);
    }
}
