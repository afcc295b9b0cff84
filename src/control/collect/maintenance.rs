//! Maintenance of databases that stay: clones are detached from origins that wait for it (R13),
//! and obsolete objects of released databases are removed. Both are decided from listings alone, so
//! that idle volumes cost nothing.

use super::facts::Facts;
use super::{Collected, Collector, Listing, Objects, Retained};
use crate::bucket::Listed;
use crate::catalog::{CatalogError, Dataset, Form, State};
use crate::control::ControlError;
use crate::control::owner::{OwnerRequest, Owners};
use crate::fs::db::Detached;
use crate::types::{DatasetId, Incarnation};
use crate::volume::{VolumeError, collect_released, is_maintenance};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// Most ancestors that a clone may read before it is detached, even if nothing waits for that.
const DEPTH_MAX: usize = 4;
/// Most snapshots of one dataset, tombstoned ones included, before clones are detached from the
/// tombstoned ones.
const SNAPSHOTS_CROWDED: usize = 100;
/// The longest chain of clones that is followed; creation stops long before.
const CHAIN_MAX: usize = 64;
/// Most clones detached in one pass: each is a rewrite of a whole database.
const DETACHED_MAX: usize = 8;
/// Fewest certainly obsolete objects for which a database is collected.
const OBSOLETE_MIN: usize = 16;
/// Younger objects are not counted: a collection leaves them too.
const AGE_MIN: Duration = Duration::from_secs(3600);

/// The clones to detach, in the order of their creation.
pub(super) fn detachable(catalog: &Listing) -> Vec<DatasetId> {
    let by_incarnation: BTreeMap<Incarnation, &Dataset> =
        catalog.datasets.iter().map(|d| (d.incarnation, d)).collect();
    let mut snapshots = BTreeMap::<Incarnation, usize>::new();
    for snapshot in &catalog.snapshots {
        *snapshots.entry(snapshot.dataset.incarnation).or_default() += 1;
    }
    let crowded = |clone: &Dataset| {
        clone.origin.is_some_and(|origin| {
            let tombstoned =
                catalog.snapshots.iter().any(|s| s.id() == origin && s.state == State::Deleting);
            tombstoned && snapshots.get(&origin.dataset).is_some_and(|n| *n > SNAPSHOTS_CROWDED)
        })
    };
    // A read-only volume is its origin's snapshot, and is never detached.
    let clone = |d: &&Dataset| d.form == Form::Writable && d.origin.is_some() && !d.detached;
    let attached = catalog.datasets.iter().filter(|d| d.state == State::Ready).filter(clone);
    let mut found: Vec<&Dataset> =
        attached.filter(|clone| must_detach(clone, &by_incarnation) || crowded(clone)).collect();
    found.sort_by_key(|clone| clone.created);
    found.into_iter().map(Dataset::id).collect()
}

/// Returns whether an ancestor is tombstoned, or the clone may read too many. A clone made from an
/// ancestor before that was detached may still read the ancestor's own ancestors, and the same
/// holds for an ancestor without a record.
fn must_detach(clone: &Dataset, by_incarnation: &BTreeMap<Incarnation, &Dataset>) -> bool {
    let (mut depth, mut counts, mut at) = (0, true, clone);
    for _ in 0..CHAIN_MAX {
        let Some(origin) = at.origin else { return false };
        let Some(next) = by_incarnation.get(&origin.dataset) else { return true };
        depth += usize::from(counts);
        if next.state != State::Ready || depth > DEPTH_MAX {
            return true;
        }
        counts &= !next.detached;
        at = next;
    }
    true
}

/// The released datasets whose databases hold enough obsolete objects to be collected, and have
/// another number of objects than after their last collection.
pub(super) fn due(facts: &Facts, now: SystemTime) -> Vec<DatasetId> {
    let mut found = overgrown(&facts.catalog, &facts.databases, now);
    found.retain(|id| {
        let objects = facts.databases.get(&id.incarnation).map_or(0, Vec::len);
        facts.collected_sizes.get(&id.incarnation) != Some(&objects)
    });
    found
}

fn overgrown(catalog: &Listing, databases: &Objects, now: SystemTime) -> Vec<DatasetId> {
    let released =
        |d: &&Dataset| d.state == State::Ready && d.owner.as_ref().is_none_or(is_maintenance);
    let mut found = Vec::new();
    for dataset in catalog.datasets.iter().filter(released) {
        let Some(objects) = databases.get(&dataset.incarnation) else { continue };
        let own = catalog.snapshots.iter().filter(|s| s.dataset.incarnation == dataset.incarnation);
        // Each snapshot retains a manifest, and so does the pin of each clone.
        let pins: usize = own.map(|snapshot| 1 + snapshot.dependants.len()).sum();
        if obsolete(objects, now).saturating_sub(pins) >= OBSOLETE_MIN {
            found.push(dataset.id());
        }
    }
    found
}

/// Counts manifests, compaction records and WAL objects that are not the newest. Fences, which are
/// empty, stay for ever.
fn obsolete(objects: &[Listed], now: SystemTime) -> usize {
    let old = |listed: &&Listed| now.duration_since(listed.modified).is_ok_and(|age| age > AGE_MIN);
    let in_folder = |folder: &str| {
        let inside = |l: &&Listed| l.bytes > 0 && l.key.split('/').nth(2) == Some(folder);
        objects.iter().filter(inside).filter(old).count().saturating_sub(1)
    };
    in_folder("manifest") + in_folder("compactions") + in_folder("wal")
}

impl Collector {
    /// Detaches clones. Returns whether one was detached, so that another pass may find more.
    pub(super) async fn detach_all(
        &self,
        clones: &[DatasetId],
        done: &mut Collected,
    ) -> Result<bool, ControlError> {
        let owners = self.owners.waiting_once();
        for id in clones {
            if done.detached.len() >= DETACHED_MAX {
                break;
            }
            let Some(at) = self.pool.catalog.dataset_by_id(*id).await? else { continue };
            match Box::pin(self.detach(&owners, &at.record)).await {
                Ok(Detached::Whole) => done.detached.push(id.to_string()),
                Ok(Detached::Held) => {
                    let why = "older states of it still read its origin's database: its own \
                        snapshots, or readers for some minutes";
                    done.retained.push(Retained {
                        what: format!("dataset {} attached to its origin", at.record.name),
                        why: why.to_owned(),
                    });
                }
                Err(error) => {
                    done.retained.push(Retained {
                        what: format!("dataset {} attached to its origin", at.record.name),
                        why: error.to_string(),
                    });
                }
            }
        }
        Ok(!done.detached.is_empty())
    }

    /// The process that may write to the clone's database rewrites it; then the record is updated,
    /// and the clone is no longer its origin's dependant.
    async fn detach(&self, owners: &Owners, clone: &Dataset) -> Result<Detached, ControlError> {
        let id = clone.id();
        self.pool.step("collect.detach.begin").await?;
        let detached = owners.perform(&self.pool, clone, &OwnerRequest::Detach).await?;
        if detached == Detached::Whole {
            self.pool.step("collect.detach.whole").await?;
            let marked = self.pool.catalog.update_dataset(id, |dataset| {
                dataset.detached = true;
                Ok(())
            });
            match marked.await {
                Ok(_) | Err(CatalogError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            self.pool.step("collect.detach.recorded").await?;
            if let Some(origin) = clone.origin {
                self.forget_dependant(origin, id.incarnation).await?;
            }
        }
        Ok(detached)
    }

    /// Collects the databases of released datasets; one that a node has opened meanwhile is
    /// collected by its owner.
    pub(super) async fn collect_databases(
        &self,
        datasets: &[DatasetId],
        done: &mut Collected,
    ) -> Result<(), ControlError> {
        for id in datasets {
            match collect_released(self.volumes.settings(), &self.pool.catalog, *id).await {
                Ok(()) => {
                    done.databases += 1;
                    let left = self
                        .pool
                        .catalog
                        .bucket()
                        .list(&format!("vol/{}", id.incarnation))
                        .await?
                        .len();
                    self.memory.lock().sizes.insert(id.incarnation, left);
                }
                Err(
                    VolumeError::Owned { .. }
                    | VolumeError::NotFound { .. }
                    | VolumeError::Deleting { .. },
                ) => {}
                Err(error) => {
                    done.retained.push(Retained {
                        what: format!("obsolete objects of the database of {id}"),
                        why: error.to_string(),
                    });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::{dataset, snapshot};
    use super::*;
    use crate::catalog::Owner;
    use crate::types::SessionId;

    #[test]
    fn clones_are_detached_from_origins_that_go_and_from_long_chains() {
        let mut all = vec![dataset(1, State::Ready, None)];
        for n in 2..=6 {
            let origin = all.last().map(|d| snapshot(n + 100, d, State::Ready, &[]).id());
            all.push(dataset(n, State::Ready, origin));
        }
        let listing = |datasets: &[Dataset]| Listing {
            datasets: datasets.to_vec(),
            snapshots: vec![],
            ..Listing::default()
        };
        let ids = |n: &[usize]| n.iter().map(|n| all[*n].id()).collect::<Vec<_>>();
        assert_eq!(detachable(&listing(&all)), ids(&[5]), "five ancestors are too many");
        let mut shorter = all.clone();
        shorter[1].detached = true;
        assert_eq!(detachable(&listing(&shorter)), []);
        let mut gone = all.clone();
        gone[0].state = State::Deleting;
        assert_eq!(detachable(&listing(&gone)), ids(&[1, 2, 3, 4, 5]), "all that may read it");
        gone[1].detached = true;
        assert_eq!(
            detachable(&listing(&gone)),
            ids(&[2, 3, 4, 5]),
            "one that was cloned before too"
        );
        assert_eq!(
            detachable(&listing(&all[1..3])),
            ids(&[1, 2]),
            "nobody knows what one without a record held"
        );
    }

    #[test]
    fn databases_are_collected_once_it_is_worth_it() {
        let owner = dataset(1, State::Ready, None);
        let now = SystemTime::UNIX_EPOCH + 10 * AGE_MIN;
        let object = |folder: &str, n: u64, bytes: u64, modified: SystemTime| Listed {
            key: format!("vol/{}/{folder}/{n:020}", owner.incarnation),
            bytes,
            modified,
            tag: None,
        };
        let grown = |snapshots: Vec<_>, objects: Vec<Listed>| {
            let listing =
                Listing { datasets: vec![owner.clone()], snapshots, ..Listing::default() };
            overgrown(&listing, &BTreeMap::from([(owner.incarnation, objects)]), now).len()
        };
        let many = |folder: &str, bytes: u64, at: SystemTime| {
            (0..17).map(|n| object(folder, n, bytes, at)).collect::<Vec<_>>()
        };
        assert_eq!(grown(vec![], many("wal", 5, SystemTime::UNIX_EPOCH)), 1);
        assert_eq!(grown(vec![], many("wal", 0, SystemTime::UNIX_EPOCH)), 0, "fences");
        assert_eq!(grown(vec![], many("wal", 5, now)), 0, "young");
        assert_eq!(
            grown(vec![], many("compacted", 5, SystemTime::UNIX_EPOCH)),
            0,
            "may all be needed"
        );
        let kept = snapshot(7, &owner, State::Ready, &[2]);
        assert_eq!(
            grown(vec![kept], many("manifest", 5, SystemTime::UNIX_EPOCH)),
            0,
            "a snapshot and its clone keep two"
        );
        let mut taken = owner.clone();
        taken.owner = Some(Owner::new("n", SessionId::from_bytes([1; 16])));
        let listing = Listing { datasets: vec![taken], snapshots: vec![], ..Listing::default() };
        let objects = BTreeMap::from([(owner.incarnation, many("wal", 5, SystemTime::UNIX_EPOCH))]);
        assert!(overgrown(&listing, &objects, now).is_empty(), "its owner does it");
    }
}
