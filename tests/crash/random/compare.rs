//! Compares the state after a death with the answers that clients got.

use super::history::{Contract, Death, History, Id, Kind, TOP, Tree};
use std::collections::BTreeMap;
use zerofs_csi::fs::api::*;
use zerofs_csi::fs::{Fs, FsError};

/// The records of the files.
pub const RECORD: usize = 4096;

pub struct Object {
    attr: Attr,
    data: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
}

/// Everything below a directory, by path; the directory itself has the empty one.
pub type Found = BTreeMap<String, Object>;

pub async fn walk(fs: &Fs, top: FileRef) -> Result<Found, FsError> {
    let caller = Caller::root();
    let mut found = Found::new();
    let mut todo = vec![(String::new(), top)];
    while let Some((path, file)) = todo.pop() {
        let attr = fs.getattr(file).await?;
        let mut object = Object { attr, data: None, target: None };
        match attr.kind {
            FileKind::Directory => {
                let limit =
                    ListLimit { entries: 100, bytes: 1 << 16, entry_bytes: 32, with_attr: true };
                for entry in fs.readdir(&caller, file, DirCookie(0), limit).await?.entries {
                    if !matches!(&entry.name[..], b"." | b"..") {
                        let attr = entry.attr.ok_or_else(|| {
                            FsError::Corrupt(format!("{path}: an entry without an object"))
                        })?;
                        todo.push((
                            format!("{path}/{}", String::from_utf8_lossy(&entry.name)),
                            attr.file,
                        ));
                    }
                }
            }
            FileKind::Regular => object.data = Some(content(fs, attr).await?),
            FileKind::Symlink => object.target = Some(fs.readlink(&caller, file).await?.0.to_vec()),
            _ => {}
        }
        found.insert(path, object);
    }
    Ok(found)
}

pub async fn content(fs: &Fs, attr: Attr) -> Result<Vec<u8>, FsError> {
    let mut data = Vec::new();
    while (data.len() as u64) < attr.size {
        let read = fs.read(&Caller::root(), attr.file, data.len() as u64, 1 << 20).await?;
        if read.data.iter().all(bytes::Bytes::is_empty) {
            return Err(FsError::Corrupt(format!(
                "nothing is read at {} of {}",
                data.len(),
                attr.size
            )));
        }
        read.data.iter().for_each(|part| data.extend_from_slice(part));
    }
    Ok(data)
}

/// The changes of a history that are there: the smallest and the largest number that agrees.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    pub least: usize,
    pub most: usize,
}

pub type Objects = BTreeMap<Id, (FileRef, Option<Vec<u8>>)>;

/// Finds the state of a history that what is there may be of.
pub fn judge(
    history: &History,
    found: &Found,
    contract: Contract,
    death: Death,
) -> Result<(Verdict, Objects), String> {
    let all = history.changes().count();
    let answered = history.changes().filter(|step| step.answered.is_some()).count();
    let required = if death == Death::Clean { answered } else { history.required(contract, death) };
    let mut agreed: Option<(Verdict, Objects)> = None;
    let mut why = String::new();
    for changes in (required..=all).rev() {
        match agrees(history, changes, found, contract, death) {
            Ok(objects) => match &mut agreed {
                Some((verdict, _)) => verdict.least = changes,
                None => agreed = Some((Verdict { least: changes, most: changes }, objects)),
            },
            Err(what) => why += &format!("\n  after {changes} of {all} changes: {what}"),
        }
    }
    agreed.ok_or_else(|| format!("the tree is of no state since change {required}:{why}"))
}

fn paths(tree: &Tree) -> BTreeMap<String, Id> {
    let mut paths = BTreeMap::new();
    let mut todo = vec![(String::new(), TOP)];
    while let Some((path, id)) = todo.pop() {
        if let Kind::Dir(entries) = &tree.objects[&id].kind {
            todo.extend(entries.iter().map(|(name, id)| (format!("{path}/{name}"), *id)));
        }
        paths.insert(path, id);
    }
    paths
}

fn agrees(
    history: &History,
    changes: usize,
    found: &Found,
    contract: Contract,
    death: Death,
) -> Result<Objects, String> {
    let tree = history.tree(changes);
    let paths = paths(&tree);
    if !paths.keys().eq(found.keys()) {
        return Err(format!("names {:?}, expected {:?}", found.keys(), paths.keys()));
    }
    let mut objects = Objects::new();
    for (path, id) in &paths {
        let there = &found[path];
        shape(&tree, *id, there).map_err(|what| format!("{path}: {what}"))?;
        let file = there.attr.file;
        if history.refs.get(id).is_some_and(|known| *known != file) {
            return Err(format!("{path} is {file:?}, it was {:?} (R7)", history.refs[id]));
        }
        if let Some((other, _)) = objects.get(id) {
            if *other != file {
                return Err(format!("{path} is another object than its other name"));
            }
            continue;
        }
        if let Some(data) = &there.data {
            let content = history.content(*id, changes, contract, death);
            content.judge(data, RECORD).map_err(|what| format!("{path}: {what}"))?;
        }
        objects.insert(*id, (file, there.data.clone()));
    }
    let mut files: Vec<FileRef> = objects.values().map(|(file, _)| *file).collect();
    files.sort_by_key(|file| file.ino);
    files.dedup();
    if files.len() < objects.len() {
        return Err("two objects are one".to_owned());
    }
    Ok(objects)
}

fn shape(tree: &Tree, id: Id, there: &Object) -> Result<(), String> {
    let object = &tree.objects[&id];
    let (kind, links, size) = match &object.kind {
        Kind::Dir(entries) => {
            let subdirectories = entries.values().filter(|id| tree.is_dir(**id)).count();
            (FileKind::Directory, 2 + subdirectories, Some(entries.len()))
        }
        Kind::File => (FileKind::Regular, tree.links(id), None),
        Kind::Link(target) => {
            if there.target.as_deref() != Some(target.as_bytes()) {
                return Err("another target".to_owned());
            }
            (FileKind::Symlink, tree.links(id), None)
        }
        Kind::Fifo => (FileKind::Fifo, tree.links(id), None),
    };
    let expected = (kind, object.mode, links as u32);
    let got = (there.attr.kind, there.attr.mode, there.attr.nlink);
    let sized = size.is_none_or(|size| there.attr.size == size as u64);
    if expected == got && sized {
        Ok(())
    } else {
        Err(format!("{got:?} of size {}, expected {expected:?}", there.attr.size))
    }
}

/// The batches that survive are the first N of all, whoever's they are: what was answered
/// before another's surviving change began is there.
pub fn in_order(histories: &[(&History, Verdict)]) -> Result<(), String> {
    for (at, (later, verdict)) in histories.iter().enumerate() {
        let Some(last) = verdict.least.checked_sub(1).and_then(|n| later.changes().nth(n)) else {
            continue;
        };
        for (other, (earlier, kept)) in
            histories.iter().enumerate().filter(|(other, _)| *other != at)
        {
            let before = earlier
                .changes()
                .take_while(|step| step.answered.is_some_and(|end| end < last.begun))
                .count();
            if before > kept.most {
                return Err(format!(
                    "client {at} kept {:?}, client {other} lost change {} of {before} that were \
                     answered before",
                    last.act,
                    kept.most + 1
                ));
            }
        }
    }
    Ok(())
}
