//! Leases on driven clocks: who may answer, and who may take, in every order of the two (R26).

use super::{Driven, World, data};
use crate::support::fault::{Fault, FaultStore, Op, Rule};
use crate::support::files::{name, root, top, try_read};
use object_store::memory::InMemory;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use zerofs_csi::bucket::Limits;
use zerofs_csi::catalog::{Catalog, Owner};
use zerofs_csi::fs::FsError;
use zerofs_csi::fs::api::FileSystem;
use zerofs_csi::types::{DatasetId, VolumeHandle};
use zerofs_csi::volume::{ExpiredLease, LeaseSettings, Verdict, VolumeError, VolumeGuard, Watch};

pub const LEASE: Duration = LeaseSettings::LEASE;

/// A store that several machines reach, each its own way.
pub struct Pool(Arc<InMemory>);

/// A machine: its way to the store, its clock, its journals.
pub struct Node {
    pub world: World,
    pub store: Arc<FaultStore>,
    pub clock: Arc<Driven>,
    pub journals: Arc<TempDir>,
}

impl Pool {
    pub async fn new() -> Self {
        let store = Arc::new(InMemory::new());
        Catalog::create(FaultStore::over(store.clone()).bucket(), None).await.unwrap();
        Self(store)
    }

    /// Two machines on a pool, and a volume that the first one has made.
    pub async fn with_two_nodes() -> (Self, Node, Node, VolumeHandle) {
        let pool = Self::new().await;
        let (a, b) = (pool.node("node-a").await, pool.node("node-b").await);
        let volume = a.world.volume("v").await;
        (pool, a, b, volume)
    }

    pub async fn node(&self, name: &str) -> Node {
        self.node_at(name, LEASE, Arc::new(tempfile::tempdir().unwrap())).await
    }

    pub async fn node_at(&self, name: &str, lease: Duration, journals: Arc<TempDir>) -> Node {
        self.node_within(name, lease, journals, Limits::default()).await
    }

    /// With other limits for its requests.
    pub async fn node_within(
        &self,
        name: &str,
        lease: Duration,
        journals: Arc<TempDir>,
        limits: Limits,
    ) -> Node {
        let (store, clock) = (FaultStore::over(self.0.clone()), Arc::new(Driven::default()));
        let node = World::builder(name).journals(journals.path()).clock(clock.clone()).lease(lease);
        let world = node.open(store.bucket().with_limits(limits)).await;
        Node { world, store, clock, journals }
    }
}

/// Two machines, and a volume that the first one has made.
pub async fn two_nodes() -> (Node, Node, VolumeHandle) {
    let (_, a, b, volume) = Pool::with_two_nodes().await;
    (a, b, volume)
}

impl Node {
    pub async fn open(&self, volume: VolumeHandle) -> VolumeGuard {
        self.world.open(volume).await
    }

    pub async fn owner(&self, id: DatasetId) -> Option<Owner> {
        self.world.catalog.dataset_by_id(id).await.unwrap().unwrap().record.owner
    }

    /// A watch of whoever has the dataset, that has looked once.
    pub async fn watch(&self, id: DatasetId) -> Watch {
        let refused = self.world.volumes.open(&self.world.catalog, id).await.err();
        let Some(VolumeError::Owned { owner, .. }) = refused else {
            panic!("not refused: {refused:?}")
        };
        let mut watch = self.world.volumes.watch(&self.world.catalog, id, &owner);
        assert!(
            matches!(watch.look().await.unwrap(), Verdict::NotExpired { .. }),
            "one look tells nothing"
        );
        watch
    }

    pub async fn take(
        &self,
        id: DatasetId,
        expired: &ExpiredLease,
    ) -> Result<VolumeGuard, VolumeError> {
        self.world.volumes.take_over(&self.world.catalog, id, expired).await
    }
}

/// A lease goes by on the clocks of these machines, and the owner that is watched is found expired.
pub async fn expires(watch: &mut Watch, nodes: [&Node; 2]) -> ExpiredLease {
    nodes.iter().for_each(|node| node.clock.advance(LEASE));
    expired(watch).await
}

pub async fn expired(watch: &mut Watch) -> ExpiredLease {
    match watch.look().await.unwrap() {
        Verdict::Expired(expired) => expired,
        Verdict::NotExpired { wait } => panic!("it may live for {wait:?}"),
    }
}

/// Repeats while the lease is being renewed, as the edge does.
pub async fn patiently<T, F: Future<Output = Result<T, FsError>>>(
    call: impl Fn() -> F,
) -> Result<T, FsError> {
    for _ in 0..1500 {
        match call().await {
            Err(FsError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            answered => return answered,
        }
    }
    panic!("it does not come back")
}

/// The owner's calls to the store hang. It stops answering, what it knows by heart included, before
/// another may take; and when the store is back it has lost.
#[test]
fn a_partitioned_owner_stops_answering_before_another_may_take() {
    super::run(async {
        let (a, b, volume) = two_nodes().await;
        let open = a.open(volume).await;
        let bytes = data(1, 50_000);
        let file = top::write(&*open.fs, "kept", &bytes).await;
        let mut watch = b.watch(volume.dataset).await;
        a.store.script(Rule::any().then(Fault::Hang));
        let mut answered = 0;
        let mut found = None;
        for secs in 1..=60 {
            for clock in [&a.clock, &b.clock] {
                clock.advance(Duration::from_secs(1));
            }
            let answer = tokio::time::timeout(Duration::from_secs(20), open.fs.getattr(file)).await;
            match answer.expect("what is known by heart needs no store") {
                Ok(_) => answered = secs,
                Err(error) => assert!(matches!(error, FsError::Unavailable(_)), "{error}"),
            }
            if let Verdict::Expired(expired) = watch.look().await.unwrap() {
                found = Some((secs, expired));
                break;
            }
        }
        let (taken, expired) = found.expect("a dead lease is taken");
        println!(
            "the owner answered for {answered} s after its last renewal; another might take after \
             {taken} s"
        );
        assert_eq!((answered, taken), (37, 45));
        let theirs = b.take(volume.dataset, &expired).await.unwrap();
        assert_ne!(
            theirs.fs.write_verifier(),
            open.fs.write_verifier(),
            "R18: clients send again what was not committed"
        );
        let read = patiently(|| try_read(&*theirs.fs, file)).await.unwrap();
        assert!(read == bytes, "the handle is the same on every node, and so are the bytes");

        let mut losses = a.world.volumes.lost();
        a.store.heal();
        let answer = patiently(|| open.fs.getattr(file)).await;
        assert!(matches!(answer, Err(FsError::Fenced)), "{answer:?}");
        let lost =
            tokio::time::timeout(Duration::from_secs(60), losses.recv()).await.unwrap().unwrap();
        assert_eq!(lost.dataset, volume.dataset);
        assert!(a.world.volumes.get(volume.dataset).is_none());
    });
}

/// The heartbeats of an owner arrive, but its listings fail: its lease expires. It does not keep the
/// dataset from others by heartbeats that renew nothing.
#[test]
fn an_owner_that_cannot_end_a_renewal_loses_its_datasets() {
    super::run(async {
        let (a, b, volume) = two_nodes().await;
        let open = a.open(volume).await;
        let file = top::write(&*open.fs, "kept", &data(3, 10)).await;
        let mut watch = b.watch(volume.dataset).await;
        a.store.clear_log();
        a.store.script(Rule::on(Op::List).at("nodes/").then(Fault::Denied));
        let attempts = || {
            let is_listing =
                |request: &&(Op, String)| request.0 == Op::List && request.1.starts_with("nodes/");
            a.store.log().iter().filter(is_listing).count()
        };
        let renewals = async |more: usize| {
            let before = attempts();
            while attempts() < before + more {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        a.clock.advance(LEASE);
        b.clock.advance(LEASE);
        assert!(matches!(open.fs.getattr(file).await, Err(FsError::Unavailable(_))));
        renewals(2).await;
        // The heartbeat of the first renewal that failed has arrived.
        assert!(matches!(watch.look().await.unwrap(), Verdict::NotExpired { .. }));
        renewals(2).await;
        b.clock.advance(LEASE);
        let expired = expired(&mut watch).await;
        b.take(volume.dataset, &expired).await.unwrap();
        a.store.heal();
        let answer = patiently(|| open.fs.getattr(file)).await;
        assert!(matches!(answer, Err(FsError::Fenced)), "{answer:?}");
    });
}

/// An owner that was away too long and comes back before anybody took the dataset goes on, calls
/// under way included; who had judged it dead from before does not get it.
#[test]
fn an_owner_that_comes_back_in_time_keeps_it_and_an_earlier_verdict_is_void() {
    super::run(async {
        let (a, b, volume) = two_nodes().await;
        let open = a.open(volume).await;
        let file = top::write(&*open.fs, "kept", &data(2, 10)).await;
        top::write(&*open.fs, "gone", b"x").await;
        let mut watch = b.watch(volume.dataset).await;
        a.store.die();
        let submitted = || a.world.failpoints().passed()["fs.call.submitted"];
        let before = submitted();
        let under_way = tokio::spawn({
            let open = open.clone();
            async move { open.fs.remove(&root(), open.fs.root(), &name("gone")).await }
        });
        while submitted() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        a.clock.advance(LEASE);
        b.clock.advance(LEASE);
        let early = expired(&mut watch).await;
        assert!(matches!(open.fs.getattr(file).await, Err(FsError::Unavailable(_))));
        // A failure on the way back is not the end of it.
        a.world.failpoints().set("volume.lease.before-reacquire", "1*return").unwrap();
        a.store.heal();
        patiently(|| open.fs.getattr(file)).await.unwrap();
        under_way.await.unwrap().expect("it was done, and is answered once that is sure");
        let again = a.owner(volume.dataset).await.unwrap();
        assert!(
            again.session == early.owner().session && again.claim != early.owner().claim,
            "claimed again (R31)"
        );
        let refused = b.take(volume.dataset, &early).await;
        assert!(matches!(refused, Err(VolumeError::Owned { .. })), "{:?}", refused.err());
        top::write(&*open.fs, "later", b"y").await;
    });
}

/// A machine that slept, or a guest that was held: nothing failed, but time went on.
#[test]
fn after_a_sleep_nothing_is_answered_before_the_record_is_claimed_again() {
    super::run(async {
        let (a, b, volume) = two_nodes().await;
        let open = a.open(volume).await;
        let file = top::write(&*open.fs, "kept", &data(2, 10)).await;
        let mut watch = b.watch(volume.dataset).await;
        a.clock.advance(Duration::from_secs(3600));
        b.clock.advance(Duration::from_secs(3600));
        let expired = expired(&mut watch).await;
        let theirs = b.take(volume.dataset, &expired).await.unwrap();
        top::write(&*theirs.fs, "kept", b"theirs").await;
        // Not even the first call after it wakes up is answered from memory.
        let answer = patiently(|| open.fs.getattr(file)).await;
        assert!(matches!(answer, Err(FsError::Fenced)), "{answer:?}");
    });
}

/// One heartbeat for a session, however many volumes; none when nothing is open, and no sign is
/// left.
#[test]
fn heartbeats_do_not_grow_with_volumes_and_an_idle_node_sends_none() {
    super::run(async {
        let pool = Pool::new().await;
        // A short one, on a clock that stands: it is renewed often, and never expires.
        let a = pool
            .node_at("node-a", Duration::from_millis(300), Arc::new(tempfile::tempdir().unwrap()))
            .await;
        let mut volumes = Vec::new();
        for n in 0..3 {
            volumes.push(a.world.volume(&format!("v{n}")).await);
            a.open(volumes[n]).await;
        }
        let renewals = || a.world.failpoints().passed()["volume.lease.after-renewal"];
        let beats = || {
            a.store
                .log()
                .iter()
                .filter(|(op, key)| *op == Op::PutNew && key.contains("/heartbeat/"))
                .count() as u64
        };
        let first = renewals();
        while renewals() < first + 10 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let (after, sent) = (renewals(), beats());
        assert!(
            sent.abs_diff(after) <= 1,
            "{sent} heartbeats by {after} renewals for {} volumes",
            volumes.len()
        );
        for volume in &volumes {
            a.world.volumes.close(volume.dataset).await.unwrap();
        }
        let status = async || a.world.bucket().list("nodes/").await.unwrap();
        while !status().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let renewed = renewals();
        a.store.clear_log();
        tokio::time::sleep(Duration::from_millis(700)).await;
        let asked: Vec<_> =
            a.store.log().into_iter().filter(|(_, key)| key.contains("nodes")).collect();
        assert!(asked.is_empty() && renewals() == renewed, "{asked:?}");
        let interval = LEASE.as_secs() / 3;
        println!(
            "{} PUTs, as many LISTs and DELETEs an hour while volumes are open; none when none is",
            3600 / interval
        );
    });
}

/// A claim is made only under a heartbeat that others can see, and one that cannot be written
/// claims nothing.
#[test]
fn without_a_heartbeat_nothing_is_claimed() {
    super::run(async {
        let pool = Pool::new().await;
        let a = pool.node("node-a").await;
        let volume = a.world.volume("v").await;
        for step in ["volume.lease.before-renewal", "volume.lease.after-renewal"] {
            a.world.failpoints().set(step, "1*return").unwrap();
            assert!(
                a.world.volumes.open(&a.world.catalog, volume.dataset).await.is_err(),
                "{step}"
            );
            assert_eq!(a.owner(volume.dataset).await, None, "{step}");
        }
        a.open(volume).await;
        assert_eq!(a.owner(volume.dataset).await.unwrap().node, "node-a");
    });
}
