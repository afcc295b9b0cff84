//! The progress of a restore, its result, and the reasons why it ended early.

use crate::fs::FsError;
use crate::types::{Class, Classify, plural};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Most objects that could not be restored whose names are reported …
const FAILED_SHOWN: usize = 20;
/// … with this many characters of the errors.
const FAILED_CHARS: usize = 300;

/// The progress of a restore.
#[derive(Debug, Default)]
pub struct Progress {
    objects: AtomicU64,
    bytes: AtomicU64,
    stopped: AtomicBool,
}

/// The result of a restore: objects, and the bytes that the files hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Restored {
    pub objects: u64,
    pub bytes: u64,
}

impl Progress {
    pub fn now(&self) -> Restored {
        Restored {
            objects: self.objects.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    /// Asks the restore to stop: it does after the object that it is at, or within a large file,
    /// which then is as it was.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, bytes: u64) {
        self.objects.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The reason why a restore ended early; objects before it are restored.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("{path} is not in the snapshot")]
    Missing { path: String },
    #[error("the folder {path} does not exist: make it, or restore to another path")]
    NoFolder { path: String },
    #[error("{path}: {why}")]
    InTheWay { path: String, why: &'static str },
    #[error("{path}: {source}")]
    Fs {
        path: String,
        #[source]
        source: FsError,
    },
    /// The restore was asked to stop: all that it restored is durable, and everything else is as
    /// it was.
    #[error("stopped after {}; run it again to restore the rest", plural(done.objects, "object"))]
    Stopped { done: Restored },
    /// The rest of the tree is restored.
    #[error("restored {}, and not {failed}:\n  {shown}", plural(done.objects, "object"))]
    Incomplete { done: Restored, failed: u64, shown: String, class: Class },
}

impl Classify for RestoreError {
    fn class(&self) -> Class {
        match self {
            Self::Missing { .. } | Self::NoFolder { .. } => Class::NotFound,
            Self::InTheWay { .. } => Class::Exists,
            Self::Fs { source, .. } => source.class(),
            Self::Stopped { .. } => Class::Unavailable,
            Self::Incomplete { class, .. } => *class,
        }
    }
}

impl RestoreError {
    /// Returns whether the next object would fail in the same way.
    pub(super) fn ends_all(&self) -> bool {
        matches!(self.class(), Class::Unavailable | Class::Fenced | Class::Internal)
    }
}

/// The reason why one object was not placed.
pub(super) enum Unplaced {
    /// The restore was asked to stop.
    Stopped,
    Fs(FsError),
}

impl From<FsError> for Unplaced {
    fn from(error: FsError) -> Self {
        Self::Fs(error)
    }
}

/// The objects that were left out.
#[derive(Default)]
pub(super) struct LeftOut {
    count: u64,
    shown: Vec<String>,
    class: Option<Class>,
}

impl LeftOut {
    pub fn add(&mut self, error: &RestoreError) {
        self.count += 1;
        // Damage is reported before anything else.
        if self.class.is_none() || error.class() == Class::Corrupt {
            self.class = Some(error.class());
        }
        if self.shown.len() < FAILED_SHOWN {
            let text = error.to_string();
            let skipped = text.chars().count().saturating_sub(FAILED_CHARS);
            let end: String = text.chars().skip(skipped).collect();
            self.shown.push(if skipped > 0 { format!("…{end}") } else { end });
        }
    }

    pub fn end(mut self, done: Restored) -> Result<Restored, RestoreError> {
        let Some(class) = self.class else { return Ok(done) };
        let more = self.count - self.shown.len() as u64;
        if more > 0 {
            self.shown.push(format!("and {more} more"));
        }
        Err(RestoreError::Incomplete {
            done,
            failed: self.count,
            shown: self.shown.join("\n  "),
            class,
        })
    }
}
