//! Spans of time as people write them: `15min`, `6h`, `7d`, `2w`, `6mo`, `1y`.

use std::time::Duration;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Months and years count as the longest ones: what is kept for a month is kept for any.
const UNITS: &[(&str, u64)] =
    &[("min", MINUTE), ("h", HOUR), ("d", DAY), ("w", 7 * DAY), ("mo", 31 * DAY), ("y", 366 * DAY)];

/// # Errors
/// Says what is wrong with the text, and how to write it.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let form = "write a number and one of min, h, d, w, mo, y, like 90min, 6h or 7d";
    if unit.eq_ignore_ascii_case("m") {
        return Err(format!("{text:?}: month or minute? write {number}min or {number}mo"));
    }
    let unit = UNITS.iter().find(|(name, _)| *name == unit);
    let secs = match (number.parse::<u64>(), unit) {
        (Ok(number), Some((_, secs))) => number.checked_mul(*secs),
        (Err(_), Some(_)) if !number.is_empty() => None,
        _ => return Err(format!("{text:?} is not a span of time: {form}")),
    };
    match secs {
        Some(0) => Err(format!("{text:?} is no time at all: {form}")),
        Some(secs) if secs <= 1000 * 366 * DAY => Ok(Duration::from_secs(secs)),
        _ => Err(format!("{text:?} is too long: at most 1000y")),
    }
}

/// The span in its largest whole unit.
pub(super) fn show(span: Duration) -> String {
    let secs = span.as_secs();
    let whole = UNITS.iter().rev().find(|(name, unit)| {
        !matches!(*name, "mo" | "y") && secs >= *unit && secs.is_multiple_of(*unit)
    });
    match whole {
        Some((name, unit)) => format!("{}{name}", secs / unit),
        None => format!("{secs}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_shown() {
        for (text, secs) in
            [("15min", 900), ("6h", 21_600), ("1d", DAY), ("2w", 14 * DAY), ("1mo", 31 * DAY)]
        {
            assert_eq!(parse(text), Ok(Duration::from_secs(secs)), "{text}");
        }
        assert_eq!(show(Duration::from_secs(900)), "15min");
        assert_eq!(show(Duration::from_secs(14 * DAY)), "2w");
        assert_eq!(show(Duration::from_secs(3 * DAY)), "3d");
    }

    #[test]
    fn a_minute_and_a_month_are_told_apart() {
        for text in ["15m", "15M"] {
            let why = parse(text).unwrap_err();
            assert!(why.contains("month or minute? write 15min or 15mo"), "{why}");
        }
        for text in ["", "h", "15", "-1h", "1.5h", "0h", "99999999999999999999h", "5000y", "1 h"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
