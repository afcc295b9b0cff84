//! Pools, datasets, snapshots, tasks; answers to what is wrong.

use super::limits::wait_until;
use super::server::Server;
use crate::support::nfs;
use serde_json::{Value, json};

const WEB: &str = "/pools/main/datasets/web";

#[tokio::test(flavor = "multi_thread")]
async fn datasets_are_made_changed_and_deleted() {
    let server = Server::start();
    let pools = server.get("/pools").json();
    assert_eq!(pools["items"][0]["name"], "main");
    assert!(pools["items"][0]["url"].as_str().unwrap().starts_with("file:///"));
    let post = |path: &str, body| server.by("admin", "POST", path).json(&body).send();
    let datasets = "/pools/main/datasets";
    let made =
        post(datasets, json!({ "name": "a b", "sizeBytes": 1 << 30, "compression": "zstd" }));
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(made.json()["compression"], "zstd");
    let again = post(datasets, json!({ "name": "a b" }));
    assert!(again.problem(409).contains("already exists"));
    for (body, status, named) in [
        (json!({ "name": "x/y" }), 400, "not allowed"),
        (json!({ "name": "" }), 400, "empty"),
        (json!({ "name": "x", "compression": "rar" }), 400, "rar"),
        (json!({ "name": "x", "sync": "never" }), 400, "never"),
        (json!({ "name": "x", "size": 1 }), 400, "unknown field"),
        (json!({ "name": "x", "source": "nothing" }), 404, "nothing"),
        (json!([]), 400, "body"),
    ] {
        let why = post(datasets, body.clone()).problem(status);
        assert!(why.contains(named), "{body}: {why}");
    }
    let change =
        |body| server.by("admin", "PATCH", &format!("{datasets}/a%20b")).json(&body).send();
    assert_eq!(change(json!({ "sizeBytes": 2_u64 << 30 })).json()["sizeBytes"], 2_u64 << 30);
    change(json!({ "sizeBytes": u64::MAX })).problem(422);
    assert_eq!(change(json!({ "default": true })).status, 200);
    assert_eq!(server.get("/pools").json()["items"][0]["defaultDataset"], "a b");
    assert_eq!(change(json!({ "default": false })).status, 200);
    assert_eq!(server.get("/pools").json()["items"][0]["defaultDataset"], json!(null));
    let page = server.get(&format!("{datasets}?limit=1")).json();
    assert_eq!(page["items"][0]["name"], "a b");
    let next = page["next"].as_str().unwrap();
    let page = server.get(&format!("{datasets}?limit=1&cursor={next}")).json();
    assert_eq!((&page["items"][0]["name"], &page["next"]), (&json!("web"), &json!(null)));
    let rename = |from: &str, to: &str| {
        let path = format!("{datasets}/{from}/rename");
        server.by("admin", "POST", &path).json(&json!({ "name": to })).send()
    };
    let handle = server.get(&format!("{datasets}/a%20b")).json()["handle"].clone();
    assert!(rename("a%20b", "web").problem(409).contains("dataset web exists"));
    let renamed = rename("a%20b", "c").json();
    assert_eq!((&renamed["name"], &renamed["handle"]), (&json!("c"), &handle));
    rename("a%20b", "d").problem(404);
    assert_eq!(rename("c", "a b").status, 200);
    let delete = || server.by("admin", "DELETE", &format!("{datasets}/a%20b")).send();
    assert_eq!(delete().status, 204);
    server.get(&format!("{datasets}/a%20b")).problem(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn properties_change_at_once_and_snapshots_are_held() {
    let server = Server::start();
    server.fill().await;
    let change = |body| server.by("admin", "PATCH", WEB).json(&body).send();
    let changed = change(json!({
        "quotaInodes": 1000, "recordBytes": 4096, "sync": "always", "compression": "none",
        "snapdir": "visible", "maxReadBandwidth": 5 << 20, "maxIops": 100
    }));
    let changed = changed.json();
    for (name, value) in [
        ("quotaInodes", json!(1000)),
        ("recordBytes", json!(4096)),
        ("sync", json!("always")),
        ("compression", json!("none")),
        ("snapdir", json!("visible")),
        ("maxReadBandwidth", json!(5 << 20)),
        ("maxWriteBandwidth", json!(null)),
        ("maxIops", json!(100)),
    ] {
        assert_eq!(changed[name], value, "{name}");
    }
    let back = change(json!({ "quotaInodes": 0, "sync": "default", "maxIops": 0 })).json();
    assert_eq!((&back["maxReadBandwidth"], &back["maxIops"]), (&json!(5 << 20), &json!(null)));
    assert_eq!((&back["quotaInodes"], &back["sync"]), (&json!(null), &json!(null)));
    assert!(change(json!({ "maxWriteBandwidth": 5 })).problem(400).contains("maxWriteBandwidth"));
    assert!(change(json!({ "snapdir": "there" })).problem(400).contains("hidden or visible"));

    let snapshot = format!("{WEB}/snapshots/s1");
    let held = format!("{snapshot}/holds/audit%202026");
    server.by("restorer", "PUT", &held).send().problem(403);
    let holds = |method| server.by("admin", method, &held).send().json()["holds"].clone();
    assert_eq!(holds("PUT"), json!(["audit 2026"]));
    assert_eq!(server.get(&snapshot).json()["holds"], json!(["audit 2026"]));
    let refused = server.by("admin", "DELETE", &snapshot).send().problem(409);
    assert!(refused.contains("audit 2026"), "{refused}");
    assert_eq!(holds("DELETE"), json!([]));
    assert_eq!(server.by("admin", "DELETE", &snapshot).send().status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_is_started_and_stopped_and_a_restore_keeps_what_it_replaces() {
    let mut server = Server::start();
    for name in ["second", "third"] {
        server.add_token(name, &["--role", "admin"]);
    }
    server.fill().await;
    let scrubs = |role| {
        server.by(role, "POST", "/pools/main/scrubs").json(&json!({ "bytesPerSecond": 1 })).send()
    };
    scrubs("restorer").problem(403);
    let started = scrubs("admin");
    assert_eq!(started.status, 202, "{started:?}");
    let task = format!("/tasks/{}", started.json()["task"].as_str().unwrap());
    let stop = format!("{task}/stop");
    server.by("viewer", "POST", &stop).send().problem(403);
    assert_eq!(server.by("admin", "POST", &stop).send().status, 200);
    wait_until("the scrub goes on", || server.get(&task).json()["state"] == "stopped");

    let body = json!({ "snapshot": "s1", "paths": [{ "source": "/docs/a.txt" }], "keep": true });
    let started = server.by("restorer", "POST", &format!("{WEB}/restores")).json(&body).send();
    assert_eq!(started.status, 202, "{started:?}");
    let task = format!("/tasks/{}", started.json()["task"].as_str().unwrap());
    wait_until("the restore does not end", || server.get(&task).json()["state"] == "done");
    for (path, content) in [("/docs/a.txt", "first version"), ("/docs/a.txt.~1", "second")] {
        let read = server.get(&format!("{WEB}/content?path={path}"));
        assert_eq!(String::from_utf8_lossy(&read.body), content, "{path}");
    }

    // 8 of one caller run at once, and 16 of all.
    wait_until("the tokens are known", || server.by("third", "GET", "/pools").send().status == 200);
    let begin = |role| {
        let started = scrubs(role);
        assert_eq!(started.status, 202, "{started:?}");
        format!("/tasks/{}/stop", started.json()["task"].as_str().unwrap())
    };
    let mut tasks: Vec<String> = (0..8).map(|_| begin("admin")).collect();
    let full = scrubs("admin");
    assert!(full.problem(429).contains("admin has 8 running tasks"), "{full:?}");
    tasks.extend((0..8).map(|_| begin("second")));
    let full = scrubs("third");
    assert!(full.problem(429).contains("16 running tasks"), "{full:?}");
    assert!(full.header("retry-after").is_some(), "{full:?}");
    for stop in tasks {
        assert_eq!(server.by("admin", "POST", &stop).send().status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_taken_compared_and_restored() {
    let server = Server::start();
    server.fill().await;
    let snapshots = server.get(&format!("{WEB}/snapshots")).json();
    assert_eq!(snapshots["items"][0]["name"], "s1");
    assert_eq!(snapshots["items"][0]["writable"], false);
    let dataset = server.get(WEB).json();
    assert_eq!(dataset["snapshotCount"], 1);
    assert!(dataset["usedBytes"].as_u64().unwrap() > 6_000_000, "{dataset}");
    let post =
        |path: &str, body| server.by("admin", "POST", &format!("{WEB}/{path}")).json(&body).send();
    assert!(post("snapshots", json!({ "name": "s1" })).problem(409).contains("already exists"));
    let writable = post("snapshots", json!({ "name": "w1", "readOnly": false }));
    assert_eq!(writable.json()["writable"], true);

    let versions = server.get(&format!("{WEB}/history?path=/docs/a.txt")).json();
    let versions = versions["items"].as_array().unwrap();
    assert_eq!(versions.len(), 2, "{versions:?}");
    assert_eq!((&versions[0]["first"], &versions[0]["size"]), (&json!("s1"), &json!(13)));
    assert_eq!((&versions[1]["last"], &versions[1]["size"]), (&json!(null), &json!(6)));
    server.get(&format!("{WEB}/history?path=/docs/never")).problem(404);

    let diff = server.get(&format!("{WEB}/diff?from=s1")).json();
    assert_eq!(diff["counts"]["added"], 1, "{diff}");
    let paths: Vec<&str> = diff["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["path"].as_str().unwrap())
        .collect();
    assert!(paths.contains(&"/docs/a.txt") && paths.contains(&"/docs/new.txt"), "{paths:?}");
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = server.get(&format!("{WEB}/diff?from=s1&limit=1{cursor}")).json();
        seen.push(page["items"][0]["path"].as_str().unwrap().to_owned());
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, paths);
    pages_of_a_comparison_are_of_one_state(&server, &diff).await;

    let found = server.get(&format!("{WEB}/find?pattern=a.txt&allSnapshots=true")).json();
    let hits: Vec<_> =
        found["items"].as_array().unwrap().iter().map(|hit| &hit["snapshot"]).collect();
    assert_eq!(hits, [&json!(null), &json!("s1")]);
    let one = server.get(&format!("{WEB}/find?pattern=*.txt&limit=1")).json();
    assert_eq!((one["items"].as_array().unwrap().len(), &one["truncated"]), (1, &json!(true)));

    let restore = |dry: bool, overwrite: bool| {
        let paths = json!([{ "source": "/docs/a.txt" }]);
        let body =
            json!({ "snapshot": "s1", "paths": paths, "overwrite": overwrite, "dryRun": dry });
        post("restores", body)
    };
    let dry = restore(true, true).json();
    assert_eq!(
        (&dry["replaced"], &dry["created"], &dry["bytes"]),
        (&json!(1), &json!(0), &json!(13))
    );
    let refused = task(&server, &restore(false, false).json());
    assert_eq!(refused["state"], "failed", "{refused}");
    assert!(refused["error"].as_str().unwrap().contains("a.txt"), "{refused}");
    let started = restore(false, true);
    assert_eq!(started.status, 202);
    assert_eq!(task(&server, &started.json())["state"], "done");
    for _ in 0..100 {
        let now = server.get(&format!("{WEB}/content?path=/docs/a.txt"));
        if now.body == b"first version" {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(server.get(&format!("{WEB}/content?path=/docs/a.txt")).body, b"first version");
    for (body, status, named) in [
        (json!({ "snapshot": "s1", "paths": [] }), 400, "paths"),
        (json!({ "snapshot": "s1", "paths": [{ "source": "/none" }] }), 404, "none"),
        (json!({ "snapshot": "none", "paths": [{ "source": "/docs" }] }), 404, "none"),
        (json!({ "snapshot": "w1", "paths": [{ "source": "/docs" }] }), 409, "writable"),
        (json!({ "snapshot": "s1", "paths": [{ "source": "/docs/../x" }] }), 400, "`..`"),
        (
            json!({ "snapshot": "s1", "paths": [{ "source": "/", "sourceBytes": "?" }] }),
            400,
            "base64",
        ),
    ] {
        let why = post("restores", body.clone()).problem(status);
        assert!(why.contains(named), "{body}: {why}");
    }
    let delete =
        |name: &str| server.by("admin", "DELETE", &format!("{WEB}/snapshots/{name}")).send();
    assert_eq!((delete("s1").status, delete("w1").status), (204, 204));
    assert!(delete("never").problem(404).contains("nothing to delete"));
}

/// The task that was started, when it has ended.
fn task(server: &Server, started: &Value) -> Value {
    let path = format!("/tasks/{}", started["task"].as_str().unwrap());
    for _ in 0..300 {
        let task = server.get(&path).json();
        if task["state"] != "running" {
            let listed = server.get("/tasks").json();
            assert!(listed["items"].as_array().unwrap().contains(&task), "{listed}");
            return task;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("the task does not end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said() {
    let server = Server::start();
    server.fill().await;
    for (path, status, named) in [
        ("/none", 404, "openapi.json"),
        ("/pools/none/datasets", 404, "none"),
        ("/pools/main/datasets/none", 404, "dataset list"),
        ("/pools/main/datasets/web/snapshots/none", 404, "none"),
        ("/pools/main/datasets/web?x=1", 400, "unknown parameter"),
        ("/pools/main/datasets?limit=0", 400, "limit"),
        ("/pools/main/datasets?limit=1001", 400, "limit"),
        ("/pools/main/datasets?cursor=%ff", 400, "cursor"),
        ("/pools/main/datasets/%ff", 400, "names in the URL"),
        ("/pools/main/datasets/web/entries?path=docs", 400, "absolute"),
        ("/pools/main/datasets/web/entries?path=/docs/a.txt", 400, "not a folder"),
        ("/pools/main/datasets/web/entries?path=/&cursor=zz", 400, "cursor"),
        ("/pools/main/datasets/web/content?path=/docs", 400, "not a file"),
        ("/pools/main/datasets/web/archive?path=/docs", 400, "format"),
        ("/pools/main/datasets/web/archive?format=zip", 400, "path"),
        ("/pools/main/datasets/web/diff", 400, "from"),
        ("/pools/main/datasets/web/find", 400, "pattern"),
        ("/pools/main/datasets/web/find?pattern=a&snapshot=s1&allSnapshots=true", 400, "either"),
        ("/tasks/none", 404, "none"),
    ] {
        let why = server.get(path).problem(status);
        assert!(why.contains(named), "{path}: {why}");
    }
    server.by("admin", "PUT", "/pools").send().problem(405);
    let ask = server.by("admin", "POST", "/pools/main/datasets");
    ask.clone().with("content-type", "text/plain").send().problem(400);
    let mut large = serde_json::Map::new();
    large.insert("name".to_owned(), json!("x".repeat(2 << 20)));
    ask.json(&large.into()).send().problem(413);
    let space = server.get("/pools/main/space").json();
    assert!(space["storedBytes"].as_u64().unwrap() > 0, "{space}");
    assert_eq!((&space["accuracy"], &space["dedupRatio"]), (&json!("estimate"), &json!(null)));
    assert_eq!(server.get("/problems").json()["items"], json!([]));
}

/// The pages together are `whole`, whatever is written between them.
async fn pages_of_a_comparison_are_of_one_state(server: &Server, whole: &Value) {
    let page = |cursor: &str| server.get(&format!("{WEB}/diff?from=s1&limit=1{cursor}")).json();
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let one = page(&cursor);
        assert_eq!(one["counts"], whole["counts"], "{one}");
        items.extend(one["items"].as_array().unwrap().clone());
        let Some(next) = one["next"].as_str() else { break };
        if items.len() == 1 {
            let (client, top) = server.client().await;
            nfs::write(&client, &top, b"between", b"pages").await;
            server.flushed("/between");
            // A new comparison sees it; the one whose pages are being read does not.
            wait_until("the change is not seen", || page("")["counts"] != whole["counts"]);
        }
        cursor = format!("&cursor={next}");
    }
    assert_eq!(&Value::Array(items), &whole["items"]);
    let (client, top) = server.client().await;
    client.remove(&top, b"between").await.unwrap();
    wait_until("the file is not gone", || {
        server.get(&format!("{WEB}/stat?path=/between")).status == 404
    });
}

/// `UPDATE=1 cargo test --test admin_api description` writes the copy.
#[tokio::test(flavor = "multi_thread")]
async fn the_description_in_the_documentation_is_the_one_of_the_code() {
    let server = Server::start();
    let served = server.ask("GET", "/openapi.json").send().body;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &served).unwrap();
    }
    let copy = std::fs::read(path).unwrap_or_default();
    let next = "UPDATE=1 cargo test --test admin_api description";
    assert!(copy == served, "docs/openapi.json is not up to date: {next}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_the_description_are_served() {
    let server = Server::start();
    let page = |path: &str| super::http::Ask::new(server.admin, "GET", path).send();
    let index = page("/");
    assert_eq!((index.status, index.header("cache-control")), (200, Some("no-cache")));
    assert_eq!(index.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = index.header("content-security-policy").unwrap();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self'") && !policy.contains("unsafe")
    );
    assert_eq!(page("/files/main/web").body, index.body, "a path of the page's own");
    assert_eq!(page("/main.js").header("content-type"), Some("text/javascript; charset=utf-8"));
    for absent in ["/none.js", "/../Cargo.toml", "/%2e%2e/x.js", "/api/v2", "/api"] {
        assert_ne!(page(absent).status, 200, "{absent}");
    }
    let etag = index.header("etag").unwrap();
    let again = super::http::Ask::new(server.admin, "GET", "/").with("if-none-match", etag).send();
    assert_eq!(again.status, 304);
    let openapi = server.ask("GET", "/openapi.json").send().json();
    assert_eq!(openapi["openapi"], "3.1.0");
    // Each path that is described has a handler.
    for (path, methods) in openapi["paths"].as_object().unwrap() {
        let path = path.replace("{pool}", "main").replace("{dataset}", "web");
        let path = path.replace("{snapshot}", "none").replace("{id}", "1");
        // A stream without an end has a handler if it refuses a query that it does not know.
        let path = path.replace("/watch", "/watch?unknown=1");
        for method in methods.as_object().unwrap().keys().filter(|method| *method == "get") {
            let reply = server.by("admin", &method.to_uppercase(), &path).send();
            assert!(reply.status != 405 && reply.status < 500, "{method} {path}: {reply:?}");
            let text = String::from_utf8_lossy(&reply.body).into_owned();
            assert!(!text.contains("no path of this interface"), "{path}: {text}");
        }
    }
}
