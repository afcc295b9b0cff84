//! Paths of files in a dataset: bytes, found in a snapshot and shown to people.

use super::exit::Wrong;
use crate::control::ControlError;
use crate::control::browse::{PathError, find_path};
pub use crate::control::browse::{kind_name as kind, shown_path as shown};
use crate::fs::{SnapshotFs, SnapshotInode};
use crate::types::Class;

/// Finds the object at a path from the root. Links are not followed.
pub async fn find(fs: &SnapshotFs, path: &[u8]) -> anyhow::Result<SnapshotInode> {
    find_path(fs, path).await.map_err(|error| match error {
        PathError::Link { path, below, .. } => {
            let why = "its parent is a symbolic link: write the path that the link leads to";
            Wrong::new(Class::NotFound, format!("path {path} in the snapshot: {below}: {why}"))
        }
        error => ControlError::from(error).into(),
    })
}

/// Refuses an empty path: an empty variable of a script must not mean everything. `next`: what the
/// caller may do instead.
pub fn not_empty(path: &[u8], next: &str) -> anyhow::Result<()> {
    match path.is_empty() {
        true => Err(Wrong::new(Class::Invalid, format!("the path is empty: {next}"))),
        false => Ok(()),
    }
}

/// A path or name in JSON, where it has to be text.
pub fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// The bytes of a path or name that is not UTF-8, in base 64.
pub fn bytes(path: &[u8]) -> Option<String> {
    std::str::from_utf8(path).is_err().then(|| data_encoding::BASE64.encode(path))
}
