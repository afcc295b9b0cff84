//! `dataset snapshot …`.

use super::Common;
use super::policy::HoldArgs;
use clap::{Args, Subcommand};

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
    /// Hold a snapshot under a tag: nobody can delete it until it is released
    Hold(HoldArgs),
    /// Release the hold of a snapshot under a tag
    Unhold(HoldArgs),
}
