//! The workloads: what each needs, and its calls.

use super::data::BLOCK_BYTES;
use super::report::Measured;
use super::session::{Result, Session, Until, during};
use super::{LoadError, Workload};
use crate::fs::api::{CreateHow, DirCookie, FileKind, SetAttr, Stability};
use crate::nfs::client::{FileHandle, PageEntry};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

mod large;
mod small;

/// Concurrency of the workloads on large data and of those that create files.
const LARGE_CONCURRENCY: usize = 8;
const LIST_BYTES: u32 = 128 << 10;
/// The variant of the works on synced data with as many callers.
const EIGHT: &str = "8 at once";

fn new_file() -> CreateHow {
    CreateHow::Unchecked(SetAttr { mode: Some(0o644), size: Some(0), ..SetAttr::default() })
}

/// An even spread over `0..count` for consecutive turns, without a generator to share.
fn scatter(turn: u64, count: u64) -> u64 {
    (turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % count.max(1)
}

impl Session {
    fn files(&self) -> u64 {
        u64::from(self.options.files.max(1))
    }

    pub fn variants(&self, work: Workload) -> &'static [&'static str] {
        match work {
            Workload::List => &["first", "again"],
            Workload::ReadSequential => &["first", "again"],
            Workload::Fsync | Workload::WriteSync => &["", EIGHT],
            _ => &[""],
        }
    }

    /// Creates the files that a workload needs and no earlier one has left.
    pub async fn prepare(&mut self, work: Workload) -> Result<()> {
        match work {
            Workload::ReadSequential | Workload::ReadRandom | Workload::WriteRandom => {
                if self.find_large().await? {
                    return Ok(());
                }
                self.write_large().await.map(drop)
            }
            Workload::WriteSequential
            | Workload::Fsync
            | Workload::WriteSync
            | Workload::Create
            | Workload::CreateCommit => Ok(()),
            Workload::GetAttr
            | Workload::Lookup
            | Workload::List
            | Workload::ReadSmall
            | Workload::Rename
            | Workload::Remove => {
                if self.find_small().await? {
                    return Ok(());
                }
                self.create(Stability::Unstable).await.map(drop)
            }
        }
    }

    pub async fn work(&mut self, work: Workload, variant: &'static str) -> Result<Measured> {
        let measured = match work {
            Workload::GetAttr => self.getattr().await,
            Workload::Lookup => self.lookup().await,
            Workload::WriteSequential => self.write_large().await,
            Workload::ReadSequential => self.read_large().await,
            Workload::ReadRandom => self.read_random().await,
            Workload::WriteRandom => self.write_random().await,
            Workload::Fsync => self.fsync(Stability::Unstable, variant).await,
            Workload::WriteSync => self.fsync(Stability::FileSync, variant).await,
            Workload::Create => self.create(Stability::Unstable).await,
            Workload::CreateCommit => self.create(Stability::FileSync).await,
            Workload::List => self.list_small().await,
            Workload::ReadSmall => self.read_small().await,
            Workload::Rename => self.rename().await,
            Workload::Remove => self.remove().await,
        };
        measured.map(|measured| Measured { variant, ..measured })
    }

    /// Appends to a file, or each caller to one of its own, as a database writes its log;
    /// `Unstable` data is committed by a call of its own.
    async fn fsync(&mut self, stability: Stability, variant: &str) -> Result<Measured> {
        let callers = if variant == EIGHT { 8 } else { 1 };
        let mut files = Vec::new();
        for n in 0..callers {
            let name = format!("log-{n}");
            let made = self.client(n).create(&self.dir, name.as_bytes(), &new_file()).await;
            files.push((during("CREATE", made)?.handle, AtomicU64::new(0)));
        }
        // Each caller takes one of the files.
        let (files, next) = (Arc::new(files), AtomicUsize::new(0));
        let source = Arc::new(Mutex::new(self.source.clone()));
        let meter = self.concurrently(callers, Until::Time(self.options.time), |client| {
            let (files, source) = (files.clone(), source.clone());
            let caller = next.fetch_add(1, Ordering::Relaxed);
            move |_| {
                let (client, files) = (client.clone(), files.clone());
                let data = source.lock().take(BLOCK_BYTES);
                async move {
                    let Some((file, end)) = files.get(caller) else { return Ok(()) };
                    let offset = end.fetch_add(BLOCK_BYTES as u64, Ordering::Relaxed);
                    write_all(&client, file, offset, data, stability).await?;
                    if stability == Stability::Unstable {
                        let committed = client.commit(file, offset, BLOCK_BYTES as u32).await;
                        during("COMMIT", committed.map(drop))?;
                    }
                    Ok(())
                }
            }
        });
        let meter = meter.await?;
        self.source = source.lock().clone();
        Ok(Self::done(meter))
    }

    /// All entries of a directory but `.` and `..`.
    async fn list(&self, dir: &FileHandle) -> Result<Vec<PageEntry>> {
        let (client, mut found) = (self.client(0), Vec::new());
        let (mut after, mut verifier) = (DirCookie::default(), [0; 8]);
        loop {
            let page =
                during("READDIRPLUS", client.readdirplus(dir, after, verifier, LIST_BYTES).await)?;
            let last = page.entries.last().map(|entry| entry.cookie);
            found.extend(
                page.entries
                    .into_iter()
                    .filter(|entry| *entry.name != *b"." && *entry.name != *b".."),
            );
            match last {
                Some(last) if !page.eof => (after, verifier) = (last, page.verifier),
                _ => return Ok(found),
            }
        }
    }

    /// Removes everything in a directory, with the directories in it and their files.
    pub async fn clear(&self, dir: FileHandle) -> Result<()> {
        for entry in self.list(&dir).await?.iter().filter(|entry| is_dir(entry)) {
            let found = during("LOOKUP", self.client(0).lookup(&dir, &entry.name).await)?;
            self.clear_files(found.handle).await?;
            during("RMDIR", self.client(0).rmdir(&dir, &entry.name).await)?;
        }
        self.clear_files(dir).await
    }

    /// Removes all entries of a directory that are not directories.
    async fn clear_files(&self, dir: FileHandle) -> Result<()> {
        let entries = self.list(&dir).await?;
        let names: Arc<[Bytes]> =
            entries.into_iter().filter(|entry| !is_dir(entry)).map(|entry| entry.name).collect();
        let count = names.len() as u64;
        self.concurrently(LARGE_CONCURRENCY, Until::Count(count), |client| {
            let (dir, names) = (dir.clone(), names.clone());
            move |turn| {
                let (client, dir, names) = (client.clone(), dir.clone(), names.clone());
                async move {
                    let Some(name) = names.get(turn as usize) else { return Ok(()) };
                    during("REMOVE", client.remove(&dir, name).await.map(drop))
                }
            }
        })
        .await
        .map(drop)
    }
}

/// Pauses of a server that answers "try again later".
const AGAIN: Duration = Duration::from_millis(10);

/// A server may write less than it was given, and may ask to come again.
async fn write_all(
    client: &crate::nfs::client::Client,
    file: &FileHandle,
    mut offset: u64,
    mut data: Bytes,
    stability: Stability,
) -> Result<()> {
    while !data.is_empty() {
        let written = match client.write(file, offset, data.clone(), stability).await {
            Err(error) if error.status() == Some(crate::nfs::NfsStat::Jukebox) => {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            written => during("WRITE", written)?,
        };
        let count = written.count as usize;
        if count == 0 || count > data.len() {
            return Err(LoadError::Different { what: format!("a WRITE of {} bytes", data.len()) });
        }
        data = data.slice(count..);
        offset += count as u64;
    }
    Ok(())
}

fn is_dir(entry: &PageEntry) -> bool {
    entry.attr.is_some_and(|attr| attr.kind == FileKind::Directory)
}
