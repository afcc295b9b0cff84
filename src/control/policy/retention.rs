//! Which snapshots of a dataset its policy keeps, as a pure function.
//!
//! Every rule looks at the ready snapshots of the policy, the newest first. `hourly`, `daily`,
//! `weekly` and `monthly` see only the newest one of each hour, day, week or month that has any;
//! `last` sees all. A rule by count keeps the first of those that it sees; a rule by age those that
//! are at most that much older than the newest one. A snapshot that no rule keeps is deleted.
//!
//! **Age** counts time in which the policy ran: where more than [`SLOTS_COUNTED`] slots passed
//! between two snapshots, only those count. So neither an outage nor a clock that was a year ahead
//! for a day makes the others old, and with `skipEmpty` a dataset that nobody changes keeps its
//! history.
//!
//! A snapshot whose time is ahead of the clock was made by a wrong one. It is kept, and the others
//! are judged without it. Of those that seem to be of one hour, day, week or month, the newest is
//! the one that was begun last: a wrong clock's never takes the place of a later one.

use super::CLOCK_SKEW;
use super::rules::{Rules, Tier};
use super::schedule::Buckets;
use crate::catalog::{Keep, Snapshot, State};
use crate::types::Timestamp;
use serde::Serialize;
use std::time::Duration;

/// A changed policy deletes nothing for this long: a mistake can be seen, and undone.
pub(super) const GRACE: Duration = Duration::from_secs(24 * 3600);
/// The slots between two snapshots that count as age.
const SLOTS_COUNTED: u32 = 3;

/// A snapshot, as far as retention is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RetentionCandidate {
    pub created: Timestamp,
    /// Grows with each snapshot of a dataset, whatever the clocks say.
    pub serial: u32,
    pub ready: bool,
    /// A policy made it.
    pub by_policy: bool,
    /// The reason why it is not to be touched.
    pub held: Option<String>,
}

/// The decision about a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Keep(Reason),
    Delete,
}

/// The reason why a snapshot stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// A person or Kubernetes asked for it.
    NotByPolicy,
    /// Being made; a run of its slot finishes it.
    Unfinished,
    /// Somebody holds it, or a clone depends on it.
    Held(String),
    /// Its time is ahead of the clock.
    AheadOfClock,
    /// These rules keep it.
    Rules(Vec<&'static str>),
    /// The newest that is ready.
    Newest,
    /// The policy was changed less than 24 hours ago.
    PolicyChanged,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Delete => f.write_str("no rule keeps it"),
            Self::Keep(reason) => match reason {
                Reason::NotByPolicy => f.write_str("not made by a policy"),
                Reason::Unfinished => f.write_str("unfinished"),
                Reason::Held(by) => f.write_str(by),
                Reason::AheadOfClock => f.write_str("its time is ahead of the clock"),
                Reason::Rules(rules) => f.write_str(&rules.join(", ")),
                Reason::Newest => f.write_str("the newest"),
                Reason::PolicyChanged => f.write_str("policy changed less than 24 hours ago"),
            },
        }
    }
}

impl RetentionCandidate {
    pub fn of(snapshot: &Snapshot) -> Self {
        Self {
            created: snapshot.created,
            serial: snapshot.serial,
            ready: snapshot.state == State::Ready,
            by_policy: snapshot.slot.is_some(),
            held: held(snapshot),
        }
    }

    fn is_ahead(&self, now: Timestamp) -> bool {
        self.created > now.saturating_add(CLOCK_SKEW)
    }
}

/// Returns why a policy must not delete a snapshot, whatever its rules say.
pub(super) fn held(snapshot: &Snapshot) -> Option<String> {
    if !snapshot.holds.is_empty() {
        let tags: Vec<&str> = snapshot.holds.iter().map(String::as_str).collect();
        return Some(format!("held: {}", tags.join(", ")));
    }
    match snapshot.dependants.len() {
        0 => None,
        1 => Some("a clone depends on it".to_owned()),
        n => Some(format!("{n} clones depend on it")),
    }
}

/// Decides about each snapshot, in the order in which they are given. `changed`: when the policy
/// was last changed.
pub(super) fn verdicts(
    rules: &Rules,
    changed: Timestamp,
    now: Timestamp,
    snapshots: &[RetentionCandidate],
) -> Vec<Verdict> {
    let mut judged: Vec<usize> = (0..snapshots.len())
        .filter(|i| {
            let snapshot = &snapshots[*i];
            snapshot.by_policy && snapshot.ready && !snapshot.is_ahead(now)
        })
        .collect();
    judged.sort_by_key(|i| std::cmp::Reverse(snapshots[*i].created));
    let sorted: Vec<&RetentionCandidate> = judged.iter().map(|i| &snapshots[*i]).collect();
    let kept = kept_by_rules(rules, &sorted);
    let last_begun = judged.iter().max_by_key(|i| snapshots[**i].serial);
    let in_grace = now < changed.saturating_add(GRACE);
    let verdict = |i: usize, snapshot: &RetentionCandidate| {
        if !snapshot.by_policy {
            return Verdict::Keep(Reason::NotByPolicy);
        }
        if let Some(why) = &snapshot.held {
            return Verdict::Keep(Reason::Held(why.clone()));
        }
        if !snapshot.ready {
            return Verdict::Keep(Reason::Unfinished);
        }
        let Some(place) = judged.iter().position(|at| *at == i) else {
            return Verdict::Keep(Reason::AheadOfClock);
        };
        match &kept[place] {
            rules if !rules.is_empty() => Verdict::Keep(Reason::Rules(rules.clone())),
            _ if place == 0 || last_begun == Some(&i) => Verdict::Keep(Reason::Newest),
            _ if in_grace => Verdict::Keep(Reason::PolicyChanged),
            _ => Verdict::Delete,
        }
    };
    snapshots.iter().enumerate().map(|(i, snapshot)| verdict(i, snapshot)).collect()
}

/// The names of the rules that keep each of these snapshots, which are the newest first.
fn kept_by_rules(rules: &Rules, sorted: &[&RetentionCandidate]) -> Vec<Vec<&'static str>> {
    let times: Vec<Timestamp> = sorted.iter().map(|snapshot| snapshot.created).collect();
    let ages = ages(rules, &times);
    let buckets: Vec<Buckets> = times.iter().map(|at| rules.schedule.buckets(*at)).collect();
    let mut kept = vec![Vec::new(); times.len()];
    for tier in Tier::ALL {
        let Some(keep) = tier.rule(&rules.keep) else { continue };
        let places: Vec<usize> = (0..sorted.len()).collect();
        let spans = places.chunk_by(|a, b| {
            tier != Tier::Last && tier.bucket(&buckets[*a]) == tier.bucket(&buckets[*b])
        });
        for (seen, span) in spans.enumerate() {
            let Some(place) = span.iter().copied().max_by_key(|place| sorted[*place].serial) else {
                continue;
            };
            let keeps = match keep {
                Keep::Count(count) => (seen as u64) < u64::from(count),
                Keep::Secs(secs) => ages[place] <= Duration::from_secs(secs),
            };
            if !keeps {
                break;
            }
            kept[place].push(tier.name());
        }
    }
    kept
}

/// The age of each: see the module's text.
fn ages(rules: &Rules, times: &[Timestamp]) -> Vec<Duration> {
    let is_age = |tier: Tier| matches!(tier.rule(&rules.keep), Some(Keep::Secs(_)));
    if !Tier::ALL.into_iter().any(is_age) {
        return vec![Duration::ZERO; times.len()];
    }
    let mut age = Duration::ZERO;
    let mut ages = Vec::with_capacity(times.len());
    let mut newer: Option<Timestamp> = None;
    for at in times {
        if let Some(newer) = newer {
            age += counted(rules, *at, newer);
        }
        ages.push(age);
        newer = Some(*at);
    }
    ages
}

/// The part of the time between two snapshots that counts as age.
fn counted(rules: &Rules, from: Timestamp, to: Timestamp) -> Duration {
    let passed = to.since(from);
    if passed <= rules.schedule.at_least(SLOTS_COUNTED) {
        return passed;
    }
    let mut slot = from;
    for _ in 0..SLOTS_COUNTED {
        match rules.schedule.next(slot) {
            Some(next) if next < to => slot = next,
            _ => return passed,
        }
    }
    slot.since(from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{KeepRules, SnapshotPolicy};

    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;
    /// A Monday at midnight.
    const START: i64 = 1_795_996_800;

    fn rules(schedule: &str, keep: KeepRules) -> Rules {
        Rules::parse(&SnapshotPolicy {
            schedule: schedule.to_owned(),
            time_zone: "UTC".to_owned(),
            prefix: "auto-".to_owned(),
            skip_empty: false,
            keep,
        })
        .unwrap()
    }

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_parts(START + secs, 0)
    }

    fn made(secs: i64) -> RetentionCandidate {
        RetentionCandidate {
            created: at(secs),
            serial: u32::try_from(secs / 60).unwrap(),
            ready: true,
            by_policy: true,
            held: None,
        }
    }

    /// The times of those that stay, in seconds after the start; the policy is old.
    fn left(rules: &Rules, now: i64, snapshots: &[RetentionCandidate]) -> Vec<i64> {
        let verdicts = verdicts(rules, at(-1000 * DAY), at(now), snapshots);
        let kept = snapshots.iter().zip(verdicts).filter(|(_, v)| *v != Verdict::Delete);
        kept.map(|(s, _)| s.created.secs() - START).collect()
    }

    #[test]
    fn a_rule_sees_the_newest_of_each_span() {
        let keep = KeepRules {
            hourly: Some(Keep::Count(2)),
            daily: Some(Keep::Count(2)),
            ..KeepRules::default()
        };
        let rules = rules("30min", keep);
        let all: Vec<RetentionCandidate> = (0..=100).map(|n| made(n * HOUR / 2)).collect();
        // The newest is at 50 hours: 50:00 and 49:30 by hour; day 2 by 50:00, day 1 by 47:30.
        assert_eq!(left(&rules, 50 * HOUR, &all), [95 * HOUR / 2, 99 * HOUR / 2, 50 * HOUR]);
    }

    #[test]
    fn an_outage_and_a_jump_of_the_clock_expire_nothing() {
        let keep = KeepRules { last: Some(Keep::Secs(DAY.unsigned_abs())), ..KeepRules::default() };
        let rules = rules("0 * * * *", keep);
        let mut all: Vec<RetentionCandidate> = (0..24).map(|n| made(n * HOUR)).collect();
        assert_eq!(left(&rules, 24 * HOUR, &all).len(), 24);
        // For a year nothing runs: nothing is deleted, and neither after the first new one, which
        // counts as three hours.
        assert_eq!(left(&rules, 366 * DAY, &all).len(), 24);
        all.push(made(366 * DAY));
        assert_eq!(left(&rules, 366 * DAY, &all).len(), 23);
        // The clock was wrong: its snapshot stays, and the others are judged without it.
        all.push(made(24 * HOUR));
        let now = left(&rules, 24 * HOUR, &all);
        assert_eq!(now.len(), 26, "{now:?}");
        assert!(now.contains(&(366 * DAY)));
    }

    #[test]
    fn what_is_not_the_policys_is_not_touched() {
        let rules = rules("1h", KeepRules { last: Some(Keep::Count(1)), ..KeepRules::default() });
        let all = [
            made(0),
            RetentionCandidate { by_policy: false, ..made(HOUR) },
            RetentionCandidate { ready: false, ..made(2 * HOUR) },
            RetentionCandidate { held: Some("held: audit".to_owned()), ..made(3 * HOUR) },
            made(4 * HOUR),
            made(5 * HOUR),
            // Unfinished: the newest that is ready is the one before.
            RetentionCandidate { ready: false, ..made(6 * HOUR) },
        ];
        let found = verdicts(&rules, at(-10 * DAY), at(7 * HOUR), &all);
        assert_eq!(
            found,
            [
                Verdict::Delete,
                Verdict::Keep(Reason::NotByPolicy),
                Verdict::Keep(Reason::Unfinished),
                Verdict::Keep(Reason::Held("held: audit".to_owned())),
                Verdict::Delete,
                Verdict::Keep(Reason::Rules(vec!["last"])),
                Verdict::Keep(Reason::Unfinished),
            ]
        );
    }

    #[test]
    fn a_changed_policy_deletes_nothing_for_a_day() {
        let rules = rules("1h", KeepRules { last: Some(Keep::Count(1)), ..KeepRules::default() });
        let all = [made(0), made(HOUR), made(2 * HOUR)];
        let judged = |now: i64| verdicts(&rules, at(2 * HOUR), at(now), &all);
        assert!(!judged(3 * HOUR).contains(&Verdict::Delete));
        assert!(!judged(2 * HOUR + DAY - 1).contains(&Verdict::Delete));
        let deleted = judged(2 * HOUR + DAY).into_iter().filter(|v| *v == Verdict::Delete);
        assert_eq!(deleted.count(), 2);
    }

    #[test]
    fn the_newest_stays_whatever_the_rules_are() {
        let rules = rules("1h", KeepRules { last: Some(Keep::Count(1)), ..KeepRules::default() });
        let none = Rules { keep: KeepRules::default(), ..rules };
        let found = verdicts(&none, at(-10 * DAY), at(DAY), &[made(0), made(HOUR)]);
        assert_eq!(found, [Verdict::Delete, Verdict::Keep(Reason::Newest)]);
    }
}
