//! `task …`.

use super::Common;
use clap::Subcommand;

pub(super) const TASK_HELP: &str = "\
Tasks are the restores in place, scrubs and collections of one server since it started: a `serve`
or a `controller`, named by --server or ZEROFS_SERVER. With --pool NAME, those of one of its pools.

    zerofs-csi task list --server unix:/run/zerofs/admin.sock
    zerofs-csi task stop 3 --server https://zerofs.example:12080 --token-file token";

#[derive(Subcommand)]
pub enum TaskCommand {
    /// List the tasks of a server, newest first: those that run, and the last 100 that have ended
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Show a task: its progress, and what it has done or why it failed
    Show {
        /// Number of the task
        id: u64,
        #[command(flatten)]
        common: Common,
    },
    /// Ask a task to stop; it ends soon after. A restore ends within the file that it is at, which
    /// then is as it was
    Stop {
        /// Number of the task
        id: u64,
        #[command(flatten)]
        common: Common,
    },
}
