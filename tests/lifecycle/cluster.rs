//! The watch of Kubernetes' nodes, against a small server that speaks its list and watch: pages,
//! bookmarks, watches that end or are too old. Machines are told to give up what they own when they
//! are out of service or gone, and no others (R27). Events name what a pod may wait for.

use super::World;
use crate::api_server::{Cluster, Forgets};
use crate::support::clock::Booted;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::catalog::{Catalog, DamageReport, RevocationReason};
use zerofs_csi::control::cluster::watch;
use zerofs_csi::types::{Timestamp, VolumeHandle};
use zerofs_csi::volume::{BootClock, VolumeGuard};

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine with a volume open.
struct Machine {
    world: World,
    volume: VolumeHandle,
    _open: VolumeGuard,
}

/// The notes of events of a kind on an object.
fn notes(cluster: &Cluster, reason: &str, object: &str) -> Vec<String> {
    let server = cluster.0.lock();
    let on = |event: &&Value| event["reason"] == reason && event["regarding"]["name"] == object;
    let note = |event: &Value| event["note"].as_str().unwrap().to_owned();
    server.posted.iter().filter(on).map(note).collect()
}

impl Machine {
    async fn new(catalog: &Catalog, name: &str, boot: &'static str) -> Self {
        let clock = Arc::new(Booted { clock: Arc::new(BootClock), boot });
        let world = World::builder(name).clock(clock).on(catalog.clone());
        let volume = world.volume(&format!("v-{boot}")).await;
        let open = world.open(volume).await;
        Self { world, volume, _open: open }
    }

    async fn revoked(&self) -> Option<RevocationReason> {
        let catalog = &self.world.catalog;
        let owner = self.world.record(self.volume).await.owner?;
        catalog
            .revocation(owner.session, owner.claim)
            .await
            .unwrap()
            .map(|revocation| revocation.why)
    }

    async fn until_revoked(&self, what: &str) -> RevocationReason {
        let found = async {
            loop {
                match self.revoked().await {
                    Some(why) => break why,
                    None => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, found)
            .await
            .unwrap_or_else(|_| panic!("{what}: not revoked"))
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

/// A cluster that is watched by a controller on a pool.
async fn watched(
    token: &Path,
) -> (Cluster, World, CancellationToken, impl Future<Output = ()> + use<>) {
    let cluster = Cluster::default();
    cluster.0.lock().token = "first".to_owned();
    let catalog = Catalog::create(Bucket::memory(), None).await.unwrap();
    watched_at(cluster, token, catalog).await
}

async fn watched_at(
    cluster: Cluster,
    token: &Path,
    catalog: Catalog,
) -> (Cluster, World, CancellationToken, impl Future<Output = ()> + use<>) {
    let at = cluster.start().await;
    std::fs::write(token, "first").unwrap();
    let world = World::builder("controller-1").on(catalog);
    let mut server = kube::Config::new(at.parse().unwrap());
    server.auth_info.token_file = Some(token.display().to_string());
    let (controller, stop) = (world.controller.clone(), CancellationToken::new());
    let its_stop = stop.clone();
    let watching = async move { watch(server, controller, its_stop).await.unwrap() };
    (cluster, world, stop, watching)
}

#[test]
fn a_machine_that_is_out_of_service_is_told_to_give_its_volumes_up() {
    super::run(async {
        let room = tempfile::tempdir().unwrap();
        let token = room.path().join("token");
        let (cluster, World { catalog, .. }, stop, watching) = watched(&token).await;
        for n in 0..5 {
            cluster.put(&format!("other-{n}"), "other", &[]);
        }
        cluster.put("a", "boot-a", &[]);
        cluster.put("b", "boot-b", &["node.kubernetes.io/unreachable"]);
        // Tainted before anybody watched.
        cluster.put("c", "boot-c", &[OUT_OF_SERVICE]);
        let (a, b, c) = (
            Machine::new(&catalog, "a", "boot-a").await,
            Machine::new(&catalog, "b", "boot-b").await,
            Machine::new(&catalog, "c", "boot-c").await,
        );
        let second = a.world.volume("v-second").await;
        let _second = a.world.open(second).await;
        // Sessions of another cluster with a name that this one has too, and of the machine's
        // earlier boot.
        let alike = Machine::new(&catalog, "a", "boot-elsewhere").await;
        let watching = tokio::spawn(watching);
        assert_eq!(c.until_revoked("tainted before").await, RevocationReason::OutOfService);
        until("it watches", || cluster.counts().1 > 0).await;
        cluster.put("a", "boot-a", &[OUT_OF_SERVICE]);
        assert_eq!(
            a.until_revoked("tainted while it watched").await,
            RevocationReason::OutOfService
        );

        cluster.drop_watches();
        cluster.put("b", "boot-b", &[OUT_OF_SERVICE]);
        assert_eq!(
            b.until_revoked("tainted while the watch was broken").await,
            RevocationReason::OutOfService
        );
        assert_eq!(alike.revoked().await, None, "another machine of that name");
        until("an event for each", || cluster.0.lock().posted.len() >= 4).await;
        let volumes = [("a", "v-boot-a"), ("a", "v-second"), ("b", "v-boot-b"), ("c", "v-boot-c")];
        for (node, volume) in volumes {
            let notes = notes(&cluster, "VolumeRevoked", node);
            let named = notes.iter().filter(|note| note.contains(volume)).count();
            assert_eq!(named, 1, "{node}: {notes:#?}");
        }
        assert_eq!(cluster.0.lock().denied, 0);
        assert_eq!(cluster.counts().0, 1, "a watch that broke goes on where it was");
        stop.cancel();
        watching.await.unwrap();
    });
}

/// Whoever sees a pod wait for a lease finds the node that it waits for; the node keeps its claims.
#[test]
fn a_node_that_is_not_ready_is_named_with_its_volumes_once() {
    super::run(async {
        let room = tempfile::tempdir().unwrap();
        let (cluster, World { catalog, .. }, stop, watching) =
            watched(&room.path().join("token")).await;
        let (a, b) = (
            Machine::new(&catalog, "a", "boot-a").await,
            Machine::new(&catalog, "b", "boot-b").await,
        );
        let second = a.world.volume("v-second").await;
        let _second = a.world.open(second).await;
        // Another cluster's machine of that name.
        let _alike = Machine::new(&catalog, "a", "boot-elsewhere").await;
        cluster.put("a", "boot-a", &[]);
        cluster.put("b", "boot-b", &[]);
        let watching = tokio::spawn(watching);
        until("it watches", || cluster.counts().1 > 0).await;
        cluster.put("a", "boot-a", &["node.kubernetes.io/not-ready"]);
        cluster.put("b", "boot-b", &[]);

        let (first, later) = ("2026-11-29T21:00:00Z", "2026-11-29T22:00:00Z");
        let of = |node| notes(&cluster, "VolumeOwnerNotReady", node);
        cluster.put_ready("a", "boot-a", &[], ("Unknown", first));
        until("an event", || !of("a").is_empty()).await;
        let note = &of("a")[0];
        for part in ["node a ", "v-boot-a", "v-second", "waited 45 s", OUT_OF_SERVICE] {
            assert!(note.contains(part), "{part}: {note}");
        }
        assert!(!note.contains("elsewhere"), "{note}");
        // Kubernetes goes on telling the same.
        cluster.put_ready("a", "boot-a", &["x"], ("Unknown", first));
        cluster.put_ready("b", "boot-b", &[], ("Unknown", first));
        until("an event for the other", || !of("b").is_empty()).await;
        cluster.put_ready("a", "boot-a", &[], ("True", later));
        cluster.put_ready("a", "boot-a", &[], ("False", later));
        until("another time", || of("a").len() == 2).await;
        assert_eq!(of("b").len(), 1);
        assert_eq!((a.revoked().await, b.revoked().await), (None, None), "it may be alive");
        assert_eq!(cluster.0.lock().posted_again, 0);
        stop.cancel();
        watching.await.unwrap();
    });
}

/// A replica that comes to the same finding posts nothing again.
#[test]
fn replicas_post_an_event_once() {
    super::run(async {
        let room = tempfile::tempdir().unwrap();
        let token = room.path().join("token");
        let (cluster, world, stop, watching) = watched(&token).await;
        let _machine = Machine::new(&world.catalog, "a", "boot-a").await;
        cluster.put_ready("a", "boot-a", &[], ("Unknown", "2026-11-29T21:00:00Z"));
        let watching = tokio::spawn(watching);
        until("an event", || cluster.0.lock().posted.len() == 1).await;
        stop.cancel();
        watching.await.unwrap();

        let (again, at) = (cluster.clone(), room.path().join("other"));
        let (_, other, stop, watching) = watched_at(again, &at, world.catalog.clone()).await;
        let watching = tokio::spawn(watching);
        until("the other finds it posted", || cluster.0.lock().posted_again == 1).await;
        assert_eq!(cluster.0.lock().posted.len(), 1);
        drop(other);
        stop.cancel();
        watching.await.unwrap();
    });
}

fn volume(name: &str, handle: &str) -> Value {
    let csi = json!({"driver": "zerofs.csi.dev", "volumeHandle": handle});
    json!({"metadata": {"name": name, "uid": format!("uid-{name}")}, "spec": {"csi": csi}})
}

/// A node that finds damage reaches no API server: a controller posts it, once, on the volume.
#[test]
fn a_damaged_volume_is_told_once_on_its_persistent_volume() {
    super::run(async {
        let room = tempfile::tempdir().unwrap();
        let (cluster, world, stop, watching) = watched(&room.path().join("token")).await;
        let catalog = world.catalog.clone();
        let ours = world.volume("pvc-1").await;
        let foreign = world.volume("pvc-2").await;
        cluster.0.lock().volumes = vec![
            json!({"metadata": {"name": "local", "uid": "u"}, "spec": {"local": {"path": "/x"}}}),
            volume("other", "v1:elsewhere"),
            volume("pv-1", &ours.to_string()),
        ];
        let watching = tokio::spawn(watching);
        until("it watches", || cluster.counts().1 > 0).await;
        world.collect().await;
        let session = zerofs_csi::types::SessionId::random();
        for volume in [ours, foreign] {
            let report = DamageReport {
                dataset: volume.dataset,
                node: "node-7".to_owned(),
                why: "checksum mismatch in vol/a/compacted/b.sst".to_owned(),
                created: Timestamp::now(),
            };
            catalog.put_damage_report(session, &report).await.unwrap();
        }
        let left = async || {
            let reports = catalog.damage_reports().await.unwrap().into_iter();
            let mut left: Vec<_> = reports.map(|(_, report)| report.dataset).collect();
            left.sort_by_key(|dataset| dataset.incarnation);
            left
        };
        let mut both = vec![ours.dataset, foreign.dataset];
        both.sort_by_key(|dataset| dataset.incarnation);

        // The event cannot be posted; then the controller dies once it is.
        cluster.0.lock().refuses_events = true;
        world.collect().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(left().await, both);
        cluster.0.lock().refuses_events = false;
        catalog.bucket().failpoints().set("control.damage.posted", "1*return").unwrap();
        world.collect().await;
        until("an event", || cluster.0.lock().posted.len() == 1).await;
        let posted = cluster.0.lock().posted[0].clone();
        assert_eq!(posted["regarding"]["kind"], "PersistentVolume");
        assert_eq!(posted["regarding"]["uid"], "uid-pv-1");
        let note = &notes(&cluster, "VolumeDamaged", "pv-1")[0];
        for part in ["node-7", "b.sst", "Put the object back", "zerofs-csi check"] {
            assert!(note.contains(part), "{part}: {note}");
        }
        assert_eq!(left().await, both);
        world.collect().await;
        let removed = async {
            while left().await.contains(&ours.dataset) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, removed).await.expect("the report stays");
        assert_eq!(cluster.0.lock().posted.len(), 1);
        assert_eq!(left().await, [foreign.dataset], "another cluster posts it");
        stop.cancel();
        watching.await.unwrap();
    });
}

#[test]
fn a_machine_whose_node_went_is_told_even_if_nobody_watched() {
    super::run(async {
        let room = tempfile::tempdir().unwrap();
        let (cluster, World { catalog, .. }, stop, watching) =
            watched(&room.path().join("token")).await;
        let names = [
            ("a", "boot-a"),
            ("b", "boot-b"),
            ("c", "boot-c"),
            ("d", "boot-d"),
            ("back", "boot-back"),
            ("stranger", "boot-s"),
        ];
        let mut machines = BTreeMap::new();
        for (name, boot) in names {
            machines.insert(name, Machine::new(&catalog, name, boot).await);
            // One is not a node of this cluster.
            if name != "stranger" {
                cluster.put(name, boot, &[]);
            }
        }
        let watching = tokio::spawn(watching);
        until("it watches", || cluster.counts() == (1, 1)).await;
        cluster.delete("back");
        cluster.put("back", "boot-back", &[]);
        cluster.delete("a");
        for (n, how) in
            [None, Some(Forgets::ByStatus), Some(Forgets::ByEvent)].into_iter().enumerate()
        {
            let before = cluster.counts();
            cluster.down(true);
            cluster.delete(["b", "c", "d"][n]);
            if let Some(how) = how {
                cluster.happens("MODIFIED", "other", json!({"metadata": {"name": "other"}}));
                cluster.forget(how);
            }
            cluster.down(false);
            // Too old: a new list, and a watch after it.
            let (lists, watches) = if how.is_some() { (1, 2) } else { (0, 1) };
            until(&format!("it watches again: {how:?}"), || {
                cluster.counts() >= (before.0 + lists, before.1 + watches)
            })
            .await;
        }
        for name in ["a", "b", "c", "d"] {
            assert_eq!(
                machines[name].until_revoked(name).await,
                RevocationReason::NodeGone,
                "{name}"
            );
        }
        // They could have been judged before those.
        for name in ["back", "stranger"] {
            assert_eq!(machines[name].revoked().await, None, "{name}");
        }
        stop.cancel();
        watching.await.unwrap();
    });
}
