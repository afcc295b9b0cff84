//! `dataset restore`: brings a file or folder of a snapshot back, to a local path or in place.

use super::args::RestoreArgs;
use super::copy_out::{Overwrite, copy_out};
use super::exit::Wrong;
use super::path;
use super::report::{Progress, plural};
use super::target::{Opened, Root, split_snapshot};
use crate::control::RestoreInPlace;
use crate::types::{ByteSize, Class, Incarnation, VolumeHandle};
use std::os::unix::ffi::OsStrExt;

pub async fn run(args: RestoreArgs) -> anyhow::Result<()> {
    let source = args.source.as_ref().or(args.path.as_ref());
    let source = source.map_or(&b"/"[..], |path| path.as_bytes());
    path::not_empty(source, "use / to restore everything")?;
    if let Some(to) = &args.to {
        path::not_empty(to.as_bytes(), "use / to restore everything")?;
    }
    let opened = args.common.pool.open().await?;
    let root = root(&args, &opened).await?;
    let Some(target) = args.destination.as_ref().or(args.target.as_ref()) else {
        return in_place(&args, &opened, &root, source).await;
    };
    let progress = Progress::new();
    let overwrite = if args.force { Overwrite::Force } else { Overwrite::Refuse };
    let stop = crate::app::stop_signal()?;
    let restored = copy_out(&opened, &root, source, target, overwrite, &progress, &stop).await;
    drop(progress);
    args.common.output.print(&restored?, |restored| {
        let owners = match restored.owners_not_kept {
            0 => String::new(),
            n => {
                format!(
                    "; {n} belong to you instead of their owners (only root, with those ids in \
                     its user namespace, can set them)"
                )
            }
        };
        let links = match restored.links_not_kept {
            0 => String::new(),
            n => format!("; {n} hard links became separate objects"),
        };
        format!(
            "restored {}, {}{owners}{links}\n",
            plural(restored.objects, "object"),
            ByteSize(restored.bytes)
        )
    })
}

/// The snapshot that the arguments name, of either kind.
async fn root(args: &RestoreArgs, opened: &Opened) -> anyhow::Result<Root> {
    let full = match (&args.from, &args.snapshot) {
        (Some(from), None) => from.clone(),
        (None, Some(full)) if split_snapshot(full).is_some() => full.clone(),
        (of, Some(name)) => {
            let dataset = opened.dataset_or_default(of.as_deref()).await?;
            format!("{}@{name}", dataset.name)
        }
        (None, None) => String::new(),
    };
    if split_snapshot(&full).is_none() {
        return Err(Wrong::new(
            Class::Invalid,
            format!("{full:?} is not a snapshot: write DATASET@SNAPSHOT"),
        ));
    }
    opened.root(&full).await
}

/// Restores through the dataset's owner, if it has one.
async fn in_place(
    args: &RestoreArgs,
    opened: &Opened,
    root: &Root,
    source: &[u8],
) -> anyhow::Result<()> {
    let snapshot = match root {
        Root::Snapshot(snapshot) => snapshot,
        Root::Head(dataset) => {
            let why = format!(
                "{} is a writable snapshot: --in-place restores from read-only ones; copy the \
                 files to this machine instead",
                dataset.name
            );
            return Err(Wrong::new(Class::Precondition, why));
        }
    };
    let volume = VolumeHandle { pool: opened.pool.id(), dataset: snapshot.dataset };
    let wanted = RestoreInPlace {
        call: Incarnation::random(),
        snapshot: snapshot.id(),
        from: source.into(),
        to: args.to.as_ref().map_or(source, |to| to.as_bytes()).into(),
        overwrite: args.force,
    };
    let progress = Progress::new();
    let say = |now: crate::fs::Restored| {
        progress.say(&format!("{} objects, {}", now.objects, ByteSize(now.bytes)));
    };
    let restored = opened.controller.restore_in_place(volume, &wanted, &say).await;
    drop(progress);
    args.common.output.print(&restored?, |restored| {
        format!(
            "restored {}, {}, in place\n",
            plural(restored.objects, "object"),
            ByteSize(restored.bytes)
        )
    })
}
