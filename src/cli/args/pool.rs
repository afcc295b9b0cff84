//! `pool …`, and commands on everything in a pool: `check`, `space`, `scrub`, `gc`.

use super::Common;
use crate::types::ByteSize;
use clap::{Args, Subcommand};
use std::path::PathBuf;

pub(super) const SPACE_COLUMNS: &str = "\
Columns:
  LOGICAL     total length of its files, including holes (with --exact)
  REFERENCED  bytes of data that it refers to
  UNIQUE      stored bytes that only it refers to, which deleting it would free;
              ~ marks an estimate, which is too low if a pack is shared";

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
    /// Change the passphrase or key of an encrypted pool. Data is not rewritten, and processes that
    /// have the pool open go on; from now on it is opened with the new one alone
    ChangeKey {
        #[command(flatten)]
        new: NewKeyArgs,
        #[command(flatten)]
        common: Common,
    },
    /// Bring a pool to the newest format. So far there is one: it says so, and changes nothing
    Upgrade {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct NewKeyArgs {
    /// File whose first line is the new passphrase
    #[arg(long, value_name = "FILE")]
    pub new_passphrase_file: Option<PathBuf>,
    /// File whose first line is the new key: 32 bytes in base 64
    #[arg(long, value_name = "FILE")]
    pub new_key_file: Option<PathBuf>,
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
