//! What commands print into a pipe that is closed, and on a terminal of 80 columns.

use super::Cli;
use crate::support::nfs;
use crate::support::program::{Answer, files_below};
use std::path::PathBuf;
use std::process::Stdio;

/// A dataset with files, two snapshots and a policy.
async fn filled() -> Cli {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web", "--size", "1Gi"]);
    let serving = cli.serve(&[]);
    let (client, root) = nfs::mount(serving.nfs, "/web").await;
    for n in 0..20 {
        nfs::write(&client, &root, &format!("file-{n:02}.txt"), &vec![b'a'; 1000 + n]).await;
    }
    cli.ok(&["dataset", "snapshot", "create", "web", "monday"]);
    nfs::write(&client, &root, "file-00.txt", b"changed").await;
    nfs::write(&client, &root, "new.txt", b"new").await;
    cli.ok(&["dataset", "snapshot", "create", "web", "tuesday"]);
    serving.stop();
    cli.ok(&["policy", "set", "web", "--schedule", "1h", "--hourly", "24", "--daily", "30"]);
    cli
}

/// Commands that print what they find, and what says that they have found it.
const COMMANDS: &[(&[&str], &str)] = &[
    (&["dataset", "find", "*.txt", "web"], "new.txt"),
    (&["dataset", "diff", "web@monday"], "new.txt"),
    (&["dataset", "diff", "web@monday", "web@tuesday", "--stat"], "added"),
    (&["dataset", "diff", "web@monday", "--tree"], "FOLDER"),
    (&["dataset", "history", "web", "/file-00.txt"], "web@monday"),
    (&["dataset", "restore", "web@monday", "/", "--in-place", "--force", "--dry-run"], "object"),
    (&["dataset", "ls", "web@monday", "/"], "file-19.txt"),
    (&["dataset", "ls", "-l", "web@monday", "/"], "file-19.txt"),
    (&["dataset", "list"], "web"),
    (&["dataset", "list-snapshots", "web"], "tuesday"),
    (&["dataset", "info", "web"], "web"),
    (&["policy", "show", "web"], "hourly"),
    (&["policy", "list"], "hourly"),
    (&["policy", "simulate", "web", "--days", "3"], "slots"),
    (&["space"], "web@monday"),
];

#[tokio::test(flavor = "multi_thread")]
async fn output_fits_a_terminal_and_nobody_has_to_read_it() {
    let cli = filled().await;
    for (args, says) in COMMANDS {
        let shown = cli.ok(args);
        assert!(shown.contains(says), "{args:?}: {shown}");
        // A sentence or an id may be wrapped, a table may not.
        let in_table = |line: &&str| line.contains("  ") && !line.starts_with("handle ");
        for line in shown.lines().filter(in_table) {
            assert!(line.chars().count() <= 80, "{args:?}: {line}");
        }
        for json in [false, true] {
            let mut command = cli.command(args);
            if json {
                command.arg("--json");
            }
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            drop(child.stdout.take());
            let ended = Answer::from(child.wait_with_output().unwrap());
            assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{args:?} json {json}");
        }
    }
    let readers = files_below(&cli.path().join("pool/readers"));
    assert_eq!(readers, Vec::<PathBuf>::new());
}
