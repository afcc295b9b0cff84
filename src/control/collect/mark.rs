//! Reads the roots: the packs that each uses, and the chunks of some packs.

use super::plan::{Mark, PackObject, PackUse};
use super::root_cache::{RootUsage, RootVersion};
use super::{Collector, Listing, Objects};
use crate::bucket::Listed;
use crate::catalog::{Dataset, Snapshot, State};
use crate::chunk::parse_object;
use crate::control::ControlError;
use crate::control::roots::usage;
use crate::fs::db::{self, CheckpointId, DbPlace, Reader};
use crate::fs::row::{Extent, Row, Source, Superblock, Usage};
use crate::fs::{FsError, key};
use crate::types::{ChunkHash, Class, Classify, Epoch, FamilyId, Incarnation, PackId};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Roots read at once.
const ROOTS_AT_ONCE: usize = 8;

fn pack_object(listed: &Listed) -> Option<PackObject> {
    let (family, name) = listed.key.strip_prefix("packs/")?.split_once('/')?;
    let (family, (pack, generation)) = (family.parse().ok()?, parse_object(name)?);
    // An object is removed under the name that is built from these.
    Some(PackObject { family, pack, generation, bytes: listed.bytes })
        .filter(|pack| pack.key() == listed.key)
}

impl Collector {
    /// Every pack of the pool, including those of families of which no record is left.
    pub(super) async fn packs(&self) -> Result<Vec<PackObject>, ControlError> {
        let (mut listed, mut packs) = (self.pool.catalog.bucket().pages("packs/"), Vec::new());
        while let Some(page) = listed.next().await? {
            for object in page {
                match pack_object(&object) {
                    Some(pack) => packs.push(pack),
                    None => {
                        tracing::warn!(
                            key = %object.key,
                            "ignoring an object that is no pack of ours; remove it by hand if \
                             nobody knows it"
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
        self.memory.lock().roots.retain(|root| there.contains(&root));
        let mut mark = Mark::default();
        let heads =
            catalog.datasets.iter().filter(|d| matches!(d.state, State::Ready | State::Deleting));
        let heads = futures::stream::iter(heads.cloned().collect::<Vec<_>>());
        let mut heads = heads
            .map(|dataset| self.head_usage(dataset, databases))
            .buffer_unordered(ROOTS_AT_ONCE);
        while let Some(usage) = heads.try_next().await? {
            mark.add(&usage);
        }
        let snapshots: Vec<Snapshot> =
            catalog.snapshots.iter().filter(|s| s.state != State::Dead).cloned().collect();
        let mut snapshots = futures::stream::iter(snapshots)
            .map(|snapshot| self.snapshot_usage(snapshot))
            .buffer_unordered(ROOTS_AT_ONCE);
        while let Some(usage) = snapshots.try_next().await? {
            mark.add(&usage);
        }
        Ok(mark)
    }

    pub(super) fn place(&self, family: FamilyId, incarnation: Incarnation) -> DbPlace {
        self.volumes.settings().place(&self.pool.catalog, family, incarnation)
    }

    /// A tombstoned head is not a root (it cannot be opened), but its `S` still decides about the
    /// packs it wrote.
    async fn head_usage(
        &self,
        dataset: Dataset,
        databases: &Objects,
    ) -> Result<Arc<RootUsage>, ControlError> {
        let place = self.place(dataset.family, dataset.incarnation);
        if dataset.state == State::Deleting {
            self.hold_claim().await?;
            let settled = read_settled(&place, dataset.incarnation).await;
            return Ok(Arc::new(settled.unwrap_or_else(|error| {
                tracing::warn!(
                    dataset = %dataset.name,
                    %error,
                    "a tombstoned dataset cannot be read: its packs stay until it is removed"
                );
                RootUsage::Unreadable(dataset.incarnation)
            })));
        }
        let read = Box::pin(read_head(&place, dataset.incarnation));
        self.cached(
            RootVersion::of_head(&dataset, databases),
            &format!("dataset {}", dataset.name),
            read,
        )
        .await
    }

    async fn snapshot_usage(&self, snapshot: Snapshot) -> Result<Arc<RootUsage>, ControlError> {
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
                RootUsage::Pending(snapshot.family, snapshot.id())
            } else {
                RootUsage::NoDatabase
            }));
        };
        let read = Box::pin(async {
            let usage = read_root(&place, Some(checkpoint), usage).await?;
            Ok(RootUsage::Snapshot { usage })
        });
        self.cached(RootVersion::of_snapshot(&snapshot, checkpoint), &what, read).await
    }

    /// The usage of a root in that version, from the cache or read now. `what`: the root, for
    /// messages.
    async fn cached(
        &self,
        at: RootVersion,
        what: &str,
        read: impl Future<Output = Result<RootUsage, FsError>>,
    ) -> Result<Arc<RootUsage>, ControlError> {
        if let Some(usage) = self.memory.lock().roots.get(at) {
            return Ok(usage);
        }
        self.hold_claim().await?;
        let usage = Arc::new(read.await.map_err(|error| unreadable(what, error))?);
        self.memory.lock().roots.put(at, usage.clone());
        Ok(usage)
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

    fn add(&mut self, usage: &RootUsage) {
        match usage {
            RootUsage::NoDatabase => {}
            RootUsage::Head { dataset, settled, usage } => {
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
            RootUsage::Snapshot { usage } => {
                for (pack, usage) in usage {
                    self.refer(*pack, *usage);
                }
            }
            RootUsage::Pending(family, snapshot) => {
                self.pending_snapshots.insert(*family, *snapshot);
            }
            RootUsage::Unreadable(dataset) => {
                self.unreadable.insert(*dataset);
            }
        }
    }
}

/// Logs why nothing may be collected (R11). A store that is slow or away says nothing about the
/// root: the collection ends, and the next one reads it.
fn unreadable(what: &str, error: FsError) -> ControlError {
    if is_damage(error.class()) {
        tracing::error!(
            root = what,
            %error,
            "collection stopped: a root cannot be read, and nothing is removed until it can; run \
             check"
        );
    } else {
        tracing::info!(
            root = what,
            %error,
            "collection postponed: a root cannot be read now; the next collection retries"
        );
    }
    error.into()
}

/// Returns whether the fault is in the root itself, so that `check` shows more.
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

/// Reads a root without registering as a reader: only collectors remove what is read, and the
/// catalog is listed again afterwards (R11). `at`: a snapshot's checkpoint; `None`: the head.
async fn read_root<T>(
    place: &DbPlace,
    at: Option<CheckpointId>,
    read: impl AsyncFnOnce(&Reader) -> Result<T, FsError>,
) -> Result<T, FsError> {
    let reader = match at {
        Some(checkpoint) => Reader::at_checkpoint(place, checkpoint).await?,
        None => Reader::newest(place).await?,
    };
    let done = read(&reader).await;
    reader.close().await?;
    done
}

/// Reads `S` before `U`, so that the usage is at least as new.
async fn read_head(place: &DbPlace, dataset: Incarnation) -> Result<RootUsage, FsError> {
    if !db::exists(place).await? {
        return Ok(RootUsage::NoDatabase);
    }
    read_root(place, None, async |reader| {
        let settled = settled(reader).await?;
        Ok(RootUsage::Head { dataset, settled, usage: usage(reader).await? })
    })
    .await
}

/// Reads the superblock of a head that is no root.
async fn read_settled(place: &DbPlace, dataset: Incarnation) -> Result<RootUsage, FsError> {
    if !db::exists(place).await? {
        return Ok(RootUsage::NoDatabase);
    }
    let settled = read_root(place, None, settled).await?;
    Ok(RootUsage::Head { dataset, settled, usage: vec![] })
}

/// The writer epoch and settled pack of a database that has a superblock.
async fn settled(reader: &Reader) -> Result<Option<(Epoch, u64)>, FsError> {
    let Some(bytes) = reader.get(&key::superblock()).await? else { return Ok(None) };
    let superblock = Superblock::decode(&bytes)?;
    Ok(Some((Epoch(superblock.writer_epoch), superblock.settled)))
}

/// The chunks of some packs that the roots of some families use.
#[derive(Default)]
pub(super) struct ChunkUse {
    pub(super) live: HashMap<PackId, HashSet<ChunkHash>>,
    /// Packs that a head refers to and has not sealed.
    pub(super) unsealed: HashSet<PackId>,
    /// Families with a snapshot that is being made and has no checkpoint yet.
    pub(super) pending_snapshots: HashSet<FamilyId>,
}

impl Collector {
    /// Reads every extent of every root of a family. Anything unreadable ends it (R11).
    pub(super) async fn mark_chunks(
        &self,
        catalog: &Listing,
        family: FamilyId,
        wanted: &HashSet<PackId>,
        found: &mut ChunkUse,
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
                read_root(&place, None, async |reader| {
                    let unsealed = usage(reader)
                        .await?
                        .into_iter()
                        .filter(|(pack, usage)| wanted.contains(pack) && !usage.sealed);
                    found.unsealed.extend(unsealed.map(|(pack, _)| pack));
                    chunks(reader, wanted, &mut found.live).await
                })
                .await
            };
            Box::pin(read).await.map_err(|error| unreadable(&what, error))?;
        }
        let in_family = |s: &&Snapshot| s.family == family && s.state != State::Dead;
        for snapshot in catalog.snapshots.iter().filter(in_family) {
            let place = self.place(family, snapshot.dataset.incarnation);
            let what = format!("snapshot {} ({})", snapshot.name, snapshot.id());
            let checkpoint = match snapshot.checkpoint {
                Some(id) => Some(CheckpointId(id)),
                None => self
                    .checkpoint_named(&place, snapshot)
                    .await
                    .map_err(|error| unreadable(&what, error))?,
            };
            let Some(checkpoint) = checkpoint else {
                if snapshot.state == State::Creating {
                    found.pending_snapshots.insert(family);
                }
                continue;
            };
            let read = read_root(&place, Some(checkpoint), async |reader| {
                chunks(reader, wanted, &mut found.live).await
            });
            Box::pin(read).await.map_err(|error| unreadable(&what, error))?;
        }
        Ok(())
    }
}

/// Chunks of `wanted` packs that any extent names, a masked one too.
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
