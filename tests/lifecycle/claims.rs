//! Claims: whoever comes late with an old one fails, and fences nobody (R31, R32, R34).

use super::data;
use crate::leases::{LEASE, Node, Pool, expires, patiently, two_nodes};
use crate::support::files::top;
use crate::support::world::{passed, until_passed};
use std::time::Duration;
use zerofs_csi::catalog::RevocationReason;
use zerofs_csi::control::ReleaseMode;
use zerofs_csi::types::VolumeHandle;
use zerofs_csi::volume::{Verdict, Volume, VolumeError};

const PATIENCE: Duration = Duration::from_secs(60);

async fn has(volume: &Volume, file: &str) -> bool {
    patiently(|| top::child(&*volume.fs, file)).await.is_ok()
}

/// Everything that `node` has acknowledged reaches the store, and it is still the owner.
async fn assert_serves(node: &Node, volume: VolumeHandle, open: &Volume, when: &str) {
    let synced = patiently(|| open.fs.sync()).await;
    synced.unwrap_or_else(|error| panic!("{when}: the owner was fenced: {error}"));
    assert!(node.world.volumes.get(volume.dataset).is_some(), "{when}");
    let owner = node.owner(volume.dataset).await.expect("it has an owner");
    assert_eq!(owner.node, node.world.volumes.settings().node, "{when}");
}

/// One node claims and is held before it has opened the database; its lease expires, and another
/// node takes the dataset and answers from its journal. The first one's opening, when it goes on,
/// fails.
#[test]
fn an_opening_that_comes_after_a_take_over_fences_nobody() {
    super::run(async {
        for step in ["volume.open.claimed", "volume.claim.epoch", "volume.claim.checked"] {
            for opened_before in [false, true] {
                let when = format!("{step}, opened before: {opened_before}");
                let (a, b, volume) = two_nodes().await;
                if opened_before {
                    a.world.write(volume, "old", &data(1, 70_000)).await;
                }
                let failpoints = a.world.failpoints().clone();
                failpoints.set(step, "pause").unwrap();
                let before = passed(&failpoints, step);
                let opening = tokio::spawn({
                    let (volumes, catalog) = (a.world.volumes.clone(), a.world.catalog.clone());
                    async move { volumes.open(&catalog, volume.dataset).await.map(drop) }
                });
                until_passed(&failpoints, step, before).await;
                let mut watch = b.watch(volume.dataset).await;
                let expired = expires(&mut watch, [&a, &b]).await;
                let theirs = b.take(volume.dataset, &expired).await.unwrap();
                top::create(&*theirs.fs, "from the journal").await;

                failpoints.set(step, "off").unwrap();
                let late = tokio::time::timeout(PATIENCE, opening).await.expect("it ends").unwrap();
                assert!(late.is_err(), "{when}: the late opening succeeded");
                assert_serves(&b, volume, &theirs, &when).await;
                assert!(a.world.volumes.get(volume.dataset).is_none(), "{when}");
                b.world.close(theirs).await;
                let again = b.open(volume).await;
                assert!(has(&again, "from the journal").await, "{when}");
            }
        }
    });
}

/// Both have read the same epoch, and the one whose lease has expired opens first. The other's
/// opening, which comes second, finds another epoch than it expected, is still the owner, and opens
/// again.
#[test]
fn an_opening_of_an_expired_claim_is_fenced_by_the_one_after_it() {
    super::run(async {
        let (a, b, volume) = two_nodes().await;
        a.world.write(volume, "old", &data(1, 70_000)).await;
        let step = "volume.claim.checked";
        let (of_a, of_b) = (a.world.failpoints().clone(), b.world.failpoints().clone());
        let before = passed(&of_a, step);
        of_a.set(step, "pause").unwrap();
        of_b.set(step, "pause").unwrap();
        let first = tokio::spawn({
            let (volumes, catalog) = (a.world.volumes.clone(), a.world.catalog.clone());
            async move { volumes.open(&catalog, volume.dataset).await.map(drop) }
        });
        until_passed(&of_a, step, before).await;
        let mut watch = b.watch(volume.dataset).await;
        let expired = expires(&mut watch, [&a, &b]).await;
        let second = tokio::spawn({
            let (volumes, catalog) = (b.world.volumes.clone(), b.world.catalog.clone());
            async move { volumes.take_over(&catalog, volume.dataset, &expired).await }
        });
        until_passed(&of_b, step, 0).await;
        of_a.set(step, "off").unwrap();
        println!(
            "the first: {:?}",
            tokio::time::timeout(PATIENCE, first).await.expect("it ends").unwrap()
        );
        of_b.set(step, "off").unwrap();
        let theirs =
            tokio::time::timeout(PATIENCE, second).await.expect("it ends").unwrap().unwrap();
        assert!(passed(&of_b, step) > 1, "it had to open twice");
        top::create(&*theirs.fs, "from the journal").await;
        assert_serves(&b, volume, &theirs, "opened again").await;
    });
}

/// A close that failed is tried again after another node has taken the dataset, and the volume is
/// opened again after that.
#[test]
fn a_close_that_is_retried_after_a_take_over_fences_nobody() {
    super::run(async {
        let (a, b, volume) = two_nodes().await;
        let open = a.open(volume).await;
        top::write(&*open.fs, "kept", b"kept").await;
        drop(open);
        let mut watch = b.watch(volume.dataset).await;
        a.world.failpoints().set("fs.commit.before-flush", "return").unwrap();
        let open = a.open(volume).await;
        top::create(&*open.fs, "unsynced").await;
        drop(open);
        let failed = a.world.volumes.close(volume.dataset).await;
        println!("the first try: {failed:?}");
        let expired = expires(&mut watch, [&a, &b]).await;
        let theirs = b.take(volume.dataset, &expired).await.unwrap();
        top::create(&*theirs.fs, "from the journal").await;
        a.world.failpoints().set("fs.commit.before-flush", "off").unwrap();
        println!("the second try: {:?}", a.world.volumes.close(volume.dataset).await);
        let again = a.world.volumes.open(&a.world.catalog, volume.dataset).await;
        assert!(
            matches!(again, Err(VolumeError::Owned { .. } | VolumeError::Fs { .. })),
            "{:?}",
            again.map(drop)
        );
        assert_serves(&b, volume, &theirs, "closed again").await;
        assert!(has(&theirs, "from the journal").await);
    });
}

/// A revocation is seen by a node that wants the dataset. The session it is for closes the volume
/// and claims it again before it has read it: what the watcher saw was about the claim before.
#[test]
fn a_revocation_of_an_earlier_claim_takes_nothing() {
    super::run(async {
        let (a, b, volume) = two_nodes().await;
        drop(a.open(volume).await);
        let mut watch = b.watch(volume.dataset).await;
        b.world.revoke(volume, RevocationReason::OutOfService).await;
        assert!(matches!(watch.look().await.unwrap(), Verdict::NotExpired { .. }));
        a.world.volumes.close(volume.dataset).await.unwrap();
        let ours = a.open(volume).await;
        // No time goes by for the owner, whose lease is good.
        b.clock.advance(LEASE);
        if let Verdict::Expired(expired) = watch.look().await.unwrap() {
            let taken = b.take(volume.dataset, &expired).await;
            assert!(
                matches!(taken, Err(VolumeError::Owned { .. })),
                "two owners that both answer: {:?}",
                taken.map(drop)
            );
        }
        top::create(&*ours.fs, "ours").await;
        assert_serves(&a, volume, &ours, "claimed again").await;
    });
}

/// The record of a close cannot be written, and the same session opens the volume again: a verdict
/// from before is about another claim.
#[test]
fn a_verdict_from_before_the_session_claimed_again_is_void() {
    super::run(async {
        let (a, b, volume) = two_nodes().await;
        drop(a.open(volume).await);
        let mut watch = b.watch(volume.dataset).await;
        let failpoints = a.world.failpoints().clone();
        failpoints.set("catalog.put", "return").unwrap();
        a.world.volumes.close(volume.dataset).await.unwrap_err();
        b.clock.advance(LEASE);
        // Its last heartbeat may go in the meantime, which is a change too.
        let expired = async {
            loop {
                match watch.look().await.unwrap() {
                    Verdict::Expired(expired) => break expired,
                    Verdict::NotExpired { wait } => b.clock.advance(wait),
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let expired = tokio::time::timeout(PATIENCE, expired).await.unwrap();
        failpoints.set("catalog.put", "off").unwrap();
        let ours = a.open(volume).await;
        let taken = b.take(volume.dataset, &expired).await;
        assert!(
            matches!(taken, Err(VolumeError::Owned { .. })),
            "two owners that both answer: {:?}",
            taken.map(drop)
        );
        top::create(&*ours.fs, "ours").await;
        assert_serves(&a, volume, &ours, "claimed again").await;
    });
}

/// A controller, in the middle of a release by force, and a node that opens the volume meanwhile:
/// the node is not fenced.
#[test]
fn a_release_by_force_that_comes_late_fences_nobody() {
    super::run(async {
        for step in ["volume.lost.claimed", "volume.claim.epoch", "volume.claim.checked"] {
            let (pool, lost, later, volume) = Pool::with_two_nodes().await;
            let open = lost.open(volume).await;
            top::write(&*open.fs, "kept", b"kept").await;
            lost.store.die();
            let elsewhere = pool.node("controller").await.world.beside_in_fast_time("controller-1");
            let failpoints = elsewhere.failpoints().clone();
            failpoints.set(step, "pause").unwrap();
            let controller = elsewhere.controller.clone();
            let releasing =
                tokio::spawn(
                    async move { controller.release_volume(volume, ReleaseMode::Force).await },
                );
            until_passed(&failpoints, step, 0).await;
            let theirs = later.open(volume).await;
            top::create(&*theirs.fs, "from the journal").await;
            failpoints.set(step, "off").unwrap();
            println!(
                "{step}: {:?}",
                tokio::time::timeout(PATIENCE, releasing).await.expect("it ends").unwrap()
            );
            assert_serves(&later, volume, &theirs, step).await;
            assert!(has(&theirs, "from the journal").await && has(&theirs, "kept").await, "{step}");
        }
    });
}

/// A journal that was given up by force is void, also when the volume comes back to the node that
/// has it before anybody else has opened it.
#[test]
fn a_journal_that_was_given_up_never_comes_back() {
    super::run(async {
        let (pool, a, b, volume) = Pool::with_two_nodes().await;
        let open = a.open(volume).await;
        top::write(&*open.fs, "kept", b"kept").await;
        a.store.die();
        top::create(&*open.fs, "unsynced").await;
        let elsewhere = b.world.beside_in_fast_time("controller-1");
        elsewhere.controller.release_volume(volume, ReleaseMode::Force).await.unwrap();
        assert_eq!(b.owner(volume.dataset).await, None);
        // The machine comes back: another process, on the same folder of journals.
        open.fs.give_up(zerofs_csi::fs::FsError::Fenced);
        let journals = a.journals.clone();
        drop((open, a));
        let a = pool.node_at("node-a", LEASE, journals).await;
        let again = crate::two_owners::reopened(&a, volume).await;
        assert!(has(&again, "kept").await);
        assert!(
            !has(&again, "unsynced").await,
            "it was given up, and what it refers to may be gone"
        );
    });
}
