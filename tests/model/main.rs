//! Random histories of the file system by root and users against a plain reference, compared after
//! every step, with reopenings, deaths, snapshots and clones among them. `MODEL_SEED` repeats one
//! history; `MODEL_HISTORIES` and `MODEL_STEPS` set how much is done.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod directed;
mod harness;
mod ops;
mod outage;
mod reference;
#[path = "../support/volume.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod volume;

use harness::Harness;
use rand::SeedableRng;
use rand::rngs::StdRng;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

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
    let steps = setting("MODEL_STEPS", 300);
    match std::env::var("MODEL_SEED") {
        Ok(_) => history(setting("MODEL_SEED", 0), steps),
        Err(_) => {
            let first: u64 = rand::random::<u64>() >> 16;
            (0..setting("MODEL_HISTORIES", 4)).for_each(|n| history(first + n, steps));
        }
    }
}
