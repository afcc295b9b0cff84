//! Node sessions: their heartbeats, the revocations of their claims, what they report of damaged
//! volumes, and where they accept relayed calls.
//!
//! A heartbeat is an object of its own, put if absent under a number that only grows, never an
//! overwrite (R1). One writer per session would make an overwrite safe against others, but not
//! against itself: an abandoned put may arrive late, and bring an old heartbeat back over a newer
//! one. A watcher would then see no change although there was one. Of numbered objects the largest
//! counts, which no late put makes smaller. Lower numbers are removed by the next renewal. The
//! object of a session's channel is renewed in the same way.

use super::frame::{Header, RECORD_BYTES_MAX, decode_record, encode_record};
use super::{Catalog, CatalogError, DamageReport, Heartbeat, NodeChannel, Revocation};
use crate::bucket::PutNew;
use crate::types::{ClaimId, DatasetId, Incarnation, SessionId};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most reports read at once; the rest is left to the next time.
const REPORTS_MAX: usize = 64;
/// Most times that a record is looked for which a newer one replaces while it is.
const REPLACED_MAX: usize = 8;

/// The status of a node session, as a listing of its folder shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// Numbers of the heartbeats, ascending.
    pub heartbeats: Vec<u64>,
    /// The claims that are revoked, also those that ended long ago.
    pub revocations: Vec<ClaimId>,
    /// The number of requests in its mailbox.
    pub requests: usize,
}

impl NodeStatus {
    pub fn newest(&self) -> Option<u64> {
        self.heartbeats.last().copied()
    }
}

const DAMAGE: &str = "damage";

fn folder(session: SessionId) -> String {
    format!("nodes/{session}")
}

fn heartbeat_key(session: SessionId, number: u64) -> String {
    format!("{}/heartbeat/{number:020}", folder(session))
}

fn revocation_key(session: SessionId, claim: ClaimId) -> String {
    format!("{}/revocation/{claim}", folder(session))
}

fn damage_key(session: SessionId, dataset: DatasetId) -> String {
    format!("{}/{DAMAGE}/{}", folder(session), dataset.incarnation)
}

/// Returns whether this is the key of a report of a damaged volume.
pub fn is_damage_report(key: &str) -> bool {
    key.split('/').nth(2) == Some(DAMAGE)
}

fn channels(session: SessionId) -> String {
    format!("{}/channel", folder(session))
}

fn channel_key(session: SessionId, number: u64) -> String {
    format!("{}/{number:020}", channels(session))
}

/// The prefix of requests to a session, each under a random id.
pub fn mailbox_requests(session: SessionId) -> String {
    format!("{}/request/", folder(session))
}

/// The key of the session's reply to a request.
pub fn mailbox_reply(session: SessionId, request: &str) -> String {
    format!("{}/reply/{request}", folder(session))
}

impl Catalog {
    /// Writes a heartbeat. `number` is larger than that of every earlier call of this session, also
    /// of one that failed.
    pub async fn put_heartbeat(
        &self,
        session: SessionId,
        number: u64,
        heartbeat: &Heartbeat,
    ) -> Result<(), CatalogError> {
        let key = heartbeat_key(session, number);
        match self.put_new_record(&key, heartbeat).await? {
            PutNew::Created => Ok(()),
            PutNew::Exists => {
                let why = "another process writes under this session".to_owned();
                Err(CatalogError::Precondition { what: key, why })
            }
        }
    }

    /// Lists the session's folder by one request: its heartbeats, the revocations of its claims,
    /// and the requests in its mailbox.
    pub async fn node_status(&self, session: SessionId) -> Result<NodeStatus, CatalogError> {
        let prefix = folder(session);
        let listed = self.bucket().list(&prefix).await;
        let listed = listed.map_err(|e| {
            CatalogError::bucket(format!("listing the status of session {session}"), e)
        })?;
        let mut status = NodeStatus::default();
        for key in listed.iter().map(|listed| listed.key.as_str()) {
            let Some((kind, name)) =
                key.strip_prefix(&prefix).and_then(|rest| rest.strip_prefix('/')?.split_once('/'))
            else {
                continue;
            };
            match kind {
                "heartbeat" => status.heartbeats.extend(super::chain::version_of(name)),
                "revocation" => status.revocations.extend(name.parse::<ClaimId>().ok()),
                "request" => status.requests += 1,
                _ => {}
            }
        }
        Ok(status)
    }

    /// Absent ones count as removed.
    pub async fn remove_heartbeats(
        &self,
        session: SessionId,
        numbers: &[u64],
    ) -> Result<(), CatalogError> {
        if numbers.is_empty() {
            return Ok(());
        }
        let keys: Vec<String> =
            numbers.iter().map(|number| heartbeat_key(session, *number)).collect();
        let removed = self.bucket().delete(&keys).await;
        removed.map_err(|e| {
            CatalogError::bucket(format!("removing heartbeats of session {session}"), e)
        })
    }

    /// Revokes a claim of `session`. An existing revocation of the same claim stays as it is.
    pub async fn put_revocation(
        &self,
        session: SessionId,
        revocation: &Revocation,
    ) -> Result<PutNew, CatalogError> {
        self.put_new_record(&revocation_key(session, revocation.claim), revocation).await
    }

    /// The newest heartbeat of the session, if there is one.
    pub async fn newest_heartbeat(
        &self,
        session: SessionId,
    ) -> Result<Option<Heartbeat>, CatalogError> {
        for _ in 0..REPLACED_MAX {
            let Some(newest) = self.node_status(session).await?.newest() else { return Ok(None) };
            self.bucket().failpoints().step("catalog.heartbeat.listed").await.map_err(
                |injected| {
                    CatalogError::bucket(
                        format!("reading a heartbeat of session {session}"),
                        injected,
                    )
                },
            )?;
            let found = self.get_record(&heartbeat_key(session, newest)).await?;
            // Absent: the next one has replaced it. It is no sign that the session has ended.
            if found.is_some() {
                return Ok(found);
            }
        }
        Err(CatalogError::InProgress { what: format!("a renewal by session {session}") })
    }

    /// The revocation of a claim, if there is one that can be read.
    pub async fn revocation(
        &self,
        session: SessionId,
        claim: ClaimId,
    ) -> Result<Option<Revocation>, CatalogError> {
        self.get_record(&revocation_key(session, claim)).await
    }

    /// Absent counts as removed.
    pub async fn remove_revocation(
        &self,
        session: SessionId,
        claim: ClaimId,
    ) -> Result<(), CatalogError> {
        self.remove_record(revocation_key(session, claim)).await
    }

    /// Reports a damaged volume of `session`. An existing report about it stays as it is.
    pub async fn put_damage_report(
        &self,
        session: SessionId,
        report: &DamageReport,
    ) -> Result<PutNew, CatalogError> {
        self.put_new_record(&damage_key(session, report.dataset), report).await
    }

    /// The reports of damaged volumes, with the sessions that wrote them.
    pub async fn damage_reports(&self) -> Result<Vec<(SessionId, DamageReport)>, CatalogError> {
        let listed = self.bucket().list("nodes/").await;
        let listed =
            listed.map_err(|e| CatalogError::bucket("listing reports of damage".to_owned(), e))?;
        let keys = listed.into_iter().map(|listed| listed.key).filter(|key| is_damage_report(key));
        let mut reports = Vec::new();
        for key in keys.take(REPORTS_MAX) {
            let session = key.split('/').nth(1).and_then(|name| name.parse().ok());
            match (session, self.get_record(&key).await) {
                (Some(session), Ok(report)) => reports.extend(report.map(|it| (session, it))),
                (None, Ok(_)) => {}
                // A report of a later version, or damaged itself: it is removed when it is old.
                (_, Err(CatalogError::Version { .. } | CatalogError::Corrupt { .. })) => {}
                (_, Err(error)) => return Err(error),
            }
        }
        Ok(reports)
    }

    /// Absent counts as removed.
    pub async fn remove_damage_report(
        &self,
        session: SessionId,
        dataset: DatasetId,
    ) -> Result<(), CatalogError> {
        self.remove_record(damage_key(session, dataset)).await
    }

    /// Writes where a session accepts relayed calls. `number` is larger than that of every earlier
    /// call of this session, also of one that failed.
    pub async fn put_channel(
        &self,
        session: SessionId,
        number: u64,
        channel: &NodeChannel,
    ) -> Result<(), CatalogError> {
        let key = channel_key(session, number);
        match self.put_new_record(&key, channel).await? {
            PutNew::Created => Ok(()),
            PutNew::Exists => {
                let why = "another process writes under this session".to_owned();
                Err(CatalogError::Precondition { what: key, why })
            }
        }
    }

    /// Where a session accepts relayed calls; `None`: nowhere, or it has ended.
    pub async fn channel(&self, session: SessionId) -> Result<Option<NodeChannel>, CatalogError> {
        for _ in 0..REPLACED_MAX {
            let numbers = self.channel_numbers(session).await?;
            let Some(newest) = numbers.last() else { return Ok(None) };
            let found = self.get_record(&channel_key(session, *newest)).await?;
            // Absent: the next one has replaced it, or the session has just ended.
            if found.is_some() {
                return Ok(found);
            }
        }
        Err(CatalogError::InProgress { what: format!("the channel of session {session}") })
    }

    /// Removes what [`Self::put_channel`] wrote below `number`. Absent ones count as removed.
    pub async fn remove_channels(
        &self,
        session: SessionId,
        below: u64,
    ) -> Result<(), CatalogError> {
        let numbers = self.channel_numbers(session).await?;
        let old = numbers.into_iter().filter(|number| *number < below);
        let keys: Vec<String> = old.map(|number| channel_key(session, number)).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let removed = self.bucket().delete(&keys).await;
        removed
            .map_err(|e| CatalogError::bucket(format!("removing channels of session {session}"), e))
    }

    /// Ascending.
    async fn channel_numbers(&self, session: SessionId) -> Result<Vec<u64>, CatalogError> {
        let prefix = channels(session);
        let listed = self.bucket().list(&prefix).await;
        let listed = listed.map_err(|e| {
            CatalogError::bucket(format!("looking for the channel of session {session}"), e)
        })?;
        let number = |key: &str| super::chain::version_of(key.rsplit_once('/')?.1);
        let mut numbers: Vec<u64> = listed.iter().filter_map(|at| number(&at.key)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    async fn get_record<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, CatalogError> {
        let found = self.bucket().get(key, RECORD_BYTES_MAX).await;
        match found.map_err(|e| CatalogError::bucket(format!("reading {key}"), e))? {
            Some(bytes) => Ok(decode_record(key, &bytes)?.1),
            None => Ok(None),
        }
    }

    async fn remove_record(&self, key: String) -> Result<(), CatalogError> {
        let removed = self.bucket().delete(std::slice::from_ref(&key)).await;
        removed.map_err(|e| CatalogError::bucket(format!("removing {key}"), e))
    }

    async fn put_new_record<T: Serialize>(
        &self,
        key: &str,
        record: &T,
    ) -> Result<PutNew, CatalogError> {
        let header = Header { nonce: Incarnation::random(), floor: 0, gone: false };
        let bytes = encode_record(key, &header, Some(record))?;
        self.bucket()
            .put_new(key, bytes.into())
            .await
            .map_err(|e| CatalogError::bucket(format!("writing {key}"), e))
    }
}
