//! The mailbox of a node session in the bucket: how a controller reaches the owner of a volume in
//! another process.
//!
//! ```text
//! asker: put nodes/<session>/mail/<id> ──▶ owner: reads, does, puts nodes/<session>/answer/<id>, deletes the letter
//! asker: polls the answer, deletes it        │ an owner that does not answer in time: the asker takes its letter back
//! ```
//!
//! When the owner looks. Its mailbox is in the folder that each renewal of its lease lists, so that
//! a request is seen within a third of a lease at no cost at all: an idle volume costs its node's
//! heartbeat and nothing else. Where there is something to be expected it looks more often
//! ([`polling`]).
//!
//! Invariants: a letter is only about a dataset that the session has open; what it asks for may be
//! done although nobody waits any more, even an hour later, but for a restore, which a letter alone
//! does not begin ([`restoring`]). A crash of either side leaves a letter or an answer of some
//! hundred bytes; the owner removes both when they are old. Work that takes long (detaching,
//! restoring) is begun by a letter, and later ones ask how it is.

mod polling;
mod restoring;

use self::polling::Polling;
use self::restoring::Restores;
use super::controller::RestoreInPlace;
use super::node::Mounts;
use super::{ControlError, Pool, Pools};
use crate::bucket::{Bucket, Listed, PutNew};
use crate::catalog::{Dataset, Owner};
use crate::fs::Restored;
use crate::fs::api::FileSystem;
use crate::fs::db::{CheckpointId, Detached};
use crate::types::{ClaimId, Class, Classify, DatasetId, Incarnation, PackId, SessionId};
use crate::volume::{Closing, Volume, VolumeGuard, Volumes};
use futures::FutureExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Asks for a checkpoint. Answers have this format too.
const FORMAT: u32 = 1;
/// Asks for the detaching of a clone.
const FORMAT_DETACH: u32 = 2;
/// Asks whether the volume is open there.
const FORMAT_PRESENT: u32 = 3;
/// Asks for the sealing of packs (R12).
const FORMAT_SEAL: u32 = 7;
/// Asks for a volume that is not used there any more (R27).
const FORMAT_HAND_OVER: u32 = 10;
/// Asks for a restore in place, or how far it is.
const FORMAT_RESTORE: u32 = 9;
/// A letter or answer is far smaller; a larger object is none.
const BYTES_MAX: u64 = 16 << 10;
/// The first wait for an answer; it grows to `POLL_MAX`.
const POLL_MIN: Duration = Duration::from_millis(50);
const POLL_MAX: Duration = Duration::from_secs(1);
/// Answers that nobody fetched, and letters that nobody takes back, are removed after this.
const KEPT: Duration = Duration::from_secs(600);
/// Letters and answers so old are nobody's, whatever clock says so: askers wait for seconds.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Heartbeats and revocations so old are of sessions that have ended: a session that lives has
/// younger ones.
const SIGNS_ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// How long other letters wait for a volume to be closed for one; it is closed to the end all the
/// same.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(5);
/// Clones that one owner detaches at once.
const DETACHING_MAX: usize = 2;
/// Letters of one poll, the newest first: those are still waited for. The rest waits for the next.
const LETTERS_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Letter {
    format: u32,
    dataset: DatasetId,
    /// The checkpoint's name: the snapshot's incarnation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checkpoint: Option<Incarnation>,
    /// Packs, as they are called behind their family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    packs: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    restore: Option<RestoreInPlace>,
    /// What an answer to the restore gave: whoever asks has heard it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ticket: Option<Incarnation>,
    /// The claim that a hand-over is about: void for any other (R31).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claim: Option<ClaimId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answer<T> {
    format: u32,
    /// `Err` says why, for people; the asker's caller repeats.
    result: Result<T, String>,
}

/// What a letter asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wish {
    Checkpoint(Incarnation),
    Detach,
    Present,
    Seal(Vec<PackId>),
    HandOver(ClaimId),
    Restore(RestoreInPlace, Option<Incarnation>),
}

impl Letter {
    fn about(dataset: DatasetId, format: u32) -> Self {
        Self {
            format,
            dataset,
            checkpoint: None,
            packs: vec![],
            restore: None,
            ticket: None,
            claim: None,
        }
    }

    fn wish(&self) -> Result<Wish, String> {
        match (self.format, self.checkpoint, &self.restore) {
            (FORMAT, Some(checkpoint), None) => Ok(Wish::Checkpoint(checkpoint)),
            (FORMAT_DETACH, None, None) => Ok(Wish::Detach),
            (FORMAT_PRESENT, None, None) => Ok(Wish::Present),
            (FORMAT_HAND_OVER, None, None) => {
                self.claim.map(Wish::HandOver).ok_or_else(|| "it names no claim".to_owned())
            }
            (FORMAT_SEAL, None, None) => {
                let packs: Result<_, _> = self.packs.iter().map(|pack| pack.parse()).collect();
                packs
                    .map(Wish::Seal)
                    .map_err(|error| format!("it does not understand the request: {error}"))
            }
            (FORMAT_RESTORE, None, Some(restore)) => {
                Ok(Wish::Restore(restore.clone(), self.ticket))
            }
            (
                FORMAT | FORMAT_DETACH | FORMAT_PRESENT | FORMAT_HAND_OVER | FORMAT_SEAL
                | FORMAT_RESTORE,
                ..,
            ) => Err("it does not understand the request".to_owned()),
            (format, ..) => Err(format!("it does not understand format {format}")),
        }
    }
}

/// What the owner made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Made {
    pub(super) checkpoint: [u8; 16],
    /// Bytes in use.
    pub(super) referenced: u64,
}

/// How far a restore is, or how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RestoreSaid {
    /// Not begun: it is when this comes back with the next letter.
    Noted(Incarnation),
    Running(Restored),
    Done(Restored),
    /// `class`: as `class_name` writes it.
    Refused {
        class: String,
        why: String,
    },
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
    let letter = Letter { checkpoint: Some(checkpoint), ..Letter::about(dataset.id(), FORMAT) };
    send(pool, &format!("snapshot of volume {}", dataset.name), owner, &letter, limit).await
}

/// Asks the owner of a clone to make it stand on its own.
///
/// # Errors
/// [`ControlError::Unavailable`] when it does not answer in time: it may be at it still, and says
/// so when it is asked again.
pub(super) async fn ask_to_detach(
    pool: &Pool,
    clone: &Dataset,
    owner: &Owner,
    limit: Duration,
) -> Result<Detached, ControlError> {
    let letter = Letter::about(clone.id(), FORMAT_DETACH);
    send(pool, &format!("detaching of volume {}", clone.name), owner, &letter, limit).await
}

/// Whether the owner has the volume open and answers.
///
/// # Errors
/// [`ControlError::Unavailable`] when it does not answer in time.
pub(super) async fn ask_for_life(
    pool: &Pool,
    dataset: &Dataset,
    owner: &Owner,
    limit: Duration,
) -> Result<(), ControlError> {
    let letter = Letter::about(dataset.id(), FORMAT_PRESENT);
    send(pool, &format!("volume {}", dataset.name), owner, &letter, limit).await
}

/// Asks the owner to make no new use of packs (R12). Answered when that is durable.
///
/// # Errors
/// [`ControlError::Unavailable`] when it does not answer in time.
pub(super) async fn ask_to_seal(
    pool: &Pool,
    dataset: &Dataset,
    owner: &Owner,
    packs: &[PackId],
    limit: Duration,
) -> Result<(), ControlError> {
    let packs = packs.iter().map(ToString::to_string).collect();
    let letter = Letter { packs, ..Letter::about(dataset.id(), FORMAT_SEAL) };
    send(pool, &format!("sealing of packs of volume {}", dataset.name), owner, &letter, limit).await
}

/// Asks the owner to close and release a volume that is not used there. It has done so when this
/// succeeds.
///
/// # Errors
/// [`ControlError::Unavailable`] when it uses it, or does not answer in time.
pub(super) async fn ask_to_hand_over(
    pool: &Pool,
    name: &str,
    dataset: DatasetId,
    owner: &Owner,
    limit: Duration,
) -> Result<(), ControlError> {
    let letter = Letter { claim: Some(owner.claim), ..Letter::about(dataset, FORMAT_HAND_OVER) };
    send(pool, &format!("handing over of volume {name}"), owner, &letter, limit).await
}

/// Asks the owner of a volume for a restore, or how far it is with it.
///
/// # Errors
/// [`ControlError::Unavailable`] when it does not answer in time.
pub(super) async fn ask_to_restore(
    pool: &Pool,
    dataset: &Dataset,
    owner: &Owner,
    (wanted, ticket): (&RestoreInPlace, Option<Incarnation>),
    limit: Duration,
) -> Result<RestoreSaid, ControlError> {
    let letter = Letter {
        restore: Some(wanted.clone()),
        ticket,
        ..Letter::about(dataset.id(), FORMAT_RESTORE)
    };
    send(pool, &format!("restore into volume {}", dataset.name), owner, &letter, limit).await
}

async fn send<T: DeserializeOwned>(
    pool: &Pool,
    what: &str,
    owner: &Owner,
    letter: &Letter,
    limit: Duration,
) -> Result<T, ControlError> {
    let bucket = pool.catalog.bucket();
    let id = Incarnation::random().to_string();
    let (letter_key, answer_key) = (letters(owner.session) + &id, answer_key(owner.session, &id));
    let bytes =
        serde_json::to_vec(letter).map_err(|error| ControlError::Internal(error.to_string()))?;
    if bucket.put_new(&letter_key, bytes.into()).await? == PutNew::Exists {
        return Err(ControlError::Internal(format!("a random name was taken: {letter_key}")));
    }
    let answer = tokio::time::timeout(limit, wait_for(bucket, &answer_key)).await;
    // What is left behind is removed by the owner, or by the collector, when it is old.
    if let Err(error) = bucket.delete(&[letter_key, answer_key]).await {
        tracing::debug!(%error, "a letter was not taken back");
    }
    match answer {
        Ok(Ok(Answer { result: Ok(made), .. })) => Ok(made),
        Ok(Ok(Answer { result: Err(why), .. })) => {
            Err(ControlError::Unavailable(format!("{what}: node {}: {why}", owner.node)))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ControlError::Unavailable(format!(
            "{what}: node {}, which has it open, did not answer within {} s: see its log; repeat; \
             if that machine is gone: \
             `zerofs-csi dataset release NAME --force`",
            owner.node,
            limit.as_secs()
        ))),
    }
}

async fn wait_for<T: DeserializeOwned>(
    bucket: &Bucket,
    key: &str,
) -> Result<Answer<T>, ControlError> {
    let mut pause = POLL_MIN;
    loop {
        tokio::time::sleep(pause).await;
        if let Some(bytes) = bucket.get(key, BYTES_MAX).await? {
            let answer: Answer<T> = serde_json::from_slice(&bytes).map_err(|error| {
                ControlError::Unavailable(format!("{key} is no answer: {error}"))
            })?;
            if answer.format != FORMAT {
                return Err(ControlError::Unavailable(format!(
                    "{key} has format {}: use programs of one version",
                    answer.format
                )));
            }
            return Ok(answer);
        }
        pause = (pause * 2).min(POLL_MAX);
    }
}

/// Removes letters and answers that are so old that nobody waits for them: those of sessions that
/// have ended, and of askers that went away; and heartbeats and revocations of sessions that have
/// ended. How many.
pub(super) async fn sweep(bucket: &Bucket, now: SystemTime) -> Result<usize, ControlError> {
    let kept = |key: &str| match key.split('/').nth(2) {
        Some("mail" | "answer") => Some(ABANDONED),
        Some("heartbeat" | "revocation") => Some(SIGNS_ABANDONED),
        _ => None,
    };
    let age = |listed: &Listed| now.duration_since(listed.modified).unwrap_or_default();
    let old = |listed: &Listed| kept(&listed.key).is_some_and(|kept| age(listed) > kept);
    let found = bucket.list("nodes/").await?.into_iter().filter(old);
    let keys: Vec<String> = found.map(|listed| listed.key).collect();
    if !keys.is_empty() {
        bucket.delete(&keys).await?;
    }
    Ok(keys.len())
}

/// The owner's side: answers what is in its mailboxes until stopped. `interval`: between looks
/// while something is expected.
pub async fn serve(
    pools: Pools,
    volumes: Volumes,
    mounts: Arc<dyn Mounts>,
    interval: Duration,
    stop: CancellationToken,
) {
    let (answered, detaching, restores) = Default::default();
    let mut desk = Desk { volumes: volumes.clone(), mounts, answered, detaching, restores };
    let mut polling = Polling::default();
    loop {
        let seen = tokio::select! {
            () = stop.cancelled() => return,
            () = volumes.requested() => true,
            () = tokio::time::sleep(interval) => false,
        };
        for pool in pools.iter() {
            if !polling.is_due(pool.id(), &volumes) && !seen {
                continue;
            }
            match desk.look(pool).await {
                Ok(0) => {}
                Ok(_) => polling.expect_more(pool.id()),
                Err(error) => {
                    tracing::warn!(
                        pool = pool.name,
                        %error,
                        "the mailbox cannot be read: snapshots asked for elsewhere wait"
                    );
                }
            }
        }
    }
}

struct Desk {
    volumes: Volumes,
    mounts: Arc<dyn Mounts>,
    /// Keys of answers, to be removed when they are old.
    answered: HashMap<String, Instant>,
    /// Bounded by [`DETACHING_MAX`]; one that nobody asks about any more is forgotten when its
    /// volume is.
    detaching: HashMap<DatasetId, JoinHandle<Result<Detached, String>>>,
    restores: Restores,
}

fn encode<T: Serialize>(result: Result<T, String>) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Answer { format: FORMAT, result })
}

impl Desk {
    /// How many letters were answered.
    async fn look(&mut self, pool: &Pool) -> Result<usize, ControlError> {
        if !self.volumes.has_any_of(pool.id()) {
            return Ok(0);
        }
        let bucket = pool.catalog.bucket();
        let prefix = letters(self.volumes.settings().session);
        let mut waiting = bucket.list(&prefix).await?;
        waiting.sort_by_key(|listed| std::cmp::Reverse(listed.modified));
        let mut answered = 0;
        for listed in waiting.into_iter().take(LETTERS_MAX) {
            let Some(id) = listed.key.strip_prefix(&prefix) else { continue };
            let Some(bytes) = bucket.get(&listed.key, BYTES_MAX).await? else { continue };
            let wish = match serde_json::from_slice::<Letter>(&bytes) {
                Ok(letter) => letter.wish().map(|wish| (letter.dataset, wish)),
                Err(error) => Err(format!("it does not understand the request: {error}")),
            };
            let bytes = match wish {
                Ok((dataset, wish)) => match self.answer(pool, dataset, wish).await {
                    Some(bytes) => bytes,
                    None => continue,
                },
                Err(why) => encode::<Made>(Err(why)),
            };
            let key = answer_key(self.volumes.settings().session, id);
            let bytes = bytes.map_err(|error| ControlError::Internal(error.to_string()))?;
            bucket.put(&key, bytes.into()).await?;
            bucket.delete(std::slice::from_ref(&listed.key)).await?;
            self.answered.insert(key, Instant::now());
            answered += 1;
        }
        self.restores.tidy(&self.volumes);
        self.detaching
            .retain(|id, running| !running.is_finished() || self.volumes.get(*id).is_some());
        self.tidy(bucket).await?;
        Ok(answered)
    }

    /// `None`: the volume is not open yet, or not any more; the asker waits, and then looks at the
    /// record again.
    async fn answer(
        &mut self,
        pool: &Pool,
        dataset: DatasetId,
        wish: Wish,
    ) -> Option<serde_json::Result<Vec<u8>>> {
        if let Wish::HandOver(claim) = wish {
            // Also of one that it owns and does not have open (R36).
            return Some(encode(self.hand_over(pool, dataset, claim).await));
        }
        let volume = self.volumes.get(dataset)?;
        Some(match wish {
            Wish::Checkpoint(name) => encode(self.checkpoint(&volume, name).await),
            Wish::Detach => encode(self.detach(volume)),
            Wish::Present => encode(Ok(())),
            Wish::Seal(packs) => {
                encode(volume.fs.seal(&packs).await.map_err(|error| error.to_string()))
            }
            Wish::HandOver(_) => return None,
            Wish::Restore(wanted, ticket) => {
                let settings = self.volumes.settings();
                encode(Ok(self.restores.answer(settings, &pool.catalog, volume, wanted, ticket)))
            }
        })
    }

    async fn hand_over(
        &self,
        pool: &Pool,
        dataset: DatasetId,
        claim: ClaimId,
    ) -> Result<(), String> {
        let record =
            pool.catalog.dataset_by_id(dataset).await.map_err(|error| error.to_string())?;
        let owner = record.and_then(|at| at.record.owner);
        if owner.is_some_and(|owner| owner.claim != claim) {
            return Err("the request is about an earlier claim of the dataset; read its record \
                again and retry"
                .to_owned());
        }
        let (mounts, volumes, catalog) =
            (self.mounts.clone(), self.volumes.clone(), pool.catalog.clone());
        // A task of its own: it goes on when nobody waits any more.
        let closing = tokio::spawn(async move {
            // Whoever holds it uses it: not beyond this line.
            let is_open = volumes.get(dataset).is_some();
            match is_open {
                true => mounts.hand_over(&volumes, dataset).await,
                false => Ok(volumes.close_disowned(&catalog, dataset).await?),
            }
        });
        match tokio::time::timeout(HAND_OVER_LIMIT, closing).await {
            Ok(Ok(Ok(Closing::Closed))) => Ok(()),
            Ok(Ok(Ok(Closing::InUse))) => Err("it is in use there".to_owned()),
            Ok(Ok(Err(error))) => Err(error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it is closing it: ask again".to_owned()),
        }
    }

    /// Rewriting a database takes minutes, and other letters must not wait: the first one begins
    /// it, a later one hears how it ended.
    fn detach(&mut self, volume: VolumeGuard) -> Result<Detached, String> {
        let id = volume.dataset.id();
        if let Some(running) = self.detaching.get_mut(&id) {
            let Some(ended) = running.now_or_never() else {
                return Err("it is at it: ask again".to_owned());
            };
            self.detaching.remove(&id);
            return ended.unwrap_or_else(|error| Err(error.to_string()));
        }
        if self.detaching.len() >= DETACHING_MAX {
            return Err("it detaches others: ask again".to_owned());
        }
        let work = async move { volume.fs.detach().await.map_err(|error| error.to_string()) };
        self.detaching.insert(id, tokio::spawn(work));
        Err("it has begun: ask again".to_owned())
    }

    async fn checkpoint(&self, volume: &Volume, name: Incarnation) -> Result<Made, String> {
        if let Err(error) = self.mounts.sync(volume.dataset.id()).await {
            tracing::warn!(
                dataset = %volume.dataset.name,
                %error,
                "the mount's dirty pages were not written out in time: a snapshot holds what the \
                 server acknowledged"
            );
        }
        let made = async {
            let CheckpointId(checkpoint) = volume.fs.snapshot(&name.to_string()).await?;
            let stat = volume.fs.statfs().await?;
            Ok::<_, crate::fs::FsError>(Made {
                checkpoint,
                referenced: stat.total_bytes.saturating_sub(stat.free_bytes),
            })
        };
        made.await.map_err(|error| {
            if error.class() != Class::Fenced {
                tracing::warn!(
                    dataset = %volume.dataset.name,
                    %error,
                    "a snapshot could not be made"
                );
            }
            error.to_string()
        })
    }

    async fn tidy(&mut self, bucket: &Bucket) -> Result<(), ControlError> {
        let old: Vec<String> = self
            .answered
            .iter()
            .filter(|(_, at)| at.elapsed() > KEPT)
            .map(|(key, _)| key.clone())
            .collect();
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
    use crate::types::{Epoch, NameKey};

    #[tokio::test]
    async fn old_letters_and_answers_are_swept_and_nothing_else() {
        let bucket = Bucket::memory();
        for key in [
            "nodes/a/mail/1",
            "nodes/a/answer/1",
            "nodes/a/heartbeat/1",
            "nodes/a/revocation/1",
            "nodes/a/other",
        ] {
            bucket.put(key, bytes::Bytes::from_static(b"x")).await.unwrap();
        }
        assert_eq!(sweep(&bucket, SystemTime::now()).await.unwrap(), 0);
        assert_eq!(sweep(&bucket, SystemTime::now() + 2 * ABANDONED).await.unwrap(), 2);
        assert_eq!(bucket.list("nodes").await.unwrap().len(), 3);
        assert_eq!(sweep(&bucket, SystemTime::now() + 2 * SIGNS_ABANDONED).await.unwrap(), 2);
    }

    #[test]
    fn the_bytes_are_fixed() {
        let id = DatasetId {
            key: NameKey::from_bytes([1; 16]),
            incarnation: Incarnation::from_bytes([2; 16]),
        };
        let letter =
            Letter { checkpoint: Some(Incarnation::from_bytes([3; 16])), ..Letter::about(id, 1) };
        let text = r#"{"format":1,"dataset":"aeaqcaibaeaqcaibaeaqcaibae-aibaeaqcaibaeaqcaibaeaqcai","checkpoint":"ambqgaydambqgaydambqgaydam"}"#;
        assert_eq!(serde_json::to_string(&letter).unwrap(), text);
        assert_eq!(serde_json::from_str::<Letter>(text).unwrap(), letter);
        assert_eq!(letter.wish(), Ok(Wish::Checkpoint(Incarnation::from_bytes([3; 16]))));
        let answer = Answer::<Made> { format: 1, result: Err("no".into()) };
        assert_eq!(
            serde_json::to_string(&answer).unwrap(),
            r#"{"format":1,"result":{"Err":"no"}}"#
        );
        let letter = Letter::about(id, 2);
        let text =
            r#"{"format":2,"dataset":"aeaqcaibaeaqcaibaeaqcaibae-aibaeaqcaibaeaqcaibaeaqcai"}"#;
        assert_eq!(serde_json::to_string(&letter).unwrap(), text);
        assert_eq!(serde_json::from_str::<Letter>(text).unwrap().wish(), Ok(Wish::Detach));
        let claim = ClaimId::from_bytes([6; 16]);
        let ask = Letter { claim: Some(claim), ..Letter::about(id, 10) };
        let end = format!(r#","claim":"{claim}"}}"#);
        assert_eq!(
            serde_json::to_string(&ask).unwrap(),
            text.replace("2,", "10,").replace('}', &end)
        );
        assert_eq!(ask.wish(), Ok(Wish::HandOver(claim)));
        assert!(
            Letter::about(id, 10).wish().is_err(),
            "a hand-over names the claim it is about (R31)"
        );
        let restore = RestoreInPlace {
            call: Incarnation::from_bytes([4; 16]),
            snapshot: crate::types::SnapshotId { dataset: id.incarnation, snapshot: id },
            from: "etc".into(),
            to: "/x".into(),
            overwrite: false,
        };
        let letter = Letter { restore: Some(restore.clone()), ..Letter::about(id, 9) };
        let ask = serde_json::to_string(&letter).unwrap();
        let end = r#""restore":{"call":"aqcaibaeaqcaibaeaqcaibaeaq","snapshot":"aibaeaqcaibaeaqcaibaeaqcai:aeaqcaibaeaqcaibaeaqcaibae-aibaeaqcaibaeaqcaibaeaqcai","from":"etc","to":"/x","overwrite":false}}"#;
        assert!(ask.ends_with(end), "{ask}");
        assert_eq!(
            serde_json::from_str::<Letter>(&ask).unwrap().wish(),
            Ok(Wish::Restore(restore.clone(), None))
        );
        let ticket = Some(Incarnation::from_bytes([5; 16]));
        let ask = serde_json::to_string(&Letter { ticket, ..letter }).unwrap();
        assert!(
            ask.ends_with(
                &(end[..end.len() - 1].to_owned() + r#","ticket":"aucqkbifaucqkbifaucqkbifau"}"#)
            ),
            "{ask}"
        );
        assert_eq!(
            serde_json::from_str::<Letter>(&ask).unwrap().wish(),
            Ok(Wish::Restore(restore, ticket))
        );
        let answer =
            Answer { format: 1, result: Ok(RestoreSaid::Noted(Incarnation::from_bytes([4; 16]))) };
        assert_eq!(
            serde_json::to_string(&answer).unwrap(),
            r#"{"format":1,"result":{"Ok":{"noted":"aqcaibaeaqcaibaeaqcaibaeaq"}}}"#
        );
        let answer =
            Answer { format: 1, result: Ok(RestoreSaid::Done(Restored { objects: 3, bytes: 4 })) };
        assert_eq!(
            serde_json::to_string(&answer).unwrap(),
            r#"{"format":1,"result":{"Ok":{"done":{"objects":3,"bytes":4}}}}"#
        );
        let answer = Answer { format: 1, result: Ok(Detached::Held) };
        assert_eq!(
            serde_json::to_string(&answer).unwrap(),
            r#"{"format":1,"result":{"Ok":"held"}}"#
        );
        let pack = PackId { creator: Incarnation::from_bytes([3; 16]), epoch: Epoch(4), seq: 5 };
        let letter = Letter { packs: vec![pack.to_string()], ..Letter::about(id, 7) };
        let text = r#"{"format":7,"dataset":"aeaqcaibaeaqcaibaeaqcaibae-aibaeaqcaibaeaqcaibaeaqcai","packs":["ambqgaydambqgaydambqgaydam/0000000000000004-0000000000000005"]}"#;
        assert_eq!(serde_json::to_string(&letter).unwrap(), text);
        assert_eq!(
            serde_json::from_str::<Letter>(text).unwrap().wish(),
            Ok(Wish::Seal(vec![pack]))
        );
        assert!(Letter { packs: vec!["x".to_owned()], ..letter }.wish().is_err());
        let text =
            r#"{"format":2,"dataset":"aeaqcaibaeaqcaibaeaqcaibae-aibaeaqcaibaeaqcaibaeaqcai"}"#;
        for wrong in
            [Letter { format: 2, ..serde_json::from_str(text).unwrap() }, Letter::about(id, 99)]
        {
            assert_eq!(wrong.wish().is_ok(), wrong.format == 2);
        }
    }
}
