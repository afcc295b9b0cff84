//! Resolves arguments to open pools and named objects.

use super::args::PoolArgs;
use super::exit::Wrong;
use super::report::when;
use crate::app::config::PoolConfig;
use crate::app::{Config, Missing, Parts, open_pools};
use crate::bucket::PoolUrl;
use crate::catalog::{Dataset, Snapshot, State};
use crate::control::{Controller, Pool};
use crate::types::{Class, DatasetId, DatasetName, SnapshotName, Timestamp};
use crate::volume::{RootReader, RootView};

/// The name of a pool that is given only by its URL.
const UNNAMED: &str = "default";

impl PoolArgs {
    /// The configuration with exactly one pool left in it.
    pub fn config(&self) -> anyhow::Result<Config> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        let url = match self.pool.as_deref() {
            Some(text) if text.contains("://") => Some(text.parse::<PoolUrl>()?),
            Some(name) => {
                if !config.pools.contains_key(name) {
                    let known: Vec<&str> = config.pools.keys().map(String::as_str).collect();
                    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                    return Err(Wrong::new(
                        Class::Invalid,
                        format!(
                            "--pool {name}: neither a URL like s3://BUCKET/PREFIX or \
                             file:///FOLDER nor a configured pool (configured: {known})"
                        ),
                    ));
                }
                config.pools.retain(|key, _| key == name);
                None
            }
            None => None,
        };
        if let Some(url) = url {
            // Credentials of a configured pool hold for its URL.
            let (name, pool) = config.pools.iter().find(|(_, pool)| pool.url == url).map_or_else(
                || (UNNAMED.to_owned(), PoolConfig::at(url.clone())),
                |(name, pool)| (name.clone(), pool.clone()),
            );
            config.pools = [(name, pool)].into();
        }
        if config.pools.len() != 1 && config.default_pool.is_none() {
            let known: Vec<&str> = config.pools.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Wrong::new(
                Class::Invalid,
                format!("--pool is required: the configuration has {known}"),
            ));
        }
        if let Some(default) = config.default_pool.take_if(|_| true)
            && config.pools.len() > 1
        {
            config.pools.retain(|key, _| *key == default);
        }
        for pool in config.pools.values_mut() {
            if let Some(path) = &self.passphrase_file {
                pool.passphrase_file = Some(path.clone());
            }
        }
        Ok(config)
    }

    pub async fn open(&self) -> anyhow::Result<Opened> {
        self.open_or(Missing::Refuse).await
    }

    pub async fn open_or(&self, missing: Missing) -> anyhow::Result<Opened> {
        let config = self.config()?;
        let pools = open_pools(&config, missing).await?;
        let pool = pools.get(None)?.clone();
        // Never a node's name: a command owns no dataset beyond one call.
        let parts = Parts::over(
            config,
            pools.clone(),
            format!("command-{:08x}", rand::random::<u32>()),
            None,
        )
        .await?;
        let controller = Controller::new(pools, parts.volumes.clone())
            .with_owner_timeout(parts.config.owner_timeout);
        Ok(Opened { pool, parts, controller })
    }
}

/// A state of a dataset that can be read.
pub enum Root {
    Snapshot(Snapshot),
    /// The dataset as the store has it: without the unsynced changes of a node that has it open.
    Head(Dataset),
}

/// A pool opened by a command.
pub struct Opened {
    pub pool: Pool,
    pub parts: Parts,
    pub controller: Controller,
}

impl Opened {
    /// A live dataset by name.
    pub async fn dataset(&self, name: &str) -> anyhow::Result<Dataset> {
        let parsed = dataset_name(name)?;
        let found = self.pool.catalog.dataset(&parsed).await?.map(|at| at.record);
        let why = match &found {
            Some(dataset) if dataset.state == State::Deleting => {
                "was deleted: only the data that its snapshots and clones use is left"
            }
            _ => "does not exist in this pool: `zerofs-csi dataset list` lists all datasets",
        };
        let live = found.filter(|d| matches!(d.state, State::Ready | State::Creating));
        live.ok_or_else(|| Wrong::new(Class::NotFound, format!("dataset {name} {why}")))
    }

    /// A live dataset by name; without one, the pool's default.
    pub async fn dataset_or_default(&self, name: Option<&str>) -> anyhow::Result<Dataset> {
        if let Some(name) = name {
            return self.dataset(name).await;
        }
        self.default_dataset().await?.ok_or_else(|| {
            Wrong::new(
                Class::Invalid,
                "the pool has no default dataset: name a dataset, or choose the default with \
                 `zerofs-csi dataset set-default NAME`",
            )
        })
    }

    /// The pool's default dataset, if one is chosen.
    pub async fn default_dataset(&self) -> anyhow::Result<Option<Dataset>> {
        let Some(id) = self.pool.catalog.default_dataset().await? else { return Ok(None) };
        let found = self.pool.catalog.dataset_by_id(id).await?.map(|at| at.record);
        let live = found.filter(|d| matches!(d.state, State::Ready | State::Creating));
        let deleted = || {
            Wrong::new(
                Class::NotFound,
                "the default dataset was deleted: choose another with `zerofs-csi dataset \
                 set-default NAME`, or none with `--none`",
            )
        };
        live.map(Some).ok_or_else(deleted)
    }

    /// `DATASET@SNAPSHOT` or `DATASET`. A dataset of the whole name, such as a writable snapshot,
    /// comes first.
    pub async fn root(&self, text: &str) -> anyhow::Result<Root> {
        if let Some((dataset, snapshot)) = split_snapshot(text) {
            let whole = self.pool.catalog.dataset(&dataset_name(text)?).await?;
            if whole.is_none_or(|at| at.record.state != State::Ready) {
                return Ok(Root::Snapshot(self.snapshot(dataset, snapshot).await?));
            }
        }
        Ok(Root::Head(self.dataset(text).await?))
    }

    /// The files of a root. A snapshot is retained until the view is closed (R14).
    pub async fn view(&self, root: &Root) -> anyhow::Result<RootView> {
        let (settings, catalog) = (self.parts.volumes.settings(), &self.pool.catalog);
        let reader = match root {
            Root::Snapshot(snapshot) => {
                RootReader::snapshot(settings, catalog, snapshot.id()).await?.0
            }
            Root::Head(dataset) => {
                let empty = || {
                    let why = format!("dataset {} is empty: nothing was written yet", dataset.name);
                    Wrong::new(Class::NotFound, why)
                };
                RootReader::head(settings, catalog, dataset).await?.ok_or_else(empty)?
            }
        };
        Ok(reader.into_view().await?)
    }

    /// Refuses the name of an existing dataset. An unfinished one is no conflict: the call
    /// completes it.
    pub async fn is_new(&self, name: &DatasetName) -> anyhow::Result<()> {
        match self
            .pool
            .catalog
            .dataset(name)
            .await?
            .map(|at| at.record)
            .filter(|dataset| dataset.state == State::Ready)
        {
            Some(dataset) => Err(exists(name.as_str(), dataset.created)),
            None => Ok(()),
        }
    }

    /// The dataset that a command is limited to, if any.
    pub async fn only(&self, name: Option<&str>) -> anyhow::Result<Option<DatasetId>> {
        let Some(name) = name else { return Ok(None) };
        if let Some((dataset, snapshot)) = split_snapshot(name)
            && self.pool.catalog.dataset(&dataset_name(name)?).await?.is_none()
        {
            self.snapshot(dataset, snapshot).await?;
            return Err(Wrong::new(
                Class::Invalid,
                format!("{name} is a snapshot: name its dataset, {dataset}, which includes it"),
            ));
        }
        Ok(Some(self.dataset(name).await?.id()))
    }

    /// A live snapshot of a dataset; the dataset may be deleted.
    pub async fn snapshot(&self, dataset: &str, name: &str) -> anyhow::Result<Snapshot> {
        let parsed = snapshot_name(name)?;
        let of = self.pool.catalog.dataset(&dataset_name(dataset)?).await?.map(|at| at.record);
        let found = match of {
            Some(of) => self.pool.catalog.snapshot(of.id(), &parsed).await?.map(|at| at.record),
            None => None,
        };
        let full = format!("{dataset}@{name}");
        let (class, why) = match found {
            Some(found) if found.state == State::Ready => return Ok(found),
            Some(found) if found.state == State::Creating => (
                Class::InProgress,
                format!("is not finished: run `dataset snapshot create {dataset} {name}` again"),
            ),
            Some(_) => (
                Class::NotFound,
                "was deleted: only the data that its clones and readers use is left".to_owned(),
            ),
            None if self
                .pool
                .catalog
                .dataset(&dataset_name(&full)?)
                .await?
                .is_some_and(|at| at.record.state == State::Ready) =>
            {
                (
                    Class::Invalid,
                    "is a dataset: append the name of one of its snapshots, like `@NAME`"
                        .to_owned(),
                )
            }
            None => (
                Class::NotFound,
                "does not exist: `zerofs-csi dataset snapshot list` lists all snapshots".to_owned(),
            ),
        };
        Err(Wrong::new(class, format!("snapshot {full} {why}")))
    }
}

/// The error for a name that is taken.
pub fn exists(name: &str, since: Timestamp) -> anyhow::Error {
    Wrong::new(
        Class::Exists,
        format!(
            "{name} already exists (created {}): delete it, or choose another name",
            when(since)
        ),
    )
}

pub fn dataset_name(name: &str) -> anyhow::Result<DatasetName> {
    name.parse().map_err(|error| Wrong::new(Class::Invalid, format!("dataset name: {error}")))
}

pub fn snapshot_name(name: &str) -> anyhow::Result<SnapshotName> {
    name.parse().map_err(|error| Wrong::new(Class::Invalid, format!("snapshot name: {error}")))
}

/// `DATASET@SNAPSHOT`. A dataset's name may hold `@`: the last one counts.
pub fn split_snapshot(text: &str) -> Option<(&str, &str)> {
    text.rsplit_once('@').filter(|(dataset, snapshot)| !dataset.is_empty() && !snapshot.is_empty())
}
