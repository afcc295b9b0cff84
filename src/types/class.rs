//! Error classes: what the caller of a failed operation should do about it.

use serde::{Deserialize, Serialize};

/// The class of an error: each edge maps classes to its protocol once, in one exhaustive match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// The request itself is wrong; a retry cannot help.
    Invalid,
    /// The object named does not exist.
    NotFound,
    /// An object of that name exists and differs from what was asked for.
    Exists,
    /// Another operation on the same object is running; retry later.
    InProgress,
    /// The object is in a state that forbids the operation until something else is done.
    Precondition,
    /// A number lies outside what is supported.
    OutOfRange,
    /// A quota or a limit is used up.
    Exhausted,
    /// The caller may not do this.
    Denied,
    /// A service that is needed does not answer; retry later.
    Unavailable,
    /// Another owner has taken over; this instance must never acknowledge again.
    Fenced,
    /// Stored bytes are not what was written.
    Corrupt,
    /// Not supported, now or ever.
    Unsupported,
    /// A defect of this program.
    Internal,
}

/// The text of an error and of its causes, none of them twice: many an error shows its source.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

impl Class {
    /// Returns whether the same operation can succeed later, by itself or after an administrator's
    /// repair outside the program: the store is unreachable, credentials are being changed, the
    /// node's disk is full.
    pub const fn may_pass(self) -> bool {
        match self {
            Self::Unavailable
            | Self::InProgress
            | Self::Exhausted
            | Self::Denied
            | Self::Internal => true,
            Self::Invalid
            | Self::NotFound
            | Self::Exists
            | Self::Precondition
            | Self::OutOfRange
            | Self::Fenced
            | Self::Corrupt
            | Self::Unsupported => false,
        }
    }
}

/// Implemented by every error of every layer: what the caller should do about it.
pub trait Classify {
    fn class(&self) -> Class;
}
