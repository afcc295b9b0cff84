//! A policy over the time ahead: the very functions that a runner calls, over slots
//! that have not come yet.

use super::retention::{self, RetentionCandidate, Verdict};
use super::rules::Rules;
use crate::catalog::Dataset;
use crate::control::{ControlError, Controller, Pool};
use crate::types::Timestamp;
use serde::Serialize;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// The most days that are simulated.
pub const SIMULATED_DAYS_MAX: u32 = 3660;
/// The most slots that are simulated.
const SLOTS_MAX: usize = 20_000;
/// One policy is simulated at a time: thousands of slots, each of which judges hundreds of
/// snapshots, are seconds of work.
static SIMULATING: Semaphore = Semaphore::const_new(1);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A snapshot at the end of the simulated time, or when it was deleted.
#[derive(Clone, Debug, Serialize)]
pub struct SimulatedSnapshot {
    pub name: String,
    #[serde(skip)]
    pub created: Timestamp,
    /// The snapshot exists already.
    pub exists: bool,
    /// When it would be deleted.
    #[serde(skip)]
    pub deleted: Option<Timestamp>,
    pub verdict: Verdict,
}

#[derive(Clone, Debug, Serialize)]
pub struct Simulated {
    /// The slots in the simulated time.
    pub slots: usize,
    /// The most snapshots at any time, those that no policy made included.
    pub most: usize,
    #[serde(skip)]
    pub until: Timestamp,
    /// Every snapshot, the oldest first.
    pub snapshots: Vec<SimulatedSnapshot>,
}

impl Controller {
    /// Simulates the policy of a dataset from now on. Every slot makes a snapshot, as without
    /// `skipEmpty`.
    ///
    /// # Errors
    /// [`ControlError::OutOfRange`] when that are too many days or slots.
    pub async fn simulate_policy(
        &self,
        pool: &Pool,
        dataset: &Dataset,
        now: Timestamp,
        days: u32,
    ) -> Result<Simulated, ControlError> {
        let (rules, changed) = self.rules(pool, dataset).await?;
        if days > SIMULATED_DAYS_MAX {
            let why = format!("at most {SIMULATED_DAYS_MAX} days can be simulated");
            return Err(ControlError::OutOfRange(why));
        }
        let present = self.live_snapshots(pool, dataset).await?;
        let present = present
            .iter()
            .map(|snapshot| (snapshot.name.to_string(), RetentionCandidate::of(snapshot)))
            .collect();
        let until = now.saturating_add(DAY * days);
        // Never closed.
        let _turn = SIMULATING.acquire().await.ok();
        let given_up = CancellationToken::new();
        let _guard = given_up.clone().drop_guard();
        let simulated = tokio::task::spawn_blocking(move || {
            simulate(&rules, changed, (now, until), present, &given_up)
        });
        simulated.await.map_err(|error| ControlError::Internal(error.to_string()))?
    }
}

fn simulate(
    rules: &Rules,
    changed: Timestamp,
    (now, until): (Timestamp, Timestamp),
    present: Vec<(String, RetentionCandidate)>,
    given_up: &CancellationToken,
) -> Result<Simulated, ControlError> {
    let slots = std::iter::successors(Some(now), |at| rules.schedule.next(*at));
    if slots.skip(1).take_while(|slot| *slot <= until).nth(SLOTS_MAX).is_some() {
        return Err(ControlError::OutOfRange(format!(
            "there are more than {SLOTS_MAX} slots in that time: simulate fewer days"
        )));
    }
    let mut done = Simulated { slots: 0, most: present.len(), until, snapshots: Vec::new() };
    let mut live: Vec<(String, RetentionCandidate, bool)> =
        present.into_iter().map(|(name, candidate)| (name, candidate, true)).collect();
    let mut at = now;
    let mut serial = live.iter().map(|(_, candidate, _)| candidate.serial).max().unwrap_or(0);
    loop {
        let candidates: Vec<RetentionCandidate> = live.iter().map(|(_, c, _)| c.clone()).collect();
        let verdicts = retention::verdicts(rules, changed, at, &candidates);
        let next = rules.schedule.next(at).filter(|next| *next <= until);
        let mut stay = Vec::with_capacity(live.len() + 1);
        for ((name, candidate, exists), verdict) in live.into_iter().zip(verdicts) {
            let is_deleted = verdict == Verdict::Delete;
            if is_deleted || next.is_none() {
                done.snapshots.push(SimulatedSnapshot {
                    name,
                    created: candidate.created,
                    exists,
                    deleted: is_deleted.then_some(at),
                    verdict,
                });
            } else {
                stay.push((name, candidate, exists));
            }
        }
        live = stay;
        let Some(slot) = next else { break };
        if given_up.is_cancelled() {
            return Err(ControlError::Unavailable("the simulation was given up".to_owned()));
        }
        let name = rules.name(slot, 0).map_err(|e| ControlError::Invalid(e.to_string()))?;
        serial += 1;
        let made =
            RetentionCandidate { created: slot, serial, ready: true, by_policy: true, held: None };
        live.push((name.to_string(), made, false));
        done.slots += 1;
        done.most = done.most.max(live.len());
        at = slot;
    }
    done.snapshots.sort_by_key(|snapshot| snapshot.created);
    Ok(done)
}
