//! Processes that run until they are stopped, and what measures and tries them: `serve`,
//! `controller`, `node`, `ready`, `bench`, `demo`, `token`.

use super::{Output, PoolArgs};
use crate::admin::auth::Role;
use clap::{Args, Subcommand};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

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
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// The administration interface of a process.
#[derive(Args, Clone, Debug)]
pub struct AdminArgs {
    /// Address to serve the administration interface on: REST and gRPC
    #[arg(long, value_name = "IP:PORT")]
    pub admin_listen: Option<SocketAddr>,
    /// Unix socket to serve it on, where root and the user of this process need no token
    #[arg(long, value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// Also serve the page that browses and restores; `serve` prints its address at the start
    #[arg(long, requires = "admin_listen")]
    pub web: bool,
    /// Serve it without TLS on an address that is not this machine's own: something else must
    /// protect the connections
    #[arg(long, requires = "admin_listen")]
    pub insecure_admin: bool,
}

#[derive(Subcommand)]
pub enum TokenCommand {
    /// Make a token: print it once, and the lines for the tokens file
    Create(TokenArgs),
}

#[derive(Args, Clone, Debug)]
pub struct TokenArgs {
    /// Name of whoever gets it, for the audit log
    #[arg(long)]
    pub name: String,
    /// viewer (lists names and facts), reader (reads files), restorer (takes snapshots and
    /// restores) or admin
    #[arg(long)]
    pub role: Role,
    /// POOL/DATASET that it is for, with * and ?; may be repeated. All datasets if omitted
    #[arg(long, value_name = "POOL/DATASET")]
    pub dataset: Vec<String>,
    /// Time after which the token expires, like 30d
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub expires: Option<std::time::Duration>,
    #[command(flatten)]
    pub output: Output,
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
    #[command(flatten)]
    pub admin: AdminArgs,
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
    /// Address at which other nodes reach this one, if the configuration has a channel
    #[arg(long, value_name = "IP", env = "CHANNEL_ADDRESS")]
    pub channel_address: Option<IpAddr>,
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
pub struct DemoArgs {
    /// Run in this empty pool instead of a temporary folder
    #[arg(long, value_name = "URL")]
    pub pool: Option<String>,
    #[command(flatten)]
    pub output: Output,
}
