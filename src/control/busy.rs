//! One call at a time for one object, in this process.

use super::ControlError;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;

/// The objects that a call is running for.
#[derive(Clone, Default)]
pub(super) struct Busy {
    names: Arc<Mutex<HashSet<String>>>,
}

/// A running call; its object is free again when this is dropped.
pub(super) struct Call {
    busy: Busy,
    name: String,
}

impl Busy {
    /// # Errors
    /// [`ControlError::InProgress`] while another call for the object runs: CSI wants `ABORTED`, not a queue.
    pub(super) fn enter(&self, name: String) -> Result<Call, ControlError> {
        if self.names.lock().insert(name.clone()) {
            Ok(Call { busy: self.clone(), name })
        } else {
            Err(ControlError::InProgress { what: name })
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.busy.names.lock().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_call_is_refused_until_the_first_ends() {
        let busy = Busy::default();
        let first = busy.enter("volume a".into()).ok().unwrap();
        assert!(matches!(busy.enter("volume a".into()), Err(ControlError::InProgress { .. })));
        assert!(busy.enter("volume b".into()).is_ok());
        drop(first);
        assert!(busy.enter("volume a".into()).is_ok());
    }
}
