//! Collectors of several processes in one pool.

use super::{Driven, World};
use crate::support::world::until_passed;
use std::sync::Arc;
use std::time::Duration;
use zerofs_csi::bucket::{Bucket, Limits};
use zerofs_csi::catalog::{Catalog, CollectorClaim};
use zerofs_csi::control::{Collected, ExclusiveCollection, Others};
use zerofs_csi::types::SessionId;

async fn alone(world: &World) -> Option<Collected> {
    match world.collector().collect_exclusively().await.unwrap() {
        ExclusiveCollection::Done(done) => Some(done),
        ExclusiveCollection::HeldBy(node) => {
            assert_eq!(node, "controller-1");
            None
        }
    }
}

/// A process with a clock of its own.
fn process(catalog: &Catalog, node: &str) -> (World, Arc<Driven>) {
    let clock = Arc::new(Driven::default());
    (World::builder(node).clock(clock.clone()).on(catalog.clone()), clock)
}

async fn write_claim(catalog: &Catalog, holder: Option<SessionId>) {
    let claim = CollectorClaim { holder, node: "controller-1".to_owned(), lease_millis: 45_000 };
    let at = catalog.collector_claim().await.unwrap();
    catalog.write_collector_claim(at, claim).await.unwrap();
}

#[test]
fn one_process_collects_at_a_time_and_one_that_died_keeps_nobody_from_it() {
    super::run(async {
        let catalog = Catalog::create(Bucket::memory(), None).await.unwrap();
        let (world, clock) = process(&catalog, "controller-2");
        let volume = world.volume("v").await;
        world.write(volume, "file", &[1; 100_000]).await;
        let died = Some(SessionId::random());
        write_claim(&catalog, died).await;
        assert_eq!(alone(&world).await, None);
        clock.advance(Duration::from_secs(44));
        assert_eq!(alone(&world).await, None);
        // The claim is still renewed.
        write_claim(&catalog, died).await;
        clock.advance(Duration::from_secs(44));
        assert_eq!(alone(&world).await, None);
        clock.advance(Duration::from_secs(44));
        assert_eq!(alone(&world).await, None, "its claim has changed 44 seconds ago");
        clock.advance(Duration::from_secs(1));
        assert!(alone(&world).await.is_some(), "a whole lease without a change");
        let claim = catalog.collector_claim().await.unwrap().unwrap().record;
        assert_eq!((claim.holder, claim.node.as_str()), (None, "controller-2"), "given back");
    });
}

#[test]
fn what_needs_no_reading_needs_no_claim() {
    super::run(async {
        let catalog = Catalog::create(Bucket::memory(), None).await.unwrap();
        let (world, _) = process(&catalog, "controller-2");
        let volume = world.volume("v").await;
        world.write(volume, "file", &[1; 100_000]).await;
        assert!(alone(&world).await.is_some());
        write_claim(&catalog, Some(SessionId::random())).await;
        let before = catalog.bucket().requests();
        assert!(alone(&world).await.is_some(), "nothing has changed");
        let made = catalog.bucket().requests() - before;
        assert_eq!((made.get, made.put, made.head, made.delete), (0, 0, 0, 0), "{made:?}");
        world.write(volume, "file", &[2; 100_000]).await;
        assert_eq!(alone(&world).await, None);
    });
}

#[test]
fn whoever_finds_that_another_has_collected_does_not_collect() {
    super::run(async {
        let catalog = Catalog::create(Bucket::memory(), None).await.unwrap();
        let (one, _) = process(&catalog, "controller-1");
        let (two, _) = process(&catalog, "controller-2");
        let volume = one.volume("v").await;
        let another =
            async |world: &World| world.collector().others().await.unwrap() == Others::Collected;
        assert!(!another(&one).await && !another(&two).await, "nobody has");
        one.write(volume, "file", &[1; 100_000]).await;
        assert!(alone(&one).await.is_some());
        assert!(another(&two).await && !another(&one).await);
        assert!(!another(&two).await, "not since");
    });
}

/// The first collects and stands still with its claim held; the second, which is to collect after a
/// deletion, looks at the claim again and again, and at nothing else.
#[test]
fn whoever_waits_for_another_collection_lists_nothing_but_its_claim() {
    super::paused(|| async {
        let catalog = Catalog::create(Bucket::memory(), None).await.unwrap();
        // Another process's bucket: with a count of requests of its own.
        let bucket = catalog.bucket().clone().with_limits(Limits::default());
        let (one, _) = process(&catalog, "controller-1");
        let (two, _) = process(&Catalog::open(bucket.clone(), None).await.unwrap(), "controller-2");
        let volume = one.volume("v").await;
        one.write(volume, "file", &[1; 100_000]).await;
        let failpoints = catalog.bucket().failpoints();
        failpoints.set("collect.marked", "1*pause->off").unwrap();
        let collecting = tokio::spawn(async move { alone(&one).await });
        until_passed(failpoints, "collect.marked", 0).await;
        let before = bucket.requests();
        assert_eq!(
            two.collector().others().await.unwrap(),
            Others::Collecting("controller-1".to_owned())
        );
        let look = bucket.requests() - before;
        println!("a look at the claim: {look:?}");
        assert_eq!((look.list, look.put, look.delete, look.head), (1, 0, 0, 0), "{look:?}");
        assert!(look.get <= 1, "{look:?}");

        let before = bucket.requests();
        let waiting = tokio::spawn(async move {
            two.collector().collect_or_wait(Duration::from_secs(60)).await.unwrap()
        });
        tokio::time::sleep(Duration::from_secs(30)).await;
        let made = bucket.requests() - before;
        println!("waiting for half a minute: {made:?}");
        assert!((10..=20).contains(&made.list), "it looks every two seconds: {made:?}");
        assert!(made.get <= look.get, "a version is read once: {made:?}");
        assert_eq!((made.put, made.delete, made.head), (0, 0, 0), "{made:?}");
        failpoints.set("collect.marked", "off").unwrap();
        assert!(collecting.await.unwrap().is_some());
        waiting.await.unwrap();
    });
}

/// At every step: the next one collects, and nobody is kept from it.
#[test]
fn a_failure_leaves_a_claim_that_its_process_takes_again() {
    super::run(async {
        for step in [
            "collect.claim",
            "collect.claim-released",
            "collect.listed",
            "collect.marked",
            "collect.dataset.dead",
        ] {
            let catalog = Catalog::create(Bucket::memory(), None).await.unwrap();
            let (world, _) = process(&catalog, "controller-1");
            let volume = world.volume("v").await;
            world.write(volume, "file", &[1; 100_000]).await;
            world.controller.delete_volume(volume).await.unwrap();
            catalog.bucket().failpoints().set(step, "1*return").unwrap();
            assert!(world.collector().collect_exclusively().await.is_err(), "{step}");
            assert!(alone(&world).await.is_some(), "{step}");
            assert_eq!(catalog.bucket().list("vol/").await.unwrap(), Vec::new(), "{step}");
            let holder = catalog.collector_claim().await.unwrap().unwrap().record.holder;
            // A claim that could not be released expires; its own process goes on with it.
            let kept = (step == "collect.claim-released").then(|| world.session());
            assert_eq!(holder, kept, "{step}");
        }
    });
}
