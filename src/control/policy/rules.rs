//! A policy as it was parsed: what the record says as text is checked once.

use super::duration;
use super::schedule::{self, Buckets, Schedule, name_of};
use crate::catalog::{Keep, KeepRules, SnapshotPolicy};
use crate::control::controller::SNAPSHOTS_MAX;
use crate::types::{SnapshotName, Timestamp};
use std::time::Duration;

/// The prefix of a policy that names none.
pub const DEFAULT_PREFIX: &str = "auto-";
/// Most snapshots that the rules of a policy may keep: a dataset has at most [`SNAPSHOTS_MAX`],
/// those of callers and deleted ones included.
const KEPT_MAX: u64 = 400;
/// The longest prefix, in bytes: a name has 128, and the slot and a number follow.
const PREFIX_BYTES_MAX: usize = 64;
/// Slots that are tried to find out how many a span of time may hold.
const SLOTS_TRIED: u64 = KEPT_MAX + 1;

#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub schedule: Schedule,
    pub prefix: String,
    pub skip_empty: bool,
    pub keep: KeepRules,
}

/// The tier of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tier {
    Last,
    Hourly,
    Daily,
    Weekly,
    Monthly,
}

impl Tier {
    pub const ALL: [Self; 5] = [Self::Last, Self::Hourly, Self::Daily, Self::Weekly, Self::Monthly];

    pub fn rule(self, keep: &KeepRules) -> Option<Keep> {
        match self {
            Self::Last => keep.last,
            Self::Hourly => keep.hourly,
            Self::Daily => keep.daily,
            Self::Weekly => keep.weekly,
            Self::Monthly => keep.monthly,
        }
    }

    /// The number of the hour, day, week or month; none for `Last`, which sees all.
    pub fn bucket(self, of: &Buckets) -> Option<i64> {
        match self {
            Self::Last => None,
            Self::Hourly => Some(of.hour),
            Self::Daily => Some(of.day),
            Self::Weekly => Some(of.week),
            Self::Monthly => Some(of.month),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
        }
    }

    /// The length of its shortest bucket, in seconds; of `Last`, that of a slot.
    fn secs_min(self) -> u64 {
        const HOUR: u64 = 3600;
        match self {
            Self::Last => 60,
            Self::Hourly => HOUR,
            // Days of a zone may have 23 hours.
            Self::Daily => 23 * HOUR,
            Self::Weekly => (7 * 24 - 1) * HOUR,
            Self::Monthly => (28 * 24 - 1) * HOUR,
        }
    }
}

/// A rule as it is written: a count, or a span of time.
///
/// # Errors
/// Says what is wrong with the text, and how to write it.
pub fn parse_keep(text: &str) -> Result<Keep, String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return match text.parse() {
            Ok(0) | Err(_) => Err(format!("{text}: keep from 1 to {KEPT_MAX} snapshots")),
            Ok(count) => Ok(Keep::Count(count)),
        };
    }
    match duration::parse(text) {
        Ok(span) => Ok(Keep::Secs(span.as_secs())),
        Err(why) => Err(format!("{why}; or a number of snapshots")),
    }
}

/// A rule as [`parse_keep`] reads it.
pub fn show_keep(keep: Keep) -> String {
    match keep {
        Keep::Count(count) => count.to_string(),
        Keep::Secs(secs) => duration::show(Duration::from_secs(secs)),
    }
}

impl Rules {
    /// # Errors
    /// Says which part is wrong, and how to write it.
    pub fn parse(policy: &SnapshotPolicy) -> Result<Self, String> {
        let zone = schedule::zone(&policy.time_zone)?;
        let schedule = Schedule::parse(&policy.schedule, zone)?;
        let rules = Self {
            schedule,
            prefix: policy.prefix.clone(),
            skip_empty: policy.skip_empty,
            keep: policy.keep,
        };
        rules.check_prefix()?;
        rules.check_kept()?;
        Ok(rules)
    }

    fn check_prefix(&self) -> Result<(), String> {
        let prefix = &self.prefix;
        if prefix.is_empty() || prefix.len() > PREFIX_BYTES_MAX {
            return Err(format!("a prefix has 1 to {PREFIX_BYTES_MAX} bytes"));
        }
        let sample = self.name(Timestamp::from_nanos(0), 0);
        let name = sample.map_err(|error| format!("prefix {prefix:?}: {error}"))?;
        name.may_be_given().map_err(|error| format!("prefix {prefix:?}: {error}"))
    }

    /// Refuses rules that keep nothing, or more than a dataset may have.
    fn check_kept(&self) -> Result<(), String> {
        if Tier::ALL.iter().all(|tier| tier.rule(&self.keep).is_none()) {
            return Err("say which snapshots to keep: with --keep-last, --hourly, --daily, \
                 --weekly or --monthly"
                .to_owned());
        }
        let most: u64 = Tier::ALL.iter().map(|tier| self.most(*tier)).sum();
        if most > KEPT_MAX {
            return Err(format!(
                "its rules may keep more than {KEPT_MAX} snapshots, and a dataset has at most \
                 {SNAPSHOTS_MAX} of all kinds: keep fewer, or for a shorter time"
            ));
        }
        Ok(())
    }

    /// The most snapshots that a rule may keep.
    fn most(&self, tier: Tier) -> u64 {
        match tier.rule(&self.keep) {
            None => 0,
            Some(Keep::Count(count)) => u64::from(count),
            Some(Keep::Secs(secs)) => {
                let buckets = secs / tier.secs_min() + 2;
                if buckets <= KEPT_MAX { buckets } else { self.slots_within(secs).min(buckets) }
            }
        }
    }

    /// Slots in a span of time, as far as they matter.
    fn slots_within(&self, secs: u64) -> u64 {
        let mut slot = Timestamp::from_nanos(0);
        let end = slot.saturating_add(Duration::from_secs(secs));
        for count in 1..=SLOTS_TRIED {
            match self.schedule.next(slot) {
                Some(next) if next <= end => slot = next,
                _ => return count,
            }
        }
        SLOTS_TRIED
    }

    /// The name of a slot's snapshot. `attempt`: above 0 where the names before are taken by
    /// snapshots that a wrong clock made.
    ///
    /// # Errors
    /// The prefix does not go into a name.
    pub fn name(
        &self,
        slot: Timestamp,
        attempt: u32,
    ) -> Result<SnapshotName, crate::types::NameError> {
        let slot = name_of(slot);
        match attempt {
            0 => format!("{}{slot}", self.prefix).parse(),
            n => format!("{}{slot}-{}", self.prefix, n + 1).parse(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn policy(schedule: &str, keep: KeepRules) -> SnapshotPolicy {
        SnapshotPolicy {
            schedule: schedule.to_owned(),
            time_zone: "UTC".to_owned(),
            prefix: DEFAULT_PREFIX.to_owned(),
            skip_empty: false,
            keep,
        }
    }

    fn keep(last: &str) -> KeepRules {
        KeepRules { last: Some(parse_keep(last).unwrap()), ..KeepRules::default() }
    }

    #[test]
    fn rules_are_counts_or_spans() {
        assert_eq!(parse_keep("24"), Ok(Keep::Count(24)));
        assert_eq!(parse_keep("2d"), Ok(Keep::Secs(172_800)));
        assert!(parse_keep("5m").unwrap_err().contains("5min or 5mo"));
        assert!(parse_keep("0").is_err() && parse_keep("").is_err());
        assert_eq!(show_keep(Keep::Count(3)), "3");
        assert_eq!(show_keep(Keep::Secs(172_800)), "2d");
    }

    #[test]
    fn what_a_dataset_cannot_hold_is_refused() {
        for (schedule, last, fits) in [
            ("1h", "400", true),
            ("1h", "401", false),
            ("1h", "7d", true),
            ("1min", "7d", false),
            ("0 * * * *", "17d", false),
            ("0 0 * * *", "6mo", true),
        ] {
            let parsed = Rules::parse(&policy(schedule, keep(last)));
            assert_eq!(parsed.is_ok(), fits, "{schedule} {last}: {parsed:?}");
        }
        let none = Rules::parse(&policy("1h", KeepRules::default())).unwrap_err();
        assert!(none.contains("which snapshots to keep"), "{none}");
    }

    #[test]
    fn a_prefix_makes_names() {
        let with =
            |prefix: &str| SnapshotPolicy { prefix: prefix.to_owned(), ..policy("1h", keep("3")) };
        let rules = Rules::parse(&with("nightly_")).unwrap();
        let slot = Timestamp::from_parts(1_796_014_800, 0);
        assert_eq!(rules.name(slot, 0).unwrap().as_str(), "nightly_2026-11-30T05-00Z");
        assert_eq!(rules.name(slot, 1).unwrap().as_str(), "nightly_2026-11-30T05-00Z-2");
        for prefix in ["", "a/b", "a@b", " x", &"x".repeat(65)] {
            assert!(Rules::parse(&with(prefix)).is_err(), "{prefix:?}");
        }
    }
}
