//! Files of datasets and snapshots: `dataset ls`, `cat`, `history`, `diff`, `restore`.

use super::{Common, PoolOrServer};
use clap::Args;
use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Args, Clone, Debug)]
pub struct DiffArgs {
    /// DATASET@SNAPSHOT
    pub before: String,
    /// DATASET@SNAPSHOT, or DATASET for its current state in the store (the default)
    pub after: Option<String>,
    /// Count the differences in each folder
    #[arg(long)]
    pub stat: bool,
    /// Count the differences in each folder and below it, as a tree
    #[arg(long, conflicts_with = "stat")]
    pub tree: bool,
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
    pub place: PoolOrServer,
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
pub struct FindArgs {
    /// Part of a name, in either case; or with *, ? or [ a pattern of the whole name
    pub pattern: OsString,
    /// DATASET, for all of its snapshots and now, each version once; or DATASET@SNAPSHOT. The
    /// default dataset if omitted
    #[arg(value_name = "DATASET[@SNAPSHOT]")]
    pub root: Option<String>,
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
    /// The same as PATH; may be given several times: then TARGET is a folder that exists, in which
    /// each gets its last name
    #[arg(long, value_name = "PATH")]
    pub source: Vec<OsString>,
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
    /// Replace what differs from the snapshot, and leave alone what has its size, mode and
    /// modification time. In place it is always so
    #[arg(long)]
    pub changed: bool,
    /// Keep each file that is replaced, beside the restored one, as NAME.~1, NAME.~2, …
    #[arg(long)]
    pub keep: bool,
    /// Change nothing, and print how much would be restored
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub common: Common,
}
