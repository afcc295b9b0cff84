//! The reference: a file system as plain maps, for the superuser and for users.

use crate::ops::{How, Kind, Op, Set};
use std::collections::BTreeMap;
use zerofs_csi::fs::api::{Caller, FileKind, LINKS_MAX, Special};

/// An object ever made, by its place in [`Reference::objects`].
pub type Id = usize;
pub const ROOT: Id = 0;
/// Everybody may make objects there.
pub const ROOT_MODE: u32 = 0o1777;

#[derive(Clone, Debug)]
pub struct Object {
    pub kind: FileKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    pub data: Vec<u8>,
    pub target: Vec<u8>,
    pub rdev: (u32, u32),
    pub entries: BTreeMap<Vec<u8>, Id>,
    pub parent: Id,
    pub exclusive: Option<[u8; 8]>,
    /// When it was set to a known time and nothing changed it since.
    pub mtime: Option<i64>,
}

impl Object {
    fn new(kind: FileKind, mode: u32, parent: Id) -> Self {
        Self {
            kind,
            mode,
            uid: 0,
            gid: 0,
            links: 1,
            data: Vec::new(),
            target: Vec::new(),
            rdev: (0, 0),
            entries: BTreeMap::new(),
            parent,
            exclusive: None,
            mtime: None,
        }
    }

    pub fn alive(&self) -> bool {
        self.links > 0
    }
}

/// Rights, as in one digit of a mode.
const READ_ALL_OF: u32 = 0o7;
const WRITE: u32 = 2;
const SEARCH: u32 = 1;

fn is_root(who: &Caller) -> bool {
    who.uid == 0
}

fn is_member(who: &Caller, gid: u32) -> bool {
    who.gid == gid || who.groups.contains(&gid)
}

/// Set-id bits are gone when another than root has changed what they vouch for; that of a group
/// that may not execute means locking.
fn without_set_id(mode: u32) -> u32 {
    mode & if mode & 0o010 != 0 { 0o1777 } else { 0o3777 }
}

impl Object {
    fn may(&self, who: &Caller, rights: u32) -> Result<(), &'static str> {
        let class = if who.uid == self.uid {
            self.mode >> 6
        } else if is_member(who, self.gid) {
            self.mode >> 3
        } else {
            self.mode
        };
        if is_root(who) || class & READ_ALL_OF & rights == rights { Ok(()) } else { Err("Access") }
    }

    /// A file's data: its owner had it open (RFC 1813 §4.4).
    fn may_write(&self, who: &Caller) -> Result<(), &'static str> {
        if who.uid == self.uid { Ok(()) } else { self.may(who, WRITE) }
    }

    fn may_lose(&self, who: &Caller, child: &Self) -> Result<(), &'static str> {
        self.may(who, WRITE | SEARCH)?;
        let theirs = is_root(who) || who.uid == child.uid || who.uid == self.uid;
        if self.mode & 0o1000 == 0 || theirs { Ok(()) } else { Err("NotOwner") }
    }

    fn written_by(&mut self, who: &Caller) {
        if !is_root(who) {
            self.mode = without_set_id(self.mode);
        }
    }
}

/// The answer of an operation: the object it made or looked at, or the name of an error.
pub type Answer = Result<Option<Id>, &'static str>;

#[derive(Clone, Debug)]
pub struct Reference {
    pub objects: Vec<Object>,
}

impl Reference {
    pub fn new() -> Self {
        Self { objects: vec![Object::new(FileKind::Directory, ROOT_MODE, ROOT)] }
    }

    pub fn alive(&self) -> impl Iterator<Item = Id> + '_ {
        (0..self.objects.len()).filter(|id| self.objects[*id].alive())
    }

    pub fn nlink(&self, id: Id) -> u32 {
        let object = &self.objects[id];
        let subdirectories = object
            .entries
            .values()
            .filter(|id| self.objects[**id].kind == FileKind::Directory)
            .count() as u32;
        if object.kind == FileKind::Directory { 2 + subdirectories } else { object.links }
    }

    fn dir(&self, id: Id) -> Result<&Object, &'static str> {
        let object = &self.objects[id];
        match (object.alive(), object.kind) {
            (false, _) => Err("Stale"),
            (true, FileKind::Directory) => Ok(object),
            (true, _) => Err("NotDirectory"),
        }
    }

    fn regular(&self, id: Id) -> Result<&Object, &'static str> {
        let object = &self.objects[id];
        match (object.alive(), object.kind) {
            (false, _) => Err("Stale"),
            (true, FileKind::Regular) => Ok(object),
            (true, FileKind::Directory) => Err("IsDirectory"),
            (true, _) => Err("Invalid"),
        }
    }

    fn touch(&mut self, dir: Id) {
        self.objects[dir].mtime = None;
    }

    fn add(&mut self, who: &Caller, dir: Id, name: &[u8], mut object: Object) -> Answer {
        let parent = &self.objects[dir];
        parent.may(who, WRITE | SEARCH)?;
        (object.uid, object.gid) = (who.uid, who.gid);
        if parent.mode & 0o2000 != 0 {
            object.gid = parent.gid;
            object.mode |= if object.kind == FileKind::Directory { 0o2000 } else { 0 };
        }
        if object.kind != FileKind::Directory && !is_root(who) && !is_member(who, object.gid) {
            object.mode &= !0o2000;
        }
        let id = self.objects.len();
        self.objects.push(object);
        self.objects[dir].entries.insert(name.to_vec(), id);
        self.touch(dir);
        Ok(Some(id))
    }

    fn unlink(&mut self, id: Id) {
        let object = &mut self.objects[id];
        object.links -= 1;
    }

    fn within(&self, mut id: Id, ancestor: Id) -> bool {
        loop {
            if id == ancestor {
                return true;
            }
            if id == ROOT {
                return false;
            }
            id = self.objects[id].parent;
        }
    }

    pub fn apply(&mut self, who: &Caller, op: &Op) -> Answer {
        match op {
            Op::Create { dir, name, how } => self.create(who, *dir, name, how),
            Op::Make { dir, name, kind } => self.make(who, *dir, name, kind),
            Op::Remove { dir, name } => self.remove(who, *dir, name),
            Op::Rmdir { dir, name } => self.rmdir(who, *dir, name),
            Op::Rename { from, to } => self.rename(who, (from.0, &from.1), (to.0, &to.1)),
            Op::Link { file, dir, name } => self.link(who, *file, *dir, name),
            Op::SetAttr { file, set } => self.setattr(who, *file, set),
            Op::Write { file, offset, len, fill, .. } => {
                self.write(who, *file, *offset, *len, *fill)
            }
            Op::Commit { file } => self.regular(*file).map(|_| None),
            Op::Reopen(_) | Op::Snapshot | Op::Clone => Ok(None),
        }
    }

    /// A directory that the caller may look names up in.
    fn searched(&self, who: &Caller, id: Id) -> Result<&Object, &'static str> {
        let dir = self.dir(id)?;
        dir.may(who, SEARCH).map(|()| dir)
    }

    fn create(&mut self, who: &Caller, dir: Id, name: &[u8], how: &How) -> Answer {
        if let Some(&id) = self.searched(who, dir)?.entries.get(name) {
            let regular = self.objects[id].kind == FileKind::Regular;
            return match how {
                How::Unchecked { size, .. } if regular => {
                    if let Some(size) = size {
                        self.objects[id].may_write(who)?;
                        self.resize(id, *size);
                        self.objects[id].written_by(who);
                    }
                    Ok(Some(id))
                }
                How::Exclusive(verifier)
                    if regular && self.objects[id].exclusive == Some(*verifier) =>
                {
                    Ok(Some(id))
                }
                _ => Err("Exists"),
            };
        }
        let mut file = Object::new(FileKind::Regular, 0o600, dir);
        match how {
            How::Unchecked { mode, size } => {
                file.mode = *mode;
                file.data = vec![0; size.unwrap_or(0) as usize];
            }
            How::Guarded { mode } => file.mode = *mode,
            How::Exclusive(verifier) => file.exclusive = Some(*verifier),
        }
        self.add(who, dir, name, file)
    }

    fn make(&mut self, who: &Caller, dir: Id, name: &[u8], kind: &Kind) -> Answer {
        let device =
            matches!(kind, Kind::Special(Special::BlockDevice(..) | Special::CharDevice(..)));
        if device && !is_root(who) {
            return Err("NotOwner");
        }
        if self.searched(who, dir)?.entries.contains_key(name) {
            return Err("Exists");
        }
        let object = match kind {
            Kind::Directory { mode } => Object::new(FileKind::Directory, *mode, dir),
            Kind::Special(special) => {
                let (kind, mode) = match special {
                    Special::Symlink(_) => (FileKind::Symlink, 0o777),
                    Special::BlockDevice(..) => (FileKind::BlockDevice, 0o644),
                    Special::CharDevice(..) => (FileKind::CharDevice, 0o644),
                    Special::Fifo => (FileKind::Fifo, 0o644),
                    Special::Socket => (FileKind::Socket, 0o644),
                };
                let mut object = Object::new(kind, mode, dir);
                match special {
                    Special::Symlink(target) => object.target = target.to_vec(),
                    Special::BlockDevice(major, minor) | Special::CharDevice(major, minor) => {
                        object.rdev = (*major, *minor);
                    }
                    Special::Fifo | Special::Socket => {}
                }
                object
            }
        };
        self.add(who, dir, name, object)
    }

    fn remove(&mut self, who: &Caller, dir: Id, name: &[u8]) -> Answer {
        let id = *self.searched(who, dir)?.entries.get(name).ok_or("NotFound")?;
        self.objects[dir].may_lose(who, &self.objects[id])?;
        if self.objects[id].kind == FileKind::Directory {
            return Err("IsDirectory");
        }
        self.objects[dir].entries.remove(name);
        self.unlink(id);
        self.touch(dir);
        Ok(None)
    }

    fn rmdir(&mut self, who: &Caller, dir: Id, name: &[u8]) -> Answer {
        let id = *self.searched(who, dir)?.entries.get(name).ok_or("NotFound")?;
        self.objects[dir].may_lose(who, &self.objects[id])?;
        if self.objects[id].kind != FileKind::Directory {
            return Err("NotDirectory");
        }
        if !self.objects[id].entries.is_empty() {
            return Err("NotEmpty");
        }
        self.objects[dir].entries.remove(name);
        self.unlink(id);
        self.touch(dir);
        Ok(None)
    }

    fn rename(&mut self, who: &Caller, from: (Id, &[u8]), to: (Id, &[u8])) -> Answer {
        self.dir(from.0)?;
        self.dir(to.0)?;
        self.searched(who, from.0)?;
        self.searched(who, to.0)?;
        let source = *self.objects[from.0].entries.get(from.1).ok_or("NotFound")?;
        let target = self.objects[to.0].entries.get(to.1).copied();
        let is_dir = |id: Id| self.objects[id].kind == FileKind::Directory;
        if is_dir(source) && from.0 != to.0 && self.within(to.0, source) {
            return Err("Invalid");
        }
        if target == Some(source) {
            return Ok(None);
        }
        self.objects[from.0].may_lose(who, &self.objects[source])?;
        match target {
            Some(target) => self.objects[to.0].may_lose(who, &self.objects[target])?,
            None => self.objects[to.0].may(who, WRITE | SEARCH)?,
        }
        let moves_directory = is_dir(source) && from.0 != to.0;
        match target {
            Some(target) if is_dir(source) && !is_dir(target) => return Err("NotDirectory"),
            Some(target) if !is_dir(source) && is_dir(target) => return Err("IsDirectory"),
            Some(target) if is_dir(source) && !self.objects[target].entries.is_empty() => {
                return Err("NotEmpty");
            }
            Some(_) | None => {}
        }
        if moves_directory {
            self.objects[source].may(who, WRITE)?;
        }
        if let Some(target) = target {
            self.unlink(target);
        }
        self.objects[from.0].entries.remove(from.1);
        self.objects[to.0].entries.insert(to.1.to_vec(), source);
        self.objects[source].parent = to.0;
        self.touch(from.0);
        self.touch(to.0);
        Ok(None)
    }

    fn link(&mut self, who: &Caller, file: Id, dir: Id, name: &[u8]) -> Answer {
        if !self.objects[file].alive() {
            return Err("Stale");
        }
        self.searched(who, dir)?;
        if self.objects[file].kind == FileKind::Directory {
            return Err("NotOwner");
        }
        if self.objects[dir].entries.contains_key(name) {
            return Err("Exists");
        }
        self.objects[dir].may(who, WRITE | SEARCH)?;
        if self.objects[file].links >= LINKS_MAX {
            return Err("TooManyLinks");
        }
        self.objects[file].links += 1;
        self.objects[dir].entries.insert(name.to_vec(), file);
        self.touch(dir);
        Ok(None)
    }

    fn resize(&mut self, id: Id, size: u64) {
        self.objects[id].data.resize(size as usize, 0);
        self.objects[id].mtime = None;
    }

    fn setattr(&mut self, who: &Caller, id: Id, set: &Set) -> Answer {
        if !self.objects[id].alive() {
            return Err("Stale");
        }
        if set.wrong_guard {
            return match set.size {
                Some(_) => self.regular(id).and(Err("NotSync")),
                None => Err("NotSync"),
            };
        }
        if set.size.is_some() {
            self.regular(id)?;
        }
        let object = &self.objects[id];
        let owner = is_root(who) || who.uid == object.uid;
        if set.uid.is_some_and(|uid| !is_root(who) && (!owner || uid != object.uid))
            || (set.mode.is_some() || set.mtime.is_some()) && !owner
        {
            return Err("NotOwner");
        }
        if let Some(size) = set.size {
            object.may_write(who)?;
            self.resize(id, size);
        }
        let object = &mut self.objects[id];
        object.uid = set.uid.unwrap_or(object.uid);
        let directory = object.kind == FileKind::Directory;
        if let Some(mode) = set.mode {
            object.mode = mode
                & if is_root(who) || is_member(who, object.gid) || directory {
                    0o7777
                } else {
                    0o5777
                };
        }
        if set.uid.is_some() && !directory {
            object.mode = without_set_id(object.mode);
        } else if set.size.is_some() && set.mode.is_none() {
            object.written_by(who);
        }
        if set.mtime.is_some() {
            object.mtime = set.mtime;
        }
        Ok(None)
    }

    fn write(&mut self, who: &Caller, id: Id, offset: u64, len: u32, fill: u8) -> Answer {
        self.regular(id)?.may_write(who)?;
        let object = &mut self.objects[id];
        if len > 0 {
            object.written_by(who);
            let end = offset as usize + len as usize;
            let size = object.data.len().max(end);
            object.data.resize(size, 0);
            object.data[offset as usize..end].copy_from_slice(&bytes(fill, len));
            object.mtime = None;
        }
        Ok(None)
    }
}

/// The data of a WRITE.
pub fn bytes(fill: u8, len: u32) -> Vec<u8> {
    (0..len).map(|at| if fill == 0 { 0 } else { fill.wrapping_add((at / 7) as u8) }).collect()
}
