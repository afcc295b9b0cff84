//! A load generator for any NFSv3 server, which `zerofs-csi bench` runs.
//!
//! Each *workload* is one line of the report: many concurrent calls over TCP, their rates and
//! latencies, and, if the server is a local process, its CPU time and memory. The data is
//! incompressible and no two blocks are alike, so that neither compression nor deduplication
//! flatters a server. Everything happens in one directory, which is removed at the end.
//!
//! The generator runs on a thread of its own with a single-threaded runtime: replies that arrive
//! together wake their callers together, and the next calls leave in one write.

mod data;
mod files;
mod meter;
mod process;
mod report;
mod session;

pub use report::{Report, Row};

use crate::nfs::client::ClientError;
use session::Session;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

/// A line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Workload {
    /// GETATTR.
    GetAttr,
    /// LOOKUP.
    Lookup,
    /// WRITE of 1 MiB, in order, then COMMIT.
    WriteSequential,
    /// READ of 1 MiB, in order.
    ReadSequential,
    /// READ of 4 KiB anywhere in a file.
    ReadRandom,
    /// WRITE of 4 KiB anywhere in a file, COMMIT at the end.
    WriteRandom,
    /// WRITE of 4 KiB, then COMMIT: one at a time, then eight callers at once.
    Fsync,
    /// WRITE of 4 KiB that must be stable: what Linux sends for fsync of one page.
    WriteSync,
    /// CREATE and WRITE of 4 KiB, COMMIT at the end.
    Create,
    /// CREATE, WRITE of 4 KiB and COMMIT of each file.
    CreateCommit,
    /// READDIRPLUS of a whole directory.
    List,
    /// LOOKUP then READ of each file.
    ReadSmall,
    /// RENAME.
    Rename,
    /// REMOVE.
    Remove,
}

impl Workload {
    /// All workloads in their order: later ones use the files of earlier ones.
    pub const ALL: [Self; 14] = [
        Self::GetAttr,
        Self::Lookup,
        Self::WriteSequential,
        Self::ReadSequential,
        Self::ReadRandom,
        Self::WriteRandom,
        Self::Fsync,
        Self::WriteSync,
        Self::Create,
        Self::List,
        Self::ReadSmall,
        Self::Rename,
        Self::Remove,
        Self::CreateCommit,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::GetAttr => "getattr",
            Self::Lookup => "lookup",
            Self::WriteSequential => "write-seq",
            Self::ReadSequential => "read-seq",
            Self::ReadRandom => "read-random",
            Self::WriteRandom => "write-random",
            Self::Fsync => "fsync",
            Self::WriteSync => "write-sync",
            Self::Create => "create",
            Self::CreateCommit => "create-commit",
            Self::List => "list",
            Self::ReadSmall => "read-small",
            Self::Rename => "rename",
            Self::Remove => "remove",
        }
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|work| work.name() == name).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|work| work.name()).collect();
            format!("{name:?} is not a workload: use {}", known.join(", "))
        })
    }
}

/// The options of a run.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    pub target: SocketAddr,
    /// Port of MOUNT; without it, that of `target`, then the portmapper's answer.
    pub mount_port: Option<u16>,
    /// Starts with `/`.
    pub export: String,
    /// Empty: all.
    pub only: Vec<Workload>,
    /// Duration of each workload that has no natural end.
    pub time: Duration,
    /// Concurrent calls in small-file workloads.
    pub concurrency: usize,
    /// TCP connections that these calls share.
    pub connections: usize,
    /// Size of the large file, in MiB.
    pub file_mib: u32,
    /// Number of small files.
    pub files: u32,
    /// Process id of a local server, to show its CPU time and memory.
    pub server_pid: Option<u32>,
    /// The directory to work in; created if it does not exist, so that the files of an earlier run
    /// can be read with cold caches.
    pub directory: Option<String>,
    /// Keep the directory afterwards.
    pub keep: bool,
}

impl LoadOptions {
    pub fn new(target: SocketAddr, export: String) -> Self {
        Self {
            target,
            mount_port: None,
            export,
            only: Vec::new(),
            time: Duration::from_secs(5),
            concurrency: 16,
            connections: 1,
            file_mib: 1024,
            files: 10_000,
            server_pid: None,
            directory: None,
            keep: false,
        }
    }

    fn host(&self) -> IpAddr {
        self.target.ip()
    }
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{what}: {source}")]
    Client {
        what: String,
        #[source]
        source: ClientError,
    },
    #[error("{what} differs from what was written: the server lost or changed data")]
    Different { what: String },
    #[error("cannot read process {pid}: {why}")]
    Process { pid: u32, why: String },
    #[error("the load generator's thread failed: {0}")]
    Thread(String),
}

/// Runs the workloads in their order; calls `done` with each line as soon as it is measured.
///
/// # Errors
/// The first call that fails ends the run; the directory is removed if the server still answers.
pub async fn run(
    options: LoadOptions,
    done: impl FnMut(&Row) + Send + 'static,
) -> Result<Report, LoadError> {
    let (send, receive) = tokio::sync::oneshot::channel();
    let thread = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let report = match runtime {
            Ok(runtime) => runtime.block_on(all(options, done)),
            Err(error) => Err(LoadError::Thread(error.to_string())),
        };
        // The caller went away: the report is not needed.
        let _unwanted = send.send(report);
    };
    std::thread::Builder::new()
        .name("bench".into())
        .spawn(thread)
        .map_err(|error| LoadError::Thread(error.to_string()))?;
    receive.await.map_err(|_| LoadError::Thread("it exited without a report".into()))?
}

async fn all(options: LoadOptions, mut done: impl FnMut(&Row)) -> Result<Report, LoadError> {
    let mut session = Session::open(options).await?;
    let report = workloads(&mut session, &mut done).await;
    let cleaned = session.close().await;
    let report = report?;
    cleaned?;
    Ok(report)
}

async fn workloads(
    session: &mut Session,
    done: &mut impl FnMut(&Row),
) -> Result<Report, LoadError> {
    let only = session.options.only.clone();
    let mut rows = Vec::new();
    for work in Workload::ALL {
        if only.is_empty() || only.contains(&work) {
            for row in session.measure(work).await? {
                done(&row);
                rows.push(row);
            }
        }
    }
    Ok(Report { rows })
}
