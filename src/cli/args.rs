//! The command line's grammar and help.

use crate::control::SIZE_MIN;
use crate::types::{ByteSize, SizeError, SyncMode, is_owner};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

const EXIT_CODES: &str = "\
Exit status:
    0  success
    1  internal error
    2  invalid arguments or configuration
   10  not found
   11  already exists
   12  another operation is in progress; retry
   13  precondition failed: the message says which
   14  out of space or quota
   15  permission denied
   16  the store or a node is unavailable
   17  fenced: another owner has taken over
   18  data is damaged
   19  not supported
  130  stopped by a signal

Sizes are bytes or have a binary unit: 64k, 64K, 64Ki and 64KiB are 65536 bytes.";

const SPACE_COLUMNS: &str = "\
Columns:
  LOGICAL     total length of its files, including holes (with --exact)
  REFERENCED  bytes of data that it refers to
  UNIQUE      stored bytes that only it refers to, which deleting it would free;
              ~ marks an estimate, which is too low if a pack is shared";

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
    /// Serve every dataset of a pool over NFS, and both CSI services on one socket
    Serve(ServeArgs),
    /// Run the CSI controller
    Controller(ControllerArgs),
    /// Run the CSI node plugin
    Node(NodeArgs),
    /// Ask a node plugin whether it is ready
    Ready(ReadyArgs),
    /// Benchmark an NFSv3 server
    Bench(BenchArgs),
    /// Verify datasets: structure, counts, and that every pack exists
    Check(CheckArgs),
    /// Show the size of datasets and snapshots, and what deleting them would free
    #[command(after_help = SPACE_COLUMNS)]
    Space(SpaceArgs),
    /// Read and verify every chunk that datasets and snapshots refer to
    Scrub(ScrubArgs),
    /// Delete unreferenced data
    Gc(GcArgs),
    /// Run a volume through its lifecycle and verify every byte
    Demo(DemoArgs),
}

/// The pool that a command works on.
#[derive(Args, Clone, Debug)]
pub struct PoolArgs {
    /// URL of the pool: s3://BUCKET/PREFIX, gs://…, az://…, file:///FOLDER
    #[arg(long, value_name = "URL", required_unless_present = "config")]
    pub pool: Option<String>,
    /// Configuration file with pools, credentials and limits; --pool may then be the name of one of
    /// its pools. With one pool, or a default one, no --pool is needed
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// File whose first line is the passphrase of an encrypted pool (or set ZEROFS_PASSPHRASE)
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

/// The arguments of every command on a pool.
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
    /// Create a pool in an empty prefix of a bucket, or an empty folder, after checking that the
    /// store supports what a pool needs
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
    /// Create an empty dataset
    Create {
        /// Name of the dataset, without '/'; its NFS export is /NAME
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
    /// Show a dataset, or a snapshot
    Info {
        /// DATASET, or DATASET@SNAPSHOT; the default dataset if omitted
        name: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Choose the default dataset: commands without a name use it, and `serve` exports it as /
    SetDefault {
        /// Name of the dataset
        #[arg(required_unless_present = "none")]
        name: Option<String>,
        /// Have no default dataset
        #[arg(long, conflicts_with = "name")]
        none: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Show the default dataset's name
    GetDefault {
        #[command(flatten)]
        common: Common,
    },
    /// Delete a dataset; its snapshots and clones remain until they are deleted too
    Delete {
        /// Name of the dataset
        name: String,
        #[command(flatten)]
        common: Common,
    },
    /// Increase a dataset's quota
    Expand {
        /// Name of the dataset
        name: String,
        /// New quota, like 40Gi; a smaller one than now changes nothing
        #[arg(value_parser = quota)]
        size: ByteSize,
        #[command(flatten)]
        common: Common,
    },
    /// Ask the node that owns a dataset to release it, if nothing uses it there
    Release {
        /// Name of the dataset; for a PersistentVolume, the volume's name
        name: String,
        /// Revoke ownership from a node that is gone, does not answer, or uses the dataset. Changes
        /// that are only in that node's journal may be lost, and its mounts answer ESTALE. Waits
        /// for the node, at most until its lease expires
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Take a snapshot, writable unless --readonly is given; or manage snapshots
    Snapshot(SnapshotArgs),
    /// List snapshots, of all datasets or one
    ListSnapshots {
        /// Name of the dataset; all datasets if omitted
        dataset: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Delete a snapshot; clones made from it remain
    DeleteSnapshot {
        /// Name of the dataset (the default one if omitted), and name of the snapshot
        #[arg(value_name = "NAME", num_args = 1..=2, required = true)]
        names: Vec<String>,
        #[command(flatten)]
        common: Common,
    },
    /// List a folder of a snapshot, or of a dataset as the store has it
    Ls(LsArgs),
    /// Print a file of a snapshot, or of a dataset as the store has it
    Cat(CatArgs),
    /// List the versions of a file or folder in all snapshots of its dataset, and now
    History(HistoryArgs),
    /// Create a writable dataset from a snapshot (DATASET@SNAPSHOT) or from a dataset as it is now
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
    /// Show the differences between two snapshots, or a snapshot and the dataset as it is
    Diff(DiffArgs),
    /// Restore a file or folder from a snapshot
    Restore(RestoreArgs),
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct SnapshotArgs {
    #[command(subcommand)]
    pub command: Option<SnapshotCommand>,
    /// Name of the dataset (the default one if omitted), and name of the new snapshot
    #[arg(value_name = "NAME", num_args = 1..=2, required = true)]
    pub names: Vec<String>,
    /// Make it read-only; by default it is writable: a clone with the name DATASET@NAME, which is
    /// listed and deleted with the snapshots
    #[arg(long)]
    pub readonly: bool,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Subcommand)]
pub enum SnapshotCommand {
    /// Take a snapshot that holds every acknowledged write
    Create {
        /// Name of the dataset
        dataset: String,
        /// Name of the snapshot
        name: String,
        /// Make it writable: a clone with the name DATASET@NAME, which is listed and deleted with
        /// the snapshots
        #[arg(long)]
        writable: bool,
        #[command(flatten)]
        common: Common,
    },
    /// List snapshots, of all datasets or one
    List {
        /// Name of the dataset; all datasets if omitted
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
    /// Delete a snapshot; clones made from it remain
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

/// The modes by name, so that help lists them.
fn sync_modes() -> impl TypedValueParser<Value = SyncMode> {
    PossibleValuesParser::new(SyncMode::ALL.map(SyncMode::as_str))
        .try_map(|name| name.parse::<SyncMode>())
}

/// A quota: a size without its unit would be too small to hold anything.
fn quota(text: &str) -> Result<ByteSize, String> {
    let size = size(text).map_err(|error| error.to_string())?;
    if size.0 < SIZE_MIN {
        return Err(format!(
            "{size} is too small: use at least {}, with a unit, like 20Gi",
            ByteSize(SIZE_MIN)
        ));
    }
    Ok(size)
}

fn owner(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| is_owner(*number));
    number.ok_or_else(|| format!("{text:?} is not a user or group number from 0 to 4294967294"))
}

fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| format!("{text:?} is not an octal mode like 755"))
}

/// The properties of a new dataset.
#[derive(Args, Clone, Debug)]
pub struct NewArgs {
    /// Byte quota, like 20Gi (default 10Gi, or the source's)
    #[arg(long, value_parser = quota)]
    pub size: Option<ByteSize>,
    /// Durability of acknowledged changes (default standard, or always for a dataset with a
    /// multi-node access mode)
    #[arg(long, value_parser = sync_modes(), value_name = "MODE")]
    pub sync: Option<SyncMode>,
    /// Record size of new files: a power of two from 4Ki to 1Mi (default 64Ki)
    #[arg(long, value_parser = size, value_name = "SIZE")]
    pub recordsize: Option<ByteSize>,
    /// Compression of file data (default lz4)
    #[arg(long, value_enum)]
    pub compression: Option<CodecArg>,
    /// Visibility of .snapshots in a listing of the root folder; the name leads to the snapshots
    /// either way
    #[arg(long, value_enum)]
    pub snapdir: Option<SnapdirArg>,
    /// Create a read-only dataset that is the snapshot itself instead of a clone: any number of
    /// nodes may use it
    #[arg(long)]
    pub read_only: bool,
    /// Inode quota
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
    /// DATASET@SNAPSHOT, or DATASET for its current state in the store (the default)
    pub after: Option<String>,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args, Clone, Debug)]
pub struct LsArgs {
    /// DATASET@SNAPSHOT, or DATASET
    pub root: String,
    /// Path of a folder or file in it, as bytes
    #[arg(default_value = "/")]
    pub path: OsString,
    /// Also show mode, links, owner, group, size and modification time
    #[arg(short, long)]
    pub long: bool,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args, Clone, Debug)]
pub struct CatArgs {
    /// DATASET@SNAPSHOT, or DATASET
    pub root: String,
    /// Path of the file in it, as bytes
    pub path: OsString,
    #[command(flatten)]
    pub pool: PoolArgs,
}

#[derive(Args, Clone, Debug)]
pub struct HistoryArgs {
    /// Name of the dataset (the default one if omitted), and the path, as bytes
    #[arg(value_name = "[DATASET] PATH", num_args = 1..=2, required = true)]
    pub names: Vec<OsString>,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args, Clone, Debug)]
pub struct RestoreArgs {
    /// The snapshot to restore from, DATASET@SNAPSHOT; with --snapshot, the dataset (the default
    /// one if omitted)
    #[arg(value_name = "SNAPSHOT", required_unless_present = "snapshot")]
    pub from: Option<String>,
    /// Path in the snapshot, as bytes; / restores everything
    #[arg(required_unless_present = "source", conflicts_with_all = ["source", "snapshot"])]
    pub path: Option<OsString>,
    /// Path of the copy on this machine: its own path, not that of the folder around it
    #[arg(
        required_unless_present_any = ["in_place", "destination"],
        conflicts_with_all = ["in_place", "destination"]
    )]
    pub target: Option<PathBuf>,
    /// The snapshot's name
    #[arg(long, value_name = "NAME", requires = "source")]
    pub snapshot: Option<String>,
    /// The same as PATH
    #[arg(long, value_name = "PATH")]
    pub source: Option<OsString>,
    /// The same as TARGET
    #[arg(long, value_name = "TARGET", conflicts_with = "in_place")]
    pub destination: Option<PathBuf>,
    /// Restore it into the dataset itself, at its original path; no data is copied
    #[arg(long)]
    pub in_place: bool,
    /// With --in-place: restore it to this path of the dataset instead
    #[arg(long, value_name = "PATH", requires = "in_place")]
    pub to: Option<OsString>,
    /// Replace existing files and links. Folders are never replaced; devices, pipes and sockets of
    /// a tree only by one of their kind
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    pub pool: PoolArgs,
    /// Folder of the journals, the cache and the records of staged volumes, which must survive
    /// restarts; used by one process at a time
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Socket of the CSI services, unix:///PATH
    #[arg(long, value_name = "ENDPOINT", env = "CSI_ENDPOINT")]
    pub csi_endpoint: Option<String>,
    /// Address to serve NFS and MOUNT on
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:12049")]
    pub nfs_listen: SocketAddr,
    /// Address to serve /healthz, /readyz and /metrics on
    #[arg(long, value_name = "IP:PORT", env = "HEALTH_LISTEN")]
    pub health_listen: Option<SocketAddr>,
    /// Also accept NFS clients with an unprivileged source port, with their root as nobody; any of
    /// them can pose as any other user
    #[arg(long)]
    pub insecure_ports: bool,
}

#[derive(Args, Clone, Debug)]
pub struct ControllerArgs {
    /// Configuration file with pools, credentials and limits
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Socket of the CSI services, unix:///PATH
    #[arg(long, value_name = "ENDPOINT", env = "CSI_ENDPOINT")]
    pub csi_endpoint: String,
    /// Address to serve /healthz, /readyz and /metrics on
    #[arg(long, value_name = "IP:PORT", env = "HEALTH_LISTEN")]
    pub health_listen: Option<SocketAddr>,
}

#[derive(Args, Clone, Debug)]
pub struct NodeArgs {
    /// Configuration file with pools, credentials and limits
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Socket of the CSI services, unix:///PATH
    #[arg(long, value_name = "ENDPOINT", env = "CSI_ENDPOINT")]
    pub csi_endpoint: String,
    /// Name of this node in Kubernetes
    #[arg(long, value_name = "NAME", env = "NODE_ID")]
    pub node_id: String,
    /// Folder of the journals, the cache and the records of staged volumes; used by one process at
    /// a time
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Folder in memory (tmpfs) that keeps the secrets of requests for the next start
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Folder to register with kubelet in, as mounted here (<kubeletDir>/plugins_registry)
    #[arg(long, value_name = "DIR", requires = "kubelet_endpoint")]
    pub registry_dir: Option<PathBuf>,
    /// Path of the CSI socket as kubelet sees it
    #[arg(long, value_name = "PATH")]
    pub kubelet_endpoint: Option<PathBuf>,
    /// Address to serve /healthz, /readyz and /metrics on; handed over to the next process
    #[arg(long, value_name = "IP:PORT", env = "HEALTH_LISTEN")]
    pub health_listen: Option<SocketAddr>,
    /// Unix socket on which this process answers `ready`; its path must be its own
    #[arg(long, value_name = "PATH", env = "HEALTH_SOCKET")]
    pub health_socket: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
pub struct ReadyArgs {
    /// The --health-socket of the node plugin
    #[arg(long, value_name = "PATH", env = "HEALTH_SOCKET")]
    pub health_socket: PathBuf,
}

#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// Server to benchmark, HOST:PORT
    #[arg(long, value_name = "HOST:PORT")]
    pub target: String,
    /// Export to mount, /NAME
    #[arg(long, value_name = "/NAME")]
    pub export: String,
    /// Port of the MOUNT service, if it is not the server's and there is no portmapper
    #[arg(long, value_name = "PORT")]
    pub mount_port: Option<u16>,
    /// Run only these workloads; a wrong name lists them
    #[arg(long, value_name = "WORKLOAD,…", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Duration in seconds of each workload that has no natural end
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
    /// Size of the large file, MiB
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    pub file_mib: u32,
    /// Number of small files
    #[arg(long, default_value_t = 10_000, value_name = "COUNT")]
    pub files: u32,
    /// Concurrent calls in small-file workloads
    #[arg(long, default_value_t = 16, value_name = "COUNT")]
    pub concurrency: usize,
    /// TCP connections that these calls share
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    pub connections: usize,
    /// Process id of a local server, to show its CPU time and memory
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
    /// Directory of the export to work in; created if it does not exist
    #[arg(long, value_name = "NAME")]
    pub directory: Option<String>,
    /// Keep the directory afterwards
    #[arg(long)]
    pub keep: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// A dataset with its snapshots, or DATASET@SNAPSHOT; all datasets and snapshots if omitted. A
    /// writable snapshot is a dataset: DATASET@NAME
    pub dataset: Option<String>,
    /// Repair what can be derived from other metadata: counts, link counts, sizes of directories,
    /// the reclaim queue. Only in datasets that no node has open; snapshots are never changed
    #[arg(long)]
    pub repair: bool,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args, Clone, Debug)]
pub struct SpaceArgs {
    /// A dataset with its snapshots; all if omitted. A writable snapshot is a dataset: DATASET@NAME
    pub dataset: Option<String>,
    /// Read every extent for exact figures; needs time, and about 1.6 GiB of memory per TiB in
    /// records of 64 KiB
    #[arg(long)]
    pub exact: bool,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args, Clone, Debug)]
pub struct ScrubArgs {
    /// A dataset with its snapshots; all if omitted. A writable snapshot is a dataset: DATASET@NAME
    pub dataset: Option<String>,
    /// Limit reads to SIZE bytes per second, like 50Mi; 0 means no limit
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<ByteSize>,
    /// Keep the progress in this file, so that an interrupted scrub resumes where it stopped.
    /// Removed at the end
    #[arg(long, value_name = "FILE")]
    pub state_file: Option<PathBuf>,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args, Clone, Debug)]
pub struct GcArgs {
    /// Print what would be deleted, and delete nothing
    #[arg(long, conflicts_with = "rate")]
    pub dry_run: bool,
    /// Limit reads of packs that are rewritten to SIZE bytes per second, like 50Mi; 0, the
    /// default, means no limit
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<ByteSize>,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Run in this empty pool instead of a temporary folder
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
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
