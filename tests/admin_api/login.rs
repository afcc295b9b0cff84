//! Who is let in, and what for.

use super::http::Reply;
use super::server::{Server, token};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_let_in_without_a_token() {
    let server = Server::start();
    for path in ["/session", "/pools", "/tasks", "/problems", "/pools/main/datasets", "/nothing"] {
        let reply = server.ask("GET", path).send();
        assert!(reply.problem(401).contains("Bearer"), "{path}");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    }
    let (foreign, _) = token(&["--name", "x", "--role", "admin"]);
    for wrong in [foreign.as_str(), "x", "", "zerofs_"] {
        let bearer = format!("Bearer {wrong}");
        server.ask("GET", "/pools").with("authorization", &bearer).send().problem(401);
    }
    server.ask("GET", "/pools").with("authorization", "Basic eDp5").send().problem(401);
    assert_eq!(server.ask("GET", "/openapi.json").send().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_ends_when_it_expires_or_is_taken_out() {
    let mut server = Server::start();
    server.add_token("short", &["--role", "viewer", "--expires", "4s"]);
    server.add_token("long", &["--role", "viewer"]);
    // The file is looked at once a second.
    wait_until(|| server.by("long", "GET", "/pools").send().status == 200);
    let login = server.ask("POST", "/login").json(&json!({ "token": server.token("long") })).send();
    let session = || server.ask("GET", "/session").with("cookie", cookie(&login).as_str()).send();
    assert_eq!(session().json()["role"], "viewer");
    wait_until(|| server.by("short", "GET", "/pools").send().status == 401);
    let path = server.room.path().join("tokens.yaml");
    let kept = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, "tokens: []\n").unwrap();
    wait_until(|| server.by("long", "GET", "/pools").send().status == 401);
    session().problem(401);
    // A file that cannot be understood lets nobody in, and says so.
    std::fs::write(&path, "tokens: [").unwrap();
    wait_until(|| {
        server.by("admin", "GET", "/pools").send().problem(401);
        server.log().contains("the tokens file is not usable")
    });
    std::fs::write(&path, kept).unwrap();
    wait_until(|| server.by("admin", "GET", "/pools").send().status == 200);
}

fn wait_until(holds: impl Fn() -> bool) {
    for _ in 0..100 {
        if holds() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("it did not become true");
}

fn cookie(login: &Reply) -> String {
    assert_eq!(login.status, 204, "{login:?}");
    let set = login.header("set-cookie").unwrap();
    assert!(set.contains("; HttpOnly; SameSite=Strict; Max-Age="), "{set}");
    set.split(';').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_printed_token_is_exchanged_once_for_a_session() {
    let server = Server::start();
    let login = || server.ask("POST", "/login").json(&json!({ "token": server.printed })).send();
    let first = login();
    let cookie = cookie(&first);
    assert!(login().problem(401).contains("was used"));
    let get = |path: &str| server.ask("GET", path).with("cookie", &cookie);
    let session = get("/session").send().json();
    assert_eq!((&session["caller"], &session["role"]), (&json!("console"), &json!("admin")));
    let csrf = session["csrf"].as_str().unwrap();
    let own = format!("http://{}", server.admin);
    let make = |name: &str| {
        let ask = server.ask("POST", "/pools/main/datasets/web/snapshots");
        ask.with("cookie", &cookie).json(&json!({ "name": name, "readOnly": true }))
    };
    // A request that another site makes a browser send has no effect.
    for foreign in [
        make("x"),
        make("x").with("x-csrf-token", "wrong"),
        make("x").with("x-csrf-token", csrf).with("origin", "http://evil.example"),
        make("x").with("x-csrf-token", csrf).with("sec-fetch-site", "cross-site"),
        get("/pools").with("sec-fetch-site", "cross-site"),
        get("/pools").with("origin", "null"),
    ] {
        foreign.send().problem(403);
    }
    let rebound = get("/pools").with("host", "evil.example:80").send();
    assert!(rebound.problem(421).contains("admin.hosts"));
    let taken = make("s1").with("x-csrf-token", csrf).with("origin", &own).send();
    // Nothing was written yet: the answer is about the dataset, not about the caller.
    assert_ne!(taken.status, 403, "{taken:?}");
    let out = server.ask("POST", "/logout").with("cookie", &cookie).with("x-csrf-token", csrf);
    assert_eq!(out.send().status, 204);
    get("/session").send().problem(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_do_its_part() {
    let mut server = Server::start();
    server.fill().await;
    server.add_token("elsewhere", &["--role", "admin", "--dataset", "main/other*"]);
    wait(&server, "elsewhere");
    let web = "/pools/main/datasets/web";
    let restore =
        json!({ "snapshot": "s1", "paths": [{ "source": "/docs/a.txt" }], "dryRun": true });
    // The method, the path, the body, and from which role on it is allowed.
    let cases = [
        ("GET", "/pools".to_owned(), None, 0),
        ("GET", web.to_owned(), None, 0),
        ("GET", format!("{web}/snapshots"), None, 0),
        ("GET", format!("{web}/entries?path=/docs"), None, 0),
        ("GET", format!("{web}/history?path=/docs/a.txt"), None, 0),
        ("GET", "/pools/main/space".to_owned(), None, 0),
        ("GET", format!("{web}/content?path=/docs/a.txt"), None, 1),
        ("GET", format!("{web}/archive?path=/docs&format=tar"), None, 1),
        ("POST", format!("{web}/restores"), Some(restore), 2),
        ("POST", format!("{web}/snapshots"), Some(json!({ "name": "by-role" })), 2),
        ("PATCH", web.to_owned(), Some(json!({ "sizeBytes": 30_u64 << 30 })), 3),
        ("DELETE", format!("{web}/snapshots/by-role"), None, 3),
        ("POST", "/pools/main/datasets".to_owned(), Some(json!({ "name": "by-role" })), 3),
        ("DELETE", "/pools/main/datasets/by-role".to_owned(), None, 3),
    ];
    for (method, path, body, from) in cases {
        let ask = |name: &str| {
            let ask = server.by(name, method, &path);
            let ask = match &body {
                Some(body) => ask.json(body),
                None => ask,
            };
            ask.send()
        };
        for (rank, role) in ["viewer", "reader", "restorer", "admin"].iter().enumerate() {
            let reply = ask(role);
            match rank >= from {
                // Who asks second for the same thing is told that it is there.
                true => {
                    assert!(matches!(reply.status, 200..=204 | 409), "{role} {path}: {reply:?}");
                }
                false => assert!(reply.problem(403).contains("administrator"), "{role} {path}"),
            }
        }
        if path.starts_with(web) {
            ask("elsewhere").problem(403);
        }
    }
    // A token is shown only what it is for.
    let listed = |path: &str| server.by("elsewhere", "GET", path).send().json()["items"].clone();
    assert_eq!(listed("/pools").as_array().unwrap().len(), 1);
    assert_eq!(listed("/pools/main/datasets"), json!([]));
    let unknown = server.by("elsewhere", "GET", "/pools/main/datasets/unknown").send();
    assert!(unknown.problem(403).contains("may not"), "the same as for one that is there");
    let own =
        server.by("elsewhere", "POST", "/pools/main/datasets").json(&json!({ "name": "other1" }));
    assert_eq!(own.send().status, 201);
    assert_eq!(listed("/pools/main/datasets").as_array().unwrap().len(), 1);
    let log = server.log();
    for needle in [
        "caller=\"reader\"",
        "what=\"read\"",
        "object=\"main/web:/docs/a.txt\"",
        "bytes=6",
        "what=\"archive\"",
        "what=\"delete dataset\"",
        "from=127.0.0.1",
    ] {
        assert!(log.contains(needle), "{needle}: {log}");
    }
    assert!(!log.contains(server.token("reader")) && !log.contains(&server.printed));
}

fn wait(server: &Server, name: &str) {
    wait_until(|| server.by(name, "GET", "/session").send().status == 200);
}
