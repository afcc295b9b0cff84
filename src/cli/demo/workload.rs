//! Making a tree in a volume, changing it, and comparing it with its model.

use super::attributes::{NewAttributes, Stat};
use super::files::MountedFiles;
use super::model::{Change, ModelEntry, ModelTree, Piece, What, content, join};
use crate::fs::api::FileKind;
use crate::types::Timestamp;
use anyhow::{bail, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

/// MountedFiles written or read at once.
const AT_ONCE: usize = 16;
/// Bytes of one write or read.
const PART: usize = 1 << 20;

async fn write_pieces(files: &MountedFiles, path: &str, pieces: &[Piece]) -> anyhow::Result<()> {
    for piece in pieces {
        let (mut at, end) = (piece.start, piece.start + piece.len);
        while at < end {
            let len = usize::try_from(end - at)?.min(PART);
            let bytes = content(u64::MAX, std::slice::from_ref(piece), at, len);
            files.write(path, at, Bytes::from(bytes)).await?;
            at += len as u64;
        }
    }
    Ok(())
}

async fn create_file(
    files: &MountedFiles,
    path: &str,
    size: u64,
    pieces: &[Piece],
) -> anyhow::Result<()> {
    files.create(path).await?;
    write_pieces(files, path, pieces).await?;
    if pieces.iter().all(|piece| piece.start + piece.len < size) && size > 0 {
        files.truncate(path, size).await?;
    }
    files.fsync(path).await
}

async fn set(files: &MountedFiles, path: &str, entry: &ModelEntry) -> anyhow::Result<()> {
    // The mode of a symbolic link means nothing and cannot be set.
    let mode = (!matches!(entry.what, What::Symlink(_))).then_some(entry.mode);
    files
        .set(path, NewAttributes { mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime })
        .await
}

/// Makes the whole tree.
pub async fn create(files: &MountedFiles, tree: &ModelTree) -> anyhow::Result<()> {
    for (path, _) in tree.entries.iter().filter(|(path, e)| e.what == What::Dir && !path.is_empty())
    {
        files.mkdir(path).await?;
    }
    let files_to_write = tree.entries.iter().filter_map(|(path, entry)| match &entry.what {
        What::File { size, pieces } => Some((path.clone(), *size, pieces.clone())),
        _ => None,
    });
    let files_to_write: Vec<_> = files_to_write.collect();
    futures::stream::iter(files_to_write)
        .map(|(path, size, pieces)| async move { create_file(files, &path, size, &pieces).await })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    for (path, entry) in &tree.entries {
        match &entry.what {
            What::Symlink(target) => files.symlink(path, target).await?,
            What::HardLink(of) => files.link(path, of).await?,
            What::Dir | What::File { .. } => {}
        }
    }
    // Deepest first: making an entry changes its folder's times.
    for (path, entry) in
        tree.entries.iter().rev().filter(|(_, e)| !matches!(e.what, What::HardLink(_)))
    {
        set(files, path, entry).await?;
    }
    Ok(())
}

/// Makes changes in the volume and in the model.
pub async fn apply(
    files: &MountedFiles,
    tree: &mut ModelTree,
    changes: &[Change],
    at: Timestamp,
) -> anyhow::Result<()> {
    for change in changes {
        match change {
            Change::Overwrite { path, piece } => {
                write_pieces(files, path, std::slice::from_ref(piece)).await?;
            }
            Change::Truncate { path, size } => files.truncate(path, *size).await?,
            Change::Remove { path } => files.remove(path).await?,
            Change::Create { path, size, seed } => {
                let pieces = if *size == 0 {
                    vec![]
                } else {
                    vec![Piece { start: 0, len: *size, seed: *seed }]
                };
                create_file(files, path, *size, &pieces).await?;
            }
            Change::Chmod { path, mode } => files.chmod(path, *mode).await?,
            Change::Rename { from, to } => files.rename(from, to).await?,
        }
        change.apply(tree, at);
        if let Change::Overwrite { path, .. }
        | Change::Truncate { path, .. }
        | Change::Create { path, .. } = change
            && let Some(entry) = tree.entries.get(path)
        {
            files.fsync(path).await?;
            set(files, path, entry).await?;
        }
    }
    for (path, entry) in tree.entries.iter().rev().filter(|(_, e)| e.what == What::Dir) {
        set(files, path, entry).await?;
    }
    Ok(())
}

/// The extent of a comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    pub objects: usize,
    pub bytes: u64,
}

/// Every name, every attribute, every byte.
pub async fn compare(files: &MountedFiles, tree: &ModelTree) -> anyhow::Result<Compared> {
    let paths: Vec<String> = tree.entries.keys().cloned().collect();
    let compared = futures::stream::iter(paths)
        .map(|path| async move { compare_one(files, tree, &path).await });
    let compared: Vec<u64> = compared.buffer_unordered(AT_ONCE).try_collect().await?;
    Ok(Compared { objects: compared.len(), bytes: compared.iter().sum() })
}

async fn compare_one(files: &MountedFiles, tree: &ModelTree, path: &str) -> anyhow::Result<u64> {
    let target = tree.target(path);
    let Some(entry) = tree.entries.get(&target) else {
        bail!("/{path}: the model has no such name")
    };
    let stat = files.stat(path).await?;
    compare_stat(tree, path, entry, &stat)?;
    match &entry.what {
        What::Dir => {
            let mut found: Vec<String> =
                files.list(path).await?.iter().map(|name| join(path, name)).collect();
            found.sort();
            let expected = tree.children(path);
            ensure!(
                found == expected,
                "/{path}: lists {} names, not the {} expected: {:?}",
                found.len(),
                expected.len(),
                first_difference(&found, &expected)
            );
            Ok(0)
        }
        What::Symlink(to) => {
            let found = files.readlink(path).await?;
            ensure!(found == *to, "/{path}: points to {found:?}, not {to:?}");
            Ok(0)
        }
        What::File { size, pieces } => {
            let mut at = 0;
            while at < *size {
                let expected = content(*size, pieces, at, PART);
                let found = files.read(path, at, expected.len()).await?;
                if found != expected {
                    let wrong = found
                        .iter()
                        .zip(&expected)
                        .position(|(a, b)| a != b)
                        .unwrap_or(found.len());
                    bail!("/{path}: differs at byte {} of {size}", at + wrong as u64);
                }
                at += expected.len() as u64;
            }
            if target != path {
                let other = files.stat(&target).await?;
                ensure!(other.fileid == stat.fileid, "/{path}: is no other name of /{target}");
            }
            Ok(*size)
        }
        What::HardLink(_) => bail!("/{path}: a hard link to a hard link"),
    }
}

fn first_difference<'a>(found: &'a [String], expected: &'a [String]) -> Option<&'a String> {
    found
        .iter()
        .find(|name| !expected.contains(name))
        .or_else(|| expected.iter().find(|name| !found.contains(name)))
}

fn compare_stat(
    tree: &ModelTree,
    path: &str,
    entry: &ModelEntry,
    stat: &Stat,
) -> anyhow::Result<()> {
    let (kind, size) = match &entry.what {
        What::Dir => (FileKind::Directory, None),
        What::Symlink(to) => (FileKind::Symlink, Some(to.len() as u64)),
        What::File { size, .. } => (FileKind::Regular, Some(*size)),
        What::HardLink(_) => (FileKind::Regular, None),
    };
    ensure!(stat.kind == kind, "/{path}: is a {:?}, not a {kind:?}", stat.kind);
    if let Some(size) = size {
        ensure!(stat.size == size, "/{path}: has {} bytes, not {size}", stat.size);
    }
    if kind != FileKind::Symlink {
        ensure!(stat.mode == entry.mode, "/{path}: has mode {:o}, not {:o}", stat.mode, entry.mode);
    }
    ensure!(
        (stat.uid, stat.gid) == (entry.uid, entry.gid),
        "/{path}: belongs to {}:{}, not {}:{}",
        stat.uid,
        stat.gid,
        entry.uid,
        entry.gid
    );
    ensure!(
        stat.mtime == entry.mtime,
        "/{path}: was modified at {:?}, not {:?}",
        stat.mtime,
        entry.mtime
    );
    if kind == FileKind::Regular {
        let nlink = tree.nlink(path);
        ensure!(stat.nlink == nlink, "/{path}: has {} names, not {nlink}", stat.nlink);
    }
    Ok(())
}
