//! Who reads a snapshot at the moment, so that its removal waits (R14): `.snapshots`, exports,
//! restores, comparisons.
//!
//! ```text
//! reader:    put readers/<snapshot>/<reader> ─▶ read the record: still ready? ─▶ read ─▶ remove the object
//! collector: record is a tombstone           ─▶ list readers/<snapshot>: none? ─▶ dead
//! ```
//! Each looks after it has written, so that of a reader and a collector that meet at least one sees
//! the other.
//!
//! The object is no record: it says nothing that anybody acts on, only that it is there. Its reader
//! puts it again every [`READING_RENEWED`]; one that was not renewed for [`READING_KEPT`] is that
//! of a process that died, and counts no more. A clock that is wrong by so much costs a reader a
//! stale handle, and nothing else.

use super::{Catalog, CatalogError, Owner, Snapshot, State};
use crate::types::{Incarnation, SnapshotId};
use bytes::Bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// How often a reader says that it is still there.
pub const READING_RENEWED: Duration = Duration::from_secs(300);
/// A reader that has not said so for this long is gone.
pub const READING_KEPT: Duration = Duration::from_secs(3600);

const FORMAT: u32 = 1;
const PREFIX: &str = "readers";

/// For people who look into the bucket.
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

/// What the readers' objects tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readers {
    /// Of each snapshot, by its incarnation.
    pub live: BTreeMap<Incarnation, usize>,
    /// Objects that are nobody's any more.
    pub old: Vec<String>,
}

impl Catalog {
    /// Announces a reader. The snapshot is not removed before [`Self::end_reading`], or long after
    /// the last [`Self::go_on_reading`].
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] when it is not ready, or not any more.
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

    /// Of one snapshot, or of all.
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

    /// Removes what readers that died left behind. How many.
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
