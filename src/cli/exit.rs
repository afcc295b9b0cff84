//! Errors as exit codes and text.

use crate::admin::ClientError;
use crate::admin::auth::TokenFileError;
use crate::admin::auth::tls::TlsError;
use crate::app::config::ConfigError;
use crate::bucket::BucketError;
use crate::catalog::CatalogError;
use crate::control::ControlError;
use crate::fs::FsError;
use crate::types::{Class, Classify, with_causes};
use crate::volume::VolumeError;
use std::process::ExitCode;

/// Wrong arguments.
pub const USAGE: u8 = 2;

/// The exit code of a class.
pub fn code(class: Class) -> u8 {
    match class {
        Class::Invalid | Class::OutOfRange => USAGE,
        Class::NotFound => 10,
        Class::Exists => 11,
        Class::InProgress => 12,
        Class::Precondition => 13,
        Class::Exhausted => 14,
        Class::Denied => 15,
        Class::Unavailable => 16,
        Class::Fenced => 17,
        Class::Corrupt => 18,
        Class::Unsupported => 19,
        Class::Internal => 1,
    }
}

/// An error of the command line itself.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Wrong {
    pub class: Class,
    pub message: String,
}

impl Wrong {
    #[expect(clippy::new_ret_no_self, reason = "it is only ever returned as an error")]
    pub fn new(class: Class, message: impl Into<String>) -> anyhow::Error {
        Self { class, message: message.into() }.into()
    }
}

/// A signal ended the command before it was complete.
#[derive(Debug, Clone, thiserror::Error)]
#[error("stopped by a signal: {0}")]
pub struct Interrupted(&'static str);

/// The exit status that shells report for a program that SIGINT ended.
const INTERRUPTED: u8 = 130;

impl Interrupted {
    #[expect(clippy::new_ret_no_self, reason = "it is only ever returned as an error")]
    pub fn new(next: &'static str) -> anyhow::Error {
        Self(next).into()
    }
}

fn code_of(error: &anyhow::Error) -> u8 {
    match error.is::<Interrupted>() {
        true => INTERRUPTED,
        false => code(class_of(error)),
    }
}

pub fn class_of(error: &anyhow::Error) -> Class {
    error.chain().find_map(class_of_one).unwrap_or(Class::Internal)
}

fn class_of_one(error: &(dyn std::error::Error + 'static)) -> Option<Class> {
    fn of<E: Classify + std::error::Error + 'static>(
        error: &(dyn std::error::Error + 'static),
    ) -> Option<Class> {
        error.downcast_ref::<E>().map(Classify::class)
    }
    let ours = of::<ControlError>(error)
        .or_else(|| of::<VolumeError>(error))
        .or_else(|| of::<CatalogError>(error));
    let ours = ours.or_else(|| of::<FsError>(error)).or_else(|| of::<BucketError>(error));
    ours.or_else(|| of::<ClientError>(error))
        .or_else(|| error.downcast_ref::<Wrong>().map(|wrong| wrong.class))
        .or_else(|| error.downcast_ref::<ConfigError>().map(|_| Class::Invalid))
        .or_else(|| error.downcast_ref::<TokenFileError>().map(|_| Class::Invalid))
        .or_else(|| error.downcast_ref::<TlsError>().map(|_| Class::Invalid))
        .or_else(|| error.downcast_ref().map(class_of_io))
}

/// The class of an error on a file or address that the command line names.
fn class_of_io(error: &std::io::Error) -> Class {
    use std::io::ErrorKind as Kind;
    match error.kind() {
        Kind::NotFound => Class::NotFound,
        Kind::InvalidInput | Kind::InvalidData | Kind::IsADirectory | Kind::NotADirectory => {
            Class::Invalid
        }
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem => Class::Denied,
        Kind::AddrInUse | Kind::ResourceBusy => Class::Precondition,
        Kind::StorageFull | Kind::QuotaExceeded => Class::Exhausted,
        _ => Class::Internal,
    }
}

/// Prints the error with its causes, none of them twice, and returns its code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {}", with_causes(error.as_ref()));
    ExitCode::from(code_of(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_innermost_class_we_know_decides() {
        let missing = ControlError::NotFound { what: "volume x".into() };
        let error = Err::<(), _>(missing).context("deleting").unwrap_err();
        assert_eq!(class_of(&error), Class::NotFound);
        assert_eq!(code(class_of(&anyhow::anyhow!("?"))), 1);
        let taken = Err::<(), _>(std::io::Error::from(std::io::ErrorKind::AddrInUse))
            .context("listening")
            .unwrap_err();
        assert_eq!(code(class_of(&taken)), 13);
        assert_eq!(code_of(&Interrupted::new("repeat").context("checking")), 130);
        assert_eq!(class_of(&Wrong::new(Class::Denied, "no")), Class::Denied);
    }
}
