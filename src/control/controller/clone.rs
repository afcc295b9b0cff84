//! Completes a clone from its intent to a ready volume. Every step may be retried: the intent in
//! the dataset's record names the snapshot.

use super::snapshot::Purpose;
use super::{ANCESTORS_MAX, CLONES_MAX, Controller, check};
use crate::catalog::{CatalogError, Dataset, Form, Snapshot, State, Versioned};
use crate::control::{ControlError, Pool};
use crate::fs::FsError;
use crate::fs::db::{self, CheckpointId, DbPlace, Detached, NewClone};
use crate::types::{Class, Classify, DatasetId, Incarnation, SnapshotId, SnapshotName};

impl Controller {
    /// `source`: the snapshot's record, where the caller has just read it.
    pub(super) async fn finish_clone(
        &self,
        pool: &Pool,
        at: Versioned<Dataset>,
        source: Option<Versioned<Snapshot>>,
    ) -> Result<Dataset, ControlError> {
        let name = at.record.name.clone();
        let intent = at.record.clone();
        match Box::pin(self.clone_steps(pool, at, source)).await {
            Err(error) if error.class() == Class::NotFound => {
                // The source was deleted: without it the intent can never be completed, and the
                // caller may give up for good.
                Box::pin(self.abandon(pool, &intent))
                    .await
                    .map_err(|error| after_intent(&name, error))?;
                Err(error)
            }
            finished => finished.map_err(|error| after_intent(&name, error)),
        }
    }

    async fn clone_steps(
        &self,
        pool: &Pool,
        mut at: Versioned<Dataset>,
        source: Option<Versioned<Snapshot>>,
    ) -> Result<Dataset, ControlError> {
        let clone = at.record.clone();
        let origin = clone.origin.ok_or_else(|| {
            ControlError::Internal(format!("volume {} is an intent without a source", clone.name))
        })?;
        let source = match source {
            Some(source) => source,
            None => self.clone_source(pool, &clone, origin).await?,
        };
        let snapshot = &source.record;
        let checkpoint = snapshot.checkpoint.ok_or_else(|| ControlError::InProgress {
            what: format!("snapshot {}", snapshot.name),
        })?;
        let lock = self.sources.lock(origin.dataset).await;
        let clone_place =
            self.volumes.settings().place(&pool.catalog, clone.family, clone.incarnation);
        let (depends, database) = tokio::join!(
            depend(pool, &source, clone.incarnation),
            new_database(&clone, &clone_place, origin, CheckpointId(checkpoint))
        );
        depends?;
        pool.step("control.create.dependant").await?;
        let Some(database) = database? else {
            // The snapshot is the volume: it is recorded among the snapshot's dependants, and there
            // is nothing to make.
            let ready = Dataset { state: State::Ready, ..clone };
            pool.catalog.swap_dataset(&mut at, ready).await?;
            pool.step("control.create.reader").await?;
            return Ok(at.record);
        };
        let attached = database.ancestors();
        database.make().await?;
        drop(lock);
        pool.step("control.create.cloned").await?;
        if attached >= ANCESTORS_MAX {
            // A refusal would be permanent: the ancestors that a snapshot reads never change.
            Box::pin(detach(&clone_place)).await?;
            pool.step("control.create.detached").await?;
        }
        // Before the clone is ready, so that no retry finds it ready and the snapshot forgotten.
        // The clone retains the tombstone.
        if snapshot.implied {
            self.tombstone_snapshot(pool, origin).await?;
            pool.step("control.create.implied").await?;
        }
        let ready = Dataset { state: State::Ready, ..clone };
        pool.catalog.swap_dataset(&mut at, ready).await?;
        pool.step("control.create.ready").await?;
        Ok(at.record)
    }

    /// Returns the snapshot to clone; an implied one is made here, under the id in the intent.
    async fn clone_source(
        &self,
        pool: &Pool,
        clone: &Dataset,
        origin: SnapshotId,
    ) -> Result<Versioned<Snapshot>, ControlError> {
        let implied = check::implied_name(clone.incarnation)?;
        let is_implied =
            crate::types::NameKey::of("snapshot", implied.as_str()) == origin.snapshot.key;
        let found = pool.catalog.snapshot_by_id(origin).await?;
        match found {
            Some(at) if at.record.state == State::Ready => Ok(at),
            // A tombstone still serves a clone that it already counts as its dependant.
            Some(at) if at.record.dependants.contains(&clone.incarnation) => Ok(at),
            Some(at) if at.record.state == State::Creating && !is_implied => {
                Err(ControlError::InProgress { what: format!("snapshot {}", at.record.name) })
            }
            None if is_implied => self.make_implied(pool, origin, implied).await,
            Some(at) if at.record.state == State::Creating => {
                self.make_implied(pool, origin, implied).await
            }
            _ => Err(ControlError::NotFound {
                what: format!("the source snapshot {}", origin.snapshot),
            }),
        }
    }

    async fn make_implied(
        &self,
        pool: &Pool,
        origin: SnapshotId,
        name: SnapshotName,
    ) -> Result<Versioned<Snapshot>, ControlError> {
        let source = self.dataset_of_life(pool, origin.dataset).await?;
        self.make_snapshot(pool, &source, origin, name, Purpose::Clone).await
    }

    /// A live dataset by its incarnation alone.
    async fn dataset_of_life(
        &self,
        pool: &Pool,
        incarnation: Incarnation,
    ) -> Result<Versioned<Dataset>, ControlError> {
        let all = pool.catalog.datasets().await?;
        let is_it = |at: &Versioned<Dataset>| {
            at.record.incarnation == incarnation && at.record.state == State::Ready
        };
        all.into_iter().find(is_it).ok_or_else(|| ControlError::NotFound {
            what: format!("the source volume {incarnation}"),
        })
    }

    /// Undoes an intent that cannot be completed: dead first, then the effect (R3).
    pub(super) async fn abandon(&self, pool: &Pool, intent: &Dataset) -> Result<(), ControlError> {
        let id: DatasetId = intent.id();
        let dead = pool.catalog.update_dataset(id, |dataset| {
            match dataset.state {
                State::Creating => dataset.state = State::Deleting,
                State::Ready => {
                    return Err(CatalogError::Precondition {
                        what: format!("volume {}", dataset.name),
                        why: "another call has finished it".into(),
                    });
                }
                State::Deleting | State::Dead => {}
            }
            Ok(())
        });
        match dead.await {
            Ok(_) | Err(CatalogError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.collector(pool).reap_dataset(id).await?;
        Ok(())
    }
}

/// Rewrites the database of a clone that would read too many (R13), before anybody can open it. The
/// collector finds it detached.
async fn detach(clone: &DbPlace) -> Result<(), FsError> {
    match db::detach_closed(clone, db::epoch(clone).await?).await? {
        Detached::Whole => Ok(()),
        Detached::Held => {
            Err(FsError::Busy("a reader still holds tables that the clone inherits; retry"))
        }
    }
}

/// The database that a clone is to get; `None`: the clone is the snapshot itself.
async fn new_database(
    clone: &Dataset,
    place: &DbPlace,
    origin: SnapshotId,
    checkpoint: CheckpointId,
) -> Result<Option<NewClone>, FsError> {
    match clone.form {
        Form::Snapshot => Ok(None),
        Form::Writable => NewClone::read(place, origin.dataset, checkpoint).await.map(Some),
    }
}

/// Records the clone among the snapshot's dependants: from here on its checkpoint stays (R14).
async fn depend(
    pool: &Pool,
    source: &Versioned<Snapshot>,
    clone: Incarnation,
) -> Result<(), ControlError> {
    let (origin, mut full) = (source.record.id(), false);
    let changed = pool
        .catalog
        .update_snapshot_from(source, |snapshot| {
            full = false;
            if snapshot.dependants.contains(&clone) {
                return Ok(());
            }
            let what = format!("snapshot {}", snapshot.name);
            if snapshot.state != State::Ready {
                return Err(CatalogError::NotFound { what });
            }
            full = snapshot.dependants.len() >= CLONES_MAX;
            if full {
                return Err(CatalogError::Precondition {
                    what,
                    why: "it has too many clones".into(),
                });
            }
            snapshot.dependants.push(clone);
            Ok(())
        })
        .await;
    match changed {
        Err(_) if full => Err(ControlError::Exhausted(format!(
            "snapshot {origin} has {CLONES_MAX} clones, which is the limit: delete some, or clone \
             from another snapshot"
        ))),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}

/// After a durable step the caller must retry, or a deleted PersistentVolumeClaim would leak the
/// volume: so only retryable classes are returned (R30).
fn after_intent(name: &crate::types::DatasetName, error: ControlError) -> ControlError {
    match error.class() {
        Class::Unavailable | Class::InProgress | Class::Exhausted => error,
        _ => {
            ControlError::Unavailable(format!("volume {name} is not finished yet: {error}; retry"))
        }
    }
}
