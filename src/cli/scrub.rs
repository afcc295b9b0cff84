//! `scrub`: reads and verifies every chunk.

use super::args::ScrubArgs;
use super::exit::{Interrupted, Wrong};
use super::remote::Remote;
use super::report::Progress;
use super::target::{Opened, Target};
use crate::admin::grpc::proto;
use crate::app;
use crate::control::{Damaged, Scrub, Scrubbed};
use crate::types::Class;
use crate::types::{ByteSize, plural};
use anyhow::Context;
use serde::Serialize;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Interval at which the progress is written.
const STATE_EVERY: Duration = Duration::from_secs(10);
/// Time that a command which is interrupted waits for the first answer of the scrub it started.
const START_PATIENCE: Duration = Duration::from_secs(5);
/// A larger state file is not one of ours, which has 100 bytes per pack.
const STATE_BYTES_MAX: u64 = 1 << 30;

/// A [`Scrubbed`] without the fields that only a resumption needs.
#[derive(Serialize)]
struct ScrubReport {
    roots: Vec<String>,
    chunks: u64,
    packs: u64,
    bytes: u64,
    damaged: Vec<Damaged>,
    more: u64,
}

pub fn run(args: ScrubArgs) -> anyhow::Result<()> {
    app::start_logging(&Default::default(), Some("warn"))?;
    app::run(async move {
        args.state_file.as_deref().map_or(Ok(()), writable)?;
        let shown = match args.common.place.target().await? {
            Target::Pool(opened) => Box::pin(scrub(&opened, &args)).await?,
            Target::Server(remote) => through(&remote, &args).await?,
        };
        args.common.output.print(&shown, text)?;
        if shown.damaged.is_empty() {
            Ok(())
        } else {
            Err(Wrong::new(
                Class::Corrupt,
                "data is damaged: restore the files that are listed".to_owned(),
            ))
        }
    })
}

async fn scrub(opened: &Opened, args: &ScrubArgs) -> anyhow::Result<ScrubReport> {
    let only = opened.browser.only(args.dataset.as_deref()).await?;
    let resumed = match &args.state_file {
        Some(file) => load(file)?,
        None => None,
    };
    let stop = app::stop_signal()?;
    let rate = args.rate.map(|rate| rate.0);
    let mut scrub = Scrub::new(&opened.pool, &opened.parts.volumes, rate, resumed)?;
    let (progress, mut written) = (Progress::new(), Instant::now());
    let each = |root: &str, found: &Scrubbed| {
        progress.say(&format!(
            "{root}: {} packs, {} read",
            found.packs.len(),
            ByteSize(found.bytes)
        ));
        if let Some(file) = &args.state_file
            && written.elapsed() >= STATE_EVERY
        {
            written = Instant::now();
            if let Err(error) = save(file, found) {
                tracing::warn!(
                    %error,
                    "the state file cannot be written: this scrub cannot be resumed"
                );
            }
        }
    };
    let ended = Box::pin(scrub.run(only, &stop, each)).await;
    drop(progress);
    match (ended, &args.state_file) {
        (Ok(true), Some(file)) => remove(file)?,
        (Ok(true), None) => {}
        (failed, file) => {
            if let Some(file) = file {
                save(file, scrub.found())?;
            }
            eprintln!("{} read so far", ByteSize(scrub.found().bytes));
            failed?;
            return Err(Interrupted::new(match file {
                Some(_) => "run it again with the same --state-file to resume",
                None => STARTS_OVER,
            }));
        }
    }
    let found = scrub.found();
    Ok(ScrubReport {
        roots: found.roots.clone(),
        chunks: found.chunks,
        packs: found.packs.len() as u64,
        bytes: found.bytes,
        damaged: found.damaged.clone(),
        more: found.more,
    })
}

const STARTS_OVER: &str = "without --state-file the next scrub starts over";

/// Through a server, which is asked to stop when this command is.
async fn through(remote: &Remote, args: &ScrubArgs) -> anyhow::Result<ScrubReport> {
    if args.state_file.is_some() {
        let why = "--state-file: a server keeps no progress of a scrub; leave it out, or scrub the \
                   pool itself with --pool URL";
        return Err(Wrong::new(Class::Unsupported, why));
    }
    let stop = app::stop_signal()?;
    let request = proto::ScrubRequest {
        pool: remote.pool.clone(),
        dataset: args.dataset.clone().unwrap_or_default(),
        bytes_per_second: args.rate.map_or(0, |rate| rate.0),
    };
    let (progress, running) = (Progress::new(), watch::Sender::new(None));
    let each = |task: &proto::Task| {
        running.send_replace(Some((task.id, task.bytes)));
        let read = ByteSize(task.bytes);
        progress.say(&format!("{}: {} packs, {read} read", task.subject, task.objects));
    };
    let stopped = async {
        stop.cancelled().await;
        // A scrub that begins can be stopped only once it is known.
        let mut known = running.subscribe();
        let known = tokio::time::timeout(START_PATIENCE, known.wait_for(Option::is_some));
        known.await.ok().and_then(|known| known.ok().and_then(|known| *known))
    };
    let ended = tokio::select! {
        biased;
        known = stopped => Err(known),
        ended = remote.client.scrub(request, each) => {
            Ok(ended.inspect_err(|_| progress.say(""))?)
        }
    };
    drop(progress);
    let mut task = match ended {
        Ok(ended) => ended.unwrap_or_default(),
        Err(None) => {
            return Err(Interrupted::new(
                "the server did not answer and may scrub on: `zerofs-csi task list` shows its \
                 tasks, and `zerofs-csi task stop` stops one",
            ));
        }
        Err(Some((id, bytes))) => {
            eprintln!("{} read so far", ByteSize(bytes));
            remote.client.stop_task(id).await?;
            return Err(Interrupted::new(
                "the server was asked to stop; the next scrub starts over",
            ));
        }
    };
    let Some(found) = task.scrub.take() else {
        return Err(match task.failed() {
            Some((class, why)) => Wrong::new(class, why),
            None => {
                let why = "the server stopped the scrub before its end: run it again";
                Wrong::new(Class::Unavailable, why)
            }
        });
    };
    let damaged = found.damage.into_iter().map(|damage| Damaged {
        pack: damage.pack,
        chunk: damage.chunk,
        why: damage.reason,
        file: damage.file,
        offset: damage.offset,
    });
    Ok(ScrubReport {
        roots: found.roots,
        chunks: found.chunks,
        packs: task.objects,
        bytes: task.bytes,
        damaged: damaged.collect(),
        more: found.more,
    })
}

fn load(file: &Path) -> anyhow::Result<Option<Scrubbed>> {
    let reading = || format!("reading the state file {}", file.display());
    let bytes = match std::fs::metadata(file) {
        Ok(found) if found.len() > STATE_BYTES_MAX => {
            anyhow::bail!("{} is not the state file of a scrub", file.display())
        }
        Ok(_) => std::fs::read(file).with_context(reading)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(reading),
    };
    let state = serde_json::from_slice(&bytes);
    state.map(Some).map_err(|error| {
        Wrong::new(
            Class::Invalid,
            format!("{} is not the state file of a scrub: {error}", file.display()),
        )
    })
}

/// Checks that the state can be written before hours are spent on a scrub that could not resume.
fn writable(file: &Path) -> anyhow::Result<()> {
    let beside = file.with_extension("tmp");
    let tried = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&beside)
        .and_then(|_| std::fs::remove_file(&beside));
    tried.with_context(|| {
        format!("--state-file {}: its folder cannot be written to", file.display())
    })
}

/// Replaces the state file atomically.
fn save(file: &Path, found: &Scrubbed) -> anyhow::Result<()> {
    let beside = file.with_extension("tmp");
    std::fs::write(&beside, serde_json::to_vec(found)?)
        .with_context(|| format!("writing {}", beside.display()))?;
    std::fs::rename(&beside, file).with_context(|| format!("writing {}", file.display()))
}

fn remove(file: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", file.display()))
        }
        _ => Ok(()),
    }
}

/// Counts damaged chunks once, however many files and snapshots use them.
fn damage(found: &ScrubReport) -> String {
    let chunks: BTreeSet<_> =
        found.damaged.iter().map(|damaged| (&damaged.pack, &damaged.chunk)).collect();
    let least = if found.more > 0 { "at least " } else { "" };
    let places = plural(found.damaged.len() as u64 + found.more, "place");
    format!("{least}{} damaged, in {places}", plural(chunks.len() as u64, "chunk"))
}

fn text(found: &ScrubReport) -> String {
    let mut text = format!(
        "{} datasets and snapshots, {} chunks in {} packs ({} read): {}\n",
        found.roots.len(),
        found.chunks,
        found.packs,
        ByteSize(found.bytes),
        if found.damaged.is_empty() { "no damage".to_owned() } else { damage(found) }
    );
    for damaged in &found.damaged {
        text += &format!(
            "{} at {}: chunk {} in pack {}: {}\n",
            damaged.file, damaged.offset, damaged.chunk, damaged.pack, damaged.why
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_counted_once_however_many_use_it() {
        let at = |chunk: &str, file: &str| Damaged {
            pack: "p".to_owned(),
            chunk: chunk.to_owned(),
            why: "absent".to_owned(),
            file: file.to_owned(),
            offset: 0,
        };
        let damaged = [at("a", "web:/x"), at("a", "web@cut:/x"), at("b", "web:/y")];
        let shown = |damaged: &[Damaged], more| ScrubReport {
            roots: vec![],
            chunks: 3,
            packs: 1,
            bytes: 9,
            damaged: damaged.to_vec(),
            more,
        };
        assert_eq!(damage(&shown(&damaged, 0)), "2 chunks damaged, in 3 places");
        assert_eq!(damage(&shown(&damaged[..1], 0)), "1 chunk damaged, in 1 place");
        assert_eq!(damage(&shown(&damaged, 7)), "at least 2 chunks damaged, in 10 places");
    }
}
