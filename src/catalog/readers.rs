//! The current readers of a snapshot, for which its removal waits (R14): `.snapshots`, exports,
//! restores, comparisons.
//!
//! ```text
//! reader:    put readers/<snapshot>/<reader> ─▶ read the record: still ready? ─▶ read ─▶ remove the object
//! collector: record is a tombstone           ─▶ list readers/<snapshot>: none? ─▶ dead
//! ```
//! Each reads after it has written, so that of a concurrent reader and collector at least one sees
//! the other.
//!
//! The object is no record: only its existence matters, not its contents. Its reader puts it again
//! every [`READING_RENEWED`]; one that was not renewed for [`READING_KEPT`] belongs to a process
//! that died, and no longer counts. A clock that is wrong by this much costs a reader a stale
//! handle, and nothing else.

use super::{Catalog, CatalogError, Owner, Snapshot, State};
use crate::types::{Incarnation, SnapshotId};
use bytes::Bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// Interval at which a reader renews its object.
pub const READING_RENEWED: Duration = Duration::from_secs(300);
/// A reader that has not renewed its object for this long is gone.
pub const READING_KEPT: Duration = Duration::from_secs(3600);

const FORMAT: u32 = 1;
const PREFIX: &str = "readers";

/// The object's contents, for people who inspect the bucket.
#[derive(Serialize)]
struct Sign<'a> {
    format: u32,
    snapshot: SnapshotId,
    node: &'a str,
    session: crate::types::SessionId,
}

/// A snapshot is being read.
#[derive(Clone, Debug)]
pub struct Reading {
    key: String,
    sign: Bytes,
}

/// The readers found in a listing of their objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readers {
    /// Number of readers of each snapshot, by its incarnation.
    pub live: BTreeMap<Incarnation, usize>,
    /// Objects of readers that are gone.
    pub old: Vec<String>,
}

impl Catalog {
    /// Announces a reader. The snapshot is not removed before [`Self::end_reading`], or long after
    /// the last [`Self::go_on_reading`].
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] when it is not ready, or no longer exists.
    pub async fn begin_reading(
        &self,
        id: SnapshotId,
        who: &Owner,
    ) -> Result<(Reading, Snapshot), CatalogError> {
        let sign = Sign { format: FORMAT, snapshot: id, node: &who.node, session: who.session };
        let sign = serde_json::to_vec(&sign).map_err(|error| CatalogError::Corrupt {
            key: id.to_string(),
            why: error.to_string(),
        })?;
        let key = format!("{PREFIX}/{}/{}", id.snapshot.incarnation, Incarnation::random());
        let reading = Reading { key, sign: sign.into() };
        self.go_on_reading(&reading).await?;
        let found = async {
            self.reading_step("catalog.reading", "announcing a reader of").await?;
            self.snapshot_by_id(id).await
        };
        match found.await {
            Ok(Some(at)) if at.record.state == State::Ready => Ok((reading, at.record)),
            other => {
                self.end_reading(&reading).await?;
                other.and(Err(CatalogError::NotFound { what: format!("snapshot {id}") }))
            }
        }
    }

    pub async fn go_on_reading(&self, reading: &Reading) -> Result<(), CatalogError> {
        let put = self.bucket().put(&reading.key, reading.sign.clone()).await;
        put.map_err(|error| {
            CatalogError::bucket(format!("announcing a reader at {}", reading.key), error)
        })
    }

    pub async fn end_reading(&self, reading: &Reading) -> Result<(), CatalogError> {
        self.reading_step("catalog.reading-ended", "giving up a reader of").await?;
        let deleted = self.bucket().delete(std::slice::from_ref(&reading.key)).await;
        deleted.map_err(|error| {
            CatalogError::bucket(format!("giving up a reader at {}", reading.key), error)
        })
    }

    /// Lists the readers of one snapshot, or of all.
    pub async fn readers(
        &self,
        of: Option<Incarnation>,
        now: SystemTime,
    ) -> Result<Readers, CatalogError> {
        let prefix = of.map_or_else(|| PREFIX.to_owned(), |of| format!("{PREFIX}/{of}"));
        let listed = self.bucket().list(&prefix).await;
        let listed = listed.map_err(|error| {
            CatalogError::bucket("listing who reads snapshots".to_owned(), error)
        })?;
        let mut readers = Readers::default();
        for object in listed {
            let old = now.duration_since(object.modified).is_ok_and(|age| age > READING_KEPT);
            let snapshot = object.key.split('/').nth(1).and_then(|id| id.parse().ok());
            match snapshot {
                Some(snapshot) if !old => *readers.live.entry(snapshot).or_default() += 1,
                _ if old => readers.old.push(object.key),
                _ => {}
            }
        }
        Ok(readers)
    }

    /// Removes objects of readers that died. Returns their number.
    pub async fn sweep_readers(&self, now: SystemTime) -> Result<usize, CatalogError> {
        let old = self.readers(None, now).await?.old;
        if !old.is_empty() {
            let deleted = self.bucket().delete(&old).await;
            deleted.map_err(|error| {
                CatalogError::bucket("removing readers that died".to_owned(), error)
            })?;
        }
        Ok(old.len())
    }

    async fn reading_step(&self, step: &str, doing: &str) -> Result<(), CatalogError> {
        let step = self.bucket().failpoints().step(step).await;
        step.map_err(|error| CatalogError::bucket(format!("{doing} a snapshot"), error))
    }
}
