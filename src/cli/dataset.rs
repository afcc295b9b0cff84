//! `dataset …`: the commands on datasets and snapshots.

use super::args::{CodecArg, Common, DatasetCommand, NewArgs, Output, SnapdirArg};
use super::args::{SnapshotArgs, SnapshotCommand};
use super::browse;
use super::diff;
use super::exit::Wrong;
use super::history;
use super::info::{self, DatasetShown, SnapshotShown};
use super::names::Names;
use super::restore;
use super::snapshots::{self, Kind};
use super::target::{Opened, Root, dataset_name, snapshot_name, split_snapshot};
use crate::app;
use crate::catalog::{Dataset, Form, Properties, Snapdir, State};
use crate::chunk::Codec;
use crate::control::{Journal, NewVolume, Source};
use crate::types::ByteSize;
use crate::types::{Class, SnapshotHandle, VolumeHandle};
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
            DatasetCommand::Release { name, force, common } => {
                let journal = if force { Journal::GivenUp } else { Journal::MayHoldMore };
                release(&name, journal, &common).await
            }
            DatasetCommand::Snapshot(args) => Box::pin(snapshot(args)).await,
            DatasetCommand::ListSnapshots { dataset, common } => {
                snapshots::list(dataset.as_deref(), &common).await
            }
            DatasetCommand::DeleteSnapshot { names, common } => {
                let (dataset, name) = last_and_before(&names);
                let opened = common.pool.open().await?;
                let dataset = name_or_default(&opened, dataset).await?;
                delete_snapshot(&opened, &dataset, name, common.output).await
            }
            DatasetCommand::Ls(args) => browse::ls(args).await,
            DatasetCommand::Cat(args) => browse::cat(args).await,
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
    properties.codec = match new.compression {
        Some(CodecArg::None) => Codec::None,
        Some(CodecArg::Zstd) => Codec::Zstd,
        Some(CodecArg::Lz4) | None => Codec::Lz4,
    };
    properties.snapdir = match new.snapdir {
        Some(SnapdirArg::Visible) => Snapdir::Visible,
        Some(SnapdirArg::Hidden) | None => Snapdir::Hidden,
    };
    properties.quota_inodes = new.inodes;
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
    let opened = common.pool.open().await?;
    opened.is_new(&name).await?;
    let source = match source {
        Some(text) => Some(find_source(&opened, text).await?),
        None => None,
    };
    let wanted = NewVolume {
        name,
        size: new.size.map(|size| size.0),
        size_limit: None,
        source,
        properties,
        access_modes: vec![],
        form: if new.read_only { Form::Snapshot } else { Form::Writable },
        parameters: BTreeMap::new(),
    };
    let made = opened.controller.create_volume(None, wanted).await?;
    print(&opened, &made.dataset, common.output).await
}

async fn print(opened: &Opened, dataset: &Dataset, output: Output) -> anyhow::Result<()> {
    let names = Names::of_origin(&opened.pool, dataset).await?;
    output.print(&DatasetShown::of(&opened.pool, dataset, &names), DatasetShown::text)
}

/// `DATASET@SNAPSHOT`, unless a dataset has that very name.
async fn find_source(opened: &Opened, text: &str) -> anyhow::Result<Source> {
    let pool = opened.pool.id();
    if let Some((dataset, snapshot)) = split_snapshot(text)
        && opened.pool.catalog.dataset(&dataset_name(text)?).await?.is_none()
    {
        let snapshot = opened.snapshot(dataset, snapshot).await?;
        return Ok(Source::Snapshot(SnapshotHandle { pool, snapshot: snapshot.id() }));
    }
    let dataset = opened.dataset(text).await?;
    Ok(Source::Volume(VolumeHandle { pool, dataset: dataset.id() }))
}

async fn list(common: &Common) -> anyhow::Result<()> {
    let opened = common.pool.open().await?;
    let records: Vec<Dataset> =
        opened.pool.catalog.datasets().await?.into_iter().map(|at| at.record).collect();
    let names = Names::all(&opened.pool, &records).await?;
    let live = records.iter().filter(|dataset| dataset.state != State::Dead);
    let mut shown: Vec<DatasetShown> =
        live.map(|dataset| DatasetShown::of(&opened.pool, dataset, &names)).collect();
    shown.sort_by(|a, b| a.name.cmp(&b.name));
    common.output.print(&shown, |shown| info::datasets(shown))
}

/// Shows a dataset, or a snapshot unless a dataset has that very name.
async fn show(name: Option<&str>, common: &Common) -> anyhow::Result<()> {
    let opened = common.pool.open().await?;
    let Some(name) = name else {
        return print(&opened, &opened.dataset_or_default(None).await?, common.output).await;
    };
    match opened.root(name).await? {
        Root::Head(dataset) => print(&opened, &dataset, common.output).await,
        Root::Snapshot(snapshot) => {
            let dataset = split_snapshot(name).map_or(name, |(dataset, _)| dataset);
            let shown = SnapshotShown::of(&opened.pool, dataset, &snapshot);
            print_snapshot(common.output, &shown)
        }
    }
}

async fn set_default(name: Option<&str>, common: &Common) -> anyhow::Result<()> {
    let opened = common.pool.open().await?;
    let dataset = match name {
        Some(name) => Some(opened.dataset(name).await?.id()),
        None => None,
    };
    opened.pool.catalog.set_default_dataset(dataset).await?;
    common.output.print(&serde_json::json!({ "default": name }), |_| match name {
        Some(name) => format!("{name} is the default dataset\n"),
        None => "there is no default dataset\n".to_owned(),
    })
}

async fn get_default(common: &Common) -> anyhow::Result<()> {
    let opened = common.pool.open().await?;
    let name = opened.dataset_or_default(None).await?.name.to_string();
    common.output.print(&serde_json::json!({ "default": name }), |_| format!("{name}\n"))
}

async fn name_or_default(opened: &Opened, name: Option<&str>) -> anyhow::Result<String> {
    match name {
        // A deleted dataset may still have snapshots.
        Some(name) => Ok(name.to_owned()),
        None => Ok(opened.dataset_or_default(None).await?.name.to_string()),
    }
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
    let opened = common.pool.open().await?;
    let found = opened.pool.catalog.dataset(&dataset_name(name)?).await?;
    let Some(at) = found else { return Err(nothing_to_delete("dataset", name)) };
    opened
        .controller
        .delete_volume(VolumeHandle { pool: opened.pool.id(), dataset: at.record.id() })
        .await?;
    let report = serde_json::json!({ "deleted": name });
    common.output.print(&report, |_| {
        format!(
            "deleted dataset {name}; a running controller, or `zerofs-csi gc`, frees its space\n"
        )
    })
}

fn nothing_to_delete(what: &str, name: &str) -> anyhow::Error {
    Wrong::new(Class::NotFound, format!("{what} {name} does not exist: nothing to delete"))
}

async fn expand(name: &str, size: ByteSize, common: &Common) -> anyhow::Result<()> {
    let opened = common.pool.open().await?;
    let handle = VolumeHandle { pool: opened.pool.id(), dataset: opened.dataset(name).await?.id() };
    opened.controller.expand_volume(handle, size.0, None).await?;
    let grown = opened.dataset(name).await?;
    print(&opened, &grown, common.output).await
}

async fn release(name: &str, journal: Journal, common: &Common) -> anyhow::Result<()> {
    let opened = common.pool.open().await?;
    let handle = VolumeHandle { pool: opened.pool.id(), dataset: opened.dataset(name).await?.id() };
    let from = opened.controller.release_volume(handle, journal).await?;
    let report = serde_json::json!({ "released": name, "from": from });
    common.output.print(&report, |_| match &from {
        Some(node) => format!("released dataset {name} from node {node}\n"),
        None => format!("dataset {name} has no owner: it is already released\n"),
    })
}

async fn snapshot(args: SnapshotArgs) -> anyhow::Result<()> {
    let Some(command) = args.command else {
        let (dataset, name) = last_and_before(&args.names);
        let opened = args.common.pool.open().await?;
        let dataset = name_or_default(&opened, dataset).await?;
        let kind = if args.readonly { Kind::ReadOnly } else { Kind::Writable };
        return take(&opened, &dataset, name, kind, args.common.output).await;
    };
    match command {
        SnapshotCommand::Create { dataset, name, writable, common } => {
            let opened = common.pool.open().await?;
            let kind = if writable { Kind::Writable } else { Kind::ReadOnly };
            take(&opened, &dataset, &name, kind, common.output).await
        }
        SnapshotCommand::List { dataset, common } => {
            snapshots::list(dataset.as_deref(), &common).await
        }
        SnapshotCommand::Info { dataset, name, common } => {
            let opened = common.pool.open().await?;
            print_snapshot(common.output, &snapshots::show(&opened, &dataset, &name).await?)
        }
        SnapshotCommand::Delete { dataset, name, common } => {
            let opened = common.pool.open().await?;
            delete_snapshot(&opened, &dataset, &name, common.output).await
        }
    }
}

async fn take(
    opened: &Opened,
    dataset: &str,
    name: &str,
    kind: Kind,
    output: Output,
) -> anyhow::Result<()> {
    print_snapshot(output, &snapshots::make(opened, dataset, snapshot_name(name)?, kind).await?)
}

async fn delete_snapshot(
    opened: &Opened,
    dataset: &str,
    name: &str,
    output: Output,
) -> anyhow::Result<()> {
    let full = format!("{dataset}@{name}");
    if !snapshots::delete(opened, dataset, &snapshot_name(name)?).await? {
        return Err(nothing_to_delete("snapshot", &full));
    }
    output.print(&serde_json::json!({ "deleted": full }), |_| {
        format!(
            "deleted snapshot {full}; a running controller, or `zerofs-csi gc`, frees its space\n"
        )
    })
}

fn print_snapshot(output: Output, shown: &SnapshotShown) -> anyhow::Result<()> {
    output.print(shown, |shown| info::snapshots(std::slice::from_ref(shown)))
}
