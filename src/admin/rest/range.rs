//! Conditional requests and ranges (RFC 9110 §13, §14): pure decisions about one file's headers.

use axum::http::{HeaderMap, HeaderName, header};
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The snapshot name that stands for a file's present state.
pub struct Validators {
    /// Quoted, strong.
    pub etag: String,
    /// To the second; `None` before 1970.
    pub modified: Option<SystemTime>,
}

/// The answer that the headers of a request ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 200.
    Whole,
    /// 206.
    Part(Range<u64>),
    /// 304.
    NotModified,
    /// 412.
    Changed,
    /// 416.
    NotSatisfiable,
}

impl Validators {
    pub fn new(etag: &str, modified: SystemTime) -> Self {
        let since = modified.duration_since(UNIX_EPOCH).ok();
        let modified = since.map(|since| UNIX_EPOCH + Duration::from_secs(since.as_secs()));
        Self { etag: format!("\"{etag}\""), modified }
    }

    /// Decides by the preconditions in their order (§13.2.2), then by the range.
    pub fn answer(&self, headers: &HeaderMap, size: u64) -> Answer {
        if let Some(tags) = text(headers, header::IF_MATCH)
            && !self.is_listed(&tags, Compare::Strong)
        {
            return Answer::Changed;
        }
        if !headers.contains_key(header::IF_MATCH)
            && let Some(since) = time(headers, header::IF_UNMODIFIED_SINCE)
            && self.modified.is_none_or(|modified| modified > since)
        {
            return Answer::Changed;
        }
        if let Some(tags) = text(headers, header::IF_NONE_MATCH) {
            if self.is_listed(&tags, Compare::Weak) {
                return Answer::NotModified;
            }
        } else if let Some(since) = time(headers, header::IF_MODIFIED_SINCE)
            && self.modified.is_some_and(|modified| modified <= since)
        {
            return Answer::NotModified;
        }
        match text(headers, header::RANGE).filter(|_| self.range_holds(headers)) {
            Some(range) => parse(&range, size),
            None => Answer::Whole,
        }
    }

    /// If-Range: the range is of the state that the caller has the rest of.
    fn range_holds(&self, headers: &HeaderMap) -> bool {
        match text(headers, header::IF_RANGE) {
            None => true,
            Some(tag) if tag.starts_with('"') => tag == self.etag,
            Some(_) => {
                let since = time(headers, header::IF_RANGE);
                since.is_some() && self.modified == since
            }
        }
    }

    fn is_listed(&self, tags: &str, compare: Compare) -> bool {
        tags.split(',').map(str::trim).any(|tag| match (tag, compare) {
            ("*", _) => true,
            (tag, Compare::Weak) => tag.strip_prefix("W/").unwrap_or(tag) == self.etag,
            (tag, Compare::Strong) => tag == self.etag,
        })
    }
}

#[derive(Clone, Copy)]
enum Compare {
    Strong,
    Weak,
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let all: Vec<&str> =
        headers.get_all(name).iter().map(|value| value.to_str().ok()).collect::<Option<_>>()?;
    (!all.is_empty()).then(|| all.join(","))
}

fn time(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

/// A range that is no range is ignored, as §14.2 allows; several at once are refused: each would
/// cost a request, and nobody needs them.
fn parse(text: &str, size: u64) -> Answer {
    let Some(set) = text.trim().strip_prefix("bytes=") else { return Answer::Whole };
    if set.contains(',') {
        return Answer::NotSatisfiable;
    }
    let Some((first, last)) = set.trim().split_once('-') else { return Answer::Whole };
    let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number of any length is a number.
        true if !text.is_empty() => Some(text.parse::<u64>().unwrap_or(u64::MAX)),
        _ => None,
    };
    let range = match (number(first), number(last), first.is_empty(), last.is_empty()) {
        (Some(first), Some(last), ..) if first <= last => first..last.saturating_add(1).min(size),
        (Some(first), None, _, true) => first..size,
        (None, Some(count), true, _) if count > 0 => size.saturating_sub(count)..size,
        (None, Some(_), true, _) => return Answer::NotSatisfiable,
        _ => return Answer::Whole,
    };
    if range.start < range.end { Answer::Part(range) } else { Answer::NotSatisfiable }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(pairs: &[(HeaderName, &str)]) -> Answer {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value.parse().unwrap());
        }
        let modified = UNIX_EPOCH + Duration::from_millis(784_111_777_500);
        Validators::new("a", modified).answer(&headers, 1000)
    }

    #[test]
    fn ranges_are_cut_at_the_end_of_the_file() {
        let range = |text| ask(&[(header::RANGE, text)]);
        for (text, answer) in [
            ("bytes=0-0", Answer::Part(0..1)),
            ("bytes=0-999", Answer::Part(0..1000)),
            ("bytes=10-", Answer::Part(10..1000)),
            ("bytes=-10", Answer::Part(990..1000)),
            ("bytes=-5000", Answer::Part(0..1000)),
            ("bytes=999-99999999999999999999999999", Answer::Part(999..1000)),
            ("bytes=1000-", Answer::NotSatisfiable),
            ("bytes=99999999999999999999999999-", Answer::NotSatisfiable),
            ("bytes=-0", Answer::NotSatisfiable),
            ("bytes=0-1,5-6", Answer::NotSatisfiable),
            ("bytes=5-4", Answer::Whole),
            ("bytes=-", Answer::Whole),
            ("bytes=a-b", Answer::Whole),
            ("bytes", Answer::Whole),
            ("lines=1-2", Answer::Whole),
        ] {
            assert_eq!(range(text), answer, "{text}");
        }
        let empty = Validators::new("a", UNIX_EPOCH);
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, "bytes=0-".parse().unwrap());
        assert_eq!(empty.answer(&headers, 0), Answer::NotSatisfiable);
    }

    #[test]
    fn conditions_come_before_ranges() {
        let (then, before) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:36 GMT");
        for (pairs, answer) in [
            (vec![(header::IF_NONE_MATCH, "\"a\"")], Answer::NotModified),
            (vec![(header::IF_NONE_MATCH, "W/\"a\", \"b\"")], Answer::NotModified),
            (vec![(header::IF_NONE_MATCH, "*")], Answer::NotModified),
            (vec![(header::IF_NONE_MATCH, "\"b\"")], Answer::Whole),
            (vec![(header::IF_MATCH, "\"b\"")], Answer::Changed),
            (vec![(header::IF_MATCH, "W/\"a\"")], Answer::Changed),
            (vec![(header::IF_MATCH, "\"a\"")], Answer::Whole),
            (vec![(header::IF_MODIFIED_SINCE, then)], Answer::NotModified),
            (vec![(header::IF_MODIFIED_SINCE, before)], Answer::Whole),
            (vec![(header::IF_UNMODIFIED_SINCE, before)], Answer::Changed),
            (vec![(header::IF_UNMODIFIED_SINCE, then)], Answer::Whole),
            (
                vec![(header::IF_MODIFIED_SINCE, then), (header::IF_NONE_MATCH, "\"b\"")],
                Answer::Whole,
            ),
            (vec![(header::RANGE, "bytes=0-1"), (header::IF_RANGE, "\"a\"")], Answer::Part(0..2)),
            (vec![(header::RANGE, "bytes=0-1"), (header::IF_RANGE, "\"b\"")], Answer::Whole),
            (vec![(header::RANGE, "bytes=0-1"), (header::IF_RANGE, then)], Answer::Part(0..2)),
            (vec![(header::RANGE, "bytes=0-1"), (header::IF_RANGE, before)], Answer::Whole),
            (vec![(header::RANGE, "bytes=0-1"), (header::IF_RANGE, "W/\"a\"")], Answer::Whole),
            (
                vec![(header::RANGE, "bytes=0-1"), (header::IF_NONE_MATCH, "\"a\"")],
                Answer::NotModified,
            ),
        ] {
            assert_eq!(ask(&pairs), answer, "{pairs:?}");
        }
    }
}
