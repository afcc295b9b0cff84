//! `dataset restore --in-place`: brings files and folders of a snapshot back into its dataset,
//! through the dataset's owner if it has one.

use super::args::RestoreArgs;
use super::copy_out::{How, Overwrite};
use super::dry_run::{self, Counted};
use super::exit::{Interrupted, Wrong};
use super::files::{Files, OpenFiles};
use super::remote::{Named, Remote};
use super::report::{Progress, after_others};
use super::target::{Opened, Target};
use crate::admin::grpc::proto;
use crate::app;
use crate::catalog::{Snapshot, State};
use crate::control::browse::Root;
use crate::control::{Replaced, RestoreInPlace};
use crate::fs::Restored as InPlace;
use crate::types::{ByteSize, Class, Incarnation, VolumeHandle, plural};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use tokio_util::sync::CancellationToken;

/// `snapshot`: as `DATASET@SNAPSHOT`.
pub async fn run(
    args: &RestoreArgs,
    from: &Target,
    snapshot: &str,
    sources: &[Vec<u8>],
    how: How,
) -> anyhow::Result<()> {
    let work = Work { args, sources, how };
    if !args.dry_run {
        let restored = match from {
            Target::Pool(opened) => work.restore(opened, &frozen(opened, snapshot).await?).await?,
            Target::Server(remote) => work.restore_through(remote, snapshot).await?,
        };
        return args.common.output.print(&restored, |restored| {
            format!(
                "restored {}, {}, in place\n",
                plural(restored.objects, "object"),
                ByteSize(restored.bytes)
            )
        });
    }
    let stop = app::stop_signal()?;
    let (before, now) = match from {
        Target::Pool(opened) => {
            let snapshot = frozen(opened, snapshot).await?;
            let head = head(opened, &snapshot).await?;
            let before = OpenFiles::store(opened, &Root::Snapshot(snapshot)).await?;
            match OpenFiles::store(opened, &head).await {
                Ok(now) => (before, now),
                Err(error) => {
                    before.close().await;
                    return Err(error);
                }
            }
        }
        Target::Server(remote) => {
            let (dataset, _) = frozen_there(remote, snapshot).await?;
            let before = OpenFiles::server(remote, snapshot).await?;
            (before, OpenFiles::server(remote, &dataset).await?)
        }
    };
    let counted = work.count((before.files(), now.files()), &stop).await;
    // Also after an error: nothing may stay retained.
    before.close().await;
    now.close().await;
    let counted = counted?;
    args.common.output.print(&counted, |counted| counted.done.text(args.dry_run))?;
    counted.check()
}

fn writable(name: &str) -> anyhow::Error {
    let why = format!(
        "{name} is a writable snapshot: --in-place restores from read-only ones; copy the files to \
         this machine instead"
    );
    Wrong::new(Class::Precondition, why)
}

/// The read-only snapshot of that name.
async fn frozen(opened: &Opened, name: &str) -> anyhow::Result<Snapshot> {
    match opened.browser.root_named(name).await? {
        Root::Snapshot(snapshot) => Ok(snapshot),
        Root::Head(dataset) => Err(writable(dataset.name.as_str())),
    }
}

async fn frozen_there(remote: &Remote, name: &str) -> anyhow::Result<(String, String)> {
    match remote.named(name).await? {
        Named::Snapshot { dataset, snapshot } => Ok((dataset, snapshot)),
        Named::Dataset(dataset) => Err(writable(&dataset.name)),
    }
}

/// The dataset of a snapshot, as the store has it.
async fn head(opened: &Opened, snapshot: &Snapshot) -> anyhow::Result<Root> {
    let absent = || {
        let why = "the snapshot's dataset was deleted: copy the files to this machine instead";
        Wrong::new(Class::NotFound, why)
    };
    let dataset = opened.pool.catalog.dataset_by_id(snapshot.dataset).await?;
    let dataset = dataset.map(|at| at.record).filter(|it| it.state == State::Ready);
    Ok(Root::Head(dataset.ok_or_else(absent)?))
}

struct Work<'a> {
    args: &'a RestoreArgs,
    sources: &'a [Vec<u8>],
    how: How,
}

impl Work<'_> {
    /// The place of a path in the dataset.
    fn place<'b>(&'b self, source: &'b [u8]) -> &'b [u8] {
        self.args.to.as_ref().map_or(source, |to| to.as_bytes())
    }

    fn overwrites(&self) -> bool {
        self.how.overwrite != Overwrite::Refuse
    }

    async fn restore(&self, opened: &Opened, snapshot: &Snapshot) -> anyhow::Result<InPlace> {
        let volume = VolumeHandle { pool: opened.pool.id(), dataset: snapshot.dataset };
        let replaced = if self.args.keep { Replaced::KeptBeside } else { Replaced::Removed };
        let (progress, stop) = (Progress::new(), app::stop_signal()?);
        let mut restored = InPlace::default();
        for (n, source) in self.sources.iter().enumerate() {
            let wanted = RestoreInPlace {
                call: Incarnation::random(),
                snapshot: snapshot.id(),
                from: source.into(),
                to: self.place(source).into(),
                overwrite: self.overwrites(),
            };
            let before = restored;
            let say = |now: InPlace| {
                tell(&progress, before.objects + now.objects, before.bytes + now.bytes);
                match stop.is_cancelled() {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            };
            let controller = &opened.controller;
            let done = controller.restore_in_place_with(volume, &wanted, replaced, &say).await;
            let done = done.inspect_err(|_| progress.say(""));
            if done.is_err() && stop.is_cancelled() {
                let why = "each file is as it was, or restored; run it again to restore the rest";
                return Err(Interrupted::new(why));
            }
            let done = after_others(done.map_err(Into::into), n, self.sources.len())?;
            restored.objects += done.objects;
            restored.bytes += done.bytes;
        }
        Ok(restored)
    }

    /// Through a server, which goes on when this command ends before it.
    async fn restore_through(&self, remote: &Remote, name: &str) -> anyhow::Result<InPlace> {
        let stop = app::stop_signal()?;
        let (dataset, snapshot) = frozen_there(remote, name).await?;
        let path = |source: &Vec<u8>| proto::RestorePath {
            source: source.clone(),
            destination: self.place(source).to_vec(),
        };
        let request = proto::RestoreRequest {
            pool: remote.pool.clone(),
            dataset,
            snapshot,
            paths: self.sources.iter().map(path).collect(),
            overwrite: self.overwrites(),
            dry_run: false,
            keep: self.args.keep,
        };
        let progress = Progress::new();
        let restoring =
            remote.client.restore(request, |task| tell(&progress, task.objects, task.bytes));
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => {
                return Err(Interrupted::new(
                    "the server goes on with the restore, which `zerofs-csi task list` shows and \
                     `zerofs-csi task stop` stops; run it again to restore what is missing",
                ));
            }
            ended = restoring => ended.inspect_err(|_| progress.say(""))?,
        };
        let task = ended.unwrap_or_default();
        if let Some((class, why)) = task.failed() {
            progress.say("");
            return Err(Wrong::new(class, why));
        }
        if task.outcome() != proto::task::Outcome::Done {
            let why = "the server stopped the restore before its end: run it again";
            return Err(Wrong::new(Class::Unavailable, why));
        }
        Ok(InPlace { objects: task.objects, bytes: task.bytes })
    }

    /// Counts what a restore would change.
    async fn count(
        &self,
        files: (Files<'_>, Files<'_>),
        stop: &CancellationToken,
    ) -> anyhow::Result<Counted> {
        let (progress, mut counted) = (Progress::new(), Counted::default());
        for source in self.sources {
            let paths = (source.as_slice(), self.place(source));
            let how = self.how.overwrite;
            let done = dry_run::count(files, paths, how, (&progress, stop), &mut counted).await;
            done.inspect_err(|_| progress.say(""))?;
        }
        Ok(counted)
    }
}

fn tell(progress: &Progress, objects: u64, bytes: u64) {
    progress.say(&format!("{objects} objects, {}", ByteSize(bytes)));
}
