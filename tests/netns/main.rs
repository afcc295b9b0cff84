//! Several hosts: a node plugin in each of four network namespaces, which share one volume, and a
//! store that they reach over a bridge. Owners are killed, stopped and cut off, and what each
//! client saw is checked against what one register on one host would show.
//!
//! `tests/netns/run` starts this program in namespaces of its own, as root; elsewhere it says so
//! and runs nothing. `ZEROFS_MOVES=20` adds faults, `ZEROFS_SEED` repeats their order, and
//! `ZEROFS_PODS_SECS=180` has 16 pods write for longer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod cluster;
mod history;
mod network;
mod node;
mod pods;
mod scenarios;
#[path = "../support/mod.rs"]
mod support;
mod worker;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["node", dir, seat] => node::run(dir.as_ref(), seat),
        ["worker", endpoint, root, seat] => worker::run(endpoint, root, seat),
        ["pods", endpoint, root, seat, secs] => pods::run(endpoint, root, seat, secs),
        _ if std::env::var_os("ZEROFS_NETNS").is_none() => {
            println!("this tier needs network namespaces: tests/netns/run, or .ci/run netns");
        }
        _ => return scenarios::run(),
    }
    ExitCode::SUCCESS
}
