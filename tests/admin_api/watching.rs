//! Changes as server-sent events, and who is told them.

use super::http::Ask;
use super::limits::wait_until;
use super::server::Server;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use tonic::Code;
use zerofs_csi::admin::Client;
use zerofs_csi::admin::grpc::proto::WatchRequest;

const WATCH: &str = "/pools/main/watch";

/// The events of one watcher, read as a script would.
struct Events(BufReader<TcpStream>);

impl Events {
    fn of(server: &Server, who: &str) -> Self {
        Self::asked(&server.by(who, "GET", WATCH))
    }

    fn asked(ask: &Ask) -> Self {
        Self(BufReader::new(ask.open()))
    }

    /// Reads to the end, without another event.
    fn end(&mut self) {
        let mut rest = String::new();
        while self.0.read_line(&mut rest).unwrap() > 0 {}
        assert!(!rest.contains("event:"), "{rest}");
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
    server.ask("GET", WATCH).send().problem(401);
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
}

#[tokio::test(flavor = "multi_thread")]
async fn no_caller_takes_the_places_of_other_watchers() {
    let server = Server::start();
    server.fill().await;
    let watch = |who: &str| {
        let mut events = Events::of(&server, who);
        events.until("dataset", |data| data["name"] == "web");
        events
    };
    let mut own: Vec<Events> = (0..4).map(|_| watch("viewer")).collect();
    let refused = server.by("viewer", "GET", WATCH).send();
    assert!(refused.problem(429).contains("viewer has 4 watch streams"), "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    // The places are those of both interfaces.
    let at = format!("http://{}", server.admin);
    let client = Client::connect(&at, Some(server.token("viewer"))).await.unwrap();
    let refused = client.tasks().watch(WatchRequest::default()).await.map(|_| ()).unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("viewer has 4 watch streams"), "{refused}");

    let roles = ["reader", "restorer", "admin"];
    let others: Vec<Events> = roles.into_iter().flat_map(|who| [who; 4]).map(watch).collect();
    // The user of the unix socket is a fifth caller.
    let local = format!("unix:{}", server.socket().display());
    let local = Client::connect(&local, None).await.unwrap();
    let refused = local.tasks().watch(WatchRequest::default()).await.map(|_| ()).unwrap_err();
    assert!(refused.message().contains("16 watch streams"), "{refused}");
    own.pop();
    let mut tasks = local.tasks();
    let mut is_free = false;
    for _ in 0..300 {
        is_free = tasks.watch(WatchRequest::default()).await.is_ok();
        if is_free {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(is_free, "the place of a watcher that has left is not free");
    drop(others);
}

/// The cookie of a session.
fn log_in(server: &Server, token: &str) -> String {
    let login = server.ask("POST", "/login").json(&json!({ "token": token })).send();
    assert_eq!(login.status, 204, "{login:?}");
    login.header("set-cookie").unwrap().split(';').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_is_told_at_once_that_its_session_has_ended() {
    let server = Server::start();
    server.fill().await;
    let watch = |cookie: &str| {
        let mut events = Events::asked(&server.ask("GET", WATCH).with("cookie", cookie));
        events.until("dataset", |data| data["name"] == "web");
        events
    };
    let first = log_in(&server, &server.printed);
    let second = log_in(&server, server.token("viewer"));
    let (mut events, mut others) = (watch(&first), watch(&second));
    let session = server.ask("GET", "/session").with("cookie", &first).send().json();
    let csrf = session["csrf"].as_str().unwrap();
    let out = server.ask("POST", "/logout").with("cookie", &first).with("x-csrf-token", csrf);
    assert_eq!(out.send().status, 204);
    let left = Instant::now();
    let (problem, _) = events.until("error", |_| true);
    // Records are read every 15 seconds.
    assert!(left.elapsed() < Duration::from_secs(10), "{:?}", left.elapsed());
    assert_eq!(problem["status"], 403, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("log in again"), "{problem}");
    events.end();
    // Other sessions go on.
    let made = server.by("admin", "POST", "/pools/main/datasets").json(&json!({ "name": "later" }));
    assert_eq!(made.send().status, 201);
    others.until("dataset", |data| data["name"] == "later");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_whose_token_is_taken_out_is_told_within_a_poll() {
    let mut server = Server::start();
    server.fill().await;
    let tokens = server.room.path().join("tokens.yaml");
    let kept = std::fs::read_to_string(&tokens).unwrap();
    server.add_token("leaving", &["--role", "viewer"]);
    wait_until("the token is known", || server.by("leaving", "GET", "/pools").send().status == 200);
    let cookie = log_in(&server, server.token("leaving"));
    let mut events = Events::asked(&server.ask("GET", WATCH).with("cookie", &cookie));
    events.until("dataset", |data| data["name"] == "web");
    let at = format!("http://{}", server.admin);
    let client = Client::connect(&at, Some(server.token("leaving"))).await.unwrap();
    let watched = client.tasks().watch(WatchRequest::default()).await;
    let mut watched = watched.unwrap().into_inner();
    watched.message().await.unwrap().unwrap();
    std::fs::write(&tokens, kept).unwrap();
    let ended = async {
        loop {
            match watched.message().await {
                Ok(told) => assert!(told.is_some(), "it ended without a status"),
                Err(status) => break status,
            }
        }
    };
    // An interval of 15 seconds, and the second in which the file is looked at.
    let ended = tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
    assert_eq!(ended.code(), Code::PermissionDenied, "{ended}");
    let (problem, _) = events.until("error", |_| true);
    assert_eq!(problem["status"], 403, "{problem}");
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
    events.end();
}
