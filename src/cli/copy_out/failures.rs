//! The failures of a restore: which end it, and which leave out one object.

use crate::admin::ClientError;
use crate::cli::exit::{Interrupted, Wrong, class_of};
use crate::fs::FsError;
use crate::types::{Class, Classify};
use std::io::{self, ErrorKind};
use tokio_util::sync::CancellationToken;

/// The objects that could not be restored.
#[derive(Default)]
pub(super) struct Failures {
    pub objects: u64,
    /// Objects that were restored without their mode or times.
    pub in_part: u64,
    pub class: Option<Class>,
}

impl Failures {
    pub fn add(&mut self, class: Class) {
        // Damage outranks every other class.
        if self.class.is_none() || class == Class::Corrupt {
            self.class = Some(class);
        }
    }
}

pub(super) fn interrupted() -> anyhow::Error {
    Interrupted::new(
        "every file restored so far is complete; run it again with --force for the rest",
    )
}

/// Waits for a read, unless the command is to stop.
pub(super) async fn unless<T>(
    stop: &CancellationToken,
    read: impl Future<Output = T>,
) -> anyhow::Result<T> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(interrupted()),
        read = read => Ok(read),
    }
}

/// Returns whether the cause would keep all other objects from being restored too: the store, a
/// full disk, a signal.
pub(super) fn ends_all(error: &anyhow::Error) -> bool {
    if error.is::<Wrong>() {
        return class_of(error) != Class::Exists;
    }
    for cause in error.chain() {
        if let Some(error) = cause.downcast_ref::<FsError>() {
            return error.class() != Class::Corrupt;
        }
        if let Some(error) = cause.downcast_ref::<ClientError>() {
            return error.class() != Class::Corrupt;
        }
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return matches!(
                error.kind(),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem
            );
        }
    }
    true
}

pub(super) const THERE: &str =
    "already exists: choose another path, or use --force to replace files";

pub(super) fn in_the_way(target: &str, why: &str) -> anyhow::Error {
    Wrong::new(Class::Exists, format!("{target}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn one_bad_object_ends_nothing_and_a_full_disk_does() {
        let io = |kind| Err::<(), _>(io::Error::from(kind)).context("making x").unwrap_err();
        for (error, ends) in [
            (io(ErrorKind::PermissionDenied), false),
            (io(ErrorKind::InvalidInput), false),
            (io(ErrorKind::StorageFull), true),
            (FsError::Corrupt(String::new()).into(), false),
            (FsError::Unavailable(String::new()).into(), true),
            (Interrupted::new("x"), true),
            (in_the_way("x", "y"), false),
        ] {
            assert_eq!(ends_all(&error), ends, "{error:#}");
        }
    }
}
