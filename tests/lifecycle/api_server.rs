//! A small server that speaks Kubernetes' list and watch of nodes and volumes, and takes events.

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::mpsc;

/// The server's answer to a watch of a version that it has forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgets {
    ByStatus,
    ByEvent,
}

#[derive(Default)]
pub struct Server {
    pub version: u64,
    pub nodes: BTreeMap<String, Value>,
    pub log: Vec<(u64, Value)>,
    /// Watches from before this are too old.
    pub oldest: u64,
    pub by_event: bool,
    pub watchers: Vec<mpsc::UnboundedSender<std::io::Result<Bytes>>>,
    pub token: String,
    pub is_down: bool,
    pub lists: u64,
    pub watches: u64,
    pub denied: u64,
    /// Events that controllers posted, and how often one was posted again.
    pub posted: Vec<Value>,
    pub posted_again: u64,
    pub volumes: Vec<Value>,
    /// No event can be posted.
    pub refuses_events: bool,
}

#[derive(Clone, Default)]
pub struct Cluster(pub Arc<Mutex<Server>>);

fn line(event: &Value) -> std::io::Result<Bytes> {
    Ok(Bytes::from(format!("{event}\n")))
}

impl Cluster {
    pub async fn start(&self) -> String {
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

    pub fn happens(&self, kind: &str, name: &str, object: Value) {
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

    pub fn put(&self, name: &str, boot: &str, taints: &[&str]) {
        self.put_ready(name, boot, taints, ("True", "2026-11-29T20:00:00Z"));
    }

    /// `ready`: the condition's status, and the time from which it has that.
    pub fn put_ready(&self, name: &str, boot: &str, taints: &[&str], ready: (&str, &str)) {
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

    pub fn delete(&self, name: &str) {
        let object = self.0.lock().nodes[name].clone();
        self.happens("DELETED", name, object);
    }

    /// The server ends all watches, or breaks them in the middle of a line.
    pub fn drop_watches(&self) {
        for watcher in std::mem::take(&mut self.0.lock().watchers) {
            watcher.send(Ok(Bytes::from_static(b"{\"type\":\"MOD"))).ok();
            watcher.send(Err(std::io::Error::other("gone"))).ok();
        }
    }

    pub fn down(&self, is_down: bool) {
        self.0.lock().is_down = is_down;
        self.drop_watches();
    }

    pub fn forget(&self, how: Forgets) {
        let mut server = self.0.lock();
        server.oldest = server.version;
        server.by_event = how == Forgets::ByEvent;
        server.log.clear();
    }

    pub fn counts(&self) -> (u64, u64) {
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
