//! Reading the roots.

use super::heard::RootState;
use super::plan::{Mark, PackObject, PackUse};
use super::{Collector, Listing, Objects};
use crate::bucket::Listed;
use crate::catalog::{Dataset, Snapshot, State};
use crate::chunk::parse_object;
use crate::control::ControlError;
use crate::control::roots::usage;
use crate::fs::db::{self, CheckpointId, DbPlace, Reader};
use crate::fs::row::{Extent, Row, Source, Superblock, Usage};
use crate::fs::{FsError, key};
use crate::types::{ChunkHash, Class, Classify, Epoch, FamilyId, Incarnation, PackId, SnapshotId};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Roots read at once.
const ROOTS_AT_ONCE: usize = 8;

/// The result of reading one root.
pub(super) enum Said {
    /// The dataset was never opened, so it has no database.
    Nothing,
    /// The head's durable `S`, where it has one: its writer epoch and settled pack (R9).
    Head {
        dataset: Incarnation,
        settled: Option<(Epoch, u64)>,
        usage: Vec<(PackId, Usage)>,
    },
    Snapshot {
        usage: Vec<(PackId, Usage)>,
    },
    Unknown(Incarnation),
    Unborn(FamilyId, SnapshotId),
}

impl Said {
    /// Returns the number of rows that it takes in memory.
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Head { usage, .. } | Self::Snapshot { usage } => usage.len().max(1),
            Self::Nothing | Self::Unknown(_) | Self::Unborn(..) => 1,
        }
    }
}

fn pack_object(listed: &Listed) -> Option<PackObject> {
    let (family, name) = listed.key.strip_prefix("packs/")?.split_once('/')?;
    let (family, (pack, generation)) = (family.parse().ok()?, parse_object(name)?);
    // A removal uses the name that is built from these.
    Some(PackObject { family, pack, generation, bytes: listed.bytes })
        .filter(|pack| pack.key() == listed.key)
}

impl Collector {
    /// Every pack of the pool, those of families without any record left included.
    pub(super) async fn packs(&self) -> Result<Vec<PackObject>, ControlError> {
        let (mut listed, mut packs) = (self.pool.catalog.bucket().pages("packs/"), Vec::new());
        while let Some(page) = listed.next().await? {
            for object in page {
                match pack_object(&object) {
                    Some(pack) => packs.push(pack),
                    None => {
                        tracing::warn!(
                            key = %object.key,
                            "not a pack of ours: left alone; remove it by hand if nobody knows it"
                        );
                    }
                }
            }
        }
        packs.sort_unstable_by_key(|pack| (pack.family, pack.pack, pack.generation));
        Ok(packs)
    }

    /// The objects of every database of the pool.
    pub(super) async fn databases(&self) -> Result<Objects, ControlError> {
        let mut databases = Objects::new();
        let mut listed = self.pool.catalog.bucket().pages("vol/");
        while let Some(page) = listed.next().await? {
            for object in page {
                let name = object
                    .key
                    .strip_prefix("vol/")
                    .and_then(|rest| rest.split_once('/'))
                    .map(|(name, _)| name);
                if let Some(incarnation) = name.and_then(|name| name.parse().ok()) {
                    databases.entry(incarnation).or_default().push(object);
                }
            }
        }
        // Sorted, so that one state has one order, whatever the store's is.
        databases
            .values_mut()
            .for_each(|objects| objects.sort_unstable_by(|a, b| a.key.cmp(&b.key)));
        Ok(databases)
    }

    /// `databases`: as listed after the catalog.
    ///
    /// # Errors
    /// When a root cannot be read: nothing may be swept then (R11).
    pub(super) async fn mark(
        &self,
        catalog: &Listing,
        databases: &Objects,
    ) -> Result<Mark, ControlError> {
        let there: HashSet<Incarnation> = catalog
            .datasets
            .iter()
            .map(|d| d.incarnation)
            .chain(catalog.snapshots.iter().map(|s| s.incarnation))
            .collect();
        self.memory.lock().heard.retain(|root| there.contains(&root));
        let mut mark = Mark::default();
        let heads =
            catalog.datasets.iter().filter(|d| matches!(d.state, State::Ready | State::Deleting));
        let heads = futures::stream::iter(heads.cloned().collect::<Vec<_>>());
        let mut heads =
            heads.map(|dataset| self.hear_head(dataset, databases)).buffer_unordered(ROOTS_AT_ONCE);
        while let Some(said) = heads.try_next().await? {
            mark.hear(&said);
        }
        let cuts: Vec<Snapshot> =
            catalog.snapshots.iter().filter(|s| s.state != State::Dead).cloned().collect();
        let mut cuts = futures::stream::iter(cuts)
            .map(|snapshot| self.hear_snapshot(snapshot))
            .buffer_unordered(ROOTS_AT_ONCE);
        while let Some(said) = cuts.try_next().await? {
            mark.hear(&said);
        }
        Ok(mark)
    }

    pub(super) fn place(&self, family: FamilyId, incarnation: Incarnation) -> DbPlace {
        self.volumes.settings().place(&self.pool.catalog, family, incarnation)
    }

    /// A tombstoned head is no longer a root (it cannot be opened), but it still decides for the
    /// packs it made.
    async fn hear_head(
        &self,
        dataset: Dataset,
        databases: &Objects,
    ) -> Result<Arc<Said>, ControlError> {
        let place = self.place(dataset.family, dataset.incarnation);
        if dataset.state == State::Deleting {
            self.hold_claim().await?;
            return Ok(Arc::new(
                read_head(&place, dataset.incarnation, false).await.unwrap_or_else(|error| {
                    tracing::warn!(
                        dataset = %dataset.name,
                        %error,
                        "a tombstoned dataset cannot be read: its packs stay until it is removed"
                    );
                    Said::Unknown(dataset.incarnation)
                }),
            ));
        }
        let read = Box::pin(read_head(&place, dataset.incarnation, true));
        self.remembered(
            RootState::of_head(&dataset, databases),
            &format!("dataset {}", dataset.name),
            read,
        )
        .await
    }

    async fn hear_snapshot(&self, snapshot: Snapshot) -> Result<Arc<Said>, ControlError> {
        let what = format!("snapshot {} ({})", snapshot.name, snapshot.id());
        let place = self.place(snapshot.family, snapshot.dataset.incarnation);
        let checkpoint = match snapshot.checkpoint {
            Some(id) => Some(CheckpointId(id)),
            None => self
                .checkpoint_named(&place, &snapshot)
                .await
                .map_err(|error| unreadable(&what, error))?,
        };
        let Some(checkpoint) = checkpoint else {
            // A snapshot tombstoned without a checkpoint never becomes a source, even if the
            // checkpoint still arrives.
            let is_made = snapshot.state == State::Creating;
            return Ok(Arc::new(if is_made {
                Said::Unborn(snapshot.family, snapshot.id())
            } else {
                Said::Nothing
            }));
        };
        let read = Box::pin(async {
            let reader = Reader::at_checkpoint(&place, checkpoint).await?;
            let usage = usage(&reader).await;
            reader.close().await?;
            Ok(Said::Snapshot { usage: usage? })
        });
        self.remembered(RootState::of_snapshot(&snapshot, checkpoint), &what, read).await
    }

    /// Returns the cached result of the root in that state, or reads it now. `what`: the root, for
    /// messages.
    async fn remembered(
        &self,
        at: RootState,
        what: &str,
        read: impl Future<Output = Result<Said, FsError>>,
    ) -> Result<Arc<Said>, ControlError> {
        if let Some(said) = self.memory.lock().heard.get(at) {
            return Ok(said);
        }
        self.hold_claim().await?;
        let said = Arc::new(read.await.map_err(|error| unreadable(what, error))?);
        self.memory.lock().heard.put(at, said.clone());
        Ok(said)
    }

    /// The checkpoint of a snapshot whose record does not know it yet.
    pub(super) async fn checkpoint_named(
        &self,
        place: &DbPlace,
        snapshot: &Snapshot,
    ) -> Result<Option<CheckpointId>, FsError> {
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

    fn hear(&mut self, said: &Said) {
        match said {
            Said::Nothing => {}
            Said::Head { dataset, settled, usage } => {
                if let Some(settled) = settled {
                    self.creators.insert(*dataset, *settled);
                }
                for (pack, usage) in usage {
                    let used = self.refer(*pack, *usage);
                    if !usage.sealed {
                        used.unsealed.push(*dataset);
                    }
                }
            }
            Said::Snapshot { usage } => {
                for (pack, usage) in usage {
                    self.refer(*pack, *usage);
                }
            }
            Said::Unborn(family, snapshot) => {
                self.unborn.insert(*family, *snapshot);
            }
            Said::Unknown(dataset) => {
                self.unknown.insert(*dataset);
            }
        }
    }
}

/// Nothing may be collected (R11). A store that is slow or away is none of the root's doing: the
/// collection ends, and the next one reads it.
fn unreadable(what: &str, error: FsError) -> ControlError {
    if is_damage(error.class()) {
        tracing::error!(
            root = what,
            %error,
            "a root cannot be read, so nothing may be collected: run check"
        );
    } else {
        tracing::info!(
            root = what,
            %error,
            "a root cannot be read now: nothing is collected until a later collection can"
        );
    }
    error.into()
}

/// Returns whether the error lies in the root itself, so that `check` shows more.
fn is_damage(class: Class) -> bool {
    match class {
        Class::Unavailable
        | Class::InProgress
        | Class::Exhausted
        | Class::Denied
        | Class::Precondition => false,
        Class::Invalid
        | Class::NotFound
        | Class::Exists
        | Class::OutOfRange
        | Class::Fenced
        | Class::Corrupt
        | Class::Unsupported
        | Class::Internal => true,
    }
}

/// `S` is read before `U`: what `U` says is at least as new.
async fn read_head(place: &DbPlace, dataset: Incarnation, is_root: bool) -> Result<Said, FsError> {
    if !db::exists(place).await? {
        return Ok(Said::Nothing);
    }
    let reader = Reader::newest(place).await?;
    let settled = match reader.get(&key::superblock()).await? {
        Some(bytes) => {
            Some(Superblock::decode(&bytes)?).map(|s| (Epoch(s.writer_epoch), s.settled))
        }
        None => None,
    };
    let usage = if is_root { usage(&reader).await? } else { vec![] };
    reader.close().await?;
    Ok(Said::Head { dataset, settled, usage })
}

/// The chunks of some packs that the roots of some families use.
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
        for head in
            catalog.datasets.iter().filter(|d| d.family == family && d.state == State::Ready)
        {
            let place = self.place(family, head.incarnation);
            let what = format!("dataset {}", head.name);
            let read = async {
                if !db::exists(&place).await? {
                    return Ok(());
                }
                let reader = Reader::newest(&place).await?;
                let done = async {
                    let unsealed = usage(&reader)
                        .await?
                        .into_iter()
                        .filter(|(pack, usage)| wanted.contains(pack) && !usage.sealed);
                    seen.unsealed.extend(unsealed.map(|(pack, _)| pack));
                    chunks(&reader, wanted, &mut seen.live).await
                };
                let done = done.await;
                reader.close().await?;
                done
            };
            Box::pin(read).await.map_err(|error| unreadable(&what, error))?;
        }
        for cut in catalog.snapshots.iter().filter(|s| s.family == family && s.state != State::Dead)
        {
            let place = self.place(family, cut.dataset.incarnation);
            let what = format!("snapshot {} ({})", cut.name, cut.id());
            let checkpoint = match cut.checkpoint {
                Some(id) => Some(CheckpointId(id)),
                None => self
                    .checkpoint_named(&place, cut)
                    .await
                    .map_err(|error| unreadable(&what, error))?,
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
async fn chunks(
    reader: &Reader,
    wanted: &HashSet<PackId>,
    live: &mut HashMap<PackId, HashSet<ChunkHash>>,
) -> Result<(), FsError> {
    let mut pages = reader.pages(Bytes::from_static(b"X"), Bytes::from_static(b"Y"));
    while let Some(rows) = pages.next().await? {
        for (_, row) in &rows {
            for segment in Extent::decode(row)?.segments {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_store_is_no_damage() {
        let late = FsError::Unavailable("reading the manifest: no answer within 30 s".into());
        assert!(!is_damage(late.class()) && is_damage(FsError::Corrupt("a table".into()).class()));
        // The error shows the caller which of the two it was.
        assert_eq!(unreadable("dataset d", late).class(), Class::Unavailable);
    }
}
