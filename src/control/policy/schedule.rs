//! The slots of a schedule: the times that five fields of cron name in a time zone, or the
//! multiples of an interval since 1970 in UTC.
//!
//! Where clocks are set forward, a slot in the hour that does not exist is right after it; where
//! they are set back, a slot at a fixed time comes once.

use super::duration;
use crate::types::Timestamp;
use chrono::{DateTime, Datelike, Timelike, Utc};
use chrono_tz::{OffsetComponents, Tz};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use std::time::Duration;

/// The shortest interval: one slot a minute, as with cron.
const INTERVAL_MIN: Duration = Duration::from_secs(60);
/// The longest: a day a year, in the other form, would be missed by nobody.
const INTERVAL_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// The longest text of a schedule.
const TEXT_BYTES_MAX: usize = 200;

#[derive(Clone, Debug)]
pub(super) struct Schedule {
    recurrence: Recurrence,
    zone: Tz,
}

#[derive(Clone, Debug)]
enum Recurrence {
    Cron(Box<Cron>),
    Every(Duration),
}

/// # Errors
/// Names the zone, and the form that is expected.
pub(super) fn zone(name: &str) -> Result<Tz, String> {
    name.parse().map_err(|_| {
        format!("time zone {name:?} is unknown: give its IANA name, like Europe/Berlin or UTC")
    })
}

impl Schedule {
    /// # Errors
    /// Says what is wrong with the text, and how to write it.
    pub fn parse(text: &str, zone: Tz) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!(
                "schedule {text:?}: {why}; write five fields of cron, like \"0 * * * *\" \
                 (minute, hour, day, month, weekday), or an interval, like 15min, 6h or 1d"
            )
        };
        if text.len() > TEXT_BYTES_MAX {
            return Err(format!("a schedule has at most {TEXT_BYTES_MAX} bytes"));
        }
        let recurrence = match text.starts_with('@') || text.contains(char::is_whitespace) {
            true => {
                let parser =
                    CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed);
                let cron = parser.build().parse(text).map_err(|why| wrong(&why.to_string()))?;
                Recurrence::Cron(Box::new(cron))
            }
            false if text.ends_with("mo") || text.ends_with('y') => {
                return Err(wrong("months and years differ in length: use cron for them"));
            }
            false => {
                let every = duration::parse(text).map_err(|why| wrong(&why))?;
                if !(INTERVAL_MIN..=INTERVAL_MAX).contains(&every) {
                    return Err(wrong("an interval is at least 1min and at most 366d"));
                }
                Recurrence::Every(every)
            }
        };
        let schedule = Self { recurrence, zone };
        match schedule.next(Timestamp::from_nanos(0)) {
            Some(_) => Ok(schedule),
            None => Err(wrong("there is no such date")),
        }
    }

    fn local(&self, at: Timestamp) -> Option<DateTime<Tz>> {
        let utc = DateTime::<Utc>::from_timestamp(at.secs(), at.subsec_nanos())?;
        Some(utc.with_timezone(&self.zone))
    }

    /// The last slot up to a time, which may be one.
    pub fn latest(&self, at: Timestamp) -> Option<Timestamp> {
        match &self.recurrence {
            Recurrence::Cron(cron) => {
                // Slots are whole seconds.
                let at = self.local(Timestamp::from_parts(at.secs(), 0))?;
                cron.find_previous_occurrence(&at, true).ok().map(|slot| time_of(&slot))
            }
            Recurrence::Every(every) => {
                let every = i64::try_from(every.as_secs()).ok()?;
                Some(Timestamp::from_parts(at.secs().div_euclid(every) * every, 0))
            }
        }
    }

    /// The first slot after a time.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.recurrence {
            Recurrence::Cron(cron) => {
                let at = self.local(Timestamp::from_parts(after.secs(), 0))?;
                cron.find_next_occurrence(&at, false).ok().map(|slot| time_of(&slot))
            }
            Recurrence::Every(every) => self.latest(after).map(|slot| slot.saturating_add(*every)),
        }
    }

    /// Returns a time that no `slots` slots in a row are shorter than.
    pub fn at_least(&self, slots: u32) -> Duration {
        match &self.recurrence {
            Recurrence::Every(every) => *every * slots,
            Recurrence::Cron(_) => INTERVAL_MIN * slots,
        }
    }

    /// The hour, day, week and month of a time in the schedule's zone. An hour that is repeated
    /// when clocks are set back is two.
    pub fn buckets(&self, at: Timestamp) -> Buckets {
        let Some(local) = self.local(at) else { return Buckets::default() };
        let offset = local.offset();
        let shift = offset.base_utc_offset() + offset.dst_offset();
        let week = local.iso_week();
        let day = i64::from(local.num_days_from_ce());
        Buckets {
            hour: (day * 24 + i64::from(local.hour())) * 256 + shift.num_hours(),
            day,
            week: i64::from(week.year()) * 100 + i64::from(week.week()),
            month: i64::from(local.year()) * 12 + i64::from(local.month0()),
        }
    }
}

/// Numbers that are equal for times in the same hour, day, week or month.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Buckets {
    pub hour: i64,
    pub day: i64,
    pub week: i64,
    pub month: i64,
}

fn time_of(at: &DateTime<Tz>) -> Timestamp {
    Timestamp::from_parts(at.timestamp(), 0)
}

/// A slot in UTC, as it stands in names: `2026-11-30T05-00Z`.
pub(super) fn name_of(slot: Timestamp) -> String {
    let at = DateTime::<Utc>::from_timestamp(slot.secs(), 0).unwrap_or_default();
    let secs = if at.second() == 0 { String::new() } else { format!("-{:02}", at.second()) };
    format!(
        "{:04}-{:02}-{:02}T{:02}-{:02}{secs}Z",
        at.year(),
        at.month(),
        at.day(),
        at.hour(),
        at.minute()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(text: &str, name: &str) -> Schedule {
        Schedule::parse(text, zone(name).unwrap()).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        Timestamp::from(humantime::parse_rfc3339(text).unwrap())
    }

    #[test]
    fn an_interval_is_counted_from_1970() {
        let every = schedule("15min", "Europe/Berlin");
        assert_eq!(every.latest(at("2026-11-30T05:14:59Z")), Some(at("2026-11-30T05:00:00Z")));
        assert_eq!(every.latest(at("2026-11-30T05:15:00Z")), Some(at("2026-11-30T05:15:00Z")));
        assert_eq!(every.next(at("2026-11-30T05:15:00Z")), Some(at("2026-11-30T05:30:00Z")));
        assert_eq!(name_of(at("2026-11-30T05:15:00Z")), "2026-11-30T05-15Z");
    }

    #[test]
    fn cron_is_in_its_zone() {
        let nightly = schedule("30 2 * * *", "Europe/Berlin");
        assert_eq!(nightly.latest(at("2026-07-01T00:30:00Z")), Some(at("2026-07-01T00:30:00Z")));
        assert_eq!(nightly.latest(at("2026-07-01T00:29:59Z")), Some(at("2026-06-30T00:30:00Z")));
        assert_eq!(nightly.next(at("2026-12-01T01:30:00Z")), Some(at("2026-12-02T01:30:00Z")));
        let weekdays = schedule("0 18 * * mon-fri", "UTC");
        assert_eq!(weekdays.next(at("2026-11-27T18:00:00Z")), Some(at("2026-11-30T18:00:00Z")));
    }

    #[test]
    fn a_night_in_which_clocks_are_set_has_one_slot() {
        let nightly = schedule("30 2 * * *", "Europe/Berlin");
        // 02:30 does not exist on the 29th of March, and comes twice on the 25th of October.
        for (from, to) in [
            ("2026-03-28T01:30:00Z", "2026-03-30T00:30:00Z"),
            ("2026-10-24T00:30:00Z", "2026-10-26T01:30:00Z"),
        ] {
            let between = nightly.next(at(from)).unwrap();
            assert!(between < at(to), "{from}");
            assert_eq!(nightly.next(between), Some(at(to)), "{from}");
            assert_eq!(nightly.latest(at(to)), Some(at(to)));
        }
    }

    #[test]
    fn a_repeated_hour_is_two_and_a_week_begins_on_monday() {
        let berlin = schedule("1h", "Europe/Berlin");
        let (first, second) = (at("2026-10-25T00:30:00Z"), at("2026-10-25T01:30:00Z"));
        assert_ne!(berlin.buckets(first).hour, berlin.buckets(second).hour);
        assert_eq!(berlin.buckets(first).day, berlin.buckets(second).day);
        let (sunday, monday) = (at("2026-11-29T22:59:00Z"), at("2026-11-29T23:00:00Z"));
        assert_ne!(berlin.buckets(sunday).week, berlin.buckets(monday).week);
        assert_eq!(berlin.buckets(sunday).month, berlin.buckets(monday).month);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, part) in [
            ("15m", "month or minute? write 15min or 15mo"),
            ("1mo", "use cron"),
            ("30s", "not a span"),
            ("0 * * *", "schedule"),
            ("0 0 0 * * *", "schedule"),
            ("61 * * * *", "schedule"),
            ("0 0 30 2 *", "schedule"),
            ("", "interval"),
            ("9999d", "at most 366d"),
        ] {
            let why = Schedule::parse(text, Tz::UTC).unwrap_err();
            assert!(why.contains(part), "{text:?}: {why}");
        }
        assert!(zone("Berlin").unwrap_err().contains("IANA"));
    }
}
