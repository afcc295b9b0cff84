//! Blocking system calls on threads of their own, each with a time limit.
//!
//! Not the runtime's blocking pool: a call into a dead server may never return; such calls would
//! fill the pool and block the exit of the process.

use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};

/// Most calls in the kernel at once, including abandoned ones.
const CALLS_MAX: usize = 128;

static CALLS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(CALLS_MAX)));

/// The call did not return in time, or could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Late;

/// Runs `call`, and abandons it after `limit`. If it returns after all, `undo` gets its result.
pub(super) async fn run<T: Send + 'static>(
    limit: Duration,
    call: impl FnOnce() -> T + Send + 'static,
    undo: impl FnOnce(T) + Send + 'static,
) -> Result<T, Late> {
    let work = async {
        let permit = CALLS.clone().acquire_owned().await.map_err(|_| Late)?;
        let (answer, result) = oneshot::channel();
        let body = move || {
            let unwanted = answer.send(call());
            if let Err(result) = unwanted {
                undo(result);
            }
            drop(permit);
        };
        std::thread::Builder::new()
            .name("kernel-call".into())
            .stack_size(256 << 10)
            .spawn(body)
            .map_err(|_| Late)?;
        result.await.map_err(|_| Late)
    };
    tokio::time::timeout(limit, work).await.unwrap_or(Err(Late))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_call_in_time_answers() {
        assert_eq!(run(Duration::from_secs(10), || 7, drop).await, Ok(7));
    }

    #[tokio::test]
    async fn a_late_call_is_given_up_and_undone_when_it_ends() {
        let (release, held) = mpsc::channel::<()>();
        let (undone, seen) = mpsc::channel();
        let call = move || held.recv().is_ok();
        let answer =
            run(Duration::from_millis(20), call, move |result| undone.send(result).unwrap()).await;
        assert_eq!(answer, Err(Late));
        release.send(()).unwrap();
        assert!(seen.recv_timeout(Duration::from_secs(10)).unwrap());
    }
}
