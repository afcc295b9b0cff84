//! Policies as people use them: set, show, list, delete, run now.

use super::agenda::Due;
use super::claim::{Held, Seen};
use super::retention::{self, GRACE, RetentionCandidate, Verdict};
use super::rules::{Rules, Tier, show_keep};
use super::runner::{Policy, READS_AT_ONCE, do_slot, sorted};
use crate::catalog::{Dataset, Form, PolicyRecord, Snapshot, SnapshotPolicy, State};
use crate::control::{ControlError, Controller, Pool};
use crate::types::{DatasetId, Timestamp};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use serde::Serialize;
use std::time::Duration;
use tokio::time::Instant;

/// A policy as people see it.
#[derive(Clone, Debug, Serialize)]
pub struct ShownPolicy {
    #[serde(skip)]
    pub dataset: DatasetId,
    pub schedule: String,
    pub time_zone: String,
    pub prefix: String,
    pub skip_empty: bool,
    /// Name and value of each rule, like `hourly` and `24`.
    pub keep: std::collections::BTreeMap<&'static str, String>,
    /// Why it makes no snapshots, if that is so.
    pub broken: Option<String>,
    #[serde(skip)]
    pub changed: Timestamp,
    /// Nothing is deleted before this time.
    #[serde(skip)]
    pub deletes_from: Timestamp,
    #[serde(skip)]
    pub next: Option<Timestamp>,
}

/// Time that a run at once waits for another process's, and the interval at which it looks: a
/// claim that a process left behind expires meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The outcome of running a policy at once.
#[derive(Clone, Debug, Serialize)]
pub struct Ran {
    /// The snapshot that was made; `None`: nothing has changed since the last one.
    pub snapshot: Option<String>,
    pub deleted: Vec<String>,
}

impl ShownPolicy {
    /// `None`: the policy was deleted.
    fn of(record: &PolicyRecord, now: Timestamp) -> Option<Self> {
        let policy = record.policy.as_ref()?;
        let rules = Rules::parse(policy);
        let next = rules.as_ref().ok().and_then(|rules| rules.schedule.next(now));
        let keep = Tier::ALL
            .into_iter()
            .filter_map(|tier| Some((tier.name(), show_keep(tier.rule(&policy.keep)?))));
        Some(Self {
            dataset: record.dataset,
            schedule: policy.schedule.clone(),
            time_zone: policy.time_zone.clone(),
            prefix: policy.prefix.clone(),
            skip_empty: policy.skip_empty,
            keep: keep.collect(),
            broken: rules.err(),
            changed: record.changed,
            deletes_from: record.changed.saturating_add(GRACE),
            next,
        })
    }
}

impl Controller {
    /// Sets the policy of a dataset, which replaces the one it had.
    ///
    /// # Errors
    /// [`ControlError::Invalid`] when the policy makes no sense: it says how it would.
    pub async fn set_policy(
        &self,
        pool: &Pool,
        dataset: &Dataset,
        policy: SnapshotPolicy,
        now: Timestamp,
    ) -> Result<ShownPolicy, ControlError> {
        let name = &dataset.name;
        if dataset.form == Form::Snapshot {
            return Err(ControlError::Precondition(format!(
                "dataset {name} is a snapshot, read only: it needs no policy"
            )));
        }
        Rules::parse(&policy).map_err(|why| ControlError::Invalid(format!("policy: {why}")))?;
        let record = PolicyRecord { dataset: dataset.id(), policy: Some(policy), changed: now };
        pool.step("control.policy.set").await?;
        pool.catalog.write_policy(record.clone()).await?;
        let missing = || ControlError::Internal("a policy was set and is not there".to_owned());
        ShownPolicy::of(&record, now).ok_or_else(missing)
    }

    /// # Errors
    /// [`ControlError::NotFound`] when the dataset has none.
    pub async fn policy(
        &self,
        pool: &Pool,
        dataset: &Dataset,
        now: Timestamp,
    ) -> Result<ShownPolicy, ControlError> {
        let record = self.policy_record(pool, dataset).await?;
        ShownPolicy::of(&record, now).ok_or_else(|| no_policy(dataset))
    }

    /// Every policy of a pool.
    pub async fn policies(
        &self,
        pool: &Pool,
        now: Timestamp,
    ) -> Result<Vec<ShownPolicy>, ControlError> {
        let catalog = &pool.catalog;
        let mut reads: Vec<BoxFuture<'_, _>> = Vec::new();
        for at in catalog.policy_versions().await? {
            reads.push(async move { catalog.read_policy(&at).await }.boxed());
        }
        let records: Vec<Option<PolicyRecord>> =
            futures::stream::iter(reads).buffered(READS_AT_ONCE).try_collect().await?;
        let shown = records.into_iter().flatten();
        Ok(shown.filter_map(|record| ShownPolicy::of(&record, now)).collect())
    }

    /// Deletes the policy of a dataset. Its snapshots stay.
    ///
    /// # Errors
    /// [`ControlError::NotFound`] when the dataset has none.
    pub async fn delete_policy(
        &self,
        pool: &Pool,
        dataset: &Dataset,
        now: Timestamp,
    ) -> Result<(), ControlError> {
        self.policy_record(pool, dataset).await?;
        let record = PolicyRecord { dataset: dataset.id(), policy: None, changed: now };
        pool.step("control.policy.delete").await?;
        Ok(pool.catalog.write_policy(record).await?)
    }

    pub(super) async fn policy_record(
        &self,
        pool: &Pool,
        dataset: &Dataset,
    ) -> Result<PolicyRecord, ControlError> {
        let record = pool.catalog.policy(dataset.incarnation).await?;
        record.filter(|record| record.policy.is_some()).ok_or_else(|| no_policy(dataset))
    }

    /// The policy of a dataset, parsed, and when it was last changed.
    pub(super) async fn rules(
        &self,
        pool: &Pool,
        dataset: &Dataset,
    ) -> Result<(Rules, Timestamp), ControlError> {
        let record = self.policy_record(pool, dataset).await?;
        let policy = record.policy.as_ref().ok_or_else(|| no_policy(dataset))?;
        let rules = Rules::parse(policy).map_err(|why| {
            ControlError::Precondition(format!(
                "the policy of dataset {}: {why}; set it again",
                dataset.name
            ))
        })?;
        Ok((rules, record.changed))
    }

    /// The live snapshots of a dataset, the oldest first.
    pub async fn live_snapshots(
        &self,
        pool: &Pool,
        dataset: &Dataset,
    ) -> Result<Vec<Snapshot>, ControlError> {
        let all = pool.catalog.snapshots(Some(dataset.incarnation)).await?;
        let live = all.into_iter().map(|at| at.record).filter(|snapshot| {
            !snapshot.implied && matches!(snapshot.state, State::Ready | State::Creating)
        });
        Ok(sorted(live.collect()))
    }

    /// The policy's present verdict on each snapshot of the dataset, the oldest first.
    pub async fn policy_verdicts(
        &self,
        pool: &Pool,
        dataset: &Dataset,
        now: Timestamp,
    ) -> Result<Vec<(Snapshot, Verdict)>, ControlError> {
        let (rules, changed) = self.rules(pool, dataset).await?;
        let snapshots = self.live_snapshots(pool, dataset).await?;
        let candidates: Vec<RetentionCandidate> =
            snapshots.iter().map(RetentionCandidate::of).collect();
        let verdicts = retention::verdicts(&rules, changed, now, &candidates);
        Ok(snapshots.into_iter().zip(verdicts).collect())
    }

    /// Makes a snapshot by the policy of a dataset at once, and deletes what no rule keeps.
    ///
    /// # Errors
    /// [`ControlError::InProgress`] while the policies of the pool are being run.
    pub async fn run_policy_now(
        &self,
        pool: &Pool,
        dataset: &Dataset,
        now: Timestamp,
    ) -> Result<Ran, ControlError> {
        let (rules, changed) = self.rules(pool, dataset).await?;
        let held = self.hold_run_claim(pool).await?;
        // A slot of its own, to the second.
        let slot = Timestamp::from_parts(now.secs(), 0);
        let due = Due { dataset: dataset.id(), slot };
        let policy = Policy { rules: &rules, changed, clock: held.clock };
        let done = do_slot(self, pool, due, policy, now).await;
        held.release(None).await?;
        let absent = || ControlError::NotFound { what: format!("dataset {}", dataset.name) };
        let done = done?.ok_or_else(absent)?;
        // One of this very second is as good as a new one.
        let there = || rules.name(slot, 0).ok().map(|name| name.to_string());
        let snapshot = if done.unchanged { None } else { done.snapshot.or_else(there) };
        Ok(Ran { snapshot, deleted: done.deleted })
    }
}

impl Controller {
    async fn hold_run_claim(&self, pool: &Pool) -> Result<Held, ControlError> {
        let (mut seen, deadline) = (Seen::default(), Instant::now() + PATIENCE);
        loop {
            let at = pool.catalog.policy_run().await?;
            let holder = seen.held_elsewhere(at.as_ref(), self.own_volumes());
            if holder.is_none()
                && let Some(held) = Held::take(pool, self.own_volumes(), at).await?
            {
                return Ok(held);
            }
            if Instant::now() >= deadline {
                let node = holder.as_deref().unwrap_or("another process");
                let what = format!("the policies of pool {} (run by {node})", pool.name);
                return Err(ControlError::InProgress { what });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

fn no_policy(dataset: &Dataset) -> ControlError {
    let name = &dataset.name;
    ControlError::NotFound {
        what: format!("the policy of dataset {name} (set one with `zerofs-csi policy set {name}`)"),
    }
}
