//! Calls on files by name, as root, and what is in them.

use bytes::Bytes;
use std::collections::BTreeMap;
use zerofs_csi::fs::FsError;
use zerofs_csi::fs::api::*;
use zerofs_csi::types::EntryName;

/// A new file, with the mode that most have.
pub const GUARDED: CreateHow = CreateHow::Guarded(SetAttr { mode: Some(0o644), ..CHANGES_NOTHING });

pub const CHANGES_NOTHING: SetAttr = SetAttr {
    mode: None,
    uid: None,
    gid: None,
    size: None,
    atime: SetTime::Keep,
    mtime: SetTime::Keep,
};

/// Few enough that a directory takes several pages.
const PAGE: ListLimit =
    ListLimit { entries: 100, bytes: 1 << 14, entry_bytes: 32, with_attr: true };

/// Bytes that do not compress.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut noise = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut noise);
    noise
}

/// Bytes that are a function of a seed.
pub fn data(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| ((i ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

pub fn root() -> Caller {
    Caller::root()
}

pub fn name(text: &str) -> EntryName {
    EntryName::try_from(text.as_bytes()).unwrap()
}

pub async fn child(fs: &impl FileSystem, dir: FileRef, name: &str) -> Result<Attr, FsError> {
    fs.lookup(&root(), dir, name.as_bytes()).await.map(|(attr, _)| attr)
}

pub async fn mkdir(fs: &impl FileSystem, dir: FileRef, text: &str) -> FileRef {
    fs.mkdir(&root(), dir, &name(text), SetAttr::default()).await.unwrap().attr.file
}

/// A new, empty file, which the journal has.
pub async fn create(fs: &impl FileSystem, dir: FileRef, text: &str) -> FileRef {
    fs.create(&root(), dir, &name(text), GUARDED).await.unwrap().attr.file
}

/// A file whose content the store has.
pub async fn write(fs: &impl FileSystem, dir: FileRef, text: &str, content: &[u8]) -> FileRef {
    let set = SetAttr { mode: Some(0o640), size: Some(0), ..SetAttr::default() };
    let made = fs.create(&root(), dir, &name(text), CreateHow::Unchecked(set)).await;
    let file = made.unwrap().attr.file;
    write_at(fs, file, 0, content).await;
    fs.commit(&root(), file, 0, 0).await.unwrap_or_else(|error| panic!("{text}: {error}"));
    file
}

/// Bytes that nobody has committed.
pub async fn write_at(fs: &impl FileSystem, file: FileRef, at: u64, content: &[u8]) {
    for (part, at) in content.chunks(IO_BYTES_MAX).zip((at..).step_by(IO_BYTES_MAX)) {
        let part = Bytes::copy_from_slice(part);
        fs.write(&root(), file, at, part, Stability::Unstable).await.unwrap();
    }
}

pub async fn try_read(fs: &impl FileSystem, file: FileRef) -> Result<Vec<u8>, FsError> {
    let mut got = Vec::new();
    loop {
        let read = fs.read(&root(), file, got.len() as u64, IO_BYTES_MAX as u32).await?;
        read.data.iter().for_each(|part| got.extend_from_slice(part));
        if read.eof {
            return Ok(got);
        }
        if read.data.iter().all(Bytes::is_empty) {
            let at = got.len();
            return Err(FsError::Corrupt(format!("nothing is read at {at}, before the end")));
        }
    }
}

pub async fn read(fs: &impl FileSystem, file: FileRef) -> Vec<u8> {
    try_read(fs, file).await.unwrap()
}

/// The content of the file of a name.
pub async fn content(fs: &impl FileSystem, dir: FileRef, name: &str) -> Vec<u8> {
    read(fs, child(fs, dir, name).await.unwrap().file).await
}

/// All entries of a directory, `.` and `..` too.
pub async fn list(fs: &impl FileSystem, dir: FileRef) -> Result<Vec<DirEntry>, FsError> {
    list_by(fs, dir, PAGE).await
}

/// As [`list`], in pages of another size.
pub async fn list_by(
    fs: &impl FileSystem,
    dir: FileRef,
    limit: ListLimit,
) -> Result<Vec<DirEntry>, FsError> {
    let (mut all, mut after) = (Vec::new(), DirCookie(0));
    loop {
        let listing = fs.readdir(&root(), dir, after, limit).await?;
        for entry in listing.entries {
            assert!(entry.cookie > after, "{entry:?} after {after:?}");
            after = entry.cookie;
            all.push(entry);
        }
        if listing.eof {
            return Ok(all);
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub attr: Attr,
    /// The attributes as the listing of its directory has them.
    pub listed: Option<Attr>,
    /// The data of a file, the target of a symbolic link.
    pub content: Vec<u8>,
}

/// Objects by their paths below the top, each of which begins with `/`.
pub type Tree = BTreeMap<String, Object>;

/// Everything below a directory, read whole. A listing and a lookup lead to the same object.
pub async fn tree(fs: &impl FileSystem, top: FileRef) -> Result<Tree, FsError> {
    let mut found = Tree::new();
    let mut waiting = vec![(String::new(), top)];
    while let Some((above, dir)) = waiting.pop() {
        for entry in list(fs, dir).await? {
            if entry.name == "." || entry.name == ".." {
                continue;
            }
            let path = format!("{above}/{}", String::from_utf8_lossy(&entry.name));
            let (attr, _) = fs.lookup(&root(), dir, &entry.name).await?;
            if entry.attr.map(|listed| listed.file) != Some(attr.file) || entry.ino != attr.file.ino
            {
                return Err(FsError::Corrupt(format!("{path} is {attr:?}, listed as {entry:?}")));
            }
            let content = match attr.kind {
                FileKind::Regular => try_read(fs, attr.file).await?,
                FileKind::Symlink => fs.readlink(&root(), attr.file).await?.0.to_vec(),
                _ => Vec::new(),
            };
            if attr.kind == FileKind::Directory {
                waiting.push((path.clone(), attr.file));
            }
            found.insert(path, Object { attr, listed: entry.attr, content });
        }
    }
    Ok(found)
}

/// The same calls on names in the root.
pub mod top {
    use super::{Attr, FileRef, FileSystem, FsError};

    pub async fn child(fs: &impl FileSystem, name: &str) -> Result<Attr, FsError> {
        super::child(fs, fs.root(), name).await
    }

    pub async fn has(fs: &impl FileSystem, name: &str) -> bool {
        child(fs, name).await.is_ok()
    }

    pub async fn mkdir(fs: &impl FileSystem, name: &str) -> FileRef {
        super::mkdir(fs, fs.root(), name).await
    }

    pub async fn create(fs: &impl FileSystem, name: &str) -> FileRef {
        super::create(fs, fs.root(), name).await
    }

    pub async fn write(fs: &impl FileSystem, name: &str, content: &[u8]) -> FileRef {
        super::write(fs, fs.root(), name, content).await
    }

    pub async fn content(fs: &impl FileSystem, name: &str) -> Vec<u8> {
        super::content(fs, fs.root(), name).await
    }
}
