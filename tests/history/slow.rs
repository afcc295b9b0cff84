//! A writer that stands still for an hour at one of its steps, or one of whose requests arrives an
//! hour late, while collectors run: age alone makes nothing deletable (R9), and what comes late
//! means nothing any more (R1, R2).

use crate::model::{Model, Origin};
use crate::ops::{Where, bytes};
use crate::support::fault::{Fault, Op, Rule};
use crate::work;
use crate::world::{Process, World};
use std::collections::BTreeMap;
use std::time::Duration;

pub const HOUR: Duration = Duration::from_secs(3600);
pub const MAILBOX_POLL: Duration = Duration::from_secs(5);
pub const COLLECTIONS: u32 = 4;
/// How long an operation that stands still is retried.
const PATIENCE: Duration = Duration::from_secs(2 * 3600);
/// A frequent step is held at this many of its first passes.
const PASSES: u64 = 2;
/// One of this many late requests is tried in CI.
const STRIDE: usize = 6;
/// Steps of one story that are not the writer's: leases have tests of their own
/// (tests/lifecycle/leases.rs).
const OTHERS: [&str; 1] = ["volume.lease."];

/// Steps that the story must meet, whatever else it meets: one of each of its parts.
const MET: [&str; 10] = [
    "catalog.put",
    "chunk.before-pack-put",
    "chunk.after-pack-put",
    "control.create.cloned",
    "control.snapshot.intent",
    "control.snapshot.checkpoint",
    "fs.commit.before-flush",
    "fs.commit.before-checkpoint",
    "fs.content.before-submit",
    "volume.open.claimed",
];

/// Repeats what failed for now.
pub async fn retry(mut work: impl AsyncFnMut() -> Result<(), String>) -> Result<(), String> {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        match Box::pin(work()).await {
            Err(error) if tokio::time::Instant::now() > until => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_secs(5)).await,
            Ok(()) => return Ok(()),
        }
    }
}

pub fn seeds(range: std::ops::Range<u64>) -> Vec<u8> {
    bytes(&range.collect::<Vec<_>>(), 0)
}

/// Makes the initial state: data in use, and garbage.
async fn begin(process: &Process, model: &mut Model) -> Result<(), String> {
    work::create(process, model, "origin", &Origin::Nothing).await?;
    let origin = model.datasets[0].handle;
    work::write(process, model, origin, "x", 0, &seeds(0..40)).await?;
    work::close(process, model, origin).await?;
    work::write(process, model, origin, "x", 0, &seeds(100..136)).await?;
    work::write(process, model, origin, "y", 0, &seeds(200..240)).await?;
    work::close(process, model, origin).await
}

/// Writes, of what was stored before too; a snapshot; what it keeps is given up; a clone, which is
/// written to.
async fn go_on(process: &Process, model: &mut Model) -> Result<(), String> {
    let origin = model.datasets[0].handle;
    for (file, range) in [("z", 20..60), ("x", 300..340), ("y", 200..204), ("z", 100..140)] {
        retry(async || work::write(process, model, origin, file, 0, &seeds(range.clone())).await)
            .await?;
        retry(async || work::sync_file(process, model, origin, file).await).await?;
    }
    retry(async || work::snapshot(process, model, origin, "cut").await).await?;
    let cut = model.snapshots[0].handle;
    retry(async || work::write(process, model, origin, "x", 0, &seeds(400..440)).await).await?;
    retry(async || work::sync_file(process, model, origin, "x").await).await?;
    retry(async || work::close(process, model, origin).await).await?;
    retry(async || work::create(process, model, "clone", &Origin::Snapshot(cut)).await).await?;
    let clone = model.datasets[1].handle;
    retry(async || work::write(process, model, clone, "x", 0, &seeds(500..540)).await).await?;
    retry(async || work::sync_file(process, model, clone, "x").await).await?;
    retry(async || work::close(process, model, clone).await).await
}

/// A collector elsewhere, whose steps are its own.
pub async fn collector(world: &World) -> Process {
    world.process().on_its_own("collector", world.store.quick_bucket()).await
}

/// Acknowledged data is there for a process with nothing in memory; then all of it is deleted, and
/// nothing is left.
pub async fn end(process: &Process, collector: &Process, model: &mut Model) -> Result<(), String> {
    collector.collect(Where::Here).await.map_err(|error| error.to_string())?;
    work::compare(process, model).await?;
    for handle in model.datasets.iter().map(|d| d.handle).collect::<Vec<_>>() {
        work::close(process, model, handle).await?;
    }
    work::compare(collector, model).await?;
    for handle in model.datasets.iter().map(|d| d.handle).collect::<Vec<_>>() {
        work::close(collector, model, handle).await?;
        work::delete(process, model, handle).await?;
    }
    for handle in model.snapshots.iter().map(|s| s.handle).collect::<Vec<_>>() {
        work::delete_snapshot(process, model, handle).await?;
    }
    Ok(())
}

pub async fn nothing_is_left(collector: &Process) -> Result<(), String> {
    let mut left = vec![];
    for _ in 0..10 {
        let done = collector.collect(Where::Here).await.map_err(|error| error.to_string())?;
        left = work::left(collector).await;
        if left.is_empty() {
            return Ok(());
        }
        left.push(format!("{done:?}"));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Err(format!("something is left: {left:#?}"))
}

/// The steps of the story after its beginning, and how often it passes them.
fn steps() -> BTreeMap<String, u64> {
    let world = World::polling_mailbox(MAILBOX_POLL);
    let process = world.process().clone();
    world.run(async {
        let (mut model, failpoints) = (Model::default(), process.catalog.bucket().failpoints());
        begin(&process, &mut model).await.unwrap();
        let before = failpoints.passed();
        go_on(&process, &mut model).await.unwrap();
        let passed = failpoints
            .passed()
            .into_iter()
            .map(|(step, times)| (step.clone(), times - before.get(&step).unwrap_or(&0)));
        passed
            .filter(|(step, times)| {
                *times > 0 && !OTHERS.iter().any(|other| step.starts_with(other))
            })
            .collect()
    })
}

/// Both to their ends; `collections` that do not begin are dropped.
async fn beside(
    mut story: impl Future<Output = Result<(), String>> + Unpin,
    mut collections: impl Future<Output = Result<(), String>> + Unpin,
    have_begun: impl Fn() -> bool,
) -> Result<(), String> {
    tokio::select! {
        done = &mut story => {
            done?;
            if have_begun() { collections.await } else { Ok(()) }
        }
        done = &mut collections => {
            done?;
            story.await
        }
    }
}

/// The story, held for an hour at one pass of a step. Whether it came there.
fn held(step: &str, pass: u64) -> Result<bool, String> {
    let world = World::polling_mailbox(MAILBOX_POLL);
    let process = world.process().clone();
    world.run(async {
        let (mut model, collector) = (Model::default(), collector(&world).await);
        let failpoints = process.catalog.bucket().failpoints();
        begin(&process, &mut model).await?;
        let before = failpoints.passed().get(step).copied().unwrap_or(0);
        failpoints.set(step, &format!("{pass}*off->1*pause->off")).unwrap();
        let is_held = || failpoints.passed().get(step).is_some_and(|times| *times > before + pass);
        let collections = async {
            while !is_held() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            for _ in 0..COLLECTIONS {
                collector
                    .collect(Where::Here)
                    .await
                    .map_err(|error| format!("collecting: {error}"))?;
                tokio::time::sleep(HOUR / COLLECTIONS).await;
            }
            collector.collect(Where::Here).await.map_err(|error| format!("collecting: {error}"))?;
            failpoints.set(step, "off").unwrap();
            Ok::<_, String>(())
        };
        beside(Box::pin(go_on(&process, &mut model)), Box::pin(collections), is_held).await?;
        Box::pin(end(&process, &collector, &mut model)).await?;
        nothing_is_left(&collector).await?;
        Ok(is_held())
    })
}

#[test]
fn a_writer_held_for_an_hour_at_any_step_loses_nothing_to_the_collector() {
    let steps = steps();
    let missing: Vec<_> = MET.iter().filter(|step| !steps.contains_key(**step)).collect();
    assert!(missing.is_empty(), "the story does not meet {missing:?}, only {steps:?}");
    let cases: Vec<(&String, u64)> = steps
        .iter()
        .flat_map(|(step, times)| (0..PASSES.min(*times)).map(move |pass| (step, pass)))
        .collect();
    println!("{} cases", cases.len());
    let wrong = crate::support::run::concurrently(&cases, |(step, pass)| match held(step, *pass) {
        Ok(true) => Ok(()),
        Ok(false) if *pass > 0 => Ok(()),
        Ok(false) => Err(format!("{step}: the story does not come there")),
        Err(what) => Err(format!("{step}, pass {pass}: {what}")),
    });
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// When a late request arrives.
#[derive(Clone, Copy, Debug)]
enum Arrival {
    /// After an hour of collections.
    Hour,
    /// When everything is deleted and collected.
    End,
}

/// The story, of whose puts one is given up by its sender, who repeats it, and arrives later.
/// False if there are not that many.
fn late(op: Op, skip: usize, arrival: Arrival) -> Result<bool, String> {
    let world = World::polling_mailbox(MAILBOX_POLL);
    let process = world.process().clone();
    world.run(async {
        let (mut model, collector) = (Model::default(), collector(&world).await);
        begin(&process, &mut model).await?;
        world.store.script(Rule::on(op).skip(skip).times(1).then(Fault::Delay(HOUR)));
        Box::pin(go_on(&process, &mut model)).await?;
        world.store.heal();
        let came = world.store.late() > 0;
        if matches!(arrival, Arrival::Hour) {
            collector.collect(Where::Here).await.map_err(|error| format!("collecting: {error}"))?;
            tokio::time::sleep(HOUR).await;
            collector.collect(Where::Here).await.map_err(|error| format!("collecting: {error}"))?;
            world.store.arrive(0).await;
        }
        Box::pin(end(&process, &collector, &mut model)).await?;
        nothing_is_left(&collector).await?;
        if matches!(arrival, Arrival::End) {
            world.store.arrive(0).await;
            nothing_is_left(&collector).await?;
        }
        Ok(came)
    })
}

#[test]
fn a_request_that_arrives_an_hour_late_means_nothing() {
    let world = World::polling_mailbox(MAILBOX_POLL);
    let process = world.process().clone();
    let puts = world.run(async {
        let mut model = Model::default();
        begin(&process, &mut model).await.unwrap();
        world.store.clear_log();
        go_on(&process, &mut model).await.unwrap();
        world.store.log()
    });
    let stride = if crate::support::run::size() > 1 { 1 } else { STRIDE };
    let first = rand::random_range(0..stride);
    let mut cases = vec![];
    for op in [Op::Put, Op::PutNew] {
        let count = puts.iter().filter(|(put, _)| *put == op).count();
        cases.extend(
            (first..count)
                .step_by(stride)
                .flat_map(|n| [(op, n, Arrival::Hour), (op, n, Arrival::End)]),
        );
    }
    println!("{} cases, of each kind from {first} in steps of {stride}", cases.len());
    let came = std::sync::atomic::AtomicUsize::new(0);
    let wrong = crate::support::run::concurrently(&cases, |(op, n, arrival)| {
        match late(*op, *n, *arrival) {
            Ok(is_late) => {
                came.fetch_add(usize::from(is_late), std::sync::atomic::Ordering::Relaxed);
                Ok(())
            }
            Err(what) => Err(format!("{op:?} {n}, arriving at {arrival:?}: {what}")),
        }
    });
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert!(came.into_inner() * 2 > cases.len(), "the senders do not give up");
}
