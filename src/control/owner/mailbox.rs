//! Carrier: the mailbox of a node session in the bucket, which reaches the owner of a volume in
//! another process whatever firewalls there are.
//!
//! ```text
//! asker: put nodes/<session>/request/<id>
//! owner: reads it, acts, puts nodes/<session>/reply/<id>, deletes the request
//! asker: polls the reply and deletes it; where none comes in time it deletes its request
//! ```
//! A request is only about a dataset that the session has open (a hand-over also of one that it
//! owns). It may be acted on when no caller waits any longer, even an hour later, except for a
//! restore, which starts only with a start token ([`long`](super::long)).
//!
//! A crash of either side leaves a request or a reply of some hundred bytes; the owner removes its
//! replies when they are old, and the collector both.

use super::request::{OwnerReply, OwnerRequest};
use crate::bucket::{Bucket, Listed, PutNew};
use crate::catalog::{Owner, is_damage_report, mailbox_reply, mailbox_requests};
use crate::control::{ControlError, Pool};
use crate::fs::Restored;
use crate::types::{Backoff, Class, Classify, DatasetId, Incarnation};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime};

/// The version of requests and replies.
const FORMAT: u32 = 1;
/// The largest request or reply.
pub(super) const BYTES_MAX: u64 = 16 << 10;
/// The first wait for a reply; it grows to `POLL_MAX`.
const POLL_MIN: Duration = Duration::from_millis(50);
const POLL_MAX: Duration = Duration::from_secs(1);
/// Older requests and replies are abandoned, whichever clock measures that: askers wait for
/// seconds.
const MESSAGE_AGE_MAX: Duration = Duration::from_secs(3600);
/// Older heartbeats, channels and revocations are of sessions that have ended: a live session has
/// younger ones.
const STATUS_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Message {
    format: u32,
    pub(super) dataset: DatasetId,
    pub(super) request: OwnerRequest,
    /// From an earlier reply, which the asker has therefore seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) start_token: Option<Incarnation>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Reply {
    format: u32,
    outcome: RequestStatus,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RequestStatus {
    Done(OwnerReply),
    Failed {
        class: Class,
        why: String,
    },
    /// Not started: the request starts when the next one brings this token back.
    StartToken(Incarnation),
    Running(Restored),
    /// The volume is not open there, not yet or no longer. Of the channel only: in the mailbox such
    /// a request is left unanswered.
    NotOpen,
}

impl From<Result<OwnerReply, ControlError>> for RequestStatus {
    fn from(done: Result<OwnerReply, ControlError>) -> Self {
        match done {
            Ok(reply) => Self::Done(reply),
            Err(error) => Self::failed(error.class(), error.to_string()),
        }
    }
}

impl Message {
    pub(super) fn new(dataset: DatasetId, request: OwnerRequest) -> Self {
        Self { format: FORMAT, dataset, request, start_token: None }
    }
}

impl RequestStatus {
    pub(super) fn failed(class: Class, why: impl Into<String>) -> Self {
        Self::Failed { class, why: why.into() }
    }

    pub(super) fn encode(self) -> Result<Vec<u8>, ControlError> {
        encode(&Reply { format: FORMAT, outcome: self })
    }
}

fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ControlError> {
    serde_json::to_vec(message).map_err(|error| ControlError::Internal(error.to_string()))
}

pub(super) fn encode_request(message: &Message) -> Result<Vec<u8>, ControlError> {
    encode(message)
}

/// Decodes a reply; the error says what is wrong with it.
pub(super) fn decode_outcome(bytes: &[u8]) -> Result<RequestStatus, String> {
    decode::<Reply>(bytes).map(|reply| reply.outcome)
}

/// Decodes a request, or returns the outcome for one that cannot be read.
pub(super) fn decode_request(bytes: &[u8]) -> Result<Message, RequestStatus> {
    decode(bytes).map_err(|why| RequestStatus::failed(Class::Unsupported, why))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let incompatible =
        |why: String| format!("incompatible version ({why}): run one version everywhere");
    let Version { format } =
        serde_json::from_slice(bytes).map_err(|error| incompatible(error.to_string()))?;
    if format != FORMAT {
        return Err(incompatible(format!("format {format}, not {FORMAT}")));
    }
    serde_json::from_slice(bytes).map_err(|error| incompatible(error.to_string()))
}

/// The owner that is asked, and what about.
#[derive(Clone, Copy)]
pub(super) struct Addressee<'a> {
    pub(super) pool: &'a Pool,
    pub(super) owner: &'a Owner,
    pub(super) dataset: DatasetId,
    /// The dataset's name, for messages.
    pub(super) name: &'a str,
}

/// The reason why there is no reply.
pub(super) enum Unanswered {
    /// The owner did not reply within the limit.
    Silent(ControlError),
    /// The owner answered that it cannot or may not, or the store did.
    Failed(ControlError),
}

impl From<Unanswered> for ControlError {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Silent(error) | Unanswered::Failed(error) => error,
        }
    }
}

/// Sends one message. `limit`: for its reply.
pub(super) async fn send(
    to: Addressee<'_>,
    message: &Message,
    limit: Duration,
) -> Result<RequestStatus, Unanswered> {
    let (bucket, session) = (to.pool.catalog.bucket(), to.owner.session);
    let id = Incarnation::random().to_string();
    let (request_key, reply_key) = (mailbox_requests(session) + &id, mailbox_reply(session, &id));
    let bytes = encode(message).map_err(Unanswered::Failed)?;
    let put = bucket.put_new(&request_key, bytes.into()).await;
    match put.map_err(|error| Unanswered::Failed(error.into()))? {
        PutNew::Created => {}
        PutNew::Exists => {
            let why = format!("a random name was taken: {request_key}");
            return Err(Unanswered::Failed(ControlError::Internal(why)));
        }
    }
    let reply = tokio::time::timeout(limit, poll(bucket, &reply_key)).await;
    // The owner or the collector removes the remains when they are old.
    if let Err(error) = bucket.delete(&[request_key, reply_key]).await {
        tracing::debug!(%error, "a mailbox request was not deleted: the collector does that later");
    }
    match reply {
        Ok(outcome) => outcome.map_err(Unanswered::Failed),
        Err(_) => Err(silent(to, message, limit)),
    }
}

/// No reply came within the limit.
pub(super) fn silent(to: Addressee<'_>, message: &Message, limit: Duration) -> Unanswered {
    Unanswered::Silent(ControlError::Unavailable(format!(
        "{}: node {}, which has it open, did not answer within {} s; check its log, then retry; if \
         that machine is gone, run `zerofs-csi dataset release {} --force`",
        message.request.describe(to.name),
        to.owner.node,
        limit.as_secs(),
        to.name
    )))
}

async fn poll(bucket: &Bucket, key: &str) -> Result<RequestStatus, ControlError> {
    let mut backoff = Backoff::new(POLL_MIN, POLL_MAX);
    loop {
        tokio::time::sleep(backoff.pause()).await;
        if let Some(bytes) = bucket.get(key, BYTES_MAX).await? {
            return decode_outcome(&bytes)
                .map_err(|why| ControlError::Unavailable(format!("reading {key}: {why}")));
        }
    }
}

/// The result of a sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::control) struct Swept {
    pub(in crate::control) removed: usize,
    /// Whether a session reports a damaged volume: seen in passing.
    pub(in crate::control) damage_reported: bool,
}

/// Removes objects too old to be waited for: requests and replies of sessions that have ended and
/// of askers that went away, heartbeats, revocations and reports of sessions that have ended.
pub(super) async fn sweep(bucket: &Bucket, now: SystemTime) -> Result<Swept, ControlError> {
    let age_max = |key: &str| match key.split('/').nth(2) {
        Some("request" | "reply") => Some(MESSAGE_AGE_MAX),
        Some("heartbeat" | "revocation" | "channel") => Some(STATUS_AGE_MAX),
        _ => is_damage_report(key).then_some(STATUS_AGE_MAX),
    };
    let age = |listed: &Listed| now.duration_since(listed.modified).unwrap_or_default();
    let old = |listed: &Listed| age_max(&listed.key).is_some_and(|max| age(listed) > max);
    let (old, young): (Vec<Listed>, Vec<Listed>) =
        bucket.list("nodes/").await?.into_iter().partition(old);
    let keys: Vec<String> = old.into_iter().map(|listed| listed.key).collect();
    if !keys.is_empty() {
        bucket.delete(&keys).await?;
    }
    let damage_reported = young.iter().any(|listed| is_damage_report(&listed.key));
    Ok(Swept { removed: keys.len(), damage_reported })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::owner::request::{Checkpointed, FreezeToken};
    use crate::control::owner::restore::{Replaced, RestoreInPlace};
    use crate::fs::db::Detached;
    use crate::types::{ClaimId, Epoch, NameKey, PackId, SnapshotId};

    #[tokio::test]
    async fn old_requests_and_replies_are_swept_and_nothing_else() {
        let bucket = Bucket::memory();
        for key in [
            "nodes/a/request/1",
            "nodes/a/reply/1",
            "nodes/a/heartbeat/1",
            "nodes/a/revocation/1",
            "nodes/a/damage/1",
            "nodes/a/channel/1",
            "nodes/a/other",
        ] {
            bucket.put(key, bytes::Bytes::from_static(b"x")).await.unwrap();
        }
        let swept = async |after| sweep(&bucket, SystemTime::now() + after).await.unwrap();
        let found = |removed, damage_reported| Swept { removed, damage_reported };
        assert_eq!(swept(Duration::ZERO).await, found(0, true));
        assert_eq!(swept(2 * MESSAGE_AGE_MAX).await, found(2, true));
        assert_eq!(bucket.list("nodes").await.unwrap().len(), 5);
        assert_eq!(swept(2 * STATUS_AGE_MAX).await, found(4, false));
    }

    fn dataset() -> DatasetId {
        DatasetId {
            key: NameKey::from_bytes([1; 16]),
            incarnation: Incarnation::from_bytes([2; 16]),
        }
    }

    #[test]
    fn the_bytes_of_requests_are_fixed() {
        let id = |n| Incarnation::from_bytes([n; 16]);
        let pack = PackId { creator: id(3), epoch: Epoch(4), seq: 5 };
        let restore = RestoreInPlace {
            call: id(4),
            snapshot: SnapshotId { dataset: id(2), snapshot: dataset() },
            from: "etc".into(),
            to: "/x".into(),
            overwrite: false,
        };
        let requests = [
            (
                OwnerRequest::Checkpoint { snapshot: id(3) },
                r#"{"checkpoint":{"snapshot":"ambqgaydambqgaydambqgaydam"}}"#,
            ),
            (
                OwnerRequest::Seal { packs: vec![pack] },
                concat!(
                    r#"{"seal":{"packs":["#,
                    r#""ambqgaydambqgaydambqgaydam/0000000000000004-0000000000000005"]}}"#
                ),
            ),
            (OwnerRequest::Detach, r#""detach""#),
            (
                OwnerRequest::Restore { wanted: restore, replaced: Replaced::KeptBeside },
                concat!(
                    r#"{"restore":{"call":"aqcaibaeaqcaibaeaqcaibaeaq","snapshot":""#,
                    "aibaeaqcaibaeaqcaibaeaqcai:aeaqcaibaeaqcaibaeaqcaibae-",
                    r#"aibaeaqcaibaeaqcaibaeaqcai","from":"etc","to":"/x","overwrite":false,"#,
                    r#""replaced":"kept-beside"}}"#
                ),
            ),
            (
                OwnerRequest::StopRestore { call: id(4) },
                r#"{"stop-restore":{"call":"aqcaibaeaqcaibaeaqcaibaeaq"}}"#,
            ),
            (
                OwnerRequest::HandOver { claim: ClaimId::from_bytes([6; 16]) },
                r#"{"hand-over":{"claim":"aydambqgaydambqgaydambqgay"}}"#,
            ),
            (OwnerRequest::Ping, r#""ping""#),
            (OwnerRequest::ApplyProperties, r#""apply-properties""#),
            (OwnerRequest::MountGroup { gid: 7 }, r#"{"mount-group":{"gid":7}}"#),
            (OwnerRequest::PrepareFreeze, r#""prepare-freeze""#),
            (
                OwnerRequest::Freeze { token: id(5), limit_millis: 10_000 },
                concat!(
                    r#"{"freeze":{"token":"aucqkbifaucqkbifaucqkbifau","#,
                    r#""limit_millis":10000}}"#
                ),
            ),
            (
                OwnerRequest::CheckpointFrozen {
                    snapshot: id(3),
                    freeze: FreezeToken::Open(id(5)),
                },
                concat!(
                    r#"{"checkpoint-frozen":{"snapshot":"ambqgaydambqgaydambqgaydam","#,
                    r#""freeze":{"open":"aucqkbifaucqkbifaucqkbifau"}}}"#
                ),
            ),
            (
                OwnerRequest::Thaw { freeze: FreezeToken::Released(Epoch(9)) },
                r#"{"thaw":{"freeze":{"released":9}}}"#,
            ),
        ];
        for (request, text) in requests {
            for (start_token, end) in [
                (None, "".to_owned()),
                (Some(id(5)), r#","start_token":"aucqkbifaucqkbifaucqkbifau""#.to_owned()),
            ] {
                let message = Message {
                    format: 1,
                    dataset: dataset(),
                    request: request.clone(),
                    start_token,
                };
                let text = format!(
                    r#"{{"format":1,"dataset":"{}-{}","request":{text}{end}}}"#,
                    "aeaqcaibaeaqcaibaeaqcaibae", "aibaeaqcaibaeaqcaibaeaqcai"
                );
                assert_eq!(serde_json::to_string(&message).unwrap(), text);
                assert_eq!(decode_request(text.as_bytes()), Ok(message));
            }
        }
    }

    #[test]
    fn a_request_of_another_version_is_refused_and_one_without_its_claim_too() {
        let id = dataset();
        for wrong in [
            format!(r#"{{"format":2,"dataset":"{id}","request":"ping"}}"#),
            format!(r#"{{"format":1,"dataset":"{id}","request":"hold"}}"#),
            format!(r#"{{"format":1,"dataset":"{id}","request":{{"hand-over":{{}}}}}}"#),
            format!(r#"{{"format":1,"dataset":"{id}","request":{{"seal":{{"packs":["x"]}}}}}}"#),
            "no request".to_owned(),
        ] {
            let refused = decode_request(wrong.as_bytes()).unwrap_err();
            assert!(
                matches!(&refused, RequestStatus::Failed { class: Class::Unsupported, why }
                    if why.contains("run one version everywhere")),
                "{wrong}: {refused:?}"
            );
        }
    }

    #[test]
    fn the_bytes_of_replies_are_fixed() {
        let made = Checkpointed { checkpoint: [7; 16], referenced: Some(8) };
        let restored = Restored { objects: 3, bytes: 4 };
        let outcomes = [
            (RequestStatus::Done(OwnerReply::Done), r#"{"done":"done"}"#),
            (
                RequestStatus::Done(OwnerReply::Checkpoint(made)),
                concat!(
                    r#"{"done":{"checkpoint":{"checkpoint":"#,
                    r#"[7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7],"referenced":8}}}"#
                ),
            ),
            (
                RequestStatus::Done(OwnerReply::Frozen(FreezeToken::Released(Epoch(9)))),
                r#"{"done":{"frozen":{"released":9}}}"#,
            ),
            (
                RequestStatus::Done(OwnerReply::CheckpointFrozen(
                    Checkpointed { referenced: None, ..made },
                    FreezeToken::Released(Epoch(10)),
                )),
                concat!(
                    r#"{"done":{"checkpoint-frozen":[{"checkpoint":"#,
                    r#"[7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7],"referenced":null},{"released":10}]}}"#
                ),
            ),
            (
                RequestStatus::Done(OwnerReply::Detached(Detached::Held)),
                r#"{"done":{"detached":"held"}}"#,
            ),
            (
                RequestStatus::Done(OwnerReply::Restored(restored)),
                r#"{"done":{"restored":{"objects":3,"bytes":4}}}"#,
            ),
            (
                RequestStatus::failed(Class::InProgress, "no"),
                r#"{"failed":{"class":"in-progress","why":"no"}}"#,
            ),
            (
                RequestStatus::StartToken(Incarnation::from_bytes([4; 16])),
                r#"{"start-token":"aqcaibaeaqcaibaeaqcaibaeaq"}"#,
            ),
            (RequestStatus::Running(restored), r#"{"running":{"objects":3,"bytes":4}}"#),
            (RequestStatus::NotOpen, r#""not-open""#),
        ];
        for (outcome, text) in outcomes {
            let text = format!(r#"{{"format":1,"outcome":{text}}}"#);
            assert_eq!(outcome.clone().encode().unwrap(), text.as_bytes(), "{text}");
            assert_eq!(decode::<Reply>(text.as_bytes()), Ok(Reply { format: 1, outcome }));
        }
    }
}
