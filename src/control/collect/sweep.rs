//! Carries out the plan. Every removal can be retried.

use super::plan::live_dependants;
use super::{Collected, Collector, Plan, Retained, StrayDatabase};
use crate::catalog::{CatalogError, Dataset, Snapshot, State};
use crate::control::ControlError;
use crate::control::controller::group::release_member;
use crate::fs::FsError;
use crate::fs::db::{self, CheckpointId, DbPlace};
use crate::types::{DatasetId, FamilyId, Incarnation, SnapshotId};
use std::collections::BTreeSet;

/// Packs removed with one call.
const PACKS_AT_ONCE: usize = 1000;

/// The outcome for a tombstone.
pub(in crate::control) enum Reaped {
    Removed,
    /// The reason, in words.
    Blocked(String),
}

impl Collector {
    /// Carries out the plan. Returns whether anything was removed, so that another pass may find
    /// more.
    pub(super) async fn sweep(
        &self,
        plan: Plan,
        done: &mut Collected,
    ) -> Result<bool, ControlError> {
        let mut removed = !plan.packs.is_empty();
        for packs in plan.packs.chunks(PACKS_AT_ONCE) {
            let keys: Vec<String> = packs.iter().map(|pack| pack.key.clone()).collect();
            self.pool.step("collect.packs").await?;
            self.pool.catalog.bucket().delete(&keys).await?;
            done.packs += packs.len();
            done.pack_bytes += packs.iter().map(|pack| pack.bytes).sum::<u64>();
        }
        if !plan.obsolete_markers.is_empty() {
            self.pool.step("collect.obsolete-markers").await?;
            self.pool.catalog.bucket().delete(&plan.obsolete_markers).await?;
        }
        for database in plan.databases {
            removed = true;
            self.pool.step("collect.database").await?;
            self.remove_stray(&database).await?;
        }
        for checkpoint in &plan.checkpoints {
            removed = true;
            done.remnants += 1;
            self.drop_stray_checkpoint(checkpoint).await?;
        }
        for id in plan.abandoned_clones {
            removed |= self.abandon_clone(id).await?;
        }
        for id in plan.abandoned_snapshots {
            removed |= self.abandon_snapshot(id).await?;
        }
        for id in plan.snapshots {
            match self.reap_snapshot(id).await? {
                Reaped::Removed => {
                    removed = true;
                    done.snapshots.push(id.to_string());
                }
                Reaped::Blocked(why) => {
                    done.retained.push(Retained { what: format!("snapshot {id}"), why });
                }
            }
        }
        for id in plan.datasets {
            match self.reap_dataset(id).await? {
                Reaped::Removed => {
                    removed = true;
                    done.datasets.push(id.to_string());
                }
                Reaped::Blocked(why) => {
                    done.retained.push(Retained { what: format!("dataset {id}"), why });
                }
            }
        }
        Ok(removed)
    }

    /// Removes a database without a record. A clone that was written after its record was removed
    /// may hold a pin on its origin, which would wait for it for ever.
    async fn remove_stray(&self, stray: &StrayDatabase) -> Result<(), ControlError> {
        if stray.keys.iter().any(|key| key.ends_with(".manifest")) {
            // Its family is unknown, and not needed: no row of it is read.
            let place = self.place(FamilyId::from(stray.incarnation), stray.incarnation);
            match db::delete(&place).await {
                Err(error @ FsError::Unavailable(_)) => return Err(error.into()),
                // A manifest of a database that was removed may arrive late: it names objects that
                // are long gone.
                Err(error) => {
                    tracing::debug!(
                        database = %stray.incarnation,
                        %error,
                        "removing objects that are no whole database"
                    );
                }
                Ok(()) => {}
            }
        }
        Ok(self.pool.catalog.bucket().delete(&stray.keys).await?)
    }

    /// Tombstones an unfinished clone; `false`: it was finished after all, or is gone. A call that
    /// is still making it fails at its last step.
    async fn abandon_clone(&self, id: DatasetId) -> Result<bool, ControlError> {
        let swapped = self.pool.catalog.update_dataset(id, |dataset| {
            if dataset.state != State::Creating {
                let what = format!("dataset {}", dataset.name);
                return Err(CatalogError::Precondition {
                    what,
                    why: "it is no longer being made".to_owned(),
                });
            }
            dataset.state = State::Deleting;
            Ok(())
        });
        match swapped.await {
            Ok(at) => {
                tracing::info!(
                    dataset = %at.record.name,
                    "abandoning unfinished clone"
                );
            }
            Err(CatalogError::NotFound { .. } | CatalogError::Precondition { .. }) => {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        self.pool.step("collect.clone.abandoned").await?;
        Ok(true)
    }

    /// Tombstones an unfinished snapshot; `false`: it was finished after all, or is gone.
    /// Its CSI name is free at once.
    async fn abandon_snapshot(&self, id: SnapshotId) -> Result<bool, ControlError> {
        let catalog = &self.pool.catalog;
        if let Some(at) = catalog.snapshot_by_id(id).await?
            && let Some(group) = at.record.group
            && !release_member(&self.pool, &at.record, group).await?
        {
            return Ok(false);
        }
        let swapped = catalog.update_snapshot(id, |snapshot| {
            if snapshot.state != State::Creating {
                let what = format!("snapshot {}", snapshot.name);
                return Err(CatalogError::Precondition {
                    what,
                    why: "it is no longer being made".to_owned(),
                });
            }
            snapshot.state = State::Deleting;
            Ok(())
        });
        let name = match swapped.await {
            Ok(at) => at.record.name,
            Err(CatalogError::NotFound { .. } | CatalogError::Precondition { .. }) => {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        };
        tracing::info!(snapshot = %name, "abandoning unfinished snapshot");
        self.pool.step("collect.snapshot.abandoned").await?;
        catalog.release_csi_snapshot_name(name.as_str(), id).await?;
        Ok(true)
    }

    /// Removes a tombstoned snapshot: record dead, checkpoint dropped, record removed.
    pub(in crate::control) async fn reap_snapshot(
        &self,
        id: SnapshotId,
    ) -> Result<Reaped, ControlError> {
        let catalog = &self.pool.catalog;
        let datasets = catalog.datasets().await?;
        let live = live_dependants(id, datasets.iter().map(|at| &at.record));
        // The snapshot is a tombstone since it was listed: a reader that registers after this sees
        // that, and does not read (R14).
        let incarnation = id.snapshot.incarnation;
        let readers = catalog
            .readers(Some(incarnation), std::time::SystemTime::now())
            .await?
            .live
            .get(&incarnation)
            .copied();
        let swapped = catalog
            .update_snapshot(id, |snapshot| {
                set_snapshot_dead(snapshot, &live, readers.unwrap_or(0))
            })
            .await;
        let snapshot = match swapped {
            Ok(at) => at.record,
            Err(CatalogError::NotFound { .. }) => return Ok(Reaped::Removed),
            Err(CatalogError::Precondition { why, .. }) => return Ok(Reaped::Blocked(why)),
            Err(error) => return Err(error.into()),
        };
        self.pool.step("collect.snapshot.dead").await?;
        let place = self.place(snapshot.family, snapshot.dataset.incarnation);
        let checkpoint = match snapshot.checkpoint {
            Some(checkpoint) => Some(CheckpointId(checkpoint)),
            None => self.checkpoint_named(&place, &snapshot).await?,
        };
        if let Some(checkpoint) = checkpoint {
            db::drop_checkpoint(&place, checkpoint).await?;
        }
        self.pool.step("collect.snapshot.dropped").await?;
        catalog.release_csi_snapshot_name(snapshot.name.as_str(), id).await?;
        catalog.remove_snapshot(id).await?;
        self.pool.step("collect.snapshot.removed").await?;
        Ok(Reaped::Removed)
    }

    /// Removes a tombstoned dataset that nothing depends on: record dead, database fenced and
    /// deleted, dependant of its origin removed, record removed.
    pub(in crate::control) async fn reap_dataset(
        &self,
        id: DatasetId,
    ) -> Result<Reaped, ControlError> {
        let catalog = &self.pool.catalog;
        let Some(at) = catalog.dataset_by_id(id).await? else { return Ok(Reaped::Removed) };
        let snapshots = catalog.snapshots(Some(id.incarnation)).await?;
        if !snapshots.is_empty() {
            return Ok(Reaped::Blocked(format!("it has {} snapshots", snapshots.len())));
        }
        let place = self.place(at.record.family, id.incarnation);
        let holds = match db::holds(&place).await {
            Ok(holds) => holds,
            Err(error) => return blocked_by_database(&place, error),
        };
        if holds.clone_pins > 0 {
            return Ok(Reaped::Blocked(format!("{} clones read its database", holds.clone_pins)));
        }
        // Checkpoints without a record are those of snapshots that were abandoned.
        for (_, checkpoint) in holds.named {
            db::drop_checkpoint(&place, checkpoint).await?;
        }
        let dataset = match catalog.update_dataset(id, set_dataset_dead).await {
            Ok(at) => at.record,
            Err(CatalogError::NotFound { .. }) => return Ok(Reaped::Removed),
            Err(CatalogError::Precondition { why, .. }) => return Ok(Reaped::Blocked(why)),
            Err(error) => return Err(error.into()),
        };
        self.pool.step("collect.dataset.dead").await?;
        if let Err(error) = db::fence(&place).await {
            return blocked_by_database(&place, error);
        }
        self.pool.step("collect.dataset.fenced").await?;
        self.remove_database(&place).await?;
        self.pool.step("collect.dataset.deleted").await?;
        if let Some(origin) = dataset.origin {
            self.forget_dependant(origin, id.incarnation).await?;
        }
        catalog.remove_policy(id.incarnation).await?;
        catalog.release_name(&dataset).await?;
        catalog.remove_dataset(id).await?;
        self.pool.step("collect.dataset.removed").await?;
        Ok(Reaped::Removed)
    }

    /// Also removes the remains of an unfinished deletion or cloning.
    async fn remove_database(&self, place: &DbPlace) -> Result<(), ControlError> {
        let bucket = self.pool.catalog.bucket();
        let prefix = format!("vol/{}/", place.incarnation);
        if bucket.list(&prefix).await?.is_empty() {
            return Ok(());
        }
        db::delete(place).await?;
        let left: Vec<String> =
            bucket.list(&prefix).await?.into_iter().map(|object| object.key).collect();
        Ok(bucket.delete(&left).await?)
    }

    pub(super) async fn forget_dependant(
        &self,
        origin: SnapshotId,
        clone: Incarnation,
    ) -> Result<(), ControlError> {
        let told = self.pool.catalog.update_snapshot(origin, |snapshot| {
            let before = snapshot.dependants.len();
            snapshot.dependants.retain(|d| *d != clone);
            // Made for this clone alone, which may have been abandoned before it was ready.
            let is_last =
                snapshot.implied && matches!(snapshot.state, State::Ready | State::Creating);
            if is_last {
                snapshot.state = State::Deleting;
            }
            if snapshot.dependants.len() == before && !is_last {
                return Err(CatalogError::NotFound { what: "the dependant".into() });
            }
            Ok(())
        });
        match told.await {
            Ok(_) | Err(CatalogError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// A database that is damaged, or that another collector is removing, does not stop the collection.
fn blocked_by_database(place: &DbPlace, error: FsError) -> Result<Reaped, ControlError> {
    match error {
        FsError::Fenced => Ok(Reaped::Blocked("another collection is removing it".to_owned())),
        FsError::Corrupt(why) => Ok(Reaped::Blocked(format!(
            "its database cannot be read ({why}); if that stays so and no node is using it, remove \
             vol/{} by hand, then collect again",
            place.incarnation
        ))),
        error => Err(error.into()),
    }
}

/// A tombstone takes no new dependants, so no others will ever be added to the live ones.
fn set_snapshot_dead(
    snapshot: &mut Snapshot,
    live_dependants: &BTreeSet<Incarnation>,
    readers: usize,
) -> Result<(), CatalogError> {
    let refuse = |why: &str| {
        Err(CatalogError::Precondition {
            what: format!("snapshot {}", snapshot.name),
            why: why.to_owned(),
        })
    };
    if matches!(snapshot.state, State::Ready | State::Creating) {
        return refuse("it is not tombstoned");
    }
    if snapshot.dependants.iter().any(|d| live_dependants.contains(d)) {
        return refuse("clones, read-only volumes or a restore depend on it");
    }
    if snapshot.state == State::Deleting && readers > 0 {
        return refuse("it is being read");
    }
    snapshot.state = State::Dead;
    Ok(())
}

fn set_dataset_dead(dataset: &mut Dataset) -> Result<(), CatalogError> {
    if matches!(dataset.state, State::Ready | State::Creating) {
        let why = "it is not tombstoned".to_owned();
        return Err(CatalogError::Precondition { what: format!("dataset {}", dataset.name), why });
    }
    dataset.state = State::Dead;
    Ok(())
}
