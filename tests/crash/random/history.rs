//! One client's calls in its part of the tree, and their answers.

use super::compare::Objects;
use crate::script::bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use zerofs_csi::fs::SyncMode;
use zerofs_csi::fs::api::FileRef;
use zerofs_csi::types::Timestamp;

/// An object that a client made, for as long as its history goes.
pub type Id = u32;
pub type Name = &'static str;

/// The end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// The volume was closed: nothing is missing.
    Clean,
    /// The node lives on with the journal.
    Process,
    /// The journal is gone.
    Node,
    /// As [`Self::Node`], but the process that lost its dataset goes on for a while and does not
    /// know.
    Overtaken,
}

/// The dataset's durability contract.
#[derive(Clone, Copy, Debug)]
pub struct Contract {
    pub sync: SyncMode,
    pub journal: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Dir(BTreeMap<Name, Id>),
    File,
    Link(String),
    Fifo,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub kind: Kind,
    pub mode: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Guarded(u32),
    Unchecked(u32),
    Exclusive([u8; 8]),
    Dir(u32),
    Link,
    Fifo,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Make {
        dir: Id,
        name: Name,
        id: Id,
        what: What,
    },
    Remove {
        dir: Id,
        name: Name,
    },
    Rmdir {
        dir: Id,
        name: Name,
    },
    Rename {
        from: (Id, Name),
        to: (Id, Name),
    },
    Link {
        file: Id,
        dir: Id,
        name: Name,
    },
    Mode {
        id: Id,
        mode: u32,
    },
    /// By SETATTR, or by an UNCHECKED create of the name.
    Truncate {
        file: Id,
        size: u32,
        by_create: Option<(Id, Name)>,
    },
    Write {
        file: Id,
        at: u32,
        len: u32,
        seed: u64,
        sync: bool,
    },
    Commit {
        file: Id,
    },
}

impl Act {
    /// True if the call is one batch of its own.
    pub fn is_change(&self) -> bool {
        !matches!(self, Self::Write { .. } | Self::Commit { .. })
    }

    /// True if the call's effect survives a death, by the table in docs/durability.md; for data,
    /// this file's up to here.
    fn survives(&self, contract: Contract, death: Death) -> bool {
        let unsynced =
            matches!(self, Self::Write { sync: false, .. }) && contract.sync != SyncMode::Always;
        match death {
            Death::Clean => true,
            Death::Process => !unsynced,
            Death::Node | Death::Overtaken => match contract.sync {
                _ if unsynced => false,
                SyncMode::Always => true,
                // Without a journal, a call that waits for it waits for the store.
                SyncMode::Standard | SyncMode::Disabled if !contract.journal => true,
                SyncMode::Disabled => false,
                SyncMode::Standard => {
                    !matches!(self, Self::Make { .. } | Self::Mode { .. } | Self::Truncate { .. })
                }
            },
        }
    }
}

/// A part of the tree: everything below a directory that only this client uses.
#[derive(Clone, Debug)]
pub struct Tree {
    pub objects: BTreeMap<Id, Object>,
}

/// The client's directory.
pub const TOP: Id = 0;

impl Tree {
    fn new() -> Self {
        Self {
            objects: BTreeMap::from([(
                TOP,
                Object { kind: Kind::Dir(BTreeMap::new()), mode: 0o755 },
            )]),
        }
    }

    pub fn entries(&self, dir: Id) -> &BTreeMap<Name, Id> {
        match &self.objects[&dir].kind {
            Kind::Dir(entries) => entries,
            other => panic!("{dir} is {other:?}"),
        }
    }

    fn entries_mut(&mut self, dir: Id) -> &mut BTreeMap<Name, Id> {
        match &mut self.objects.get_mut(&dir).expect("it is there").kind {
            Kind::Dir(entries) => entries,
            other => panic!("{dir} is {other:?}"),
        }
    }

    pub fn at(&self, (dir, name): (Id, Name)) -> Option<Id> {
        self.entries(dir).get(name).copied()
    }

    pub fn is_dir(&self, id: Id) -> bool {
        matches!(self.objects[&id].kind, Kind::Dir(_))
    }

    pub fn links(&self, id: Id) -> usize {
        let entries = self.objects.values().filter_map(|object| match &object.kind {
            Kind::Dir(entries) => Some(entries),
            _ => None,
        });
        entries.flat_map(BTreeMap::values).filter(|at| **at == id).count()
    }

    fn drop_unnamed(&mut self, id: Id) {
        if self.links(id) == 0 {
            self.objects.remove(&id);
        }
    }

    pub fn apply(&mut self, act: &Act) {
        match act {
            Act::Make { dir, name, id, what } => {
                let (kind, mode) = match what {
                    What::Guarded(mode) | What::Unchecked(mode) => (Kind::File, *mode),
                    What::Exclusive(_) => (Kind::File, 0o600),
                    What::Dir(mode) => (Kind::Dir(BTreeMap::new()), *mode),
                    What::Link => (Kind::Link(format!("target {id}")), 0o777),
                    What::Fifo => (Kind::Fifo, 0o644),
                };
                self.objects.insert(*id, Object { kind, mode });
                self.entries_mut(*dir).insert(name, *id);
            }
            Act::Remove { dir, name } | Act::Rmdir { dir, name } => {
                let gone =
                    self.entries_mut(*dir).remove(name).expect("only what is there is removed");
                self.drop_unnamed(gone);
            }
            Act::Rename { from, to } => {
                let id =
                    self.entries_mut(from.0).remove(from.1).expect("only what is there is renamed");
                if let Some(gone) = self.entries_mut(to.0).insert(to.1, id) {
                    self.drop_unnamed(gone);
                }
            }
            Act::Link { file, dir, name } => drop(self.entries_mut(*dir).insert(name, *file)),
            Act::Mode { id, mode } => self.objects.get_mut(id).expect("it is there").mode = *mode,
            Act::Truncate { .. } | Act::Write { .. } | Act::Commit { .. } => {}
        }
    }
}

#[derive(Clone, Debug)]
pub struct Step {
    pub act: Act,
    /// The transaction id of its call.
    pub xid: u32,
    pub begun: u64,
    /// When it was answered with success.
    pub answered: Option<u64>,
    /// With `sync=always`: another client was answered with what it had done (R15).
    pub seen: bool,
}

impl Step {
    /// True if a client saw that the call was done.
    pub fn is_known(&self) -> bool {
        self.answered.is_some() || self.seen
    }
}

/// A client's history since its dataset was last compared. Only the last step may be without an
/// answer.
#[derive(Clone, Debug)]
pub struct History {
    pub start: Tree,
    /// Contents of the files of `start`.
    pub base: BTreeMap<Id, Vec<u8>>,
    pub steps: Vec<Step>,
    /// The client's view now, its unanswered call excluded.
    pub now: Tree,
    pub data: BTreeMap<Id, Vec<u8>>,
    /// Handles of objects whose creation was answered, or that were found.
    pub refs: BTreeMap<Id, FileRef>,
    /// Every handle ever given out (R7), and the highest ctime shown with it (R8).
    pub shown: HashMap<FileRef, Timestamp>,
    pub ids: Id,
    pub xids: u32,
    /// The result of the last comparison, until the history starts over from it.
    pub found: Option<Objects>,
    /// Counts calls whose effect others saw before they were answered, or at that moment.
    pub seen: usize,
    /// The call that had no answer when the last process ended, and whether it was done.
    pub unanswered: Option<(Step, bool)>,
}

pub fn overwrite(data: &mut Vec<u8>, at: u32, len: u32, seed: u64) {
    let (at, len) = (at as usize, len as usize);
    data.resize(data.len().max(at + len), 0);
    data[at..at + len].copy_from_slice(&bytes(seed, len));
}

impl History {
    pub fn new(top: FileRef) -> Self {
        Self {
            start: Tree::new(),
            base: BTreeMap::new(),
            steps: Vec::new(),
            now: Tree::new(),
            data: BTreeMap::new(),
            refs: BTreeMap::from([(TOP, top)]),
            shown: HashMap::new(),
            ids: TOP,
            xids: 0,
            found: None,
            seen: 0,
            unanswered: None,
        }
    }

    /// The newest step was answered.
    pub fn answered(&mut self, at: u64) {
        let step = self.steps.last_mut().expect("it was begun");
        step.answered = Some(at);
        let act = step.act.clone();
        self.do_now(&act);
    }

    pub fn do_now(&mut self, act: &Act) {
        self.now.apply(act);
        match act {
            Act::Make { id, .. } if self.now.objects[id].kind == Kind::File => {
                drop(self.data.insert(*id, Vec::new()));
            }
            Act::Truncate { file, size, .. } => {
                self.data.entry(*file).or_default().resize(*size as usize, 0);
            }
            Act::Write { file, at, len, seed, .. } => {
                overwrite(self.data.entry(*file).or_default(), *at, *len, *seed);
            }
            _ => {}
        }
        let objects = &self.now.objects;
        self.data.retain(|id, _| objects.contains_key(id));
    }

    /// The tree after this many of the changes.
    pub fn tree(&self, changes: usize) -> Tree {
        let mut tree = self.start.clone();
        self.changes().take(changes).for_each(|step| tree.apply(&step.act));
        tree
    }

    pub fn changes(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| step.act.is_change())
    }

    /// The number of changes that must be there after a death: surviving batches are a prefix of
    /// all.
    pub fn required(&self, contract: Contract, death: Death) -> usize {
        let (mut tree, mut changes, mut required) = (self.start.clone(), 0, 0);
        // For each object, the number of changes up to its last one or the last of its data.
        let mut touched: BTreeMap<Id, usize> = BTreeMap::new();
        for step in &self.steps {
            let subject = self.subject(&tree, &step.act);
            if step.act.is_change() {
                tree.apply(&step.act);
                changes += 1;
            }
            if !matches!(step.act, Act::Commit { .. }) {
                touched.extend(subject.iter().map(|id| (*id, changes)));
            }
            if step.is_known() && step.act.survives(contract, death) {
                let kept = match &step.act {
                    Act::Write { file, .. } | Act::Commit { file } => {
                        touched.get(file).copied().unwrap_or(0)
                    }
                    _ => changes,
                };
                required = required.max(kept);
            }
        }
        required
    }

    /// The objects whose rows an act changes, beside directories.
    fn subject(&self, tree: &Tree, act: &Act) -> BTreeSet<Id> {
        let found = match act {
            Act::Make { id, .. } | Act::Mode { id, .. } => vec![Some(*id)],
            Act::Remove { dir, name } | Act::Rmdir { dir, name } => vec![tree.at((*dir, name))],
            Act::Rename { from, to } => vec![tree.at(*from), tree.at(*to)],
            Act::Link { file, .. }
            | Act::Truncate { file, .. }
            | Act::Write { file, .. }
            | Act::Commit { file } => {
                vec![Some(*file)]
            }
        };
        found.into_iter().flatten().collect()
    }

    /// The contents that a file may have after this many changes.
    pub fn content(&self, file: Id, changes: usize, contract: Contract, death: Death) -> Content {
        let mut content = Content {
            base: self.base.get(&file).cloned().unwrap_or_default(),
            ..Content::default()
        };
        let mut done = 0;
        for step in &self.steps {
            if step.act.is_change() {
                done += 1;
            }
            match &step.act {
                // Behind a change that is not there only what was certain before it counts.
                Act::Write { file: of, at, len, seed, sync } if *of == file && done <= changes => {
                    content.writes.push((*at, *len, *seed));
                    let kept = *sync || contract.sync == SyncMode::Always;
                    if kept && step.is_known() && step.act.survives(contract, death) {
                        content.certain = content.writes.len();
                    }
                }
                Act::Commit { file: of }
                    if *of == file
                        && step.answered.is_some()
                        && step.act.survives(contract, death) =>
                {
                    content.certain = content.writes.len();
                }
                Act::Truncate { file: of, size, .. } if *of == file && done <= changes => {
                    let mut base = content.version(content.writes.len());
                    base.resize(*size as usize, 0);
                    content = Content { base, ..Content::default() };
                }
                _ => {}
            }
        }
        if death == Death::Clean {
            content.certain = content.writes.len();
        }
        content
    }

    /// True if no call is in flight.
    pub fn is_answered(&self) -> bool {
        self.steps.last().is_none_or(|step| step.answered.is_some())
    }

    /// Begins again from what was found: the state after this many of the changes, which that of
    /// `least` of them is too.
    pub fn rebase(&mut self, least: usize, changes: usize) {
        let found = self.found.take().unwrap_or_default();
        let mut tree = self.tree(changes);
        tree.objects.retain(|id, _| found.contains_key(id));
        self.base = found.iter().filter_map(|(id, (_, data))| Some((*id, data.clone()?))).collect();
        self.refs = found.into_iter().map(|(id, (file, _))| (id, file)).collect();
        self.data = self.base.clone();
        self.now = tree.clone();
        self.start = tree;
        let all = self.changes().count();
        let last = self.steps.last().filter(|step| step.answered.is_none()).cloned();
        // The object of the call may be gone with other changes that were lost.
        let needed = |step: &Step| if step.act.is_change() { all - 1 } else { all };
        let repeated = last.filter(|step| changes >= needed(step)).map(|step| {
            let done = step.act.is_change() && changes == all;
            (step, done)
        });
        // A file that is not there was removed, or was never made durable: only who knows which
        // knows the answer to a repeated removal.
        self.unanswered = repeated.filter(|(_, done)| !done || least == changes);
        self.steps.clear();
    }
}

/// The contents that a file may have: `base` with the first `certain` of the writes, and in each
/// extent any prefix of the others.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pub base: Vec<u8>,
    pub writes: Vec<(u32, u32, u64)>,
    pub certain: usize,
}

impl Content {
    pub fn version(&self, writes: usize) -> Vec<u8> {
        let mut data = self.base.clone();
        self.writes[..writes]
            .iter()
            .for_each(|(at, len, seed)| overwrite(&mut data, *at, *len, *seed));
        data
    }

    /// Why `found` may not be there.
    pub fn judge(&self, found: &[u8], record: usize) -> Result<(), String> {
        let versions: Vec<Vec<u8>> =
            (self.certain..=self.writes.len()).map(|writes| self.version(writes)).collect();
        let least = versions[0].len();
        let most = versions[versions.len() - 1].len();
        if !(least..=most).contains(&found.len()) {
            return Err(format!("{} bytes, of {least} to {most}", found.len()));
        }
        let byte = |version: &Vec<u8>, at: usize| version.get(at).copied().unwrap_or(0);
        for start in (0..found.len()).step_by(record) {
            let end = (start + record).min(found.len());
            let same = |version: &Vec<u8>| (start..end).all(|at| byte(version, at) == found[at]);
            // The size is never ahead of the data: the last byte is one that a write of the version
            // put there, or an older one.
            let reaches = |n: usize| {
                end < found.len()
                    || end <= least
                    || self.writes[..self.certain + n].iter().any(|(at, len, _)| {
                        (*at as usize..(at + len) as usize).contains(&(end - 1))
                    })
            };
            if !versions.iter().enumerate().any(|(n, version)| same(version) && reaches(n)) {
                return Err(format!(
                    "bytes {start} to {end} of {} are of no version since write {}",
                    found.len(),
                    self.certain
                ));
            }
        }
        Ok(())
    }
}
