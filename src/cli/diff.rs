//! `dataset diff`: the differences between two snapshots, or between a snapshot and the dataset as
//! it is, printed as they are found.

use super::args::DiffArgs;
use super::diff_stat::{DiffStat, Shape};
use super::exit::Wrong;
use super::path;
use super::remote::{Remote, kind, patiently};
use super::stopped::Stopped;
use super::target::{Opened, Target};
use crate::admin::grpc::proto;
use crate::app;
use crate::catalog::Snapshot;
use crate::control::browse::{Root, apart, split_snapshot};
use crate::fs::{Aspect, Difference, PathDifference};
use crate::types::{Class, DatasetId};
use serde::Serialize;
use std::io::{BufWriter, Write};
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// A line of `--json`.
#[derive(Serialize)]
struct DifferenceLine<'a> {
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

pub async fn run(args: DiffArgs) -> anyhow::Result<()> {
    // Killed without closing, this process would count as a reader for an hour, and retain a
    // snapshot that is deleted meanwhile (R14).
    let stop = app::stop_signal()?;
    let from = args.common.place.target().await?;
    let mut out = BufWriter::new(std::io::stdout());
    let format = if args.common.output.json { Format::Json } else { Format::Text };
    let shape = match (args.stat, args.tree) {
        (true, _) => Some(Shape::Flat),
        (false, true) => Some(Shape::Tree),
        (false, false) => None,
    };
    let mut stat = DiffStat::default();
    let each = |found: &PathDifference| match shape {
        None => tell(&mut out, found, format),
        Some(_) => {
            stat.count(found);
            Ok(())
        }
    };
    let told = match &from {
        Target::Pool(opened) => {
            let before = snapshot(opened, &args.before).await?;
            let after = after(opened, &args, &before).await?;
            let before = Root::Snapshot(before);
            let comparing = Box::pin(opened.browser.diff(&before, &after, each));
            let told = Stopped::unless(&stop, comparing).await;
            opened.browser.close().await;
            told
        }
        Target::Server(remote) => {
            let request = request(remote, &args)?;
            let comparing = Box::pin(through(remote, request, each));
            Stopped::unless(&stop, comparing).await
        }
    };
    let told = told.and_then(|()| Ok(out.flush()?));
    match told {
        Err(stopped) => stopped.end("the list of differences is not complete; run it again"),
        Ok(()) => match shape {
            Some(shape) => {
                args.common.output.print(&stat.report(shape), |report| report.text(shape))
            }
            None => Ok(()),
        },
    }
}

/// The comparison as a request to a server.
fn request(remote: &Remote, args: &DiffArgs) -> anyhow::Result<proto::DiffRequest> {
    let (dataset, before) =
        split_snapshot(&args.before).ok_or_else(|| no_snapshot(&args.before))?;
    let to_snapshot = match &args.after {
        None => String::new(),
        Some(text) if text == dataset => String::new(),
        Some(text) => match split_snapshot(text) {
            Some((of, after)) if of == dataset => after.to_owned(),
            _ => return Err(apart(&args.before, text).into()),
        },
    };
    Ok(proto::DiffRequest {
        pool: remote.pool.clone(),
        dataset: dataset.to_owned(),
        from_snapshot: before.to_owned(),
        to_snapshot,
    })
}

async fn through(
    remote: &Remote,
    request: proto::DiffRequest,
    mut each: impl FnMut(&PathDifference) -> Result<(), Stopped>,
) -> Result<(), Stopped> {
    let has_begun = AtomicBool::new(false);
    let mut tell = |told| {
        has_begun.store(true, Ordering::Relaxed);
        each(&found(told)?)
    };
    // Differences that were told are not told again.
    patiently(async || match remote.client.diff(request.clone(), &mut tell).await {
        Err(Stopped::Server(error)) if has_begun.load(Ordering::Relaxed) => {
            Err(Stopped::Other(error.into()))
        }
        done => done,
    })
    .await
}

/// A difference as a server tells it.
fn found(told: proto::Difference) -> anyhow::Result<PathDifference> {
    use proto::difference::Change;
    let aspects: Vec<Aspect> = told.aspects().filter_map(aspect).collect();
    let (kind, change) = (kind(told.kind())?, told.change());
    let difference = match change {
        Change::Added => Difference::Added,
        Change::Removed => Difference::Removed,
        Change::Changed => Difference::Changed(aspects),
        Change::Renamed => Difference::Renamed(told.from.into(), aspects),
        Change::Unspecified => {
            let why = "the server tells a difference that this program does not know: use one of \
                       the server's version";
            return Err(Wrong::new(Class::Unsupported, why));
        }
    };
    Ok(PathDifference { path: told.path.into(), kind, difference })
}

fn aspect(told: proto::difference::Aspect) -> Option<Aspect> {
    use proto::difference::Aspect as Told;
    Some(match told {
        Told::Content => Aspect::Content,
        Told::Entries => Aspect::Entries,
        Told::Mode => Aspect::Mode,
        Told::Owner => Aspect::Owner,
        Told::Times => Aspect::Times,
        Told::Links => Aspect::Links,
        Told::Replaced => Aspect::Replaced,
        // One of a later version.
        Told::Unspecified => return None,
    })
}

/// The later state: a second snapshot, or the dataset as it is.
async fn after(opened: &Opened, args: &DiffArgs, before: &Snapshot) -> anyhow::Result<Root> {
    let Some(text) = &args.after else { return live(opened, before.dataset).await };
    let apart = || apart(&args.before, text);
    // `DATASET@SNAPSHOT`, unless a dataset has that very name.
    if split_snapshot(text).is_some() && opened.browser.record(text).await?.is_none() {
        let after = snapshot(opened, text).await?;
        return match after.dataset == before.dataset {
            true => Ok(Root::Snapshot(after)),
            false => Err(apart().into()),
        };
    }
    match opened.browser.dataset(text).await? {
        live if live.id() == before.dataset => Ok(Root::Head(live)),
        _ => Err(apart().into()),
    }
}

async fn snapshot(opened: &Opened, text: &str) -> anyhow::Result<Snapshot> {
    match split_snapshot(text) {
        Some((dataset, name)) => Ok(opened.browser.snapshot(dataset, name).await?),
        None => Err(no_snapshot(text)),
    }
}

fn no_snapshot(text: &str) -> anyhow::Error {
    Wrong::new(Class::Invalid, format!("{text:?} is not a snapshot: write DATASET@SNAPSHOT"))
}

/// The dataset as the store has it: one state, however long it is read and whatever is written
/// meanwhile, without the unsynced changes of its owner. Nothing retains that state: an hour after
/// it was superseded, reading it may fail with an error.
async fn live(opened: &Opened, id: DatasetId) -> anyhow::Result<Root> {
    let catalog = &opened.pool.catalog;
    let gone = || {
        Wrong::new(Class::NotFound, "the dataset was deleted: name a second snapshot".to_owned())
    };
    Ok(Root::Head(catalog.dataset_by_id(id).await?.ok_or_else(gone)?.record))
}

fn tell(out: &mut impl Write, found: &PathDifference, format: Format) -> Result<(), Stopped> {
    if format == Format::Json {
        let (change, from, aspects): (_, Option<&[u8]>, &[Aspect]) = match &found.difference {
            Difference::Added => ("added", None, &[]),
            Difference::Removed => ("removed", None, &[]),
            Difference::Changed(aspects) => ("changed", None, aspects),
            Difference::Renamed(from, aspects) => ("renamed", Some(from), aspects),
        };
        let line = DifferenceLine {
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
