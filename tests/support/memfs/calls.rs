//! The calls of the file system in memory.

use super::*;

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
