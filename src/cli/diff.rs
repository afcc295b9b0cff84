//! `dataset diff`: the differences between two snapshots, or between a snapshot and the dataset as
//! it is, printed as they are found.

use super::args::DiffArgs;
use super::exit::{Interrupted, Wrong};
use super::path;
use super::target::{Opened, Root, split_snapshot};
use crate::app;
use crate::catalog::Snapshot;
use crate::fs::{Aspect, Difference, Found, FsError, compare};
use crate::types::{Class, DatasetId};
use crate::volume::RootView;
use serde::Serialize;
use std::io::{BufWriter, ErrorKind, Write};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// A line of `--json`.
#[derive(Serialize)]
struct Line<'a> {
    change: &'static str,
    path: String,
    /// The bytes of a path that is not UTF-8, in base 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_bytes: Option<String>,
    kind: &'static str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    aspects: &'a [Aspect],
}

#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error("writing the output: {0}")]
    Output(#[from] std::io::Error),
    #[error("stopped by a signal")]
    Signal,
}

pub async fn run(args: DiffArgs) -> anyhow::Result<()> {
    // Killed without closing, this process would count as a reader for an hour, and retain a
    // snapshot that is deleted meanwhile (R14).
    let stop = app::stop_signal()?;
    let opened = args.common.pool.open().await?;
    let before = snapshot(&opened, &args.before).await?;
    let after = match &args.after {
        None => None,
        Some(text) => match opened.pool.catalog.dataset(&super::target::dataset_name(text)?).await?
        {
            // `DATASET@SNAPSHOT`, unless a dataset has that very name.
            None if split_snapshot(text).is_some() => Some(snapshot(&opened, text).await?),
            _ => {
                let live = opened.dataset(text).await?;
                if live.id() != before.dataset {
                    return Err(apart(&args.before, text));
                }
                None
            }
        },
    };
    if after.as_ref().is_some_and(|after| after.dataset != before.dataset) {
        return Err(apart(&args.before, args.after.as_deref().unwrap_or_default()));
    }
    let dataset = before.dataset;
    let before = opened.view(&Root::Snapshot(before)).await?;
    let after = match after {
        Some(after) => opened.view(&Root::Snapshot(after)).await,
        None => live(&opened, dataset).await,
    };
    let after = match after {
        Ok(after) => after,
        Err(error) => {
            before.close().await?;
            return Err(error);
        }
    };
    let mut out = BufWriter::new(std::io::stdout());
    let format = if args.common.output.json { Format::Json } else { Format::Text };
    let comparing =
        Box::pin(compare(before.files(), after.files(), |found| tell(&mut out, &found, format)));
    let told = tokio::select! {
        biased;
        () = stop.cancelled() => Err(Stopped::Signal),
        told = comparing => told,
    };
    let told = told.and_then(|()| Ok(out.flush()?));
    let closed = before.close().await.and(after.close().await);
    match told {
        // The reader of the pipe has seen enough.
        Err(Stopped::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(Stopped::Output(error)) => Err(error.into()),
        Err(Stopped::Fs(error)) => Err(error.into()),
        Err(Stopped::Signal) => {
            Err(Interrupted::new("the list of differences is not complete; run it again"))
        }
        Ok(()) => Ok(closed?),
    }
}

async fn snapshot(opened: &Opened, text: &str) -> anyhow::Result<Snapshot> {
    match split_snapshot(text) {
        Some((dataset, name)) => opened.snapshot(dataset, name).await,
        None => Err(Wrong::new(
            Class::Invalid,
            format!("{text:?} is not a snapshot: write DATASET@SNAPSHOT"),
        )),
    }
}

fn apart(before: &str, after: &str) -> anyhow::Error {
    Wrong::new(
        Class::Invalid,
        format!(
            "{before} and {after} belong to different datasets: compare two states of one dataset"
        ),
    )
}

/// The dataset as the store has it: one state, however long it is read and whatever is written
/// meanwhile, without the unsynced changes of its owner. Nothing retains that state: an hour after
/// it was superseded, reading it may fail with an error.
async fn live(opened: &Opened, id: DatasetId) -> anyhow::Result<RootView> {
    let catalog = &opened.pool.catalog;
    let gone = || {
        Wrong::new(Class::NotFound, "the dataset was deleted: name a second snapshot".to_owned())
    };
    let dataset = catalog.dataset_by_id(id).await?.map(|at| at.record).ok_or_else(gone)?;
    opened.view(&Root::Head(dataset)).await
}

fn tell(out: &mut impl Write, found: &Found, format: Format) -> Result<(), Stopped> {
    if format == Format::Json {
        let (change, from, aspects): (_, Option<&[u8]>, &[Aspect]) = match &found.difference {
            Difference::Added => ("added", None, &[]),
            Difference::Removed => ("removed", None, &[]),
            Difference::Changed(aspects) => ("changed", None, aspects),
            Difference::Renamed(from, aspects) => ("renamed", Some(from), aspects),
        };
        let line = Line {
            change,
            path: path::lossy(&found.path),
            path_bytes: path::bytes(&found.path),
            from: from.map(path::lossy),
            from_bytes: from.and_then(path::bytes),
            kind: path::kind(found.kind),
            aspects,
        };
        let mut line = serde_json::to_vec(&line).map_err(std::io::Error::other)?;
        line.push(b'\n');
        return Ok(out.write_all(&line)?);
    }
    // A name may hold a line feed, which must not look like two lines.
    let path = path::shown(&found.path);
    let aspects = |aspects: &[Aspect]| match aspects {
        [] => String::new(),
        some => format!(
            "  ({})",
            some.iter().map(|aspect| name(*aspect)).collect::<Vec<_>>().join(", ")
        ),
    };
    match &found.difference {
        Difference::Added => writeln!(out, "+  {path}")?,
        Difference::Removed => writeln!(out, "-  {path}")?,
        Difference::Changed(what) => writeln!(out, "M  {path}{}", aspects(what))?,
        Difference::Renamed(from, what) => {
            writeln!(out, "R  {} -> {path}{}", path::shown(from), aspects(what))?;
        }
    }
    Ok(())
}

fn name(aspect: Aspect) -> &'static str {
    match aspect {
        Aspect::Content => "content",
        Aspect::Entries => "entries",
        Aspect::Mode => "mode",
        Aspect::Owner => "owner",
        Aspect::Times => "times",
        Aspect::Links => "links",
        Aspect::Replaced => "replaced",
    }
}
