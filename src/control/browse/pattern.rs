//! Patterns of file names, as bytes.

use super::refused;
use crate::control::ControlError;
use crate::types::Class;

/// The longest pattern, in bytes: no name is longer.
const PATTERN_BYTES_MAX: usize = 255;

/// A pattern of names: with `*`, `?` or `[` a glob of the whole name, otherwise a part of it that
/// ASCII letters match in either case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(PatternKind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum PatternKind {
    /// In lower case.
    Part(Vec<u8>),
    Glob(Vec<Token>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Byte(u8),
    Any,
    Many,
    OneOf { ranges: Vec<(u8, u8)>, negated: bool },
}

impl Pattern {
    /// # Errors
    /// `Invalid` for an empty or too long pattern, one with `/`, and a `[` without its `]`.
    pub fn new(text: &[u8]) -> Result<Self, ControlError> {
        let wrong = |why: &str| {
            let shown = String::from_utf8_lossy(&text[..text.len().min(PATTERN_BYTES_MAX)]);
            Err(refused(Class::Invalid, format!("pattern {shown:?}: {why}")))
        };
        if text.is_empty() {
            return wrong("it is empty: use * for every name");
        }
        if text.len() > PATTERN_BYTES_MAX {
            return wrong("it is longer than 255 bytes, as no name is");
        }
        if text.contains(&b'/') {
            return wrong("it is compared with names, which hold no `/`: name the last part only");
        }
        if !text.iter().any(|byte| b"*?[".contains(byte)) {
            return Ok(Self(PatternKind::Part(text.to_ascii_lowercase())));
        }
        match tokens(text) {
            Some(tokens) => Ok(Self(PatternKind::Glob(tokens))),
            None => wrong("a `[` has no `]`, or a `\\` nothing after it: write \\[ for the letter"),
        }
    }

    pub fn matches(&self, name: &[u8]) -> bool {
        match &self.0 {
            PatternKind::Part(part) => {
                name.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part))
            }
            PatternKind::Glob(tokens) => glob(tokens, name),
        }
    }
}

fn tokens(text: &[u8]) -> Option<Vec<Token>> {
    let (mut tokens, mut rest) = (Vec::new(), text);
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        tokens.push(match first {
            b'*' => Token::Many,
            b'?' => Token::Any,
            b'[' => one_of(&mut rest)?,
            b'\\' => {
                let (escaped, after) = rest.split_first()?;
                rest = after;
                Token::Byte(*escaped)
            }
            byte => Token::Byte(*byte),
        });
    }
    Some(tokens)
}

/// The rest of `[a-z]`, `[!a-z]` or `[]x]`.
fn one_of(rest: &mut &[u8]) -> Option<Token> {
    let negated = matches!(rest.first(), Some(b'!' | b'^'));
    let inner = &rest[usize::from(negated)..];
    // A `]` that comes first is a member.
    let end = inner.iter().skip(1).position(|byte| *byte == b']')? + 1;
    let (mut members, mut ranges) = (&inner[..end], Vec::new());
    *rest = &inner[end + 1..];
    while let Some((first, after)) = members.split_first() {
        match after {
            [b'-', last, after @ ..] => {
                ranges.push((*first, *last));
                members = after;
            }
            _ => {
                ranges.push((*first, *first));
                members = after;
            }
        }
    }
    Some(Token::OneOf { ranges, negated })
}

/// Goes back to the last `*` only: at most the product of both lengths, whatever the pattern.
fn glob(tokens: &[Token], name: &[u8]) -> bool {
    let (mut token, mut byte, mut last) = (0, 0, None);
    loop {
        let matched = match (tokens.get(token), name.get(byte)) {
            (None, None) => return true,
            (Some(Token::Many), _) => {
                last = Some((token, byte));
                token += 1;
                continue;
            }
            (Some(Token::Byte(wanted)), Some(found)) => wanted == found,
            (Some(Token::Any), Some(_)) => true,
            (Some(Token::OneOf { ranges, negated }), Some(found)) => {
                ranges.iter().any(|(from, to)| (from..=to).contains(&found)) != *negated
            }
            (None, Some(_)) | (Some(_), None) => false,
        };
        if matched {
            (token, byte) = (token + 1, byte + 1);
            continue;
        }
        // The last `*` takes one byte more.
        let Some((star, from)) = last.filter(|(_, from)| *from < name.len()) else { return false };
        last = Some((star, from + 1));
        (token, byte) = (star + 1, from + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_globs_and_parts() {
        for (pattern, name, matches) in [
            (&b"report"[..], &b"Yearly-REPORT.pdf"[..], true),
            (b"*.pdf", b"a.pdf", true),
            (b"*.pdf", b"a.pdf.old", false),
            (b"a*b*c", b"aXXbYYbc", true),
            (b"a?c", b"abc", true),
            (b"a?c", b"ac", false),
            (b"[a-c]x", b"bx", true),
            (b"[!a-c]x", b"bx", false),
            (b"[]x]*", b"]", true),
            (b"caf\xe9*", b"caf\xe9.txt", true),
            (b"caf\xe9", b"caf\xe9.txt", true),
            (b"\\**", b"*a", true),
            (b"\\**", b"ba", false),
            (b"*", b"anything", true),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().matches(name), matches, "{pattern:?}");
        }
        for bad in [&b""[..], b"a/b", b"[a", b"*\\", &[b'a'; 256]] {
            assert!(Pattern::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn no_pattern_takes_long() {
        let pattern = [&b"*a".repeat(100)[..], b"b"].concat();
        assert!(!Pattern::new(&pattern).unwrap().matches(&[b'a'; 255]));
    }
}
