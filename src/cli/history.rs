//! `dataset history`: the versions of one path in all snapshots of its dataset, and now.

use super::args::HistoryArgs;
use super::exit::{Interrupted, Wrong, class_of};
use super::path;
use super::report::{table, when};
use super::target::{Opened, Root};
use crate::app;
use crate::catalog::{Snapshot, State};
use crate::fs::SnapshotInode;
use crate::types::{ByteSize, Class, Timestamp};
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use std::os::unix::ffi::OsStrExt;

/// Snapshots opened at once.
const OPENS: usize = 16;

/// A version: what the path led to from one snapshot to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Version {
    /// The oldest snapshot that has it.
    first: String,
    /// The newest one; the dataset itself for what is there now.
    last: String,
    /// Number of snapshots that have it; the dataset itself counts as one.
    roots: u32,
    /// `None`: the path led to nothing.
    #[serde(flatten)]
    found: Option<Found>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Found {
    kind: &'static str,
    size: u64,
    modified: String,
    /// The inode, the life of its number, and its last change tell two versions apart.
    #[serde(skip)]
    identity: (u64, u64, Timestamp),
}

impl From<SnapshotInode> for Found {
    fn from(SnapshotInode { ino, row }: SnapshotInode) -> Self {
        Self {
            kind: path::kind(row.kind),
            size: row.size,
            modified: when(row.mtime),
            identity: (ino.0, row.generation, row.ctime),
        }
    }
}

pub async fn run(args: HistoryArgs) -> anyhow::Result<()> {
    let Some((wanted, dataset)) = args.names.split_last() else {
        return Err(Wrong::new(Class::Invalid, "name a path"));
    };
    path::not_empty(wanted.as_bytes(), "use / for the root folder")?;
    let name = dataset.first().map(|name| {
        let utf8 = || Wrong::new(Class::Invalid, format!("dataset name {name:?}: not UTF-8"));
        name.to_str().ok_or_else(utf8)
    });
    let stop = app::stop_signal()?;
    let opened = args.common.pool.open().await?;
    let dataset = opened.dataset_or_default(name.transpose()?).await?;
    let mut snapshots: Vec<Snapshot> = opened
        .pool
        .catalog
        .snapshots(Some(dataset.incarnation))
        .await?
        .into_iter()
        .map(|at| at.record)
        .filter(|snapshot| snapshot.state == State::Ready && !snapshot.implied)
        .collect();
    snapshots.sort_by_key(|snapshot| (snapshot.created, snapshot.serial));
    let now = Root::Head(dataset.clone());
    let named = snapshots
        .into_iter()
        .map(|snapshot| (format!("{}@{}", dataset.name, snapshot.name), Root::Snapshot(snapshot)));
    let roots = named.chain([(dataset.name.to_string(), now)]);
    let (opened, wanted) = (&opened, wanted.as_bytes());
    let reads = futures::stream::iter(roots)
        .map(|(name, root)| async move { anyhow::Ok((name, find(opened, &root, wanted).await?)) })
        .buffered(OPENS)
        .try_collect::<Vec<_>>();
    let states = tokio::select! {
        biased;
        () = stop.cancelled() => return Err(Interrupted::new("nothing was listed")),
        states = Box::pin(reads) => states?,
    };
    let states = states.into_iter().filter_map(|(name, state)| Some((name, state?)));
    let versions = versions(states);
    if versions.iter().all(|version| version.found.is_none()) {
        let why = "no snapshot has it, nor the dataset as the store has it";
        let path = path::shown(wanted);
        return Err(Wrong::new(Class::NotFound, format!("path {path}: {why}")));
    }
    args.common.output.print(&versions, |versions| text(versions))
}

/// Finds what a path leads to in one root. `None`: the root is gone by now.
async fn find(
    opened: &Opened,
    root: &Root,
    wanted: &[u8],
) -> anyhow::Result<Option<Option<Found>>> {
    let view = match opened.view(root).await {
        Err(error) if class_of(&error) == Class::NotFound => return Ok(None),
        view => view?,
    };
    let found = path::find(view.files(), wanted).await;
    let closed = view.close().await;
    let found = match found {
        Ok(inode) => Some(inode.into()),
        Err(error) if class_of(&error) == Class::NotFound => None,
        Err(error) => return Err(error),
    };
    closed?;
    Ok(Some(found))
}

/// Joins equal neighbours. Nothing is said of the time before the first version.
fn versions(states: impl Iterator<Item = (String, Option<Found>)>) -> Vec<Version> {
    let mut versions: Vec<Version> = Vec::new();
    for (name, found) in states {
        match versions.last_mut() {
            Some(last) if last.found == found => {
                last.last = name;
                last.roots += 1;
            }
            None if found.is_none() => {}
            _ => versions.push(Version { first: name.clone(), last: name, roots: 1, found }),
        }
    }
    versions
}

fn text(versions: &[Version]) -> String {
    let row = |version: &Version| {
        let (kind, size, modified) = match &version.found {
            Some(found) => (found.kind, ByteSize(found.size).to_string(), found.modified.clone()),
            None => ("deleted", "-".to_owned(), "-".to_owned()),
        };
        vec![modified, size, kind.to_owned(), version.first.clone(), version.last.clone()]
    };
    table(
        &["MODIFIED", "SIZE", "KIND", "FIRST IN", "LAST IN"],
        &versions.iter().map(row).collect::<Vec<_>>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(change: i64) -> Option<Found> {
        let identity = (7, 1, Timestamp::from_nanos(change));
        Some(Found { kind: "file", size: 3, modified: String::new(), identity })
    }

    #[test]
    fn neighbours_that_are_equal_are_one_version() {
        let states = [None, found(1), found(1), None, found(1), found(2)];
        let named = states.into_iter().enumerate().map(|(n, found)| (n.to_string(), found));
        let versions = versions(named);
        let spans: Vec<(&str, &str, u32, bool)> = versions
            .iter()
            .map(|v| (v.first.as_str(), v.last.as_str(), v.roots, v.found.is_some()))
            .collect();
        assert_eq!(
            spans,
            [("1", "2", 2, true), ("3", "3", 1, false), ("4", "4", 1, true), ("5", "5", 1, true)]
        );
    }
}
