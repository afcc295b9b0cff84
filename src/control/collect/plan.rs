//! Decides what may be deleted: a pure function of the listings and of the roots read.

use super::checkpoints::StrayCheckpoint;
use super::kept::{Kept, Needs, snapshot_name, unborn};
use super::{Listing, Objects};
use crate::bucket::Listed;
use crate::catalog::{Dataset, Snapshot, State};
use crate::chunk::{Generation, object_key};
use crate::types::{DatasetId, Epoch, FamilyId, Incarnation, PackId, SnapshotId, Timestamp};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

/// A snapshot that is unfinished for this long is abandoned, because its family's packs wait for
/// it; and so is a clone, because its source waits for it. A process that is still making it fails
/// at its last step and starts again, so that a wrong clock costs a retry and no data.
const INTENT_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// A pack object, as listed before any root was read. There may be millions: 64 bytes each, four
/// million of them for 64 TB in packs of 16 MB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PackObject {
    pub(super) family: FamilyId,
    pub(super) pack: PackId,
    pub(super) generation: Generation,
    pub(super) bytes: u64,
}

impl PackObject {
    pub(super) fn key(&self) -> String {
        object_key(self.family, self.pack, self.generation)
    }
}

/// The roots' use of a pack.
#[derive(Clone, Debug, Default)]
pub(super) struct PackUse {
    /// The most references of one root.
    pub(super) refs: u64,
    /// Heads that may still find new uses for it.
    pub(super) unsealed: Vec<Incarnation>,
}

/// The results of reading every root.
#[derive(Clone, Debug, Default)]
pub(super) struct Mark {
    /// Packs with references from any root.
    pub(super) referenced: HashMap<PackId, PackUse>,
    /// Durable `S` of every head that has a database: its writer epoch and settled pack (R9).
    pub(super) creators: BTreeMap<Incarnation, (Epoch, u64)>,
    /// Heads whose `S` could not be read, though nothing needs it but their packs.
    pub(super) unknown: BTreeSet<Incarnation>,
    /// Snapshots that are being made and show no checkpoint yet, by family. What one will refer to
    /// was fixed when it was asked for, which may be long before it shows, and may be more than the
    /// head refers to by now (R11).
    pub(super) unborn: BTreeMap<FamilyId, SnapshotId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeadPack {
    pub key: String,
    pub bytes: u64,
}

/// A pack in use that is to be rewritten without its dead chunks (R12).
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

/// Objects of a database whose dataset has no record: what a writer put there after its deletion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StrayDatabase {
    pub incarnation: Incarnation,
    pub keys: Vec<String>,
}

/// One pass: packs to sweep, then snapshots, then datasets to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub packs: Vec<DeadPack>,
    pub pack_bytes: u64,
    pub databases: Vec<StrayDatabase>,
    pub checkpoints: Vec<StrayCheckpoint>,
    /// Clones that were begun and abandoned: they are tombstoned.
    pub unfinished: Vec<DatasetId>,
    /// Snapshots that are being made and can never be finished, or were abandoned: they are
    /// tombstoned.
    pub abandoned: Vec<SnapshotId>,
    pub snapshots: Vec<SnapshotId>,
    pub datasets: Vec<DatasetId>,
    /// Clones to be detached.
    pub detach: Vec<DatasetId>,
    /// Released datasets whose databases have outlived much.
    pub upkeep: Vec<DatasetId>,
    /// Packs that are mostly dead, judging without reading every extent.
    pub rewrite: Vec<Candidate>,
    /// Rewrite-pending markers of packs whose first object is gone.
    pub rewrite_pending: Vec<String>,
    pub kept: Vec<Kept>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        let intents = self.abandoned.is_empty() && self.unfinished.is_empty();
        let records = self.snapshots.is_empty() && self.datasets.is_empty();
        intents
            && records
            && self.packs.is_empty()
            && self.databases.is_empty()
            && self.checkpoints.is_empty()
    }

    /// Returns whether the plan is empty: nothing to remove and nothing to maintain.
    pub(super) fn is_idle(&self) -> bool {
        let upkeep = self.detach.is_empty() && self.upkeep.is_empty() && self.rewrite.is_empty();
        self.is_empty() && upkeep && self.rewrite_pending.is_empty()
    }
}

/// `None`: the catalog changed between the listings in a way that matters, so the mark proves
/// nothing (R11).
pub(super) fn plan(
    before: &Listing,
    after: &Listing,
    packs: &[PackObject],
    mark: &Mark,
    now: Timestamp,
) -> Option<Plan> {
    if changed(before, after) {
        return None;
    }
    let mut plan = Plan {
        abandoned: abandoned(after, now),
        unfinished: unfinished(after, now),
        ..Plan::default()
    };
    for (family, id) in &mark.unborn {
        plan.kept.push(unborn(after, *family, *id, INTENT_KEPT));
    }
    let newest = newest(packs);
    let superseded = |object: &PackObject| {
        newest.get(&object.pack).is_some_and(|generation| object.generation < *generation)
    };
    for object in packs.iter().filter(|object| superseded(object) || is_dead(after, mark, object)) {
        plan.pack_bytes = plan.pack_bytes.saturating_add(object.bytes);
        plan.packs.push(DeadPack { key: object.key(), bytes: object.bytes });
    }
    for snapshot in after.snapshots.iter().filter(|s| is_tombstoned(&s.state)) {
        match needed_by(snapshot, after) {
            needs if needs.is_empty() => plan.snapshots.push(snapshot.id()),
            needs => plan
                .kept
                .push(Kept { what: snapshot_name(after, snapshot), why: needs.to_string() }),
        }
    }
    for dataset in after.datasets.iter().filter(|d| is_tombstoned(&d.state)) {
        let mine = after.snapshots.iter().filter(|s| s.dataset.incarnation == dataset.incarnation);
        match mine.filter(|s| !plan.snapshots.contains(&s.id())).count() {
            0 => plan.datasets.push(dataset.id()),
            1 => plan.kept.push(Kept {
                what: format!("dataset {}", dataset.name),
                why: "it has 1 snapshot".to_owned(),
            }),
            n => plan.kept.push(Kept {
                what: format!("dataset {}", dataset.name),
                why: format!("it has {n} snapshots"),
            }),
        }
    }
    Some(plan)
}

/// Databases without a record. They were listed before these records, and a record is always there
/// before its database (R3).
pub(super) fn strays(databases: Objects, after: &Listing) -> Vec<StrayDatabase> {
    let stray =
        |incarnation: &Incarnation| !after.datasets.iter().any(|d| d.incarnation == *incarnation);
    let keys = |objects: Vec<Listed>| objects.into_iter().map(|object| object.key).collect();
    let strays = databases.into_iter().filter(|(id, _)| stray(id));
    strays
        .map(|(incarnation, objects)| StrayDatabase { incarnation, keys: keys(objects) })
        .collect()
}

/// Returns the dependants of a snapshot that still need it: clones that are not detached, and the
/// dataset that it was taken of while that restores from it (R14).
pub(super) fn keepers<'a>(
    snapshot: SnapshotId,
    datasets: impl IntoIterator<Item = &'a Dataset>,
) -> BTreeSet<Incarnation> {
    let keeps = |d: &&Dataset| match d.incarnation == snapshot.dataset {
        true => d.state == State::Ready && d.restoring == Some(snapshot),
        false => !d.detached,
    };
    datasets.into_iter().filter(keeps).map(|d| d.incarnation).collect()
}

/// Returns whether a record that decides about roots was added, removed or changed state.
pub(super) fn changed(before: &Listing, after: &Listing) -> bool {
    shape(before) != shape(after)
}

fn is_tombstoned(state: &State) -> bool {
    matches!(state, State::Deleting | State::Dead)
}

/// The part of a listing that decides which roots there are: for a snapshot whether it has a
/// checkpoint, for a dataset how many snapshots it has ever had. Only that number shows that a
/// snapshot came and went between two listings: data that it retained may be in the head again,
/// which was read before. Datasets are listed first: a snapshot that the number counts and the
/// listing lacks was removed before any root was read.
fn shape(listing: &Listing) -> BTreeSet<(String, &'static str, u32)> {
    let state = |state: &State| match state {
        State::Creating => "creating",
        State::Ready => "ready",
        State::Deleting => "deleting",
        State::Dead => "dead",
    };
    let datasets =
        listing.datasets.iter().map(|d| (d.id().to_string(), state(&d.state), d.snapshot_serial));
    let snapshots = listing
        .snapshots
        .iter()
        .map(|s| (s.id().to_string(), state(&s.state), s.checkpoint.is_some().into()));
    datasets.chain(snapshots).collect()
}

/// Returns whether a pack is unreferenced, and will never be referred to.
fn is_dead(catalog: &Listing, mark: &Mark, object: &PackObject) -> bool {
    !mark.referenced.contains_key(&object.pack) && is_settled(catalog, mark, object)
}

/// R9: its creator will make no use of it that the mark does not show: settled, of an earlier
/// epoch, or gone (which it is only after it was fenced).
fn is_settled(catalog: &Listing, mark: &Mark, object: &PackObject) -> bool {
    let pack = object.pack;
    if mark.unknown.contains(&pack.creator) || mark.unborn.contains_key(&object.family) {
        return false;
    }
    match mark.creators.get(&pack.creator) {
        Some((epoch, settled)) => {
            pack.epoch < *epoch || (pack.epoch == *epoch && pack.seq <= *settled)
        }
        // A record without a database in the mark: dead ones were fenced, others may be about to be
        // opened.
        None => !catalog
            .datasets
            .iter()
            .any(|d| d.incarnation == pack.creator && d.state != State::Dead),
    }
}

/// The newest generation of each pack: it holds all that is in use of it (R12).
fn newest(packs: &[PackObject]) -> HashMap<PackId, Generation> {
    let mut newest = HashMap::new();
    for object in packs.iter().filter(|object| object.generation > 0) {
        let generation = newest.entry(object.pack).or_default();
        *generation = object.generation.max(*generation);
    }
    newest
}

/// Returns the packs in use of at least `bytes_min` that take no more chunks, and the bytes that
/// each family stores.
pub(super) fn candidates(
    catalog: &Listing,
    packs: &[PackObject],
    mark: &Mark,
    bytes_min: u64,
) -> (Vec<Candidate>, BTreeMap<FamilyId, u64>) {
    let newest = newest(packs);
    let (mut found, mut stored) = (Vec::new(), BTreeMap::<FamilyId, u64>::new());
    for object in packs {
        *stored.entry(object.family).or_default() += object.bytes;
        let Some(used) = mark.referenced.get(&object.pack) else { continue };
        let is_newest = newest.get(&object.pack).copied().unwrap_or(0) == object.generation;
        if is_newest && object.bytes >= bytes_min && is_settled(catalog, mark, object) {
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
    (found, stored)
}

/// Dependants that still exist, intents of clones that are not counted among them yet, and whoever
/// reads it now (R14).
fn needed_by(snapshot: &Snapshot, catalog: &Listing) -> Needs {
    let keepers = keepers(snapshot.id(), &catalog.datasets);
    let intents = |d: &&Dataset| {
        d.state == State::Creating
            && d.origin == Some(snapshot.id())
            && !snapshot.dependants.contains(&d.incarnation)
    };
    let readers = if snapshot.state == State::Dead {
        0
    } else {
        catalog.readers.get(&snapshot.incarnation).copied().unwrap_or(0)
    };
    let mut needs = Needs { readers, ..Needs::default() };
    for keeper in snapshot.dependants.iter().filter(|d| keepers.contains(d)) {
        let name = catalog
            .datasets
            .iter()
            .find(|d| d.incarnation == *keeper)
            .map_or_else(|| keeper.to_string(), |d| d.name.to_string());
        match *keeper == snapshot.dataset.incarnation {
            true => needs.restores = Some(name),
            false => needs.clones.push(name),
        }
    }
    needs.clones.extend(catalog.datasets.iter().filter(intents).map(|d| d.name.to_string()));
    needs
}

/// Only snapshots of a live dataset are ever finished, and only while a caller retries.
fn abandoned(catalog: &Listing, now: Timestamp) -> Vec<SnapshotId> {
    let ready: BTreeSet<Incarnation> = catalog
        .datasets
        .iter()
        .filter(|d| d.state == State::Ready)
        .map(|d| d.incarnation)
        .collect();
    let given_up = |s: &&Snapshot| {
        s.state == State::Creating
            && (is_old(s.created, now) || !ready.contains(&s.dataset.incarnation))
    };
    catalog.snapshots.iter().filter(given_up).map(Snapshot::id).collect()
}

/// Intents of unfinished clones: the caller that began one may be gone together with its
/// PersistentVolumeClaim, and never retries.
fn unfinished(catalog: &Listing, now: Timestamp) -> Vec<DatasetId> {
    let given_up = |d: &&Dataset| d.state == State::Creating && is_old(d.created, now);
    catalog.datasets.iter().filter(given_up).map(Dataset::id).collect()
}

fn is_old(created: Timestamp, now: Timestamp) -> bool {
    let kept = i64::try_from(INTENT_KEPT.as_nanos()).unwrap_or(i64::MAX);
    now.as_nanos().saturating_sub(created.as_nanos()) > kept
}

#[cfg(test)]
pub(super) mod tests {
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
            restoring: None,
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
        }
    }

    fn pack(creator: u8, epoch: u64, seq: u64) -> PackObject {
        let pack =
            PackId { creator: Incarnation::from_bytes([creator; 16]), epoch: Epoch(epoch), seq };
        PackObject { family: family(1), pack, generation: 0, bytes: 10 }
    }

    fn swept(listing: &Listing, mark: &Mark, object: &PackObject) -> bool {
        plan(listing, listing, std::slice::from_ref(object), mark, NOW).unwrap().packs.len() == 1
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
        assert!(
            !swept(&listing, &mark, &pack(1, 1, 1)),
            "a live creator whose S is not in the mark"
        );
    }

    #[test]
    fn any_record_that_comes_goes_or_turns_restarts_the_mark() {
        let one = dataset(1, State::Ready, None);
        let before =
            Listing { datasets: vec![one.clone()], snapshots: vec![], ..Listing::default() };
        let mark = Mark::default();
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
            assert_eq!(plan(&before, &after, &[], &mark, NOW), None);
        }
        assert!(plan(&before, &before, &[], &mark, NOW).is_some());
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
        let planned = plan(&held, &held, &[], &mark, NOW).unwrap();
        assert!(planned.is_empty());
        let told: Vec<_> =
            planned.kept.iter().map(|kept| format!("{}: {}", kept.what, kept.why)).collect();
        assert_eq!(
            told,
            ["snapshot s7 of dataset d1: clone d2 stands on it", "dataset d1: it has 1 snapshot"]
        );

        let freed = Listing {
            datasets: vec![source.clone()],
            snapshots: vec![cut.clone()],
            ..Listing::default()
        };
        let planned = plan(&freed, &freed, &[], &mark, NOW).unwrap();
        assert_eq!((planned.snapshots, planned.datasets), (vec![cut.id()], vec![source.id()]));

        let readers = BTreeMap::from([(cut.incarnation, 1)]);
        let read = Listing { readers, ..freed.clone() };
        assert!(plan(&read, &read, &[], &mark, NOW).unwrap().is_empty(), "somebody reads it");
        let dead =
            Listing { snapshots: vec![Snapshot { state: State::Dead, ..cut.clone() }], ..read };
        assert_eq!(
            plan(&dead, &dead, &[], &mark, NOW).unwrap().snapshots,
            [cut.id()],
            "its removal has begun"
        );

        let itself = snapshot(7, &source, State::Deleting, &[1]);
        let both = Listing { snapshots: vec![itself.clone()], ..freed.clone() };
        assert_eq!(
            plan(&both, &both, &[], &mark, NOW).unwrap().snapshots,
            [itself.id()],
            "a restore that never ended"
        );
        let restoring =
            |of| Dataset { restoring: of, detached: true, ..dataset(1, State::Ready, None) };
        let live = Listing { datasets: vec![restoring(Some(itself.id()))], ..both.clone() };
        assert!(
            plan(&live, &live, &[], &mark, NOW).unwrap().is_empty(),
            "a restore that may go on"
        );
        let ended = Listing { datasets: vec![restoring(None)], ..both };
        assert_eq!(
            plan(&ended, &ended, &[], &mark, NOW).unwrap().snapshots,
            [itself.id()],
            "a restore that was ended by another owner"
        );

        let bare = snapshot(7, &source, State::Deleting, &[]);
        let intent = dataset(3, State::Creating, Some(bare.id()));
        let begun =
            Listing { datasets: vec![source, intent], snapshots: vec![bare], ..Listing::default() };
        assert!(
            plan(&begun, &begun, &[], &mark, NOW).unwrap().is_empty(),
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
        mark.unborn.insert(cut.family, cut.id());
        assert!(!swept(&listing, &mark, &pack(1, 2, 9)));
        let elsewhere = PackObject { family: family(9), ..pack(2, 1, 1) };
        assert!(swept(&listing, &mark, &elsewhere), "another family's");
        let kept = &plan(&listing, &listing, &[], &mark, NOW).unwrap().kept;
        let [Kept { what, why }] = kept.as_slice() else {
            panic!("the report says what is waited for: {kept:?}")
        };
        assert!(what.contains("packs of d1"), "{what}");
        let cure = "snapshot d1@s7 was begun 1970-01-01T00:00:00Z and is not finished: repeat \
            `dataset snapshot create d1 s7`, or delete it";
        assert_eq!(*why, format!("{cure}; it is given up after 1day"));
    }

    #[test]
    fn only_intents_that_cannot_be_finished_or_are_old_are_given_up() {
        let mark = Mark::default();
        let abandoned = |datasets: Vec<Dataset>, cut: &Snapshot, now| {
            let listing = Listing { datasets, snapshots: vec![cut.clone()], ..Listing::default() };
            plan(&listing, &listing, &[], &mark, now).unwrap().abandoned
        };
        let (live, gone) = (dataset(1, State::Ready, None), dataset(1, State::Deleting, None));
        let cut = Snapshot { checkpoint: None, ..snapshot(7, &live, State::Creating, &[]) };
        assert_eq!(abandoned(vec![live.clone()], &cut, NOW), []);
        assert_eq!(abandoned(vec![gone.clone()], &cut, NOW), [cut.id()]);
        assert_eq!(abandoned(vec![], &cut, NOW), [cut.id()]);
        let late = Timestamp::from_nanos(0).saturating_add(INTENT_KEPT + Duration::from_secs(1));
        assert_eq!(abandoned(vec![live.clone()], &cut, late), [cut.id()]);
        for state in [State::Ready, State::Deleting, State::Dead] {
            let done = Snapshot { state, ..cut.clone() };
            assert_eq!(abandoned(vec![gone.clone()], &done, late), []);
        }
    }

    #[test]
    fn only_clones_that_nobody_finishes_are_given_up() {
        let mark = Mark::default();
        let unfinished = |state, now| {
            let listing = Listing { datasets: vec![dataset(1, state, None)], ..Listing::default() };
            plan(&listing, &listing, &[], &mark, now).unwrap().unfinished.len()
        };
        let late = Timestamp::from_nanos(0).saturating_add(INTENT_KEPT + Duration::from_secs(1));
        assert_eq!((unfinished(State::Creating, NOW), unfinished(State::Creating, late)), (0, 1));
        for state in [State::Ready, State::Deleting, State::Dead] {
            assert_eq!(unfinished(state, late), 0);
        }
    }
}
