//! The versions of one path in all snapshots of its dataset, and now.

use super::{Browser, PathError, Root, find_path, refused, shown_path};
use crate::catalog::{Dataset, Snapshot, State};
use crate::control::ControlError;
use crate::fs::api::FileKind;
use crate::fs::{SnapshotFs, SnapshotInode};
use crate::types::{Class, Classify, SnapshotId, SnapshotName, Timestamp};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Snapshots opened at once.
const OPENS: usize = 32;
/// Memory of the path states that are remembered, keys included: 500 snapshots of 60 paths.
const STATES_BYTES: usize = 8 << 20;

/// A version: what a path led to from one state of the dataset to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathVersion {
    /// The oldest snapshot that has it; `None`: only the dataset itself has it.
    pub first: Option<SnapshotName>,
    /// The newest one; `None`: it is what is there now.
    pub last: Option<SnapshotName>,
    /// Number of states that have it: snapshots, and the dataset itself.
    pub states: u32,
    /// `None`: the path led to nothing.
    pub found: Option<PathState>,
}

/// The object that a path led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathState {
    pub kind: FileKind,
    pub size: u64,
    pub mtime: Timestamp,
    /// The inode, the life of its number, and its last change tell two versions apart.
    identity: (u64, u64, Timestamp),
}

impl From<SnapshotInode> for PathState {
    fn from(SnapshotInode { ino, row }: SnapshotInode) -> Self {
        Self {
            kind: row.kind,
            size: row.size,
            mtime: row.mtime,
            identity: (ino.0, row.generation, row.ctime),
        }
    }
}

/// Objects that paths led to in snapshots that a history has read. A snapshot never changes, and
/// its id is never another's, so a state stays right for as long as it is remembered. Cheap to
/// clone.
#[derive(Clone)]
pub(super) struct PathStates {
    cache: foyer::Cache<(SnapshotId, Arc<[u8]>), Option<PathState>>,
}

impl PathStates {
    pub fn new() -> Self {
        // The entry and what the cache keeps beside it; the path is shared, but not for ever.
        let weight = |(_, path): &(SnapshotId, Arc<[u8]>), _: &Option<PathState>| 200 + path.len();
        let cache = foyer::CacheBuilder::new(STATES_BYTES)
            .with_name("path_states")
            .with_weighter(weight)
            .build();
        Self { cache }
    }
}

impl Browser {
    /// Every version of a path, oldest first. Nothing is said of the time before the first.
    ///
    /// # Errors
    /// `NotFound` when no state ever had it.
    pub async fn history(
        &self,
        dataset: &Dataset,
        path: &[u8],
    ) -> Result<Vec<PathVersion>, ControlError> {
        // A path that is wrong in every state is wrong before any is opened.
        super::path::names(path)?;
        let mut snapshots: Vec<Snapshot> = self
            .pool()
            .catalog
            .snapshots(Some(dataset.incarnation))
            .await?
            .into_iter()
            .map(|at| at.record)
            .filter(|snapshot| snapshot.state == State::Ready && !snapshot.implied)
            .collect();
        snapshots.sort_by_key(|snapshot| (snapshot.created, snapshot.serial));
        let shared: Arc<[u8]> = path.into();
        let mut reads: Vec<BoxFuture<'_, _>> = Vec::new();
        for snapshot in &snapshots {
            let path = shared.clone();
            reads.push(async move { (snapshot, self.state(snapshot, path).await) }.boxed());
        }
        let states: Vec<_> = futures::stream::iter(reads).buffered(OPENS).collect().await;
        let now = match self.open_once(&Root::Head(dataset.clone())).await {
            Err(error) if error.class() == Class::NotFound => None,
            open => Some((None, path_state(open?.files(), path).await?)),
        };
        let states = self.still_there(dataset, states).await?;
        let versions = versions(states.into_iter().chain(now));
        if versions.iter().all(|version| version.found.is_none()) {
            let why = "no snapshot has it, nor the dataset as the store has it";
            let why = format!("path {}: {why}", shown_path(path));
            return Err(refused(Class::NotFound, why));
        }
        Ok(versions)
    }

    /// Look a path up in one snapshot, which may be collected meanwhile.
    async fn state(
        &self,
        snapshot: &Snapshot,
        path: Arc<[u8]>,
    ) -> Result<Option<PathState>, ControlError> {
        let key = (snapshot.id(), path);
        if let Some(known) = self.path_states.cache.get(&key) {
            return Ok(known.value().clone());
        }
        let state = self.read_state(snapshot, &key.1).await?;
        self.path_states.cache.insert(key, state.clone());
        Ok(state)
    }

    async fn read_state(
        &self,
        snapshot: &Snapshot,
        path: &[u8],
    ) -> Result<Option<PathState>, ControlError> {
        if let Some(open) = self.cached(&Root::Snapshot(snapshot.clone())) {
            return path_state(open.files(), path).await;
        }
        let (view, _permit) = self.open_unregistered(snapshot).await?;
        let found = path_state(view.files(), path).await;
        if let Err(error) = view.close().await {
            tracing::debug!(%error, "the reader of a snapshot did not close");
        }
        found
    }

    /// Drops the states of snapshots that were deleted meanwhile. Objects of those that were not
    /// were there throughout: only a tombstone lets a collection remove them.
    async fn still_there(
        &self,
        dataset: &Dataset,
        states: Vec<(&Snapshot, Result<Option<PathState>, ControlError>)>,
    ) -> Result<Vec<NamedState>, ControlError> {
        let now = self.pool().catalog.snapshots(Some(dataset.incarnation)).await?;
        let ready = now.into_iter().map(|at| at.record).filter(|it| it.state == State::Ready);
        let ready: BTreeSet<SnapshotId> = ready.map(|snapshot| snapshot.id()).collect();
        let states = states.into_iter().filter(|(snapshot, _)| ready.contains(&snapshot.id()));
        states.map(|(snapshot, state)| Ok((Some(snapshot.name.clone()), state?))).collect()
    }
}

/// A snapshot's name (none: the dataset itself), and the object that the path led to there.
type NamedState = (Option<SnapshotName>, Option<PathState>);

async fn path_state(files: &SnapshotFs, path: &[u8]) -> Result<Option<PathState>, ControlError> {
    match find_path(files, path).await {
        Ok(inode) => Ok(Some(inode.into())),
        Err(PathError::NotFound(_) | PathError::Link { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Joins equal neighbours. Nothing is said of the time before the first version.
fn versions(
    states: impl Iterator<Item = (Option<SnapshotName>, Option<PathState>)>,
) -> Vec<PathVersion> {
    let mut versions: Vec<PathVersion> = Vec::new();
    for (name, found) in states {
        match versions.last_mut() {
            Some(last) if last.found == found => {
                last.last = name;
                last.states += 1;
            }
            None if found.is_none() => {}
            _ => versions.push(PathVersion { first: name.clone(), last: name, states: 1, found }),
        }
    }
    versions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(change: i64) -> Option<PathState> {
        let time = Timestamp::from_nanos(change);
        Some(PathState { kind: FileKind::Regular, size: 3, mtime: time, identity: (7, 1, time) })
    }

    #[test]
    fn neighbours_that_are_equal_are_one_version() {
        let states = [None, found(1), found(1), None, found(1), found(2)];
        let named = states.into_iter().enumerate();
        let versions =
            versions(named.map(|(n, found)| (Some(n.to_string().parse().unwrap()), found)));
        let spans: Vec<(&str, &str, u32, bool)> = versions
            .iter()
            .map(|v| {
                let (first, last) = (v.first.as_ref().unwrap(), v.last.as_ref().unwrap());
                (first.as_str(), last.as_str(), v.states, v.found.is_some())
            })
            .collect();
        assert_eq!(
            spans,
            [("1", "2", 2, true), ("3", "3", 1, false), ("4", "4", 1, true), ("5", "5", 1, true)]
        );
    }
}
