//! `dataset …`.

use super::Common;
use super::files::{CatArgs, DiffArgs, FindArgs, HistoryArgs, LsArgs, RestoreArgs};
use super::snapshot::SnapshotArgs;
use super::values::Property;
use super::values::{codecs, octal, owner, property, quota, size, snapdirs, sync_modes};
use crate::catalog::Snapdir;
use crate::chunk::Codec;
use crate::types::{ByteSize, SyncMode};
use clap::{Args, Subcommand};

const PROPERTIES: &str = "\
Properties:
    size=SIZE            byte quota, like 40Gi; it can only grow
    inodes=COUNT|none    inode quota
    recordsize=SIZE      record size of new files: a power of two from 4Ki to 1Mi
    sync=MODE            standard, always, disabled, or default (by access modes)
    compression=CODEC    none, lz4 or zstd: of data that is written from then on
    snapdir=hidden|visible
    maxReadBandwidth=SIZE|none, maxWriteBandwidth=SIZE|none
                         limit of what is read and written in a second, like 50Mi
    maxIops=COUNT|none   limit of the READ and WRITE calls of a second

All of them change at once, also where a node has the dataset open.";

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
    /// Change properties of a dataset
    #[command(after_help = PROPERTIES)]
    Set(SetArgs),
    /// Give a dataset another name; its snapshots, policy and PersistentVolume stay with it
    Rename {
        /// Name of the dataset
        name: String,
        /// Its new name
        new_name: String,
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
    /// List group snapshots: snapshots of several datasets at one point in time
    ListGroups {
        #[command(flatten)]
        common: Common,
    },
    /// Delete a group snapshot with all of its snapshots
    DeleteGroup {
        name: String,
        #[command(flatten)]
        common: Common,
    },
    /// List a folder of a snapshot, or of a dataset as the store has it
    Ls(LsArgs),
    /// Print a file of a snapshot, or of a dataset as the store has it
    Cat(CatArgs),
    /// Find files and folders by name, in all snapshots of a dataset and now
    Find(FindArgs),
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
    #[arg(long, value_parser = codecs(), value_name = "CODEC")]
    pub compression: Option<Codec>,
    /// Visibility of .snapshots in a listing of the root folder; the name leads to the snapshots
    /// either way
    #[arg(long, value_parser = snapdirs(), value_name = "VISIBILITY")]
    pub snapdir: Option<Snapdir>,
    /// Limit of what is read in a second, like 50Mi (default none)
    #[arg(long, value_parser = size, value_name = "SIZE")]
    pub max_read_bandwidth: Option<ByteSize>,
    /// Limit of what is written in a second, like 50Mi (default none)
    #[arg(long, value_parser = size, value_name = "SIZE")]
    pub max_write_bandwidth: Option<ByteSize>,
    /// Limit of the READ and WRITE calls of a second (default none)
    #[arg(long, value_name = "COUNT")]
    pub max_iops: Option<u64>,
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
pub struct SetArgs {
    /// Name of the dataset
    pub name: String,
    /// Properties to change
    #[arg(value_name = "PROPERTY=VALUE", required = true, value_parser = property)]
    pub properties: Vec<Property>,
    #[command(flatten)]
    pub common: Common,
}
