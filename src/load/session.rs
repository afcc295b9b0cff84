//! A run: connections, the working directory, concurrent calls.

use super::data::Source;
use super::meter::Meter;
use super::process::Watched;
use super::report::{Measured, Row, Spent};
use super::{LoadError, LoadOptions, Workload};
use crate::fs::api::SetAttr;
use crate::nfs::NfsStat;
use crate::nfs::client::{self, Client, ClientError, Credentials, FileHandle};
use parking_lot::Mutex;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub type Result<T> = std::result::Result<T, LoadError>;

/// Adds the operation to the error of a failed call.
pub fn during<T>(what: &str, result: std::result::Result<T, ClientError>) -> Result<T> {
    result.map_err(|source| LoadError::Client { what: what.to_owned(), source })
}

pub struct Session {
    pub options: LoadOptions,
    pub clients: Vec<Client>,
    root: FileHandle,
    name: String,
    pub dir: FileHandle,
    pub source: Source,
    watched: Option<Watched>,
    /// The large file, once there is one.
    pub file: Option<FileHandle>,
    /// The directory of small files, once there is one.
    pub small: Option<Arc<Small>>,
}

/// The directory of small files; the handles are those of the existing files.
pub struct Small {
    pub dir: FileHandle,
    pub handles: Mutex<Vec<FileHandle>>,
}

/// The condition that ends the calls.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// This many operations were begun.
    Count(u64),
    Time(Duration),
}

async fn mount(options: &LoadOptions, credentials: &Credentials) -> Result<FileHandle> {
    let host = options.host();
    if options.mount_port.is_none() {
        match client::mount_at(options.target, &options.export, credentials).await {
            // MOUNT may be on another port.
            Err(
                ClientError::Status(_)
                | ClientError::Disconnected
                | ClientError::TimedOut(_)
                | ClientError::Reply(_),
            ) => {}
            answered => return during("MOUNT", answered),
        }
    }
    during("MOUNT", client::mount(host, options.mount_port, &options.export, credentials).await)
}

impl Session {
    pub async fn open(options: LoadOptions) -> Result<Self> {
        let credentials = Credentials::root();
        let root = mount(&options, &credentials).await?;
        let mut clients = Vec::new();
        for _ in 0..options.connections.max(1) {
            clients.push(during("connect", Client::connect(options.target, &credentials).await)?);
        }
        let client = clients.first().ok_or_else(|| LoadError::Thread("no connection".into()))?;
        let name = options
            .directory
            .clone()
            .unwrap_or_else(|| format!("bench-{:08x}", rand::random::<u32>()));
        let set = SetAttr { mode: Some(0o755), ..SetAttr::default() };
        let dir = match client.mkdir(&root, name.as_bytes(), &set).await {
            Err(ClientError::Status(NfsStat::Exist)) => {
                during("LOOKUP", client.lookup(&root, name.as_bytes()).await)?
            }
            made => during("MKDIR", made)?,
        };
        let watched = options.server_pid.map(Watched::new);
        Ok(Self {
            options,
            clients,
            root,
            name,
            dir: dir.handle,
            source: Source::default(),
            watched,
            file: None,
            small: None,
        })
    }

    pub fn client(&self, caller: usize) -> Client {
        // There is at least one client: `open` made it.
        self.clients
            .get(caller % self.clients.len().max(1))
            .or(self.clients.first())
            .cloned()
            .unwrap_or_else(|| unreachable!())
    }

    fn spent(&self) -> Result<Spent> {
        match &self.watched {
            None => Ok(Spent::default()),
            Some(watched) => {
                Ok(Spent { cpu: Some(watched.cpu()?), peak_bytes: Some(watched.peak_bytes()?) })
            }
        }
    }

    /// Runs a workload and reports its cost; some have several lines.
    pub async fn measure(&mut self, work: Workload) -> Result<Vec<Row>> {
        self.prepare(work).await?;
        let mut rows = Vec::new();
        for variant in self.variants(work) {
            let before = self.spent()?;
            let measured = self.work(work, variant).await?;
            let after = self.spent()?;
            let cpu = before.cpu.zip(after.cpu).map(|(before, after)| after.saturating_sub(before));
            rows.push(Row::new(work, measured, Spent { cpu, peak_bytes: after.peak_bytes }));
        }
        Ok(rows)
    }

    /// Runs `concurrency` operations at a time. `make` makes a caller's operation from its client;
    /// an operation gets the number of its turn, which no other gets.
    pub async fn concurrently<F, Fut>(
        &self,
        concurrency: usize,
        until: Until,
        make: impl Fn(Client) -> F,
    ) -> Result<Meter>
    where
        F: Fn(u64) -> Fut + Send + 'static,
        Fut: Future<Output = Result<()>> + Send,
    {
        let turn = Arc::new(AtomicU64::new(0));
        let mut all = Meter::default();
        let started = Instant::now();
        let running: Vec<_> = (0..concurrency)
            .map(|caller| {
                let (operation, turn) = (make(self.client(caller)), turn.clone());
                tokio::spawn(async move {
                    let mut meter = Meter::default();
                    loop {
                        let now = turn.fetch_add(1, Ordering::Relaxed);
                        let ended = match until {
                            Until::Count(count) => now >= count,
                            Until::Time(time) => started.elapsed() >= time,
                        };
                        if ended {
                            return Ok(meter);
                        }
                        let begun = Instant::now();
                        operation(now).await?;
                        meter.add(begun.elapsed());
                    }
                })
            })
            .collect();
        for caller in running {
            all.merge(caller.await.map_err(|error| LoadError::Thread(error.to_string()))??);
        }
        Ok(all)
    }

    /// The result of a workload that moves no data.
    pub fn done(meter: Meter) -> Measured {
        let took = meter.elapsed();
        Measured { variant: "", meter, took, bytes: None }
    }

    /// Removes the directory, unless it is to be kept.
    pub async fn close(&mut self) -> Result<()> {
        if self.options.keep {
            return Ok(());
        }
        self.clear(self.dir.clone()).await?;
        during("RMDIR", self.client(0).rmdir(&self.root, self.name.as_bytes()).await.map(drop))
    }
}
