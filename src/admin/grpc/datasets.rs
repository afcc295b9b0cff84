//! The service of pools and datasets.

use super::super::auth::{Action, Resource};
use super::call::{Call, CallAdmission, RpcResult};
use super::proto::datasets_server::Datasets;
use super::proto::*;
use super::{Services, convert, page};
use crate::catalog::{self, Form, Properties, Snapdir};
use crate::chunk::Codec;
use crate::control::browse::{Browser, Root, dataset_name};
use crate::control::{Accuracy, ControlError, NewVolume, PropertyChanges, Source, space};
use crate::rpc::status;
use crate::types::{IoLimits, SnapshotHandle, SyncMode};
use std::collections::BTreeMap;
use tonic::{Request, Response, Status};

#[expect(clippy::needless_pass_by_value, reason = "it maps the error of a result")]
pub(super) fn failed(error: ControlError) -> Status {
    status(&error)
}

impl Services {
    /// The pool of a request; empty: the default one.
    pub(super) fn browser(&self, pool: &str) -> Result<Browser, Status> {
        let name = Some(pool).filter(|name| !name.is_empty());
        let pool = self.admin.controller.pools().get(name).map_err(failed)?;
        Ok(self.admin.browser(pool))
    }

    /// A live dataset that the caller may do this with; empty: the pool's default.
    pub(super) async fn dataset(
        &self,
        call: &Call,
        browser: &Browser,
        name: &str,
        action: Action,
    ) -> Result<catalog::Dataset, Status> {
        let pool = browser.pool().name.as_str();
        if name.is_empty() {
            self.admission.allow(call, Action::List, &Resource::pool(pool)).await?;
            let dataset = browser.dataset_or_default(None).await.map_err(failed)?;
            let resource = Resource::dataset(pool, dataset.name.as_str());
            self.admission.allow(call, action, &resource).await?;
            return Ok(dataset);
        }
        self.admission.allow(call, action, &Resource::dataset(pool, name)).await?;
        browser.dataset(name).await.map_err(failed)
    }

    /// A dataset for an answer.
    async fn shown(
        &self,
        call: &Call,
        browser: &Browser,
        dataset: &catalog::Dataset,
    ) -> RpcResult<Dataset> {
        let facts = browser.dataset_facts(dataset).await.map_err(failed)?;
        let facts = self.admission.known_facts(call, &browser.pool().name, facts).await;
        Ok(Response::new(convert::dataset(browser.pool(), facts)))
    }

    /// The source of a new dataset, which the caller has to be allowed to read.
    async fn source(&self, call: &Call, browser: &Browser, text: &str) -> Result<Source, Status> {
        let pool = browser.pool();
        let of = match crate::control::browse::split_snapshot(text) {
            Some((dataset, _)) => dataset,
            None => text,
        };
        self.admission.allow(call, Action::Read, &Resource::dataset(&pool.name, of)).await?;
        Ok(match browser.root_named(text).await.map_err(failed)? {
            Root::Snapshot(snapshot) => {
                Source::Snapshot(SnapshotHandle { pool: pool.id(), snapshot: snapshot.id() })
            }
            Root::Head(dataset) => Source::Volume(browser.handle(&dataset)),
        })
    }
}

fn properties(new: &CreateDatasetRequest) -> Result<Properties, Status> {
    let mut properties = Properties { quota_inodes: new.quota_inodes, ..Properties::default() };
    properties.sync = sync_mode(&new.sync)?;
    if new.record_bytes != 0 {
        properties.record_bytes = new.record_bytes;
    }
    properties.codec = match new.compression.as_str() {
        "" => Codec::Lz4,
        text => codec(text)?,
    };
    if !new.snapdir.is_empty() {
        properties.snapdir = snapdir(&new.snapdir)?;
    }
    properties.limits = IoLimits {
        max_read_bandwidth: new.max_read_bandwidth,
        max_write_bandwidth: new.max_write_bandwidth,
        max_iops: new.max_iops,
    };
    for (given, property) in [
        (new.root_uid, &mut properties.root_uid),
        (new.root_gid, &mut properties.root_gid),
        (new.root_mode, &mut properties.root_mode),
    ] {
        *property = given.unwrap_or(*property);
    }
    Ok(properties)
}

fn changes(wanted: &SetPropertiesRequest) -> Result<PropertyChanges, Status> {
    let changes = PropertyChanges {
        size: wanted.size_bytes,
        inodes: wanted.quota_inodes.map(limit),
        record_bytes: wanted.record_bytes,
        sync: wanted.sync.as_deref().map(sync_mode).transpose()?,
        codec: wanted.compression.as_deref().map(codec).transpose()?,
        snapdir: wanted.snapdir.as_deref().map(snapdir).transpose()?,
        max_read_bandwidth: wanted.max_read_bandwidth.map(limit),
        max_write_bandwidth: wanted.max_write_bandwidth.map(limit),
        max_iops: wanted.max_iops.map(limit),
    };
    match changes == PropertyChanges::default() {
        true => Err(Status::invalid_argument("no property is given: give one at least")),
        false => Ok(changes),
    }
}

/// 0: unlimited.
fn limit(number: u64) -> Option<u64> {
    Some(number).filter(|number| *number > 0)
}

/// Empty: by access modes.
fn sync_mode(text: &str) -> Result<Option<SyncMode>, Status> {
    let wrong = |error| Status::invalid_argument(format!("sync: {error}"));
    Some(text).filter(|text| !text.is_empty()).map(str::parse).transpose().map_err(wrong)
}

fn codec(text: &str) -> Result<Codec, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("compression: {error}")))
}

fn snapdir(text: &str) -> Result<Snapdir, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("snapdir: {error}")))
}

#[tonic::async_trait]
impl Datasets for Services {
    async fn list_pools(&self, request: Request<ListPoolsRequest>) -> RpcResult<ListPoolsResponse> {
        let call = CallAdmission::call(&request)?;
        self.admission.allow(&call, Action::List, &Resource::Server).await?;
        let mut pools = Vec::new();
        for pool in self.admin.controller.pools().iter() {
            if !self.admission.shows(&call, &Resource::pool(&pool.name)).await {
                continue;
            }
            let browser = self.browser(&pool.name)?;
            // The default may be deleted: then there is none that a client could use.
            let default = browser.default_dataset().await.ok().flatten();
            let default = default.map(|dataset| dataset.name.to_string()).unwrap_or_default();
            let shown = Resource::dataset(&pool.name, &default);
            let shows = !default.is_empty() && self.admission.shows(&call, &shown).await;
            pools.push(Pool {
                name: pool.name.clone(),
                id: pool.id().to_string(),
                encrypted: pool.catalog.pool().encryption.is_some(),
                default_dataset: if shows { default } else { String::new() },
            });
        }
        pools.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Response::new(ListPoolsResponse { pools }))
    }

    async fn list_datasets(
        &self,
        request: Request<ListDatasetsRequest>,
    ) -> RpcResult<ListDatasetsResponse> {
        let call = CallAdmission::call(&request)?;
        let ListDatasetsRequest { pool, page_size, page_token } = request.into_inner();
        let browser = self.browser(&pool)?;
        let pool = browser.pool();
        self.admission.allow(&call, Action::List, &Resource::pool(&pool.name)).await?;
        let mut shown = Vec::new();
        for facts in browser.datasets().await.map_err(failed)? {
            let resource = Resource::dataset(&pool.name, facts.dataset.name.as_str());
            if self.admission.shows(&call, &resource).await {
                shown.push(facts);
            }
        }
        let key = |facts: &crate::control::browse::DatasetFacts| {
            facts.dataset.name.as_str().as_bytes().to_vec()
        };
        let (cut, next_page_token) = page::cut(shown, key, &page_token, page_size)?;
        let mut datasets = Vec::with_capacity(cut.len());
        for facts in cut {
            let facts = self.admission.known_facts(&call, &pool.name, facts).await;
            datasets.push(convert::dataset(pool, facts));
        }
        Ok(Response::new(ListDatasetsResponse { datasets, next_page_token }))
    }

    async fn get_dataset(&self, request: Request<GetDatasetRequest>) -> RpcResult<Dataset> {
        let call = CallAdmission::call(&request)?;
        let GetDatasetRequest { pool, dataset } = request.into_inner();
        let browser = self.browser(&pool)?;
        let dataset = self.dataset(&call, &browser, &dataset, Action::List).await?;
        self.shown(&call, &browser, &dataset).await
    }

    async fn create_dataset(&self, request: Request<CreateDatasetRequest>) -> RpcResult<Dataset> {
        let call = CallAdmission::call(&request)?;
        let request = request.into_inner();
        let browser = self.browser(&request.pool)?;
        let pool = browser.pool().name.clone();
        let resource = Resource::dataset(&pool, &request.dataset);
        self.admission.allow(&call, Action::Administer, &resource).await?;
        let name = dataset_name(&request.dataset).map_err(failed)?;
        let source = match request.source.as_str() {
            "" => None,
            text => Some(self.source(&call, &browser, text).await?),
        };
        browser.is_new(&name).await.map_err(failed)?;
        let new = NewVolume {
            name,
            size: request.size_bytes,
            size_limit: None,
            source,
            properties: properties(&request)?,
            access_modes: vec![],
            form: if request.read_only { Form::Snapshot } else { Form::Writable },
            parameters: BTreeMap::new(),
        };
        let (controller, about) = (self.admin.controller.clone(), format!("{pool}/{}", new.name));
        let work = async move { controller.create_volume(Some(&pool), new).await };
        let made = self
            .admission
            .change(&call, Action::Administer, ("CreateDataset", about), work)
            .await?;
        self.shown(&call, &browser, &made.dataset).await
    }

    async fn expand_dataset(&self, request: Request<ExpandDatasetRequest>) -> RpcResult<Dataset> {
        let call = CallAdmission::call(&request)?;
        let ExpandDatasetRequest { pool, dataset, size_bytes } = request.into_inner();
        let browser = self.browser(&pool)?;
        let dataset = self.dataset(&call, &browser, &dataset, Action::Administer).await?;
        let (controller, handle) = (self.admin.controller.clone(), browser.handle(&dataset));
        let about = format!("{}/{}", browser.pool().name, dataset.name);
        let work = async move { controller.expand_volume(handle, size_bytes, None).await };
        self.admission.change(&call, Action::Administer, ("ExpandDataset", about), work).await?;
        let grown = browser.dataset(dataset.name.as_str()).await.map_err(failed)?;
        self.shown(&call, &browser, &grown).await
    }

    async fn set_properties(&self, request: Request<SetPropertiesRequest>) -> RpcResult<Dataset> {
        let call = CallAdmission::call(&request)?;
        let request = request.into_inner();
        let browser = self.browser(&request.pool)?;
        let dataset = self.dataset(&call, &browser, &request.dataset, Action::Administer).await?;
        let changes = changes(&request)?;
        let (controller, handle) = (self.admin.controller.clone(), browser.handle(&dataset));
        let about = format!("{}/{}", browser.pool().name, dataset.name);
        let work = async move { controller.set_properties(handle, changes).await };
        let changed = self
            .admission
            .change(&call, Action::Administer, ("SetProperties", about), work)
            .await?;
        self.shown(&call, &browser, &changed).await
    }

    async fn rename_dataset(&self, request: Request<RenameDatasetRequest>) -> RpcResult<Dataset> {
        let call = CallAdmission::call(&request)?;
        let RenameDatasetRequest { pool, dataset, new_name } = request.into_inner();
        let browser = self.browser(&pool)?;
        let dataset = self.dataset(&call, &browser, &dataset, Action::Administer).await?;
        let pool = browser.pool().name.clone();
        self.admission
            .allow(&call, Action::Administer, &Resource::dataset(&pool, &new_name))
            .await?;
        let name = dataset_name(&new_name).map_err(failed)?;
        let (controller, handle) = (self.admin.controller.clone(), browser.handle(&dataset));
        let about = format!("{pool}/{} to {name}", dataset.name);
        let work = async move { controller.rename_volume(handle, &name).await };
        let renamed = self
            .admission
            .change(&call, Action::Administer, ("RenameDataset", about), work)
            .await?;
        self.shown(&call, &browser, &renamed).await
    }

    async fn delete_dataset(
        &self,
        request: Request<DeleteDatasetRequest>,
    ) -> RpcResult<DeleteDatasetResponse> {
        let call = CallAdmission::call(&request)?;
        let DeleteDatasetRequest { pool, dataset } = request.into_inner();
        let browser = self.browser(&pool)?;
        let pool = browser.pool().name.clone();
        let resource = Resource::dataset(&pool, &dataset);
        self.admission.allow(&call, Action::Administer, &resource).await?;
        // A retry succeeds while any part of it is left to collect.
        let Some(found) = browser.record(&dataset).await.map_err(failed)? else {
            return Err(Status::not_found(format!(
                "dataset {dataset} does not exist: nothing to delete"
            )));
        };
        let (controller, handle) = (self.admin.controller.clone(), browser.handle(&found));
        let work = async move { controller.delete_volume(handle).await };
        let about = format!("{pool}/{dataset}");
        self.admission.change(&call, Action::Administer, ("DeleteDataset", about), work).await?;
        Ok(Response::new(DeleteDatasetResponse {}))
    }

    async fn set_default_dataset(
        &self,
        request: Request<SetDefaultDatasetRequest>,
    ) -> RpcResult<SetDefaultDatasetResponse> {
        let call = CallAdmission::call(&request)?;
        let SetDefaultDatasetRequest { pool, dataset } = request.into_inner();
        let browser = self.browser(&pool)?;
        let resource = Resource::pool(&browser.pool().name);
        self.admission.allow(&call, Action::Administer, &resource).await?;
        let id = match dataset.as_str() {
            "" => None,
            name => Some(browser.dataset(name).await.map_err(failed)?.id()),
        };
        let about = format!("{}/{dataset}", browser.pool().name);
        let work = async move { Ok(browser.pool().catalog.set_default_dataset(id).await?) };
        self.admission
            .change(&call, Action::Administer, ("SetDefaultDataset", about), work)
            .await?;
        Ok(Response::new(SetDefaultDatasetResponse {}))
    }

    async fn get_space(&self, request: Request<GetSpaceRequest>) -> RpcResult<Space> {
        let call = CallAdmission::call(&request)?;
        let GetSpaceRequest { pool, dataset, exact } = request.into_inner();
        let browser = self.browser(&pool)?;
        // Exact figures take minutes, and memory for each chunk.
        let action = if exact { Action::Administer } else { Action::List };
        let only = match dataset.as_str() {
            "" => {
                // The figures of all datasets are for those who may see all.
                let resource = Resource::dataset(&browser.pool().name, "*");
                self.admission.allow(&call, action, &resource).await?;
                None
            }
            name => {
                let resource = Resource::dataset(&browser.pool().name, name);
                self.admission.allow(&call, action, &resource).await?;
                browser.only(Some(name)).await.map_err(failed)?
            }
        };
        let Ok(_measuring) = self.admission.measuring.try_acquire() else {
            return Err(Status::aborted("another measurement is in progress; retry"));
        };
        let accuracy = if exact { Accuracy::Exact } else { Accuracy::Estimate };
        let measured = Box::pin(space(browser.pool(), &self.admin.volumes, only, accuracy)).await;
        Ok(Response::new(convert::space(measured.map_err(failed)?)))
    }
}
