//! Work that is due, from the policies of a pool, the slots that are done, and the clock: pure.
//!
//! Only the newest of the slots that passed is due. The first one after a policy was set is its
//! first. A time in memory or in the bucket that is ahead of the clock was written while the clock
//! was wrong: it is not believed, and the slot is done again, which finds the snapshot made or
//! makes one.

use super::CLOCK_SKEW;
use super::rules::Rules;
use crate::catalog::{PolicyRecord, PolicyRun};
use crate::types::{DatasetId, Incarnation, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The pause before a slot that failed is tried again, doubled each time.
const RETRY_MIN: Duration = Duration::from_secs(60);
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// A slot that is not done after this long counts as overdue.
const OVERDUE: Duration = Duration::from_secs(1800);

/// The policies of a pool, and what this process knows of their slots.
#[derive(Default)]
pub(super) struct Agenda {
    entries: BTreeMap<Incarnation, AgendaEntry>,
    /// The datasets whose policies this program cannot decode.
    undecoded: BTreeSet<Incarnation>,
}

struct AgendaEntry {
    version: u64,
    dataset: DatasetId,
    changed: Timestamp,
    /// `None`: it was deleted. The reason, when this program cannot read it.
    rules: Option<Result<Rules, String>>,
    /// The newest slot that is done.
    done: Option<Timestamp>,
    retry: Option<Retry>,
    /// The answer to when its next slot is: from the first time on until the second one there is
    /// none.
    quiet: Option<(Timestamp, Timestamp)>,
}

struct Retry {
    slot: Timestamp,
    attempts: u32,
    /// Not before this time, …
    at: Timestamp,
    /// … which was decided at this one.
    since: Timestamp,
}

/// A slot that has to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub dataset: DatasetId,
    pub slot: Timestamp,
}

/// How many datasets have a policy, and how many of those wait for a snapshot too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyCounts {
    pub policies: usize,
    pub overdue: usize,
}

/// A time that a right clock may have written.
fn believed(at: Timestamp, now: Timestamp) -> bool {
    at <= now.saturating_add(CLOCK_SKEW)
}

impl AgendaEntry {
    fn rules(&self) -> Option<&Rules> {
        self.rules.as_ref()?.as_ref().ok()
    }

    /// The newest slot up to now, if it is not done.
    fn open_slot(&self, now: Timestamp) -> Option<Timestamp> {
        let slot = self.rules()?.schedule.latest(now)?;
        let is_past = |at: Timestamp| believed(at, now) && at >= slot;
        (!is_past(self.changed) && !self.done.is_some_and(is_past)).then_some(slot)
    }

    fn is_quiet(&self, now: Timestamp) -> bool {
        self.quiet.is_some_and(|(from, until)| from <= now && now < until)
    }

    /// Remembers that nothing is due before the next slot.
    fn note_quiet(&mut self, now: Timestamp) {
        let next = self.rules().and_then(|rules| rules.schedule.next(now));
        self.quiet = Some((now, next.unwrap_or(Timestamp::MAX)));
    }

    fn waits(&self, slot: Timestamp, now: Timestamp) -> bool {
        let retry = self.retry.as_ref().filter(|retry| retry.slot == slot);
        retry.is_some_and(|retry| retry.since <= now && now < retry.at)
    }
}

impl Agenda {
    /// Returns the version of a policy that is known.
    pub fn version(&self, dataset: Incarnation) -> Option<u64> {
        self.entries.get(&dataset).map(|entry| entry.version)
    }

    /// Takes a policy, or a newer version of it.
    pub fn put(&mut self, version: u64, record: &PolicyRecord) {
        let done = self.entries.get(&record.dataset.incarnation).and_then(|entry| entry.done);
        let entry = AgendaEntry {
            version,
            dataset: record.dataset,
            changed: record.changed,
            rules: record.policy.as_ref().map(Rules::parse),
            done,
            retry: None,
            quiet: None,
        };
        self.undecoded.remove(&record.dataset.incarnation);
        self.entries.insert(record.dataset.incarnation, entry);
    }

    /// Keeps the policies that are listed.
    pub fn retain(&mut self, listed: &BTreeSet<Incarnation>) {
        self.entries.retain(|dataset, _| listed.contains(dataset));
        self.undecoded.retain(|dataset| listed.contains(dataset));
    }

    pub fn remove(&mut self, dataset: Incarnation) {
        self.entries.remove(&dataset);
    }

    /// The rules of a dataset, and when they were last changed.
    pub fn rules(&self, dataset: Incarnation) -> Option<(&Rules, Timestamp)> {
        let entry = self.entries.get(&dataset)?;
        Some((entry.rules()?, entry.changed))
    }

    /// The policies that this program cannot read, and why.
    pub fn unreadable(&self) -> impl Iterator<Item = (DatasetId, &str)> {
        self.entries.values().filter_map(|entry| match &entry.rules {
            Some(Err(why)) => Some((entry.dataset, why.as_str())),
            _ => None,
        })
    }

    /// Learns from the claim what others have done.
    pub fn learn(&mut self, run: &PolicyRun, now: Timestamp) {
        let Some(done) = run.done.filter(|done| believed(*done, now)) else { return };
        let failed: BTreeSet<Incarnation> = run.failed.iter().copied().collect();
        for (dataset, entry) in &mut self.entries {
            if !failed.contains(dataset) && entry.done.is_none_or(|known| known < done) {
                entry.done = Some(done);
                entry.quiet = None;
            }
        }
    }

    /// Every slot that has to be done now.
    pub fn due(&mut self, now: Timestamp) -> Vec<Due> {
        let mut due = Vec::new();
        for entry in self.entries.values_mut().filter(|entry| !entry.is_quiet(now)) {
            match entry.open_slot(now) {
                None => entry.note_quiet(now),
                Some(slot) if entry.waits(slot, now) => {}
                Some(slot) => due.push(Due { dataset: entry.dataset, slot }),
            }
        }
        due
    }

    pub fn done(&mut self, due: Due) {
        if let Some(entry) = self.entries.get_mut(&due.dataset.incarnation) {
            entry.done = Some(due.slot);
            entry.retry = None;
            entry.quiet = None;
        }
    }

    pub fn failed(&mut self, due: Due, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(&due.dataset.incarnation) else { return };
        let before = entry.retry.take().filter(|retry| retry.slot == due.slot);
        let attempts = before.map_or(0, |retry| retry.attempts);
        let pause = RETRY_MIN.saturating_mul(1 << attempts.min(10)).min(RETRY_MAX);
        entry.retry = Some(Retry {
            slot: due.slot,
            attempts: attempts + 1,
            at: now.saturating_add(pause),
            since: now,
        });
    }

    /// The datasets of which a slot is not done, or may not be: another program may be able to read
    /// the policy that this one cannot.
    pub fn open(&self, now: Timestamp) -> Vec<Incarnation> {
        let may_be_open = |entry: &AgendaEntry| match &entry.rules {
            Some(Err(_)) => true,
            _ => entry.open_slot(now).is_some(),
        };
        let open = self.entries.iter().filter(|(_, entry)| may_be_open(entry));
        open.map(|(dataset, _)| *dataset).chain(self.undecoded.iter().copied()).collect()
    }

    /// Takes a policy whose record this program cannot decode.
    pub fn put_undecoded(&mut self, dataset: Incarnation) {
        self.entries.remove(&dataset);
        self.undecoded.insert(dataset);
    }

    pub fn counts(&self, now: Timestamp) -> PolicyCounts {
        let mut counts = PolicyCounts::default();
        for entry in self.entries.values().filter(|entry| entry.rules.is_some()) {
            counts.policies += 1;
            let waits = |slot: Timestamp| now.since(slot) >= OVERDUE || entry.failed_long(now);
            let is_quiet = entry.is_quiet(now) && entry.rules().is_some();
            let overdue = match entry.rules() {
                None => true,
                Some(_) => !is_quiet && entry.open_slot(now).is_some_and(waits),
            };
            counts.overdue += usize::from(overdue);
        }
        counts
    }
}

impl AgendaEntry {
    /// A schedule with many slots an hour never has an old one: then what counts is the last that
    /// was done.
    fn failed_long(&self, now: Timestamp) -> bool {
        let last = self.done.unwrap_or(self.changed);
        let Some(first) = self.rules().and_then(|rules| rules.schedule.next(last)) else {
            return false;
        };
        believed(last, now) && now.since(first) >= OVERDUE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Keep, KeepRules, SnapshotPolicy};
    use crate::types::NameKey;

    const HOUR: i64 = 3600;
    const START: i64 = 1_795_996_800;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_parts(START + secs, 0)
    }

    fn dataset(n: u8) -> DatasetId {
        DatasetId {
            key: NameKey::of("dataset", &n.to_string()),
            incarnation: Incarnation::from_bytes([n; 16]),
        }
    }

    fn record(n: u8, changed: i64) -> PolicyRecord {
        let keep = KeepRules { last: Some(Keep::Count(3)), ..KeepRules::default() };
        PolicyRecord {
            dataset: dataset(n),
            policy: Some(SnapshotPolicy {
                schedule: "1h".to_owned(),
                time_zone: "UTC".to_owned(),
                prefix: "auto-".to_owned(),
                skip_empty: false,
                keep,
            }),
            changed: at(changed),
        }
    }

    fn agenda() -> Agenda {
        let mut agenda = Agenda::default();
        agenda.put(1, &record(1, -10));
        agenda
    }

    fn run(done: i64, failed: &[u8]) -> PolicyRun {
        PolicyRun {
            holder: None,
            node: String::new(),
            lease_millis: 0,
            done: Some(at(done)),
            failed: failed.iter().map(|n| Incarnation::from_bytes([*n; 16])).collect(),
        }
    }

    fn due(slot: i64) -> Vec<Due> {
        vec![Due { dataset: dataset(1), slot: at(slot) }]
    }

    #[test]
    fn of_missed_slots_the_newest_is_due_once() {
        let mut agenda = agenda();
        assert_eq!(agenda.due(at(-1)), [], "its first slot is the first after it was set");
        assert_eq!(agenda.due(at(0)), due(0));
        agenda.done(due(0)[0]);
        assert_eq!(agenda.due(at(HOUR - 1)), []);
        assert_eq!(agenda.due(at(100 * HOUR + 5)), due(100 * HOUR));
        agenda.done(due(100 * HOUR)[0]);
        assert_eq!(agenda.due(at(100 * HOUR + 6)), []);
    }

    #[test]
    fn a_clock_that_was_ahead_stops_nothing() {
        let mut agenda = agenda();
        agenda.done(due(9000 * HOUR)[0]);
        assert_eq!(agenda.due(at(9000 * HOUR + 1)), []);
        assert_eq!(agenda.due(at(2 * HOUR)), due(2 * HOUR));
        agenda.done(due(2 * HOUR)[0]);
        assert_eq!(agenda.due(at(2 * HOUR + 1)), []);
        // A policy that is set while the clock is ahead begins when it is right again.
        agenda.put(2, &record(1, 9000 * HOUR));
        agenda.learn(&run(8000 * HOUR, &[]), at(3 * HOUR));
        assert_eq!(agenda.due(at(3 * HOUR)), due(3 * HOUR));
        // Another machine's clock that is a little ahead is believed.
        agenda.learn(&run(3 * HOUR, &[]), at(3 * HOUR - 5));
        assert_eq!(agenda.due(at(3 * HOUR)), []);
    }

    #[test]
    fn what_others_have_done_is_done_but_for_what_failed() {
        let mut agenda = agenda();
        agenda.put(1, &record(2, -10));
        agenda.done(due(0)[0]);
        agenda.learn(&run(HOUR, &[1]), at(HOUR + 1));
        assert_eq!(agenda.due(at(HOUR + 1)), due(HOUR));
        assert_eq!(agenda.open(at(HOUR + 1)), [dataset(1).incarnation]);
        assert_eq!(agenda.counts(at(HOUR + 1)), PolicyCounts { policies: 2, overdue: 0 });
        assert_eq!(agenda.counts(at(HOUR + 1800)), PolicyCounts { policies: 2, overdue: 1 });
    }

    #[test]
    fn what_this_program_cannot_read_is_left_to_others() {
        let mut agenda = agenda();
        agenda.done(due(0)[0]);
        let mut wrong = record(2, -10);
        wrong.policy.as_mut().unwrap().schedule = "of a later version".to_owned();
        agenda.put(1, &wrong);
        agenda.put_undecoded(dataset(3).incarnation);
        assert_eq!(agenda.open(at(1)), [dataset(2).incarnation, dataset(3).incarnation]);
        agenda.put(2, &record(3, -10));
        agenda.retain(&[dataset(1).incarnation, dataset(3).incarnation].into());
        let due = agenda.due(at(1));
        agenda.done(due[0]);
        assert_eq!(agenda.open(at(1)), []);
    }

    #[test]
    fn a_failure_is_tried_again_after_growing_pauses() {
        let mut agenda = agenda();
        let mut now = 0;
        let mut tries = Vec::new();
        while now < HOUR {
            if let [due] = agenda.due(at(now))[..] {
                tries.push(now / 60);
                agenda.failed(due, at(now));
            }
            now += 10;
        }
        assert_eq!(tries, [0, 1, 3, 7, 15, 31]);
        assert_eq!(agenda.due(at(HOUR)), due(HOUR), "the next slot does not wait");
        agenda.failed(due(HOUR)[0], at(HOUR));
        assert_eq!(agenda.due(at(0)), due(0), "neither does one of a clock that was set back");
    }

    #[test]
    fn a_policy_that_cannot_be_read_is_told_and_one_that_was_deleted_is_not() {
        let mut agenda = agenda();
        let mut broken = record(1, 0);
        broken.policy.as_mut().unwrap().schedule = "every full moon".to_owned();
        agenda.put(2, &broken);
        assert_eq!(agenda.due(at(5 * HOUR)), []);
        assert_eq!(agenda.unreadable().count(), 1);
        assert_eq!(agenda.counts(at(0)), PolicyCounts { policies: 1, overdue: 1 });
        agenda.put(3, &PolicyRecord { policy: None, ..record(1, 0) });
        assert_eq!(agenda.due(at(5 * HOUR)), []);
        assert_eq!(agenda.counts(at(0)), PolicyCounts::default());
    }
}
