//! `check`: the structure and counts of datasets and snapshots, and that every pack they refer to exists.
//!
//! A dataset that is open somewhere is checked at a snapshot made for this, and deleted afterwards: its rows must be of one
//! moment. What can be mended (`--repair`) is mended by this process as the owner of a dataset that nobody else has open.

use super::args::CheckArgs;
use super::exit::Wrong;
use super::report::{Progress, table};
use super::target::{Opened, snapshot_name, split_snapshot};
use crate::app;
use crate::catalog::{Dataset, Snapshot, State};
use crate::chunk::parse_object;
use crate::fs::FsError;
use crate::fs::check::{self, Report};
use crate::fs::db::{self, CheckpointId, Reader};
use crate::fs::key::Key;
use crate::fs::row::{Row, Usage};
use crate::types::{Class, PackId, SnapshotHandle, VolumeHandle};
use crate::volume::repair_released;
use bytes::Bytes;
use serde::Serialize;
use std::collections::HashSet;

#[derive(Serialize)]
struct Checked {
    /// `DATASET` or `DATASET@SNAPSHOT`.
    what: String,
    clean: bool,
    /// Of the rows as they are now.
    report: Report,
    missing_packs: Vec<String>,
    /// What could be put right by `--repair`.
    mendable: usize,
    /// What was put right.
    mended: u64,
}

pub fn run(args: CheckArgs) -> anyhow::Result<()> {
    app::start_logging(&Default::default(), Some("warn"))?;
    app::run(async move {
        let opened = args.common.pool.open().await?;
        let progress = Progress::new();
        let (checked, failed) = Box::pin(check_all(&opened, &args, &progress)).await?;
        drop(progress);
        let bad: Vec<&str> = checked.iter().filter(|c| !c.clean).map(|c| c.what.as_str()).collect();
        let verdict = if bad.is_empty() { Ok(()) } else { Err(format!("not clean: {}", bad.join(", "))) };
        args.common.output.print(&checked, |checked| text(checked))?;
        verdict.map_err(|why| Wrong::new(Class::Corrupt, why))?;
        failed.map_or(Ok(()), Err)
    })
}

/// What was checked, and the first of what could not be: a dataset whose owner does not answer keeps nobody from checking the others.
async fn check_all(
    opened: &Opened,
    args: &CheckArgs,
    progress: &Progress,
) -> anyhow::Result<(Vec<Checked>, Option<anyhow::Error>)> {
    let (mut checked, mut failed, only) = (Vec::new(), None, args.dataset.as_deref());
    if let Some((dataset, snapshot)) = only.and_then(split_snapshot) {
        let snapshot = opened.snapshot(dataset, snapshot).await?;
        checked.push(check_snapshot(opened, dataset, &snapshot).await?);
        return Ok((checked, None));
    }
    let datasets: Vec<Dataset> = match only {
        Some(name) => vec![opened.dataset(name).await?],
        None => opened.pool.catalog.datasets().await?.into_iter().map(|at| at.record).collect(),
    };
    // One that is deleted may have left snapshots.
    for dataset in datasets.iter().filter(|d| matches!(d.state, State::Ready | State::Deleting)) {
        progress.say(&format!("checking dataset {}", dataset.name));
        let found = if dataset.state == State::Ready { check_or_repair(opened, dataset, args.repair).await } else { Ok(None) };
        match found {
            Ok(found) => checked.extend(found),
            Err(error) => {
                eprintln!("not checked: dataset {}: {error:#}", dataset.name);
                failed.get_or_insert(error);
            }
        }
        for at in opened.pool.catalog.snapshots(Some(dataset.incarnation)).await? {
            if at.record.state != State::Ready {
                continue;
            }
            match check_snapshot(opened, dataset.name.as_str(), &at.record).await {
                Ok(found) => checked.push(found),
                // Deleted meanwhile, and what it held with it.
                Err(_) if is_gone(opened, &at.record).await? => {}
                Err(error) => {
                    eprintln!("not checked: snapshot {}@{}: {error:#}", dataset.name, at.record.name);
                    failed.get_or_insert(error);
                }
            }
        }
    }
    Ok((checked, failed))
}

async fn is_gone(opened: &Opened, snapshot: &Snapshot) -> anyhow::Result<bool> {
    let now = opened.pool.catalog.snapshot_by_id(snapshot.id()).await?;
    Ok(now.is_none_or(|at| at.record.state != State::Ready))
}

async fn packs(opened: &Opened) -> anyhow::Result<HashSet<PackId>> {
    let listed = opened.pool.catalog.bucket().list("packs/").await?;
    let name = |key: &str| parse_object(key.strip_prefix("packs/")?.split_once('/')?.1).map(|(pack, _)| pack);
    Ok(listed.iter().filter_map(|object| name(&object.key)).collect())
}

async fn check_or_repair(opened: &Opened, dataset: &Dataset, repair: bool) -> anyhow::Result<Option<Checked>> {
    let found = check_dataset(opened, dataset).await?;
    match found {
        Some(found) if repair && found.mendable > 0 => {
            let repaired = repair_released(opened.parts.volumes.settings(), &opened.pool.catalog, dataset.id()).await?;
            let again = check_dataset(opened, dataset).await?;
            Ok(again.map(|again| Checked { mended: repaired.mended, ..again }))
        }
        found => Ok(found),
    }
}

/// `None`: never opened, so there is nothing to check.
async fn check_dataset(opened: &Opened, dataset: &Dataset) -> anyhow::Result<Option<Checked>> {
    let place = opened.parts.volumes.settings().place(&opened.pool.catalog, dataset.family, dataset.incarnation);
    if !db::exists(&place).await? {
        return Ok(None);
    }
    if dataset.owner.is_none() {
        let reader = Reader::newest(&place).await?;
        return Ok(Some(check_reader(opened, dataset.name.to_string(), reader).await?));
    }
    let pool = opened.pool.id();
    let name = snapshot_name(&format!("check-{:016x}", rand::random::<u64>()))?;
    let cut = opened.controller.create_snapshot(VolumeHandle { pool, dataset: dataset.id() }, name, false).await?;
    let checked = check_snapshot(opened, dataset.name.as_str(), &cut.snapshot).await;
    opened.controller.delete_snapshot(SnapshotHandle { pool, snapshot: cut.snapshot.id() }).await?;
    Ok(Some(Checked { what: dataset.name.to_string(), ..checked? }))
}

async fn check_snapshot(opened: &Opened, dataset: &str, snapshot: &Snapshot) -> anyhow::Result<Checked> {
    let what = format!("{dataset}@{}", snapshot.name);
    let place = opened.parts.volumes.settings().place(&opened.pool.catalog, snapshot.family, snapshot.dataset.incarnation);
    let Some(checkpoint) = snapshot.checkpoint else {
        return Err(Wrong::new(Class::Corrupt, format!("snapshot {what} is ready but names no checkpoint")));
    };
    let reader = Reader::at_checkpoint(&place, CheckpointId(checkpoint)).await?;
    check_reader(opened, what, reader).await
}

async fn check_reader(opened: &Opened, what: String, reader: Reader) -> anyhow::Result<Checked> {
    let read = async { Ok::<_, FsError>((check::check(&reader).await?, referenced(&reader).await?)) }.await;
    let closed = reader.close().await;
    let (report, referenced) = read?;
    closed?;
    // Listed after the rows were read: a pack is stored before anything refers to it (R10).
    let packs = packs(opened).await?;
    let missing_packs: Vec<String> = referenced.iter().filter(|pack| !packs.contains(pack)).map(ToString::to_string).collect();
    let (clean, mendable) = (report.is_clean() && missing_packs.is_empty(), report.mends.len());
    Ok(Checked { what, clean, report, missing_packs, mendable, mended: 0 })
}

/// Packs with references.
async fn referenced(reader: &Reader) -> Result<Vec<PackId>, FsError> {
    let mut pages = reader.pages(Bytes::from_static(b"U"), Bytes::from_static(b"V"));
    let mut found = Vec::new();
    while let Some(rows) = pages.next().await? {
        for (row_key, row) in &rows {
            // What is no usage row is a finding of the check itself.
            if let (Some(Key::Usage(pack)), Ok(usage)) = (Key::parse(row_key), Usage::decode(row))
                && usage.refs > 0
            {
                found.push(pack);
            }
        }
    }
    Ok(found)
}

fn text(checked: &[Checked]) -> String {
    let row = |c: &Checked| {
        let findings = c.report.findings.len() + c.missing_packs.len();
        let verdict = match (c.clean, c.mended, c.mendable) {
            (true, 0, _) => "clean".to_owned(),
            (true, mended, _) => format!("clean, {mended} mended"),
            (false, _, 0) => format!("{findings} findings"),
            (false, _, _) => format!("{findings} findings, some for --repair"),
        };
        vec![c.what.clone(), c.report.inodes.to_string(), c.report.records.to_string(), verdict]
    };
    let mut text = table(&["NAME", "INODES", "RECORDS", "RESULT"], &checked.iter().map(row).collect::<Vec<_>>());
    for c in checked {
        c.report.findings.iter().for_each(|finding| text += &format!("{}: {finding}\n", c.what));
        c.missing_packs.iter().for_each(|pack| text += &format!("{}: pack {pack} is missing\n", c.what));
    }
    text
}
