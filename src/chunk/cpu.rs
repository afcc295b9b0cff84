//! CPU work of this floor: off the threads that serve connections, at most one job per core for the
//! whole process.

use std::sync::LazyLock;
use tokio::sync::Semaphore;

static CORES: LazyLock<Semaphore> = LazyLock::new(|| {
    Semaphore::new(std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
});

/// Work on fewer bytes than this is done on the caller's thread: handing it over and being woken
/// again costs more CPU than the work (verifying a record of 64 KiB: 20 µs; half of a random read's
/// CPU time went into the hand-over).
pub(super) const INLINE_BYTES: usize = 128 << 10;

/// Runs `job`, which works on about `bytes` bytes. `None`: the job was cut off because the runtime
/// is shutting down.
pub(super) async fn run<T: Send + 'static>(
    bytes: usize,
    job: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    if bytes < INLINE_BYTES {
        return Some(job());
    }
    let _core = CORES.acquire().await.ok()?;
    match tokio::task::spawn_blocking(job).await {
        Ok(done) => Some(done),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => None,
    }
}
