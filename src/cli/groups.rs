//! `dataset list-groups` and `dataset delete-group`: group snapshots, whose snapshots are deleted
//! together or not at all.

use super::args::Common;
use super::exit::Wrong;
use super::report::table;
use super::target::{Opened, Target};
use crate::catalog::Dataset;
use crate::control::browse::Names;
use crate::types::{Class, GroupHandle, SnapshotName};
use serde::Serialize;

#[derive(Serialize)]
struct GroupShown {
    name: String,
    handle: String,
    state: String,
    created: String,
    /// Its snapshots, as `DATASET@SNAPSHOT`.
    snapshots: Vec<String>,
}

async fn opened(common: &Common) -> anyhow::Result<Opened> {
    match common.place.target().await? {
        Target::Pool(opened) => Ok(*opened),
        Target::Server(_) => {
            let why = "servers do not show group snapshots: give the pool by --pool or --config";
            Err(Wrong::new(Class::Unsupported, why))
        }
    }
}

pub async fn list(common: &Common) -> anyhow::Result<()> {
    let opened = opened(common).await?;
    let datasets: Vec<Dataset> =
        opened.pool.catalog.datasets().await?.into_iter().map(|at| at.record).collect();
    let names = Names::all(&opened.pool, &datasets).await?;
    let mut shown = Vec::new();
    for group in opened.pool.catalog.group_snapshots().await? {
        let group = group.record;
        let handle = GroupHandle { pool: opened.pool.id(), group: group.id() };
        shown.push(GroupShown {
            name: group.name.to_string(),
            handle: handle.to_string(),
            state: format!("{:?}", group.state).to_lowercase(),
            created: group.created.rfc3339(),
            snapshots: group.snapshots().map(|snapshot| names.snapshot(snapshot)).collect(),
        });
    }
    shown.sort_by(|a, b| (&a.created, &a.name).cmp(&(&b.created, &b.name)));
    common.output.print(&shown, |shown| {
        let row = |group: &GroupShown| {
            let GroupShown { name, state, created, snapshots, .. } = group;
            vec![name.clone(), state.clone(), created.clone(), snapshots.join(" ")]
        };
        table(
            &["NAME", "STATE", "CREATED", "SNAPSHOTS"],
            &shown.iter().map(row).collect::<Vec<_>>(),
        )
    })
}

pub async fn delete(name: &str, common: &Common) -> anyhow::Result<()> {
    let opened = opened(common).await?;
    let parsed: SnapshotName =
        name.parse().map_err(|error| Wrong::new(Class::Invalid, format!("{name:?}: {error}")))?;
    let Some(at) = opened.pool.catalog.group_snapshot(&parsed).await? else {
        let why = format!(
            "group snapshot {name} does not exist: `zerofs-csi dataset list-groups` lists all"
        );
        return Err(Wrong::new(Class::NotFound, why));
    };
    let group = GroupHandle { pool: opened.pool.id(), group: at.record.id() };
    opened.controller.delete_group_snapshot(group, None).await?;
    common.output.print(&serde_json::json!({ "deleted": name }), |_| {
        format!(
            "deleted group snapshot {name} with its snapshots; a running controller, or \
             `zerofs-csi gc`, frees their space\n"
        )
    })
}
