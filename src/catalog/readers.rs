//! Readers of snapshots, which delay the removal of a snapshot (R14): `.snapshots`, exports,
//! restores, comparisons.
//!
//! ```text
//! reader:    put readers/<snapshot>/<reader> ─▶ the record: still ready? ──────▶ read ─▶ remove
//! collector: record is a tombstone           ─▶ list readers/<snapshot>: none? ─▶ dead
//! ```
//! Each reads after it has written, so that of a reader and a collector that meet at least one sees
//! the other.
//!
//! The object is no record: only its presence counts, not its content. Its reader puts it again
//! every [`READING_RENEWAL`]; one that was not renewed for [`READING_EXPIRY`] belongs to a process
//! that died, and does not count. A clock that is wrong by that much costs a reader a stale handle,
//! and nothing else.

use super::{Catalog, CatalogError, Owner, Snapshot, State};
use crate::types::{Incarnation, SnapshotId};
use bytes::Bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// Interval at which a reader renews its registration.
pub const READING_RENEWAL: Duration = Duration::from_secs(300);
/// A reader that was not renewed for this long has died.
pub const READING_EXPIRY: Duration = Duration::from_secs(3600);

const FORMAT: u32 = 1;
const PREFIX: &str = "readers";

/// The content of a reader's object, for people who look into the bucket.
#[derive(Serialize)]
struct ReaderContent<'a> {
    format: u32,
    snapshot: SnapshotId,
    node: &'a str,
    session: crate::types::SessionId,
}

/// A registered reader of a snapshot.
#[derive(Clone, Debug)]
pub struct Reading {
    key: String,
    content: Bytes,
}

/// The registered readers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readers {
    /// The number of live readers of each snapshot, by its incarnation.
    pub live: BTreeMap<Incarnation, usize>,
    /// The objects of readers that died.
    pub old: Vec<String>,
}

impl Catalog {
    /// Registers a reader. The snapshot is not removed before [`Self::end_reading`], or long after
    /// the last [`Self::renew_reading`].
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] when the snapshot is not ready, or is deleted.
    pub async fn begin_reading(
        &self,
        id: SnapshotId,
        who: &Owner,
    ) -> Result<(Reading, Snapshot), CatalogError> {
        let content =
            ReaderContent { format: FORMAT, snapshot: id, node: &who.node, session: who.session };
        let content = serde_json::to_vec(&content).map_err(|error| CatalogError::Corrupt {
            key: id.to_string(),
            why: error.to_string(),
        })?;
        let key = format!("{PREFIX}/{}/{}", id.snapshot.incarnation, Incarnation::random());
        let reading = Reading { key, content: content.into() };
        self.renew_reading(&reading).await?;
        let found = async {
            self.reading_step("catalog.reading", "registering a reader of").await?;
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

    pub async fn renew_reading(&self, reading: &Reading) -> Result<(), CatalogError> {
        let put = self.bucket().put(&reading.key, reading.content.clone()).await;
        put.map_err(|error| {
            CatalogError::bucket(format!("registering the reader at {}", reading.key), error)
        })
    }

    pub async fn end_reading(&self, reading: &Reading) -> Result<(), CatalogError> {
        self.reading_step("catalog.reading-ended", "removing a reader of").await?;
        let deleted = self.bucket().delete(std::slice::from_ref(&reading.key)).await;
        deleted.map_err(|error| {
            CatalogError::bucket(format!("removing the reader at {}", reading.key), error)
        })
    }

    /// The readers of one snapshot, or of all.
    pub async fn readers(
        &self,
        of: Option<Incarnation>,
        now: SystemTime,
    ) -> Result<Readers, CatalogError> {
        let prefix = of.map_or_else(|| PREFIX.to_owned(), |of| format!("{PREFIX}/{of}"));
        let listed = self.bucket().list(&prefix).await;
        let listed = listed.map_err(|error| {
            CatalogError::bucket("listing readers of snapshots".to_owned(), error)
        })?;
        let mut readers = Readers::default();
        for object in listed {
            let old = now.duration_since(object.modified).is_ok_and(|age| age > READING_EXPIRY);
            let snapshot = object.key.split('/').nth(1).and_then(|id| id.parse().ok());
            match snapshot {
                Some(snapshot) if !old => *readers.live.entry(snapshot).or_default() += 1,
                _ if old => readers.old.push(object.key),
                _ => {}
            }
        }
        Ok(readers)
    }

    /// Removes the objects of readers that died. The number of removed objects.
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
