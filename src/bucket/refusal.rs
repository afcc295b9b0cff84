//! Remembers why a store refuses puts: an error that another attempt meets again, such as a proxy's
//! limit on bodies.

use super::error::{Meaning, meaning, text};
use parking_lot::Mutex;

/// The last refusal, until a put of the same size or a larger one is taken.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<Option<(u64, String)>>);

impl Refusals {
    /// Notes the result of a put of this many bytes.
    pub fn note<T>(&self, bytes: u64, put: &object_store::Result<T>) {
        use object_store::Error::{NotImplemented, NotSupported};
        let mut last = self.0.lock();
        match put {
            Ok(_) if last.as_ref().is_some_and(|(refused, _)| *refused <= bytes) => *last = None,
            // The client's own error about an attribute; the put is made again without it.
            Err(NotImplemented { .. } | NotSupported { .. }) => {}
            Err(error)
                if matches!(
                    meaning(error),
                    Meaning::Refused | Meaning::Denied | Meaning::Unsupported | Meaning::Missing
                ) =>
            {
                *last = Some((bytes, text(error)));
            }
            _ => {}
        }
    }

    pub fn last(&self) -> Option<String> {
        let last = self.0.lock();
        last.as_ref().map(|(bytes, why)| format!("an object of {bytes} bytes is refused: {why}"))
    }
}
