//! Node sessions: their heartbeats, and the revocations of their claims.
//!
//! A heartbeat is an object of its own, put if absent under a number that only grows, never an
//! overwrite (R1). One writer per session would make an overwrite safe against others, but not
//! against itself: an abandoned put may arrive late, and bring an old heartbeat back over a newer
//! one. A watcher would then see no change although there was one. Of numbered objects the largest
//! counts, which no late put makes smaller. Lower numbers are removed by the next renewal.

use super::frame::{Header, RECORD_BYTES_MAX, decode_record, encode_record};
use super::{Catalog, CatalogError, Heartbeat, Revocation};
use crate::bucket::PutNew;
use crate::types::{ClaimId, Incarnation, SessionId};
use serde::Serialize;

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

fn folder(session: SessionId) -> String {
    format!("nodes/{session}")
}

fn heartbeat_key(session: SessionId, number: u64) -> String {
    format!("{}/heartbeat/{number:020}", folder(session))
}

fn revocation_key(session: SessionId, claim: ClaimId) -> String {
    format!("{}/revocation/{claim}", folder(session))
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
        let Some(newest) = self.node_status(session).await?.newest() else { return Ok(None) };
        let key = heartbeat_key(session, newest);
        // Absent: the next one has replaced it.
        match self
            .bucket()
            .get(&key, RECORD_BYTES_MAX)
            .await
            .map_err(|e| CatalogError::bucket(format!("reading {key}"), e))?
        {
            Some(bytes) => Ok(decode_record(&key, &bytes)?.1),
            None => Ok(None),
        }
    }

    /// The revocation of a claim, if there is one that can be read.
    pub async fn revocation(
        &self,
        session: SessionId,
        claim: ClaimId,
    ) -> Result<Option<Revocation>, CatalogError> {
        let key = revocation_key(session, claim);
        let found = self.bucket().get(&key, RECORD_BYTES_MAX).await;
        match found.map_err(|e| CatalogError::bucket(format!("reading {key}"), e))? {
            Some(bytes) => Ok(decode_record(&key, &bytes)?.1),
            None => Ok(None),
        }
    }

    /// Absent counts as removed.
    pub async fn remove_revocation(
        &self,
        session: SessionId,
        claim: ClaimId,
    ) -> Result<(), CatalogError> {
        let key = revocation_key(session, claim);
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
