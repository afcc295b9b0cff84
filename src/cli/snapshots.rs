//! `dataset snapshot`: snapshots, and the clones that are listed among them.

use super::args::{Common, HoldArgs, Output};
use super::exit::Wrong;
use super::info::{self, SnapshotShown};
use super::remote::patiently;
use super::target::Target;
use crate::admin::ClientError;
use crate::admin::grpc::proto;
use crate::control::browse::{HoldChange, NewSnapshot, split_snapshot};
use crate::types::Class;

/// A name: of the dataset (the default one if omitted), and of the snapshot.
type Name<'a> = (Option<&'a str>, &'a str);

pub async fn make(
    (dataset, name): Name<'_>,
    kind: NewSnapshot,
    common: &Common,
) -> anyhow::Result<()> {
    let on = common.place.target().await?;
    let dataset = on.name_or_default(dataset).await?;
    let made = match &on {
        Target::Pool(opened) => {
            let made = opened.browser.make_snapshot(&opened.controller, &dataset, name, kind);
            SnapshotShown::of(&made.await?)
        }
        Target::Server(remote) => {
            let request = proto::CreateSnapshotRequest {
                pool: remote.pool.clone(),
                dataset,
                snapshot: name.to_owned(),
                writable: kind == NewSnapshot::Writable,
            };
            remote.client.create_snapshot(request).await?.into()
        }
    };
    print(common.output, &made)
}

/// A snapshot of either kind.
pub async fn show(dataset: &str, name: &str, common: &Common) -> anyhow::Result<()> {
    let shown = match common.place.target().await? {
        Target::Pool(opened) => {
            SnapshotShown::of(&opened.browser.find_snapshot(dataset, name).await?)
        }
        Target::Server(remote) => {
            let (client, pool) = (&remote.client, &remote.pool);
            patiently(async || client.snapshot(pool, dataset, name).await).await?.into()
        }
    };
    print(common.output, &shown)
}

pub fn print(output: Output, shown: &SnapshotShown) -> anyhow::Result<()> {
    output.print(shown, |shown| info::snapshots(std::slice::from_ref(shown)))
}

pub async fn list(dataset: Option<&str>, common: &Common) -> anyhow::Result<()> {
    let mut shown: Vec<SnapshotShown> = match common.place.target().await? {
        Target::Pool(opened) => {
            let of = match dataset {
                Some(name) => Some(opened.browser.dataset_or_deleted(name).await?),
                None => None,
            };
            let found = opened.browser.snapshots(of.as_ref()).await?;
            found.iter().map(SnapshotShown::of).collect()
        }
        Target::Server(remote) => {
            let (client, pool) = (&remote.client, &remote.pool);
            let of = dataset.unwrap_or_default();
            let found = patiently(async || client.snapshots(pool, of).await).await?;
            found.into_iter().map(Into::into).collect()
        }
    };
    shown.sort_by(|a, b| (&a.dataset, &a.created, &a.name).cmp(&(&b.dataset, &b.created, &b.name)));
    common.output.print(&shown, |shown| info::snapshots(shown))
}

pub async fn delete((dataset, name): Name<'_>, common: &Common) -> anyhow::Result<()> {
    let on = common.place.target().await?;
    let dataset = on.name_or_default(dataset).await?;
    let full = format!("{dataset}@{name}");
    match &on {
        Target::Pool(opened) => {
            if !opened.browser.delete_snapshot(&opened.controller, &dataset, name).await? {
                let why = format!("snapshot {full} does not exist: nothing to delete");
                return Err(Wrong::new(Class::NotFound, why));
            }
        }
        Target::Server(remote) => {
            remote.client.delete_snapshot(&remote.pool, &dataset, name).await?;
        }
    }
    common.output.print(&serde_json::json!({ "deleted": full }), |_| {
        format!(
            "deleted snapshot {full}; a running controller, or `zerofs-csi gc`, frees its space\n"
        )
    })
}

pub async fn hold(args: HoldArgs, change: HoldChange) -> anyhow::Result<()> {
    let Some((dataset, name)) = split_snapshot(&args.snapshot) else {
        let why = format!("{:?} is no snapshot: name it as DATASET@SNAPSHOT", args.snapshot);
        return Err(Wrong::new(Class::Invalid, why));
    };
    let holds = match args.common.place.target().await? {
        Target::Pool(opened) => {
            let (browser, controller) = (&opened.browser, &opened.controller);
            browser.change_hold(controller, (dataset, name), &args.tag, change).await?.holds
        }
        Target::Server(remote) => {
            let (client, pool) = (&remote.client, remote.pool.as_str());
            let changed: Result<proto::Snapshot, ClientError> = match change {
                HoldChange::Add => client.hold(pool, dataset, name, &args.tag).await,
                HoldChange::Release => client.release(pool, dataset, name, &args.tag).await,
            };
            changed?.holds
        }
    };
    let report = serde_json::json!({ "snapshot": args.snapshot, "holds": holds });
    args.common.output.print(&report, |_| match holds.as_slice() {
        [] => format!("snapshot {} is not held\n", args.snapshot),
        holds => format!("snapshot {} is held: {}\n", args.snapshot, holds.join(", ")),
    })
}
