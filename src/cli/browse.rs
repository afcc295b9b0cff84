//! `dataset ls`, `dataset cat`: a look into a snapshot, or into a dataset as the store has it.

use super::args::{CatArgs, LsArgs};
use super::exit::{Interrupted, Wrong};
use super::path;
use super::report::{table, when};
use crate::app;
use crate::fs::api::FileKind;
use crate::fs::row::DirEntryRow;
use crate::fs::{SnapshotFs, SnapshotInode};
use crate::types::Class;
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use std::io::{self, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use tokio_util::sync::CancellationToken;

/// Bytes of a file read at once.
const PART: u32 = 4 << 20;
/// Zeros written at once for a hole.
const ZEROS: &[u8] = &[0; 64 << 10];
/// Inodes read at once for a long listing.
const READS: usize = 32;
/// A folder with more entries is listed a part at a time, each part sorted by itself.
const SORTED_MAX: usize = 100_000;

/// An entry of a folder.
#[derive(Serialize)]
struct Listed {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_bytes: Option<String>,
    kind: &'static str,
    #[serde(flatten)]
    attributes: Option<Attributes>,
    #[serde(skip)]
    shown: String,
}

#[derive(Serialize)]
struct Attributes {
    mode: String,
    links: u32,
    uid: u32,
    gid: u32,
    size: u64,
    modified: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip)]
    letters: String,
}

/// Whether a command has more to do.
#[derive(Debug, thiserror::Error)]
enum Ended {
    /// The reader of the pipe has seen enough.
    #[error("nobody reads the output")]
    Unread,
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Self::Unread,
            _ => Self::Failed(anyhow::Error::new(error).context("writing the output")),
        }
    }
}

/// Runs `work` on the files of a root until it ends or a signal arrives; the root is closed either
/// way, so that no snapshot stays retained.
async fn on_root(
    pool: &super::args::PoolArgs,
    root: &str,
    work: impl AsyncFnOnce(&SnapshotFs, &CancellationToken) -> Result<(), Ended>,
) -> anyhow::Result<()> {
    let stop = app::stop_signal()?;
    let opened = pool.open().await?;
    let view = opened.view(&opened.root(root).await?).await?;
    let done = work(view.files(), &stop).await;
    let closed = view.close().await;
    match done {
        Ok(()) | Err(Ended::Unread) => Ok(closed?),
        Err(Ended::Failed(error)) => Err(error),
    }
}

pub async fn ls(args: LsArgs) -> anyhow::Result<()> {
    path::not_empty(args.path.as_bytes(), "use / for the root folder")?;
    on_root(&args.common.pool, &args.root, async |files, stop| {
        let top = path::find(files, args.path.as_bytes()).await?;
        let mut out = Output::new(&args);
        if top.row.kind == FileKind::Directory {
            folder(files, &top, &args, &mut out, stop).await?;
        } else {
            let name = args.path.as_bytes();
            out.print(vec![listed(name, top.row.kind, Some(&top))])?;
        }
        Ok(out.end()?)
    })
    .await
}

async fn folder(
    files: &SnapshotFs,
    folder: &SnapshotInode,
    args: &LsArgs,
    out: &mut Output,
    stop: &CancellationToken,
) -> Result<(), Ended> {
    let (mut from, mut entries) = (None, Vec::new());
    loop {
        let page = files.list(folder, from).await.map_err(anyhow::Error::new)?;
        entries.extend(page.0);
        from = page.1;
        if stop.is_cancelled() {
            return Err(Ended::Failed(Interrupted::new("the listing is not complete")));
        }
        if from.is_some() && entries.len() < SORTED_MAX {
            continue;
        }
        entries.sort_unstable_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
        let entries = std::mem::take(&mut entries);
        out.print(attributes(files, entries, args.long).await?)?;
        if from.is_none() {
            return Ok(());
        }
    }
}

async fn attributes(
    files: &SnapshotFs,
    entries: Vec<DirEntryRow>,
    long: bool,
) -> anyhow::Result<Vec<Listed>> {
    let reads = entries.into_iter().map(|entry| async move {
        let inode = match long {
            true => Some(files.inode(entry.ino).await?),
            false => None,
        };
        anyhow::Ok(listed(entry.name.as_bytes(), entry.kind, inode.as_ref()))
    });
    futures::stream::iter(reads).buffered(READS).try_collect().await
}

fn listed(name: &[u8], kind: FileKind, inode: Option<&SnapshotInode>) -> Listed {
    let attributes = inode.map(|inode| {
        let row = &inode.row;
        Attributes {
            mode: format!("{:04o}", row.mode & 0o7777),
            links: row.nlink,
            uid: row.uid,
            gid: row.gid,
            size: row.size,
            modified: when(row.mtime),
            target: row.target.as_deref().map(path::shown),
            letters: letters(kind, row.mode),
        }
    });
    Listed {
        name: path::lossy(name),
        name_bytes: path::bytes(name),
        kind: path::kind(kind),
        attributes,
        shown: path::shown(name),
    }
}

/// Kind and mode as `ls -l` shows them.
fn letters(kind: FileKind, mode: u32) -> String {
    let first = match kind {
        FileKind::Regular => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::BlockDevice => 'b',
        FileKind::CharDevice => 'c',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
    };
    let mut text = String::from(first);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// The output of a listing: lines, columns, or one JSON array.
struct Output {
    out: io::BufWriter<io::Stdout>,
    json: bool,
    long: bool,
    first: bool,
}

impl Output {
    fn new(args: &LsArgs) -> Self {
        let out = io::BufWriter::new(io::stdout());
        Self { out, json: args.common.output.json, long: args.long, first: true }
    }

    fn print(&mut self, part: Vec<Listed>) -> io::Result<()> {
        if self.json {
            for entry in part {
                self.out.write_all(if self.first { b"[\n  " } else { b",\n  " })?;
                self.first = false;
                serde_json::to_writer(&mut self.out, &entry)?;
            }
        } else if self.long {
            let rows: Vec<Vec<String>> = part.into_iter().map(columns).collect();
            let header = ["MODE", "LINKS", "UID", "GID", "SIZE", "MODIFIED", "NAME"];
            self.out.write_all(table(&header, &rows).as_bytes())?;
        } else {
            for entry in part {
                writeln!(self.out, "{}", entry.shown)?;
            }
        }
        Ok(())
    }

    fn end(mut self) -> io::Result<()> {
        if self.json {
            self.out.write_all(if self.first { b"[]\n" } else { b"\n]\n" })?;
        }
        self.out.flush()
    }
}

fn columns(entry: Listed) -> Vec<String> {
    let Some(at) = entry.attributes else { return vec![entry.shown] };
    let name = match &at.target {
        Some(target) => format!("{} -> {target}", entry.shown),
        None => entry.shown,
    };
    let number = |n: u32| n.to_string();
    vec![
        at.letters,
        number(at.links),
        number(at.uid),
        number(at.gid),
        at.size.to_string(),
        at.modified,
        name,
    ]
}

pub async fn cat(args: CatArgs) -> anyhow::Result<()> {
    path::not_empty(args.path.as_bytes(), "name a file")?;
    on_root(&args.pool, &args.root, async |files, stop| {
        let file = path::find(files, args.path.as_bytes()).await?;
        if file.row.kind != FileKind::Regular {
            let what = path::kind(file.row.kind);
            let path = path::shown(args.path.as_bytes());
            let why = format!("{path} is a {what}, not a file");
            return Err(Ended::Failed(Wrong::new(Class::Invalid, why)));
        }
        contents(files, &file, &mut io::stdout(), stop).await
    })
    .await
}

async fn contents(
    files: &SnapshotFs,
    file: &SnapshotInode,
    out: &mut impl Write,
    stop: &CancellationToken,
) -> Result<(), Ended> {
    let mut offset = 0;
    while offset < file.row.size {
        if stop.is_cancelled() {
            return Err(Ended::Failed(Interrupted::new("the file is not complete")));
        }
        for (len, bytes) in files.pieces(file, offset, PART).await.map_err(anyhow::Error::new)? {
            match bytes {
                Some(bytes) => out.write_all(&bytes)?,
                None => zeros(out, len)?,
            }
            offset += len;
        }
    }
    Ok(out.flush()?)
}

fn zeros(out: &mut impl Write, mut len: u64) -> io::Result<()> {
    while len > 0 {
        let part = usize::try_from(len).unwrap_or(usize::MAX).min(ZEROS.len());
        out.write_all(&ZEROS[..part])?;
        len -= part as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_look_like_those_of_ls() {
        for (kind, mode, text) in [
            (FileKind::Regular, 0o644, "-rw-r--r--"),
            (FileKind::Directory, 0o1777, "drwxrwxrwt"),
            (FileKind::Directory, 0o2770, "drwxrws---"),
            (FileKind::Regular, 0o4750, "-rwsr-x---"),
            (FileKind::Regular, 0o4640, "-rwSr-----"),
            (FileKind::Symlink, 0o777, "lrwxrwxrwx"),
            (FileKind::Regular, 0o1644, "-rw-r--r-T"),
        ] {
            assert_eq!(letters(kind, mode), text);
        }
    }

    #[test]
    fn holes_are_zeros_of_any_length() {
        let mut out = Vec::new();
        zeros(&mut out, 200_001).unwrap();
        assert!(out.len() == 200_001 && out.iter().all(|byte| *byte == 0));
    }
}
