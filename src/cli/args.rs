//! What can be typed.

use crate::app::{ByteSize, SizeError};
use crate::control::SIZE_MIN;
use crate::types::is_owner;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

const EXIT_CODES: &str = "Exit status: 0 done, 1 failed, 2 wrong arguments or configuration, 10 \
    not found, 11 exists already, 12 busy: repeat, \
    13 not now: the message says what must happen first, 14 no room, 15 denied, 16 the store or a \
    node does not answer, 17 taken over, \
    18 damaged, 19 not supported, 130 stopped by a signal";

const SPACE_COLUMNS: &str = "LOGICAL: the lengths of its files, holes included (with --exact). \
    REFERENCED: bytes of data that it refers to. UNIQUE: stored bytes that \
    nothing else refers to, which its deletion frees; ~ marks an estimate, too little where a pack \
    is shared";

/// Kubernetes volumes that are POSIX file systems living entirely in an object store.
#[derive(Parser)]
#[command(name = "zerofs-csi", version, propagate_version = true, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Pools: a bucket and prefix that hold datasets
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Datasets and their snapshots
    #[command(subcommand)]
    Dataset(DatasetCommand),
    /// One process for one machine: every dataset over NFS, both CSI services on one socket
    Serve(ServeArgs),
    /// The CSI controller
    Controller(ControllerArgs),
    /// The CSI node plugin
    Node(NodeArgs),
    /// Ask a node plugin whether it is ready
    Ready(ReadyArgs),
    /// Load an NFSv3 server and measure it
    Bench(BenchArgs),
    /// Verify datasets: structure, counts, and that every pack exists
    Check(CheckArgs),
    /// Show what datasets and snapshots take, and what deleting them would free
    #[command(after_help = SPACE_COLUMNS)]
    Space(SpaceArgs),
    /// Read and verify every chunk that datasets and snapshots refer to
    Scrub(ScrubArgs),
    /// Remove what nothing refers to any more
    Gc(GcArgs),
    /// Play a volume's whole life and compare every byte
    Demo(DemoArgs),
}

/// Which pool.
#[derive(Args, Clone, Debug)]
pub struct PoolArgs {
    /// Where the pool is: s3://BUCKET/PREFIX, gs://…, az://…, file:///FOLDER
    #[arg(long, value_name = "URL", required_unless_present = "config")]
    pub pool: Option<String>,
    /// Configuration with pools, credentials and limits; --pool may then be the name of one of its
    /// pools
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The passphrase of an encrypted pool, on the first line (or the variable ZEROFS_PASSPHRASE)
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

/// What every command on a pool takes.
#[derive(Args, Clone, Debug)]
pub struct Common {
    #[command(flatten)]
    pub pool: PoolArgs,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Clone, Copy, Debug)]
pub struct Output {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum PoolCommand {
    /// Make a pool in a bucket and prefix, or folder, that holds nothing else; tries what the store
    /// must be able to do
    Create {
        #[command(flatten)]
        common: Common,
    },
    /// Show a pool
    Info {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Subcommand)]
pub enum DatasetCommand {
    /// Make an empty dataset
    Create {
        /// Name of the dataset, which is /NAME over NFS; without '/'
        name: String,
        #[command(flatten)]
        new: NewArgs,
        #[command(flatten)]
        common: Common,
    },
    /// List datasets
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Show one dataset
    Info {
        /// Name of the dataset
        name: String,
        #[command(flatten)]
        common: Common,
    },
    /// Delete a dataset; its snapshots and clones stay until they are deleted too
    Delete {
        /// Name of the dataset
        name: String,
        #[command(flatten)]
        common: Common,
    },
    /// Raise the most bytes a dataset may hold
    Expand {
        /// Name of the dataset
        name: String,
        /// Like 40Gi; a smaller size changes nothing
        #[arg(value_parser = quota)]
        size: ByteSize,
        #[command(flatten)]
        common: Common,
    },
    /// Have a dataset released by the node that has it open, if nothing uses it there
    Release {
        /// Name of the dataset; of a PersistentVolume it is the volume's name
        name: String,
        /// Take it from a node that is gone, does not answer, or uses it: what only that node's
        /// journal holds may be lost, and its mounts there answer ESTALE. Waits for the node, at
        /// most for its lease
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Snapshots of a dataset
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Make a writable dataset from a snapshot (DATASET@SNAPSHOT) or from a dataset as it is now
    Clone {
        /// DATASET@SNAPSHOT, or DATASET
        source: String,
        /// Name of the new dataset
        name: String,
        #[command(flatten)]
        new: NewArgs,
        #[command(flatten)]
        common: Common,
    },
    /// Show what differs between two snapshots, or a snapshot and the dataset as it is
    Diff(DiffArgs),
    /// Copy a file or folder out of a snapshot
    Restore(RestoreArgs),
}

#[derive(Subcommand)]
pub enum SnapshotCommand {
    /// Take a snapshot of everything acknowledged
    Create {
        /// Name of the dataset
        dataset: String,
        /// Name of the snapshot
        name: String,
        /// One that can be written to: a clone, named DATASET@NAME, which is listed and deleted
        /// with the snapshots
        #[arg(long)]
        writable: bool,
        #[command(flatten)]
        common: Common,
    },
    /// List snapshots, of all datasets or one
    List {
        /// Name of the dataset; all of them if left out
        dataset: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Show one snapshot
    Info {
        /// Name of the dataset
        dataset: String,
        /// Name of the snapshot
        name: String,
        #[command(flatten)]
        common: Common,
    },
    /// Delete a snapshot; clones made from it stay
    Delete {
        /// Name of the dataset
        dataset: String,
        /// Name of the snapshot
        name: String,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SyncArg {
    Standard,
    Always,
    Disabled,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SnapdirArg {
    Hidden,
    Visible,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum CodecArg {
    None,
    Lz4,
    Zstd,
}

fn size(text: &str) -> Result<ByteSize, SizeError> {
    text.parse()
}

/// What is meant to hold something: a size without its unit is a mistake.
fn quota(text: &str) -> Result<ByteSize, String> {
    let size = size(text).map_err(|error| error.to_string())?;
    if size.0 < SIZE_MIN {
        return Err(format!(
            "{size} is too little: use at least {}, and a unit, like 20Gi",
            ByteSize(SIZE_MIN)
        ));
    }
    Ok(size)
}

fn owner(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| is_owner(*number));
    number.ok_or_else(|| format!("{text:?} is not the number of a user or group, 0 to 4294967294"))
}

fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| format!("{text:?} is not an octal mode like 755"))
}

/// How a new dataset is.
#[derive(Args, Clone, Debug)]
pub struct NewArgs {
    /// Most bytes it may hold, like 20Gi (default 10Gi, or the source's)
    #[arg(long, value_parser = quota)]
    pub size: Option<ByteSize>,
    /// What an acknowledgement means (default standard; always for a dataset that several nodes
    /// use)
    #[arg(long, value_enum)]
    pub sync: Option<SyncArg>,
    /// Record size of new files, a power of two from 4k to 1m (default 64k)
    #[arg(long, value_parser = size, value_name = "SIZE")]
    pub recordsize: Option<ByteSize>,
    /// Compression of file data (default lz4)
    #[arg(long, value_enum)]
    pub compression: Option<CodecArg>,
    /// Whether a listing of the root folder shows .snapshots, which leads to the snapshots either
    /// way
    #[arg(long, value_enum)]
    pub snapdir: Option<SnapdirArg>,
    /// Make no clone of the snapshot, but a read-only dataset that is the snapshot: any number of
    /// nodes may use it
    #[arg(long)]
    pub read_only: bool,
    /// Most inodes it may hold
    #[arg(long, value_name = "COUNT")]
    pub inodes: Option<u64>,
    /// Owner of the root folder (default 0)
    #[arg(long, value_parser = owner)]
    pub uid: Option<u32>,
    /// Group of the root folder (default 0)
    #[arg(long, value_parser = owner)]
    pub gid: Option<u32>,
    /// Mode of the root folder, octal (default 755)
    #[arg(long, value_parser = octal)]
    pub mode: Option<u32>,
}

#[derive(Args, Clone, Debug)]
pub struct DiffArgs {
    /// DATASET@SNAPSHOT
    pub before: String,
    /// DATASET@SNAPSHOT, or DATASET as the store has it now (the default)
    pub after: Option<String>,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args, Clone, Debug)]
pub struct RestoreArgs {
    /// What to copy from: DATASET@SNAPSHOT
    pub snapshot: String,
    /// Path in the snapshot, as bytes; `/` is all of it
    pub path: OsString,
    /// Where to put it on this machine: the copy's own path, not the folder around it
    #[arg(required_unless_present = "in_place", conflicts_with = "in_place")]
    pub target: Option<PathBuf>,
    /// Put it back into the dataset itself, where it was: no data is copied
    #[arg(long)]
    pub in_place: bool,
    /// With --in-place: put it at this path of the dataset instead
    #[arg(long, value_name = "PATH", requires = "in_place", conflicts_with = "target")]
    pub to: Option<OsString>,
    /// Replace existing files and links; never folders, and devices, pipes and sockets only by
    /// themselves in a tree
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    pub pool: PoolArgs,
    /// Journals, the cache and what is staged are kept here, over restarts; one process at a time
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Socket of the CSI services, unix:///PATH
    #[arg(long, value_name = "ENDPOINT", env = "CSI_ENDPOINT")]
    pub csi_endpoint: Option<String>,
    /// Where to serve NFS and MOUNT
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:12049")]
    pub nfs_listen: SocketAddr,
    /// Where to serve /healthz, /readyz and /metrics
    #[arg(long, value_name = "IP:PORT", env = "HEALTH_LISTEN")]
    pub health_listen: Option<SocketAddr>,
    /// Serve NFS clients with an unprivileged source port too, with their root as nobody; any of
    /// them may pose as any other user
    #[arg(long)]
    pub insecure_ports: bool,
}

#[derive(Args, Clone, Debug)]
pub struct ControllerArgs {
    /// Configuration with pools, credentials and limits
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Socket of the CSI services, unix:///PATH
    #[arg(long, value_name = "ENDPOINT", env = "CSI_ENDPOINT")]
    pub csi_endpoint: String,
    /// Where to serve /healthz, /readyz and /metrics
    #[arg(long, value_name = "IP:PORT", env = "HEALTH_LISTEN")]
    pub health_listen: Option<SocketAddr>,
}

#[derive(Args, Clone, Debug)]
pub struct NodeArgs {
    /// Configuration with pools, credentials and limits
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Socket of the CSI services, unix:///PATH
    #[arg(long, value_name = "ENDPOINT", env = "CSI_ENDPOINT")]
    pub csi_endpoint: String,
    /// Kubernetes' name of this node
    #[arg(long, value_name = "NAME", env = "NODE_ID")]
    pub node_id: String,
    /// Journals, the cache and what is staged are kept here; one process at a time
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// A folder in memory (tmpfs), where the secrets of requests are kept for the next start
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Register with kubelet in this folder, as it is mounted here (<kubeletDir>/plugins_registry)
    #[arg(long, value_name = "DIR", requires = "kubelet_endpoint")]
    pub registry_dir: Option<PathBuf>,
    /// The CSI socket as kubelet sees it
    #[arg(long, value_name = "PATH")]
    pub kubelet_endpoint: Option<PathBuf>,
    /// Where to serve /healthz, /readyz and /metrics; passed on to the process that takes over
    #[arg(long, value_name = "IP:PORT", env = "HEALTH_LISTEN")]
    pub health_listen: Option<SocketAddr>,
    /// Where this very process says whether it is ready: a path that no other process has
    #[arg(long, value_name = "PATH", env = "HEALTH_SOCKET")]
    pub health_socket: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
pub struct ReadyArgs {
    /// The --health-socket of the process
    #[arg(long, value_name = "PATH", env = "HEALTH_SOCKET")]
    pub health_socket: PathBuf,
}

#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// The server, HOST:PORT
    #[arg(long, value_name = "HOST:PORT")]
    pub target: String,
    /// The export, /NAME
    #[arg(long, value_name = "/NAME")]
    pub export: String,
    /// MOUNT's port, where it is not the server's and no portmapper tells it
    #[arg(long, value_name = "PORT")]
    pub mount_port: Option<u16>,
    /// Only these workloads; a wrong name lists them
    #[arg(long, value_name = "WORK,…", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Length of each workload that has no natural end
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
    /// Size of the large file, MiB
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    pub file_mib: u32,
    /// Number of small files
    #[arg(long, default_value_t = 10_000, value_name = "COUNT")]
    pub files: u32,
    /// Calls in flight of the workloads on small things
    #[arg(long, default_value_t = 16, value_name = "COUNT")]
    pub lanes: usize,
    /// TCP connections that they share
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    pub connections: usize,
    /// The server's process, when it is local: show its CPU time and memory
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
    /// Work in this directory of the export; one that exists is used as it is
    #[arg(long, value_name = "NAME")]
    pub directory: Option<String>,
    /// Leave the directory behind
    #[arg(long)]
    pub keep: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// A dataset with its snapshots, or DATASET@SNAPSHOT; all datasets and snapshots if left out. A
    /// writable snapshot is named by itself
    pub dataset: Option<String>,
    /// Put right what follows from the rest without a choice: counts, link counts, sizes of
    /// directories, what is queued for reclaim. Only in datasets that nobody has open; snapshots
    /// stay as they are
    #[arg(long)]
    pub repair: bool,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args, Clone, Debug)]
pub struct SpaceArgs {
    /// A dataset with its snapshots; all if left out. A writable snapshot is named by itself:
    /// DATASET@NAME
    pub dataset: Option<String>,
    /// Read every record for exact figures: takes time, and about 1.6 GiB of memory for a TiB in
    /// records of 64 KiB
    #[arg(long)]
    pub exact: bool,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args, Clone, Debug)]
pub struct ScrubArgs {
    /// A dataset with its snapshots; all if left out. A writable snapshot is named by itself:
    /// DATASET@NAME
    pub dataset: Option<String>,
    /// Read at most so much a second, like 50Mi
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<ByteSize>,
    /// Remember in this file what was read, and do not read it again: a scrub that was ended goes
    /// on where it was. Removed at the end
    #[arg(long, value_name = "FILE")]
    pub state_file: Option<PathBuf>,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args, Clone, Debug)]
pub struct GcArgs {
    /// Print what would be removed, and remove nothing
    #[arg(long, conflicts_with = "rate")]
    pub dry_run: bool,
    /// Read at most so much a second of packs that are rewritten, like 50Mi; without it, or with 0,
    /// as fast as it goes
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<ByteSize>,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Play in this pool instead of a temporary folder
    #[arg(long, value_name = "URL")]
    pub pool: Option<String>,
    #[command(flatten)]
    pub output: Output,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_tree_holds_together() {
        Cli::command().debug_assert();
    }
}
