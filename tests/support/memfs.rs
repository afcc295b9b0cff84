//! A file system in memory, for tests and benches of the edges: all that NFSv3 can carry, with
//! POSIX meaning.
//!
//! Tests make it misbehave through [`Faults`].

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

impl FileSystem for MemFs {
    fn root(&self) -> FileRef {
        FileRef { ino: InodeNo::ROOT, generation: 1 }
    }

    fn write_verifier(&self) -> [u8; 8] {
        self.verifier.load(Ordering::Relaxed).to_be_bytes()
    }

    fn throttle(&self) -> Option<&Arc<Throttle>> {
        Some(&self.throttle)
    }

    async fn getattr(&self, file: FileRef) -> Result<Attr> {
        self.enter()?;
        Ok(self.state.lock().node(file)?.attr)
    }

    async fn setattr(
        &self,
        caller: &Caller,
        file: FileRef,
        set: SetAttr,
        guard: Option<Timestamp>,
    ) -> Result<Change> {
        self.enter()?;
        let mut state = self.state.lock();
        if let Some(Outcome::Changed(done)) = Self::repeated(&state, caller) {
            return Ok(done);
        }
        let before = state.node(file)?.attr;
        if guard.is_some_and(|guard| guard != before.ctime) {
            return Err(FsError::NotSync);
        }
        Self::apply(&mut state, caller, file, &set)?;
        let change = Change { before: Some(Before::from(&before)), after: state.node(file)?.attr };
        state.remember(caller.call, Outcome::Changed(change));
        self.changes.fetch_add(1, Ordering::Relaxed);
        Ok(change)
    }

    async fn lookup(&self, caller: &Caller, dir: FileRef, name: &[u8]) -> Result<(Attr, Attr)> {
        self.enter()?;
        let state = self.state.lock();
        let attr = state.dir(dir)?.attr;
        need(caller, &attr, 0o1)?;
        let ino = state.find(dir, name)?.ok_or(FsError::NotFound)?;
        Ok((state.nodes[&ino].attr, attr))
    }

    async fn access(&self, caller: &Caller, file: FileRef, want: u32) -> Result<(u32, Attr)> {
        self.enter()?;
        let attr = self.state.lock().node(file)?.attr;
        let directory = attr.kind == FileKind::Directory;
        let mut granted = 0;
        if may(caller, &attr, 0o4) {
            granted |= access::READ;
        }
        if may(caller, &attr, 0o2) {
            granted |= access::MODIFY | access::EXTEND | if directory { access::DELETE } else { 0 };
        }
        if may(caller, &attr, 0o1) && (directory || caller.uid != 0 || attr.mode & 0o111 != 0) {
            granted |= if directory { access::LOOKUP } else { access::EXECUTE };
        }
        Ok((granted & want, attr))
    }

    async fn readlink(&self, _caller: &Caller, file: FileRef) -> Result<(Bytes, Attr)> {
        self.enter()?;
        let state = self.state.lock();
        let node = state.node(file)?;
        match &node.content {
            Content::Link(target) => Ok((target.clone(), node.attr)),
            _ => Err(FsError::Invalid("not a symbolic link")),
        }
    }

    async fn read(
        &self,
        caller: &Caller,
        file: FileRef,
        offset: u64,
        count: u32,
    ) -> Result<ReadOut> {
        self.enter()?;
        if self.faults.any.load(Ordering::Acquire) {
            self.pass(&self.faults.reads).await;
        }
        let state = self.state.lock();
        let node = state.node(file)?;
        let attr = node.attr;
        let Content::File(blocks) = &node.content else {
            let directory = attr.kind == FileKind::Directory;
            return Err(if directory {
                FsError::IsDirectory
            } else {
                FsError::Invalid("not a file")
            });
        };
        if caller.uid != attr.uid {
            // An executable is read to be executed (RFC 1813 §4.4).
            need(caller, &attr, 0o4).or_else(|_| need(caller, &attr, 0o1))?;
        }
        let end = attr.size.min(offset.saturating_add(u64::from(count)));
        let (mut at, mut data) = (offset, Vec::new());
        while at < end {
            let from = (at % BLOCK) as usize;
            let upto = (end - at).min(BLOCK - at % BLOCK) as usize + from;
            let held = blocks.get(&(at / BLOCK)).map_or(Bytes::new(), |block| {
                block.slice(from.min(block.len())..upto.min(block.len()))
            });
            let missing = upto - from - held.len();
            if !held.is_empty() {
                data.push(held);
            }
            if missing > 0 {
                data.push(Bytes::from(vec![0; missing]));
            }
            at += (upto - from) as u64;
        }
        Ok(ReadOut { data, eof: offset.saturating_add(u64::from(count)) >= attr.size, attr })
    }

    async fn write(
        &self,
        caller: &Caller,
        file: FileRef,
        offset: u64,
        data: Bytes,
        stability: Stability,
    ) -> Result<Written> {
        self.enter()?;
        if self.faults.any.load(Ordering::Acquire) {
            let held = Mutex::new(self.faults.writes.lock().pop_front());
            self.pass(&held).await;
        }
        let mut state = self.state.lock();
        let quota = self.quota.load(Ordering::Relaxed);
        let (now, used) = (state.now(), state.bytes);
        let node = state.node_mut(file)?;
        let before = Before::from(&node.attr);
        if caller.uid != node.attr.uid {
            need(caller, &node.attr, 0o2)?;
        }
        let Content::File(blocks) = &mut node.content else {
            return Err(FsError::Invalid("not a file"));
        };
        let end = offset
            .checked_add(data.len() as u64)
            .filter(|end| *end <= FILE_BYTES_MAX)
            .ok_or(FsError::TooBig)?;
        if used + data.len() as u64 > quota {
            return Err(FsError::NoSpace);
        }
        let (mut at, mut added) = (offset, 0);
        while at < end {
            let from = (at % BLOCK) as usize;
            let len = (end - at).min(BLOCK - at % BLOCK) as usize;
            let start = (at - offset) as usize;
            let block = blocks.entry(at / BLOCK).or_default();
            let had = block.len();
            *block = patch(std::mem::take(block), from, &data.slice(start..start + len));
            added += block.len() - had;
            at += len as u64;
        }
        if !data.is_empty() {
            sgid_cleared(caller, &mut node.attr);
            node.attr.size = node.attr.size.max(end);
            node.attr.allocated += added as u64;
            (node.attr.mtime, node.attr.ctime) = (now, now);
        }
        let change = Change { before: Some(before), after: node.attr };
        state.bytes += added as u64;
        Ok(Written { count: data.len() as u32, committed: stability, change })
    }

    async fn commit(
        &self,
        _caller: &Caller,
        file: FileRef,
        _offset: u64,
        _count: u32,
    ) -> Result<Change> {
        self.enter()?;
        if self.faults.any.load(Ordering::Acquire) {
            self.pass(&self.faults.slow).await;
        }
        let attr = self.state.lock().node(file)?.attr;
        Ok(Change { before: Some(Before::from(&attr)), after: attr })
    }

    async fn create(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        how: CreateHow,
    ) -> Result<Created> {
        self.enter()?;
        let (set, verifier) = match how {
            CreateHow::Unchecked(set) | CreateHow::Guarded(set) => (set, None),
            CreateHow::Exclusive(verifier) => (SetAttr::default(), Some(verifier)),
        };
        let made = self.insert(caller, dir, name, |state| {
            let ino = state.add(caller, FileKind::Regular, &set, dir.ino.0, None);
            state.nodes.get_mut(&ino).unwrap().exclusive = verifier;
            if let Some(size) = set.size {
                let file = state.nodes[&ino].attr.file;
                state.resize(file, size)?;
            }
            Ok(ino)
        });
        let Err(FsError::Exists) = made else { return made };
        let mut state = self.state.lock();
        let dir_attr = state.dir(dir)?.attr;
        let ino = state.find(dir, name.as_bytes())?.ok_or(FsError::NotFound)?;
        let node = &state.nodes[&ino];
        let file = node.attr.file;
        match how {
            CreateHow::Exclusive(verifier) if node.exclusive == Some(verifier) => {}
            CreateHow::Unchecked(set) if node.attr.kind == FileKind::Regular => {
                if set.size.is_some() {
                    Self::apply(
                        &mut state,
                        caller,
                        file,
                        &SetAttr { size: set.size, ..SetAttr::default() },
                    )?;
                }
            }
            CreateHow::Unchecked(_) | CreateHow::Guarded(_) | CreateHow::Exclusive(_) => {
                return Err(FsError::Exists);
            }
        }
        let dir = Change { before: Some(Before::from(&dir_attr)), after: dir_attr };
        Ok(Created { attr: state.node(file)?.attr, dir })
    }

    async fn mkdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        set: SetAttr,
    ) -> Result<Created> {
        self.enter()?;
        self.insert(caller, dir, name, |state| {
            Ok(state.add(caller, FileKind::Directory, &set, dir.ino.0, None))
        })
    }

    async fn make(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        what: Special,
        set: SetAttr,
    ) -> Result<Created> {
        self.enter()?;
        let (kind, rdev, content) = match what {
            Special::Symlink(target) => (FileKind::Symlink, (0, 0), Content::Link(target)),
            Special::BlockDevice(major, minor) => {
                (FileKind::BlockDevice, (major, minor), Content::Other)
            }
            Special::CharDevice(major, minor) => {
                (FileKind::CharDevice, (major, minor), Content::Other)
            }
            Special::Fifo => (FileKind::Fifo, (0, 0), Content::Other),
            Special::Socket => (FileKind::Socket, (0, 0), Content::Other),
        };
        if rdev != (0, 0) && caller.uid != 0 {
            return Err(FsError::NotOwner);
        }
        self.insert(caller, dir, name, |state| {
            let size = if let Content::Link(target) = &content { target.len() as u64 } else { 0 };
            let ino = state.add(caller, kind, &set, dir.ino.0, Some(content));
            let attr = &mut state.nodes.get_mut(&ino).unwrap().attr;
            (attr.rdev, attr.size) = (rdev, size);
            Ok(ino)
        })
    }

    async fn remove(&self, caller: &Caller, dir: FileRef, name: &EntryName) -> Result<Change> {
        self.enter()?;
        if self.faults.any.load(Ordering::Acquire) {
            self.pass(&self.faults.slow).await;
        }
        self.unlink(caller, dir, name, false)
    }

    async fn rmdir(&self, caller: &Caller, dir: FileRef, name: &EntryName) -> Result<Change> {
        self.enter()?;
        self.unlink(caller, dir, name, true)
    }

    async fn rename(
        &self,
        caller: &Caller,
        from: (FileRef, &EntryName),
        to: (FileRef, &EntryName),
    ) -> Result<(Change, Change)> {
        self.enter()?;
        let mut state = self.state.lock();
        if let Some(Outcome::Renamed(a, b)) = Self::repeated(&state, caller) {
            return Ok((a, b));
        }
        let (from_attr, to_attr) = (state.dir(from.0)?.attr, state.dir(to.0)?.attr);
        let ino = state.find(from.0, from.1.as_bytes())?.ok_or(FsError::NotFound)?;
        state.may_unlink(caller, &from_attr, ino)?;
        let over = state.find(to.0, to.1.as_bytes())?;
        state.may_unlink(caller, &to_attr, over.unwrap_or(ino))?;
        let unchanged = |attr: &Attr| Change { before: Some(Before::from(attr)), after: *attr };
        if over == Some(ino) {
            return Ok((unchanged(&from_attr), unchanged(&to_attr)));
        }
        let directory = state.nodes[&ino].attr.kind == FileKind::Directory;
        if directory && state.is_below(to.0.ino.0, ino) {
            return Err(FsError::Invalid("a directory cannot move below itself"));
        }
        if let Some(over) = over {
            match (directory, state.nodes[&over].attr.kind == FileKind::Directory) {
                (true, false) => return Err(FsError::NotDirectory),
                (false, true) => return Err(FsError::IsDirectory),
                (true, true) if !state.is_empty(over) => return Err(FsError::NotEmpty),
                _ => {}
            }
            state.set_entry(to.0, to.1.as_bytes(), None)?;
            state.drop_link(over);
            if directory {
                state.stamp_link(to.0.ino.0, -1);
            }
        }
        let mut one = state.set_entry(from.0, from.1.as_bytes(), None)?;
        let mut two = state.set_entry(to.0, to.1.as_bytes(), Some(ino))?;
        state.stamp_link(ino, 0);
        if directory && from.0 != to.0 {
            one.after = state.stamp_link(from.0.ino.0, -1).unwrap();
            two.after = state.stamp_link(to.0.ino.0, 1).unwrap();
            if let Some(Node { content: Content::Dir { parent, .. }, .. }) =
                state.nodes.get_mut(&ino)
            {
                *parent = to.0.ino.0;
            }
        }
        (one.before, two.before) = (Some(Before::from(&from_attr)), Some(Before::from(&to_attr)));
        state.remember(caller.call, Outcome::Renamed(one, two));
        self.changes.fetch_add(1, Ordering::Relaxed);
        Ok((one, two))
    }

    async fn link(
        &self,
        caller: &Caller,
        file: FileRef,
        dir: FileRef,
        name: &EntryName,
    ) -> Result<(Attr, Change)> {
        self.enter()?;
        let mut state = self.state.lock();
        if let Some(Outcome::Linked(attr, change)) = Self::repeated(&state, caller) {
            return Ok((attr, change));
        }
        if state.node(file)?.attr.kind == FileKind::Directory {
            return Err(FsError::NotOwner);
        }
        need(caller, &state.dir(dir)?.attr, 0o3)?;
        if state.find(dir, name.as_bytes())?.is_some() {
            return Err(FsError::Exists);
        }
        let change = state.set_entry(dir, name.as_bytes(), Some(file.ino.0))?;
        let attr = state.stamp_link(file.ino.0, 1).ok_or(FsError::Stale)?;
        state.remember(caller.call, Outcome::Linked(attr, change));
        self.changes.fetch_add(1, Ordering::Relaxed);
        Ok((attr, change))
    }

    async fn readdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        after: DirCookie,
        limit: ListLimit,
    ) -> Result<Listing> {
        self.enter()?;
        let state = self.state.lock();
        let node = state.dir(dir)?;
        need(caller, &node.attr, 0o4)?;
        let Content::Dir { parent, order, .. } = &node.content else {
            return Err(FsError::NotDirectory);
        };
        let dots =
            [(1, Bytes::from_static(b"."), dir.ino.0), (2, Bytes::from_static(b".."), *parent)];
        let rest = order
            .range(FIRST_COOKIE.max(after.0 + 1)..)
            .map(|(cookie, (name, ino))| (*cookie, name.clone(), *ino));
        let mut all =
            dots.into_iter().filter(|(cookie, ..)| *cookie > after.0).chain(rest).peekable();
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while let Some((cookie, name, ino)) = all.peek() {
            bytes += name.len() + limit.entry_bytes;
            if !entries.is_empty() && (entries.len() >= limit.entries || bytes > limit.bytes) {
                break;
            }
            let attr = limit.with_attr.then(|| state.nodes[ino].attr);
            entries.push(DirEntry {
                name: name.clone(),
                ino: InodeNo(*ino),
                cookie: DirCookie(*cookie),
                attr,
            });
            all.next();
        }
        let eof = all.peek().is_none();
        Ok(Listing { entries, eof, dir: node.attr })
    }

    async fn statfs(&self) -> Result<StatFs> {
        self.enter()?;
        let state = self.state.lock();
        let quota = self.quota.load(Ordering::Relaxed);
        let inodes = state.nodes.len() as u64;
        Ok(StatFs {
            total_bytes: quota,
            free_bytes: quota - state.bytes,
            total_inodes: 1 << 32,
            free_inodes: (1 << 32) - inodes,
        })
    }
}
