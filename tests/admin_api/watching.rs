//! Changes as server-sent events.

use super::limits::wait_until;
use super::server::Server;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;

/// The events of one watcher, read as a script would.
struct Events(BufReader<TcpStream>);

impl Events {
    fn of(server: &Server, who: &str) -> Self {
        Self(BufReader::new(server.by(who, "GET", "/pools/main/watch").open()))
    }

    /// The next event of that name whose JSON is like this, and the lines before it.
    fn until(&mut self, name: &str, like: impl Fn(&Value) -> bool) -> (Value, String) {
        let (mut event, mut before) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            let read = self.0.read_line(&mut line).unwrap();
            assert!(read > 0, "the events ended without {name}: {before}");
            before += &line;
            if let Some(name) = line.strip_prefix("event: ") {
                event = name.trim().to_owned();
            } else if let Some(data) = line.strip_prefix("data: ") {
                let data: Value = serde_json::from_str(data).unwrap();
                if event == name && like(&data) {
                    return (data, before);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_watched_as_they_happen() {
    let mut server = Server::start();
    server.fill().await;
    server.add_token("elsewhere", &["--role", "viewer", "--dataset", "main/other*"]);
    server.ask("GET", "/pools/main/watch").send().problem(401);
    server.by("viewer", "GET", "/pools/none/watch").send().problem(404);

    wait_until("the token is known", || {
        server.by("elsewhere", "GET", "/pools").send().status == 200
    });
    let mut events = Events::of(&server, "viewer");
    let (web, before) = events.until("dataset", |data| data["name"] == "web");
    assert!(before.starts_with("HTTP/1.1 200") && before.contains("text/event-stream"), "{before}");
    assert_eq!(web["handle"], server.get("/pools/main/datasets/web").json()["handle"]);
    events.until("snapshot", |data| data["dataset"] == "web" && data["name"] == "s1");

    // A task is told as it goes on.
    let body = json!({ "snapshot": "s1", "paths": [{ "source": "/docs" }], "overwrite": true });
    let restores = "/pools/main/datasets/web/restores";
    let started = server.by("restorer", "POST", restores).json(&body).send();
    assert_eq!(started.status, 202, "{started:?}");
    let task = started.json()["task"].clone();
    events.until("task", |data| data["id"] == task && data["state"] == "done");

    // Whoever may see other datasets alone is told of those.
    let mut others = Events::of(&server, "elsewhere");
    let post = |body| server.by("admin", "POST", "/pools/main/datasets").json(&body).send();
    assert_eq!(post(json!({ "name": "other", "source": "web@s1" })).status, 201);
    let (other, before) = others.until("dataset", |data| data["name"] == "other");
    assert_eq!(other["origin"], Value::Null, "the name of its origin is not for this caller");
    assert!(!before.contains("\"web\""), "{before}");
    events.until("dataset", |data| data["name"] == "other" && data["origin"] == "web@s1");
    let deleted = server.by("admin", "DELETE", "/pools/main/datasets/other").send();
    assert_eq!(deleted.status, 204);
    events.until("removed", |data| *data == json!({ "name": "other" }));

    // 16 callers watch at once.
    let mut more: Vec<Events> = (0..14).map(|_| Events::of(&server, "viewer")).collect();
    for events in &mut more {
        events.until("dataset", |data| data["name"] == "web");
    }
    let refused = server.by("viewer", "GET", "/pools/main/watch").send();
    assert!(refused.problem(429).contains("16 callers"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_whose_token_ends_is_told_no_more() {
    let mut server = Server::start();
    server.fill().await;
    server.add_token("short", &["--role", "viewer", "--expires", "5s"]);
    wait_until("the token is known", || server.by("short", "GET", "/pools").send().status == 200);
    let mut events = Events::of(&server, "short");
    events.until("dataset", |data| data["name"] == "web");
    let (problem, _) = events.until("error", |_| true);
    assert_eq!(problem["status"], 403, "{problem}");
    let mut rest = String::new();
    while events.0.read_line(&mut rest).unwrap() > 0 {}
    assert!(!rest.contains("event:"), "{rest}");
}
