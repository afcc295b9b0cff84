//! `policy …` and holds.

use super::Common;
use crate::catalog::Keep;
use crate::control::policy::{DEFAULT_PREFIX, SIMULATED_DAYS_MAX, parse_keep};
use clap::{Args, Subcommand};

const SET_HELP: &str = "\
A rule is a number of snapshots, or a span of time before the newest one: --hourly 24 and
--hourly 1d both keep one snapshot an hour for a day. What no rule keeps is deleted; the newest
snapshot, one that somebody holds, and one that a clone depends on never are, and neither is one
that no policy made. A changed policy deletes nothing for 24 hours.

Spans have one of min, h, d, w, mo (31 days) and y (366 days).

    zerofs-csi policy set web --schedule 15min --keep-last 2h --hourly 24 --daily 7 --weekly 4
    zerofs-csi policy set db --schedule '30 2 * * *' --time-zone Europe/Berlin --daily 30";

#[derive(Subcommand)]
pub enum PolicyCommand {
    /// Set the snapshot policy of a dataset; it replaces the one that the dataset had
    #[command(after_help = SET_HELP)]
    Set(PolicySetArgs),
    /// Show the policy of a dataset, and what it decides about each snapshot
    Show {
        /// Name of the dataset; the default one if omitted
        dataset: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// List the policies of a pool
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Delete the policy of a dataset; its snapshots stay
    Delete {
        /// Name of the dataset
        dataset: String,
        #[command(flatten)]
        common: Common,
    },
    /// Show which snapshots the policy of a dataset would keep in the days ahead, and why
    Simulate {
        /// Name of the dataset; the default one if omitted
        dataset: Option<String>,
        /// Days to simulate
        #[arg(
            long,
            default_value_t = 30,
            value_parser = clap::value_parser!(u32).range(1..=i64::from(SIMULATED_DAYS_MAX))
        )]
        days: u32,
        /// Also show the snapshots that would be made and deleted again
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Make a snapshot by the policy of a dataset at once, and delete what no rule keeps
    RunNow {
        /// Name of the dataset; the default one if omitted
        dataset: Option<String>,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Args, Clone, Debug)]
pub struct PolicySetArgs {
    /// Name of the dataset; the default one if omitted
    pub dataset: Option<String>,
    /// Five fields of cron (minute, hour, day, month, weekday), or an interval like 15min, 6h or 1d
    #[arg(long, value_name = "CRON|INTERVAL")]
    pub schedule: String,
    /// Time zone of the schedule, and of the days, weeks and months of the rules: an IANA name
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    pub time_zone: String,
    /// Keep the newest snapshots
    #[arg(long, value_name = "RULE", value_parser = parse_keep)]
    pub keep_last: Option<Keep>,
    /// Keep the newest snapshot of each hour
    #[arg(long, value_name = "RULE", value_parser = parse_keep)]
    pub hourly: Option<Keep>,
    /// Keep the newest snapshot of each day
    #[arg(long, value_name = "RULE", value_parser = parse_keep)]
    pub daily: Option<Keep>,
    /// Keep the newest snapshot of each week
    #[arg(long, value_name = "RULE", value_parser = parse_keep)]
    pub weekly: Option<Keep>,
    /// Keep the newest snapshot of each month
    #[arg(long, value_name = "RULE", value_parser = parse_keep)]
    pub monthly: Option<Keep>,
    /// Make no snapshot while nothing has changed since the last one of the policy
    #[arg(long)]
    pub skip_empty: bool,
    /// Prefix of the names of its snapshots
    #[arg(long, default_value = DEFAULT_PREFIX)]
    pub prefix: String,
    #[command(flatten)]
    pub common: Common,
}

/// A hold of a snapshot.
#[derive(Args, Clone, Debug)]
pub struct HoldArgs {
    /// DATASET@SNAPSHOT
    pub snapshot: String,
    /// The tag: who holds it, or why
    pub tag: String,
    #[command(flatten)]
    pub common: Common,
}
