//! Compares the state after a death with the answers that clients got.

use super::history::{self, Contract, Death, History, Id, Kind, TOP};
use crate::support::files::{self, Object, Tree};
use std::collections::BTreeMap;
use zerofs_csi::fs::api::*;
use zerofs_csi::fs::{Fs, FsError};

/// The records of the files.
pub const RECORD: usize = 4096;

/// Everything below a directory, by path; the directory itself has the empty one.
pub async fn walk(fs: &Fs, top: FileRef) -> Result<Tree, FsError> {
    let mut found = files::tree(fs, top).await?;
    let attr = fs.getattr(top).await?;
    found.insert(String::new(), Object { attr, listed: None, content: Vec::new() });
    Ok(found)
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
    found: &Tree,
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

fn paths(tree: &history::Tree) -> BTreeMap<String, Id> {
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
    found: &Tree,
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
        let data = (there.attr.kind == FileKind::Regular).then(|| there.content.clone());
        if let Some(data) = &data {
            let content = history.content(*id, changes, contract, death);
            content.judge(data, RECORD).map_err(|what| format!("{path}: {what}"))?;
        }
        objects.insert(*id, (file, data));
    }
    let mut files: Vec<FileRef> = objects.values().map(|(file, _)| *file).collect();
    files.sort_by_key(|file| file.ino);
    files.dedup();
    if files.len() < objects.len() {
        return Err("two objects are one".to_owned());
    }
    Ok(objects)
}

fn shape(tree: &history::Tree, id: Id, there: &Object) -> Result<(), String> {
    let object = &tree.objects[&id];
    let (kind, links, size) = match &object.kind {
        Kind::Dir(entries) => {
            let subdirectories = entries.values().filter(|id| tree.is_dir(**id)).count();
            (FileKind::Directory, 2 + subdirectories, Some(entries.len()))
        }
        Kind::File => (FileKind::Regular, tree.links(id), None),
        Kind::Link(target) => {
            if there.content != target.as_bytes() {
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
