//! Decides what may be deleted: a pure function of the facts.

use super::candidates::{Candidate, mostly_dead, obsolete_markers};
use super::checkpoints::{self, StrayCheckpoint};
use super::facts::Facts;
use super::retained::{Blockers, Retained, pending_snapshot, snapshot_name};
use super::{Listing, Objects, maintenance};
use crate::catalog::{Dataset, Snapshot, State};
use crate::chunk::{Generation, object_key};
use crate::types::{DatasetId, Epoch, FamilyId, Incarnation, PackId, SnapshotId, Timestamp};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

/// An older unfinished snapshot is abandoned, because its family's packs wait for it; and so is an
/// unfinished clone, because its source waits for it. A process that is still making it fails at
/// its last step and starts again, so that a wrong clock costs a retry and no data.
const INTENT_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

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
    /// Heads that may still make new references to it.
    pub(super) unsealed: Vec<Incarnation>,
}

/// The use of packs by all roots together.
#[derive(Clone, Debug, Default)]
pub(super) struct Mark {
    /// Packs with references from any root.
    pub(super) referenced: HashMap<PackId, PackUse>,
    /// Durable `S` of every head that has a database: its writer epoch and settled pack (R9).
    pub(super) creators: BTreeMap<Incarnation, (Epoch, u64)>,
    /// Tombstoned heads whose `S` could not be read: their packs stay.
    pub(super) unreadable: BTreeSet<Incarnation>,
    /// Snapshots that are being made and have no checkpoint yet, by family. The packs that one will
    /// refer to were fixed when the checkpoint was requested, which may be long before it is
    /// visible, and may be more than those of the head by now (R11).
    pub(super) pending_snapshots: BTreeMap<FamilyId, SnapshotId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeadPack {
    pub key: String,
    pub bytes: u64,
}

/// Objects of a database whose dataset has no record: a writer put them after its deletion.
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
    /// Clones that were not finished in time: they are tombstoned.
    pub abandoned_clones: Vec<DatasetId>,
    /// Snapshots that can never be finished, or were not finished in time: they are tombstoned.
    pub abandoned_snapshots: Vec<SnapshotId>,
    pub snapshots: Vec<SnapshotId>,
    pub datasets: Vec<DatasetId>,
    /// Clones to be detached from their origins.
    pub detach: Vec<DatasetId>,
    /// Released datasets whose databases hold enough obsolete objects to be collected.
    pub maintenance: Vec<DatasetId>,
    /// Packs that are mostly dead, judging without reading every extent.
    pub rewrite: Vec<Candidate>,
    /// Rewrite-pending markers of packs whose first object is gone.
    pub obsolete_markers: Vec<String>,
    pub retained: Vec<Retained>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        let intents = self.abandoned_snapshots.is_empty() && self.abandoned_clones.is_empty();
        let records = self.snapshots.is_empty() && self.datasets.is_empty();
        intents
            && records
            && self.packs.is_empty()
            && self.databases.is_empty()
            && self.checkpoints.is_empty()
    }

    /// Returns whether there is nothing to remove and nothing to maintain.
    pub(super) fn is_idle(&self) -> bool {
        let databases = self.detach.is_empty() && self.maintenance.is_empty();
        self.is_empty() && databases && self.rewrite.is_empty() && self.obsolete_markers.is_empty()
    }
}

pub(super) fn plan(facts: &Facts) -> Plan {
    let (catalog, mark) = (&facts.catalog, &facts.mark);
    let mut plan = Plan {
        databases: strays(&facts.databases, catalog),
        checkpoints: checkpoints::strays(&facts.checkpoints, catalog),
        abandoned_snapshots: abandoned_snapshots(catalog, facts.now),
        abandoned_clones: abandoned_clones(catalog, facts.now),
        detach: maintenance::detachable(catalog),
        maintenance: maintenance::due(facts, SystemTime::from(facts.now)),
        rewrite: mostly_dead(facts),
        obsolete_markers: obsolete_markers(&facts.pending, &facts.packs),
        ..Plan::default()
    };
    for (family, id) in &mark.pending_snapshots {
        plan.retained.push(pending_snapshot(catalog, *family, *id, INTENT_AGE_MAX));
    }
    let newest = newest(&facts.packs);
    let superseded = |object: &PackObject| {
        newest.get(&object.pack).is_some_and(|generation| object.generation < *generation)
    };
    let dead = |object: &&PackObject| superseded(object) || is_dead(catalog, mark, object);
    for object in facts.packs.iter().filter(dead) {
        plan.pack_bytes = plan.pack_bytes.saturating_add(object.bytes);
        plan.packs.push(DeadPack { key: object.key(), bytes: object.bytes });
    }
    for snapshot in catalog.snapshots.iter().filter(|s| is_tombstoned(&s.state)) {
        match blockers_of(snapshot, catalog) {
            blockers if blockers.is_empty() => plan.snapshots.push(snapshot.id()),
            blockers => plan.retained.push(Retained {
                what: snapshot_name(catalog, snapshot),
                why: blockers.to_string(),
            }),
        }
    }
    for dataset in catalog.datasets.iter().filter(|d| is_tombstoned(&d.state)) {
        let own = catalog.snapshots.iter().filter(|s| s.dataset.incarnation == dataset.incarnation);
        let why = match own.filter(|s| !plan.snapshots.contains(&s.id())).count() {
            0 => {
                plan.datasets.push(dataset.id());
                continue;
            }
            1 => "it has 1 snapshot".to_owned(),
            n => format!("it has {n} snapshots"),
        };
        plan.retained.push(Retained { what: format!("dataset {}", dataset.name), why });
    }
    plan
}

/// Databases without a record. They were listed before these records, and a record always exists
/// before its database (R3).
fn strays(databases: &Objects, catalog: &Listing) -> Vec<StrayDatabase> {
    let known: BTreeSet<Incarnation> = catalog.datasets.iter().map(|d| d.incarnation).collect();
    let strays = databases.iter().filter(|(incarnation, _)| !known.contains(incarnation));
    strays
        .map(|(incarnation, objects)| StrayDatabase {
            incarnation: *incarnation,
            keys: objects.iter().map(|object| object.key.clone()).collect(),
        })
        .collect()
}

/// Returns the dependants of a snapshot that still need it: clones that are not detached, and the
/// dataset that it was taken of while that restores from it (R14).
pub(super) fn live_dependants<'a>(
    snapshot: SnapshotId,
    datasets: impl IntoIterator<Item = &'a Dataset>,
) -> BTreeSet<Incarnation> {
    let depends = |d: &&Dataset| match d.incarnation == snapshot.dataset {
        true => d.state == State::Ready && d.restoring == Some(snapshot),
        false => !d.detached,
    };
    datasets.into_iter().filter(depends).map(|d| d.incarnation).collect()
}

/// Returns whether a record that decides which roots there are was added, removed or changed state.
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

/// R9: the pack's creator will make no reference that the mark does not show: the pack is settled
/// or of an earlier epoch, or the creator is gone (only after it was fenced).
pub(super) fn is_settled(catalog: &Listing, mark: &Mark, object: &PackObject) -> bool {
    let pack = object.pack;
    if mark.unreadable.contains(&pack.creator)
        || mark.pending_snapshots.contains_key(&object.family)
    {
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

/// The newest generation of each pack, which contains all of its chunks in use (R12).
pub(super) fn newest(packs: &[PackObject]) -> HashMap<PackId, Generation> {
    let mut newest = HashMap::new();
    for object in packs.iter().filter(|object| object.generation > 0) {
        let generation = newest.entry(object.pack).or_default();
        *generation = object.generation.max(*generation);
    }
    newest
}

/// Dependants that still exist, intents of clones that are not counted among them yet, and current
/// readers (R14).
fn blockers_of(snapshot: &Snapshot, catalog: &Listing) -> Blockers {
    let live = live_dependants(snapshot.id(), &catalog.datasets);
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
    let mut blockers = Blockers { readers, ..Blockers::default() };
    for dependant in snapshot.dependants.iter().filter(|d| live.contains(d)) {
        let name = catalog
            .datasets
            .iter()
            .find(|d| d.incarnation == *dependant)
            .map_or_else(|| dependant.to_string(), |d| d.name.to_string());
        match *dependant == snapshot.dataset.incarnation {
            true => blockers.restoring = Some(name),
            false => blockers.clones.push(name),
        }
    }
    blockers.clones.extend(catalog.datasets.iter().filter(intents).map(|d| d.name.to_string()));
    blockers
}

/// Only snapshots of a live dataset are ever finished, and only while a caller retries.
fn abandoned_snapshots(catalog: &Listing, now: Timestamp) -> Vec<SnapshotId> {
    let ready: BTreeSet<Incarnation> = catalog
        .datasets
        .iter()
        .filter(|d| d.state == State::Ready)
        .map(|d| d.incarnation)
        .collect();
    let is_abandoned = |s: &&Snapshot| {
        s.state == State::Creating
            && (is_old(s.created, now) || !ready.contains(&s.dataset.incarnation))
    };
    catalog.snapshots.iter().filter(is_abandoned).map(Snapshot::id).collect()
}

/// Intents of unfinished clones: the caller that began one may be gone together with its
/// PersistentVolumeClaim, and never retries.
fn abandoned_clones(catalog: &Listing, now: Timestamp) -> Vec<DatasetId> {
    let is_abandoned = |d: &&Dataset| d.state == State::Creating && is_old(d.created, now);
    catalog.datasets.iter().filter(is_abandoned).map(Dataset::id).collect()
}

pub(super) fn is_old(created: Timestamp, now: Timestamp) -> bool {
    let max = i64::try_from(INTENT_AGE_MAX.as_nanos()).unwrap_or(i64::MAX);
    now.as_nanos().saturating_sub(created.as_nanos()) > max
}

#[cfg(test)]
pub(super) mod tests;
