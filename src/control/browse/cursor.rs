//! Positions in the listing of a folder.

use super::refused;
use crate::control::ControlError;
use crate::fs::api::DirCookie;
use crate::fs::key::{self, NameHash};
use crate::types::{Class, InodeNo};
use std::fmt;
use std::str::FromStr;

/// The place where a listing goes on. Opaque to callers: its text may change with any version.
/// Valid in every state of the folder, also after entries were added or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    folder: InodeNo,
    after: DirCookie,
}

impl Cursor {
    pub(super) fn new(folder: InodeNo, (hash, n): (NameHash, u16)) -> Self {
        Self { folder, after: key::cookie(hash, n) }
    }

    /// The position in that folder where the listing goes on.
    pub(super) fn position(self, folder: InodeNo) -> Result<(NameHash, u16), ControlError> {
        let position = key::position_after(self.after).filter(|_| self.folder == folder);
        position.ok_or_else(|| foreign(&self.to_string()))
    }
}

fn foreign(text: &str) -> ControlError {
    let text: String = text.chars().take(64).collect();
    let why = format!("cursor {text:?} is not one of this folder: start over without a cursor");
    refused(Class::Invalid, why)
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.folder.0, self.after.0)
    }
}

impl FromStr for Cursor {
    type Err = ControlError;
    fn from_str(text: &str) -> Result<Self, ControlError> {
        let number = |digits: &str| u64::from_str_radix(digits, 16).ok();
        let parsed = text.split_once('-').and_then(|(a, b)| Some((number(a)?, number(b)?)));
        let (folder, after) = parsed.ok_or_else(|| foreign(text))?;
        Ok(Self { folder: InodeNo(folder), after: DirCookie(after) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_belongs_to_one_folder() {
        let cursor = Cursor::new(InodeNo(7), key::FIRST);
        let parsed: Cursor = cursor.to_string().parse().unwrap();
        assert_eq!(parsed, cursor);
        assert!(parsed.position(InodeNo(7)).unwrap() > key::FIRST);
        assert!(parsed.position(InodeNo(8)).is_err());
        for bad in ["", "7", "-", "x-1", "7-", "7-ffffffffffffffff"] {
            let position = bad.parse::<Cursor>().and_then(|cursor| cursor.position(InodeNo(7)));
            assert!(position.is_err(), "{bad}");
        }
    }
}
