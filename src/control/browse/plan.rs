//! A dry run of a restore in place.

use super::path::{self, find};
use super::{Browser, OpenRoot, PathError, Root};
use crate::control::ControlError;
use crate::fs::FsError;
use crate::fs::api::FileKind;
use crate::types::{Class, Classify, EntryName, InodeNo};

/// The extent of a restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestorePlan {
    /// Files, folders and others that would be restored.
    pub objects: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Those whose place is taken: files would be replaced, folders filled.
    pub existing: u64,
}

impl Browser {
    /// Plans to bring the object at `source` of a snapshot back to `destination` of the live
    /// dataset, as the store has that.
    ///
    /// # Errors
    /// `NotFound` when the snapshot has no such object.
    pub async fn plan_restore(
        &self,
        snapshot: &Root,
        live: &Root,
        source: &[u8],
        destination: &[u8],
    ) -> Result<RestorePlan, ControlError> {
        let from = self.open(snapshot).await?;
        let to = match self.open(live).await {
            Ok(open) => Some(open),
            // Nothing was written yet.
            Err(error) if error.class() == Class::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut walk = from.walk(from.stat(source).await?);
        let mut plan = RestorePlan::default();
        // The folders on the path to the object at hand: in the snapshot, and whether the live
        // dataset has them.
        let mut folders: Vec<(Vec<u8>, Option<InodeNo>)> = Vec::new();
        while let Some(object) = walk.next().await? {
            plan.objects += 1;
            if object.kind == FileKind::Regular {
                plan.bytes = plan.bytes.saturating_add(object.size);
            }
            while folders.last().is_some_and(|(folder, _)| !is_in(&object.path, folder)) {
                folders.pop();
            }
            let there = match (&to, folders.last()) {
                (None, _) | (_, Some((_, None))) => None,
                (Some(to), None) => at(to, destination).await?,
                (Some(to), Some((_, Some(folder)))) => below(to, *folder, object.name()).await?,
            };
            plan.existing += u64::from(there.is_some());
            if object.kind == FileKind::Directory {
                let folder = there.filter(|(_, kind)| *kind == FileKind::Directory);
                folders.push((object.path, folder.map(|(ino, _)| ino)));
            }
        }
        Ok(plan)
    }
}

/// Whether a path is that of an entry of a folder.
fn is_in(path: &[u8], folder: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    path == path::below(folder, name)
}

async fn at(root: &OpenRoot, path: &[u8]) -> Result<Option<(InodeNo, FileKind)>, ControlError> {
    match find(root.files(), path).await {
        Ok(found) => Ok(Some((found.ino, found.row.kind))),
        Err(PathError::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn below(
    root: &OpenRoot,
    folder: InodeNo,
    name: &[u8],
) -> Result<Option<(InodeNo, FileKind)>, ControlError> {
    let name = EntryName::try_from(name)
        .map_err(|error| FsError::Corrupt(format!("a name in a folder: {error}")))?;
    let Some(ino) = root.files().entry(folder, &name).await? else { return Ok(None) };
    Ok(Some((ino, root.files().inode(ino).await?.row.kind)))
}
