//! Commands that a signal ends: they say how it goes on, and leave nothing that keeps space or
//! shows up later.

use super::Cli;
use super::refusing::{command, config, run};
use crate::support::nfs;
use crate::support::program::{Answer, files_below};
use crate::support::s3::{Fault, Rule, S3Server};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

fn start(cli: &Cli, args: &[&str]) -> Child {
    cli.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until it is at work, ends it, and answers what it said.
async fn interrupt(mut child: Child, at_work: impl Fn() -> bool) -> Answer {
    while !at_work() {
        assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::INT,
    )
    .unwrap();
    Answer::from(child.wait_with_output().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_leaves_no_reader_and_says_how_it_goes_on() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web"]);
    let serving = cli.serve(&[]);
    let (client, root) = nfs::mount(serving.nfs, "/web").await;
    nfs::write(&client, &root, "kept", &[9; 300_000]).await;
    serving.stop();
    cli.ok(&["dataset", "snapshot", "create", "web", "cut"]);
    cli.ok(&["dataset", "delete", "web"]);
    let readers = || files_below(&cli.path().join("pool/readers"));
    let state = cli.path().join("scrubbed").display().to_string();
    for (with, says) in [(&["--state-file", &state][..], "same --state-file"), (&[], "starts over")]
    {
        let scrub = start(&cli, &[&["scrub", "--rate", "1"], with].concat());
        let ended = interrupt(scrub, || !readers().is_empty()).await;
        assert!(ended.code == 130 && ended.err.contains(says), "{ended:?}");
        assert_eq!(readers(), Vec::<PathBuf>::new());
    }
    let nowhere = cli.run(&["scrub", "--state-file", "/no/such/folder/state"]);
    assert!(
        nowhere.code == 10 && nowhere.err.contains("--state-file /no/such/folder/state"),
        "{nowhere:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_leaves_no_snapshot() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web"]);
    let config = cli.path().join("config.yaml");
    // The owner does not poll its mailbox while the test runs.
    std::fs::write(&config, "mailboxInterval: 10m\n").unwrap();
    let serving = cli.serve(&["--config", &config.display().to_string()]);
    let (client, root) = nfs::mount(serving.nfs, "/web").await;
    nfs::write(&client, &root, "kept", &[9; 300_000]).await;
    let records = || files_below(&cli.path().join("pool/snapshots")).len();
    let check = start(&cli, &["check", "web"]);
    let ended = interrupt(check, || records() > 0).await;
    assert!(ended.code == 130 && ended.err.contains("again"), "{ended:?}");
    let left = cli.json(&["dataset", "snapshot", "list", "web"]);
    assert!(
        left.as_array().unwrap().iter().all(|snapshot| snapshot["state"] == "deleting"),
        "{left}"
    );
    assert_eq!(left.as_array().unwrap().len(), 1, "it was being made");
    let own = cli.run(&["dataset", "snapshot", "create", "web", "check-0123456789abcdef"]);
    assert!(own.code == 2 && own.err.contains("choose another"), "{own:?}");
    serving.stop();
}

/// Each answer of the store takes so long that the signal comes in the middle of the work, with the
/// reader's registration made and nothing read yet. (A history registers nothing.)
#[tokio::test(flavor = "multi_thread")]
async fn readers_that_are_stopped_leave_no_registration() {
    let (room, store) = (tempfile::tempdir().unwrap(), S3Server::start());
    let config = config(room.path(), &store);
    let ok = |args: &[&str]| {
        let done = run(&config, args);
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
    };
    ok(&["pool", "create"]);
    ok(&["dataset", "create", "web"]);
    for snapshot in ["s1", "s2", "s3"] {
        ok(&["dataset", "snapshot", "create", "web", snapshot]);
    }
    store.script(Rule::any().then(Fault::slow(Duration::from_millis(250))));
    let readers = || {
        let mut keys = store.keys();
        keys.retain(|key| key.contains("/readers/"));
        keys
    };
    let target = room.path().join("copy").display().to_string();
    for (args, says) in [
        (&["dataset", "find", "*", "web"][..], "not complete"),
        (&["dataset", "diff", "web@s1", "web@s2"], "not complete"),
        (
            &["dataset", "restore", "web@s1", "/", "--in-place", "--force", "--dry-run"],
            "nothing was changed",
        ),
        (&["dataset", "restore", "web@s1", "/", &target], "again"),
        (&["dataset", "ls", "web@s1", "/"], "not complete"),
    ] {
        let child = command(&config, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let ended = interrupt(child.unwrap(), || !readers().is_empty()).await;
        assert!(ended.code == 130 && ended.err.contains(says), "{args:?}: {ended:?}");
        assert_eq!(readers(), Vec::<PathBuf>::new(), "{args:?}");
    }
}
