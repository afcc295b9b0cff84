//! The history of all workers, and what must hold of it.
//!
//! A register has one writer. A read of it may return what was acknowledged before the read began,
//! or anything later that was begun before the read ended: nothing older, whoever answers. The
//! write verifier of an answer is random for each opening of the volume (R18), so it shows which
//! owner acknowledged a write.

use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub struct Call {
    pub seat: &'static str,
    pub begun: u64,
    pub ended: u64,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    Wrote {
        value: u64,
        opening: String,
    },
    Read {
        of: String,
        value: u64,
    },
    /// A name was made, renamed or removed.
    Named,
}

impl Call {
    /// Reads a worker's line; `None`: it is about something else.
    pub fn parse(seat: &'static str, line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |text: &str| text.parse().unwrap();
        match words[..] {
            ["wrote", value, begun, ended, opening] => {
                let what = What::Wrote { value: number(value), opening: opening.to_owned() };
                Some(Self { seat, begun: number(begun), ended: number(ended), what })
            }
            ["read", of, value, begun, ended] => {
                let what = What::Read { of: of.to_owned(), value: number(value) };
                Some(Self { seat, begun: number(begun), ended: number(ended), what })
            }
            ["named", begun, ended] => {
                let what = What::Named;
                Some(Self { seat, begun: number(begun), ended: number(ended), what })
            }
            _ => None,
        }
    }

    pub fn opening(&self) -> Option<&str> {
        match &self.what {
            What::Wrote { opening, .. } => Some(opening),
            What::Read { .. } | What::Named => None,
        }
    }
}

/// The acknowledged writes of one opening of the volume.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    pub first_ended: u64,
    pub last_begun: u64,
    pub last_ended: u64,
}

pub fn openings(calls: &[Call]) -> BTreeMap<String, Opening> {
    let mut found: BTreeMap<String, Opening> = BTreeMap::new();
    for call in calls {
        let Some(opening) = call.opening() else { continue };
        let new =
            Opening { first_ended: call.ended, last_begun: call.begun, last_ended: call.ended };
        let entry = found.entry(opening.to_owned()).or_insert(new);
        entry.first_ended = entry.first_ended.min(call.ended);
        entry.last_begun = entry.last_begun.max(call.begun);
        entry.last_ended = entry.last_ended.max(call.ended);
    }
    found
}

/// No owner acknowledges a write that began after another owner had acknowledged one.
pub fn one_owner_at_a_time(calls: &[Call]) -> Result<(), String> {
    let mut all: Vec<(String, Opening)> = openings(calls).into_iter().collect();
    all.sort_by_key(|(_, opening)| opening.first_ended);
    for (at, (name, opening)) in all.iter().enumerate() {
        for (next, later) in &all[at + 1..] {
            if opening.last_begun > later.first_ended {
                let late = (opening.last_begun - later.first_ended) / 1_000_000;
                return Err(format!(
                    "opening {name} acknowledged a write that began {late} ms after opening {next} \
                     had acknowledged one"
                ));
            }
        }
    }
    Ok(())
}

/// No read returns what is older than what was acknowledged before it began, or was never written.
pub fn no_stale_read(calls: &[Call]) -> Result<(), String> {
    let mut writes: BTreeMap<&str, Vec<(u64, u64, u64)>> = BTreeMap::new();
    for call in calls {
        if let What::Wrote { value, .. } = call.what {
            writes.entry(call.seat).or_default().push((value, call.begun, call.ended));
        }
    }
    for call in calls {
        let What::Read { of, value } = &call.what else { continue };
        // A writer's calls follow each other, so both times grow with the value. The last may have
        // no answer yet.
        let of_writer = writes.get(of.as_str()).map(Vec::as_slice).unwrap_or_default();
        let least = of_writer.partition_point(|(_, _, ended)| *ended < call.begun);
        let least = least.checked_sub(1).map_or(0, |at| of_writer[at].0);
        let most = of_writer.partition_point(|(_, begun, _)| *begun < call.ended);
        let most = most.checked_sub(1).map_or(0, |at| of_writer[at].0);
        let is_last = most == of_writer.last().map_or(0, |(value, ..)| *value);
        let most = if is_last { most + 1 } else { most };
        if *value < least || *value > most {
            return Err(format!(
                "{} read {value} from the register of {of}, which held {least} to {most} then",
                call.seat
            ));
        }
    }
    Ok(())
}

/// A checker that finds nothing proves nothing.
pub fn check_the_checks() {
    let line = |seat, text: &str| Call::parse(seat, text).unwrap();
    let good = [
        line("a", "wrote 1 10 20 x"),
        line("b", "read a 1 15 25"),
        line("a", "wrote 2 30 40 x"),
        line("b", "read a 1 35 45"),
        line("c", "read a 2 41 45"),
        line("b", "wrote 1 50 60 y"),
        line("a", "wrote 3 55 70 y"),
    ];
    no_stale_read(&good).unwrap();
    one_owner_at_a_time(&good).unwrap();
    let with = |text| [good.as_slice(), &[line("c", text)]].concat();
    for stale in ["read a 1 41 45", "read a 3 41 45", "read b 3 51 52", "read a 5 90 95"] {
        assert!(no_stale_read(&with(stale)).is_err(), "{stale}");
    }
    assert!(one_owner_at_a_time(&with("wrote 1 61 65 x")).is_err());
    one_owner_at_a_time(&with("wrote 1 59 65 x")).unwrap();
}
