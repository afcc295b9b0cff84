//! Random crash points: clients work on a dataset that goes from process to process, over a store
//! that dies, loses answers, delays and reorders, and each process ends at a random request, a
//! random durable step, or when another node takes the dataset away. After each death what is there
//! is held against what the clients were told, by the table in docs/durability.md.
//!
//! - `history`: what a client did and was told, and from it what may be there.
//! - `compare`: what is there, and the judgement.
//! - `work`: the clients.
//! - `life`: the processes and their deaths.
//!
//! `CRASH_SEED` repeats one history; `CRASH_HISTORIES` sets how many there are, otherwise
//! `ZEROFS_TEST_SIZE` multiplies them.

mod compare;
mod history;
mod life;
mod work;

use crate::support::run::{caught, concurrently, setting, size};
use life::{Lies, Over, World};
use std::sync::Mutex;
use zerofs_csi::fs::SyncMode;

/// Processes that a dataset goes through.
const PROCESSES: usize = 20;
/// On a server, where time is real.
const PROCESSES_SERVED: usize = 8;
const HISTORIES: u64 = 60;

/// Deaths, and how often a client was told of a call of another that was being waited for (R15).
#[derive(Clone, Copy, Debug, Default)]
struct Met {
    deaths: usize,
    seen: usize,
}

/// Plays one dataset's history. Answers what it met, or what was wrong.
fn play(seed: u64, lies: Lies, over: Over) -> Result<Met, String> {
    caught(|| {
        let mut world = World::new(seed, lies, over);
        for _ in 0..if over == Over::Server { PROCESSES_SERVED } else { PROCESSES } {
            world.process()?;
        }
        world.finish().map(|()| Met { deaths: world.deaths, seen: world.seen() })
    })
}

/// Plays many histories, a few at a time. Answers what they met, and what was wrong.
fn play_all(seeds: &[u64], lies: Lies, over: Over) -> (Met, Vec<String>) {
    let all = Mutex::new(Met::default());
    let wrong = concurrently(seeds, |seed| {
        let met = play(*seed, lies, over).map_err(|what| format!("CRASH_SEED={seed}: {what}"))?;
        let mut all = all.lock().unwrap();
        *all = Met { deaths: all.deaths + met.deaths, seen: all.seen + met.seen };
        Ok(())
    });
    (all.into_inner().unwrap(), wrong)
}

#[test]
fn random_deaths_lose_nothing_that_was_promised() {
    let first = setting("CRASH_SEED").unwrap_or_else(|| rand::random::<u64>() >> 16);
    let histories = match setting("CRASH_SEED") {
        Some(_) => 1,
        None => setting("CRASH_HISTORIES").unwrap_or(HISTORIES * size()),
    };
    let seeds: Vec<u64> = (first..first + histories).collect();
    println!("seeds {first} to {}", first + histories - 1);
    let (Met { deaths, seen }, wrong) = play_all(&seeds, Lies::default(), Over::Memory);
    println!("{deaths} deaths; {seen} calls were seen done while they were waited for");
    println!("{}", wrong.join("\n\n"));
    assert!(wrong.is_empty(), "{} of {histories} histories", wrong.len());
    assert!(histories < HISTORIES || deaths >= 1000, "{deaths} deaths");
    assert!(histories < HISTORIES || seen > 0, "nobody looks while others wait");
}

/// The same over HTTP, where conflicts are in progress and connections are cut, below processes
/// that die.
#[test]
fn random_deaths_on_an_s3_server_lose_nothing_that_was_promised() {
    let first = setting("CRASH_SEED").unwrap_or_else(|| rand::random::<u64>() >> 16);
    let histories = setting("CRASH_SEED").map_or(4 * size(), |_| 1);
    let seeds: Vec<u64> = (first..first + histories).collect();
    println!("seeds {first} to {}", first + histories - 1);
    let (Met { deaths, .. }, wrong) = play_all(&seeds, Lies::default(), Over::Server);
    println!("{deaths} deaths");
    println!("{}", wrong.join("\n\n"));
    assert!(wrong.is_empty() && deaths > 0, "{} of {histories} histories", wrong.len());
}

/// The oracle finds what it is there to find: of histories over a liar, one at least is called
/// wrong, for what is missing.
fn is_caught(lies: Lies) {
    let caught = (0..40).any(|seed| {
        play(seed, lies, Over::Memory)
            .is_err_and(|what| what.contains("is of no state since change"))
    });
    assert!(caught, "{lies:?} goes unnoticed");
}

#[test]
fn a_store_that_answers_before_it_has_the_bytes_is_caught() {
    is_caught(Lies { puts: 20, sync: None });
}

#[test]
fn a_dataset_that_answers_before_the_store_does_is_caught() {
    is_caught(Lies { puts: 0, sync: Some(SyncMode::Disabled) });
}
