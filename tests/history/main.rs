//! Random histories of a whole pool against a model: several datasets of one family or of none are
//! written, cut, cloned, deleted and made again under the same names, while collectors run and
//! processes die at random points. In the end everything is deleted, and nothing of any data is
//! left.
//!
//! - `model`: what must be there.
//! - `ops`: what can happen, drawn from a seed.
//! - `world`: the pool, the processes that work on it, and their deaths.
//! - `play`: one history; `work`: its operations, one by one.
//! - `scene`: what directed histories share.
//! - `deleting`, `chains`, `steps`, `slow`, `directed`, `rewritten`, `seen`: histories that chance
//!   would not find.
//!
//! `HISTORY_SEED` repeats one history; `HISTORIES` and `HISTORY_STEPS` set how much is done,
//! otherwise `ZEROFS_TEST_SIZE` multiplies it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod chains;
mod deleting;
mod directed;
mod model;
mod ops;
mod paused;
mod play;
mod rewritten;
mod scene;
mod seen;
mod slow;
mod steps;
#[path = "../support/mod.rs"]
mod support;
mod work;
mod world;

use std::sync::Mutex;
use support::run::{caught, concurrently, setting, size};

const HISTORIES: u64 = 36;
const STEPS: u64 = 60;
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
        let tally = caught(|| play::play(*seed, steps));
        let tally = tally.map_err(|what| format!("HISTORY_SEED={seed}: {what}"))?;
        total.lock().unwrap().add(&tally);
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
