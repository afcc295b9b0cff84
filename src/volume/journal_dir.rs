//! The id of a journal directory, which is stored in it, and what the id proves.
//!
//! A process holds the directory's lock, so the session before it on this machine has ended, and it
//! takes back without waiting what that session owned. But the directory may be a copy, made with
//! the image of a machine: then the session before runs on another machine, and may be alive. Its
//! heartbeat names the boot of its machine. After a restart of the process that is this boot. After
//! a restart of the machine it is another one, and may be the other machine's: its lease has to
//! expire first, as anywhere (R26). The journal is replayed then as well.

use super::VolumeError;
use super::lease::{ExpiredLease, Verdict};
use super::volumes::Volumes;
use crate::catalog::{Catalog, Dataset, Owner};
use crate::types::JournalDirId;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

const FILE: &str = "directory-id";
/// Polling interval of the heartbeats of an owner that may be alive.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// An id is 26 characters.
const BYTES_MAX: u64 = 64;

/// The directory's id, made now if it has none. A directory that was emptied gets another one.
pub async fn id_of(journals: &Path) -> Result<JournalDirId, VolumeError> {
    let dir = journals.to_owned();
    let failed = move |error: std::io::Error| {
        VolumeError::Io(format!(
            "journal directory {}: {error}: make it writable, or give another --state-dir",
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
    /// As [`Self::owner`], with the id of its journal directory.
    pub(super) async fn owner_with_journals(&self) -> Result<Owner, VolumeError> {
        let journal_dir_id = match &self.settings().journal_dir {
            Some(dir) => Some(*self.inner.journal_dir_id.get_or_try_init(|| id_of(dir)).await?),
            None => None,
        };
        Ok(Owner { journal_dir_id, ..self.owner() })
    }

    /// The proof that the owner, an earlier session of this journal directory, has stopped; waits
    /// for a whole lease where that is needed. None: it is alive, on a machine that has a copy of
    /// the directory; or it is not a session of this directory.
    pub(super) async fn stopped_here(
        &self,
        pool: &Catalog,
        record: &Dataset,
        me: &Owner,
    ) -> Result<Option<ExpiredLease>, VolumeError> {
        let earlier = |owner: &&Owner| {
            owner.session != me.session
                && owner.journal_dir_id.is_some()
                && owner.journal_dir_id == me.journal_dir_id
        };
        let Some(owner) = record.owner.as_ref().filter(earlier) else { return Ok(None) };
        let id = record.id();
        let proof = || Some(ExpiredLease::of(id, owner.clone()));
        if self.ended_sessions().lock().contains(&owner.session) {
            return Ok(proof());
        }
        match pool.newest_heartbeat(owner.session).await? {
            // An owner that may answer has a heartbeat.
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
            "the machine has been restarted since the dataset was open, or its state directory is \
             a copy: waiting for the earlier lease to expire"
        );
        let mut watch = self.watch(pool, id, owner);
        loop {
            match watch.look().await? {
                Verdict::Expired(expired) => return Ok(Some(expired)),
                Verdict::NotExpired { .. } if watch.saw_heartbeat() => return Ok(None),
                Verdict::NotExpired { wait } => tokio::time::sleep(wait.min(POLL_INTERVAL)).await,
            }
        }
    }
}

fn read_or_make(dir: &Path) -> std::io::Result<JournalDirId> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join(FILE);
    match std::fs::metadata(&path) {
        Ok(found) if found.len() <= BYTES_MAX => {
            // A damaged id is replaced: the journals beside it are judged by their own checksums.
            if let Ok(id) = String::from_utf8_lossy(&std::fs::read(&path)?).trim().parse() {
                return Ok(id);
            }
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let (id, draft) = (JournalDirId::random(), path.with_extension("new"));
    let mut file = std::fs::File::create(&draft)?;
    file.write_all(id.to_string().as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&draft, &path)?;
    std::fs::File::open(dir)?.sync_all()?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_keeps_its_id_and_another_has_another() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let id = id_of(&a).await.unwrap();
        assert_eq!(id_of(&a).await.unwrap(), id);
        assert_ne!(id_of(&b).await.unwrap(), id);
        std::fs::write(a.join(FILE), "torn").unwrap();
        assert_ne!(id_of(&a).await.unwrap(), id, "a torn id is replaced");
    }
}
