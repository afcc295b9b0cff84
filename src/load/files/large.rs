//! The workloads on one large file.

use super::{LARGE_CONCURRENCY, new_file, scatter, write_all};
use crate::fs::api::Stability;
use crate::load::LoadError;
use crate::load::data::BLOCK_BYTES;
use crate::load::report::Measured;
use crate::load::session::{Result, Session, Until, during};
use crate::nfs::client::FileHandle;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Instant;

const MIB: u64 = 1 << 20;
const LARGE_NAME: &[u8] = b"large";

impl Session {
    fn large_blocks(&self) -> u64 {
        u64::from(self.options.file_mib.max(1)) * MIB / BLOCK_BYTES as u64
    }

    pub(super) async fn write_large(&mut self) -> Result<Measured> {
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

    pub(super) async fn read_large(&self) -> Result<Measured> {
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

    pub(super) async fn read_random(&self) -> Result<Measured> {
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

    pub(super) async fn write_random(&mut self) -> Result<Measured> {
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

    fn large(&self) -> Result<FileHandle> {
        self.file.clone().ok_or_else(|| LoadError::Thread("the large file is missing".into()))
    }

    /// Finds the large file of an earlier run, if it is as large as asked for.
    pub(super) async fn find_large(&mut self) -> Result<bool> {
        if self.file.is_none()
            && let Ok(found) = self.client(0).lookup(&self.dir, LARGE_NAME).await
            && found.attr.is_some_and(|attr| attr.size >= u64::from(self.options.file_mib) * MIB)
        {
            self.file = Some(found.handle);
        }
        Ok(self.file.is_some())
    }
}
