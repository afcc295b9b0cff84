//! The kernel tier: the driver's own processes under a kernel with a real NFS client, driven
//! through their CSI sockets as kubelet and the sidecars do, and ordinary programs at work on what
//! they mount. `tests/kernel/run` starts this program in a guest; elsewhere it says so and runs
//! nothing, because it mounts as root.
//!
//! Nothing may hang: every script, call and wait has a limit, every case has one above them, and a
//! failure names what was awaited. What programs wrote is compared by checksum after the client's
//! cache was dropped.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "driver.rs"]
mod driver;
#[path = "kubelet.rs"]
mod kubelet;
#[path = "programs.rs"]
mod programs;
#[path = "restarts.rs"]
mod restarts;
#[path = "selinux.rs"]
mod selinux;
#[path = "shared.rs"]
mod shared;
#[path = "step.rs"]
mod step;
#[path = "upgrades.rs"]
mod upgrades;
#[path = "volumes.rs"]
mod volumes;

use std::io::Write;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use step::Outcome;

struct Case {
    name: &'static str,
    run: fn() -> Outcome,
}

/// The last resort, for what has no limit of its own: no case comes near it, on a machine that has
/// other work too.
const CASE_LIMIT: Duration = Duration::from_secs(1200);

const fn case(name: &'static str, run: fn() -> Outcome) -> Case {
    Case { name, run }
}

const CASES: &[Case] = &[
    case("posix: files, links, times, devices, sparse files, permissions", programs::posix),
    case("git: clone, gc and fsck", programs::git),
    case("sqlite-rollback: integrity_check", programs::sqlite_rollback),
    case("sqlite-wal: integrity_check", programs::sqlite_wal),
    case("sqlite-four: four processes at once, integrity_check", programs::sqlite_four),
    case("postgres: initdb, pgbench, kill -9, amcheck", programs::postgres),
    case("npm: a package installed from a folder", programs::npm),
    case("sparse: tar -S and rsync -aHAX, links, pipes, times", programs::sparse),
    case("make: a C program of many files", programs::c_build),
    case("tar: many files out and back, checksums", programs::tar),
    case("mmap: shared writes, read back by other processes", programs::mmap),
    case("listing: readdir of a large folder, rm -rf, df", programs::listing),
    case("two: volumes mounted at once, one unmounted under the other", volumes::two_at_once),
    case("quota: ENOSPC at the volume's size, df tells, room after rm, expansion", volumes::quota),
    case("snapshot: of a mounted volume, clone, both right", volumes::snapshot),
    case("snapdir: find, diff -r and cp -a over .snapshots", volumes::snapdir),
    case("options: noexec and ro on every mount, a linked folder, 20 groups", volumes::options),
    case("limits: a write beyond the volume's bandwidth waits, nothing else does", volumes::limits),
    case("rot: a turned bit in a pack is an error, never wrong bytes", volumes::rot),
    case(
        "shared: a volume on two nodes, its owner killed under a writer of the other",
        shared::two_nodes,
    ),
    case("kill-dd: kill -9 of the node plugin during dd conv=fsync", restarts::kill_during_dd),
    case(
        "killed: kill -9 of the node plugin again and again under a verifier, git and sqlite",
        upgrades::killed,
    ),
    case(
        "upgrade: another node plugin takes over under a verifier, git and sqlite",
        upgrades::handed_over,
    ),
    case(
        "sigterm: the node plugin stopped under open files, started again",
        restarts::stop_under_open_files,
    ),
    case(
        "terminating: unpublish and unstage after kill -9, without the store",
        restarts::unpublish_after_restart,
    ),
    case("umount: by hand while no node plugin runs", restarts::umount_without_plugin),
    // The policy stays: the last.
    case("selinux: contexts of mounts, enforced", selinux::contexts),
];

/// A case on a thread of its own: one that hangs is given up, its processes are killed, and the
/// next one runs.
fn run(case: &Case) -> Outcome {
    let (done, result) = mpsc::channel();
    let work = case.run;
    std::thread::spawn(move || {
        // Given up: nobody listens.
        let _ = done.send(work());
    });
    let outcome = match result.recv_timeout(CASE_LIMIT) {
        Ok(outcome) => {
            outcome.map_err(|error| format!("{error}\n  awaited last: {}", step::awaited()))
        }
        Err(RecvTimeoutError::Timeout) => {
            Err(format!("not done after {CASE_LIMIT:?}; awaited: {}", step::awaited()))
        }
        Err(RecvTimeoutError::Disconnected) => {
            Err(format!("panicked; awaited last: {}", step::awaited()))
        }
    };
    step::kill_left();
    outcome
}

fn main() -> ExitCode {
    if std::env::var_os("ZEROFS_KERNEL").is_none() {
        println!("the kernel tier runs in a guest: tests/kernel/run, or .ci/run kernel");
        return ExitCode::SUCCESS;
    }
    let only: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = only
        .iter()
        .find(|name| !CASES.iter().any(|case| case.name.starts_with(&format!("{name}:"))))
    {
        println!("there is no case {unknown}; there are:");
        CASES.iter().for_each(|case| println!("  {}", case.name));
        return ExitCode::FAILURE;
    }
    let (mut passed, mut failed) = (0, 0);
    let wanted = |case: &&Case| {
        only.is_empty() || only.iter().any(|name| case.name.starts_with(&format!("{name}:")))
    };
    for case in CASES.iter().filter(wanted) {
        let started = Instant::now();
        let outcome = run(case);
        let (name, took) = (case.name, started.elapsed().as_secs_f64());
        match outcome {
            Ok(note) => {
                passed += 1;
                println!(
                    "ok   {name} ({took:.1} s) {}",
                    note.lines().collect::<Vec<_>>().join("; ")
                );
            }
            Err(error) => {
                failed += 1;
                println!("FAIL {name} ({took:.1} s): {error}");
            }
        }
        // The guest may be cut off: what is known so far is told.
        let _ = std::io::stdout().flush();
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
