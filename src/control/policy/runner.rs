//! Runs the policies of a pool, together with the runners of other processes.
//!
//! A turn costs nothing while nothing is due: once in [`REFRESH`] it lists the policies, and reads
//! those that changed. When slots are due, it lists them again, reads the claim, and either learns
//! that another process has done them or takes the claim and does them, some at a time.
//!
//! **`skipEmpty`** compares the superblock of the newest snapshot of the policy with that of the
//! dataset as the store has it: the number of the last batch of changes is the same exactly if
//! nothing was changed. No data is read, and no file's row. Opening a volume counts as a change;
//! changes that have not reached the store (`flushInterval`) count at the next slot.

use super::CLOCK_SKEW;
use super::agenda::{Agenda, Due, PolicyCounts};
use super::claim::{ClockCheck, Held, Seen};
use super::retention::{self, RetentionCandidate, Verdict};
use super::rules::Rules;
use super::slot_name::{NamedSnapshot, name_to_make};
use crate::catalog::{Dataset, Form, Snapshot, State};
use crate::control::{ControlError, Controller, Pool};
use crate::fs::db::{CheckpointId, Reader};
use crate::fs::row::{Row, Superblock};
use crate::fs::{FsError, key};
use crate::types::{Class, Classify, DatasetId, PoolId, Timestamp, VolumeHandle};
use crate::volume::RootReader;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Interval at which an idle process lists the policies: a new one is noticed this late.
pub const REFRESH: Duration = Duration::from_secs(300);
/// Datasets whose slots are done at a time.
const RUNS_AT_ONCE: usize = 8;
/// A policy that deletes snapshots is read again after this time.
const CHECKED_FOR: Duration = Duration::from_secs(5);
/// Policies read at a time.
pub(super) const READS_AT_ONCE: usize = 32;

/// The counts of the policies of each pool, for metrics. Cheap to clone.
#[derive(Clone, Default)]
pub struct PolicyStatus(Arc<Mutex<BTreeMap<PoolId, PolicyCounts>>>);

impl PolicyStatus {
    pub fn of(&self, pool: PoolId) -> Option<PolicyCounts> {
        self.0.lock().get(&pool).copied()
    }
}

/// The outcome of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunOutcome {
    /// Nothing was due, or others have done it.
    Idle,
    /// A process of this node runs the policies.
    HeldBy(String),
    /// Slots were done, or failed.
    Done { snapshots: usize, unchanged: usize, deleted: usize, failed: usize },
}

/// The outcome of a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SlotDone {
    /// The snapshot that was made, if one was.
    pub snapshot: Option<String>,
    /// Nothing has changed since the last one.
    pub unchanged: bool,
    pub deleted: Vec<String>,
}

/// The runner of one pool in this process.
pub struct PolicyRunner {
    controller: Arc<Controller>,
    pool: Pool,
    status: PolicyStatus,
    agenda: Agenda,
    seen: Seen,
    /// When the policies were listed, by the clock that goes on.
    refreshed: Option<Duration>,
}

impl PolicyRunner {
    pub fn new(controller: Arc<Controller>, pool: Pool, status: PolicyStatus) -> Self {
        Self {
            controller,
            pool,
            status,
            agenda: Agenda::default(),
            seen: Seen::default(),
            refreshed: None,
        }
    }

    /// Does what is due at `now`, which may be any time: clocks jump.
    ///
    /// # Errors
    /// The store failed; slots that are not done are due again. A slot that failed is no error: it
    /// was logged.
    pub async fn run_due(&mut self, now: Timestamp) -> Result<RunOutcome, ControlError> {
        let done = self.try_run_due(now).await;
        self.status.0.lock().insert(self.pool.id(), self.agenda.counts(now));
        done
    }

    async fn try_run_due(&mut self, now: Timestamp) -> Result<RunOutcome, ControlError> {
        let began = (Timestamp::now(), Instant::now());
        let monotonic = self.controller.own_volumes().lease().clock.now();
        if self.refreshed.is_none_or(|at| monotonic.saturating_sub(at) >= REFRESH) {
            self.refresh().await?;
        }
        if self.agenda.due(now).is_empty() {
            return Ok(RunOutcome::Idle);
        }
        if self.refreshed != Some(monotonic) {
            self.refresh().await?;
        }
        let at = self.pool.catalog.policy_run().await?;
        if let Some(at) = &at {
            self.agenda.learn(&at.record, now);
        }
        let due = self.agenda.due(now);
        if due.is_empty() {
            return Ok(RunOutcome::Idle);
        }
        let controller = self.controller.clone();
        if let Some(node) = self.seen.held_elsewhere(at.as_ref(), controller.own_volumes()) {
            return Ok(RunOutcome::HeldBy(node));
        }
        match Held::take(&self.pool, controller.own_volumes(), at).await? {
            Some(mut held) => {
                if was_set(began) {
                    held.clock = ClockCheck::Differs;
                }
                self.run(held, &due, now).await
            }
            None => Ok(RunOutcome::HeldBy("another process".to_owned())),
        }
    }

    /// Lists the policies, and reads those that changed.
    async fn refresh(&mut self) -> Result<(), ControlError> {
        let catalog = &self.pool.catalog;
        let listed = catalog.policy_versions().await?;
        let all: BTreeSet<_> = listed.iter().map(|at| at.dataset).collect();
        let mut reads: Vec<BoxFuture<'_, _>> = Vec::new();
        for at in listed {
            if self.agenda.version(at.dataset) != Some(at.version) {
                reads.push(async move { (catalog.read_policy(&at).await, at) }.boxed());
            }
        }
        let read: Vec<_> = futures::stream::iter(reads).buffered(READS_AT_ONCE).collect().await;
        let mut failed = None;
        for (record, at) in read {
            match record {
                Ok(Some(record)) => self.agenda.put(at.version, &record),
                Ok(None) => {}
                // One policy that cannot be read does not keep the others from being run.
                Err(error) if !error.class().may_pass() => {
                    self.agenda.put_undecoded(at.dataset);
                    tracing::warn!(
                        pool = self.pool.name,
                        %error,
                        "cannot read a snapshot policy; set it again, or use a newer program"
                    );
                }
                Err(error) => failed = Some(error),
            }
        }
        self.agenda.retain(&all);
        if let Some(error) = failed {
            return Err(error.into());
        }
        for (dataset, why) in self.agenda.unreadable() {
            tracing::warn!(
                pool = self.pool.name,
                %dataset,
                why,
                "a snapshot policy makes no snapshots; set it again with `zerofs-csi policy set`"
            );
        }
        self.refreshed = Some(self.controller.own_volumes().lease().clock.now());
        Ok(())
    }

    async fn run(
        &mut self,
        held: Held,
        due: &[Due],
        now: Timestamp,
    ) -> Result<RunOutcome, ControlError> {
        let (controller, pool, clock) = (&self.controller, &self.pool, held.clock);
        let mut runs: Vec<BoxFuture<'_, _>> = Vec::new();
        for due in due.iter().copied() {
            let Some((rules, changed)) = self.agenda.rules(due.dataset.incarnation) else {
                continue;
            };
            let rules = rules.clone();
            let run = async move {
                let policy = Policy { rules: &rules, changed, clock };
                (due, do_slot(controller, pool, due, policy, now).await)
            };
            runs.push(run.boxed());
        }
        let outcomes: Vec<_> =
            futures::stream::iter(runs).buffer_unordered(RUNS_AT_ONCE).collect().await;
        let (mut snapshots, mut unchanged, mut deleted, mut failed) = (0, 0, 0, 0);
        for (due, outcome) in outcomes {
            match outcome {
                Ok(Some(slot)) => {
                    snapshots += usize::from(slot.snapshot.is_some());
                    unchanged += usize::from(slot.unchanged);
                    deleted += slot.deleted.len();
                    self.agenda.done(due);
                }
                Ok(None) => self.agenda.remove(due.dataset.incarnation),
                Err(error) => {
                    failed += 1;
                    self.agenda.failed(due, now);
                    self.report(due.dataset, &error).await;
                }
            }
        }
        held.release(Some((now, self.agenda.open(now)))).await?;
        Ok(RunOutcome::Done { snapshots, unchanged, deleted, failed })
    }

    async fn report(&self, dataset: DatasetId, error: &ControlError) {
        let found = self.pool.catalog.dataset_by_id(dataset).await.ok().flatten();
        let dataset = found.map_or_else(|| dataset.to_string(), |at| at.record.name.to_string());
        tracing::warn!(
            pool = self.pool.name,
            dataset,
            %error,
            "the snapshot policy of the dataset failed; it is tried again by itself, or with \
             `zerofs-csi policy run-now`"
        );
    }
}

/// Returns whether the machine's clock was set since these readings: then the time of the turn may
/// be any.
fn was_set((wall, monotonic): (Timestamp, Instant)) -> bool {
    let (now, passed) = (Timestamp::now(), monotonic.elapsed());
    let expected = wall.saturating_add(passed);
    now.since(expected).max(expected.since(now)) > CLOCK_SKEW
}

/// A policy, when it was last changed, and whether this machine's clock can judge it.
#[derive(Clone, Copy)]
pub(super) struct Policy<'a> {
    pub rules: &'a Rules,
    pub changed: Timestamp,
    pub clock: ClockCheck,
}

/// Makes the snapshot of a slot, and deletes those that no rule keeps. `None`: the dataset is gone.
pub(super) async fn do_slot(
    controller: &Controller,
    pool: &Pool,
    due: Due,
    policy: Policy<'_>,
    now: Timestamp,
) -> Result<Option<SlotDone>, ControlError> {
    let Some(dataset) = pool.catalog.dataset_by_id(due.dataset).await?.map(|at| at.record) else {
        pool.catalog.remove_policy(due.dataset.incarnation).await?;
        return Ok(None);
    };
    if dataset.state != State::Ready || dataset.form == Form::Snapshot {
        return Ok(Some(SlotDone::default()));
    }
    let mut snapshots: Vec<Snapshot> = pool
        .catalog
        .snapshots(Some(dataset.incarnation))
        .await?
        .into_iter()
        .map(|at| at.record)
        .filter(|snapshot| !snapshot.implied)
        .collect();
    let mut done = SlotDone::default();
    let made = match policy.rules.skip_empty
        && is_unchanged(controller, pool, &dataset, &snapshots, now).boxed().await?
    {
        true => {
            done.unchanged = true;
            Ok(())
        }
        false => make(controller, pool, due, policy.rules, now, &mut snapshots, &mut done).await,
    };
    // Also after a failure: the reason may be that there are too many.
    if policy.clock == ClockCheck::Agrees {
        pool.step("control.policy.expire").await?;
        expire(controller, pool, policy, now, &snapshots, &mut done).await?;
    }
    made.map(|()| Some(done))
}

async fn make(
    controller: &Controller,
    pool: &Pool,
    due: Due,
    rules: &Rules,
    now: Timestamp,
    snapshots: &mut Vec<Snapshot>,
    done: &mut SlotDone,
) -> Result<(), ControlError> {
    let there: Vec<NamedSnapshot<'_>> = snapshots.iter().map(NamedSnapshot::of).collect();
    let Some(name) = name_to_make(rules, due.slot, now, &there)? else { return Ok(()) };
    let volume = VolumeHandle { pool: pool.id(), dataset: due.dataset };
    let made = controller.create_policy_snapshot(volume, name, due.slot, now).boxed().await?;
    done.snapshot = Some(made.name.to_string());
    snapshots.retain(|there| there.name != made.name);
    snapshots.push(made);
    Ok(())
}

async fn expire(
    controller: &Controller,
    pool: &Pool,
    policy: Policy<'_>,
    now: Timestamp,
    snapshots: &[Snapshot],
    done: &mut SlotDone,
) -> Result<(), ControlError> {
    let live: Vec<&Snapshot> =
        snapshots.iter().filter(|s| matches!(s.state, State::Ready | State::Creating)).collect();
    let candidates: Vec<RetentionCandidate> =
        live.iter().map(|s| RetentionCandidate::of(s)).collect();
    let verdicts = retention::verdicts(policy.rules, policy.changed, now, &candidates);
    let mut checked: Option<Instant> = None;
    for (snapshot, verdict) in live.iter().zip(verdicts) {
        if verdict != Verdict::Delete {
            continue;
        }
        // The turn may have begun long ago, and deletions take their time.
        if checked.is_none_or(|at| at.elapsed() > CHECKED_FOR) {
            let now = pool.catalog.policy(snapshot.dataset.incarnation).await?;
            if now.is_none_or(|now| now.policy.is_none() || now.changed != policy.changed) {
                return Ok(());
            }
            checked = Some(Instant::now());
        }
        match controller.expire_snapshot(pool, snapshot.id(), retention::held).boxed().await {
            Ok(()) => done.deleted.push(snapshot.name.to_string()),
            // Somebody needs it by now.
            Err(error) if error.class() == Class::Precondition => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns whether nothing has changed since the newest snapshot of the policy.
async fn is_unchanged(
    controller: &Controller,
    pool: &Pool,
    dataset: &Dataset,
    snapshots: &[Snapshot],
    now: Timestamp,
) -> Result<bool, ControlError> {
    let usable = |s: &&Snapshot| {
        let ahead = s.created > now.saturating_add(CLOCK_SKEW);
        s.slot.is_some() && s.state == State::Ready && !ahead
    };
    let Some(newest) = snapshots.iter().filter(usable).max_by_key(|s| s.created) else {
        return Ok(false);
    };
    let Some(checkpoint) = newest.checkpoint else { return Ok(false) };
    let settings = controller.own_volumes().settings();
    let Some(head) = RootReader::head(settings, &pool.catalog, dataset).await? else {
        return Ok(false);
    };
    let now = last_batch(head.rows()).await;
    head.close().await?;
    let place = settings.place(&pool.catalog, newest.family, newest.dataset.incarnation);
    // Without a registration: one row is read, and if it is gone meanwhile, that is an error.
    let reader = Reader::at_checkpoint(&place, CheckpointId(checkpoint)).await?;
    let then = last_batch(&reader).await;
    reader.close().await?;
    Ok(now? == then?)
}

/// The number of the last batch of changes in a state.
async fn last_batch(rows: &Reader) -> Result<Option<u64>, FsError> {
    let row = rows.get(&key::superblock()).await?;
    Ok(row.map(|row| Superblock::decode(&row)).transpose()?.map(|superblock| superblock.batch_seq))
}

/// Snapshots in the order of their times.
pub(super) fn sorted(mut snapshots: Vec<Snapshot>) -> Vec<Snapshot> {
    snapshots.sort_by_key(|snapshot| (snapshot.created, snapshot.serial));
    snapshots
}
