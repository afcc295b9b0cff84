//! Random histories of a whole pool against a model: several datasets of one family or of none are
//! written, cut, cloned, deleted and made again under the same names, while collectors run and
//! processes die at random points. In the end everything is deleted, and nothing of any data is
//! left.
//!
//! - `model`: what must be there.
//! - `ops`: what can happen, drawn from a seed.
//! - `world`: the pool, the processes that work on it, and their deaths.
//! - `play`: one history; `work`: its operations, one by one.
//! - `deleting`, `chains`, `steps`, `slow`, `directed`, `rewritten`, `seen`: histories that chance
//!   would not find.
//!
//! `HISTORY_SEED` repeats one history; `HISTORIES` and `HISTORY_STEPS` set how much is done,
//! otherwise `ZEROFS_TEST_SIZE` multiplies it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod chains;
mod deleting;
mod directed;
#[path = "../support/fault.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod fault;
mod model;
mod ops;
mod paused;
mod play;
mod rewritten;
mod seen;
#[path = "../support/setup.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod setup;
mod slow;
mod steps;
mod work;
mod world;

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const HISTORIES: u64 = 36;
const STEPS: u64 = 60;
/// The machine's cores are shared with other tests.
const CONCURRENCY: usize = 2;
const STACK_BYTES: usize = 16 << 20;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

fn size() -> u64 {
    setting("ZEROFS_TEST_SIZE").unwrap_or(1)
}

/// Does `work` for each case, a few at a time, each on a stack as processes have it. What was
/// wrong, panics included.
fn concurrently<T: Sync>(
    cases: &[T],
    work: impl Fn(&T) -> Result<(), String> + Sync,
) -> Vec<String> {
    let text = |panic: Box<dyn std::any::Any + Send>| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic
            .downcast::<&str>()
            .map_or_else(|_| "a panic".to_owned(), |text| (*text).to_owned()),
    };
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|threads| {
        for worker in 0..CONCURRENCY {
            let worker = std::thread::Builder::new()
                .name(format!("worker {worker}"))
                .stack_size(STACK_BYTES);
            let work = || {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let done = std::panic::catch_unwind(AssertUnwindSafe(|| work(case)));
                    if let Err(what) = done.unwrap_or_else(|panic| Err(text(panic))) {
                        wrong.lock().unwrap().push(what);
                    }
                }
            };
            worker.spawn_scoped(threads, work).unwrap();
        }
    });
    wrong.into_inner().unwrap()
}

#[test]
fn random_histories_agree_with_the_model_and_leave_nothing() {
    let first = setting("HISTORY_SEED").unwrap_or_else(|| rand::random::<u64>() >> 16);
    let histories = if setting("HISTORY_SEED").is_some() {
        1
    } else {
        setting("HISTORIES").unwrap_or(HISTORIES * size())
    };
    let steps = setting("HISTORY_STEPS").unwrap_or(STEPS);
    let seeds: Vec<u64> = (first..first + histories).collect();
    println!("seeds {first} to {}", first + histories - 1);
    let total = Mutex::new(play::Tally::default());
    let wrong = concurrently(&seeds, |seed| {
        let played = std::panic::catch_unwind(|| play::play(*seed, steps));
        match played {
            Ok(Ok(tally)) => total.lock().unwrap().add(&tally),
            Ok(Err(what)) => return Err(format!("HISTORY_SEED={seed}: {what}")),
            Err(panic) => {
                println!("HISTORY_SEED={seed} panics");
                std::panic::resume_unwind(panic);
            }
        }
        Ok(())
    });
    let total = total.into_inner().unwrap();
    println!("{total:?}");
    assert!(wrong.is_empty(), "{} of {histories} histories:\n{}", wrong.len(), wrong.join("\n\n"));
    assert!(
        histories < HISTORIES || steps < STEPS || total.is_rich(),
        "these histories miss something: {total:?}"
    );
}
