//! The mailbox of a node session in the bucket: how a controller reaches the owner of a volume in another process.
//!
//! ```text
//! asker: put nodes/<session>/mail/<id> ──▶ owner: reads, does, puts nodes/<session>/answer/<id>, deletes the letter
//! asker: polls the answer, deletes it        │ an owner that does not answer in time: the asker takes its letter back
//! ```
//!
//! Invariants: a letter is only about a dataset that the session has open; what it asks for is idempotent, so that it may be
//! done although nobody waits any more; an owner polls only while it has volumes open in the pool, so an idle node makes no
//! requests. A crash of either side leaves a letter or an answer of some hundred bytes; the owner removes both when they
//! are old.

use super::node::Mounts;
use super::{ControlError, Pool, Pools};
use crate::bucket::{Bucket, PutNew};
use crate::catalog::{Dataset, Owner};
use crate::fs::api::FileSystem;
use crate::fs::db::CheckpointId;
use crate::types::{Class, Classify, DatasetId, Incarnation, SessionId};
use crate::volume::Volumes;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const FORMAT: u32 = 1;
/// A letter or answer is far smaller; a larger object is none.
const BYTES_MAX: u64 = 16 << 10;
/// The first wait for an answer; it grows to `POLL_MAX`.
const POLL_MIN: Duration = Duration::from_millis(50);
const POLL_MAX: Duration = Duration::from_secs(1);
/// Answers that nobody fetched, and letters that nobody takes back, are removed after this.
const KEPT: Duration = Duration::from_secs(600);
/// Letters of one poll; the rest waits for the next.
const LETTERS_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Letter {
    format: u32,
    dataset: DatasetId,
    /// The checkpoint's name: the snapshot's incarnation.
    checkpoint: Incarnation,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    format: u32,
    /// `Err` says why, for people; the asker's caller repeats.
    result: Result<Made, String>,
}

/// What the owner made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Made {
    pub(super) checkpoint: [u8; 16],
    /// Bytes in use.
    pub(super) referenced: u64,
}

fn letters(session: SessionId) -> String {
    format!("nodes/{session}/mail/")
}

fn answer_key(session: SessionId, id: &str) -> String {
    format!("nodes/{session}/answer/{id}")
}

/// Asks the owner of a volume for a checkpoint.
///
/// # Errors
/// [`ControlError::Unavailable`] when it does not answer in time, or could not make it.
pub(super) async fn ask(
    pool: &Pool,
    dataset: &Dataset,
    owner: &Owner,
    checkpoint: Incarnation,
    limit: Duration,
) -> Result<Made, ControlError> {
    let bucket = pool.catalog.bucket();
    let id = Incarnation::random().to_string();
    let (letter_key, answer_key) = (letters(owner.session) + &id, answer_key(owner.session, &id));
    let letter = Letter { format: FORMAT, dataset: dataset.id(), checkpoint };
    let bytes = serde_json::to_vec(&letter).map_err(|error| ControlError::Internal(error.to_string()))?;
    if bucket.put_new(&letter_key, bytes.into()).await? == PutNew::Exists {
        return Err(ControlError::Internal(format!("a random name was taken: {letter_key}")));
    }
    let answer = tokio::time::timeout(limit, wait_for(bucket, &answer_key)).await;
    // What is left behind is removed by the owner when it is old.
    if let Err(error) = bucket.delete(&[letter_key, answer_key]).await {
        tracing::debug!(%error, "a letter was not taken back");
    }
    let what = || format!("snapshot of volume {}", dataset.name);
    match answer {
        Ok(Ok(Answer { result: Ok(made), .. })) => Ok(made),
        Ok(Ok(Answer { result: Err(why), .. })) => {
            Err(ControlError::Unavailable(format!("{}: node {}: {why}", what(), owner.node)))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ControlError::Unavailable(format!(
            "{}: node {}, which has it open, did not answer within {} s: see its log; repeat",
            what(),
            owner.node,
            limit.as_secs()
        ))),
    }
}

async fn wait_for(bucket: &Bucket, key: &str) -> Result<Answer, ControlError> {
    let mut pause = POLL_MIN;
    loop {
        tokio::time::sleep(pause).await;
        if let Some(bytes) = bucket.get(key, BYTES_MAX).await? {
            let answer: Answer = serde_json::from_slice(&bytes)
                .map_err(|error| ControlError::Unavailable(format!("{key} is no answer: {error}")))?;
            if answer.format != FORMAT {
                return Err(ControlError::Unavailable(format!("{key} has format {}: use programs of one version", answer.format)));
            }
            return Ok(answer);
        }
        pause = (pause * 2).min(POLL_MAX);
    }
}

/// The owner's side: looks into its mailboxes until stopped.
pub async fn serve(pools: Pools, volumes: Volumes, mounts: Arc<dyn Mounts>, interval: Duration, stop: CancellationToken) {
    let mut desk = Desk { volumes, mounts, answered: HashMap::new() };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        for pool in pools.iter() {
            if let Err(error) = desk.look(pool).await {
                tracing::warn!(pool = pool.name, %error, "the mailbox cannot be read: snapshots asked for elsewhere wait");
            }
        }
    }
}

struct Desk {
    volumes: Volumes,
    mounts: Arc<dyn Mounts>,
    /// Keys of answers, to be removed when they are old.
    answered: HashMap<String, Instant>,
}

impl Desk {
    async fn look(&mut self, pool: &Pool) -> Result<(), ControlError> {
        if !self.volumes.list().iter().any(|volume| volume.pool == pool.id()) {
            return Ok(());
        }
        let bucket = pool.catalog.bucket();
        let prefix = letters(self.volumes.settings().session);
        for listed in bucket.list(&prefix).await?.into_iter().take(LETTERS_MAX) {
            let Some(id) = listed.key.strip_prefix(&prefix) else { continue };
            let Some(bytes) = bucket.get(&listed.key, BYTES_MAX).await? else { continue };
            let result = match serde_json::from_slice::<Letter>(&bytes) {
                Ok(letter) if letter.format == FORMAT => match self.make(&letter).await {
                    Some(result) => result,
                    None => continue,
                },
                Ok(letter) => Err(format!("it does not understand format {}", letter.format)),
                Err(error) => Err(format!("it does not understand the request: {error}")),
            };
            let key = answer_key(self.volumes.settings().session, id);
            let answer = Answer { format: FORMAT, result };
            let bytes = serde_json::to_vec(&answer).map_err(|error| ControlError::Internal(error.to_string()))?;
            bucket.put(&key, bytes.into()).await?;
            bucket.delete(std::slice::from_ref(&listed.key)).await?;
            self.answered.insert(key, Instant::now());
        }
        self.tidy(bucket).await
    }

    /// `None`: the volume is not open yet, or not any more; the asker waits, and then looks at the record again.
    async fn make(&self, letter: &Letter) -> Option<Result<Made, String>> {
        let volume = self.volumes.get(letter.dataset)?;
        if let Err(error) = self.mounts.sync(letter.dataset).await {
            tracing::warn!(dataset = %volume.dataset.name, %error, "the mount's dirty pages were not written out in time: a snapshot holds what the server acknowledged");
        }
        let made = async {
            let CheckpointId(checkpoint) = volume.fs.snapshot(&letter.checkpoint.to_string()).await?;
            let stat = volume.fs.statfs().await?;
            Ok::<_, crate::fs::FsError>(Made { checkpoint, referenced: stat.total_bytes.saturating_sub(stat.free_bytes) })
        };
        Some(made.await.map_err(|error| {
            if error.class() != Class::Fenced {
                tracing::warn!(dataset = %volume.dataset.name, %error, "a snapshot could not be made");
            }
            error.to_string()
        }))
    }

    async fn tidy(&mut self, bucket: &Bucket) -> Result<(), ControlError> {
        let old: Vec<String> = self.answered.iter().filter(|(_, at)| at.elapsed() > KEPT).map(|(key, _)| key.clone()).collect();
        if !old.is_empty() {
            bucket.delete(&old).await?;
            self.answered.retain(|key, _| !old.contains(key));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NameKey;

    #[test]
    fn the_bytes_are_fixed() {
        let id = DatasetId { key: NameKey::from_bytes([1; 16]), incarnation: Incarnation::from_bytes([2; 16]) };
        let letter = Letter { format: 1, dataset: id, checkpoint: Incarnation::from_bytes([3; 16]) };
        let text = r#"{"format":1,"dataset":"aeaqcaibaeaqcaibaeaqcaibae-aibaeaqcaibaeaqcaibaeaqcai","checkpoint":"ambqgaydambqgaydambqgaydam"}"#;
        assert_eq!(serde_json::to_string(&letter).unwrap(), text);
        assert_eq!(serde_json::from_str::<Letter>(text).unwrap(), letter);
        let answer = Answer { format: 1, result: Err("no".into()) };
        assert_eq!(serde_json::to_string(&answer).unwrap(), r#"{"format":1,"result":{"Err":"no"}}"#);
    }
}
