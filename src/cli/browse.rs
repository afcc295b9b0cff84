//! `dataset ls`, `dataset cat`: a look into a snapshot, or into a dataset as the store has it.

use super::args::{CatArgs, LsArgs, PoolOrServer};
use super::exit::{Interrupted, Wrong};
use super::files::{Child, Detail, Files, Object};
use super::path;
use super::report::{table, when};
use crate::app;
use crate::fs::api::FileKind;
use crate::types::Class;
use serde::Serialize;
use std::io::{self, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;

/// Zeros written at once for a hole.
const ZEROS: &[u8] = &[0; 64 << 10];
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
    attributes: Option<AttributesJson>,
    #[serde(skip)]
    shown: String,
}

#[derive(Serialize)]
struct AttributesJson {
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
/// way, so that no snapshot stays retained. `unfinished`: what is said after a signal.
async fn on_root(
    place: &PoolOrServer,
    root: &str,
    unfinished: &'static str,
    work: impl AsyncFnOnce(Files<'_>) -> Result<(), Ended>,
) -> anyhow::Result<()> {
    let stop = app::stop_signal()?;
    let open = place.target().await?.open(root).await?;
    let done = tokio::select! {
        biased;
        () = stop.cancelled() => Err(Ended::Failed(Interrupted::new(unfinished))),
        done = work(open.files()) => done,
    };
    open.close().await;
    match done {
        Ok(()) | Err(Ended::Unread) => Ok(()),
        Err(Ended::Failed(error)) => Err(error),
    }
}

pub async fn ls(args: LsArgs) -> anyhow::Result<()> {
    path::not_empty(args.path.as_bytes(), "use / for the root folder")?;
    on_root(&args.common.place, &args.root, "the listing is not complete", async |files| {
        let top = files.find(args.path.as_bytes()).await?;
        let mut out = ListOutput::new(&args);
        if top.is_folder() {
            folder(files, &top, &args, &mut out).await?;
        } else {
            let name = args.path.as_bytes().to_vec();
            out.print(vec![listed(Child { name, kind: top.kind, object: Some(top) })])?;
        }
        Ok(out.end()?)
    })
    .await
}

async fn folder(
    files: Files<'_>,
    folder: &Object,
    args: &LsArgs,
    out: &mut ListOutput,
) -> Result<(), Ended> {
    let detail = if args.long { Detail::Attributes } else { Detail::Names };
    let (mut from, mut entries) = (None, Vec::new());
    loop {
        let page = files.page(folder, from, detail).await?;
        entries.extend(page.0);
        from = page.1;
        if from.is_some() && entries.len() < SORTED_MAX {
            continue;
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        out.print(entries.drain(..).map(listed).collect())?;
        if from.is_none() {
            return Ok(());
        }
    }
}

fn listed(Child { name, kind, object }: Child) -> Listed {
    let attributes = object.map(|object| AttributesJson {
        mode: format!("{:04o}", object.mode & 0o7777),
        links: object.nlink,
        uid: object.uid,
        gid: object.gid,
        size: object.size,
        modified: when(object.mtime),
        target: object.target.as_deref().map(path::shown),
        letters: letters(kind, object.mode),
    });
    Listed {
        name: path::lossy(&name),
        name_bytes: path::bytes(&name),
        kind: path::kind(kind),
        attributes,
        shown: path::shown(&name),
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
struct ListOutput {
    out: io::BufWriter<io::Stdout>,
    json: bool,
    long: bool,
    first: bool,
}

impl ListOutput {
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
    on_root(&args.place, &args.root, "the file is not complete", async |files| {
        let file = files.find(args.path.as_bytes()).await?;
        if file.kind != FileKind::Regular {
            let what = path::kind(file.kind);
            let path = path::shown(args.path.as_bytes());
            let why = format!("{path} is a {what}, not a file");
            return Err(Ended::Failed(Wrong::new(Class::Invalid, why)));
        }
        contents(files, &file, &mut io::stdout()).await
    })
    .await
}

async fn contents(files: Files<'_>, file: &Object, out: &mut impl Write) -> Result<(), Ended> {
    let mut reading = files.read(file).await?;
    while let Some((len, bytes)) = reading.next().await? {
        match bytes {
            Some(bytes) => out.write_all(&bytes)?,
            None => zeros(out, len)?,
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
