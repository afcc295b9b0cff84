//! A client: random calls on its part of the tree, each repeated until it is answered, as a mount
//! does.

use super::history::{Act, History, Id, Kind, Name, Step, What};
use crate::support::files;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use zerofs_csi::fs::api::*;
use zerofs_csi::fs::{Fs, FsError};
use zerofs_csi::types::{Class, Classify, Timestamp};

const NAMES: [Name; 5] = ["a", "b", "c", "d", "e"];
const DIRS_MAX: usize = 4;
const SIZE_MAX: u32 = 40_000;
/// A file of more records than a truncation deletes at once.
const LONG: u32 = 300_000;

/// The order of what clients did, as they could see it.
#[derive(Clone, Default)]
pub struct Ticks(Arc<AtomicU64>);

impl Ticks {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }
}

#[derive(Clone)]
pub struct Client {
    pub number: u64,
    pub history: Arc<Mutex<History>>,
    pub ticks: Ticks,
    /// With `sync=always`: whom it watches.
    pub others: Vec<Arc<Mutex<History>>>,
}

/// Why a client stopped before its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Its file system is another's by now.
    Lost,
    /// The client got an answer that cannot be right.
    Wrong(String),
}

fn mode(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..SetAttr::default() }
}

/// The contents of an answer: the object that was made or changed, and those whose ctime must have
/// grown.
#[derive(Default)]
struct Answer {
    made: Option<FileRef>,
    changed: Vec<Attr>,
}

impl Answer {
    fn of(changed: impl IntoIterator<Item = Attr>) -> Self {
        Self { made: None, changed: changed.into_iter().collect() }
    }

    fn made(created: &Created) -> Self {
        Self { made: Some(created.attr.file), changed: vec![created.attr, created.dir.after] }
    }
}

impl Client {
    /// Makes `calls` calls. Ends early when the file system is lost or gave a wrong answer.
    pub async fn work(self, fs: Arc<Fs>, mut rng: StdRng, calls: u32) -> Result<(), Stopped> {
        for _ in 0..calls {
            if rng.random_bool(0.1) {
                self.look(&fs, &mut rng).await?;
            }
            let act = loop {
                let history = self.history.lock();
                if let Some(act) = propose(&history, &mut rng) {
                    break act;
                }
            };
            let mut eyes = StdRng::seed_from_u64(rng.random());
            tokio::select! {
                done = self.perform(&fs, act) => done?,
                lost = self.watch_on(&fs, &mut eyes) => lost?,
            }
            if rng.random_bool(0.1) {
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..200))).await;
            }
        }
        Ok(())
    }

    async fn perform(&self, fs: &Fs, act: Act) -> Result<(), Stopped> {
        let xid = {
            let mut history = self.history.lock();
            history.xids += 1;
            if let Act::Make { id, .. } = &act {
                history.ids = history.ids.max(*id);
            }
            history.xids
        };
        self.send(fs, Step { act, xid, begun: 0, answered: None, seen: false }).await
    }

    async fn send(&self, fs: &Fs, mut step: Step) -> Result<(), Stopped> {
        (step.begun, step.seen) = (self.ticks.next(), false);
        self.history.lock().steps.push(step.clone());
        let answer = self.retry(fs, &step.act, step.xid).await?;
        self.learn(&step.act, answer)?;
        self.history.lock().answered(self.ticks.next());
        Ok(())
    }

    /// The call that had no answer when the process died, sent again, with its transaction id: to a
    /// server that may have done it.
    pub async fn again(&self, fs: &Fs, step: Step, was_done: bool) -> Result<(), Stopped> {
        if !was_done {
            return self.send(fs, step).await;
        }
        let answer = self.retry(fs, &step.act, step.xid).await?;
        let Act::Make { id, .. } = step.act else { return Ok(()) };
        let known = self.history.lock().refs.get(&id).copied();
        if known == answer.made {
            return Ok(());
        }
        Err(Stopped::Wrong(format!(
            "{:?} was done as {known:?}, sent again it is {:?} (R20)",
            step.act, answer.made
        )))
    }

    async fn retry(&self, fs: &Fs, act: &Act, xid: u32) -> Result<Answer, Stopped> {
        loop {
            match self.call(fs, act, xid).await {
                Ok(answer) => return Ok(answer),
                Err(FsError::Fenced | FsError::Stale) => return Err(Stopped::Lost),
                Err(error) if matches!(error.class(), Class::Unavailable | Class::InProgress) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(Stopped::Wrong(format!("{act:?} answers {error}"))),
            }
        }
    }

    fn file(&self, id: Id) -> FileRef {
        self.history.lock().refs[&id]
    }

    async fn call(&self, fs: &Fs, act: &Act, xid: u32) -> Result<Answer, FsError> {
        let id = CallId { client: self.number, xid, checksum: u64::from(xid) };
        let caller = Caller { call: Some(id), ..Caller::root() };
        let both = |(from, to): (Change, Change)| Answer::of([from.after, to.after]);
        Ok(match act {
            Act::Make { dir, name, id, what } => {
                let (dir, name) = (self.file(*dir), files::name(name));
                Answer::made(&match what {
                    What::Guarded(bits) => {
                        fs.create(&caller, dir, &name, CreateHow::Guarded(mode(*bits))).await?
                    }
                    What::Unchecked(bits) => {
                        fs.create(&caller, dir, &name, CreateHow::Unchecked(mode(*bits))).await?
                    }
                    What::Exclusive(verifier) => {
                        fs.create(&caller, dir, &name, CreateHow::Exclusive(*verifier)).await?
                    }
                    What::Dir(bits) => fs.mkdir(&caller, dir, &name, mode(*bits)).await?,
                    What::Link => {
                        let target = Special::Symlink(format!("target {id}").into());
                        fs.make(&caller, dir, &name, target, SetAttr::default()).await?
                    }
                    What::Fifo => {
                        fs.make(&caller, dir, &name, Special::Fifo, SetAttr::default()).await?
                    }
                })
            }
            Act::Remove { dir, name } => {
                Answer::of([fs.remove(&caller, self.file(*dir), &files::name(name)).await?.after])
            }
            Act::Rmdir { dir, name } => {
                Answer::of([fs.rmdir(&caller, self.file(*dir), &files::name(name)).await?.after])
            }
            Act::Rename { from, to } => {
                let (a, b) = (files::name(from.1), files::name(to.1));
                both(fs.rename(&caller, (self.file(from.0), &a), (self.file(to.0), &b)).await?)
            }
            Act::Link { file, dir, name } => {
                let (attr, dir) =
                    fs.link(&caller, self.file(*file), self.file(*dir), &files::name(name)).await?;
                Answer::of([attr, dir.after])
            }
            Act::Mode { id, mode: bits } => {
                Answer::of([fs.setattr(&caller, self.file(*id), mode(*bits), None).await?.after])
            }
            Act::Truncate { file, size, by_create } => {
                let set = SetAttr { size: Some(u64::from(*size)), ..SetAttr::default() };
                match by_create {
                    Some((dir, name)) => {
                        let made = fs
                            .create(
                                &caller,
                                self.file(*dir),
                                &files::name(name),
                                CreateHow::Unchecked(set),
                            )
                            .await?;
                        Answer::of([made.attr])
                    }
                    None => {
                        Answer::of([fs.setattr(&caller, self.file(*file), set, None).await?.after])
                    }
                }
            }
            Act::Write { file, at, len, seed, sync } => {
                let data = crate::script::bytes(*seed, *len as usize);
                let stability = if *sync { Stability::FileSync } else { Stability::Unstable };
                Answer::of([fs
                    .write(&caller, self.file(*file), u64::from(*at), data.into(), stability)
                    .await?
                    .change
                    .after])
            }
            Act::Commit { file } => {
                fs.commit(&caller, self.file(*file), 0, 0).await?;
                Answer::default()
            }
        })
    }

    /// Handles are new (R7), and ctimes grow (R8).
    fn learn(&self, act: &Act, answer: Answer) -> Result<(), Stopped> {
        let mut history = self.history.lock();
        if let (Act::Make { id, .. }, Some(made)) = (act, answer.made) {
            if history.shown.contains_key(&made) {
                return Err(Stopped::Wrong(format!(
                    "{act:?} answers {made:?}, which was given out before (R7)"
                )));
            }
            history.refs.insert(*id, made);
        }
        for attr in answer.changed {
            let shown = history.shown.entry(attr.file).or_insert(Timestamp::from_nanos(0));
            // A repetition is answered with attributes as they are.
            if attr.ctime < *shown {
                return Err(Stopped::Wrong(format!(
                    "{act:?}: the ctime of {:?} goes back to {:?} from {shown:?} (R8)",
                    attr.file, attr.ctime
                )));
            }
            *shown = attr.ctime;
        }
        Ok(())
    }

    /// While it waits for its own call, the others wait for theirs.
    async fn watch_on(&self, fs: &Fs, rng: &mut StdRng) -> Result<(), Stopped> {
        if self.others.is_empty() {
            std::future::pending::<()>().await;
        }
        loop {
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..10))).await;
            self.watch(fs, rng).await?;
        }
    }

    /// Looks for what another client's call that has no answer yet does: if it is told that it is
    /// done, it must stay done (R15).
    async fn watch(&self, fs: &Fs, rng: &mut StdRng) -> Result<(), Stopped> {
        let Some(other) = any(rng, &self.others) else { return Ok(()) };
        let Some((xid, sign)) = sign_of_last(&other.lock()) else { return Ok(()) };
        match sign.shows(fs).await {
            Ok(false) => Ok(()),
            Ok(true) => {
                let mut history = other.lock();
                history.seen += 1;
                history
                    .steps
                    .iter_mut()
                    .filter(|step| step.xid == xid)
                    .for_each(|step| step.seen = true);
                Ok(())
            }
            Err(FsError::Fenced) => Err(Stopped::Lost),
            // The object may be gone, by a rename or a removal that came after.
            Err(_) => Ok(()),
        }
    }

    /// A file is what was last written, whatever of it is where.
    async fn look(&self, fs: &Fs, rng: &mut StdRng) -> Result<(), Stopped> {
        let file = {
            let history = self.history.lock();
            let files: Vec<Id> = history.data.keys().copied().collect();
            match files.len() {
                0 => return Ok(()),
                n => files[rng.random_range(0..n)],
            }
        };
        match files::try_read(fs, self.file(file)).await {
            Ok(data) if data == self.history.lock().data[&file] => Ok(()),
            Ok(data) => Err(Stopped::Wrong(format!(
                "file {file} reads as {} bytes that were not written so",
                data.len()
            ))),
            Err(FsError::Fenced | FsError::Stale) => Err(Stopped::Lost),
            Err(error) if matches!(error.class(), Class::Unavailable | Class::InProgress) => Ok(()),
            Err(error) => Err(Stopped::Wrong(format!("reading file {file}: {error}"))),
        }
    }
}

/// The evidence that a call was done.
enum Sign {
    Named(FileRef, Name),
    Unnamed(FileRef, Name),
    Mode(FileRef, u32),
    Size(FileRef, u64),
    Holds(FileRef, u64, Vec<u8>),
}

impl Sign {
    async fn shows(&self, fs: &Fs) -> Result<bool, FsError> {
        let caller = Caller::root();
        Ok(match self {
            Self::Named(dir, name) | Self::Unnamed(dir, name) => {
                let there = match fs.lookup(&caller, *dir, name.as_bytes()).await {
                    Ok(_) => true,
                    Err(FsError::NotFound) => false,
                    Err(error) => return Err(error),
                };
                there == matches!(self, Self::Named(..))
            }
            Self::Mode(file, mode) => fs.getattr(*file).await?.mode == *mode,
            Self::Size(file, size) => fs.getattr(*file).await?.size == *size,
            Self::Holds(file, at, bytes) => {
                fs.read(&caller, *file, *at, bytes.len() as u32).await?.data.concat() == *bytes
            }
        })
    }
}

/// The evidence for the call that a client waits for, if its effect differs from the state before
/// it.
fn sign_of_last(history: &History) -> Option<(u32, Sign)> {
    let step = history.steps.last().filter(|step| !step.is_known())?;
    let file = |id: &Id| history.refs.get(id).copied();
    let sign = match &step.act {
        Act::Make { dir, name, .. } | Act::Link { dir, name, .. } => Sign::Named(file(dir)?, name),
        Act::Remove { dir, name } | Act::Rmdir { dir, name } => Sign::Unnamed(file(dir)?, name),
        Act::Rename { from, .. } => Sign::Unnamed(file(&from.0)?, from.1),
        Act::Mode { id, mode } if history.now.objects[id].mode != *mode => {
            Sign::Mode(file(id)?, *mode)
        }
        Act::Truncate { file: of, size, .. } if history.data[of].len() != *size as usize => {
            Sign::Size(file(of)?, u64::from(*size))
        }
        Act::Write { file: of, at, len, seed, .. } => {
            let (old, start) = (&history.data[of], *at as usize);
            let new = crate::script::bytes(*seed, *len as usize);
            let is_new = old.get(start..start + new.len()).is_none_or(|old| old != new);
            Sign::Holds(file(of)?, u64::from(*at), is_new.then_some(new)?)
        }
        Act::Mode { .. } | Act::Truncate { .. } | Act::Commit { .. } => return None,
    };
    Some((step.xid, sign))
}

fn any<T: Clone>(rng: &mut StdRng, all: &[T]) -> Option<T> {
    (!all.is_empty()).then(|| all[rng.random_range(0..all.len())].clone())
}

/// A call that must succeed; `None`: not this time.
fn propose(history: &History, rng: &mut StdRng) -> Option<Act> {
    let tree = &history.now;
    let of = |wanted: &dyn Fn(&Kind) -> bool| -> Vec<Id> {
        tree.objects.iter().filter(|(_, object)| wanted(&object.kind)).map(|(id, _)| *id).collect()
    };
    let dirs = of(&|kind| matches!(kind, Kind::Dir(_)));
    let files = of(&|kind| *kind == Kind::File);
    let named: Vec<(Id, Name)> = dirs
        .iter()
        .flat_map(|dir| tree.entries(*dir).keys().map(move |name| (*dir, *name)))
        .collect();
    let (dir, name) = (any(rng, &dirs)?, any(rng, &NAMES)?);
    let free = tree.at((dir, name)).is_none();
    let bits = [0o644, 0o600, 0o755, 0o711][rng.random_range(0..4)];
    let id = history.ids + 1;
    match rng.random_range(0..100) {
        0..16 => {
            let what = [What::Guarded(bits), What::Unchecked(bits), What::Exclusive(rng.random())]
                [rng.random_range(0..3)];
            free.then_some(Act::Make { dir, name, id, what })
        }
        16..22 => (free && dirs.len() < DIRS_MAX).then_some(Act::Make {
            dir,
            name,
            id,
            what: What::Dir(bits),
        }),
        22..25 => {
            let what = if rng.random_bool(0.5) { What::Link } else { What::Fifo };
            free.then_some(Act::Make { dir, name, id, what })
        }
        25..33 => {
            let (dir, name) = any(rng, &named)?;
            let id = tree.at((dir, name))?;
            match &tree.objects[&id].kind {
                Kind::Dir(entries) => entries.is_empty().then_some(Act::Rmdir { dir, name }),
                _ => Some(Act::Remove { dir, name }),
            }
        }
        33..46 => rename(history, any(rng, &named)?, (dir, name)),
        46..51 => free.then_some(Act::Link { file: any(rng, &files)?, dir, name }),
        51..56 => {
            let id = any(rng, &named).and_then(|at| tree.at(at))?;
            let plain = !matches!(tree.objects[&id].kind, Kind::Link(_));
            plain.then_some(Act::Mode { id, mode: bits })
        }
        56..63 => {
            let at = any(rng, &named)?;
            truncate(history, rng, at)
        }
        63..90 => {
            let file = any(rng, &files)?;
            write(rng, file)
        }
        _ => Some(Act::Commit { file: any(rng, &files)? }),
    }
}

fn rename(history: &History, from: (Id, Name), to: (Id, Name)) -> Option<Act> {
    let tree = &history.now;
    let (source, target) = (tree.at(from)?, tree.at(to));
    if target == Some(source) {
        return None;
    }
    let fits = match target {
        Some(target) if tree.is_dir(source) => {
            tree.is_dir(target) && tree.entries(target).is_empty()
        }
        Some(target) => !tree.is_dir(target),
        None => true,
    };
    // Not into itself.
    let mut within = vec![source];
    while let Some(id) = within.pop() {
        if id == to.0 {
            return None;
        }
        if tree.is_dir(id) {
            within.extend(tree.entries(id).values());
        }
    }
    fits.then_some(Act::Rename { from, to })
}

fn truncate(history: &History, rng: &mut StdRng, at: (Id, Name)) -> Option<Act> {
    let file = history.now.at(at)?;
    if history.now.objects[&file].kind != Kind::File {
        return None;
    }
    let size =
        [0, rng.random_range(0..SIZE_MAX), 4096 * rng.random_range(0..9)][rng.random_range(0..3)];
    let by_create = rng.random_bool(0.3).then_some(at);
    Some(Act::Truncate { file, size, by_create })
}

fn write(rng: &mut StdRng, file: Id) -> Option<Act> {
    let (at, len) = match rng.random_range(0..40) {
        0 => (0, LONG),
        1..4 => (4096 * rng.random_range(0..4), rng.random_range(30_000..90_000)),
        4..16 => (4096 * rng.random_range(0..9), [4096, 8192][rng.random_range(0..2)]),
        _ => (rng.random_range(0..SIZE_MAX), rng.random_range(1..9000)),
    };
    Some(Act::Write { file, at, len, seed: rng.random(), sync: rng.random_bool(0.15) })
}

/// The client's directory is made, in the store.
pub async fn settle_in(fs: &Fs, number: u64) -> Result<FileRef, FsError> {
    let name = files::name(&format!("client {number}"));
    let made = fs.mkdir(&Caller::root(), fs.root(), &name, mode(0o755)).await?.attr.file;
    fs.sync().await.map(|()| made)
}
