//! The files of one state, as a command reads them: from the store, or through a server.

use super::path;
use super::remote::{Remote, kind, patiently, time};
use super::target::{Opened, Target};
use crate::admin::grpc::proto;
use crate::admin::{Client, ClientError, Reading as Stream, RootName};
use crate::control::browse::{Browser, OpenRoot, Root};
use crate::fs::api::FileKind;
use crate::fs::{FsError, SnapshotFs, SnapshotInode};
use crate::types::{Class, Classify, EntryName, InodeNo, Timestamp};
use anyhow::Context;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use std::collections::VecDeque;

/// Bytes of a file read at once.
const PART: u32 = 4 << 20;
/// Inodes read at once for a long listing.
const READS: usize = 32;
/// Zeros of at least this many bytes, aligned, are taken for a hole: a server does not tell them.
const HOLE_BYTES: usize = 64 << 10;

/// A state that is open for reading.
pub enum OpenFiles {
    Store { open: OpenRoot, browser: Browser },
    Server(Served),
}

/// A state that a server reads.
pub struct Served {
    client: Client,
    root: RootName,
}

/// The files of an open state.
#[derive(Clone, Copy)]
pub enum Files<'a> {
    Store(&'a SnapshotFs),
    Server(&'a Served),
}

/// An object of a state.
#[derive(Clone, Debug)]
pub struct Object {
    pub kind: FileKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    /// Bytes of a file, bytes of a link's target, number of entries of a folder.
    pub size: u64,
    pub rdev: (u32, u32),
    pub atime: Timestamp,
    pub mtime: Timestamp,
    /// The target of a symbolic link.
    pub target: Option<Vec<u8>>,
    pub ino: InodeNo,
    generation: u64,
    ctime: Timestamp,
    source: Source,
}

/// How its content is found.
#[derive(Clone, Debug)]
enum Source {
    Store(Box<SnapshotInode>),
    /// By its path.
    Server(Vec<u8>),
}

/// The end of a page of a listing.
pub enum Position {
    Store(Bytes),
    Server(String),
}

/// An entry of a folder.
pub struct Child {
    pub name: Vec<u8>,
    pub kind: FileKind,
    /// Where attributes were asked for.
    pub object: Option<Object>,
}

/// Whether a listing has attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    Names,
    Attributes,
}

impl Target {
    /// Opens a state: `DATASET@SNAPSHOT`, or `DATASET`.
    pub async fn open(&self, text: &str) -> anyhow::Result<OpenFiles> {
        match self {
            Self::Pool(opened) => {
                let root = opened.browser.root_named(text).await?;
                OpenFiles::store(opened, &root).await
            }
            Self::Server(remote) => OpenFiles::server(remote, text).await,
        }
    }
}

impl OpenFiles {
    pub async fn store(opened: &Opened, root: &Root) -> anyhow::Result<Self> {
        let open = opened.browser.open(root).await?;
        Ok(Self::Store { open, browser: opened.browser.clone() })
    }

    pub async fn server(remote: &Remote, text: &str) -> anyhow::Result<Self> {
        let root = remote.root(text).await?;
        Ok(Self::Server(Served { client: remote.client.clone(), root }))
    }

    pub fn files(&self) -> Files<'_> {
        match self {
            Self::Store { open, .. } => Files::Store(open.files()),
            Self::Server(served) => Files::Server(served),
        }
    }

    /// Closes it, so that no snapshot stays retained.
    pub async fn close(self) {
        if let Self::Store { open, browser } = self {
            drop(open);
            browser.close().await;
        }
    }
}

impl Served {
    pub async fn page(
        &self,
        folder: &Object,
        token: &str,
    ) -> anyhow::Result<(Vec<proto::Entry>, String)> {
        let path = folder.path();
        let listed =
            patiently(async || self.client.list_page(&self.root, path, token.to_owned()).await);
        Ok(listed.await?)
    }

    async fn stat(&self, path: &[u8]) -> Result<proto::Entry, ClientError> {
        patiently(async || self.client.stat(&self.root, path).await).await
    }
}

impl From<SnapshotInode> for Object {
    fn from(inode: SnapshotInode) -> Self {
        let row = &inode.row;
        Self {
            kind: row.kind,
            mode: row.mode,
            uid: row.uid,
            gid: row.gid,
            nlink: row.nlink,
            size: row.size,
            rdev: row.rdev,
            atime: row.atime,
            mtime: row.mtime,
            target: row.target.clone(),
            ino: inode.ino,
            generation: row.generation,
            ctime: row.ctime,
            source: Source::Store(Box::new(inode)),
        }
    }
}

impl TryFrom<proto::Entry> for Object {
    type Error = anyhow::Error;

    fn try_from(entry: proto::Entry) -> anyhow::Result<Self> {
        let kind = kind(entry.kind())?;
        Ok(Self {
            kind,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            nlink: entry.links,
            size: entry.size,
            rdev: (entry.device_major, entry.device_minor),
            atime: time(entry.accessed),
            mtime: time(entry.modified),
            target: (kind == FileKind::Symlink).then_some(entry.target),
            ino: InodeNo(entry.inode),
            generation: entry.generation,
            ctime: time(entry.changed),
            source: Source::Server(entry.path),
        })
    }
}

impl Object {
    pub fn is_folder(&self) -> bool {
        self.kind == FileKind::Directory
    }

    /// Whether two objects are one in the same state.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.ino, self.generation, self.ctime) == (other.ino, other.generation, other.ctime)
    }

    /// The inode of an object of the store.
    pub fn inode(&self) -> Option<&SnapshotInode> {
        match &self.source {
            Source::Store(inode) => Some(inode),
            Source::Server(_) => None,
        }
    }

    /// The path of an object of a server.
    fn path(&self) -> &[u8] {
        match &self.source {
            Source::Store(_) => b"/",
            Source::Server(path) => path,
        }
    }
}

/// An object of one source was looked up in the other: a defect.
fn foreign() -> anyhow::Error {
    anyhow::anyhow!("an object of another source was read; this is a defect, please report it")
}

impl<'a> Files<'a> {
    /// Finds the object at a path from the root. Links are not followed.
    pub async fn find(self, path: &[u8]) -> anyhow::Result<Object> {
        match self {
            Self::Store(files) => Ok(path::find(files, path).await?.into()),
            Self::Server(served) => served.stat(path).await?.try_into(),
        }
    }

    /// The object that a name of a folder leads to, if there is one.
    pub async fn child(self, folder: &Object, name: &EntryName) -> anyhow::Result<Option<Object>> {
        match self {
            Self::Store(files) => {
                let folder = folder.inode().ok_or_else(foreign)?;
                match files.child(folder, name).await {
                    Err(FsError::NotFound | FsError::NotDirectory) => Ok(None),
                    found => Ok(Some(found?.into())),
                }
            }
            Self::Server(served) => {
                let mut path = folder.path().to_vec();
                if !path.ends_with(b"/") {
                    path.push(b'/');
                }
                path.extend_from_slice(name.as_bytes());
                match served.stat(&path).await {
                    Err(error) if error.class() == Class::NotFound => Ok(None),
                    found => Ok(Some(found?.try_into()?)),
                }
            }
        }
    }

    /// Entries of a folder, in the order of the source, and where the next page begins.
    pub async fn page(
        self,
        folder: &Object,
        from: Option<Position>,
        detail: Detail,
    ) -> anyhow::Result<(Vec<Child>, Option<Position>)> {
        match (self, from) {
            (Self::Store(files), from) => {
                let from = match from {
                    Some(Position::Store(from)) => Some(from),
                    Some(Position::Server(_)) => return Err(foreign()),
                    None => None,
                };
                let inode = folder.inode().ok_or_else(foreign)?;
                let (entries, next) = files.list(inode, from).await?;
                let reads = entries.into_iter().map(|entry| async move {
                    let object = match detail {
                        Detail::Attributes => Some(files.inode(entry.ino).await?.into()),
                        Detail::Names => None,
                    };
                    let name = entry.name.as_bytes().to_vec();
                    anyhow::Ok(Child { name, kind: entry.kind, object })
                });
                let children = futures::stream::iter(reads).buffered(READS).try_collect();
                Ok((children.await?, next.map(Position::Store)))
            }
            (Self::Server(served), from) => {
                let token = match from {
                    Some(Position::Server(token)) => token,
                    Some(Position::Store(_)) => return Err(foreign()),
                    None => String::new(),
                };
                let (entries, next) = served.page(folder, &token).await?;
                let child = |entry: proto::Entry| {
                    let name = entry.name.clone();
                    let object = Object::try_from(entry)?;
                    let object = Some(object).filter(|_| detail == Detail::Attributes);
                    anyhow::Ok((name, object))
                };
                let mut children = Vec::with_capacity(entries.len());
                for entry in entries {
                    let kind = kind(entry.kind())?;
                    let (name, object) = child(entry)?;
                    children.push(Child { name, kind, object });
                }
                let next = Some(next).filter(|next| !next.is_empty());
                Ok((children, next.map(Position::Server)))
            }
        }
    }

    /// Begins to read a file.
    pub async fn read(self, file: &'a Object) -> anyhow::Result<Reading<'a>> {
        let from = match self {
            Self::Store(files) => {
                let inode = file.inode().ok_or_else(foreign)?;
                ReadSource::Store { files, inode, offset: 0 }
            }
            Self::Server(served) => {
                let (client, root, path) = (&served.client, &served.root, file.path());
                let stream = patiently(async || client.open(root, path, 0, None).await).await?;
                let now = Object::try_from(stream.entry().clone())?;
                if !now.is_same(file) {
                    return Err(ClientError::Incomplete(path::shown(path)))
                        .context("the file changed while it was read");
                }
                ReadSource::Server(Box::new(stream))
            }
        };
        Ok(Reading { from, pieces: VecDeque::new() })
    }
}

/// A file that is being read.
pub struct Reading<'a> {
    from: ReadSource<'a>,
    pieces: VecDeque<(u64, Option<Bytes>)>,
}

enum ReadSource<'a> {
    Store { files: &'a SnapshotFs, inode: &'a SnapshotInode, offset: u64 },
    Server(Box<Stream>),
}

impl Reading<'_> {
    /// The next piece in order, by its length; `None` instead of bytes is a hole. `None` at the
    /// end: only then is what a server sent verified.
    pub async fn next(&mut self) -> anyhow::Result<Option<(u64, Option<Bytes>)>> {
        while self.pieces.is_empty() {
            match &mut self.from {
                ReadSource::Store { files, inode, offset } => {
                    if *offset >= inode.row.size {
                        return Ok(None);
                    }
                    self.pieces = files.pieces(inode, *offset, PART).await?.into();
                    *offset += self.pieces.iter().map(|(len, _)| len).sum::<u64>();
                }
                ReadSource::Server(stream) => match stream.next().await? {
                    Some(data) => self.pieces = with_holes(&data).into(),
                    None => return Ok(None),
                },
            }
        }
        Ok(self.pieces.pop_front())
    }
}

/// Data as pieces, with holes where it is zero for long.
fn with_holes(data: &Bytes) -> Vec<(u64, Option<Bytes>)> {
    let mut pieces: Vec<(u64, Option<Bytes>)> = Vec::new();
    let (mut start, mut at) = (0, 0);
    let mut was_hole = false;
    for block in data.chunks(HOLE_BYTES) {
        let is_hole = block.len() == HOLE_BYTES && block.iter().all(|byte| *byte == 0);
        if is_hole != was_hole && at > start {
            pieces.push(piece(data, start..at, was_hole));
            start = at;
        }
        was_hole = is_hole;
        at += block.len();
    }
    if at > start {
        pieces.push(piece(data, start..at, was_hole));
    }
    pieces
}

fn piece(data: &Bytes, range: std::ops::Range<usize>, is_hole: bool) -> (u64, Option<Bytes>) {
    (range.len() as u64, (!is_hole).then(|| data.slice(range)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_zeros_are_holes_and_nothing_is_lost() {
        let mut data = vec![0; 5 * HOLE_BYTES + 10];
        data[HOLE_BYTES] = 1;
        data[4 * HOLE_BYTES + 7] = 2;
        let data = Bytes::from(data);
        let pieces = with_holes(&data);
        let lengths: Vec<(u64, bool)> =
            pieces.iter().map(|(len, bytes)| (*len, bytes.is_some())).collect();
        let block = HOLE_BYTES as u64;
        assert_eq!(
            lengths,
            [(block, false), (block, true), (2 * block, false), (block + 10, true)]
        );
        let whole: Vec<u8> = pieces
            .into_iter()
            .flat_map(|(len, bytes)| {
                bytes.map_or_else(|| vec![0; usize::try_from(len).unwrap()], |b| b.to_vec())
            })
            .collect();
        assert_eq!(whole, data);
        assert!(with_holes(&Bytes::new()).is_empty());
    }
}
