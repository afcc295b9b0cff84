//! A death at every durable step, in every way there is.
//!
//! - **failed**: the step fails once. Where the process goes on, the repeated call must do; where
//!   it cannot, another process takes over with the
//!   node's journal.
//! - **lost node**: as before, but the process ends there and the journal is gone.
//! - **killed**: a process of its own, on a pool in a folder, ends by SIGABRT at the step.
//!
//! After each the state is that before or after the call that was not answered (of a lost node: one
//! that holds everything durable), the rows hold together, the same call sent again does, the
//! script goes on to its end, and in the end no pack is left that nothing refers to.

use crate::process::{Died, Expected, Process, Progress, run};
use crate::script::{SCRIPTS, Script};
use crate::storage::Storage;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// One process may take this long for a script: a step that hangs is a failure.
const LIMIT: Duration = Duration::from_secs(60);
/// Cases at once: they wait a good part of their time.
const CASES_AT_ONCE: usize = 8;

/// Steps that no script can meet, and the tests that fail at them.
const ELSEWHERE: &[(&str, &str)] = &[
    // Two writers of one record that overtake each other; a sweep of what ended a day ago.
    ("catalog.void", "tests/catalog/faults.rs"),
    ("catalog.sweep", "tests/catalog/faults.rs"),
    // A dataset that is renamed.
    ("catalog.rename.intent", "tests/catalog/renaming.rs"),
    ("catalog.rename.alias", "tests/catalog/renaming.rs"),
    ("catalog.rename.renamed", "tests/catalog/renaming.rs"),
    // An object of a folder that is linked and not durable yet.
    ("bucket.folder.linked", "tests/bucket/folder.rs"),
    // A node that makes its channel known.
    ("channel.before-publish", "src/control/node/tests.rs"),
    ("channel.after-publish", "src/control/node/tests.rs"),
    // An inline volume of a pod.
    ("control.ephemeral.recorded", "src/control/node/tests.rs"),
    ("control.ephemeral.unstaged", "src/control/node/tests.rs"),
    // A damaged volume.
    ("control.damage.reported", "src/control/damage_report.rs"),
    ("control.damage.posted", "tests/lifecycle/cluster.rs"),
    // A collector's claim.
    ("collect.claim", "tests/lifecycle/collecting.rs"),
    ("collect.claim-released", "tests/lifecycle/collecting.rs"),
    // A snapshot whose creation nobody finished.
    ("collect.snapshot.abandoned", "tests/lifecycle/unfinished.rs"),
    // A clone whose creation nobody finished; a checkpoint that came too late.
    ("collect.clone.abandoned", "tests/history/steps.rs"),
    ("collect.checkpoint", "tests/history/steps.rs"),
    // A close that has to open the volume again.
    ("volume.close.recover", "tests/lifecycle/closing.rs"),
    // The turns of snapshot policies.
    ("control.policy.claim", "tests/lifecycle/policies.rs"),
    ("control.policy.claim-released", "tests/lifecycle/policies.rs"),
    ("control.policy.expire", "tests/lifecycle/policies.rs"),
    // A group snapshot.
    ("control.group.begin", "tests/lifecycle/groups.rs"),
    ("control.group.intent", "tests/lifecycle/groups.rs"),
    ("control.group.intents", "tests/lifecycle/groups.rs"),
    ("control.group.frozen", "tests/lifecycle/groups.rs"),
    ("control.group.cut", "tests/lifecycle/groups.rs"),
    ("control.group.thawed", "tests/lifecycle/groups.rs"),
    ("control.group.ready", "tests/lifecycle/groups.rs"),
    ("control.group.member", "tests/lifecycle/groups.rs"),
    ("control.group.discard", "tests/lifecycle/groups.rs"),
    ("control.group.tombstone", "tests/lifecycle/groups.rs"),
    ("control.group.member-tombstone", "tests/lifecycle/groups.rs"),
    ("control.group.removed", "tests/lifecycle/groups.rs"),
    // A restore in place.
    ("control.restore.begin", "tests/lifecycle/restore_interrupted.rs"),
    ("control.restore.intent", "tests/lifecycle/restore_interrupted.rs"),
    ("control.restore.pinned", "tests/lifecycle/restore_interrupted.rs"),
    ("control.restore.durable", "tests/lifecycle/restore_interrupted.rs"),
    ("fs.restore.object", "tests/lifecycle/restore_interrupted.rs"),
    ("fs.restore.kept", "tests/lifecycle/restore_interrupted.rs"),
    ("fs.content.copied", "tests/lifecycle/restore_interrupted.rs"),
    ("volume.restore.forget", "tests/lifecycle/restore_interrupted.rs"),
    // A snapshot that is read, and one that is a volume.
    ("control.create.reader", "tests/lifecycle/read_only.rs"),
    ("catalog.reading", "tests/lifecycle/snapdir.rs"),
    ("catalog.heartbeat.listed", "tests/lifecycle/copied_state_dir.rs"),
    ("catalog.reading-ended", "tests/lifecycle/snapdir.rs"),
    ("volume.snapshot.registered", "tests/lifecycle/snapdir.rs"),
    // A clone that would read too many ancestors.
    ("control.create.detached", "tests/history/chains.rs"),
    // A clone whose origin goes; a controller's claim; an owner that is gone for good.
    ("collect.detach.begin", "tests/lifecycle/detach.rs"),
    ("collect.detach.whole", "tests/lifecycle/detach.rs"),
    ("collect.detach.recorded", "tests/lifecycle/detach.rs"),
    ("fs.db.detach.rewritten", "tests/lifecycle/detach.rs"),
    ("fs.db.detach.dropped", "tests/lifecycle/detach.rs"),
    ("volume.maintenance.claimed", "tests/lifecycle/detach.rs"),
    ("control.release.begin", "tests/lifecycle/takeover.rs"),
    ("control.release.revoked", "tests/lifecycle/takeover.rs"),
    ("volume.lost.claimed", "tests/lifecycle/takeover.rs"),
    ("volume.lost.fenced", "tests/lifecycle/takeover.rs"),
    ("fs.commit.before-void", "tests/lifecycle/takeover.rs"),
    ("fs.commit.after-void", "tests/lifecycle/takeover.rs"),
    // Packs that are mostly dead.
    ("collect.rewrite-pending", "tests/lifecycle/rewriting.rs"),
    ("collect.obsolete-markers", "tests/history/steps.rs"),
    ("collect.sealed", "tests/lifecycle/rewriting.rs"),
    ("collect.rewrite.listed", "tests/history/steps.rs"),
    ("chunk.before-rewrite", "tests/lifecycle/rewriting.rs"),
    ("chunk.rewritten", "tests/lifecycle/rewriting.rs"),
    // An administrator's repair.
    ("fs.check.before-repair", "tests/crash/repair.rs"),
    ("fs.check.repaired", "tests/crash/repair.rs"),
    // A lease that expired.
    ("volume.lease.before-reacquire", "tests/lifecycle/leases.rs"),
    // Collection deletes through the bucket.
    ("chunk.before-pack-delete", "tests/chunk/packing.rs"),
    ("chunk.after-pack-delete", "tests/chunk/packing.rs"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    Failed,
    LostNode,
    Killed,
}

/// A death to be died.
#[derive(Clone, Debug)]
struct Case {
    step: String,
    script: &'static str,
    /// Times that the step goes well before.
    after: u64,
    death: Death,
}

/// The names of all durable steps: every literal that is given to a `step(…)` in the sources.
fn steps_in_the_code() -> Vec<String> {
    fn files(at: &Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(path);
            }
        }
    }
    let mut sources = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut sources);
    let mut steps: Vec<String> = Vec::new();
    for source in sources {
        let text = std::fs::read_to_string(source).unwrap();
        for call in text.split("step(").skip(1) {
            let literal = call
                .split(')')
                .next()
                .and_then(|arguments| arguments.split('"').nth(1))
                .unwrap_or_default();
            let is_name = literal.contains('.')
                && literal.chars().all(|c| c.is_ascii_lowercase() || matches!(c, '.' | '-'));
            if is_name {
                steps.push(literal.to_owned());
            }
        }
    }
    steps.sort();
    steps.dedup();
    steps
}

/// The steps that a script passes when nothing fails, and how often.
fn passes(script: &'static str) -> BTreeMap<String, u64> {
    let folder = tempfile::tempdir().unwrap();
    let storage = Storage::memory(folder.path());
    run(script, async move {
        storage.create().await;
        let mut process = Process::start(&storage, |_| {}, Script::by_name(script)).await.patient();
        process.run(Expected { first: 0, last: 0, next: 0 }, |_| {}).await.expect("nothing fails");
        process.failpoints().passed()
    })
}

/// Which of a step's times is met first, in parts of all: each kind of death another.
fn first_of(death: Death) -> u64 {
    match death {
        Death::Failed => 0,
        Death::Killed => 1,
        Death::LostNode => 2,
    }
}

/// Each step at one of its times; at more of them with a larger `ZEROFS_TEST_SIZE`.
fn cases(death: Death) -> Vec<Case> {
    let passed: Vec<_> = SCRIPTS.iter().map(|script| (*script, passes(script))).collect();
    let (mut cases, mut missed) = (Vec::new(), Vec::new());
    for step in steps_in_the_code() {
        if let Some((_, file)) = ELSEWHERE.iter().find(|(name, _)| *name == step) {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            assert!(
                std::fs::read_to_string(&path).unwrap().contains(&step),
                "{step} is not in {file}"
            );
            continue;
        }
        // The steps of catalog and controller are of one process; theirs are failures.
        let of_a_volume = ["fs.", "chunk.", "volume."].iter().any(|area| step.starts_with(area));
        if death != Death::Failed && !of_a_volume && crate::support::run::size() == 1 {
            continue;
        }
        let met = passed
            .iter()
            .find_map(|(script, passed)| passed.get(&step).map(|times| (*script, *times)));
        let Some((script, times)) = met else {
            missed.push(step);
            continue;
        };
        let mut afters: Vec<u64> = (0..crate::support::run::size())
            .map(|n| first_of(death) + n)
            .map(|n| times.saturating_sub(1) * n / (crate::support::run::size() + 2))
            .collect();
        afters.dedup();
        cases.extend(afters.into_iter().map(|after| Case {
            step: step.clone(),
            script,
            after,
            death,
        }));
    }
    assert!(
        missed.is_empty(),
        "no script meets the durable steps {missed:?}: add a call that does to \
         tests/crash/script.rs"
    );
    cases
}

fn play_all(death: Death) {
    let cases = cases(death);
    let (all, next, missed) = (cases.len(), AtomicUsize::new(0), AtomicUsize::new(0));
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|threads| {
        for _ in 0..CASES_AT_ONCE {
            threads.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match std::panic::catch_unwind(|| play(case)) {
                        Ok(true) => {}
                        Ok(false) => drop(missed.fetch_add(1, Ordering::Relaxed)),
                        Err(_) => failed.lock().unwrap().push(case),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "{} of {all} cases, whose panics are above: {failed:#?}",
        failed.len()
    );
    let missed = missed.into_inner();
    println!("{all} deaths by {death:?}, {missed} of steps that were not met as often this time");
    assert!(missed * 4 < all, "{missed} of {all} cases did not meet their step");
}

fn armed(after: u64, action: &str) -> String {
    if after == 0 { format!("{action}->off") } else { format!("{after}*off->{action}->off") }
}

/// Plays a case; answers whether its step was met.
fn play(case: &Case) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let script = Script::by_name(case.script);
    let (storage, first) = match case.death {
        Death::Killed => {
            let storage = Storage::folder(folder.path());
            (storage.clone(), killed(case, &storage))
        }
        Death::Failed | Death::LostNode => {
            let storage = Storage::memory(folder.path());
            (storage.clone(), failed(case, &storage))
        }
    };
    let Ended { progress, met, died } = first;
    if died.is_none() {
        return met;
    }
    let expected = match case.death {
        Death::LostNode => {
            storage.lose_journals();
            Expected {
                first: progress.durable(&script),
                last: progress.acked + 1,
                next: progress.acked,
            }
        }
        Death::Failed | Death::Killed => {
            Expected { first: progress.acked, last: progress.acked + 1, next: progress.acked }
        }
    };
    let (what, again) = (format!("{case:?}, died: {died:?}"), storage.clone());
    let finished = run(&format!("after {case:?}"), async move {
        let mut process = Process::start(&again, |_| {}, script).await;
        limited(process.run(expected, |_| {})).await
    });
    assert!(finished.is_ok(), "{what}: the next process: {finished:?}");
    true
}

struct Ended {
    progress: Progress,
    met: bool,
    died: Option<String>,
}

async fn limited(process: impl Future<Output = Result<(), Died>>) -> Result<(), Died> {
    match tokio::time::timeout(LIMIT, process).await {
        Ok(ended) => ended,
        Err(_) => panic!("a process hangs"),
    }
}

/// A process whose step fails once. It is dead when a call does not succeed by being repeated.
fn failed(case: &Case, storage: &Storage) -> Ended {
    let (case, storage) = (case.clone(), storage.clone());
    let acked = Arc::new(AtomicUsize::new(0));
    run(&format!("{case:?}"), async move {
        storage.create().await;
        let action = armed(case.after, "1*return");
        let arm = |failpoints: &zerofs_csi::telemetry::Failpoints| {
            failpoints.set(&case.step, &action).unwrap();
        };
        let mut process = Process::start(&storage, arm, Script::by_name(case.script)).await;
        let acked_now = acked.clone();
        let answered = move |at| acked_now.store(at, Ordering::Relaxed);
        let ended = limited(process.run(Expected { first: 0, last: 0, next: 0 }, answered)).await;
        let met =
            process.failpoints().passed().get(&case.step).is_some_and(|times| *times > case.after);
        let died = ended.err().map(|died| format!("at {}: {}", died.at, died.why));
        Ended { progress: Progress { acked: acked.load(Ordering::Relaxed) }, met, died }
    })
}

const CHILD: &str = "CRASH_CHILD";

/// A process of its own that ends by SIGABRT at the step.
fn killed(case: &Case, storage: &Storage) -> Ended {
    let acks = storage.journals().with_file_name("acks");
    let settings = [
        storage.journals().parent().unwrap().to_str().unwrap(),
        case.script,
        &case.step,
        &case.after.to_string(),
    ]
    .join("\n");
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "steps::a_process_to_be_killed", "--nocapture", "--test-threads=1"]);
    let output = child.env(CHILD, settings).stdin(Stdio::null()).output().unwrap();
    use std::os::unix::process::ExitStatusExt;
    let died = output.status.signal() == Some(libc::SIGABRT);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(died || output.status.success(), "{case:?}: {:?}\n{text}", output.status);
    assert!(
        !died || text.contains(&format!("failpoint {} panic", case.step)),
        "{case:?} died of something else:\n{text}"
    );
    let acked = std::fs::read(&acks).unwrap_or_default().len();
    Ended { progress: Progress { acked }, met: died, died: died.then(|| "killed".to_owned()) }
}

/// Not a test but the process that [`killed`] starts.
#[test]
fn a_process_to_be_killed() {
    let Ok(settings) = std::env::var(CHILD) else { return };
    let settings: Vec<&str> = settings.split('\n').collect();
    let [folder, script, step, after] = settings[..] else { panic!("{settings:?}") };
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |why| {
        default(why);
        std::process::abort();
    }));
    let (storage, script) = (Storage::folder(Path::new(folder)), Script::by_name(script));
    let acks = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(Path::new(folder).join("acks"))
        .unwrap();
    let (step, action) = (step.to_owned(), armed(after.parse().unwrap(), "panic"));
    run("to be killed", async move {
        storage.create().await;
        let mut process =
            Process::start(&storage, |failpoints| failpoints.set(&step, &action).unwrap(), script)
                .await;
        // One byte for each answer: what is written is there whatever becomes of this process.
        let answered = |_| (&acks).write_all(b".").unwrap();
        limited(process.run(Expected { first: 0, last: 0, next: 0 }, answered))
            .await
            .expect("nothing fails but by dying");
    });
}

#[test]
fn a_failure_at_any_step_is_repaired_by_repeating_the_call() {
    play_all(Death::Failed);
}

#[test]
fn a_lost_node_loses_nothing_that_was_durable() {
    play_all(Death::LostNode);
}

#[test]
fn a_killed_process_loses_nothing_that_was_answered() {
    play_all(Death::Killed);
}
