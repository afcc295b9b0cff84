//! `task`: the long work of a server, as commands list, show and stop it.

use super::command_line::{directly, through};
use super::limits::wait_until;
use super::server::Server;
use crate::support::program::{answer, json, ok, program};
use serde_json::{Value, json};
use std::process::{Command, Stdio};

fn state(server: &Server, id: &str) -> Value {
    json(&mut through(server, &["task", "show", id]))["state"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_listed_shown_and_stopped() {
    let server = Server::start();
    server.fill().await;
    let list = |more: &[&str]| json(through(&server, &["task", "list"]).args(more));
    assert_eq!(list(&[]), json!([]));
    let mut scrub = through(&server, &["scrub", "web", "--rate", "1"]);
    let scrub = scrub.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the scrub does not begin", || list(&[]) != json!([]));
    let task = list(&[])[0].clone();
    assert_eq!((&task["kind"], &task["state"]), (&json!("scrub"), &json!("running")));
    assert_eq!((&task["pool"], &task["subject"]), (&json!("main"), &json!("web")));
    assert_eq!((&task["ended"], &task["message"]), (&json!(null), &json!(null)));
    let id = task["id"].to_string();
    let table = ok(&mut through(&server, &["task", "list"]));
    let columns: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    let header = ["TASK", "KIND", "STATE", "STARTED", "OBJECTS", "BYTES", "POOL", "SUBJECT"];
    assert_eq!(columns, header, "{table}");
    assert!(table.lines().nth(1).unwrap().ends_with("main  web"), "{table}");
    let shown = ok(&mut through(&server, &["task", "show", &id]));
    assert!(shown.contains("state        running\n"), "{shown}");
    assert_eq!(list(&["--pool", "main"])[0]["id"], task["id"]);

    let refused = |command: &mut Command, code: i32, says: &str| {
        let done = answer(command);
        assert!(done.code == code && done.err.contains(says), "{command:?}: {done:?}");
        assert!(done.out.is_empty(), "{command:?}: {done:?}");
    };
    let stop = ["task", "stop", id.as_str()];
    let mut viewer = program(&stop);
    viewer.args(["--server", &format!("http://{}", server.admin)]);
    refused(viewer.env("ZEROFS_TOKEN", server.token("viewer")), 15, "administer");
    refused(through(&server, &stop).args(["--pool", "other"]), 2, "there are: main");
    refused(&mut through(&server, &["task", "show", "99"]), 10, "task 99");
    refused(&mut through(&server, &["task", "show", "first"]), 2, "first");
    refused(&mut program(&["task", "list"]), 2, "ZEROFS_SERVER");
    refused(program(&["task", "list"]).args(["--pool", "file:///srv/pool"]), 19, "--server");
    refused(&mut directly(&server, &["task", "list"]), 19, "running server");

    let stopped = ok(&mut through(&server, &stop));
    assert!(stopped.contains(&format!("asked task {id} to stop, the scrub of web")), "{stopped}");
    wait_until("the scrub goes on", || state(&server, &id) == "stopped");
    let ended = scrub.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.code() == Some(16) && said.contains("stopped the scrub"), "{said}");
    let again = ok(&mut through(&server, &stop));
    assert!(again.contains("has ended already") && again.contains("stopped"), "{again}");
    let again = json(&mut through(&server, &stop));
    assert_eq!((&again["id"], &again["state"]), (&task["id"], &json!("stopped")));
    assert!(again["ended"].as_str().is_some(), "{again}");
}
