//! Snapshots, below the incarnation of their dataset; and the CSI names of snapshots, which are
//! unique in the pool.

use super::chain::{Chain, Newest, Versioned, parts_of};
use super::change::Removable;
use super::datasets::not_dead;
use super::{Catalog, CatalogError, Snapshot, SnapshotNameClaim, State};
use crate::types::{DatasetId, Incarnation, NameKey, SnapshotId, SnapshotName};
use std::collections::BTreeSet;

/// The name of a snapshot as it was read.
#[derive(Clone, Debug)]
pub struct SnapshotSlot {
    newest: Newest<Snapshot>,
    names: usize,
}

impl SnapshotSlot {
    /// The record that has the name, unless it is `Dead`.
    pub fn record(&self) -> Option<&Versioned<Snapshot>> {
        match &self.newest {
            Newest::Live(at) => Some(at).filter(|at| at.record.state != State::Dead),
            Newest::Absent | Newest::Ended { .. } => None,
        }
    }

    /// The number of names that snapshots of the dataset have, or had until not long ago.
    pub fn names(&self) -> usize {
        self.names
    }
}

impl Catalog {
    fn snapshot_chain(&self, dataset: Incarnation, key: NameKey, what: String) -> Chain<'_> {
        self.chain(format!("snapshots/{dataset}/{key}"), what)
    }

    fn snapshot_by_name(&self, dataset: Incarnation, name: &SnapshotName) -> Chain<'_> {
        self.snapshot_chain(
            dataset,
            NameKey::of("snapshot", name.as_str()),
            format!("snapshot {name}"),
        )
    }

    fn snapshot_of(&self, id: SnapshotId) -> Chain<'_> {
        self.snapshot_chain(id.dataset, id.snapshot.key, format!("snapshot {id}"))
    }

    /// The record found by a snapshot's name, whatever its state (`Dead` and absent are `None`).
    pub async fn snapshot(
        &self,
        dataset: DatasetId,
        name: &SnapshotName,
    ) -> Result<Option<Versioned<Snapshot>>, CatalogError> {
        let found =
            self.snapshot_by_name(dataset.incarnation, name).newest::<Snapshot>().await?.live();
        Ok(found.filter(|at| at.record.state != State::Dead))
    }

    /// The record of exactly this incarnation; `None` when it does not exist and the pool does.
    pub async fn snapshot_by_id(
        &self,
        id: SnapshotId,
    ) -> Result<Option<Versioned<Snapshot>>, CatalogError> {
        let found = self.snapshot_of(id).newest::<Snapshot>().await?.live();
        if found.is_none() {
            self.confirm().await?;
        }
        Ok(found.filter(|at| at.record.incarnation == id.snapshot.incarnation))
    }

    /// As [`Self::snapshot`], for a caller that may insert a record of that name
    /// ([`Self::insert_snapshot_at`]). One listing tells both the name and the number of names.
    pub async fn snapshot_slot(
        &self,
        dataset: DatasetId,
        name: &SnapshotName,
    ) -> Result<SnapshotSlot, CatalogError> {
        let chain = self.snapshot_by_name(dataset.incarnation, name);
        let listed = self.bucket().list(&format!("snapshots/{}", dataset.incarnation)).await;
        let listed = listed.map_err(|error| {
            CatalogError::bucket(format!("listing the snapshots of dataset {dataset}"), error)
        })?;
        let versions = listed.iter().filter_map(|object| Some((parts_of(&object.key)?, object)));
        let (mut names, mut newest) = (BTreeSet::new(), None);
        for ((prefix, version), object) in versions {
            names.insert(prefix);
            if prefix == chain.prefix {
                // Keys come in order: a later one is a newer version.
                newest = Some((version, object));
            }
        }
        let names = names.len();
        let newest = match newest {
            None => Newest::Absent,
            Some((version, object)) => match chain.read(version, object).await? {
                Some(found) => found,
                // A LIST followed by a 404 means list again (R1).
                None => chain.newest().await?,
            },
        };
        Ok(SnapshotSlot { newest, names })
    }

    /// The snapshots of one dataset, or of the whole pool, in any state.
    pub async fn snapshots(
        &self,
        of: Option<Incarnation>,
    ) -> Result<Vec<Versioned<Snapshot>>, CatalogError> {
        match of {
            Some(dataset) => self.all(&format!("snapshots/{dataset}"), "snapshot").await,
            None => self.all("snapshots", "snapshot").await,
        }
    }

    /// Writes the first version of a snapshot's record.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] when a live one is there, [`CatalogError::InProgress`] when a
    /// `Dead` one is: only that record says what its cleaner has yet to remove (R3).
    pub async fn insert_snapshot(
        &self,
        snapshot: Snapshot,
    ) -> Result<Versioned<Snapshot>, CatalogError> {
        let slot = self.snapshot_slot(snapshot.dataset, &snapshot.name).await?;
        self.insert_snapshot_at(slot, snapshot).await
    }

    /// As [`Self::insert_snapshot`], where the caller has just read the name: one request less.
    pub async fn insert_snapshot_at(
        &self,
        slot: SnapshotSlot,
        snapshot: Snapshot,
    ) -> Result<Versioned<Snapshot>, CatalogError> {
        let chain = self.snapshot_by_name(snapshot.dataset.incarnation, &snapshot.name);
        chain
            .insert_after(slot.newest, snapshot, |there| match there.state {
                State::Dead => Err(CatalogError::InProgress {
                    what: format!("the removal of snapshot {}", there.name),
                }),
                _ => Err(CatalogError::Exists {
                    what: format!("snapshot {}", there.name),
                    why: format!("it is {}", there.id()),
                }),
            })
            .await
    }

    /// Compare-and-swap: fails with `Contended` when it is no longer the newest. On success `at` is
    /// the new version.
    pub async fn swap_snapshot(
        &self,
        at: &mut Versioned<Snapshot>,
        next: Snapshot,
    ) -> Result<(), CatalogError> {
        self.snapshot_by_name(at.record.dataset.incarnation, &at.record.name).swap(at, next).await
    }

    /// Reads, changes and swaps; retried a bounded number of times while others change it. `change`
    /// may refuse.
    pub async fn update_snapshot(
        &self,
        id: SnapshotId,
        mut change: impl FnMut(&mut Snapshot) -> Result<(), CatalogError> + Send,
    ) -> Result<Versioned<Snapshot>, CatalogError> {
        let chain = self.snapshot_of(id);
        let changed = chain.update(|snapshot: &mut Snapshot| {
            is_this(snapshot, id)?;
            change(snapshot)
        });
        changed.await
    }

    /// As [`Self::update_snapshot`], where the caller has just read the record: one request less.
    pub async fn update_snapshot_from(
        &self,
        at: &Versioned<Snapshot>,
        mut change: impl FnMut(&mut Snapshot) -> Result<(), CatalogError> + Send,
    ) -> Result<Versioned<Snapshot>, CatalogError> {
        let id = at.record.id();
        let chain = self.snapshot_of(id);
        let changed = chain.update_from(at, |snapshot: &mut Snapshot| {
            is_this(snapshot, id)?;
            change(snapshot)
        });
        changed.await
    }

    /// Removes a `Dead` record: its name is free then.
    pub async fn remove_snapshot(&self, id: SnapshotId) -> Result<(), CatalogError> {
        let judge = |snapshot: &Snapshot| match snapshot.state {
            _ if snapshot.incarnation != id.snapshot.incarnation => Ok(Removable::Another),
            State::Dead => Ok(Removable::This),
            _ => Err(not_dead(format!("snapshot {}", snapshot.name))),
        };
        self.snapshot_of(id).remove(judge).await
    }

    fn claim_chain(&self, name: &str) -> Chain<'_> {
        self.chain(
            format!("names/snapshot/{}", NameKey::of("csi-snapshot", name)),
            format!("the snapshot name {name:?}"),
        )
    }

    /// Reserves a CSI name for a snapshot, or answers which snapshot has it: CSI snapshot names are
    /// unique in the whole pool, ours only in a dataset.
    pub async fn claim_csi_snapshot_name(
        &self,
        name: &str,
        snapshot: SnapshotId,
    ) -> Result<SnapshotId, CatalogError> {
        let chain = self.claim_chain(name);
        let newest = match chain.newest::<SnapshotNameClaim>().await? {
            Newest::Live(there) => return Ok(there.record.snapshot),
            free => free,
        };
        let taken = |_: &SnapshotNameClaim| {
            Err(CatalogError::Exists {
                what: chain.what.clone(),
                why: "another call has just reserved it".into(),
            })
        };
        let claim = SnapshotNameClaim { name: name.to_owned(), snapshot };
        match chain.insert_after(newest, claim, taken).await {
            Ok(ours) => Ok(ours.record.snapshot),
            Err(CatalogError::Exists { .. }) => {
                match chain.newest::<SnapshotNameClaim>().await?.live() {
                    Some(there) => Ok(there.record.snapshot),
                    None => Err(chain.contended()),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Releases a reserved name, if this snapshot still has it.
    pub async fn release_csi_snapshot_name(
        &self,
        name: &str,
        snapshot: SnapshotId,
    ) -> Result<(), CatalogError> {
        let judge = |claim: &SnapshotNameClaim| {
            Ok(if claim.snapshot == snapshot { Removable::This } else { Removable::Another })
        };
        self.claim_chain(name).remove(judge).await
    }
}

fn is_this(snapshot: &Snapshot, id: SnapshotId) -> Result<(), CatalogError> {
    match snapshot.incarnation == id.snapshot.incarnation {
        true => Ok(()),
        false => Err(CatalogError::NotFound { what: format!("snapshot {id}") }),
    }
}
