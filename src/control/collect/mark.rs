//! Reading the roots.

use super::plan::{Mark, PackObject};
use super::{Collector, Listing, Objects};
use crate::catalog::{Dataset, Snapshot, State};
use crate::control::ControlError;
use crate::fs::db::{self, CheckpointId, DbPlace, Reader};
use crate::fs::row::{Row, Superblock, Usage};
use crate::fs::{FsError, key};
use crate::types::{Epoch, FamilyId, Incarnation, PackId, SnapshotId};
use crate::volume::place;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

/// Roots read at once.
const ROOTS_AT_ONCE: usize = 8;
/// Rows of one scan.
const SCAN_ROWS: usize = 4096;

/// What one root said.
enum Said {
    Head { dataset: Incarnation, superblock: Option<Superblock>, referenced: Vec<PackId> },
    Snapshot { referenced: Vec<PackId> },
    Unknown(Incarnation),
    Unborn(FamilyId, SnapshotId),
}

impl Collector {
    /// Every pack of the pool, those of families without any record left included.
    pub(super) async fn packs(&self) -> Result<Vec<PackObject>, ControlError> {
        let listed = self.pool.catalog.bucket().list("packs/").await?;
        let mut packs = Vec::with_capacity(listed.len());
        for object in listed {
            let parts = object.key.strip_prefix("packs/").and_then(|rest| rest.split_once('/'));
            match parts.and_then(|(family, pack)| Some((family.parse().ok()?, pack.parse().ok()?))) {
                Some((family, pack)) => packs.push(PackObject { key: object.key, family, pack, bytes: object.bytes }),
                None => tracing::warn!(key = %object.key, "not a pack of ours: left alone; remove it by hand if nobody knows it"),
            }
        }
        Ok(packs)
    }

    /// The objects of every database of the pool.
    pub(super) async fn databases(&self) -> Result<Objects, ControlError> {
        let mut databases = Objects::new();
        for object in self.pool.catalog.bucket().list("vol/").await? {
            let name = object.key.strip_prefix("vol/").and_then(|rest| rest.split_once('/')).map(|(name, _)| name);
            if let Some(incarnation) = name.and_then(|name| name.parse().ok()) {
                databases.entry(incarnation).or_default().push(object);
            }
        }
        Ok(databases)
    }

    /// # Errors
    /// When a root cannot be read: nothing may be swept then (R11).
    pub(super) async fn mark(&self, catalog: &Listing) -> Result<Mark, ControlError> {
        let mut mark = Mark::default();
        let mut heads: Vec<Dataset> = catalog.datasets.clone();
        heads.retain(|d| matches!(d.state, State::Ready | State::Deleting));
        let heads = futures::stream::iter(heads).map(|dataset| self.read_head(dataset)).buffer_unordered(ROOTS_AT_ONCE);
        let heads: Vec<Option<Said>> = heads.try_collect().await?;
        heads.into_iter().flatten().for_each(|said| mark.hear(said));
        let mut cuts: Vec<Snapshot> = catalog.snapshots.clone();
        cuts.retain(|s| s.state != State::Dead);
        let cuts = futures::stream::iter(cuts).map(|snapshot| self.read_snapshot(snapshot)).buffer_unordered(ROOTS_AT_ONCE);
        let cuts: Vec<Option<Said>> = cuts.try_collect().await?;
        cuts.into_iter().flatten().for_each(|said| mark.hear(said));
        Ok(mark)
    }

    pub(super) fn place(&self, family: FamilyId, incarnation: Incarnation) -> DbPlace {
        place(&self.pool.catalog, family, incarnation, &self.volumes.settings().cache)
    }

    /// A tombstoned head is nobody's root any more (it can be opened by nobody), but it still speaks for the packs it made.
    async fn read_head(&self, dataset: Dataset) -> Result<Option<Said>, ControlError> {
        let place = self.place(dataset.family, dataset.incarnation);
        let incarnation = dataset.incarnation;
        match read_head(&place, incarnation, dataset.state == State::Ready).await {
            Ok(said) => Ok(said),
            Err(error) if dataset.state == State::Deleting => {
                tracing::warn!(dataset = %dataset.name, %error, "a tombstoned dataset cannot be read: its packs stay until it is removed");
                Ok(Some(Said::Unknown(incarnation)))
            }
            Err(error) => Err(unreadable(&format!("dataset {}", dataset.name), error)),
        }
    }

    async fn read_snapshot(&self, snapshot: Snapshot) -> Result<Option<Said>, ControlError> {
        let what = format!("snapshot {} ({})", snapshot.name, snapshot.id());
        let place = self.place(snapshot.family, snapshot.dataset.incarnation);
        let checkpoint = match snapshot.checkpoint {
            Some(id) => Some(CheckpointId(id)),
            None => self.checkpoint_named(&place, &snapshot).await.map_err(|error| unreadable(&what, error))?,
        };
        let Some(checkpoint) = checkpoint else {
            // What is tombstoned without a checkpoint becomes nobody's source, even if one still comes.
            let unborn = || Said::Unborn(snapshot.family, snapshot.id());
            return Ok((snapshot.state == State::Creating).then(unborn));
        };
        let read = async {
            let reader = Reader::at_checkpoint(&place, checkpoint).await?;
            let referenced = referenced(&reader).await;
            reader.close().await?;
            referenced
        };
        let referenced = read.await.map_err(|error| unreadable(&what, error))?;
        Ok(Some(Said::Snapshot { referenced }))
    }

    /// The checkpoint of a snapshot whose record does not know it yet.
    pub(super) async fn checkpoint_named(&self, place: &DbPlace, snapshot: &Snapshot) -> Result<Option<CheckpointId>, FsError> {
        if !db::exists(place).await? {
            return Ok(None);
        }
        let name = snapshot.incarnation.to_string();
        Ok(db::holds(place).await?.named.into_iter().find(|(n, _)| *n == name).map(|(_, id)| id))
    }
}

impl Mark {
    fn hear(&mut self, said: Said) {
        match said {
            Said::Head { dataset, superblock, referenced } => {
                if let Some(s) = superblock {
                    self.creators.insert(dataset, (Epoch(s.writer_epoch), s.settled));
                }
                self.referenced.extend(referenced);
            }
            Said::Snapshot { referenced } => self.referenced.extend(referenced),
            Said::Unborn(family, snapshot) => {
                self.unborn.insert(family, snapshot);
            }
            Said::Unknown(dataset) => {
                self.unknown.insert(dataset);
            }
        }
    }
}

fn unreadable(what: &str, error: FsError) -> ControlError {
    tracing::error!(root = what, %error, "a root cannot be read, so nothing may be collected: run check");
    error.into()
}

/// `None`: the dataset was never opened, so it has no database. `S` is read before `U`: what `U` says is at least as new.
async fn read_head(place: &DbPlace, dataset: Incarnation, is_root: bool) -> Result<Option<Said>, FsError> {
    if !db::exists(place).await? {
        return Ok(None);
    }
    let reader = Reader::newest(place).await?;
    let superblock = match reader.get(&key::superblock()).await? {
        Some(bytes) => Some(Superblock::decode(&bytes)?),
        None => None,
    };
    let referenced = if is_root { referenced(&reader).await? } else { vec![] };
    reader.close().await?;
    Ok(Some(Said::Head { dataset, superblock, referenced }))
}

/// Every pack with references, by its `U` row.
async fn referenced(reader: &Reader) -> Result<Vec<PackId>, FsError> {
    let (mut from, to) = (Bytes::from_static(b"U"), Bytes::from_static(b"V"));
    let mut packs = Vec::new();
    loop {
        let rows = reader.scan(from.clone(), to.clone(), SCAN_ROWS).await?;
        for (row_key, row) in &rows {
            let Some(key::Key::Usage(pack)) = key::Key::parse(row_key) else {
                return Err(FsError::Corrupt(format!("key {} among pack usage", row_key.escape_ascii())));
            };
            if Usage::decode(row)?.refs > 0 {
                packs.push(pack);
            }
        }
        match rows.last() {
            Some((last, _)) if rows.len() == SCAN_ROWS => from = [last, &b"\0"[..]].concat().into(),
            _ => return Ok(packs),
        }
    }
}
