//! Reading without an owner and without writing.

use super::database::collect;
use super::{CheckpointId, DbPlace, compaction, limited, sealing, settings};
use crate::fs::{FsError, key};
use bytes::Bytes;
use slatedb::{DbReader, DbReaderMode};
use std::sync::Arc;

/// Attempts of a reader of the newest state, which starts again when the state changes under it.
const NEWEST_TRIES: u32 = 5;

/// Rows of one page.
const PAGE_ROWS: usize = 4096;

/// A database read at a checkpoint (or, for the collector, at its newest durable state, WAL tail
/// included: R11), without an owner and without writing.
pub struct Reader {
    reader: DbReader,
}

impl Reader {
    pub async fn at_checkpoint(place: &DbPlace, checkpoint: CheckpointId) -> Result<Self, FsError> {
        Self::open(place, DbReaderMode::Checkpoint(checkpoint.uuid())).await
    }

    /// The newest durable state. Takes no checkpoint, so that nothing is written; a collection that
    /// runs meanwhile can make later reads fail, never make them wrong.
    ///
    /// SlateDB's reader takes a missing WAL object for the end of the WAL. It is missing when the
    /// writer moved it to L0 and a collection removed it, and then the manifest has advanced: so
    /// the manifest is read again afterwards, and the reader reopened until the two agree.
    pub async fn newest(place: &DbPlace) -> Result<Self, FsError> {
        let admin = compaction::admin(place);
        for _ in 0..NEWEST_TRIES {
            let reader = Self::open(place, DbReaderMode::FollowLatest).await?;
            let manifest =
                limited("reading the manifest", settings::READ_LIMIT, admin.read_manifest(None))
                    .await?;
            match manifest {
                Some(now)
                    if now.replay_after_wal_id()
                        == reader.reader.manifest().replay_after_wal_id() =>
                {
                    return Ok(reader);
                }
                _ => reader.close().await?,
            }
        }
        Err(FsError::Busy(
            "the database changes faster than it can be opened for reading: try again",
        ))
    }

    async fn open(place: &DbPlace, mode: DbReaderMode) -> Result<Self, FsError> {
        let mut builder = DbReader::builder(place.path(), Arc::new(place.opening_store()))
            .with_reader_mode(mode)
            .with_options(settings::reader())
            .with_db_cache(place.cache.cache.clone(), place.cache_id());
        if let Some(sealer) = &place.sealer {
            builder = builder.with_block_transformer(sealing::transformer(sealer.clone()));
        }
        let reader =
            limited("opening the database for reading", settings::OPEN_LIMIT, builder.build())
                .await?;
        Ok(Self { reader })
    }

    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, FsError> {
        limited(
            "reading a row",
            settings::READ_LIMIT,
            self.reader.get_with_options(key, &settings::get()),
        )
        .await
    }

    /// Rows of `from..to` in order, at most `limit`.
    pub async fn scan(
        &self,
        from: Bytes,
        to: Bytes,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, FsError> {
        if from >= to || limit == 0 {
            return Ok(Vec::new());
        }
        limited("scanning rows", settings::READ_LIMIT, async {
            collect(self.reader.scan_with_options(from..to, &settings::scan()).await?, limit).await
        })
        .await
    }

    /// All rows of `from..to` in order, some at a time.
    pub fn pages(&self, from: Bytes, to: Bytes) -> Pages<'_> {
        Pages { reader: self, from: Some(from), to }
    }

    pub async fn close(&self) -> Result<(), FsError> {
        limited("closing the reader", settings::CHANGE_LIMIT, self.reader.close()).await
    }
}

/// See [`Reader::pages`].
pub struct Pages<'a> {
    reader: &'a Reader,
    /// `None` after the last page.
    from: Option<Bytes>,
    to: Bytes,
}

impl Pages<'_> {
    /// The next rows; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Vec<(Bytes, Bytes)>>, FsError> {
        let Some(from) = self.from.take() else { return Ok(None) };
        let rows = self.reader.scan(from, self.to.clone(), PAGE_ROWS).await?;
        self.from =
            rows.last().filter(|_| rows.len() == PAGE_ROWS).map(|(last, _)| key::after(last));
        Ok(Some(rows))
    }
}
