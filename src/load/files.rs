//! The works themselves.

use super::data::BLOCK_BYTES;
use super::meter::Meter;
use super::report::Measured;
use super::session::{Result, Session, Small, Until, during};
use super::{LoadError, Workload};
use crate::fs::api::{CreateHow, DirCookie, FileKind, SetAttr, Stability};
use crate::nfs::client::{FileHandle, PageEntry};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const LARGE_NAME: &[u8] = b"large";
const SMALL_NAME: &[u8] = b"small";
/// Concurrency of the workloads on large data and of those that create files.
const LARGE_CONCURRENCY: usize = 8;
const LIST_BYTES: u32 = 128 << 10;
/// The variant of the works on synced data with as many callers.
const EIGHT: &str = "8 at once";

fn name(number: u64) -> Vec<u8> {
    format!("file-{number:07}").into_bytes()
}

fn renamed(number: u64) -> Vec<u8> {
    format!("renamed-{number:07}").into_bytes()
}

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

    fn large_blocks(&self) -> u64 {
        u64::from(self.options.file_mib.max(1)) * MIB / BLOCK_BYTES as u64
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

    async fn getattr(&self) -> Result<Measured> {
        let handles: Arc<[FileHandle]> = self.small()?.handles.lock().clone().into();
        let meter =
            self.concurrently(self.options.concurrency, Until::Time(self.options.time), |client| {
                let handles = handles.clone();
                move |turn| {
                    let (client, handles) = (client.clone(), handles.clone());
                    async move {
                        let Some(file) = handles.get(scatter(turn, handles.len() as u64) as usize)
                        else {
                            return Ok(());
                        };
                        during("GETATTR", client.getattr(file).await.map(drop))
                    }
                }
            });
        Ok(Self::done(meter.await?))
    }

    async fn lookup(&self) -> Result<Measured> {
        let (small, files) = (self.small()?, self.files());
        let meter =
            self.concurrently(self.options.concurrency, Until::Time(self.options.time), |client| {
                let small = small.clone();
                move |turn| {
                    let (client, small) = (client.clone(), small.clone());
                    async move {
                        during(
                            "LOOKUP",
                            client.lookup(&small.dir, &name(scatter(turn, files))).await.map(drop),
                        )
                    }
                }
            });
        Ok(Self::done(meter.await?))
    }

    async fn write_large(&mut self) -> Result<Measured> {
        let begun = Instant::now();
        let file =
            during("CREATE", self.client(0).create(&self.dir, LARGE_NAME, &new_file()).await)?
                .handle;
        let source = Arc::new(Mutex::new(self.source.clone()));
        let pieces = u64::from(self.options.file_mib.max(1));
        let meter = self.concurrently(LARGE_CONCURRENCY, Until::Count(pieces), |client| {
            let (file, source) = (file.clone(), source.clone());
            move |turn| {
                let (client, file) = (client.clone(), file.clone());
                let data = source.lock().take(MIB as usize);
                let offset = turn * MIB;
                async move { write_all(&client, &file, offset, data, Stability::Unstable).await }
            }
        });
        let meter = meter.await?;
        during("COMMIT", self.client(0).commit(&file, 0, 0).await)?;
        self.source = source.lock().clone();
        self.file = Some(file);
        Ok(Measured { variant: "", meter, took: begun.elapsed(), bytes: Some(pieces * MIB) })
    }

    async fn read_large(&self) -> Result<Measured> {
        let file = self.large()?;
        let pieces = u64::from(self.options.file_mib.max(1));
        let source = Arc::new(self.source.clone());
        // A file of an earlier run has other bytes; one written at random since has other blocks.
        let verify = self.options.directory.is_none();
        let meter = self.concurrently(LARGE_CONCURRENCY, Until::Count(pieces), |client| {
            let (file, source) = (file.clone(), source.clone());
            move |turn| {
                let (client, file, source) = (client.clone(), file.clone(), source.clone());
                async move {
                    let read = during("READ", client.read(&file, turn * MIB, MIB as u32).await)?;
                    let sample = read.data.get(..BLOCK_BYTES).unwrap_or(&read.data);
                    if read.data.len() as u64 != MIB || verify && !source.made(sample) {
                        return Err(LoadError::Different {
                            what: format!("MiB {turn} of the large file"),
                        });
                    }
                    Ok(())
                }
            }
        });
        let meter = meter.await?;
        let took = meter.elapsed();
        Ok(Measured { variant: "", meter, took, bytes: Some(pieces * MIB) })
    }

    async fn read_random(&self) -> Result<Measured> {
        let (file, blocks) = (self.large()?, self.large_blocks());
        let meter =
            self.concurrently(self.options.concurrency, Until::Time(self.options.time), |client| {
                let file = file.clone();
                move |turn| {
                    let (client, file) = (client.clone(), file.clone());
                    async move {
                        let offset = scatter(turn, blocks) * BLOCK_BYTES as u64;
                        let read =
                            during("READ", client.read(&file, offset, BLOCK_BYTES as u32).await)?;
                        if read.data.len() != BLOCK_BYTES {
                            return Err(LoadError::Different {
                                what: format!("byte {offset} of the large file"),
                            });
                        }
                        Ok(())
                    }
                }
            });
        let meter = meter.await?;
        let (took, bytes) = (meter.elapsed(), meter.operations * BLOCK_BYTES as u64);
        Ok(Measured { variant: "", meter, took, bytes: Some(bytes) })
    }

    async fn write_random(&mut self) -> Result<Measured> {
        let (file, blocks) = (self.large()?, self.large_blocks());
        let source = Arc::new(Mutex::new(self.source.clone()));
        let begun = Instant::now();
        let until = Until::Time(self.options.time);
        let meter = self.concurrently(self.options.concurrency, until, |client| {
            let (file, source) = (file.clone(), source.clone());
            move |turn| {
                let (client, file) = (client.clone(), file.clone());
                let data = source.lock().take(BLOCK_BYTES);
                let offset = scatter(turn, blocks) * BLOCK_BYTES as u64;
                async move { write_all(&client, &file, offset, data, Stability::Unstable).await }
            }
        });
        let meter = meter.await?;
        during("COMMIT", self.client(0).commit(&file, 0, 0).await)?;
        self.source = source.lock().clone();
        let bytes = meter.operations * BLOCK_BYTES as u64;
        Ok(Measured { variant: "", meter, took: begun.elapsed(), bytes: Some(bytes) })
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

    /// `FileSync`: each file is committed; `Unstable`: the last one.
    async fn create(&mut self, stability: Stability) -> Result<Measured> {
        let dir = self.small_dir().await?;
        let (files, source) = (self.files(), Arc::new(Mutex::new(self.source.clone())));
        let handles = Arc::new(Mutex::new(Vec::new()));
        let begun = Instant::now();
        let meter = self.concurrently(LARGE_CONCURRENCY, Until::Count(files), |client| {
            let (dir, source, handles) = (dir.clone(), source.clone(), handles.clone());
            move |turn| {
                let (client, dir, handles) = (client.clone(), dir.clone(), handles.clone());
                let data = source.lock().take(BLOCK_BYTES);
                async move {
                    let file =
                        during("CREATE", client.create(&dir, &name(turn), &new_file()).await)?
                            .handle;
                    write_all(&client, &file, 0, data, Stability::Unstable).await?;
                    if stability == Stability::FileSync {
                        during("COMMIT", client.commit(&file, 0, 0).await)?;
                    }
                    handles.lock().push(file);
                    Ok(())
                }
            }
        });
        let meter = meter.await?;
        let handles = std::mem::take(&mut *handles.lock());
        if let Some(last) = handles.last() {
            during("COMMIT", self.client(0).commit(last, 0, 0).await)?;
        }
        let took = begun.elapsed();
        self.source = source.lock().clone();
        self.small = Some(Arc::new(Small { dir, handles: Mutex::new(handles) }));
        Ok(Measured { variant: "", meter, took, bytes: None })
    }

    async fn list_small(&self) -> Result<Measured> {
        let small = self.small()?;
        let mut meter = Meter::default();
        let begun = Instant::now();
        let entries = self.list(&small.dir).await?;
        meter.add(begun.elapsed());
        if entries.len() as u64 != self.files() {
            return Err(LoadError::Different {
                what: format!("a directory of {} entries", self.files()),
            });
        }
        Ok(Self::done(meter))
    }

    async fn read_small(&self) -> Result<Measured> {
        let small = self.small()?;
        let meter =
            self.concurrently(self.options.concurrency, Until::Count(self.files()), |client| {
                let small = small.clone();
                move |turn| {
                    let (client, small) = (client.clone(), small.clone());
                    async move {
                        let file = during("LOOKUP", client.lookup(&small.dir, &name(turn)).await)?;
                        let read =
                            during("READ", client.read(&file.handle, 0, BLOCK_BYTES as u32).await)?;
                        if read.data.len() != BLOCK_BYTES {
                            return Err(LoadError::Different {
                                what: format!("small file {turn}"),
                            });
                        }
                        Ok(())
                    }
                }
            });
        Ok(Self::done(meter.await?))
    }

    async fn rename(&self) -> Result<Measured> {
        let small = self.small()?;
        let forth = |small: Arc<Small>, back: bool| {
            self.concurrently(self.options.concurrency, Until::Count(self.files()), move |client| {
                let small = small.clone();
                move |turn| {
                    let (client, small) = (client.clone(), small.clone());
                    async move {
                        let (from, to) = if back {
                            (renamed(turn), name(turn))
                        } else {
                            (name(turn), renamed(turn))
                        };
                        during(
                            "RENAME",
                            client.rename((&small.dir, &from), (&small.dir, &to)).await.map(drop),
                        )
                    }
                }
            })
        };
        let mut meter = forth(small.clone(), false).await?;
        // Both ways count; the second one leaves the names as they were.
        meter.merge(forth(small, true).await?);
        Ok(Self::done(meter))
    }

    async fn remove(&mut self) -> Result<Measured> {
        let small = self.small()?;
        let meter =
            self.concurrently(self.options.concurrency, Until::Count(self.files()), |client| {
                let small = small.clone();
                move |turn| {
                    let (client, small) = (client.clone(), small.clone());
                    async move {
                        during("REMOVE", client.remove(&small.dir, &name(turn)).await.map(drop))
                    }
                }
            });
        let meter = meter.await?;
        self.small = None;
        Ok(Self::done(meter))
    }

    fn large(&self) -> Result<FileHandle> {
        self.file.clone().ok_or_else(|| LoadError::Thread("the large file is missing".into()))
    }

    fn small(&self) -> Result<Arc<Small>> {
        self.small.clone().ok_or_else(|| LoadError::Thread("the small files are missing".into()))
    }

    /// Finds the large file of an earlier run, if it is as large as asked for.
    async fn find_large(&mut self) -> Result<bool> {
        if self.file.is_none()
            && let Ok(found) = self.client(0).lookup(&self.dir, LARGE_NAME).await
            && found.attr.is_some_and(|attr| attr.size >= u64::from(self.options.file_mib) * MIB)
        {
            self.file = Some(found.handle);
        }
        Ok(self.file.is_some())
    }

    /// Finds the small files of an earlier run, if they are as many as asked for.
    async fn find_small(&mut self) -> Result<bool> {
        if self.small.is_none()
            && let Ok(found) = self.client(0).lookup(&self.dir, SMALL_NAME).await
        {
            // The names are known: listing them would warm what is to be measured cold.
            let last = self.client(0).lookup(&found.handle, &name(self.files() - 1)).await;
            if let Ok(last) = last {
                self.small = Some(Arc::new(Small {
                    dir: found.handle,
                    handles: Mutex::new(vec![last.handle]),
                }));
            }
        }
        Ok(self.small.is_some())
    }

    /// An empty directory for small files.
    async fn small_dir(&mut self) -> Result<FileHandle> {
        self.small = None;
        let client = self.client(0);
        if let Ok(old) = client.lookup(&self.dir, SMALL_NAME).await {
            self.clear_files(old.handle.clone()).await?;
            return Ok(old.handle);
        }
        let set = SetAttr { mode: Some(0o755), ..SetAttr::default() };
        Ok(during("MKDIR", client.mkdir(&self.dir, SMALL_NAME, &set).await)?.handle)
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
