//! `dataset …`: the commands on datasets and snapshots.

use super::args::{Common, DatasetCommand, NewArgs, Output};
use super::args::{SnapshotArgs, SnapshotCommand};
use super::browse;
use super::diff;
use super::exit::Wrong;
use super::find;
use super::groups;
use super::history;
use super::info::{self, DatasetShown, SnapshotShown};
use super::properties;
use super::remote::{Named, Remote, patiently};
use super::restore;
use super::snapshots;
use super::target::{Opened, Target};
use crate::admin::grpc::proto;
use crate::app;
use crate::catalog::{Dataset, Form, Properties};
use crate::control::browse::{HoldChange, Names, NewSnapshot, Root, dataset_name, split_snapshot};
use crate::control::{NewVolume, ReleaseMode};
use crate::types::{ByteSize, Class, IoLimits};
use std::collections::BTreeMap;

pub fn run(command: DatasetCommand) -> anyhow::Result<()> {
    app::start_logging(&Default::default(), Some("warn"))?;
    app::run(async move {
        match command {
            DatasetCommand::Create { name, new, common } => {
                create(&name, &new, None, &common).await
            }
            DatasetCommand::Clone { source, name, new, common } => {
                create(&name, &new, Some(&source), &common).await
            }
            DatasetCommand::List { common } => list(&common).await,
            DatasetCommand::Info { name, common } => show(name.as_deref(), &common).await,
            DatasetCommand::SetDefault { name, common, .. } => {
                set_default(name.as_deref(), &common).await
            }
            DatasetCommand::GetDefault { common } => get_default(&common).await,
            DatasetCommand::Delete { name, common } => delete(&name, &common).await,
            DatasetCommand::Expand { name, size, common } => expand(&name, size, &common).await,
            DatasetCommand::Set(args) => properties::set(args).await,
            DatasetCommand::Rename { name, new_name, common } => {
                rename(&name, &new_name, &common).await
            }
            DatasetCommand::Release { name, force, common } => {
                let mode = if force { ReleaseMode::Force } else { ReleaseMode::IfIdle };
                release(&name, mode, &common).await
            }
            DatasetCommand::Snapshot(args) => Box::pin(snapshot(args)).await,
            DatasetCommand::ListSnapshots { dataset, common } => {
                snapshots::list(dataset.as_deref(), &common).await
            }
            DatasetCommand::DeleteSnapshot { names, common } => {
                snapshots::delete(last_and_before(&names), &common).await
            }
            DatasetCommand::ListGroups { common } => groups::list(&common).await,
            DatasetCommand::DeleteGroup { name, common } => groups::delete(&name, &common).await,
            DatasetCommand::Ls(args) => browse::ls(args).await,
            DatasetCommand::Cat(args) => browse::cat(args).await,
            DatasetCommand::Find(args) => find::run(args).await,
            DatasetCommand::History(args) => history::run(args).await,
            DatasetCommand::Diff(args) => diff::run(args).await,
            DatasetCommand::Restore(args) => restore::run(args).await,
        }
    })
}

fn properties(new: &NewArgs) -> anyhow::Result<Properties> {
    let mut properties = Properties::default();
    if let Some(size) = new.recordsize {
        let too_large = |_| Wrong::new(Class::Invalid, "--recordsize: at most 1Mi");
        properties.record_bytes = u32::try_from(size.0).map_err(too_large)?;
    }
    properties.sync = new.sync;
    properties.codec = new.compression.unwrap_or(properties.codec);
    properties.snapdir = new.snapdir.unwrap_or(properties.snapdir);
    properties.quota_inodes = new.inodes;
    properties.limits = IoLimits {
        max_read_bandwidth: new.max_read_bandwidth.map(|size| size.0),
        max_write_bandwidth: new.max_write_bandwidth.map(|size| size.0),
        max_iops: new.max_iops,
    };
    properties.root_uid = new.uid.unwrap_or(properties.root_uid);
    properties.root_gid = new.gid.unwrap_or(properties.root_gid);
    properties.root_mode = new.mode.unwrap_or(properties.root_mode);
    Ok(properties)
}

async fn create(
    name: &str,
    new: &NewArgs,
    source: Option<&str>,
    common: &Common,
) -> anyhow::Result<()> {
    let name = dataset_name(name)?;
    let properties = properties(new)?;
    let opened = match common.place.target().await? {
        Target::Pool(opened) => opened,
        Target::Server(remote) => {
            let request = request(&remote, name.as_str(), new, source, &properties);
            return told(remote.client.create_dataset(request).await?, common.output);
        }
    };
    let wanted = NewVolume {
        name,
        size: new.size.map(|size| size.0),
        size_limit: None,
        source: None,
        properties,
        access_modes: vec![],
        form: if new.read_only { Form::Snapshot } else { Form::Writable },
        parameters: BTreeMap::new(),
    };
    let made = opened.browser.make_dataset(&opened.controller, wanted, source).await?;
    match made.origin {
        Some(_) => show_dataset(&opened, &made.dataset, made.origin, common.output),
        None => print(&opened, &made.dataset, common.output).await,
    }
}

/// The new dataset as a request to a server.
fn request(
    remote: &Remote,
    name: &str,
    new: &NewArgs,
    source: Option<&str>,
    properties: &Properties,
) -> proto::CreateDatasetRequest {
    proto::CreateDatasetRequest {
        pool: remote.pool.clone(),
        dataset: name.to_owned(),
        size_bytes: new.size.map(|size| size.0),
        quota_inodes: properties.quota_inodes,
        sync: properties.sync.map(|sync| sync.to_string()).unwrap_or_default(),
        record_bytes: properties.record_bytes,
        compression: properties.codec.as_str().to_owned(),
        source: source.unwrap_or_default().to_owned(),
        read_only: new.read_only,
        snapdir: properties.snapdir.as_str().to_owned(),
        root_uid: Some(properties.root_uid),
        root_gid: Some(properties.root_gid),
        root_mode: Some(properties.root_mode),
        max_read_bandwidth: properties.limits.max_read_bandwidth,
        max_write_bandwidth: properties.limits.max_write_bandwidth,
        max_iops: properties.limits.max_iops,
    }
}

async fn print(opened: &Opened, dataset: &Dataset, output: Output) -> anyhow::Result<()> {
    let names = Names::of_origin(&opened.pool, dataset).await?;
    let origin = dataset.origin.map(|origin| names.snapshot(origin));
    show_dataset(opened, dataset, origin, output)
}

fn show_dataset(
    opened: &Opened,
    dataset: &Dataset,
    origin: Option<String>,
    output: Output,
) -> anyhow::Result<()> {
    let shown = DatasetShown::of(opened.browser.handle(dataset), dataset, origin);
    output.print(&shown, DatasetShown::text)
}

/// As [`print`], of what a server tells.
fn told(dataset: proto::Dataset, output: Output) -> anyhow::Result<()> {
    output.print(&DatasetShown::from(dataset), DatasetShown::text)
}

async fn list(common: &Common) -> anyhow::Result<()> {
    let shown: Vec<DatasetShown> = match common.place.target().await? {
        Target::Pool(opened) => {
            let found = opened.browser.datasets().await?.into_iter();
            found
                .map(|facts| DatasetShown::of(facts.handle, &facts.dataset, facts.origin_name))
                .collect()
        }
        Target::Server(remote) => {
            let found = patiently(async || remote.client.datasets(&remote.pool).await).await?;
            found.into_iter().map(Into::into).collect()
        }
    };
    common.output.print(&shown, |shown| info::datasets(shown))
}

/// Shows a dataset, or a snapshot unless a dataset has that very name.
async fn show(name: Option<&str>, common: &Common) -> anyhow::Result<()> {
    let opened = match common.place.target().await? {
        Target::Pool(opened) => opened,
        Target::Server(remote) => {
            return match remote.named(name.unwrap_or_default()).await? {
                Named::Dataset(dataset) => told(*dataset, common.output),
                Named::Snapshot { dataset, snapshot } => {
                    let (client, pool) = (&remote.client, &remote.pool);
                    let found =
                        patiently(async || client.snapshot(pool, &dataset, &snapshot).await);
                    snapshots::print(common.output, &found.await?.into())
                }
            };
        }
    };
    let Some(name) = name else {
        let dataset = opened.browser.dataset_or_default(None).await?;
        return print(&opened, &dataset, common.output).await;
    };
    match opened.browser.root_named(name).await? {
        Root::Head(dataset) => print(&opened, &dataset, common.output).await,
        Root::Snapshot(snapshot) => {
            let dataset = split_snapshot(name).map_or(name, |(dataset, _)| dataset);
            let facts = opened.browser.snapshot_facts(dataset, &snapshot);
            snapshots::print(common.output, &SnapshotShown::of(&facts))
        }
    }
}

async fn set_default(name: Option<&str>, common: &Common) -> anyhow::Result<()> {
    match common.place.target().await? {
        Target::Pool(opened) => {
            let dataset = match name {
                Some(name) => Some(opened.browser.dataset(name).await?.id()),
                None => None,
            };
            opened.pool.catalog.set_default_dataset(dataset).await?;
        }
        Target::Server(remote) => {
            let name = name.unwrap_or_default();
            remote.client.set_default_dataset(&remote.pool, name).await?;
        }
    }
    common.output.print(&serde_json::json!({ "default": name }), |_| match name {
        Some(name) => format!("{name} is the default dataset\n"),
        None => "there is no default dataset\n".to_owned(),
    })
}

async fn get_default(common: &Common) -> anyhow::Result<()> {
    let name = common.place.target().await?.live_or_default(None).await?;
    common.output.print(&serde_json::json!({ "default": name }), |_| format!("{name}\n"))
}

/// `[DATASET] NAME`.
fn last_and_before(names: &[String]) -> (Option<&str>, &str) {
    match names {
        [name] => (None, name),
        [dataset, name, ..] => (Some(dataset), name),
        [] => (None, ""),
    }
}

/// Deletes a dataset; a retry succeeds while any part of it is left to collect. Unlike for CSI, an
/// unknown name is an error.
async fn delete(name: &str, common: &Common) -> anyhow::Result<()> {
    match common.place.target().await? {
        Target::Pool(opened) => {
            let Some(dataset) = opened.browser.record(name).await? else {
                let why = format!("dataset {name} does not exist: nothing to delete");
                return Err(Wrong::new(Class::NotFound, why));
            };
            opened.controller.delete_volume(opened.browser.handle(&dataset)).await?;
        }
        Target::Server(remote) => remote.client.delete_dataset(&remote.pool, name).await?,
    }
    let report = serde_json::json!({ "deleted": name });
    common.output.print(&report, |_| {
        format!(
            "deleted dataset {name}; a running controller, or `zerofs-csi gc`, frees its space\n"
        )
    })
}

async fn expand(name: &str, size: ByteSize, common: &Common) -> anyhow::Result<()> {
    match common.place.target().await? {
        Target::Pool(opened) => {
            let handle = opened.browser.handle(&opened.browser.dataset(name).await?);
            opened.controller.expand_volume(handle, size.0, None).await?;
            let grown = opened.browser.dataset(name).await?;
            print(&opened, &grown, common.output).await
        }
        Target::Server(remote) => {
            let grown = remote.client.expand_dataset(&remote.pool, name, size.0).await?;
            told(grown, common.output)
        }
    }
}

async fn rename(name: &str, new_name: &str, common: &Common) -> anyhow::Result<()> {
    let to = dataset_name(new_name)?;
    match common.place.target().await? {
        Target::Pool(opened) => {
            let handle = opened.browser.handle(&opened.browser.dataset(name).await?);
            let renamed = opened.controller.rename_volume(handle, &to).await?;
            print(&opened, &renamed, common.output).await
        }
        Target::Server(remote) => {
            let renamed = remote.client.rename_dataset(&remote.pool, name, new_name).await?;
            told(renamed, common.output)
        }
    }
}

async fn release(name: &str, mode: ReleaseMode, common: &Common) -> anyhow::Result<()> {
    let opened = common.place.pool_itself().await?;
    let handle = opened.browser.handle(&opened.browser.dataset(name).await?);
    let from = opened.controller.release_volume(handle, mode).await?;
    let report = serde_json::json!({ "released": name, "from": from });
    common.output.print(&report, |_| match &from {
        Some(node) => format!("released dataset {name} from node {node}\n"),
        None => format!("dataset {name} has no owner: it is already released\n"),
    })
}

async fn snapshot(args: SnapshotArgs) -> anyhow::Result<()> {
    let Some(command) = args.command else {
        let kind = if args.readonly { NewSnapshot::ReadOnly } else { NewSnapshot::Writable };
        return snapshots::make(last_and_before(&args.names), kind, &args.common).await;
    };
    match command {
        SnapshotCommand::Create { dataset, name, writable, common } => {
            let kind = if writable { NewSnapshot::Writable } else { NewSnapshot::ReadOnly };
            snapshots::make((Some(&dataset), &name), kind, &common).await
        }
        SnapshotCommand::List { dataset, common } => {
            snapshots::list(dataset.as_deref(), &common).await
        }
        SnapshotCommand::Info { dataset, name, common } => {
            snapshots::show(&dataset, &name, &common).await
        }
        SnapshotCommand::Delete { dataset, name, common } => {
            snapshots::delete((Some(&dataset), &name), &common).await
        }
        SnapshotCommand::Hold(args) => snapshots::hold(args, HoldChange::Add).await,
        SnapshotCommand::Unhold(args) => snapshots::hold(args, HoldChange::Release).await,
    }
}
