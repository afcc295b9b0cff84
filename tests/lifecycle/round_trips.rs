//! The requests of the calls that make, open and close volumes, snapshots and clones, and how many
//! of them follow one another.

use super::World;
use crate::support::fault::{FaultStore, Request};
use crate::support::world::new_volume;
use futures::future::BoxFuture;
use object_store::path::Path;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::control::browse::{Browser, NewSnapshot};
use zerofs_csi::control::{Controller, Source};
use zerofs_csi::types::VolumeHandle;

/// Each request takes this long.
const EACH: Duration = Duration::from_millis(20);

struct Pool {
    store: Arc<FaultStore>,
    bucket: Bucket,
    world: World,
}

impl Pool {
    async fn new() -> Self {
        let store = FaultStore::memory();
        let bucket = Bucket::on(store.clone(), Path::default());
        let world = World::builder("node-a").create(bucket.clone()).await;
        store.latency(EACH);
        Self { store, bucket, world }
    }

    /// A volume with some content that was closed cleanly.
    async fn written(&self, name: &str) -> VolumeHandle {
        let volume = self.world.volume(name).await;
        for file in ["one", "two"] {
            self.world.write(volume, file, &super::noise(1, 300_000)).await;
        }
        volume
    }

    /// The number of requests of a call. Prints them, and how many begin only when the one before
    /// has its answer.
    async fn cost<T>(&self, what: &str, call: BoxFuture<'_, T>) -> (T, usize) {
        // The tasks of earlier calls end: an opened database looks at its manifest by itself.
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.store.clear_log();
        let began = Instant::now();
        let done = call.await;
        let took = began.elapsed();
        let trace = self.store.trace();
        let (mut rounds, mut last) = (0, None);
        let mut lines = String::new();
        for Request { op, key, began } in &trace {
            if last.is_none_or(|last| *began >= last + EACH) {
                (rounds, last) = (rounds + 1, Some(*began));
            }
            writeln!(lines, "  {rounds:3} {op:?} {key}").unwrap();
        }
        println!("{what}: {} requests, {rounds} rounds, {took:?}\n{lines}", trace.len());
        (done, trace.len())
    }

    /// A command's own process.
    async fn command(&self) -> Command {
        let world = World::builder("command").open(self.bucket.clone()).await;
        let browser = Browser::new(world.pool(), &world.volumes);
        Command { browser, controller: world.controller }
    }
}

struct Command {
    browser: Browser,
    controller: Arc<Controller>,
}

impl Command {
    /// As `dataset snapshot DATASET NAME`.
    async fn snapshot(&self, dataset: &str, name: &str) {
        self.browser
            .make_snapshot(&self.controller, dataset, name, NewSnapshot::ReadOnly)
            .await
            .unwrap();
    }

    /// As `dataset clone DATASET@SNAPSHOT NAME`.
    async fn clone_snapshot(&self, source: &str, name: &str) {
        let new = new_volume(name, None);
        let made = self.browser.make_dataset(&self.controller, new, Some(source)).await.unwrap();
        assert_eq!(made.origin.as_deref(), Some(source));
    }
}

#[test]
fn the_calls_that_somebody_waits_for_take_few_requests() {
    super::run(async {
        let pool = Pool::new().await;
        let world = &pool.world;
        let volume = pool.written("v").await;
        let most = |what: &str, made: usize, at_most: usize| {
            assert!(made <= at_most, "{what}: {made} requests, {at_most} at most");
        };
        for name in ["s1", "s2"] {
            let what = format!("dataset snapshot v {name}");
            let call = async { pool.command().await.snapshot("v", name).await };
            most(&what, pool.cost(&what, Box::pin(call)).await.1, 18);
        }
        let call = async { pool.command().await.clone_snapshot("v@s1", "c").await };
        let what = "dataset clone v@s1 c";
        most(what, pool.cost(what, Box::pin(call)).await.1, 25);

        let call = async { world.volume("new").await };
        let (new, made) = pool.cost("CreateVolume", Box::pin(call)).await;
        most("CreateVolume", made, 3);
        let cut = |name: &'static str| {
            let made = world.controller.create_csi_snapshot(volume, name.parse().unwrap());
            Box::pin(async move { made.await.unwrap().handle })
        };
        let (cut1, made) = pool.cost("CreateSnapshot, released", cut("cut1")).await;
        most("CreateSnapshot, released", made, 18);
        let call = async { world.create("c1", Some(Source::Snapshot(cut1))).await.unwrap() };
        let what = "CreateVolume from a snapshot";
        let (clone, made) = pool.cost(what, Box::pin(call)).await;
        most(what, made, 18);

        for (name, of) in [("v", volume), ("c1", clone.handle), ("new", new)] {
            let what = format!("NodeStageVolume {name}");
            let (open, made) = pool.cost(&what, Box::pin(world.open(of))).await;
            most(&what, made, 21);
            if name == "v" {
                let (_, made) = pool.cost("CreateSnapshot, open here", cut("cut2")).await;
                most("CreateSnapshot, open here", made, 16);
            }
            drop(open);
            let what = format!("NodeUnstageVolume {name}");
            let close = async { world.volumes.close(of.dataset).await.unwrap() };
            most(&what, pool.cost(&what, Box::pin(close)).await.1, 14);
        }
    });
}
