//! Random histories of the file system by root and users against a plain reference, compared after
//! every step, with reopenings, deaths, snapshots and clones among them. `MODEL_SEED` repeats one
//! history; `MODEL_HISTORIES` and `MODEL_STEPS` set how much is done.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod directed;
mod harness;
mod ops;
mod outage;
mod reference;
#[path = "../support/mod.rs"]
mod support;

use harness::Harness;
use rand::SeedableRng;
use rand::rngs::StdRng;
use support::run::setting;

fn history(seed: u64, steps: u64) {
    println!("history MODEL_SEED={seed} MODEL_STEPS={steps}");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut harness = Harness::new().await;
        for step in 0..steps {
            let (who, op) = harness.generate(&mut rng);
            let limit = std::time::Duration::from_secs(60);
            let done = tokio::time::timeout(limit, harness.step(&who, &op)).await;
            assert!(done.is_ok(), "MODEL_SEED={seed} step {step}: {op:?} hangs");
            if let Err(what) = done.unwrap() {
                panic!("MODEL_SEED={seed} step {step}: {op:?} by user {}: {what}", who.uid);
            }
        }
        Box::pin(harness.finish())
            .await
            .unwrap_or_else(|what| panic!("MODEL_SEED={seed} at the end: {what}"));
    });
}

#[test]
fn random_histories_agree_with_the_reference() {
    let steps = setting("MODEL_STEPS").unwrap_or(300);
    match setting("MODEL_SEED") {
        Some(seed) => history(seed, steps),
        None => {
            let first: u64 = rand::random::<u64>() >> 16;
            let histories = setting("MODEL_HISTORIES").unwrap_or(4);
            (0..histories).for_each(|n| history(first + n, steps));
        }
    }
}
