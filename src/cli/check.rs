//! `check`: verifies the structure and counts of datasets and snapshots, and that every pack they
//! refer to exists.
//!
//! A dataset that a node has open is checked at a snapshot that is made for this and deleted
//! afterwards: its rows must be of one moment. Repairs (`--repair`) are made by this process as the
//! owner of a dataset that no other process has open.

use super::args::CheckArgs;
use super::exit::{Interrupted, Wrong, class_of};
use super::report::{Progress, table};
use super::target::Opened;
use crate::app;
use crate::catalog::{Dataset, Snapshot, State};
use crate::chunk::parse_object;
use crate::control::browse::{is_reserved, random_reserved, snapshot_name, split_snapshot};
use crate::fs::FsError;
use crate::fs::check::{self, Report};
use crate::fs::db::{self, Reader};
use crate::fs::key::Key;
use crate::fs::row::{Row, Usage};
use crate::types::{Class, Classify, PackId, SnapshotHandle, Timestamp, VolumeHandle, plural};
use crate::volume::{RootReader, repair_released};
use bytes::Bytes;
use serde::Serialize;
use std::collections::HashSet;
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;

/// No check of one dataset takes this long: an older snapshot is a leftover.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Serialize)]
struct Checked {
    /// `DATASET` or `DATASET@SNAPSHOT`.
    what: String,
    clean: bool,
    /// The state of the rows now, after any repair.
    report: Report,
    missing_packs: Vec<String>,
    /// Problems that `--repair` can fix.
    repairable: usize,
    /// Problems that were fixed.
    repaired: u64,
}

pub fn run(args: CheckArgs) -> anyhow::Result<()> {
    app::start_logging(&Default::default(), Some("warn"))?;
    app::run(async move {
        let opened = args.common.place.pool_itself().await?;
        let progress = Progress::new();
        let stop = app::stop_signal()?;
        let (checked, failed) = Box::pin(check_all(&opened, &args, &progress, &stop)).await?;
        drop(progress);
        let bad: Vec<&str> = checked.iter().filter(|c| !c.clean).map(|c| c.what.as_str()).collect();
        let verdict =
            if bad.is_empty() { Ok(()) } else { Err(format!("not clean: {}", bad.join(", "))) };
        args.common.output.print(&checked, |checked| text(checked))?;
        verdict.map_err(|why| Wrong::new(Class::Corrupt, why))?;
        failed.map_or(Ok(()), Err)
    })
}

/// Advice for an unreadable object of a database: no command of ours can rebuild it.
const DAMAGED: &str = "an object of its database is damaged or missing: put the object back from \
    another version or copy of the bucket; otherwise clone, or restore from, a snapshot that \
    `check` finds clean";

/// For credentials that may only read.
const NEEDS_SNAPSHOT: &str = "it is open on a node, so that checking it takes a snapshot, which \
    the credentials forbid: check one of its snapshots (DATASET@SNAPSHOT), or use credentials \
    that may write";

fn with_next_step(error: anyhow::Error) -> anyhow::Error {
    if class_of(&error) == Class::Corrupt { error.context(DAMAGED) } else { error }
}

/// The results, and the first failure to check: a dataset whose owner does not answer does not keep
/// the others from being checked.
async fn check_all(
    opened: &Opened,
    args: &CheckArgs,
    progress: &Progress,
    stop: &CancellationToken,
) -> anyhow::Result<(Vec<Checked>, Option<anyhow::Error>)> {
    let mut checked = Vec::new();
    let mut failed = None;
    let only = args.dataset.as_deref();
    if let Some((dataset, snapshot)) = only.and_then(split_snapshot)
        && opened.browser.record(&format!("{dataset}@{snapshot}")).await?.is_none()
    {
        let snapshot = opened.browser.snapshot(dataset, snapshot).await?;
        let found = check_snapshot(opened, dataset, &snapshot, stop).await?;
        checked.push(found.ok_or_else(|| deleted(&format!("{dataset}@{}", snapshot.name)))?);
        return Ok((checked, None));
    }
    if only.is_none()
        && let Err(error) = opened.pool.catalog.check_size().await
    {
        eprintln!("the store is not suitable: {error}");
        failed = Some(error.into());
    }
    let datasets: Vec<Dataset> = match only {
        Some(name) => vec![opened.browser.dataset(name).await?],
        None => opened.pool.catalog.datasets().await?.into_iter().map(|at| at.record).collect(),
    };
    // A deleted dataset may still have snapshots.
    for dataset in datasets.iter().filter(|d| matches!(d.state, State::Ready | State::Deleting)) {
        progress.say(&format!("checking dataset {}", dataset.name));
        remove_leftovers(opened, dataset).await?;
        let ready = dataset.state == State::Ready;
        let found = if ready {
            Box::pin(check_or_repair(opened, dataset, args.repair, stop)).await
        } else {
            Ok(None)
        };
        match found {
            Ok(found) => checked.extend(found),
            Err(error) if stop.is_cancelled() => return Err(error),
            Err(error) => {
                let error = with_next_step(error);
                eprintln!("not checked: dataset {}: {error:#}", dataset.name);
                failed.get_or_insert(error);
            }
        }
        for at in opened.pool.catalog.snapshots(Some(dataset.incarnation)).await? {
            if at.record.state != State::Ready {
                continue;
            }
            match check_snapshot(opened, dataset.name.as_str(), &at.record, stop).await {
                // None: deleted meanwhile, with its data.
                Ok(found) => checked.extend(found),
                Err(error) if stop.is_cancelled() => return Err(error),
                Err(error) => {
                    let error = with_next_step(error);
                    eprintln!(
                        "not checked: snapshot {}@{}: {error:#}",
                        dataset.name, at.record.name
                    );
                    failed.get_or_insert(error);
                }
            }
        }
    }
    Ok((checked, failed))
}

fn deleted(name: &str) -> anyhow::Error {
    Wrong::new(Class::NotFound, format!("snapshot {name} was deleted while it was checked"))
}

async fn is_gone(opened: &Opened, snapshot: &Snapshot) -> anyhow::Result<bool> {
    let now = opened.pool.catalog.snapshot_by_id(snapshot.id()).await?;
    Ok(now.is_none_or(|at| at.record.state != State::Ready))
}

async fn packs(opened: &Opened) -> anyhow::Result<HashSet<PackId>> {
    let name = |key: &str| {
        parse_object(key.strip_prefix("packs/")?.split_once('/')?.1).map(|(pack, _)| pack)
    };
    let mut listed = opened.pool.catalog.bucket().pages("packs/");
    let mut packs = HashSet::new();
    while let Some(page) = listed.next().await? {
        packs.extend(page.iter().filter_map(|object| name(&object.key)));
    }
    Ok(packs)
}

async fn check_or_repair(
    opened: &Opened,
    dataset: &Dataset,
    repair: bool,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Checked>> {
    let found = Box::pin(check_dataset(opened, dataset, stop)).await?;
    match found {
        Some(found) if repair && found.repairable > 0 => {
            let repaired = repair_released(
                opened.parts.volumes.settings(),
                &opened.pool.catalog,
                dataset.id(),
            )
            .await?;
            let again = Box::pin(check_dataset(opened, dataset, stop)).await?;
            Ok(again.map(|again| Checked { repaired: repaired.repaired, ..again }))
        }
        found => Ok(found),
    }
}

/// `None` for a dataset that was never opened, and has no rows; or that was deleted meanwhile.
async fn check_dataset(
    opened: &Opened,
    dataset: &Dataset,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Checked>> {
    let (settings, catalog) = (opened.parts.volumes.settings(), &opened.pool.catalog);
    if dataset.owner.is_none() {
        let Some(reader) = RootReader::head(settings, catalog, dataset).await? else {
            return Ok(None);
        };
        let checked = check_reader(opened, dataset.name.to_string(), reader, stop).await;
        let is_gone = async {
            let now = catalog.dataset_by_id(dataset.id()).await?;
            Ok(now.is_none_or(|at| at.record.state != State::Ready))
        };
        return unless_gone(checked, is_gone, stop).await;
    }
    if !db::exists(&settings.place(catalog, dataset.family, dataset.incarnation)).await? {
        return Ok(None);
    }
    let pool = opened.pool.id();
    let name = snapshot_name(&random_reserved())?;
    let (volume, of) = (VolumeHandle { pool, dataset: dataset.id() }, dataset.name.as_str());
    let checking = async {
        let cut = opened.controller.create_snapshot(volume, name.clone()).await;
        let cut = cut.map_err(|error| match error.class() {
            Class::Denied => anyhow::Error::from(error).context(NEEDS_SNAPSHOT),
            _ => error.into(),
        })?;
        let found = check_snapshot(opened, of, &cut.snapshot, stop).await?;
        found.ok_or_else(|| deleted(&format!("{of}@{name}")))
    };
    let checked = tokio::select! {
        checked = Box::pin(checking) => checked,
        () = stop.cancelled() => Err(stopped()),
    };
    // Deleted even if it was not finished.
    opened.browser.delete_snapshot(&opened.controller, of, name.as_str()).await?;
    Ok(Some(Checked { what: dataset.name.to_string(), ..checked? }))
}

fn stopped() -> anyhow::Error {
    Interrupted::new("not everything was checked; run it again")
}

/// Deletes the snapshots of checks that died.
async fn remove_leftovers(opened: &Opened, dataset: &Dataset) -> anyhow::Result<()> {
    let Some(before) = SystemTime::now().checked_sub(LEFTOVER_AGE).map(Timestamp::from) else {
        return Ok(());
    };
    for at in opened.pool.catalog.snapshots(Some(dataset.incarnation)).await? {
        let left =
            matches!(at.record.state, State::Ready | State::Creating) && at.record.created < before;
        if left && is_reserved(&at.record.name) && at.record.dependants.is_empty() {
            let handle = SnapshotHandle { pool: opened.pool.id(), snapshot: at.record.id() };
            opened.controller.delete_snapshot(handle).await?;
        }
    }
    Ok(())
}

/// `None` for a snapshot that was deleted meanwhile.
async fn check_snapshot(
    opened: &Opened,
    dataset: &str,
    snapshot: &Snapshot,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Checked>> {
    let what = format!("{dataset}@{}", snapshot.name);
    let (settings, catalog) = (opened.parts.volumes.settings(), &opened.pool.catalog);
    let checking = async {
        let (reader, _) = RootReader::snapshot_to_verify(settings, catalog, snapshot.id()).await?;
        if !reader.is_registered() {
            eprintln!(
                "{what}: the credentials may not write, so the snapshot is not registered as \
                 being read: a collection may remove it meanwhile"
            );
        }
        check_reader(opened, what, reader, stop).await
    };
    unless_gone(checking.await, is_gone(opened, snapshot), stop).await
}

/// `None` where what was checked was deleted meanwhile: its objects may have been removed while
/// they were read, so findings and failures prove nothing.
async fn unless_gone(
    checked: anyhow::Result<Checked>,
    is_gone: impl Future<Output = anyhow::Result<bool>>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Checked>> {
    match checked {
        Ok(checked) if checked.clean => Ok(Some(checked)),
        Err(error) if stop.is_cancelled() => Err(error),
        found if !is_gone.await? => found.map(Some),
        _ => Ok(None),
    }
}

async fn check_reader(
    opened: &Opened,
    what: String,
    reader: RootReader,
    stop: &CancellationToken,
) -> anyhow::Result<Checked> {
    let reading = async {
        Ok::<_, FsError>((check::check(reader.rows()).await?, referenced(reader.rows()).await?))
    };
    let read = tokio::select! {
        read = Box::pin(reading) => Some(read),
        () = stop.cancelled() => None,
    };
    let closed = reader.close().await;
    let (report, referenced) = read.ok_or_else(stopped)??;
    closed?;
    // Listed after the rows were read: a pack is stored before anything refers to it (R10).
    let packs = packs(opened).await?;
    let missing_packs: Vec<String> =
        referenced.iter().filter(|pack| !packs.contains(pack)).map(ToString::to_string).collect();
    let (clean, repairable) = (report.is_clean() && missing_packs.is_empty(), report.repairs.len());
    Ok(Checked { what, clean, report, missing_packs, repairable, repaired: 0 })
}

/// The packs that have references.
async fn referenced(reader: &Reader) -> Result<Vec<PackId>, FsError> {
    let mut pages = reader.pages(Bytes::from_static(b"U"), Bytes::from_static(b"V"));
    let mut found = Vec::new();
    while let Some(rows) = pages.next().await? {
        for (row_key, row) in &rows {
            // An undecodable usage row is a finding of the check itself.
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
        let verdict = match (c.clean, c.repaired, c.repairable) {
            (true, 0, _) => "clean".to_owned(),
            (true, repaired, _) => format!("clean, {repaired} repaired"),
            (false, _, 0) => plural(findings as u64, "finding"),
            (false, _, _) => {
                format!("{}; --repair fixes some", plural(findings as u64, "finding"))
            }
        };
        vec![c.what.clone(), c.report.inodes.to_string(), c.report.records.to_string(), verdict]
    };
    let mut text = table(
        &["NAME", "INODES", "RECORDS", "RESULT"],
        &checked.iter().map(row).collect::<Vec<_>>(),
    );
    for c in checked {
        c.report.findings.iter().for_each(|finding| text += &format!("{}: {finding}\n", c.what));
        c.missing_packs
            .iter()
            .for_each(|pack| text += &format!("{}: pack {pack} is missing\n", c.what));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_comes_with_the_next_step() {
        let damaged = with_next_step(
            FsError::Corrupt(
                "scanning rows: checksum mismatch in vol/a/compacted/b.sst".to_owned(),
            )
            .into(),
        );
        let text = format!("{damaged:#}");
        assert!(text.contains("put the object back") && text.contains("b.sst"), "{text}");
        assert_eq!(class_of(&damaged), Class::Corrupt);
        assert_eq!(with_next_step(FsError::NotFound.into()).chain().count(), 1);
    }
}
