//! `dataset restore`: brings a file or folder of a snapshot back, to a local path or in place.

use super::args::RestoreArgs;
use super::copy_out::{Overwrite, copy_out};
use super::exit::Wrong;
use super::report::{Progress, plural};
use super::target::{Opened, split_snapshot};
use crate::catalog::Snapshot;
use crate::control::RestoreInPlace;
use crate::types::{ByteSize, Class, Incarnation, VolumeHandle};
use std::os::unix::ffi::OsStrExt;

pub async fn run(args: RestoreArgs) -> anyhow::Result<()> {
    let Some((dataset, snapshot)) = split_snapshot(&args.snapshot) else {
        return Err(Wrong::new(
            Class::Invalid,
            format!("{:?} is not a snapshot: write DATASET@SNAPSHOT", args.snapshot),
        ));
    };
    // An empty variable of a script must not mean everything.
    if args.path.is_empty() || args.to.as_ref().is_some_and(|to| to.is_empty()) {
        return Err(Wrong::new(Class::Invalid, "the path is empty: use / to restore everything"));
    }
    let opened = args.common.pool.open().await?;
    let found = opened.snapshot(dataset, snapshot).await?;
    let Some(target) = &args.target else { return in_place(&args, &opened, &found).await };
    let progress = Progress::new();
    let overwrite = if args.force { Overwrite::Force } else { Overwrite::Refuse };
    let stop = crate::app::stop_signal()?;
    let restored =
        copy_out(&opened, &found, args.path.as_bytes(), target, overwrite, &progress, &stop).await;
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

/// Restores through the dataset's owner, if it has one.
async fn in_place(args: &RestoreArgs, opened: &Opened, snapshot: &Snapshot) -> anyhow::Result<()> {
    let volume = VolumeHandle { pool: opened.pool.id(), dataset: snapshot.dataset };
    let wanted = RestoreInPlace {
        call: Incarnation::random(),
        snapshot: snapshot.id(),
        from: args.path.as_bytes().into(),
        to: args.to.as_ref().unwrap_or(&args.path).as_bytes().into(),
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
