//! The names of snapshots that `check` makes, which the command line gives to no other snapshot.

use crate::types::SnapshotName;

/// The prefix of a reserved name, before 16 digits.
const PREFIX: &str = "check-";

/// A new reserved name.
pub fn random() -> String {
    format!("{PREFIX}{:016x}", rand::random::<u64>())
}

/// Returns whether the name is reserved for the snapshots of `check`.
pub fn is_reserved(name: &SnapshotName) -> bool {
    let digits = name.as_str().strip_prefix(PREFIX);
    digits.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}
