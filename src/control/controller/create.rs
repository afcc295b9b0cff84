//! CreateVolume: look up the name, write the intent, do the effect, mark the record ready (R3,
//! R30).

use super::{Controller, NewVolume, Source, VolumeInfo, check, volume_info};
use crate::catalog::{CatalogError, Dataset, DatasetSlot, Form, Snapshot, State, Versioned};
use crate::control::{ControlError, Pool};
use crate::fs::api::FileSystem;
use crate::fs::key;
use crate::fs::row::{Row, Superblock};
use crate::types::{
    DatasetId, FamilyId, Incarnation, NameKey, PoolId, SnapshotHandle, SnapshotId, Timestamp,
    VolumeHandle,
};
use crate::volume::RootReader;

/// Records that the caller of a creation has read: they need not be read again.
#[derive(Debug)]
pub(in crate::control) struct KnownRecords {
    /// The name of the new volume.
    pub name: DatasetSlot,
    /// The snapshot that it is made from.
    pub source: Option<Versioned<Snapshot>>,
}

/// The source of a new volume.
struct Origin {
    snapshot: SnapshotId,
    family: FamilyId,
    /// Its byte quota.
    size: Option<u64>,
    root: SourceRoot,
}

/// The state at which a source's rows are read.
enum SourceRoot {
    Snapshot,
    /// The head, of which a snapshot is made later.
    Head(Box<Dataset>),
}

impl Controller {
    /// Creates a volume, or returns the existing one when it is the same (R30). `pool`: its
    /// configured name; `None`: the only or default one.
    pub async fn create_volume(
        &self,
        pool: Option<&str>,
        new: NewVolume,
    ) -> Result<VolumeInfo, ControlError> {
        check::name(new.name.may_be_given())?;
        Box::pin(self.make_volume(pool, new, None)).await
    }

    /// As [`Self::create_volume`], for a caller that has just read some of the records.
    pub(in crate::control) async fn create_volume_from(
        &self,
        pool: Option<&str>,
        new: NewVolume,
        known: KnownRecords,
    ) -> Result<VolumeInfo, ControlError> {
        check::name(new.name.may_be_given())?;
        Box::pin(self.make_volume(pool, new, Some(known))).await
    }

    /// Creates a volume under any name, including reserved ones.
    pub(super) async fn make_volume(
        &self,
        pool: Option<&str>,
        new: NewVolume,
        known: Option<KnownRecords>,
    ) -> Result<VolumeInfo, ControlError> {
        let pool = self.pools.get(pool)?;
        let _lock =
            self.operations.try_lock(format!("volume {} of pool {}", new.name, pool.name))?;
        check::properties(&new.properties)?;
        check::form(&new)?;
        let KnownRecords { name, source } = match known {
            Some(known) => known,
            None => {
                KnownRecords { name: pool.catalog.dataset_slot(&new.name).await?, source: None }
            }
        };
        let (at, source) = match self.existing(pool, &new, &name)? {
            Some(at) => (at, None),
            None => self.intend(pool, &new, name, source).await?,
        };
        let dataset = match at.record.state {
            State::Creating => {
                self.keep_source_name(pool, &new, &at).await?;
                self.finish_clone(pool, at, source).await?
            }
            _ => at.record,
        };
        Ok(volume_info(pool, dataset))
    }

    /// Returns the record of that name, if it matches the request.
    fn existing(
        &self,
        pool: &Pool,
        new: &NewVolume,
        name: &DatasetSlot,
    ) -> Result<Option<Versioned<Dataset>>, ControlError> {
        let Some(at) = name.record() else { return Ok(None) };
        match at.record.state {
            State::Ready | State::Creating => {
                check::same(pool.id(), &at.record, new)?;
                Ok(Some(at.clone()))
            }
            // Only its record says what is still to be removed (R3): the insertion refuses.
            State::Dead => Ok(None),
            State::Deleting => {
                // The name is free once the earlier volume is gone.
                self.tombstoned.notify_one();
                let why = "snapshots or clones may still depend on it: delete those, retry after a \
                    collection, or choose another name";
                Err(ControlError::NameInUse { what: format!("volume {}", new.name), why })
            }
        }
    }

    /// Writes the record: ready at once for an empty volume, whose database is made by its first
    /// opening; else an intent. Returns it, and the record of the snapshot that it is made from,
    /// where there is one already.
    async fn intend(
        &self,
        pool: &Pool,
        new: &NewVolume,
        name: DatasetSlot,
        source: Option<Versioned<Snapshot>>,
    ) -> Result<(Versioned<Dataset>, Option<Versioned<Snapshot>>), ControlError> {
        let incarnation = Incarnation::random();
        let (origin, source) = match &new.source {
            None => (None, None),
            Some(Source::Volume(handle)) => {
                (Some(self.origin_of_head(pool, *handle, incarnation).await?), None)
            }
            Some(Source::Snapshot(handle)) => {
                let (origin, at) = self.origin_of_snapshot(pool, *handle, source).await?;
                (Some(origin), Some(at))
            }
        };
        let size = check::size(new, origin.as_ref().and_then(|o| o.size))?;
        if let Some(origin) = origin
            .as_ref()
            .filter(|_| new.properties.quota_inodes.is_some() && new.form == Form::Writable)
        {
            check::inodes(new, self.inodes(pool, origin).await?)?;
        }
        let dataset = Dataset {
            name: new.name.clone(),
            incarnation,
            family: origin.as_ref().map_or(FamilyId::from(incarnation), |o| o.family),
            state: if origin.is_some() { State::Creating } else { State::Ready },
            origin: origin.map(|o| o.snapshot),
            created: Timestamp::now(),
            size: Some(size),
            properties: new.properties.clone(),
            access_modes: new.access_modes.clone(),
            owner: None,
            handle_secret: rand::random(),
            parameters: new.parameters.clone(),
            snapshot_serial: 0,
            detached: false,
            form: new.form,
            modified: false,
            restoring: None,
            ephemeral: false,
            naming: Default::default(),
        };
        pool.step("control.create.begin").await?;
        match pool.catalog.insert_dataset_at(name, dataset).await {
            Ok(at) => {
                pool.step("control.create.intent").await?;
                Ok((at, source))
            }
            Err(error @ CatalogError::InProgress { .. }) => {
                // A collector was stopped while it removed the earlier volume: the next one
                // finishes it.
                self.tombstoned.notify_one();
                Err(error.into())
            }
            Err(error @ CatalogError::Exists { .. }) => {
                match pool.catalog.dataset(&new.name).await? {
                    // Another controller was faster; the retry will compare.
                    Some(_) => {
                        Err(ControlError::InProgress { what: format!("volume {}", new.name) })
                    }
                    // A dataset that was renamed, or is being renamed to it, keeps the name.
                    None => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// `read`: its record, where the caller has just read it.
    async fn origin_of_snapshot(
        &self,
        pool: &Pool,
        handle: SnapshotHandle,
        read: Option<Versioned<Snapshot>>,
    ) -> Result<(Origin, Versioned<Snapshot>), ControlError> {
        self.is_of_pool(pool, handle.pool, ("snapshot", &handle.to_string()))?;
        let absent = || ControlError::NotFound { what: format!("snapshot {handle}") };
        let at = match read.filter(|at| at.record.id() == handle.snapshot) {
            Some(at) => at,
            None => pool.catalog.snapshot_by_id(handle.snapshot).await?.ok_or_else(absent)?,
        };
        let snapshot = &at.record;
        match snapshot.state {
            State::Ready => {
                let origin = Origin {
                    snapshot: handle.snapshot,
                    family: snapshot.family,
                    size: snapshot.size,
                    root: SourceRoot::Snapshot,
                };
                Ok((origin, at))
            }
            State::Creating => {
                Err(ControlError::InProgress { what: format!("snapshot {}", snapshot.name) })
            }
            State::Deleting | State::Dead => Err(absent()),
        }
    }

    async fn origin_of_head(
        &self,
        pool: &Pool,
        handle: VolumeHandle,
        clone: Incarnation,
    ) -> Result<Origin, ControlError> {
        self.is_of_pool(pool, handle.pool, ("volume", &handle.to_string()))?;
        let absent = || ControlError::NotFound { what: format!("volume {handle}") };
        let dataset = pool.catalog.dataset_by_id(handle.dataset).await?.ok_or_else(absent)?.record;
        if dataset.state != State::Ready {
            return Err(absent());
        }
        check::has_database(&dataset)?;
        let key = NameKey::of("snapshot", check::implied_name(clone)?.as_str());
        let snapshot = DatasetId { key, incarnation: Incarnation::random() };
        let id = SnapshotId { dataset: dataset.incarnation, snapshot };
        let (family, size) = (dataset.family, dataset.size);
        let root = SourceRoot::Head(Box::new(dataset));
        Ok(Origin { snapshot: id, family, size, root })
    }

    /// A volume can only be made from a source of its own pool. Ids of unknown pools are unknown
    /// sources.
    fn is_of_pool(
        &self,
        pool: &Pool,
        of: PoolId,
        (kind, id): (&str, &str),
    ) -> Result<(), ControlError> {
        if of == pool.id() {
            return Ok(());
        }
        self.known_pool(of, &format!("{kind} {id}"))?;
        Err(ControlError::Invalid(format!(
            "the source {kind} is not in pool {}: a volume can only be made from one of its own \
             pool",
            pool.name
        )))
    }

    /// Inodes in use in the source; of a source that another process has open, those that are in
    /// the store.
    async fn inodes(&self, pool: &Pool, origin: &Origin) -> Result<u64, ControlError> {
        let settings = self.volumes.settings();
        let reader = match &origin.root {
            SourceRoot::Head(dataset) => {
                if let Some(open) = self.volumes.get(dataset.id()) {
                    let stat = open.fs.statfs().await?;
                    return Ok(stat.total_inodes.saturating_sub(stat.free_inodes));
                }
                match RootReader::head(settings, &pool.catalog, dataset).await? {
                    Some(reader) => reader,
                    None => return Ok(0),
                }
            }
            SourceRoot::Snapshot => {
                RootReader::snapshot(settings, &pool.catalog, origin.snapshot).await?.0
            }
        };
        let superblock = reader.rows().get(&key::superblock()).await;
        reader.close().await?;
        Ok(match superblock? {
            Some(row) => Superblock::decode(&row)?.inodes,
            None => 0,
        })
    }
}
