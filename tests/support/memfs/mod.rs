//! A file system in memory, for tests and benches of the edges: all that NFSv3 can carry, with
//! POSIX meaning.
//!
//! Tests make it misbehave through [`Faults`].

mod calls;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use tokio::sync::Semaphore;
use zerofs_csi::fs::api::*;
use zerofs_csi::fs::{FsError, Throttle};
use zerofs_csi::types::{EntryName, InodeNo, IoLimits, Timestamp};

type Result<T> = std::result::Result<T, FsError>;

const BLOCK: u64 = 64 << 10;
const RING: usize = 1024;
/// `..`'s cookie is 2; those of entries follow.
const FIRST_COOKIE: u64 = 3;

#[derive(Clone)]
enum Content {
    File(BTreeMap<u64, Bytes>),
    Dir { parent: u64, names: HashMap<Box<[u8]>, u64>, order: BTreeMap<u64, (Bytes, u64)> },
    Link(Bytes),
    Other,
}

struct Node {
    attr: Attr,
    content: Content,
    exclusive: Option<[u8; 8]>,
}

/// The answer of a call that must not be done twice.
#[derive(Clone)]
enum Outcome {
    Created(Created),
    Changed(Change),
    Renamed(Change, Change),
    Linked(Attr, Change),
}

struct State {
    nodes: HashMap<u64, Node>,
    next_ino: u64,
    next_cookie: u64,
    clock: i64,
    ring: VecDeque<CallId>,
    outcomes: HashMap<CallId, Outcome>,
    bytes: u64,
}

/// The faults of the file system.
#[derive(Default)]
pub struct Faults {
    any: AtomicBool,
    /// READs take a permit each, for ever.
    pub reads: Mutex<Option<Arc<Semaphore>>>,
    /// The next WRITEs wait for one of these each; those that follow do not.
    pub writes: Mutex<VecDeque<Arc<Semaphore>>>,
    /// COMMITs and REMOVEs take a permit each, for ever.
    pub slow: Mutex<Option<Arc<Semaphore>>>,
    /// The number of calls that find no object store.
    pub unavailable: AtomicU32,
    /// Another owner has taken over.
    pub fenced: AtomicBool,
}

pub struct MemFs {
    state: Mutex<State>,
    pub faults: Faults,
    pub verifier: AtomicU64,
    pub quota: AtomicU64,
    /// Changes made, repetitions not counted.
    pub changes: AtomicU64,
    pub throttle: Arc<Throttle>,
}

impl Default for MemFs {
    fn default() -> Self {
        let mut state = State {
            nodes: HashMap::new(),
            next_ino: InodeNo::ROOT.0,
            next_cookie: FIRST_COOKIE,
            clock: Timestamp::now().as_nanos(),
            ring: VecDeque::new(),
            outcomes: HashMap::new(),
            bytes: 0,
        };
        let caller = Caller::root();
        let set = SetAttr { mode: Some(0o777), ..SetAttr::default() };
        state.add(&caller, FileKind::Directory, &set, state.next_ino, None);
        Self {
            state: Mutex::new(state),
            faults: Faults::default(),
            verifier: AtomicU64::new(rand::random()),
            quota: AtomicU64::new(1 << 40),
            changes: AtomicU64::new(0),
            throttle: Throttle::new(IoLimits::default()),
        }
    }
}

fn may(caller: &Caller, attr: &Attr, bits: u32) -> bool {
    if caller.uid == 0 {
        return true;
    }
    let class = if caller.uid == attr.uid {
        attr.mode >> 6
    } else if caller.gid == attr.gid || caller.groups.contains(&attr.gid) {
        attr.mode >> 3
    } else {
        attr.mode
    };
    class & bits == bits
}

fn need(caller: &Caller, attr: &Attr, bits: u32) -> Result<()> {
    if may(caller, attr, bits) { Ok(()) } else { Err(FsError::Access) }
}

impl State {
    fn now(&mut self) -> Timestamp {
        self.clock = (self.clock + 1).max(Timestamp::now().as_nanos());
        Timestamp::from_nanos(self.clock)
    }

    fn add(
        &mut self,
        caller: &Caller,
        kind: FileKind,
        set: &SetAttr,
        parent: u64,
        content: Option<Content>,
    ) -> u64 {
        let now = self.now();
        let ino = self.next_ino;
        self.next_ino += 1;
        let inherited = self
            .nodes
            .get(&parent)
            .filter(|dir| dir.attr.mode & 0o2000 != 0)
            .map(|dir| dir.attr.gid);
        let directory = kind == FileKind::Directory;
        let mut mode = set.mode.unwrap_or(if directory { 0o755 } else { 0o644 });
        if directory && inherited.is_some() {
            mode |= 0o2000;
        }
        let at = |set| match set {
            SetTime::To(at) => at,
            SetTime::Keep | SetTime::Now => now,
        };
        let attr = Attr {
            file: FileRef { ino: InodeNo(ino), generation: 1 },
            kind,
            mode,
            uid: set.uid.unwrap_or(caller.uid),
            gid: set.gid.or(inherited).unwrap_or(caller.gid),
            nlink: if directory { 2 } else { 1 },
            size: if directory { 4096 } else { 0 },
            allocated: 0,
            rdev: (0, 0),
            atime: at(set.atime),
            mtime: at(set.mtime),
            ctime: now,
        };
        let content = content.unwrap_or_else(|| match kind {
            FileKind::Regular => Content::File(BTreeMap::new()),
            FileKind::Directory => {
                Content::Dir { parent, names: HashMap::new(), order: BTreeMap::new() }
            }
            _ => Content::Other,
        });
        self.nodes.insert(ino, Node { attr, content, exclusive: None });
        ino
    }

    fn node(&self, file: FileRef) -> Result<&Node> {
        self.nodes.get(&file.ino.0).filter(|node| node.attr.file == file).ok_or(FsError::Stale)
    }

    fn node_mut(&mut self, file: FileRef) -> Result<&mut Node> {
        self.nodes.get_mut(&file.ino.0).filter(|node| node.attr.file == file).ok_or(FsError::Stale)
    }

    fn dir(&self, file: FileRef) -> Result<&Node> {
        let node = self.node(file)?;
        if node.attr.kind == FileKind::Directory { Ok(node) } else { Err(FsError::NotDirectory) }
    }

    fn find(&self, dir: FileRef, name: &[u8]) -> Result<Option<u64>> {
        let node = self.dir(dir)?;
        let Content::Dir { parent, names, order } = &node.content else {
            return Err(FsError::NotDirectory);
        };
        Ok(match name {
            b"." => Some(dir.ino.0),
            b".." => Some(*parent),
            _ => names.get(name).map(|cookie| order[cookie].1),
        })
    }

    /// Changes the entry `name` and stamps the directory.
    fn set_entry(&mut self, dir: FileRef, name: &[u8], ino: Option<u64>) -> Result<Change> {
        let now = self.now();
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let node = self.node_mut(dir)?;
        let before = Before::from(&node.attr);
        let Content::Dir { names, order, .. } = &mut node.content else {
            return Err(FsError::NotDirectory);
        };
        match ino {
            Some(ino) => {
                names.insert(name.into(), cookie);
                order.insert(cookie, (Bytes::copy_from_slice(name), ino));
            }
            None => {
                let cookie = names.remove(name).ok_or(FsError::NotFound)?;
                order.remove(&cookie);
            }
        }
        (node.attr.mtime, node.attr.ctime) = (now, now);
        Ok(Change { before: Some(before), after: node.attr })
    }

    fn drop_link(&mut self, ino: u64) {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        node.attr.nlink = node.attr.nlink.saturating_sub(1);
        node.attr.ctime = now;
        if node.attr.nlink == 0 || node.attr.kind == FileKind::Directory {
            self.bytes -= node.attr.allocated;
            self.nodes.remove(&ino);
        }
    }

    fn stamp_link(&mut self, ino: u64, by: i32) -> Option<Attr> {
        let now = self.now();
        let node = self.nodes.get_mut(&ino)?;
        node.attr.nlink = node.attr.nlink.saturating_add_signed(by);
        node.attr.ctime = now;
        Some(node.attr)
    }

    /// True if the caller may remove or replace `ino` in `dir` (sticky bit).
    fn may_unlink(&self, caller: &Caller, dir: &Attr, ino: u64) -> Result<()> {
        need(caller, dir, 0o3)?;
        let owner = self.nodes.get(&ino).map_or(0, |node| node.attr.uid);
        if dir.mode & 0o1000 != 0 && caller.uid != 0 && caller.uid != dir.uid && caller.uid != owner
        {
            return Err(FsError::NotOwner);
        }
        Ok(())
    }

    fn is_empty(&self, ino: u64) -> bool {
        match self.nodes.get(&ino).map(|node| &node.content) {
            Some(Content::Dir { names, .. }) => names.is_empty(),
            _ => true,
        }
    }

    /// True if directory `ino` is `of` or lies below it.
    fn is_below(&self, mut ino: u64, of: u64) -> bool {
        loop {
            if ino == of {
                return true;
            }
            match self.nodes.get(&ino).map(|node| &node.content) {
                Some(Content::Dir { parent, .. }) if *parent != ino => ino = *parent,
                _ => return false,
            }
        }
    }

    fn resize(&mut self, file: FileRef, size: u64) -> Result<()> {
        let node = self.node_mut(file)?;
        let Content::File(blocks) = &mut node.content else {
            return Err(FsError::Invalid("size of something else than a file"));
        };
        blocks.retain(|index, _| index * BLOCK < size);
        if let Some(block) = blocks.get_mut(&(size / BLOCK)) {
            block.truncate((size % BLOCK) as usize);
        }
        let allocated = blocks.values().map(|block| block.len() as u64).sum();
        let freed = node.attr.allocated - allocated;
        (node.attr.size, node.attr.allocated) = (size, allocated);
        self.bytes -= freed;
        Ok(())
    }

    fn remember(&mut self, call: Option<CallId>, outcome: Outcome) {
        let Some(call) = call else { return };
        if self.ring.len() == RING
            && let Some(oldest) = self.ring.pop_front()
        {
            self.outcomes.remove(&oldest);
        }
        self.ring.push_back(call);
        self.outcomes.insert(call, outcome);
    }
}

/// Puts `data` at `at` in a block, filling a gap with zeroes.
fn patch(block: Bytes, at: usize, data: &Bytes) -> Bytes {
    if at == 0 && data.len() >= block.len() {
        return data.clone();
    }
    let mut bytes = block.try_into_mut().unwrap_or_else(|block| BytesMut::from(&block[..]));
    let end = at + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(data);
    bytes.freeze()
}

fn sgid_cleared(caller: &Caller, attr: &mut Attr) {
    if caller.uid != 0 {
        attr.mode &= !0o4000;
        if attr.mode & 0o010 != 0 {
            attr.mode &= !0o2000;
        }
    }
}

impl MemFs {
    pub fn inject(&self) -> &Faults {
        self.faults.any.store(true, Ordering::Release);
        &self.faults
    }

    async fn pass(&self, gate: &Mutex<Option<Arc<Semaphore>>>) {
        let gate = gate.lock().clone();
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
    }

    fn enter(&self) -> Result<()> {
        if !self.faults.any.load(Ordering::Acquire) {
            return Ok(());
        }
        if self.faults.fenced.load(Ordering::Acquire) {
            return Err(FsError::Fenced);
        }
        let left =
            self.faults
                .unavailable
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        if left.is_ok() { Err(FsError::Unavailable("a test says so".into())) } else { Ok(()) }
    }

    fn repeated(state: &State, caller: &Caller) -> Option<Outcome> {
        caller.call.and_then(|call| state.outcomes.get(&call).cloned())
    }

    fn insert(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        make: impl FnOnce(&mut State) -> Result<u64>,
    ) -> Result<Created> {
        let mut state = self.state.lock();
        if let Some(Outcome::Created(done)) = Self::repeated(&state, caller) {
            return Ok(done);
        }
        let attr = state.dir(dir)?.attr;
        need(caller, &attr, 0o1)?;
        if state.find(dir, name.as_bytes())?.is_some() {
            return Err(FsError::Exists);
        }
        need(caller, &attr, 0o3)?;
        let ino = make(&mut state)?;
        let mut change = state.set_entry(dir, name.as_bytes(), Some(ino))?;
        let attr = state.nodes[&ino].attr;
        if attr.kind == FileKind::Directory
            && let Some(after) = state.stamp_link(dir.ino.0, 1)
        {
            change.after = after;
        }
        let created = Created { attr, dir: change };
        state.remember(caller.call, Outcome::Created(created));
        self.changes.fetch_add(1, Ordering::Relaxed);
        Ok(created)
    }

    fn unlink(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        directory: bool,
    ) -> Result<Change> {
        let mut state = self.state.lock();
        if let Some(Outcome::Changed(done)) = Self::repeated(&state, caller) {
            return Ok(done);
        }
        let attr = state.dir(dir)?.attr;
        need(caller, &attr, 0o1)?;
        let ino = state.find(dir, name.as_bytes())?.ok_or(FsError::NotFound)?;
        state.may_unlink(caller, &attr, ino)?;
        let is_directory = state.nodes[&ino].attr.kind == FileKind::Directory;
        match (directory, is_directory) {
            (true, false) => return Err(FsError::NotDirectory),
            (false, true) => return Err(FsError::IsDirectory),
            (true, true) if !state.is_empty(ino) => return Err(FsError::NotEmpty),
            _ => {}
        }
        let mut change = state.set_entry(dir, name.as_bytes(), None)?;
        state.drop_link(ino);
        if directory && let Some(after) = state.stamp_link(dir.ino.0, -1) {
            change.after = after;
        }
        state.remember(caller.call, Outcome::Changed(change));
        self.changes.fetch_add(1, Ordering::Relaxed);
        Ok(change)
    }

    fn apply(state: &mut State, caller: &Caller, file: FileRef, set: &SetAttr) -> Result<()> {
        let attr = state.node(file)?.attr;
        let owner = caller.uid == 0 || caller.uid == attr.uid;
        let set_times = |set| matches!(set, SetTime::To(_));
        if (set.mode.is_some() || set_times(set.atime) || set_times(set.mtime)) && !owner {
            return Err(FsError::NotOwner);
        }
        if (set.atime == SetTime::Now || set.mtime == SetTime::Now) && !owner {
            need(caller, &attr, 0o2)?;
        }
        if caller.uid != 0 {
            let foreign_group =
                |gid| gid != attr.gid && gid != caller.gid && !caller.groups.contains(&gid);
            if set.uid.is_some_and(|uid| uid != attr.uid)
                || set.gid.is_some_and(|gid| !owner || foreign_group(gid))
            {
                return Err(FsError::NotOwner);
            }
        }
        if let Some(size) = set.size {
            if attr.kind == FileKind::Directory {
                return Err(FsError::IsDirectory);
            }
            if size > FILE_BYTES_MAX {
                return Err(FsError::TooBig);
            }
            if !owner {
                need(caller, &attr, 0o2)?;
            }
            state.resize(file, size)?;
        }
        let now = state.now();
        let attr = &mut state.node_mut(file)?.attr;
        if set.size.is_some() {
            attr.mtime = now;
        }
        if set.uid.is_some() || set.gid.is_some() {
            sgid_cleared(caller, attr);
        }
        attr.mode = set.mode.unwrap_or(attr.mode);
        attr.uid = set.uid.unwrap_or(attr.uid);
        attr.gid = set.gid.unwrap_or(attr.gid);
        for (time, set) in [(&mut attr.atime, set.atime), (&mut attr.mtime, set.mtime)] {
            match set {
                SetTime::Keep => {}
                SetTime::Now => *time = now,
                SetTime::To(at) => *time = at,
            }
        }
        attr.ctime = now;
        Ok(())
    }
}
