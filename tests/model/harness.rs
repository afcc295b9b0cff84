//! Does each operation on the file system and on the reference, and compares everything.

use crate::ops::{Ending, How, Kind, Op, Set, caller, generate};
use crate::reference::{Id, ROOT, ROOT_MODE, Reference, bytes};
use crate::support::volume::Dataset;
use rand::rngs::StdRng;
use std::collections::{BTreeMap, BTreeSet};
use zerofs_csi::bucket::Bucket;
use zerofs_csi::fs::api::*;
use zerofs_csi::fs::check::check;
use zerofs_csi::fs::db::{CheckpointId, Reader};
use zerofs_csi::fs::{Fs, FsError};
use zerofs_csi::types::{EntryName, Timestamp};

type Checked = Result<(), String>;

struct Snapshot {
    checkpoint: CheckpointId,
    reference: Reference,
}

pub struct Harness {
    dataset: Dataset,
    fs: Option<Fs>,
    reference: Reference,
    /// The handle of every object of the reference, in its order.
    files: Vec<FileRef>,
    /// As last seen, to see that ctime grows with every change (R8).
    seen: BTreeMap<Id, Attr>,
    dirty: BTreeSet<Id>,
    snapshots: Vec<Snapshot>,
    taken: usize,
    _journals: tempfile::TempDir,
}

fn name(bytes: &[u8]) -> EntryName {
    EntryName::try_from(bytes).unwrap()
}

fn class(error: &FsError) -> String {
    format!("{error:?}").split(['(', ' ']).next().unwrap_or_default().to_owned()
}

fn set_attr(set: &Set) -> SetAttr {
    SetAttr {
        mode: set.mode,
        uid: set.uid,
        gid: None,
        size: set.size,
        atime: SetTime::Keep,
        mtime: set.mtime.map_or(SetTime::Keep, |at| SetTime::To(Timestamp::from_nanos(at))),
    }
}

fn how(how: &How) -> CreateHow {
    match how {
        How::Unchecked { mode, size } => {
            CreateHow::Unchecked(SetAttr { mode: Some(*mode), size: *size, ..SetAttr::default() })
        }
        How::Guarded { mode } => {
            CreateHow::Guarded(SetAttr { mode: Some(*mode), ..SetAttr::default() })
        }
        How::Exclusive(verifier) => CreateHow::Exclusive(*verifier),
    }
}

impl Harness {
    pub async fn new() -> Self {
        let journals = tempfile::tempdir().unwrap();
        let mut dataset = Dataset::new(Bucket::memory(), journals.path().to_owned());
        dataset.options.properties.quota_inodes = Some(100_000);
        dataset.options.root.mode = ROOT_MODE;
        let fs = dataset.open().await;
        Self {
            files: vec![fs.root()],
            fs: Some(fs),
            dataset,
            reference: Reference::new(),
            seen: BTreeMap::new(),
            dirty: BTreeSet::new(),
            snapshots: Vec::new(),
            taken: 0,
            _journals: journals,
        }
    }

    fn fs(&self) -> &Fs {
        self.fs.as_ref().expect("open between steps")
    }

    pub fn generate(&self, rng: &mut StdRng) -> (Caller, Op) {
        let kind = |id: &Id| self.reference.objects[*id].kind;
        let dirs: Vec<Id> =
            self.reference.alive().filter(|id| kind(id) == FileKind::Directory).collect();
        (caller(rng), generate(rng, self.reference.objects.len(), &dirs))
    }

    pub async fn step(&mut self, who: &Caller, op: &Op) -> Checked {
        let expected = self.reference.apply(who, op);
        let got = self.perform(who, op).await?;
        match (&expected, &got) {
            (Ok(id), Ok(file)) => self.remember(*id, *file)?,
            (Err(expected), Err(got)) if *expected == class(got) => {}
            _ => return Err(format!("expected {expected:?}, got {got:?}")),
        }
        if let (Op::Write { file, .. }, Ok(_)) = (op, &expected) {
            self.dirty.insert(*file);
        }
        self.verify().await
    }

    fn remember(&mut self, id: Option<Id>, file: Option<FileRef>) -> Checked {
        match (id, file) {
            (Some(id), Some(file)) if id == self.files.len() => {
                if self.files.contains(&file) {
                    return Err(format!("{file:?} was given out before (R7)"));
                }
                self.files.push(file);
                Ok(())
            }
            (Some(id), Some(file)) if self.files[id] != file => {
                Err(format!("expected {:?}, got {file:?}", self.files[id]))
            }
            _ => Ok(()),
        }
    }

    async fn perform(
        &mut self,
        who: &Caller,
        op: &Op,
    ) -> Result<Result<Option<FileRef>, FsError>, String> {
        let files = &self.files;
        let made = |created: Created| Some(created.attr.file);
        Ok(match op {
            Op::Create { dir, name: n, how: h } => {
                self.fs().create(who, files[*dir], &name(n), how(h)).await.map(made)
            }
            Op::Make { dir, name: n, kind: Kind::Directory { mode } } => {
                let set = SetAttr { mode: Some(*mode), ..SetAttr::default() };
                self.fs().mkdir(who, files[*dir], &name(n), set).await.map(made)
            }
            Op::Make { dir, name: n, kind: Kind::Special(special) } => self
                .fs()
                .make(who, files[*dir], &name(n), special.clone(), SetAttr::default())
                .await
                .map(made),
            Op::Remove { dir, name: n } => {
                self.fs().remove(who, files[*dir], &name(n)).await.map(|_| None)
            }
            Op::Rmdir { dir, name: n } => {
                self.fs().rmdir(who, files[*dir], &name(n)).await.map(|_| None)
            }
            Op::Rename { from, to } => {
                let (from_name, to_name) = (name(&from.1), name(&to.1));
                self.fs()
                    .rename(who, (files[from.0], &from_name), (files[to.0], &to_name))
                    .await
                    .map(|_| None)
            }
            Op::Link { file, dir, name: n } => {
                self.fs().link(who, files[*file], files[*dir], &name(n)).await.map(|_| None)
            }
            Op::SetAttr { file, set } => {
                let guard = set.wrong_guard.then(|| Timestamp::from_nanos(1));
                self.fs().setattr(who, files[*file], set_attr(set), guard).await.map(|_| None)
            }
            Op::Write { file, offset, len, fill, stability } => {
                let written = self
                    .fs()
                    .write(who, files[*file], *offset, bytes(*fill, *len).into(), *stability)
                    .await;
                if written.as_ref().is_ok_and(|w| w.committed < *stability || w.count != *len) {
                    return Err(format!("less was written than asked for: {written:?}"));
                }
                written.map(|_| None)
            }
            Op::Commit { file } => self.fs().commit(who, files[*file], 0, 0).await.map(|_| None),
            Op::Reopen(ending) => self.reopen(*ending).await,
            Op::Snapshot => self.snapshot().await,
            Op::Clone => return self.compare_clone().await.map(|()| Ok(None)),
        })
    }

    async fn reopen(&mut self, ending: Ending) -> Result<Option<FileRef>, FsError> {
        let fs = self.fs.take().expect("open between steps");
        match ending {
            Ending::Closed => fs.close().await?,
            Ending::Died => {
                for id in std::mem::take(&mut self.dirty) {
                    if self.reference.objects[id].alive() {
                        fs.commit(&Caller::root(), self.files[id], 0, 0).await?;
                    }
                }
            }
        }
        drop(fs);
        self.fs = Some(self.dataset.open().await);
        Ok(None)
    }

    async fn snapshot(&mut self) -> Result<Option<FileRef>, FsError> {
        self.taken += 1;
        let checkpoint = self.fs().snapshot(&format!("snapshot {}", self.taken)).await?;
        self.snapshots.push(Snapshot { checkpoint, reference: self.reference.clone() });
        Ok(None)
    }

    /// Reads the newest snapshot; opens a clone of it beside the dataset, compares it, changes it,
    /// and compares both again (the dataset by the caller).
    async fn compare_clone(&mut self) -> Checked {
        let Some(snapshot) = self.snapshots.pop() else { return Ok(()) };
        let snapshot_fs = self.dataset.snapshot_fs(snapshot.checkpoint).await;
        compare(&snapshot_fs, &snapshot.reference, &self.files)
            .await
            .map_err(|what| format!("in the snapshot: {what}"))?;
        snapshot_fs.close().await.map_err(|e| format!("closing the snapshot: {e}"))?;
        let clone = self.dataset.clone_from(snapshot.checkpoint).await;
        let fs = clone.open().await;
        let seen = compare(&fs, &snapshot.reference, &self.files)
            .await
            .map_err(|what| format!("in the clone: {what}"))?;
        for (id, attr) in seen {
            if attr.kind == FileKind::Regular {
                let all = SetAttr { size: Some(1), ..SetAttr::default() };
                fs.setattr(&Caller::root(), self.files[id], all, None)
                    .await
                    .map_err(|e| format!("changing the clone: {e}"))?;
            }
        }
        fs.close().await.map_err(|e| format!("closing the clone: {e}"))?;
        check_rows(&clone).await.map_err(|what| format!("in the clone: {what}"))
    }

    async fn verify(&mut self) -> Checked {
        let seen = compare(self.fs(), &self.reference, &self.files).await?;
        for (id, attr) in &seen {
            let Some(before) = self.seen.get(id) else { continue };
            let same = Attr {
                atime: before.atime,
                ctime: before.ctime,
                allocated: before.allocated,
                ..*attr
            } == *before;
            if attr.ctime < before.ctime || (!same && attr.ctime == before.ctime) {
                return Err(format!("ctime did not grow (R8): {before:?} became {attr:?}"));
            }
        }
        self.seen = seen;
        Ok(())
    }

    pub async fn finish(mut self) -> Checked {
        self.compare_clone().await?;
        let fs = self.fs.take().expect("open at the end");
        fs.close().await.map_err(|error| format!("closing: {error}"))?;
        let fs = self.dataset.open().await;
        compare(&fs, &self.reference, &self.files).await?;
        fs.close().await.map_err(|error| format!("closing: {error}"))?;
        check_rows(&self.dataset).await
    }
}

/// The rows of a closed dataset hold together: what calls do not show (counts, references, what is
/// queued for reclaim) is right as well.
async fn check_rows(dataset: &Dataset) -> Checked {
    let reader = Reader::newest(&dataset.place)
        .await
        .map_err(|error| format!("reading the rows: {error}"))?;
    let report = check(&reader).await.map_err(|error| format!("reading the rows: {error}"))?;
    reader.close().await.map_err(|error| format!("closing the reader: {error}"))?;
    if report.is_clean() {
        Ok(())
    } else {
        Err(format!("the rows do not hold together: {:#?}", report.findings))
    }
}

/// Compares every object that was ever made.
async fn compare(
    fs: &impl FileSystem,
    reference: &Reference,
    files: &[FileRef],
) -> Result<BTreeMap<Id, Attr>, String> {
    let mut seen = BTreeMap::new();
    for (id, object) in reference.objects.iter().enumerate() {
        let attr = fs.getattr(files[id]).await;
        if !object.alive() {
            if !matches!(attr, Err(FsError::Stale)) {
                return Err(format!("object {id} is gone, but: {attr:?}"));
            }
            continue;
        }
        let attr = attr.map_err(|error| format!("object {id}: {error}"))?;
        let size = match object.kind {
            FileKind::Directory => object.entries.len(),
            FileKind::Symlink => object.target.len(),
            _ => object.data.len(),
        };
        let expected = (
            object.kind,
            object.mode,
            object.uid,
            object.gid,
            reference.nlink(id),
            size as u64,
            object.rdev,
        );
        let got = (attr.kind, attr.mode, attr.uid, attr.gid, attr.nlink, attr.size, attr.rdev);
        if expected != got || object.mtime.is_some_and(|at| attr.mtime.as_nanos() != at) {
            return Err(format!(
                "object {id}: expected {expected:?} and mtime {:?}, got {attr:?}",
                object.mtime
            ));
        }
        match object.kind {
            FileKind::Directory => compare_dir(fs, reference, files, id).await?,
            FileKind::Regular => compare_data(fs, files[id], &object.data).await?,
            FileKind::Symlink => {
                let target = fs
                    .readlink(&Caller::root(), files[id])
                    .await
                    .map_err(|error| error.to_string())?
                    .0;
                if target != object.target {
                    return Err(format!("object {id}: another target"));
                }
            }
            _ => {}
        }
        seen.insert(id, attr);
    }
    let stat = fs.statfs().await.map_err(|error| error.to_string())?;
    let inodes = stat.total_inodes - stat.free_inodes;
    if inodes != seen.len() as u64 {
        return Err(format!("statfs counts {inodes} inodes, there are {}", seen.len()));
    }
    Ok(seen)
}

async fn compare_data(fs: &impl FileSystem, file: FileRef, expected: &[u8]) -> Checked {
    let mut at = 0;
    loop {
        let read = fs
            .read(&Caller::root(), file, at as u64, 100_000)
            .await
            .map_err(|error| format!("{file:?}: {error}"))?;
        let got = read.data.concat();
        let end = (at + 100_000).min(expected.len());
        if got != expected[at..end] {
            let first = got.iter().zip(&expected[at..end]).position(|(a, b)| a != b);
            return Err(format!(
                "{file:?}: {} bytes at {at}, expected {}; first difference at {first:?}",
                got.len(),
                end - at
            ));
        }
        if read.eof != (end == expected.len()) {
            return Err(format!("{file:?}: eof is {} at {end} of {}", read.eof, expected.len()));
        }
        if read.eof {
            return Ok(());
        }
        at = end;
    }
}

async fn compare_dir(
    fs: &impl FileSystem,
    reference: &Reference,
    files: &[FileRef],
    id: Id,
) -> Checked {
    let root = Caller::root();
    let object = &reference.objects[id];
    let limit = ListLimit { entries: 3, bytes: 4096, entry_bytes: 64, with_attr: true };
    let (mut listed, mut after) = (Vec::new(), DirCookie(0));
    loop {
        let listing = fs
            .readdir(&root, files[id], after, limit)
            .await
            .map_err(|error| format!("listing {id}: {error}"))?;
        for entry in listing.entries {
            if entry.cookie <= after || entry.attr.is_none_or(|attr| attr.file.ino != entry.ino) {
                return Err(format!("directory {id}: {entry:?} after {after:?}"));
            }
            after = entry.cookie;
            listed.push((entry.name.to_vec(), entry.ino));
        }
        if listing.eof {
            break;
        }
    }
    let mut expected: Vec<(Vec<u8>, _)> =
        object.entries.iter().map(|(name, id)| (name.clone(), files[*id].ino)).collect();
    expected.push((b".".to_vec(), files[id].ino));
    expected.push((b"..".to_vec(), files[if id == ROOT { ROOT } else { object.parent }].ino));
    expected.sort();
    listed.sort();
    if expected != listed {
        return Err(format!("directory {id}: expected {expected:?}, listed {listed:?}"));
    }
    for (name, ino) in expected {
        let found = fs
            .lookup(&root, files[id], &name)
            .await
            .map_err(|error| format!("{id}/{}: {error}", name.escape_ascii()))?;
        if found.0.file.ino != ino {
            return Err(format!("{id}/{} leads to {:?}", name.escape_ascii(), found.0.file));
        }
    }
    match fs.lookup(&root, files[id], b"absent").await {
        Err(FsError::NotFound) => Ok(()),
        other => Err(format!("a name that does not exist: {other:?}")),
    }
}
