//! Restore in place: a file or a tree of a snapshot is copied back into its live dataset.
//!
//! ```text
//! record: restoring ─▶ snapshot: the dataset depends on it ─▶ rows, all durable
//!                   ─▶ snapshot: it no longer does ─▶ record: not restoring
//! ```
//! The dataset itself is the dependant (R14): until the restored rows are durable the snapshot's
//! packs stay, whoever deletes the snapshot, also when this process dies and its journal brings the
//! rows back a week later (R10). After a crash the next opening of the dataset, also under a
//! maintenance claim, ends the restore after its replay; a dataset that is deleted instead retains
//! nothing.

use crate::catalog::{Catalog, CatalogError, Dataset, State};
use crate::control::ControlError;
use crate::fs::{Fs, Overwrite, Progress, RestoreError, Restored, Route};
use crate::types::{Class, Classify, EntryName, Incarnation, SnapshotId};
use crate::volume::{ActiveClaim, RootReader, VolumeSettings, forget_restore};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

/// The longest path.
const PATH_BYTES_MAX: usize = 4096;

/// The request of a restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreInPlace {
    /// The id of this one call: its retries get the progress.
    pub call: Incarnation,
    pub snapshot: SnapshotId,
    /// In the snapshot; `/` is all of it.
    pub from: TreePath,
    /// In the dataset: the object's own path.
    pub to: TreePath,
    /// Replace existing files, and restore into existing folders.
    pub overwrite: bool,
}

/// A path in a tree, as bytes: names need not be UTF-8.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct TreePath(Vec<u8>);

/// Text where the bytes are UTF-8.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Bytes { base64: String },
}

impl<T: AsRef<[u8]> + ?Sized> From<&T> for TreePath {
    fn from(path: &T) -> Self {
        Self(path.as_ref().to_vec())
    }
}

impl From<TreePath> for Written {
    fn from(path: TreePath) -> Self {
        String::from_utf8(path.0).map_or_else(
            |error| Self::Bytes { base64: BASE64.encode(error.as_bytes()) },
            Self::Text,
        )
    }
}

impl TryFrom<Written> for TreePath {
    type Error = data_encoding::DecodeError;
    fn try_from(written: Written) -> Result<Self, Self::Error> {
        Ok(Self(match written {
            Written::Text(text) => text.into_bytes(),
            Written::Bytes { base64 } => BASE64.decode(base64.as_bytes())?,
        }))
    }
}

impl std::fmt::Debug for TreePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl RestoreInPlace {
    /// # Errors
    /// [`ControlError::Invalid`] for a path that no object has, or one that leaves the tree.
    pub fn route(&self) -> Result<Route, ControlError> {
        let overwrite = if self.overwrite { Overwrite::Replace } else { Overwrite::Refuse };
        Ok(Route { from: names(&self.from)?, to: names(&self.to)?, overwrite })
    }
}

/// The names of a path, one by one.
fn names(TreePath(path): &TreePath) -> Result<Vec<EntryName>, ControlError> {
    let wrong = |why: &str| {
        let shown: String = String::from_utf8_lossy(path).chars().take(200).collect();
        ControlError::Invalid(format!("path {shown:?}: {why}"))
    };
    if path.len() > PATH_BYTES_MAX {
        return Err(wrong("it is longer than 4096 bytes"));
    }
    let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    let name = |part: &[u8]| match part {
        b".." => Err(wrong("`..` would leave the tree: write the path without it")),
        part => EntryName::try_from(part).map_err(|error| wrong(&error.to_string())),
    };
    parts.map(name).collect()
}

/// Treatment of the files that a restore replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Replaced {
    Removed,
    /// Each stays under the name of a numbered backup, `NAME.~N`.
    KeptBeside,
}

/// An open dataset that is restored into.
pub(super) struct Target<'a> {
    pub dataset: &'a Dataset,
    pub fs: &'a Fs,
    pub claim: &'a ActiveClaim,
}

/// Restores into the open dataset.
///
/// # Errors
/// As [`Fs::restore`]; `Unavailable` where the catalog could not be updated.
pub(super) async fn restore(
    settings: &VolumeSettings,
    pool: &Catalog,
    target: Target<'_>,
    wanted: &RestoreInPlace,
    replaced: Replaced,
    progress: &Progress,
) -> Result<Restored, ControlError> {
    let Target { dataset, fs, claim } = target;
    let mut route = wanted.route()?;
    if replaced == Replaced::KeptBeside {
        route.overwrite = Overwrite::KeepBeside;
    }
    let running = || ControlError::InProgress { what: format!("volume {}", dataset.name) };
    let _alone = fs.begin_restore().ok_or_else(running)?;
    begin(pool, &target, wanted.snapshot).await?;
    step(pool, "control.restore.pinned").await?;
    let restored = async {
        let (reader, _) = RootReader::snapshot(settings, pool, wanted.snapshot).await?;
        let view = reader.into_view().await?;
        let restored = Box::pin(fs.restore(view.files(), &route, progress)).await;
        if let Err(error) = view.close().await {
            tracing::debug!(%error, "the reader of a restored snapshot did not close");
        }
        Ok::<_, ControlError>(restored?)
    };
    let restored = restored.await;
    step(pool, "control.restore.durable").await?;
    // Rows that may be in the journal alone keep the snapshot until the dataset is opened again;
    // after any other error all that was restored before it is durable.
    let unsure = |error: &ControlError| match error {
        ControlError::Restore(RestoreError::Incomplete { .. } | RestoreError::Stopped { .. }) => {
            false
        }
        error => matches!(
            error.class(),
            Class::Unavailable | Class::Fenced | Class::Corrupt | Class::Internal
        ),
    };
    if !restored.as_ref().is_err_and(unsure) {
        forget_restore(pool, dataset.id(), wanted.snapshot, claim).await?;
    }
    restored
}

async fn step(pool: &Catalog, name: &str) -> Result<(), ControlError> {
    Ok(pool.bucket().failpoints().step(name).await.map_err(crate::bucket::BucketError::from)?)
}

/// The intent, then the dependant: a crash after either is found by the intent (R3). The remains of
/// an earlier restore are ended first: this one changes the snapshot's record, so that a process
/// that read it before cannot remove the dependant ([`forget_restore`]).
async fn begin(
    pool: &Catalog,
    Target { dataset, fs, claim }: &Target<'_>,
    snapshot: SnapshotId,
) -> Result<(), ControlError> {
    step(pool, "control.restore.begin").await?;
    let id = dataset.id();
    let taken = || {
        ControlError::Unavailable(format!(
            "volume {} has another owner by now; retry",
            dataset.name
        ))
    };
    let left = pool.dataset_by_id(id).await?.ok_or_else(taken)?.record.restoring;
    if let Some(left) = left {
        fs.sync().await?;
        forget_restore(pool, id, left, claim).await?;
    }
    let mut ours = true;
    let marked = pool.update_dataset(id, |record| {
        ours = claim.owns(record) && record.restoring.is_none();
        if !ours {
            let why = "another owner has it by now".to_owned();
            return Err(CatalogError::Precondition {
                what: format!("dataset {}", record.name),
                why,
            });
        }
        record.restoring = Some(snapshot);
        Ok(())
    });
    match marked.await {
        Err(_) if !ours => return Err(taken()),
        marked => drop(marked?),
    }
    step(pool, "control.restore.intent").await?;
    let life = dataset.incarnation;
    pool.update_snapshot(snapshot, |record| {
        if record.state != State::Ready && !record.dependants.contains(&life) {
            return Err(CatalogError::NotFound { what: format!("snapshot {}", record.name) });
        }
        if !record.dependants.contains(&life) {
            record.dependants.push(life);
        }
        Ok(())
    })
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_the_tree() {
        let text = |path: &str| {
            names(&path.into())
                .map(|names| names.iter().map(|n| n.as_bytes().to_vec()).collect::<Vec<_>>())
        };
        assert_eq!(text("/etc//app.conf/").unwrap(), [b"etc".to_vec(), b"app.conf".to_vec()]);
        assert_eq!(text("./a/./b").unwrap(), [b"a".to_vec(), b"b".to_vec()]);
        for root in ["", "/", "//", "."] {
            assert!(text(root).unwrap().is_empty());
        }
        assert_eq!(names(&b"caf\xe9/x".into()).unwrap()[0].as_bytes(), b"caf\xe9");
        for (path, written) in
            [(&b"caf\xe9"[..], r#"{"base64":"Y2Fm6Q=="}"#), ("café".as_bytes(), r#""café""#)]
        {
            let path = TreePath::from(path);
            assert_eq!(serde_json::to_string(&path).unwrap(), written);
            assert_eq!(serde_json::from_str::<TreePath>(written).unwrap(), path);
        }
        let long = "x".repeat(256);
        for bad in ["..", "/a/../b", "../../etc/passwd", "a\0b", &long, &"a/".repeat(3000)] {
            assert_eq!(names(&bad.into()).unwrap_err().class(), Class::Invalid, "{bad:?}");
        }
    }
}
