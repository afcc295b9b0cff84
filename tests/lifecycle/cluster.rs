//! The watch of Kubernetes' nodes, against a small server that speaks its list and watch: pages,
//! bookmarks, watches that end or are too old. Machines are told to give up what they own when they
//! are out of service or gone, and no others (R27). Events name what a pod may wait for.

use super::World;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::catalog::{Catalog, DamageReport, RevocationReason};
use zerofs_csi::control::cluster::watch;
use zerofs_csi::types::{Timestamp, VolumeHandle};
use zerofs_csi::volume::{BootClock, Clock, LeaseSettings, VolumeGuard};

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
const PATIENCE: Duration = Duration::from_secs(60);

/// The server's answer to a watch of a version that it has forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forgets {
    ByStatus,
    ByEvent,
}

#[derive(Default)]
struct Server {
    version: u64,
    nodes: BTreeMap<String, Value>,
    log: Vec<(u64, Value)>,
    /// Watches from before this are too old.
    oldest: u64,
    by_event: bool,
    watchers: Vec<mpsc::UnboundedSender<std::io::Result<Bytes>>>,
    token: String,
    is_down: bool,
    lists: u64,
    watches: u64,
    denied: u64,
    /// Events that controllers posted, and how often one was posted again.
    posted: Vec<Value>,
    posted_again: u64,
    volumes: Vec<Value>,
    /// No event can be posted.
    refuses_events: bool,
}

#[derive(Clone, Default)]
struct Cluster(Arc<Mutex<Server>>);

fn line(event: &Value) -> std::io::Result<Bytes> {
    Ok(Bytes::from(format!("{event}\n")))
}

impl Cluster {
    async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = format!("http://{}", listener.local_addr().unwrap());
        let app = axum::Router::new()
            .route("/api/v1/nodes", axum::routing::get(answer))
            .route("/api/v1/persistentvolumes", axum::routing::get(volumes))
            .route("/apis/events.k8s.io/v1/namespaces/default/events", axum::routing::post(post))
            .with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        at
    }

    fn happens(&self, kind: &str, name: &str, object: Value) {
        let mut server = self.0.lock();
        server.version += 1;
        let version = server.version;
        let mut object = object;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        match kind {
            "DELETED" => drop(server.nodes.remove(name)),
            _ => drop(server.nodes.insert(name.to_owned(), object.clone())),
        }
        let event = json!({"type": kind, "object": object});
        server.log.push((version, event.clone()));
        // In two parts, as the network has it.
        let whole = line(&event).unwrap();
        let (first, rest) = (whole.slice(..whole.len() / 2), whole.slice(whole.len() / 2..));
        server.watchers.retain(|watcher| {
            watcher.send(Ok(first.clone())).is_ok() && watcher.send(Ok(rest.clone())).is_ok()
        });
    }

    fn put(&self, name: &str, boot: &str, taints: &[&str]) {
        self.put_ready(name, boot, taints, ("True", "2026-11-29T20:00:00Z"));
    }

    /// `ready`: the condition's status, and the time from which it has that.
    fn put_ready(&self, name: &str, boot: &str, taints: &[&str], ready: (&str, &str)) {
        let taints: Vec<Value> =
            taints.iter().map(|key| json!({"key": key, "effect": "NoExecute"})).collect();
        let conditions =
            json!([{"type": "Ready", "status": ready.0, "lastTransitionTime": ready.1}]);
        let status = json!({"conditions": conditions, "nodeInfo": {
            "bootID": boot, "architecture": "", "containerRuntimeVersion": "", "kernelVersion": "",
            "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "",
            "osImage": "", "systemUUID": "",
        }});
        self.happens(
            "MODIFIED",
            name,
            json!({"metadata": {"name": name}, "spec": {"taints": taints}, "status": status}),
        );
    }

    fn delete(&self, name: &str) {
        let object = self.0.lock().nodes[name].clone();
        self.happens("DELETED", name, object);
    }

    /// The server ends all watches, or breaks them in the middle of a line.
    fn drop_watches(&self) {
        for watcher in std::mem::take(&mut self.0.lock().watchers) {
            watcher.send(Ok(Bytes::from_static(b"{\"type\":\"MOD"))).ok();
            watcher.send(Err(std::io::Error::other("gone"))).ok();
        }
    }

    fn down(&self, is_down: bool) {
        self.0.lock().is_down = is_down;
        self.drop_watches();
    }

    fn forget(&self, how: Forgets) {
        let mut server = self.0.lock();
        server.oldest = server.version;
        server.by_event = how == Forgets::ByEvent;
        server.log.clear();
    }

    fn counts(&self) -> (u64, u64) {
        let server = self.0.lock();
        (server.lists, server.watches)
    }
}

async fn answer(
    State(cluster): State<Cluster>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let mut server = cluster.0.lock();
    if server.is_down {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if headers.get("authorization").and_then(|value| value.to_str().ok())
        != Some(&format!("Bearer {}", server.token))
    {
        server.denied += 1;
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let number = |key: &str| query.get(key).map(|value| value.parse::<u64>().unwrap());
    if query.get("watch").is_none_or(|value| value != "true") {
        // A page has two, whatever was asked for.
        let from = number("continue").unwrap_or(0) as usize;
        let items: Vec<Value> = server.nodes.values().skip(from).take(2).cloned().collect();
        let more = if from + items.len() < server.nodes.len() {
            (from + items.len()).to_string()
        } else {
            String::new()
        };
        server.lists += u64::from(more.is_empty());
        let metadata = json!({"resourceVersion": server.version.to_string(), "continue": more});
        return axum::Json(
            json!({"apiVersion": "v1", "kind": "NodeList", "metadata": metadata, "items": items}),
        )
        .into_response();
    }
    server.watches += 1;
    let from = number("resourceVersion").unwrap();
    let (send, receive) = mpsc::unbounded_channel();
    if from < server.oldest {
        if !server.by_event {
            return StatusCode::GONE.into_response();
        }
        let expired = json!({"kind": "Status", "code": 410, "reason": "Expired"});
        send.send(line(&json!({"type": "ERROR", "object": expired}))).unwrap();
    } else {
        for (_, event) in server.log.iter().filter(|(version, _)| *version > from) {
            send.send(line(event)).unwrap();
        }
        let metadata = json!({"resourceVersion": server.version.to_string()});
        let bookmark = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata});
        send.send(line(&json!({"type": "BOOKMARK", "object": bookmark}))).unwrap();
        server.watchers.push(send);
    }
    let lines = futures::stream::unfold(receive, |mut receive| async {
        receive.recv().await.map(|line| (line, receive))
    });
    Body::from_stream(lines).into_response()
}

async fn volumes(
    State(cluster): State<Cluster>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let server = cluster.0.lock();
    // A page has one, whatever was asked for.
    let from = query.get("continue").map_or(0, |token| token.parse::<usize>().unwrap());
    let more = if from + 1 < server.volumes.len() { (from + 1).to_string() } else { String::new() };
    let items: Vec<&Value> = server.volumes.iter().skip(from).take(1).collect();
    let list = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeList",
        "metadata": {"resourceVersion": "1", "continue": more}, "items": items,
    });
    axum::Json(list).into_response()
}

/// As the API server: a name is taken once, and the fields are checked.
async fn post(State(cluster): State<Cluster>, axum::Json(event): axum::Json<Value>) -> Response {
    let mut server = cluster.0.lock();
    let status = |code: StatusCode, reason: &str| {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": reason, "reason": reason, "code": code.as_u16(),
        });
        (code, axum::Json(status)).into_response()
    };
    if server.refuses_events {
        return status(StatusCode::FORBIDDEN, "Forbidden");
    }
    let has = |path: &str, max: usize| {
        event.pointer(path).and_then(Value::as_str).is_some_and(|it| (1..=max).contains(&it.len()))
    };
    let fields = [
        ("/metadata/name", 253),
        ("/eventTime", 64),
        ("/reportingController", 128),
        ("/reportingInstance", 128),
        ("/action", 128),
        ("/reason", 128),
        ("/note", 1024),
        ("/regarding/name", 253),
        ("/regarding/uid", 253),
    ];
    if let Some((field, _)) = fields.iter().find(|(field, max)| !has(field, *max)) {
        return status(StatusCode::UNPROCESSABLE_ENTITY, field);
    }
    if server.posted.iter().any(|old| old["metadata"]["name"] == event["metadata"]["name"]) {
        server.posted_again += 1;
        return status(StatusCode::CONFLICT, "AlreadyExists");
    }
    server.posted.push(event.clone());
    (StatusCode::CREATED, axum::Json(event)).into_response()
}

/// A machine's run.
struct Boot(&'static str);

impl Clock for Boot {
    fn now(&self) -> Duration {
        BootClock.now()
    }

    fn boot(&self) -> Option<String> {
        Some(self.0.to_owned())
    }
}

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
        let world = World::under(
            catalog.clone(),
            name,
            None,
            LeaseSettings { clock: Arc::new(Boot(boot)), ..LeaseSettings::default() },
        );
        let volume = world.create(&format!("v-{boot}"), None).await.unwrap().handle;
        let open = world.volumes.open(catalog, volume.dataset).await.unwrap();
        Self { world, volume, _open: open }
    }

    async fn revoked(&self) -> Option<RevocationReason> {
        let catalog = &self.world.catalog;
        let owner =
            catalog.dataset_by_id(self.volume.dataset).await.unwrap().unwrap().record.owner?;
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
    let world = World::on(catalog, "controller-1");
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
        let second = a.world.create("v-second", None).await.unwrap().handle;
        let _second = a.world.volumes.open(&catalog, second.dataset).await.unwrap();
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
        let second = a.world.create("v-second", None).await.unwrap().handle;
        let _second = a.world.volumes.open(&catalog, second.dataset).await.unwrap();
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
        let ours = world.create("pvc-1", None).await.unwrap().handle;
        let foreign = world.create("pvc-2", None).await.unwrap().handle;
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
