//! Paths of files in a root: bytes, split into names and followed from the root folder.

use super::refused;
use crate::control::ControlError;
use crate::fs::api::FileKind;
use crate::fs::{FsError, SnapshotFs, SnapshotInode};
use crate::types::{Class, EntryName};

/// The longest path, in bytes. Each of its names costs a search in a folder.
pub const PATH_BYTES_MAX: usize = 32 << 10;
/// The part of a path that a message shows, in bytes.
const SHOWN_MAX: usize = 500;

/// The reason why a path leads to nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PathError {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    NotFound(String),
    /// A name on the path is a symbolic link, which is not followed.
    #[error(
        "path {path}: {link} is a symbolic link to {target}, and links are not followed: \
             write the path that it leads to"
    )]
    Link { path: String, link: String, target: String, below: EntryName },
    #[error(transparent)]
    Fs(#[from] FsError),
}

impl From<PathError> for ControlError {
    fn from(error: PathError) -> Self {
        match error {
            PathError::Invalid(why) => refused(Class::Invalid, why),
            PathError::NotFound(why) => refused(Class::NotFound, why),
            PathError::Link { .. } => refused(Class::Invalid, error.to_string()),
            PathError::Fs(error) => error.into(),
        }
    }
}

/// The names on a path, the root folder having none.
pub(super) fn names(path: &[u8]) -> Result<Vec<EntryName>, PathError> {
    let wrong = |why: &str| PathError::Invalid(format!("path {:?}: {why}", cut(path)));
    if path.is_empty() {
        return Err(PathError::Invalid("the path is empty: use / for the root folder".to_owned()));
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(wrong("it is longer than 32 KiB"));
    }
    let parts = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    let name = |part: &[u8]| match part {
        b".." => Err(wrong("`..` is not allowed: write the path without it")),
        part => EntryName::try_from(part).map_err(|error| wrong(&error.to_string())),
    };
    parts.map(name).collect()
}

/// Finds the object at a path from the root. Links are not followed.
pub async fn find(files: &SnapshotFs, path: &[u8]) -> Result<SnapshotInode, PathError> {
    let names = names(path)?;
    let mut at = files.root_inode().clone();
    for (depth, name) in names.iter().enumerate() {
        at = match files.child(&at, name).await {
            Err(FsError::NotDirectory) if at.row.kind == FileKind::Symlink => {
                return Err(PathError::Link {
                    path: format!("{:?}", cut(path)),
                    link: shown(&join(&names[..depth])),
                    target: shown(at.row.target.as_deref().unwrap_or_default()),
                    below: name.clone(),
                });
            }
            Err(error @ (FsError::NotFound | FsError::NotDirectory)) => {
                let path = cut(path);
                let why = format!("path {path:?} in the snapshot: {name}: {error}");
                return Err(PathError::NotFound(why));
            }
            found => found?,
        };
    }
    Ok(at)
}

/// The absolute path of these names.
pub(super) fn join(names: &[EntryName]) -> Vec<u8> {
    let mut path = Vec::new();
    for name in names {
        path.push(b'/');
        path.extend_from_slice(name.as_bytes());
    }
    if path.is_empty() { b"/".to_vec() } else { path }
}

/// The path of an entry of a folder.
pub(super) fn below(folder: &[u8], name: &[u8]) -> Vec<u8> {
    let folder = folder.strip_suffix(b"/").unwrap_or(folder);
    [folder, b"/", name].concat()
}

fn cut(path: &[u8]) -> String {
    String::from_utf8_lossy(&path[..path.len().min(SHOWN_MAX)]).into_owned()
}

/// A path or name on one line: it may hold a line feed, which must not look like two lines.
pub fn shown(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) if !text.contains(|c: char| c.is_control() || c == '\\') => text.to_owned(),
        _ => path.escape_ascii().to_string(),
    }
}

/// The kind of an object in words.
pub fn kind_name(kind: FileKind) -> &'static str {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_the_root() {
        let joined = |path: &[u8]| names(path).map(|names| join(&names));
        assert_eq!(joined(b"etc//./app.conf/").unwrap(), b"/etc/app.conf");
        assert_eq!(joined(b"/caf\xe9").unwrap(), b"/caf\xe9");
        assert_eq!(joined(b"/").unwrap(), b"/");
        let long = [b'x'; 256];
        let longer = [b'/'; PATH_BYTES_MAX + 1];
        for bad in [&b""[..], b"..", b"/a/../b", b"a\0b", &long, &longer] {
            assert!(matches!(names(bad), Err(PathError::Invalid(_))), "{bad:?}");
        }
        assert_eq!(below(b"/", b"a"), b"/a");
        assert_eq!(below(b"/a", b"b"), b"/a/b");
    }
}
