//! A store that takes small objects and refuses those of the size of packs, as one does behind a
//! proxy with a limit on bodies: `check` and /readyz name the pool and the limit, and /readyz says
//! ok again once the store takes them. And credentials that may only read.

use crate::support::program::{Answer, Server, answer, program};
use crate::support::s3::{Fault, Kind, Rule, S3Server};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Twice what a process may take to find out, on a machine with other work.
const LIMIT: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(100);
const BODY_BYTES_MAX: usize = 1 << 20;

pub fn config(room: &Path, server: &S3Server) -> PathBuf {
    let options: Vec<String> =
        server.options().iter().map(|(key, value)| format!("{key}: \"{value}\"")).collect();
    let text = format!(
        "pools: {{ a: {{ url: \"s3://test/pool\", credentials: {{ {} }} }} }}\n",
        options.join(", ")
    );
    let path = room.join("config.yaml");
    std::fs::write(&path, text).unwrap();
    path
}

pub fn command(config: &Path, args: &[&str]) -> Command {
    let mut command = program(args);
    command.arg("--config").arg(config);
    command
}

pub fn run(config: &Path, args: &[&str]) -> Answer {
    answer(&mut command(config, args))
}

/// The status and the text that /readyz answers; none: nobody listens yet.
fn readyz(at: SocketAddr) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(at).ok()?;
    stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split_ascii_whitespace().nth(1)?.to_owned(), body.to_owned()))
}

fn until(at: SocketAddr, wanted: impl Fn(&str, &str) -> bool) {
    let since = Instant::now();
    loop {
        let said = readyz(at);
        if said.as_ref().is_some_and(|(status, body)| wanted(status, body)) {
            return;
        }
        assert!(since.elapsed() < LIMIT, "/readyz says {said:?}");
        std::thread::sleep(LOOK);
    }
}

#[test]
fn a_store_that_refuses_packs_is_named_by_readyz_and_check_until_it_takes_them() {
    let (server, room) = (S3Server::start(), tempfile::tempdir().unwrap());
    let config = config(room.path(), &server);
    let created = run(&config, &["pool", "create"]);
    assert_eq!(created.code, 0, "{created:?}");
    server.quirks(|quirks| quirks.body_bytes_max = Some(BODY_BYTES_MAX));

    let checked = run(&config, &["check"]);
    assert_eq!(checked.code, 13, "precondition failed: {checked:?}");
    for named in ["s3://test/pool", "client_max_body_size"] {
        assert!(checked.err.contains(named), "{named}: {checked:?}");
    }

    // A port that was free a moment ago.
    let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (state, listen) = (room.path().join("state").display().to_string(), at.to_string());
    let mut serve = command(
        &config,
        &[
            "serve",
            "--state-dir",
            &state,
            "--nfs-listen",
            "127.0.0.1:0",
            "--health-listen",
            &listen,
        ],
    );
    let _serving = Server::spawn(&mut serve);
    until(at, |status, body| {
        status == "503"
            && body.contains("pool a is not writable")
            && body.contains("client_max_body_size")
    });

    server.quirks(|quirks| quirks.body_bytes_max = None);
    until(at, |status, _| status == "200");
    let checked = run(&config, &["check"]);
    assert_eq!(checked.code, 0, "{checked:?}");
}

#[test]
fn a_snapshot_is_checked_with_credentials_that_may_only_read() {
    let (server, room) = (S3Server::start(), tempfile::tempdir().unwrap());
    let config = config(room.path(), &server);
    for args in [
        &["pool", "create"][..],
        &["dataset", "create", "web"],
        &["dataset", "snapshot", "create", "web", "cut"],
    ] {
        let done = run(&config, args);
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
    }
    for kind in [Kind::Put, Kind::PutNew, Kind::PutIf, Kind::Delete, Kind::Upload] {
        server.script(Rule::on(kind).then(Fault::refuse(403, "AccessDenied")));
    }
    let checked = run(&config, &["check", "web@cut"]);
    assert_eq!(checked.code, 0, "{checked:?}");
    assert!(checked.out.contains("clean"), "{checked:?}");
    assert!(checked.err.contains("web@cut: the credentials may not write"), "{checked:?}");
    let head = run(&config, &["check", "web"]);
    assert_eq!(head.code, 0, "{head:?}");
    // Whether the store is suitable cannot be tested; everything else was.
    let whole = run(&config, &["check"]);
    assert_eq!(whole.code, 15, "{whole:?}");
    assert!(whole.out.contains("web@cut") && whole.err.contains("not suitable"), "{whole:?}");
}
