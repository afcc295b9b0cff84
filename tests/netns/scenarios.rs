//! The faults of an owner, one after the other, and then some at random. After each, every worker
//! goes on under one owner, and the history up to then is checked.

use crate::cluster::{BOUND, Cluster, LEASE};
use crate::history::{self, no_stale_read, one_owner_at_a_time};
use crate::network::{Link, SEATS, cut, heal};
use crate::worker::now;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

type Outcome = Result<String, String>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The volume is unstaged on its owner, and staged again.
    Unstaged,
    Killed,
    /// SIGSTOP, and SIGCONT when another node has taken over.
    Stopped,
    CutFromStore,
    CutFromPeers,
    CutFromBoth,
}

/// Longer than an owner may be silent before its peers look whether it is alive, and than its
/// lease.
const CUT: Duration = Duration::from_secs(5 + 2 * LEASE);
/// Time for which a fault goes on once another node has taken over.
const AFTER: Duration = Duration::from_secs(2);

impl Fault {
    const ALL: [Self; 6] = [
        Self::Unstaged,
        Self::Killed,
        Self::Stopped,
        Self::CutFromStore,
        Self::CutFromPeers,
        Self::CutFromBoth,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Unstaged => "clean: the owner unstages the volume",
            Self::Killed => "killed: kill -9 of the owner",
            Self::Stopped => "stopped: SIGSTOP of the owner, then SIGCONT",
            Self::CutFromStore => "no-store: the owner is cut off from the store",
            Self::CutFromPeers => "no-peers: the owner is cut off from its peers",
            Self::CutFromBoth => "alone: the owner is cut off from both",
        }
    }

    fn links(self) -> &'static [Link] {
        match self {
            Self::CutFromStore => &[Link::Store],
            Self::CutFromPeers => &[Link::Peers],
            Self::CutFromBoth => &Link::ALL,
            Self::Unstaged | Self::Killed | Self::Stopped => &[],
        }
    }

    fn happen(self, cluster: &mut Cluster) -> Outcome {
        let (owner, before) = (cluster.owner(), cluster.opening());
        let since = now();
        let note = match self {
            Self::Unstaged => {
                cluster.unstage(owner);
                let note = taken_over(cluster, &before, since);
                cluster.stage(owner);
                note
            }
            Self::Killed => {
                cluster.kill_node(owner);
                let note = taken_over(cluster, &before, since);
                cluster.start_node(owner);
                note
            }
            Self::Stopped => {
                cluster.signal(owner, Signal::STOP);
                let note = taken_over(cluster, &before, since);
                std::thread::sleep(AFTER);
                cluster.signal(owner, Signal::CONT);
                note
            }
            Self::CutFromStore | Self::CutFromBoth => {
                self.links().iter().for_each(|link| cut(owner, *link));
                let note = taken_over(cluster, &before, since);
                std::thread::sleep(AFTER);
                self.links().iter().for_each(|link| heal(owner, *link));
                format!("{note}; {}", pause(cluster, &before)?)
            }
            Self::CutFromPeers => {
                cut(owner, Link::Peers);
                std::thread::sleep(CUT);
                cluster.progress(&[owner]);
                heal(owner, Link::Peers);
                "its own node goes on".to_owned()
            }
        };
        let waits = |seat: &&str| (*seat == owner) != (self == Self::CutFromPeers);
        for seat in SEATS.into_iter().filter(waits) {
            cluster.isolated(seat, since);
        }
        cluster.settle();
        if self == Self::CutFromPeers && cluster.opening() != before {
            return Err("a living owner was replaced".to_owned());
        }
        one_owner_at_a_time(&cluster.calls())?;
        no_stale_read(&cluster.calls())?;
        let longest = cluster.longest(since)?.as_secs_f64();
        Ok(format!("{note}; the longest call elsewhere took {longest:.1} s"))
    }
}

fn taken_over(cluster: &mut Cluster, before: &str, since: u64) -> String {
    let first = cluster.next_opening(before, since);
    let took = Duration::from_nanos(first - since).as_secs_f64();
    format!("another node answers after {took:.1} s")
}

/// The time between the last acknowledgement of an owner that was cut off and the first of the
/// next.
fn pause(cluster: &Cluster, before: &str) -> Outcome {
    let openings = history::openings(&cluster.calls());
    let last = openings[before].last_ended;
    let next = openings.values().map(|opening| opening.first_ended);
    let next = next.filter(|first| *first > openings[before].first_ended).min();
    match next.and_then(|next| next.checked_sub(last)) {
        Some(pause) => Ok(format!("nobody did for {} ms before", pause / 1_000_000)),
        None => Err("the owner acknowledged calls when another one already did".to_owned()),
    }
}

fn finish(cluster: &mut Cluster) -> Outcome {
    let (reports, expected) = cluster.stop_workers();
    for (report, seat) in reports.iter().zip(SEATS) {
        if *report != expected {
            let lost: Vec<&String> = expected.names.difference(&report.names).collect();
            let more: Vec<&String> = report.names.difference(&expected.names).collect();
            return Err(format!(
                "as {seat} sees it: registers {:?} instead of {:?}, names lost {lost:?}, too many \
                 {more:?}",
                report.registers, expected.registers
            ));
        }
    }
    cluster.check()?;
    let (calls, names, requests) =
        (cluster.calls().len(), expected.names.len(), cluster.requests());
    Ok(format!("{calls} reads and writes, {names} names, {requests} requests"))
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

pub fn run() -> ExitCode {
    history::check_the_checks();
    let program: PathBuf = std::env::var_os("ZEROFS_BIN").expect("ZEROFS_BIN").into();
    let (moves, seed) = (setting("ZEROFS_MOVES", 2), setting("ZEROFS_SEED", rand::random()));
    println!("ZEROFS_SEED={seed} ZEROFS_MOVES={moves}; a lease lasts {LEASE} s, a call {BOUND:?}");
    let mut rng = StdRng::seed_from_u64(seed);
    let random = (0..moves).map(|_| Fault::ALL[rng.random_range(0..Fault::ALL.len())]);
    let faults: Vec<Fault> = Fault::ALL.into_iter().chain(random).collect();
    let mut cluster = Cluster::start(&program);
    let secs = setting("ZEROFS_PODS_SECS", 10);
    if !step(&mut cluster, "pods: 16 write one volume on four nodes", |cluster| cluster.pods(secs))
    {
        return ended(0, 1);
    }
    let mut passed = 1;
    for fault in faults {
        if !step(&mut cluster, fault.name(), |cluster| fault.happen(cluster)) {
            return ended(passed, 1);
        }
        passed += 1;
    }
    if !step(&mut cluster, "end: everything that was acknowledged is there", finish) {
        return ended(passed, 1);
    }
    ended(passed + 1, 0)
}

/// Runs a step and says how it ended. After a failure nothing is known of the cluster.
fn step(cluster: &mut Cluster, name: &str, work: impl FnOnce(&mut Cluster) -> Outcome) -> bool {
    let begun = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| work(cluster)));
    let took = begun.elapsed().as_secs_f64();
    let failure = match outcome {
        Ok(Ok(note)) => {
            println!("ok   {name} ({took:.1} s): {note}");
            return true;
        }
        Ok(Err(failure)) => failure,
        // The panic was printed.
        Err(_) => "see above".to_owned(),
    };
    println!("FAIL {name} ({took:.1} s): {failure}\n{}", cluster.logs());
    false
}

fn ended(passed: usize, failed: usize) -> ExitCode {
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
