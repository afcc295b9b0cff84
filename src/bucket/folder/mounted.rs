//! Checks that the pool's folder is still the one that was opened. Under a mount point whose disk
//! was unmounted lies an empty folder: whatever is put there is acknowledged, and hidden as soon as
//! the disk is back; whatever is looked for there is absent (R35).

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file or folder, as long as it exists: device and inode number.
pub(super) type FileId = (u64, u64);

pub(super) fn id(meta: &std::fs::Metadata) -> FileId {
    (meta.dev(), meta.ino())
}

#[derive(Debug)]
pub(super) struct Mounted {
    folder: PathBuf,
    id: FileId,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "the folder {} is not the one that the pool was opened in ({why}): its disk was unmounted or \
     replaced; mount it again, or restart",
    folder.display()
)]
struct Replaced {
    folder: PathBuf,
    why: String,
}

impl Mounted {
    pub fn of(folder: &Path) -> io::Result<Self> {
        Ok(Self { folder: folder.to_owned(), id: id(&std::fs::metadata(folder)?) })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// # Errors
    /// Another folder is there, or none. It is never "not found": nothing can be told of the
    /// objects.
    pub fn check(&self) -> io::Result<()> {
        let why = match std::fs::metadata(&self.folder) {
            Ok(meta) if id(&meta) == self.id => return Ok(()),
            Ok(meta) => format!(
                "device {} inode {}, then {} and {}",
                self.id.0,
                self.id.1,
                meta.dev(),
                meta.ino()
            ),
            Err(error) => error.to_string(),
        };
        Err(io::Error::other(Replaced { folder: self.folder.clone(), why }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_folder_in_its_place_is_seen_until_it_is_back() {
        let room = tempfile::tempdir().unwrap();
        let (folder, away) = (room.path().join("pool"), room.path().join("away"));
        std::fs::create_dir(&folder).unwrap();
        let mounted = Mounted::of(&folder).unwrap();
        mounted.check().unwrap();
        std::fs::rename(&folder, &away).unwrap();
        assert_eq!(mounted.check().unwrap_err().kind(), io::ErrorKind::Other);
        std::fs::create_dir(&folder).unwrap();
        assert!(mounted.check().unwrap_err().to_string().contains("mount it again"));
        std::fs::remove_dir(&folder).unwrap();
        std::fs::rename(&away, &folder).unwrap();
        mounted.check().unwrap();
    }
}
