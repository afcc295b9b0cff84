//! Calls on the files of a volume, as a script has them, and what is there afterwards.

use crate::script::{Object, Op, Tree, bytes, small_name};
use crate::support::files::{self, GUARDED, top};
use bytes::Bytes;
use zerofs_csi::fs::FsError;
use zerofs_csi::fs::api::*;
use zerofs_csi::types::{Class, Classify, EntryName};
use zerofs_csi::volume::Volume;

pub type Done<T> = Result<T, String>;

/// Errors that a caller repeats; any other is a defect.
pub fn repeatable(
    what: &dyn std::fmt::Debug,
    error: &(impl Classify + std::fmt::Display),
) -> String {
    let class = error.class();
    let thread = std::thread::current();
    let of = thread.name().unwrap_or_default();
    assert!(
        matches!(class, Class::Unavailable | Class::InProgress),
        "{of}: {what:?}: {error} ({class:?})"
    );
    error.to_string()
}

/// The directory and the name in it.
async fn parent(volume: &Volume, path: &str) -> Result<(FileRef, EntryName), FsError> {
    match path.split_once('/') {
        None => Ok((volume.fs.root(), files::name(path))),
        Some((dir, name)) => Ok((top::child(&*volume.fs, dir).await?.file, files::name(name))),
    }
}

async fn file(volume: &Volume, path: &str) -> Result<FileRef, FsError> {
    let (dir, name) = parent(volume, path).await?;
    Ok(volume.fs.lookup(&files::root(), dir, name.as_bytes()).await?.0.file)
}

/// A call on files, as a client sends it: with the same transaction id when it is repeated.
pub async fn call(volume: &Volume, at: usize, op: &Op) -> Done<()> {
    let call = CallId { client: 7, xid: at as u32, checksum: at as u64 };
    let caller = Caller { call: Some(call), ..Caller::root() };
    let fs = &volume.fs;
    let done = async {
        match op {
            Op::Create(path) => {
                let (dir, name) = parent(volume, path).await?;
                fs.create(&caller, dir, &name, GUARDED).await.map(drop)
            }
            Op::Mkdir(path) => {
                let (dir, name) = parent(volume, path).await?;
                fs.mkdir(&caller, dir, &name, SetAttr { mode: Some(0o755), ..SetAttr::default() })
                    .await
                    .map(drop)
            }
            Op::Symlink(path, target) => {
                let (dir, name) = parent(volume, path).await?;
                let what = Special::Symlink(Bytes::from_static(target.as_bytes()));
                fs.make(&caller, dir, &name, what, SetAttr::default()).await.map(drop)
            }
            Op::Write { path, at, len, seed } | Op::Loose { path, at, len, seed } => {
                let file = file(volume, path).await?;
                fs.write(&caller, file, *at as u64, bytes(*seed, *len).into(), Stability::Unstable)
                    .await?;
                match op {
                    Op::Write { .. } => fs.commit(&caller, file, 0, 0).await.map(drop),
                    _ => Ok(()),
                }
            }
            Op::Small { folder, files, len } => {
                for n in 0..*files {
                    let (dir, name) =
                        parent(volume, &format!("{folder}/{}", small_name(n))).await?;
                    let made = fs
                        .create(
                            &Caller::root(),
                            dir,
                            &name,
                            CreateHow::Unchecked(SetAttr {
                                mode: Some(0o644),
                                ..SetAttr::default()
                            }),
                        )
                        .await?
                        .attr
                        .file;
                    fs.write(&caller, made, 0, bytes(n as u64, *len).into(), Stability::FileSync)
                        .await?;
                }
                Ok(())
            }
            Op::Truncate(path, size) => {
                let set = SetAttr { size: Some(*size as u64), ..SetAttr::default() };
                fs.setattr(&caller, file(volume, path).await?, set, None).await.map(drop)
            }
            Op::Mode(path, mode) => {
                let set = SetAttr { mode: Some(*mode), ..SetAttr::default() };
                fs.setattr(&caller, file(volume, path).await?, set, None).await.map(drop)
            }
            Op::Rename(from, to) => {
                let ((from, a), (to, b)) = (parent(volume, from).await?, parent(volume, to).await?);
                fs.rename(&caller, (from, &a), (to, &b)).await.map(drop)
            }
            Op::Link(from, to) => {
                let (dir, name) = parent(volume, to).await?;
                fs.link(&caller, file(volume, from).await?, dir, &name).await.map(drop)
            }
            Op::Remove(path) => {
                let (dir, name) = parent(volume, path).await?;
                fs.remove(&caller, dir, &name).await.map(drop)
            }
            Op::Rmdir(path) => {
                let (dir, name) = parent(volume, path).await?;
                fs.rmdir(&caller, dir, &name).await.map(drop)
            }
            other => unreachable!("{other:?} is no call on files"),
        }
    };
    done.await.map_err(|error| repeatable(&op, &error))
}

/// Everything that is there.
pub async fn walk(volume: &Volume) -> Result<Tree, FsError> {
    let found = files::tree(&*volume.fs, volume.fs.root()).await?.into_iter();
    let shown = |(path, files::Object { attr, content, .. }): (String, _)| {
        let object = match attr.kind {
            FileKind::Directory => Object::Dir { mode: attr.mode },
            FileKind::Symlink => Object::Link(String::from_utf8_lossy(&content).into_owned()),
            _ => Object::File { mode: attr.mode, data: content, loose: None },
        };
        (path[1..].to_owned(), object)
    };
    Ok(found.map(shown).collect())
}
