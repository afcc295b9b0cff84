//! Runtimes and threads that tests run in, and how much they do.

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The stack of the program's own threads: unoptimised futures of the database are large.
const STACK_BYTES: usize = 8 << 20;

/// A number from the environment.
pub fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// How many times as much is done as by default.
pub fn size() -> u64 {
    setting("ZEROFS_TEST_SIZE").unwrap_or(1)
}

/// Runs a test as the program runs.
pub fn run(test: impl Future<Output = ()> + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .thread_stack_size(STACK_BYTES)
        .build()
        .unwrap();
    let done = runtime.spawn(test);
    runtime.block_on(done).unwrap();
}

/// A runtime whose clock goes on by itself while everybody waits.
pub fn paused_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// As [`run`], in a [`paused_runtime`].
pub fn paused<T: Future<Output = ()>>(test: impl FnOnce() -> T + Send) {
    std::thread::scope(|threads| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let run = || paused_runtime().block_on(Box::pin(test()));
        thread.spawn_scoped(threads, run).unwrap();
    });
}

/// The result of `work`; a panic is what was wrong.
pub fn caught<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let text = |panic: Box<dyn std::any::Any + Send>| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic
            .downcast::<&str>()
            .map_or_else(|_| "a panic".to_owned(), |text| (*text).to_owned()),
    };
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(text(panic)))
}

/// Does `work` for each case, a few at a time, each on a stack as processes have it. Answers what
/// was wrong, panics included.
pub fn concurrently<T: Sync>(
    cases: &[T],
    work: impl Fn(&T) -> Result<(), String> + Sync,
) -> Vec<String> {
    /// The machine's cores are shared with other tests.
    const CONCURRENCY: usize = 2;
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|threads| {
        for worker in 0..CONCURRENCY {
            let worker = std::thread::Builder::new()
                .name(format!("worker {worker}"))
                .stack_size(2 * STACK_BYTES);
            let work = || {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(what) = caught(|| work(case)) {
                        wrong.lock().unwrap().push(what);
                    }
                }
            };
            worker.spawn_scoped(threads, work).unwrap();
        }
    });
    wrong.into_inner().unwrap()
}
