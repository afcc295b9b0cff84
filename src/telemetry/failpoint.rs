//! Named durable steps.
//!
//! Every step after which a crash must leave a state that the next open understands calls
//! [`Failpoints::step`] with its name. Without the `failpoints` feature the call compiles to
//! nothing.

#[cfg(feature = "failpoints")]
use parking_lot::Mutex;
#[cfg(feature = "failpoints")]
use std::collections::BTreeMap;
#[cfg(feature = "failpoints")]
use std::sync::Arc;

/// A failure that a test asked for at a named step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failure injected at {step}")]
pub struct Injected {
    pub step: String,
}

/// The failpoints of one pool handle: tests in one process do not disturb each other.
#[derive(Clone, Default)]
pub struct Failpoints {
    #[cfg(feature = "failpoints")]
    registry: Arc<fail_parallel::FailPointRegistry>,
    /// Counts how often each step was passed or failed, so that a test sees that it meets every
    /// step.
    #[cfg(feature = "failpoints")]
    passed: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl Failpoints {
    /// Passes the step called `name`, or fails where a test said so. The actions are those of
    /// `fail_parallel`: `return` fails the step, `sleep(ms)` delays it, `pause` holds it until the
    /// action is changed, `1*off->return` fails the second time.
    #[allow(
        unused_variables,
        clippy::unused_async,
        reason = "nothing is left of a step without the feature"
    )]
    pub async fn step(&self, name: &str) -> Result<(), Injected> {
        #[cfg(feature = "failpoints")]
        {
            let mut passed = self.passed.lock();
            match passed.get_mut(name) {
                Some(times) => *times += 1,
                None => drop(passed.insert(name.to_owned(), 1)),
            }
        }
        #[cfg(feature = "failpoints")]
        fail_parallel::fail_point_async!(self.registry.clone(), name, |_| Err(Injected {
            step: name.to_owned()
        }));
        Ok(())
    }

    /// The steps reached so far, and how often.
    #[cfg(feature = "failpoints")]
    pub fn passed(&self) -> BTreeMap<String, u64> {
        self.passed.lock().clone()
    }

    /// Sets what happens at a step.
    ///
    /// # Errors
    /// When `action` is not in the language of `fail_parallel`.
    #[cfg(feature = "failpoints")]
    pub fn set(&self, name: &str, action: &str) -> Result<(), String> {
        fail_parallel::cfg(self.registry.clone(), name, action)
    }
}

impl std::fmt::Debug for Failpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Failpoints")
    }
}
