//! From errors to gRPC: the one place where classes become codes.

use crate::types::{Class, Classify, with_causes};
use std::error::Error;
use tonic::{Code, Status};

/// gRPC carries messages in a header: long ones are cut.
const MESSAGE_BYTES_MAX: usize = 2000;

pub fn code(class: Class) -> Code {
    match class {
        Class::Invalid => Code::InvalidArgument,
        Class::NotFound => Code::NotFound,
        Class::Exists => Code::AlreadyExists,
        Class::InProgress | Class::Fenced => Code::Aborted,
        Class::Precondition => Code::FailedPrecondition,
        Class::OutOfRange => Code::OutOfRange,
        Class::Exhausted => Code::ResourceExhausted,
        Class::Denied => Code::PermissionDenied,
        Class::Unavailable => Code::Unavailable,
        Class::Corrupt => Code::DataLoss,
        Class::Unsupported => Code::Unimplemented,
        Class::Internal => Code::Internal,
    }
}

/// The class of a code that another process has answered with. A deadline that has passed may be
/// kept by a retry; who is not known may do nothing.
pub fn class(code: Code) -> Class {
    match code {
        Code::InvalidArgument => Class::Invalid,
        Code::NotFound => Class::NotFound,
        Code::AlreadyExists => Class::Exists,
        Code::Aborted => Class::InProgress,
        Code::FailedPrecondition => Class::Precondition,
        Code::OutOfRange => Class::OutOfRange,
        Code::ResourceExhausted => Class::Exhausted,
        Code::PermissionDenied | Code::Unauthenticated => Class::Denied,
        Code::Unavailable | Code::DeadlineExceeded => Class::Unavailable,
        Code::DataLoss => Class::Corrupt,
        Code::Unimplemented => Class::Unsupported,
        Code::Ok | Code::Cancelled | Code::Unknown | Code::Internal => Class::Internal,
    }
}

/// The status of an error, with the texts of its causes.
pub fn status<E: Classify + Error>(error: &E) -> Status {
    let mut text = with_causes(error);
    if text.len() > MESSAGE_BYTES_MAX {
        let end = (0..=MESSAGE_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    Status::new(code(error.class()), text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NameError;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Wrong(String, #[source] NameError);

    impl Classify for Wrong {
        fn class(&self) -> Class {
            Class::NotFound
        }
    }

    #[test]
    fn classes_have_the_codes_of_the_specification() {
        assert_eq!(code(Class::InProgress), Code::Aborted);
        assert_eq!(code(Class::Precondition), Code::FailedPrecondition);
        assert_eq!(code(Class::Corrupt), Code::DataLoss);
        let missing = status(&Wrong("volume v".to_owned(), NameError::Empty));
        assert_eq!(missing.code(), Code::NotFound);
        assert_eq!(missing.message(), "volume v: a name must not be empty");
    }

    #[test]
    fn a_class_survives_its_way_through_a_code() {
        for of in [
            Class::Invalid,
            Class::NotFound,
            Class::Exists,
            Class::InProgress,
            Class::Precondition,
            Class::OutOfRange,
            Class::Exhausted,
            Class::Denied,
            Class::Unavailable,
            Class::Corrupt,
            Class::Unsupported,
            Class::Internal,
        ] {
            assert_eq!(class(code(of)), of);
        }
        // The caller retries, as after an operation in progress.
        assert_eq!(class(code(Class::Fenced)), Class::InProgress);
    }

    #[test]
    fn messages_are_cut_at_a_character() {
        let long = status(&Wrong("é".repeat(4000), NameError::Empty));
        assert!(long.message().len() <= MESSAGE_BYTES_MAX);
    }
}
