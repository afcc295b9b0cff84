//! The workloads on many small files.

use super::{LARGE_CONCURRENCY, new_file, scatter, write_all};
use crate::fs::api::{SetAttr, Stability};
use crate::load::LoadError;
use crate::load::data::BLOCK_BYTES;
use crate::load::meter::Meter;
use crate::load::report::Measured;
use crate::load::session::{Result, Session, Small, Until, during};
use crate::nfs::client::FileHandle;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Instant;

const SMALL_NAME: &[u8] = b"small";

fn name(number: u64) -> Vec<u8> {
    format!("file-{number:07}").into_bytes()
}

fn renamed(number: u64) -> Vec<u8> {
    format!("renamed-{number:07}").into_bytes()
}

impl Session {
    pub(super) async fn getattr(&self) -> Result<Measured> {
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

    pub(super) async fn lookup(&self) -> Result<Measured> {
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

    /// `FileSync`: each file is committed; `Unstable`: the last one.
    pub(super) async fn create(&mut self, stability: Stability) -> Result<Measured> {
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

    pub(super) async fn list_small(&self) -> Result<Measured> {
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

    pub(super) async fn read_small(&self) -> Result<Measured> {
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

    pub(super) async fn rename(&self) -> Result<Measured> {
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

    pub(super) async fn remove(&mut self) -> Result<Measured> {
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

    fn small(&self) -> Result<Arc<Small>> {
        self.small.clone().ok_or_else(|| LoadError::Thread("the small files are missing".into()))
    }

    /// Finds the small files of an earlier run, if they are as many as asked for.
    pub(super) async fn find_small(&mut self) -> Result<bool> {
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
}
