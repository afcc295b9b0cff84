//! CreateVolume: look up the name, write the intent, do the effect, mark the record ready (R3,
//! R30).

use super::{Controller, NewVolume, Source, VolumeInfo, check, volume_info};
use crate::catalog::{CatalogError, Dataset, Form, State, Versioned};
use crate::control::{ControlError, Pool};
use crate::fs::api::FileSystem;
use crate::fs::key;
use crate::fs::row::{Row, Superblock};
use crate::types::{DatasetId, FamilyId, Incarnation, NameKey, SnapshotId, Timestamp};
use crate::volume::RootReader;

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
        self.make_volume(pool, new).await
    }

    /// Creates a volume under any name, including reserved ones.
    pub(super) async fn make_volume(
        &self,
        pool: Option<&str>,
        new: NewVolume,
    ) -> Result<VolumeInfo, ControlError> {
        let pool = self.pools.get(pool)?;
        let _lock =
            self.operations.try_lock(format!("volume {} of pool {}", new.name, pool.name))?;
        check::properties(&new.properties)?;
        check::form(&new)?;
        let at = match self.existing(pool, &new).await? {
            Some(at) => at,
            None => self.intend(pool, &new).await?,
        };
        let dataset = match at.record.state {
            State::Creating => self.finish_clone(pool, at).await?,
            _ => at.record,
        };
        Ok(volume_info(pool, dataset))
    }

    /// Returns the record of that name, if it matches the request.
    async fn existing(
        &self,
        pool: &Pool,
        new: &NewVolume,
    ) -> Result<Option<Versioned<Dataset>>, ControlError> {
        let Some(at) = pool.catalog.dataset(&new.name).await? else { return Ok(None) };
        match at.record.state {
            State::Ready | State::Creating => {
                check::same(pool.id(), &at.record, new)?;
                Ok(Some(at))
            }
            State::Deleting | State::Dead => {
                // The name is free once the earlier volume is gone.
                self.tombstoned.notify_one();
                let why = "snapshots or clones may still depend on it: delete those, retry after a \
                    collection, or choose another name";
                Err(ControlError::NameInUse { what: format!("volume {}", new.name), why })
            }
        }
    }

    /// Writes the record: ready at once for an empty volume, whose database is made by its first
    /// opening; else an intent.
    async fn intend(
        &self,
        pool: &Pool,
        new: &NewVolume,
    ) -> Result<Versioned<Dataset>, ControlError> {
        let incarnation = Incarnation::random();
        let origin = match &new.source {
            None => None,
            Some(source) => Some(self.origin(pool, source, incarnation).await?),
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
        match pool.catalog.insert_dataset(dataset).await {
            Ok(at) => {
                pool.step("control.create.intent").await?;
                Ok(at)
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

    async fn origin(
        &self,
        pool: &Pool,
        source: &Source,
        clone: Incarnation,
    ) -> Result<Origin, ControlError> {
        let elsewhere = |what: &str| {
            let why = format!(
                "the source {what} is not in pool {}: a volume can only be made from one of its \
                 own pool",
                pool.name
            );
            ControlError::Invalid(why)
        };
        match source {
            Source::Snapshot(handle) => {
                if handle.pool != pool.id() {
                    // Ids of unknown pools are unknown sources; those of another pool cannot work.
                    self.known_pool(handle.pool, &format!("snapshot {handle}"))?;
                    return Err(elsewhere("snapshot"));
                }
                let absent = || ControlError::NotFound { what: format!("snapshot {handle}") };
                let snapshot =
                    pool.catalog.snapshot_by_id(handle.snapshot).await?.ok_or_else(absent)?.record;
                match snapshot.state {
                    State::Ready => Ok(Origin {
                        snapshot: handle.snapshot,
                        family: snapshot.family,
                        size: snapshot.size,
                        root: SourceRoot::Snapshot,
                    }),
                    State::Creating => Err(ControlError::InProgress {
                        what: format!("snapshot {}", snapshot.name),
                    }),
                    State::Deleting | State::Dead => Err(absent()),
                }
            }
            Source::Volume(handle) => {
                if handle.pool != pool.id() {
                    self.known_pool(handle.pool, &format!("volume {handle}"))?;
                    return Err(elsewhere("volume"));
                }
                let absent = || ControlError::NotFound { what: format!("volume {handle}") };
                let dataset =
                    pool.catalog.dataset_by_id(handle.dataset).await?.ok_or_else(absent)?.record;
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
        }
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
