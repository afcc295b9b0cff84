//! The identity of a folder of journals: kept in it, made with it.

use super::VolumeError;
use crate::types::HomeId;
use std::io::{ErrorKind, Write};
use std::path::Path;

const FILE: &str = "home";
/// An id is 26 characters.
const BYTES_MAX: u64 = 64;

/// The folder's identity; made now if it has none. A folder that was emptied is another one.
pub async fn of(journals: &Path) -> Result<HomeId, VolumeError> {
    let dir = journals.to_owned();
    let failed = move |error: std::io::Error| {
        VolumeError::Io(format!("journal folder {}: {error}: make it writable, or give another --state-dir", dir.display()))
    };
    let dir = journals.to_owned();
    tokio::task::spawn_blocking(move || read_or_make(&dir))
        .await
        .map_err(|error| VolumeError::Io(error.to_string()))?
        .map_err(failed)
}

fn read_or_make(dir: &Path) -> std::io::Result<HomeId> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join(FILE);
    match std::fs::metadata(&path) {
        Ok(found) if found.len() <= BYTES_MAX => {
            // What is no id is the rest of a disk that lost it: the journals beside it are judged by their own checksums.
            if let Ok(home) = String::from_utf8_lossy(&std::fs::read(&path)?).trim().parse() {
                return Ok(home);
            }
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let (home, draft) = (HomeId::random(), path.with_extension("new"));
    let mut file = std::fs::File::create(&draft)?;
    file.write_all(home.to_string().as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&draft, &path)?;
    std::fs::File::open(dir)?.sync_all()?;
    Ok(home)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_keeps_its_identity_and_another_has_another() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let home = of(&a).await.unwrap();
        assert_eq!(of(&a).await.unwrap(), home);
        assert_ne!(of(&b).await.unwrap(), home);
        std::fs::write(a.join(FILE), "torn").unwrap();
        assert_ne!(of(&a).await.unwrap(), home, "what is torn is made anew");
    }
}
