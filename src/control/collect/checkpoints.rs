//! Named checkpoints whose snapshot has no record: an owner made them after the caller had given
//! up, and the record was removed meanwhile. Each would pin its objects for ever.
//!
//! A checkpoint is named after its snapshot's incarnation, and the snapshot's record is written
//! before the checkpoint is requested (R3). So a checkpoint that is seen, and whose record is not
//! in a listing of the catalog that begins later, has lost its record for good.

use super::{Collector, Listing, Objects};
use crate::catalog::{Dataset, State};
use crate::control::ControlError;
use crate::fs::db::{self, CheckpointId};
use crate::types::{FamilyId, Incarnation};
use serde::Serialize;
use std::collections::HashSet;

/// A checkpoint of a live dataset, named after a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StrayCheckpoint {
    #[serde(skip)]
    pub(super) family: FamilyId,
    pub dataset: Incarnation,
    pub snapshot: Incarnation,
    #[serde(skip)]
    pub(super) checkpoint: CheckpointId,
}

/// The key of the newest manifest: every checkpoint is written into a new one.
fn newest_manifest(of: &Dataset, objects: &Objects) -> Option<String> {
    let objects = objects.get(&of.incarnation)?;
    objects
        .iter()
        .map(|object| object.key.as_str())
        .filter(|key| key.contains("/manifest/"))
        .max()
        .map(str::to_owned)
}

/// Returns the checkpoints without a record. `named` was read before `after` was listed.
pub(super) fn strays(named: &[StrayCheckpoint], after: &Listing) -> Vec<StrayCheckpoint> {
    let known: HashSet<Incarnation> =
        after.snapshots.iter().map(|snapshot| snapshot.incarnation).collect();
    named.iter().filter(|found| !known.contains(&found.snapshot)).cloned().collect()
}

impl Collector {
    /// The checkpoints of live datasets that are named after snapshots not in `before`. A database
    /// whose newest manifest had none the last time is not read again.
    pub(super) async fn unknown_checkpoints(
        &self,
        before: &Listing,
        objects: &Objects,
    ) -> Result<Vec<StrayCheckpoint>, ControlError> {
        let known: HashSet<Incarnation> =
            before.snapshots.iter().map(|snapshot| snapshot.incarnation).collect();
        let mut found = Vec::new();
        for dataset in before.datasets.iter().filter(|dataset| dataset.state == State::Ready) {
            let Some(manifest) = newest_manifest(dataset, objects) else { continue };
            if self.memory.lock().manifests.get(&dataset.incarnation) == Some(&manifest) {
                continue;
            }
            let held = db::holds(&self.place(dataset.family, dataset.incarnation))
                .await?
                .named
                .into_iter();
            let named = held.filter_map(|(name, checkpoint)| {
                Some((name.parse::<Incarnation>().ok()?, checkpoint))
            });
            let unknown: Vec<_> = named.filter(|(snapshot, _)| !known.contains(snapshot)).collect();
            if unknown.is_empty() {
                self.memory.lock().manifests.insert(dataset.incarnation, manifest);
            }
            found.extend(unknown.into_iter().map(|(snapshot, checkpoint)| StrayCheckpoint {
                family: dataset.family,
                dataset: dataset.incarnation,
                snapshot,
                checkpoint,
            }));
        }
        self.memory.lock().manifests.retain(|dataset, _| objects.contains_key(dataset));
        Ok(found)
    }

    pub(super) async fn drop_stray_checkpoint(
        &self,
        stray: &StrayCheckpoint,
    ) -> Result<(), ControlError> {
        tracing::info!(
            dataset = %stray.dataset,
            snapshot = %stray.snapshot,
            "removing a checkpoint that was made after its snapshot was abandoned"
        );
        self.pool.step("collect.checkpoint").await?;
        Ok(db::drop_checkpoint(&self.place(stray.family, stray.dataset), stray.checkpoint).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::{dataset, snapshot};
    use super::*;

    #[test]
    fn a_checkpoint_is_a_stray_only_without_any_record() {
        let of = dataset(1, State::Ready, None);
        let named = |n: u8| StrayCheckpoint {
            family: of.family,
            dataset: of.incarnation,
            snapshot: Incarnation::from_bytes([n; 16]),
            checkpoint: CheckpointId([n; 16]),
        };
        let states = [State::Creating, State::Ready, State::Deleting, State::Dead];
        let snapshots =
            states.into_iter().zip(10..).map(|(state, n)| snapshot(n, &of, state, &[])).collect();
        let after = Listing { datasets: vec![of.clone()], snapshots, ..Listing::default() };
        assert_eq!(
            strays(&(10..16).map(named).collect::<Vec<_>>(), &after),
            [named(14), named(15)]
        );
    }
}
