//! Commands through a server that has no room for all of their requests at once.

use super::command_line::{directly, through};
use super::server::Server;
use crate::support::program::{answer, ok, program};
use std::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn find_waits_for_a_server_that_is_busy() {
    // Twelve requests at once, and three a second: fewer than the states that are searched.
    let server = Server::start_with("  requestsPerSecond: 3\n");
    server.fill().await;
    for n in 0..15 {
        let name = format!("more-{n:02}");
        let made =
            answer(&mut directly(&server, &["dataset", "snapshot", "web", &name, "--readonly"]));
        assert_eq!(made.code, 0, "{made:?}");
    }
    let find = ["dataset", "find", "a.txt", "web"];
    let found = answer(&mut through(&server, &find));
    assert_eq!(found, answer(&mut directly(&server, &find)));
    assert!(found.code == 0 && found.out.contains("docs/a.txt"), "{found:?}");
}

/// Commands that read, and print the same with a server and without.
const READS: &[&[&str]] = &[
    &["dataset", "diff", "web@s1"],
    &["dataset", "diff", "web@s1", "--stat"],
    &["dataset", "history", "web", "/docs/a.txt"],
    &["dataset", "list"],
    &["dataset", "info", "web@s1"],
    &["dataset", "list-snapshots", "web"],
    &["dataset", "snapshot", "info", "web", "s1"],
    &["policy", "list"],
    &["policy", "show", "web"],
];

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_read_wait_for_a_server_that_is_busy() {
    // Eight requests at once, and two a second.
    let server = Server::start_with("  requestsPerSecond: 2\n");
    server.fill().await;
    ok(&mut directly(
        &server,
        &["policy", "set", "web", "--schedule", "0 0 1 1 *", "--daily", "7"],
    ));
    let lines = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let through = |args: &[&str]| -> Command {
        let mut command = program(args);
        command.args(["--server", &format!("http://{}", server.admin)]);
        command.env("ZEROFS_TOKEN", server.token("reader"));
        command
    };
    let told_of_busy = |args: &[&str]| {
        // The caller has just had all of its requests.
        while server.by("reader", "GET", "/session").send().status != 429 {}
        let told = answer(&mut through(args));
        assert_eq!((told.code, told.err.as_str()), (0, ""), "{args:?}: {told:?}");
        told
    };
    for args in READS {
        let (told, direct) = (told_of_busy(args), answer(&mut directly(&server, args)));
        assert_eq!(lines(&told.out), lines(&direct.out), "{args:?}");
    }
    for args in [
        &["space"][..],
        &["policy", "simulate", "web"],
        &["task", "list"],
        &["dataset", "cat", "web@s1", "/docs/a.txt"],
    ] {
        told_of_busy(args);
    }
}
