//! Reading the roots.

use super::plan::{Mark, PackObject, PackUse};
use super::{Collector, Listing, Objects};
use crate::catalog::{Dataset, Snapshot, State};
use crate::chunk::parse_object;
use crate::control::ControlError;
use crate::control::roots::usage;
use crate::fs::db::{self, CheckpointId, DbPlace, Reader};
use crate::fs::row::{Record, Row, Source, Superblock, Usage};
use crate::fs::{FsError, key};
use crate::types::{ChunkHash, Epoch, FamilyId, Incarnation, PackId, SnapshotId};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use std::collections::{HashMap, HashSet};

/// Roots read at once.
const ROOTS_AT_ONCE: usize = 8;

/// What one root said.
enum Said {
    Head { dataset: Incarnation, superblock: Option<Superblock>, usage: Vec<(PackId, Usage)> },
    Snapshot { usage: Vec<(PackId, Usage)> },
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
            match parts.and_then(|(family, name)| Some((family.parse().ok()?, parse_object(name)?))) {
                Some((family, (pack, generation))) => {
                    packs.push(PackObject { key: object.key, family, pack, generation, bytes: object.bytes });
                }
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
        self.volumes.settings().place(&self.pool.catalog, family, incarnation)
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
            let usage = usage(&reader).await;
            reader.close().await?;
            usage
        };
        let usage = read.await.map_err(|error| unreadable(&what, error))?;
        Ok(Some(Said::Snapshot { usage }))
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
    fn refer(&mut self, pack: PackId, usage: Usage) -> &mut PackUse {
        let used = self.referenced.entry(pack).or_default();
        used.refs = used.refs.max(usage.refs);
        used
    }

    fn hear(&mut self, said: Said) {
        match said {
            Said::Head { dataset, superblock, usage } => {
                if let Some(s) = superblock {
                    self.creators.insert(dataset, (Epoch(s.writer_epoch), s.settled));
                }
                for (pack, usage) in usage {
                    let used = self.refer(pack, usage);
                    if !usage.sealed {
                        used.unsealed.push(dataset);
                    }
                }
            }
            Said::Snapshot { usage } => {
                for (pack, usage) in usage {
                    self.refer(pack, usage);
                }
            }
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
    let usage = if is_root { usage(&reader).await? } else { vec![] };
    reader.close().await?;
    Ok(Some(Said::Head { dataset, superblock, usage }))
}

/// What the roots of some families use of some packs, chunk by chunk.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) live: HashMap<PackId, HashSet<ChunkHash>>,
    /// Packs that a head refers to and has not sealed.
    pub(super) unsealed: HashSet<PackId>,
    /// Families with a snapshot that is being made and shows no checkpoint.
    pub(super) unborn: HashSet<FamilyId>,
}

impl Collector {
    /// Reads every record of every root of a family. Anything unreadable ends it (R11).
    pub(super) async fn mark_chunks(
        &self,
        catalog: &Listing,
        family: FamilyId,
        wanted: &HashSet<PackId>,
        seen: &mut Seen,
    ) -> Result<(), ControlError> {
        for head in catalog.datasets.iter().filter(|d| d.family == family && d.state == State::Ready) {
            let place = self.place(family, head.incarnation);
            let what = format!("dataset {}", head.name);
            let read = async {
                if !db::exists(&place).await? {
                    return Ok(());
                }
                let reader = Reader::newest(&place).await?;
                let done = async {
                    let unsealed = usage(&reader).await?.into_iter().filter(|(pack, usage)| wanted.contains(pack) && !usage.sealed);
                    seen.unsealed.extend(unsealed.map(|(pack, _)| pack));
                    chunks(&reader, wanted, &mut seen.live).await
                };
                let done = done.await;
                reader.close().await?;
                done
            };
            Box::pin(read).await.map_err(|error| unreadable(&what, error))?;
        }
        for cut in catalog.snapshots.iter().filter(|s| s.family == family && s.state != State::Dead) {
            let place = self.place(family, cut.dataset.incarnation);
            let what = format!("snapshot {} ({})", cut.name, cut.id());
            let checkpoint = match cut.checkpoint {
                Some(id) => Some(CheckpointId(id)),
                None => self.checkpoint_named(&place, cut).await.map_err(|error| unreadable(&what, error))?,
            };
            let Some(checkpoint) = checkpoint else {
                if cut.state == State::Creating {
                    seen.unborn.insert(family);
                }
                continue;
            };
            let read = async {
                let reader = Reader::at_checkpoint(&place, checkpoint).await?;
                let done = chunks(&reader, wanted, &mut seen.live).await;
                reader.close().await?;
                done
            };
            Box::pin(read).await.map_err(|error| unreadable(&what, error))?;
        }
        Ok(())
    }
}

/// Chunks of `wanted` packs that any record names, a hidden one too.
async fn chunks(reader: &Reader, wanted: &HashSet<PackId>, live: &mut HashMap<PackId, HashSet<ChunkHash>>) -> Result<(), FsError> {
    let mut pages = reader.pages(Bytes::from_static(b"X"), Bytes::from_static(b"Y"));
    while let Some(rows) = pages.next().await? {
        for (_, row) in &rows {
            for segment in Record::decode(row)?.segments {
                if let Source::Chunk { chunk, .. } = segment.source
                    && wanted.contains(&chunk.pack)
                {
                    live.entry(chunk.pack).or_default().insert(chunk.hash);
                }
            }
        }
    }
    Ok(())
}
