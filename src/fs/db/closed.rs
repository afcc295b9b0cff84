//! A database that its last owner has closed in order: all its rows are in tables.
//!
//! A checkpoint of it needs no opening, which would cost twenty requests: the newest manifest names
//! every row, and the checkpoint is an entry in the next one. It fences nobody.
//!
//! Why it misses nothing that was acknowledged before the dataset was seen to be released: those
//! rows are in the store; the listing of the log, made later, has none; so they are in the tables
//! of the manifest, which was still the newest when the checkpoint was put. An owner that opens the
//! database meanwhile either comes first, with a manifest of its own, and the checkpoint is not
//! made; or it finds the checkpoint's manifest.

use super::admin::manifest;
use super::compaction::admin;
use super::manifests::{KnownManifests, Taken};
use super::{CheckpointId, DbPlace, limited, may_have, named, settings};
use crate::fs::FsError;
use futures::TryStreamExt;
use slatedb::VersionedManifest;
use slatedb::config::CheckpointOptions;
use std::sync::Arc;

/// See the module's text.
pub struct ClosedDatabase {
    place: DbPlace,
    known: Arc<KnownManifests>,
    manifest: VersionedManifest,
}

impl ClosedDatabase {
    /// Reads the database of a dataset that was seen to be released. `first`: the key of a row that
    /// its first opening writes. `None`: there is no such row yet, or its log has rows, so that
    /// only an opening sees all of them.
    pub async fn read(place: &DbPlace, first: &[u8]) -> Result<Option<Self>, FsError> {
        let known = KnownManifests::new(Taken::Fail);
        let place = place.knowing(known.clone());
        let is_whole =
            |manifest: &VersionedManifest| manifest.initialized() && may_have(manifest, first);
        let found = manifest(&place).await?.filter(is_whole);
        let Some(manifest) = found else { return Ok(None) };
        let is_closed = !has_log(&place, manifest.replay_after_wal_id()).await?;
        Ok(is_closed.then_some(Self { place, known, manifest }))
    }

    /// Makes a named checkpoint of what was read; the existing one when there is one of that name.
    /// `None`: somebody has changed the database since.
    pub async fn checkpoint(self, name: &str) -> Result<Option<CheckpointId>, FsError> {
        if let Some(existing) = named(&self.manifest, name) {
            return Ok(Some(existing));
        }
        let options =
            CheckpointOptions { name: Some(name.to_owned()), ..CheckpointOptions::default() };
        let admin = admin(&self.place);
        let made = admin.create_detached_checkpoint(&options);
        match limited("taking a checkpoint", settings::CHANGE_LIMIT, made).await {
            Ok(made) => Ok(Some(made.id.into())),
            Err(_) if self.known.has_lost() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Returns whether the log has rows behind this number; fences are empty.
async fn has_log(place: &DbPlace, replayed: u64) -> Result<bool, FsError> {
    let log = place.path().join("wal");
    let last = log.clone().join(format!("{replayed:020}.sst"));
    let store = place.bucket.store();
    let mut rows = std::pin::pin!(store.list_with_offset(Some(&log), &last).try_filter(|object| {
        let has_rows = object.size > 0;
        std::future::ready(has_rows)
    }));
    let first = rows.try_next().await;
    let first = first
        .map_err(|error| FsError::Unavailable(format!("listing the database's log: {error}")))?;
    Ok(first.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::{Bucket, Requests};
    use crate::fs::db::{Database, DbCache, Ops, Reader, checkpoint_closed, epoch, holds};
    use crate::types::Incarnation;
    use bytes::Bytes;

    const KEY: &[u8] = b"key";

    fn row(value: &'static [u8]) -> Ops {
        vec![(Bytes::from_static(KEY), Some(Bytes::from_static(value)))]
    }

    /// A database that was closed in order.
    async fn closed() -> DbPlace {
        let (bucket, cache) = (Bucket::memory(), DbCache::new(16 << 20));
        let place = DbPlace::new(bucket, Incarnation::random(), None, cache);
        let database = Database::open(&place, None).await.unwrap();
        database.write(row(b"one")).await.unwrap();
        database.flush().await.unwrap();
        database.close().await.unwrap();
        place
    }

    async fn value_at(place: &DbPlace, checkpoint: CheckpointId) -> Option<Bytes> {
        let reader = Reader::at_checkpoint(place, checkpoint).await.unwrap();
        let value = reader.get(KEY).await.unwrap();
        reader.close().await.unwrap();
        value
    }

    #[tokio::test]
    async fn its_checkpoint_is_five_requests_and_no_opening() {
        let place = closed().await;
        let (opened, before) = (epoch(&place).await.unwrap(), place.bucket.requests());
        let found = ClosedDatabase::read(&place, KEY).await.unwrap().expect("it is closed");
        let checkpoint = found.checkpoint("one").await.unwrap().expect("nobody changed it");
        let made = place.bucket.requests() - before;
        assert_eq!(made, Requests { list: 2, get: 2, put: 1, ..Requests::default() });
        assert_eq!(epoch(&place).await.unwrap(), opened);
        let again = ClosedDatabase::read(&place, KEY).await.unwrap().unwrap();
        assert_eq!(again.checkpoint("one").await.unwrap(), Some(checkpoint));
        assert_eq!(
            checkpoint_closed(&place, "one", (opened, KEY)).await.unwrap().unwrap().0,
            checkpoint
        );

        let database = Database::open(&place, Some(opened)).await.unwrap();
        database.write(row(b"two")).await.unwrap();
        database.close().await.unwrap();
        assert_eq!(value_at(&place, checkpoint).await.unwrap(), "one");
    }

    /// The second failed opening has put into a table what the first one wrote.
    #[tokio::test]
    async fn a_database_without_its_first_row_gets_none() {
        let (place, later) = (closed().await, b"key, and more");
        assert!(ClosedDatabase::read(&place, later).await.unwrap().is_some(), "it may have it");
        assert!(ClosedDatabase::read(&place, b"kex").await.unwrap().is_none());
        let opened = epoch(&place).await.unwrap();
        assert!(checkpoint_closed(&place, "one", (opened, &b"kex"[..])).await.unwrap().is_none());
        assert_eq!(epoch(&place).await.unwrap(), opened, "it was not opened");
    }

    #[tokio::test]
    async fn a_log_with_rows_has_to_be_replayed() {
        let place = closed().await;
        let database = Database::open(&place, None).await.unwrap();
        assert!(ClosedDatabase::read(&place, KEY).await.unwrap().is_some(), "a fence is no row");
        database.write(row(b"two")).await.unwrap();
        database.flush().await.unwrap();
        drop(database);
        assert!(ClosedDatabase::read(&place, KEY).await.unwrap().is_none());
        let unknown = DbPlace { incarnation: Incarnation::random(), ..place };
        assert!(ClosedDatabase::read(&unknown, KEY).await.unwrap().is_none(), "no database");
    }

    #[tokio::test]
    async fn a_database_that_was_opened_meanwhile_gets_none() {
        let place = closed().await;
        let found = ClosedDatabase::read(&place, KEY).await.unwrap().unwrap();
        let database = Database::open(&place, None).await.unwrap();
        database.write(row(b"two")).await.unwrap();
        database.flush().await.unwrap();
        assert_eq!(found.checkpoint("one").await.unwrap(), None);
        assert!(holds(&place).await.unwrap().named.is_empty());
        database.write(row(b"three")).await.unwrap();
        database.flush().await.unwrap();
        database.close().await.unwrap();
    }

    #[tokio::test]
    async fn an_owner_goes_on_after_a_checkpoint_from_outside() {
        let place = closed().await;
        let database = Database::open(&place, None).await.unwrap();
        let found = ClosedDatabase::read(&place, KEY).await.unwrap().unwrap();
        let checkpoint = found.checkpoint("one").await.unwrap().unwrap();
        database.write(row(b"two")).await.unwrap();
        assert_eq!(database.checkpoint("one").await.unwrap(), checkpoint);
        let later = database.checkpoint("two").await.unwrap();
        database.close().await.unwrap();
        assert_eq!(value_at(&place, checkpoint).await.unwrap(), "one");
        assert_eq!(value_at(&place, later).await.unwrap(), "two");
    }

    #[tokio::test]
    async fn an_opening_from_a_manifest_that_was_replaced_fences_nobody() {
        let place = closed().await;
        let late = place.reading_once();
        let expected = epoch(&late).await.unwrap();
        let database = Database::open(&place, Some(expected)).await.unwrap();
        let opened = Database::open(&late, Some(expected)).await.map(drop);
        assert!(matches!(opened, Err(FsError::Fenced)));
        database.write(row(b"two")).await.unwrap();
        database.flush().await.unwrap();
        database.verify_owner().await.unwrap();
    }
}
