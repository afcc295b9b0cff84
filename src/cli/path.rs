//! Paths of files in a dataset: bytes, found in a view and shown to people.

use super::exit::Wrong;
use crate::fs::api::FileKind;
use crate::fs::{FsError, SnapshotFs, SnapshotInode};
use crate::types::{Class, EntryName};

/// Finds the object at a path from the root. Links are not followed.
pub async fn find(view: &SnapshotFs, path: &[u8]) -> anyhow::Result<SnapshotInode> {
    let mut at = view.root_inode().clone();
    let text = || String::from_utf8_lossy(path);
    for name in path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")) {
        let wrong = |why: String| Wrong::new(Class::Invalid, format!("path {:?}: {why}", text()));
        if name == b".." {
            return Err(wrong("`..` is not allowed: write the path without it".to_owned()));
        }
        let name = EntryName::try_from(name).map_err(|error| wrong(error.to_string()))?;
        let is_link = at.row.kind == FileKind::Symlink;
        at = match view.child(&at, &name).await {
            Err(error @ (FsError::NotFound | FsError::NotDirectory)) => {
                let why = if is_link {
                    "its parent is a symbolic link: write the path that the link leads to"
                        .to_owned()
                } else {
                    error.to_string()
                };
                return Err(Wrong::new(
                    Class::NotFound,
                    format!("path {:?} in the snapshot: {name}: {why}", text()),
                ));
            }
            found => found?,
        };
    }
    Ok(at)
}

/// Refuses an empty path: an empty variable of a script must not mean everything. `next`: what the
/// caller may do instead.
pub fn not_empty(path: &[u8], next: &str) -> anyhow::Result<()> {
    match path.is_empty() {
        true => Err(Wrong::new(Class::Invalid, format!("the path is empty: {next}"))),
        false => Ok(()),
    }
}

/// A path or name on one line: it may hold a line feed, which must not look like two lines.
pub fn shown(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) if !text.contains(|c: char| c.is_control() || c == '\\') => text.to_owned(),
        _ => path.escape_ascii().to_string(),
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

pub fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Regular => "file",
        FileKind::Directory => "folder",
        FileKind::Symlink => "link",
        FileKind::BlockDevice => "block device",
        FileKind::CharDevice => "character device",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
    }
}
