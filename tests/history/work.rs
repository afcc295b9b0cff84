//! Doing an operation on the pool, and on the model as it is answered.

use crate::model::{Model, Origin, Pending};
use crate::ops::{Op, Where, bytes};
use crate::play::Tally;
use crate::support::files::{GUARDED, name, top};
use crate::world::Process;
use bytes::Bytes;
use std::cell::RefCell;
use std::time::Duration;
use zerofs_csi::catalog::State;
use zerofs_csi::control::{ControlError, Source};
use zerofs_csi::fs::FsError;
use zerofs_csi::fs::api::{Caller, FileRef, FileSystem, SetAttr, Stability};
use zerofs_csi::types::{Class, Classify, SnapshotHandle, Timestamp, VolumeHandle};

/// Attempts of a call that fails with a retryable error.
pub const TRIES: usize = 12;
pub const PAUSE: Duration = Duration::from_millis(500);
/// Retries a call while its error is retryable; a name that is not free yet is an answer.
pub async fn again<T>(
    mut call: impl AsyncFnMut() -> Result<T, ControlError>,
) -> Result<T, ControlError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match Box::pin(call()).await {
            Err(error) if !is_final(&error) && tries < TRIES => tokio::time::sleep(PAUSE).await,
            answer => return answer,
        }
    }
}

pub fn is_final(error: &ControlError) -> bool {
    matches!(error, ControlError::NameInUse { .. })
        || !matches!(error.class(), Class::Unavailable | Class::InProgress)
}

pub async fn collect(process: &Process, at: Where, tally: &RefCell<Tally>) -> Result<(), String> {
    let done = again(async || process.collect(at).await)
        .await
        .map_err(|error| format!("collecting {at:?}: {error}"))?;
    tally.borrow_mut().collected(&done);
    Ok(())
}

/// A collector that runs again and again.
pub struct Beside<'a> {
    process: &'a Process,
    at: Option<Where>,
    tally: &'a RefCell<Tally>,
}

pub fn beside<'a>(
    process: &'a Process,
    at: Option<Where>,
    tally: &'a RefCell<Tally>,
) -> Beside<'a> {
    Beside { process, at, tally }
}

impl Beside<'_> {
    /// Does `work` beside the collector, which is cut off at its end unless it may finish.
    pub async fn during(
        self,
        work: impl Future<Output = Result<(), String>>,
        finishes: bool,
    ) -> Result<(), String> {
        let Some(at) = self.at else { return work.await };
        let mut work = std::pin::pin!(work);
        loop {
            let mut pass = std::pin::pin!(collect(self.process, at, self.tally));
            tokio::select! {
                done = &mut work => {
                    if finishes {
                        pass.await?;
                    }
                    return done;
                }
                passed = &mut pass => passed?,
            }
        }
    }
}

pub async fn perform(
    process: &Process,
    model: &mut Model,
    op: &Op,
    tally: &RefCell<Tally>,
) -> Result<(), String> {
    match op {
        Op::Create { name, from } => {
            tally.borrow_mut().datasets += 1;
            create(process, model, name, from).await
        }
        Op::Write { of, file, at, seeds, odd, sync } => {
            write(process, model, *of, file, *at, &bytes(seeds, *odd)).await?;
            if *sync { sync_file(process, model, *of, file).await } else { Ok(()) }
        }
        Op::Resize { of, file, size } => resize(process, model, *of, file, *size).await,
        Op::Remove { of, file } => remove(process, model, *of, file).await,
        Op::Sync { of } => {
            let files: Vec<String> =
                model.dataset(*of).map(|d| d.files.keys().cloned().collect()).unwrap_or_default();
            for file in files {
                sync_file(process, model, *of, &file).await?;
            }
            Ok(())
        }
        Op::Snapshot { of, name } => {
            tally.borrow_mut().snapshots += 1;
            snapshot(process, model, *of, name).await
        }
        Op::Restore { from, to, file } => restore(process, model, *from, *to, file).await,
        Op::DeleteSnapshot(handle) => delete_snapshot(process, model, *handle).await,
        Op::Delete(handle) => delete(process, model, *handle).await,
        Op::DeleteOpen(handle) => {
            let _open = process.open(*handle).await?;
            match process.controller.delete_volume(*handle).await {
                Err(error) if error.class() == Class::Precondition => Ok(()),
                other => Err(format!("an open volume is deleted: {other:?}")),
            }
        }
        Op::Close(handle) => close(process, model, *handle).await,
        Op::CloseAll => {
            for handle in model.datasets.iter().map(|dataset| dataset.handle).collect::<Vec<_>>() {
                close(process, model, handle).await?;
            }
            Ok(())
        }
        Op::Collect(at) => collect(process, *at, tally).await,
        Op::Idle { millis } => {
            tokio::time::sleep(Duration::from_millis(*millis)).await;
            Ok(())
        }
        Op::Compare => compare(process, model).await,
    }
}

pub async fn create(
    process: &Process,
    model: &mut Model,
    name: &str,
    from: &Origin,
) -> Result<(), String> {
    let source = match from {
        Origin::Nothing => None,
        Origin::Snapshot(handle) => Some(Source::Snapshot(*handle)),
        Origin::Volume(handle) => Some(Source::Volume(*handle)),
    };
    if let Some(live) =
        model.datasets.iter().find(|dataset| dataset.name == name).map(|dataset| dataset.handle)
    {
        return match again(async || process.create(name, source.clone()).await).await {
            Ok(made) if made.handle == live => Ok(()),
            Err(error) if error.class() == Class::Exists => Ok(()),
            other => Err(format!("{name} is there, and its creation answers {other:?}")),
        };
    }
    let content = match from {
        Origin::Nothing => Default::default(),
        Origin::Snapshot(handle) => {
            model.snapshots.iter().find(|s| s.handle == *handle).expect("it is there").files.clone()
        }
        Origin::Volume(handle) => model.dataset(*handle).expect("it is there").content(),
    };
    model.pending = Some(Pending::Create { name: name.to_owned(), from: from.clone() });
    match again(async || process.create(name, source.clone()).await).await {
        Ok(made) => {
            model.made(name, made.handle, content);
            if let Origin::Volume(handle) = from
                && let Some(source) = model.dataset(*handle)
            {
                source.all_synced();
            }
        }
        Err(ControlError::NameInUse { .. }) => {}
        Err(ControlError::Catalog(_)) => model.abandoned.push((name.to_owned(), from.clone())),
        // As ALREADY_EXISTS of CSI: the volume is there, made from another source.
        Err(error) if error.class() == Class::Exists && gave_way(process, model, name).await? => {}
        Err(error) => {
            return Err(format!("creating {name} from {from:?}: {error} ({:?})", error.class()));
        }
    }
    model.pending = None;
    Ok(())
}

/// Deletes the volume that took a name by arriving after its creation was given up, as whoever
/// finds it would. Whether it is such a one.
async fn gave_way(process: &Process, model: &Model, name: &str) -> Result<bool, String> {
    let found = process.catalog.dataset(&name.parse().unwrap()).await;
    let found = found.map_err(|error| format!("who has the name {name}: {error}"))?;
    if !found.is_some_and(|at| model.may_have_arrived(name, at.record.origin)) {
        return Ok(false);
    }
    give_up(process, name).await.map(|()| true)
}

/// Lets a day pass for what was begun and never finished: a put of a process that died may arrive
/// when nobody asks for it.
pub async fn a_day_later(process: &Process) -> Result<(), String> {
    const DAY_NANOS: i64 = 25 * 3600 * 1_000_000_000;
    let catalog = &process.catalog;
    let begun = |state: &State| *state == State::Creating;
    let earlier = |at: Timestamp| Timestamp::from_nanos(at.as_nanos() - DAY_NANOS);
    for at in catalog.datasets().await.unwrap().into_iter().filter(|at| begun(&at.record.state)) {
        let aged = catalog.update_dataset(at.record.id(), |dataset| {
            dataset.created = earlier(dataset.created);
            Ok(())
        });
        aged.await.map_err(|error| error.to_string())?;
    }
    for at in
        catalog.snapshots(None).await.unwrap().into_iter().filter(|at| begun(&at.record.state))
    {
        let aged = catalog.update_snapshot(at.record.id(), |snapshot| {
            snapshot.created = earlier(snapshot.created);
            Ok(())
        });
        aged.await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Deletes what a creation may have begun.
pub async fn give_up(process: &Process, name: &str) -> Result<(), String> {
    let wrong = |error: &dyn std::fmt::Display| format!("giving {name} up: {error}");
    let found =
        process.catalog.dataset(&name.parse().unwrap()).await.map_err(|error| wrong(&error))?;
    let Some(found) = found.filter(|at| matches!(at.record.state, State::Ready | State::Creating))
    else {
        return Ok(());
    };
    let handle = VolumeHandle { pool: process.catalog.pool().id, dataset: found.record.id() };
    again(async || process.controller.delete_volume(handle).await)
        .await
        .map_err(|error| wrong(&error))
}

pub async fn snapshot(
    process: &Process,
    model: &mut Model,
    of: VolumeHandle,
    name: &str,
) -> Result<(), String> {
    let live = model.snapshots.iter().find(|s| s.of == of && s.name == name).map(|s| s.handle);
    let content = model.dataset(of).expect("it is there").content();
    if live.is_none() {
        model.pending = Some(Pending::Snapshot { of, name: name.to_owned() });
    }
    let made =
        again(async || process.controller.create_snapshot(of, name.parse().unwrap()).await).await;
    match (made, live) {
        (Ok(made), Some(live)) if made.handle == live => {}
        (Ok(made), None) => {
            model.snapshots.push(crate::model::Snapshot {
                name: name.to_owned(),
                of,
                handle: made.handle,
                files: content,
                going: false,
            });
            model.dataset(of).expect("it is there").all_synced();
        }
        // An earlier one of that name is deleted, and clones keep it.
        (Err(error), None) if error.class() == Class::InProgress => {}
        (other, _) => return Err(format!("snapshot {name} of {of}, which is {live:?}: {other:?}")),
    }
    model.pending = None;
    Ok(())
}

pub async fn delete_snapshot(
    process: &Process,
    model: &mut Model,
    handle: SnapshotHandle,
) -> Result<(), String> {
    model.snapshots.iter_mut().filter(|s| s.handle == handle).for_each(|s| s.going = true);
    let deleted = again(async || process.controller.delete_snapshot(handle).await).await;
    deleted.map_err(|error| format!("deleting {handle}: {error}"))?;
    model.snapshots.retain(|s| s.handle != handle);
    Ok(())
}

pub async fn delete(
    process: &Process,
    model: &mut Model,
    handle: VolumeHandle,
) -> Result<(), String> {
    model.datasets.iter_mut().filter(|d| d.handle == handle).for_each(|d| d.going = true);
    close(process, model, handle).await?;
    let mut deleted = again(async || process.controller.delete_volume(handle).await).await;
    if deleted.as_ref().is_err_and(|error| error.class() == Class::Precondition) {
        // A process that died has it.
        drop(process.open(handle).await?);
        close(process, model, handle).await?;
        deleted = again(async || process.controller.delete_volume(handle).await).await;
    }
    deleted.map_err(|error| format!("deleting {handle}: {error}"))?;
    model.datasets.retain(|d| d.handle != handle);
    Ok(())
}

pub async fn close(
    process: &Process,
    model: &mut Model,
    handle: VolumeHandle,
) -> Result<(), String> {
    let open = process.volumes.get(handle.dataset).is_some();
    let closed = again(async || Ok(Box::pin(process.volumes.close(handle.dataset)).await?)).await;
    closed.map_err(|error| format!("closing {handle}: {error}"))?;
    if let Some(dataset) = model.dataset(handle).filter(|_| open) {
        dataset.all_synced();
    }
    Ok(())
}

pub async fn compare(process: &Process, model: &mut Model) -> Result<(), String> {
    for handle in model.datasets.iter().map(|dataset| dataset.handle).collect::<Vec<_>>() {
        let was_open = process.volumes.get(handle.dataset).is_some();
        let found = process.read(handle).await?;
        model.dataset(handle).expect("it is there").compare(&found)?;
        if !was_open {
            close(process, model, handle).await?;
        }
    }
    for snapshot in &model.snapshots {
        snapshot.compare(&process.read_snapshot(snapshot.handle).await?)?;
    }
    // A process that dies while it reads keeps a snapshot for an hour.
    process.volumes.open_snapshots().close().await;
    Ok(())
}

fn wrong(doing: &str, of: VolumeHandle, file: &str) -> impl Fn(FsError) -> String {
    move |error| format!("{doing} {file} of {of}: {error}")
}

pub async fn find<F: FileSystem>(fs: &F, file: &str) -> Result<FileRef, FsError> {
    Ok(top::child(fs, file).await?.file)
}

pub async fn write(
    process: &Process,
    model: &mut Model,
    of: VolumeHandle,
    file: &str,
    at: usize,
    data: &[u8],
) -> Result<(), String> {
    let wrong = wrong("writing", of, file);
    let (open, caller) = (process.open(of).await?, Caller::root());
    let dataset = model.dataset(of).expect("it is there");
    if !dataset.files.contains_key(file) {
        dataset.begin(file, Some(vec![]));
        open.fs.create(&caller, open.fs.root(), &name(file), GUARDED).await.map_err(&wrong)?;
        dataset.made(file);
    }
    let mut next = dataset.files[file].now().clone();
    next.resize(next.len().max(at + data.len()), 0);
    next[at..at + data.len()].copy_from_slice(data);
    let found = find(&*open.fs, file).await.map_err(&wrong)?;
    dataset.begin(file, Some(next));
    let data = Bytes::copy_from_slice(data);
    open.fs.write(&caller, found, at as u64, data, Stability::Unstable).await.map_err(&wrong)?;
    Ok(())
}

pub async fn sync_file(
    process: &Process,
    model: &mut Model,
    of: VolumeHandle,
    file: &str,
) -> Result<(), String> {
    let wrong = wrong("committing", of, file);
    let open = process.open(of).await?;
    let found = find(&*open.fs, file).await.map_err(&wrong)?;
    open.fs.commit(&Caller::root(), found, 0, 0).await.map_err(&wrong)?;
    model.dataset(of).expect("it is there").synced(file);
    Ok(())
}

pub async fn resize(
    process: &Process,
    model: &mut Model,
    of: VolumeHandle,
    file: &str,
    size: usize,
) -> Result<(), String> {
    let dataset = model.dataset(of).expect("it is there");
    let Some(before) = dataset.files.get(file).map(|file| file.now().clone()) else {
        return Ok(());
    };
    let wrong = wrong("resizing", of, file);
    let open = process.open(of).await?;
    let found = find(&*open.fs, file).await.map_err(&wrong)?;
    let mut next = before;
    next.resize(size, 0);
    dataset.begin(file, Some(next));
    let set = SetAttr { size: Some(size as u64), ..SetAttr::default() };
    open.fs.setattr(&Caller::root(), found, set, None).await.map_err(&wrong)?;
    dataset.resized(file, size);
    Ok(())
}

pub async fn remove(
    process: &Process,
    model: &mut Model,
    of: VolumeHandle,
    file: &str,
) -> Result<(), String> {
    let dataset = model.dataset(of).expect("it is there");
    if !dataset.files.contains_key(file) {
        return Ok(());
    }
    let open = process.open(of).await?;
    dataset.begin(file, None);
    let removed = open.fs.remove(&Caller::root(), open.fs.root(), &name(file)).await;
    removed.map_err(wrong("removing", of, file))?;
    dataset.removed(file);
    Ok(())
}

async fn restore(
    process: &Process,
    model: &mut Model,
    from: SnapshotHandle,
    to: VolumeHandle,
    file: &str,
) -> Result<(), String> {
    let snapshot = process.read_snapshot(from).await?;
    process.volumes.open_snapshots().close().await;
    let Some(content) = snapshot.get(file) else { return Ok(()) };
    resize(process, model, to, file, 0).await?;
    if !content.is_empty() {
        write(process, model, to, file, 0, content).await?;
    }
    sync_if_there(process, model, to, file).await
}

async fn sync_if_there(
    process: &Process,
    model: &mut Model,
    of: VolumeHandle,
    file: &str,
) -> Result<(), String> {
    let there = model.dataset(of).is_some_and(|dataset| dataset.files.contains_key(file));
    if there { sync_file(process, model, of, file).await } else { Ok(()) }
}

/// Keys of data objects and records that are left in the pool.
pub async fn left(process: &Process) -> Vec<String> {
    let bucket = process.catalog.bucket();
    let mut left = vec![];
    for prefix in ["rewrite-pending/", "packs/", "vol/"] {
        left.extend(bucket.list(prefix).await.unwrap().into_iter().map(|object| object.key));
    }
    left.extend(
        process
            .catalog
            .datasets()
            .await
            .unwrap()
            .into_iter()
            .map(|at| format!("dataset {}", at.record.name)),
    );
    left.extend(
        process
            .catalog
            .snapshots(None)
            .await
            .unwrap()
            .into_iter()
            .map(|at| format!("snapshot {}", at.record.name)),
    );
    left
}
