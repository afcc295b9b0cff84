//! `dataset restore`: brings a file or folder of a snapshot back, to a local path or in place.

use super::args::RestoreArgs;
use super::copy_out::{Effect, How, Overwrite, Restored, copy_out};
use super::exit::Wrong;
use super::files::OpenFiles;
use super::path;
use super::report::{Progress, after_others};
use super::restore_in_place;
use super::target::Target;
use crate::control::browse::split_snapshot;
use crate::types::Class;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

pub async fn run(args: RestoreArgs) -> anyhow::Result<()> {
    let sources = sources(&args)?;
    if let Some(to) = &args.to {
        path::not_empty(to.as_bytes(), "use / to restore everything")?;
        if sources.len() > 1 {
            return Err(Wrong::new(Class::Invalid, "--to is the place of one path: name one"));
        }
    }
    let from = args.common.place.target().await?;
    let snapshot = snapshot(&args, &from).await?;
    let Some(target) = args.destination.as_ref().or(args.target.as_ref()) else {
        return restore_in_place::run(&args, &from, &snapshot, &sources, how(&args)).await;
    };
    let targets = targets(target, &sources)?;
    let stop = crate::app::stop_signal()?;
    let open = from.open(&snapshot).await?;
    let copied = copy(&args, &open, (&sources, &targets), &stop).await;
    open.close().await;
    args.common.output.print(&copied?, |restored| restored.text(args.dry_run))
}

async fn copy(
    args: &RestoreArgs,
    open: &OpenFiles,
    (sources, targets): (&[Vec<u8>], &[PathBuf]),
    stop: &CancellationToken,
) -> anyhow::Result<Restored> {
    let progress = Progress::new();
    let mut restored = Restored::default();
    for (n, (source, target)) in sources.iter().zip(targets).enumerate() {
        let copied = copy_out(open.files(), source, target, how(args), &progress, stop).await;
        // An error is printed on a line of its own.
        let copied = copied.inspect_err(|_| progress.say(""));
        restored.add(&after_others(copied, n, sources.len())?);
    }
    Ok(restored)
}

/// The paths to restore.
fn sources(args: &RestoreArgs) -> anyhow::Result<Vec<Vec<u8>>> {
    let given = args.source.iter().chain(&args.path);
    let mut sources: Vec<Vec<u8>> = given.map(|path| path.as_bytes().to_vec()).collect();
    for source in &sources {
        path::not_empty(source, "use / to restore everything")?;
    }
    if sources.is_empty() {
        sources.push(b"/".to_vec());
    }
    Ok(sources)
}

/// Where each path is restored to: with several, by its last name in the folder.
fn targets(target: &Path, sources: &[Vec<u8>]) -> anyhow::Result<Vec<PathBuf>> {
    if sources.len() == 1 {
        return Ok(vec![target.to_owned()]);
    }
    let mut targets = Vec::new();
    for source in sources {
        let last = source.split(|byte| *byte == b'/').rfind(|name| !matches!(*name, b"" | b"."));
        let Some(last) = last.filter(|name| *name != b"..") else {
            let why = "one of several paths is /, which has no name: restore it alone";
            return Err(Wrong::new(Class::Invalid, why));
        };
        let target = target.join(OsStr::from_bytes(last));
        if targets.contains(&target) {
            let why = format!(
                "two paths would be restored to {}: restore one of them to another place",
                target.display()
            );
            return Err(Wrong::new(Class::Invalid, why));
        }
        targets.push(target);
    }
    Ok(targets)
}

fn how(args: &RestoreArgs) -> How {
    let overwrite = match (args.changed, args.force || args.keep) {
        (true, _) => Overwrite::Changed,
        (false, true) => Overwrite::Force,
        (false, false) => Overwrite::Refuse,
    };
    let effect = match (args.dry_run, args.keep) {
        (true, _) => Effect::DryRun,
        (false, true) => Effect::KeepBeside,
        (false, false) => Effect::Replace,
    };
    How { overwrite, effect }
}

/// The snapshot that the arguments name, of either kind.
async fn snapshot(args: &RestoreArgs, from: &Target) -> anyhow::Result<String> {
    let full = match (&args.from, &args.snapshot) {
        (Some(from), None) => from.clone(),
        (None, Some(full)) if split_snapshot(full).is_some() => full.clone(),
        (of, Some(name)) => {
            let dataset = from.live_or_default(of.as_deref()).await?;
            format!("{dataset}@{name}")
        }
        (None, None) => String::new(),
    };
    if split_snapshot(&full).is_none() {
        return Err(Wrong::new(
            Class::Invalid,
            format!("{full:?} is not a snapshot: write DATASET@SNAPSHOT"),
        ));
    }
    Ok(full)
}
