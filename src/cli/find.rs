//! `dataset find`: objects by name, in one state of a dataset or in all snapshots and now.

use super::args::FindArgs;
use super::path;
use super::remote::{Remote, kind, patiently, time};
use super::report::when;
use super::stopped::Stopped;
use super::target::{Opened, Target};
use crate::admin::grpc::proto;
use crate::app;
use crate::control::browse::{Entry, Hit, Pattern, Root, split_snapshot};
use crate::fs::api::FileKind;
use crate::types::{ByteSize, Timestamp};
use serde::Serialize;
use std::collections::HashSet;
use std::io::{BufWriter, Stdout, Write};
use std::os::unix::ffi::OsStrExt;
use tokio_util::sync::CancellationToken;

/// Most versions that are remembered, so that each is printed once: 16 bytes each. Beyond, they are
/// printed for every state that has them.
const SEEN_MAX: usize = 4 << 20;
/// Most objects of one state that a server tells.
const TOLD_MAX: u32 = 100_000;

/// A line of `--json`.
#[derive(Serialize)]
struct FoundLine<'a> {
    /// The oldest state that has this version.
    #[serde(rename = "in")]
    state: &'a str,
    path: String,
    /// The bytes of a path that is not UTF-8, in base 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
    kind: &'static str,
    size: u64,
    modified: String,
}

/// An object whose name matches.
struct Match {
    path: Vec<u8>,
    kind: FileKind,
    size: u64,
    mtime: Timestamp,
    /// Equal for the same version.
    etag: String,
}

impl From<Entry> for Match {
    fn from(entry: Entry) -> Self {
        let Entry { path, kind, size, mtime, etag, .. } = entry;
        Self { path, kind, size, mtime, etag }
    }
}

impl TryFrom<proto::Entry> for Match {
    type Error = anyhow::Error;

    fn try_from(entry: proto::Entry) -> anyhow::Result<Self> {
        let (kind, mtime) = (kind(entry.kind())?, time(entry.modified));
        Ok(Self { path: entry.path, kind, size: entry.size, mtime, etag: entry.etag })
    }
}

/// Prints what is found, each version once.
struct Printer {
    out: BufWriter<Stdout>,
    seen: HashSet<[u8; 16]>,
    json: bool,
}

pub async fn run(args: FindArgs) -> anyhow::Result<()> {
    let pattern = Pattern::new(args.pattern.as_bytes())?;
    let stop = app::stop_signal()?;
    let mut printer = Printer {
        out: BufWriter::new(std::io::stdout()),
        seen: HashSet::new(),
        json: args.common.output.json,
    };
    let found = match args.common.place.target().await? {
        Target::Pool(opened) => {
            let (roots, names) = states(&opened, args.root.as_deref()).await?;
            let found = in_pool(&opened, (&roots, &names), &pattern, &mut printer, &stop).await;
            opened.browser.close().await;
            found
        }
        Target::Server(remote) => {
            let states = states_there(&remote, args.root.as_deref()).await?;
            let pattern = args.pattern.as_bytes();
            let finding = Box::pin(through(&remote, &states, pattern, &mut printer));
            Stopped::unless(&stop, finding).await
        }
    };
    let found = found.and_then(|limited| {
        printer.out.flush()?;
        Ok(limited)
    });
    match found {
        Err(stopped) => stopped.end("the list is not complete; run it again"),
        Ok(limited) => {
            if let Some(limited) = limited {
                eprintln!("not everything was searched: {limited}");
            }
            Ok(())
        }
    }
}

/// Searches states of an open pool. Returns which limit ended the search before its end.
async fn in_pool(
    opened: &Opened,
    (roots, names): (&[Root], &[String]),
    pattern: &Pattern,
    printer: &mut Printer,
    stop: &CancellationToken,
) -> Result<Option<String>, Stopped> {
    let finding = opened.browser.find(roots, pattern, |Hit { root, entry }: Hit| {
        Ok::<_, Stopped>(printer.tell(&names[root], &entry.into())?)
    });
    let searched = Stopped::unless(stop, Box::pin(finding)).await?;
    Ok(searched.limited.then(|| {
        format!(
            "{} entries in {} of {} states were looked at, which is the limit; name one state, \
             like DATASET@SNAPSHOT",
            searched.visited,
            searched.roots,
            roots.len()
        )
    }))
}

/// As [`in_pool`], through a server: one state after the other, as `states` names them.
async fn through(
    remote: &Remote,
    states: &[(String, proto::Root)],
    pattern: &[u8],
    printer: &mut Printer,
) -> Result<Option<String>, Stopped> {
    let mut limited = None;
    for (name, root) in states {
        let request = proto::FindRequest {
            pool: root.pool.clone(),
            dataset: root.dataset.clone(),
            snapshot: root.snapshot.clone(),
            all_snapshots: false,
            pattern: pattern.to_vec(),
            limit: TOLD_MAX,
        };
        let mut tell = |hit: proto::Hit| {
            let object = Match::try_from(hit.entry.unwrap_or_default())?;
            Ok::<_, Stopped>(printer.tell(name, &object)?)
        };
        // Versions that were printed before a search had to begin again are not printed again.
        let found = patiently(async || remote.client.find(request.clone(), &mut tell).await);
        match found.await {
            // The snapshot was deleted meanwhile, or nothing was written yet.
            Err(stopped) if states.len() > 1 && stopped.is_not_found() => {}
            Err(stopped) => return Err(stopped),
            Ok(found) if found.limited && limited.is_none() => {
                limited = Some(format!(
                    "{} entries of {name} were looked at and {} found, which is a limit of the \
                     server; search for a longer part of the name",
                    found.visited, found.found
                ));
            }
            Ok(_) => {}
        }
    }
    Ok(limited)
}

/// The states to search, the oldest first, and their names.
async fn states(opened: &Opened, text: Option<&str>) -> anyhow::Result<(Vec<Root>, Vec<String>)> {
    let browser = &opened.browser;
    if let Some(text) = text
        && split_snapshot(text).is_some()
    {
        return Ok((vec![browser.root_named(text).await?], vec![text.to_owned()]));
    }
    let dataset = browser.dataset_or_default(text).await?;
    let (mut roots, mut names) = (Vec::new(), Vec::new());
    for snapshot in opened.controller.live_snapshots(&opened.pool, &dataset).await? {
        names.push(format!("{}@{}", dataset.name, snapshot.name));
        roots.push(Root::Snapshot(snapshot));
    }
    names.push(dataset.name.to_string());
    roots.push(Root::Head(dataset));
    Ok((roots, names))
}

/// As [`states`], of a server.
async fn states_there(
    remote: &Remote,
    text: Option<&str>,
) -> anyhow::Result<Vec<(String, proto::Root)>> {
    let root = |dataset: &str, snapshot: &str| proto::Root {
        pool: remote.pool.clone(),
        dataset: dataset.to_owned(),
        snapshot: snapshot.to_owned(),
        handle: String::new(),
    };
    if let Some(text) = text
        && let Some((dataset, snapshot)) = split_snapshot(text)
    {
        return Ok(vec![(text.to_owned(), root(dataset, snapshot))]);
    }
    let dataset = remote.live_or_default(text).await?;
    let snapshots = patiently(async || remote.client.snapshots(&remote.pool, &dataset).await);
    let snapshots = snapshots.await?;
    let ready = snapshots
        .into_iter()
        .filter(|found| found.state() == proto::State::Ready && !found.writable);
    let mut states: Vec<(String, proto::Root)> = ready
        .map(|found| (format!("{dataset}@{}", found.name), root(&dataset, &found.name)))
        .collect();
    states.push((dataset.clone(), root(&dataset, "")));
    Ok(states)
}

impl Printer {
    fn tell(&mut self, state: &str, object: &Match) -> std::io::Result<()> {
        if !self.is_new(object) {
            return Ok(());
        }
        let modified = when(object.mtime);
        if self.json {
            let line = FoundLine {
                state,
                path: path::lossy(&object.path),
                path_bytes: path::bytes(&object.path),
                kind: path::kind(object.kind),
                size: object.size,
                modified,
            };
            let mut line = serde_json::to_vec(&line).map_err(std::io::Error::other)?;
            line.push(b'\n');
            return self.out.write_all(&line);
        }
        let size = ByteSize(object.size).to_string();
        writeln!(self.out, "{modified}  {size:>8}  {state}  {}", path::shown(&object.path))
    }

    /// Returns whether a version was not printed before. Two of one path with the same tag are one.
    fn is_new(&mut self, object: &Match) -> bool {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&object.path).update(&[0]).update(object.etag.as_bytes());
        let mut version = [0; 16];
        version.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        !self.seen.contains(&version) && (self.seen.len() >= SEEN_MAX || self.seen.insert(version))
    }
}
