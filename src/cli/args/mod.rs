//! The command line's grammar and help, in a file for each noun.

mod dataset;
mod files;
mod policy;
mod pool;
mod server;
mod snapshot;
mod task;
mod values;

pub use dataset::{DatasetCommand, NewArgs, SetArgs};
pub use files::{CatArgs, DiffArgs, FindArgs, HistoryArgs, LsArgs, RestoreArgs};
pub use policy::{HoldArgs, PolicyCommand, PolicySetArgs};
pub use pool::{CheckArgs, GcArgs, NewKeyArgs, PoolCommand, ScrubArgs, SpaceArgs};
pub use server::{AdminArgs, BenchArgs, ControllerArgs, DemoArgs, NodeArgs, ReadyArgs, ServeArgs};
pub use server::{TokenArgs, TokenCommand};
pub use snapshot::{SnapshotArgs, SnapshotCommand};
pub use task::TaskCommand;
pub use values::Property;

use clap::{Args, Parser, Subcommand};
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
   16  the store, a node or the server is unavailable
   17  fenced: another owner has taken over
   18  data is damaged
   19  not supported
  130  stopped by a signal

Sizes are bytes or have a binary unit: 64k, 64K, 64Ki and 64KiB are 65536 bytes.";

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
    /// Snapshot policies: snapshots by a schedule, and which of them stay
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Restores in place, scrubs and collections of a running server
    #[command(subcommand, after_help = task::TASK_HELP)]
    Task(TaskCommand),
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
    #[command(visible_alias = "usage", after_help = pool::SPACE_COLUMNS)]
    Space(SpaceArgs),
    /// Read and verify every chunk that datasets and snapshots refer to
    Scrub(ScrubArgs),
    /// Delete unreferenced data
    Gc(GcArgs),
    /// Print a script that completes commands in a shell
    Completions(CompletionsArgs),
    /// Write the manual pages of all commands to a folder
    Man(ManArgs),
    /// Run a volume through its lifecycle and verify every byte
    Demo(DemoArgs),
    /// Tokens for the administration interface
    #[command(subcommand)]
    Token(TokenCommand),
}

/// The pool that a command works on.
#[derive(Args, Clone, Debug)]
pub struct PoolArgs {
    /// URL of the pool: s3://BUCKET/PREFIX, gs://…, az://…, file:///FOLDER
    #[arg(long, value_name = "URL")]
    pub pool: Option<String>,
    /// Configuration file with pools, credentials and limits; --pool may then be the name of one of
    /// its pools. With one pool, or a default one, no --pool is needed
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// File whose first line is the passphrase of an encrypted pool (or set ZEROFS_PASSPHRASE)
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

/// The server that a command goes through, instead of opening the pool itself.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Through a running server")]
pub struct ServerArgs {
    /// Ask the server at unix:PATH, http://HOST:PORT or https://HOST:PORT, which has the pool open;
    /// --pool is then the name of one of its pools. ZEROFS_SERVER names it where neither this nor a
    /// pool's URL or configuration is given
    #[arg(long, value_name = "ENDPOINT")]
    pub server: Option<String>,
    /// File whose first line is the token for the server (or set ZEROFS_TOKEN); a unix socket needs
    /// none
    #[arg(long, value_name = "FILE", env = "ZEROFS_TOKEN_FILE", hide_env_values = true)]
    pub token_file: Option<PathBuf>,
    /// File with the certificate authorities, in PEM, of which one has signed the server's
    /// certificate; those of this machine if omitted
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

/// The place that a command works on: a pool, which it opens itself, or a server that has it open.
#[derive(Args, Clone, Debug)]
pub struct PoolOrServer {
    #[command(flatten)]
    pub pool: PoolArgs,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// The arguments of every command on a pool.
#[derive(Args, Clone, Debug)]
pub struct Common {
    #[command(flatten)]
    pub place: PoolOrServer,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Clone, Copy, Debug)]
pub struct Output {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Clone, Debug)]
pub struct CompletionsArgs {
    /// The shell; with bash, `source <(zerofs-csi completions bash)` in ~/.bashrc
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

#[derive(Args, Clone, Debug)]
pub struct ManArgs {
    /// The folder, which must exist, like ~/.local/share/man/man1
    pub dir: PathBuf,
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
