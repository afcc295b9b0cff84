//! The identity of a folder of journals, stored in the folder when it is made, and what it proves.
//!
//! A process holds the folder's lock, so the run before it on this machine is over, and it takes
//! back that run's datasets without waiting. But the folder may be a copy, made with the image of a
//! machine: then the previous process is on another machine, and may be alive. Its heartbeat names
//! the boot of the machine that it runs on. After a restart of the process that is this boot. After
//! a restart of the machine it is another boot, possibly the other machine's: then its lease has to
//! expire first, as anywhere (R26). The journal is replayed then as well.

use super::VolumeError;
use super::lease::{ExpiredLease, Verdict};
use super::volumes::Volumes;
use crate::catalog::{Catalog, Dataset, Owner};
use crate::types::HomeId;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

const FILE: &str = "home";
/// Polling interval of the heartbeats of an owner that may be alive.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// An id is 26 characters.
const BYTES_MAX: u64 = 64;

/// Returns the folder's identity, and makes one if it has none. A folder that was emptied gets
/// another one.
pub async fn of(journals: &Path) -> Result<HomeId, VolumeError> {
    let dir = journals.to_owned();
    let failed = move |error: std::io::Error| {
        VolumeError::Io(format!(
            "journal folder {}: {error}: make it writable, or give another --state-dir",
            dir.display()
        ))
    };
    let dir = journals.to_owned();
    tokio::task::spawn_blocking(move || read_or_make(&dir))
        .await
        .map_err(|error| VolumeError::Io(error.to_string()))?
        .map_err(failed)
}

impl Volumes {
    /// Returns the proof that the owner, an earlier session of this folder, has stopped, after
    /// waiting a whole lease where needed. `None`: it is alive, on a machine that has a copy of the
    /// folder; or it is not a session of this folder.
    pub(super) async fn stopped_at_home(
        &self,
        pool: &Catalog,
        record: &Dataset,
        me: &Owner,
    ) -> Result<Option<ExpiredLease>, VolumeError> {
        let earlier = |owner: &&Owner| {
            owner.session != me.session && owner.home.is_some() && owner.home == me.home
        };
        let Some(owner) = record.owner.as_ref().filter(earlier) else { return Ok(None) };
        let id = record.id();
        let proof = || Some(ExpiredLease::of(id, owner.clone()));
        if self.ended_sessions().lock().contains(&owner.session) {
            return Ok(proof());
        }
        match pool.newest_heartbeat(owner.session).await? {
            // A session that may answer has a heartbeat.
            None => return Ok(proof()),
            Some(last) if last.boot == self.lease().clock.boot() => {
                self.ended_sessions().lock().insert(owner.session);
                return Ok(proof());
            }
            Some(_) => {}
        }
        tracing::info!(
            dataset = %record.name,
            session = %owner.session,
            "this machine has started anew since the dataset was open, or its state folder is a \
             copy: waiting for the end of the lease of before"
        );
        let mut watch = self.watch(pool, id, owner);
        loop {
            match watch.look().await? {
                Verdict::Expired(expired) => return Ok(Some(expired)),
                Verdict::MayLive { .. } if watch.has_seen_life() => return Ok(None),
                Verdict::MayLive { wait } => tokio::time::sleep(wait.min(LOOK_AGAIN)).await,
            }
        }
    }
}

fn read_or_make(dir: &Path) -> std::io::Result<HomeId> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join(FILE);
    match std::fs::metadata(&path) {
        Ok(found) if found.len() <= BYTES_MAX => {
            // Anything but an id is debris of a disk that lost it: the journals beside it are
            // judged by their own checksums.
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
