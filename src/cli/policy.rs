//! `policy …`: snapshot policies.

use super::args::{Common, PolicyCommand, PolicySetArgs};
use super::remote::{patiently, some, time};
use super::report::{table, when};
use super::target::{Opened, Target};
use crate::admin::grpc::proto;
use crate::app;
use crate::catalog::{Dataset, Keep, KeepRules, SnapshotPolicy};
use crate::control::policy::{
    Ran, Reason, ShownPolicy, Simulated, SimulatedSnapshot, Verdict, show_keep,
};
use crate::types::{Timestamp, plural};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

pub fn run(command: PolicyCommand) -> anyhow::Result<()> {
    app::start_logging(&Default::default(), Some("warn"))?;
    app::run(async move {
        match command {
            PolicyCommand::Set(args) => set(args).await,
            PolicyCommand::Show { dataset, common } => show(dataset.as_deref(), &common).await,
            PolicyCommand::List { common } => list(&common).await,
            PolicyCommand::Delete { dataset, common } => delete(&dataset, &common).await,
            PolicyCommand::Simulate { dataset, days, all, common } => {
                let shown = if all { SimulatedRows::All } else { SimulatedRows::Kept };
                simulate(dataset.as_deref(), days, shown, &common).await
            }
            PolicyCommand::RunNow { dataset, common } => run_now(dataset.as_deref(), &common).await,
        }
    })
}

/// A policy as JSON.
#[derive(Serialize)]
struct Policy {
    dataset: String,
    schedule: String,
    time_zone: String,
    prefix: String,
    skip_empty: bool,
    /// Name and value of each rule.
    keep: BTreeMap<&'static str, String>,
    broken: Option<String>,
    changed: String,
    deletes_from: String,
    next: Option<String>,
}

impl Policy {
    fn of(dataset: &str, policy: ShownPolicy) -> Self {
        Self {
            dataset: dataset.to_owned(),
            schedule: policy.schedule,
            time_zone: policy.time_zone,
            prefix: policy.prefix,
            skip_empty: policy.skip_empty,
            keep: policy.keep,
            broken: policy.broken,
            changed: when(policy.changed),
            deletes_from: when(policy.deletes_from),
            next: policy.next.map(when),
        }
    }

    fn keep(&self) -> String {
        let rules: Vec<String> =
            self.keep.iter().map(|(tier, rule)| format!("{tier} {rule}")).collect();
        rules.join(", ")
    }

    fn text(&self) -> String {
        let next = match (&self.broken, &self.next) {
            (Some(why), _) => format!("never: {why}; set it again"),
            (None, Some(next)) => next.clone(),
            (None, None) => "never".to_owned(),
        };
        let skip = if self.skip_empty { "yes" } else { "no" };
        let rows = [
            ("dataset", self.dataset.clone()),
            ("schedule", self.schedule.clone()),
            ("time zone", self.time_zone.clone()),
            ("keep", self.keep()),
            ("skip empty", skip.to_owned()),
            ("prefix", self.prefix.clone()),
            ("changed", self.changed.clone()),
            ("deletes", format!("from {}", self.deletes_from)),
            ("next", next),
        ];
        rows.iter().map(|(name, value)| format!("{name:<12} {value}\n")).collect()
    }
}

impl From<proto::Policy> for Policy {
    fn from(told: proto::Policy) -> Self {
        let keep = told.keep.unwrap_or_default();
        let rules = [
            ("last", keep.last),
            ("hourly", keep.hourly),
            ("daily", keep.daily),
            ("weekly", keep.weekly),
            ("monthly", keep.monthly),
        ];
        Self {
            dataset: told.dataset,
            schedule: told.schedule,
            time_zone: told.time_zone,
            prefix: told.prefix,
            skip_empty: told.skip_empty,
            keep: rules.into_iter().filter(|(_, rule)| !rule.is_empty()).collect(),
            broken: some(told.broken),
            changed: when(time(told.changed)),
            deletes_from: when(time(told.deletes_from)),
            next: told.next.map(|next| when(time(Some(next)))),
        }
    }
}

async fn set(args: PolicySetArgs) -> anyhow::Result<()> {
    let rules = KeepRules {
        last: args.keep_last,
        hourly: args.hourly,
        daily: args.daily,
        weekly: args.weekly,
        monthly: args.monthly,
    };
    let shown = match args.common.place.target().await? {
        Target::Pool(opened) => {
            let dataset = opened.browser.dataset_or_default(args.dataset.as_deref()).await?;
            let policy = SnapshotPolicy {
                schedule: args.schedule,
                time_zone: args.time_zone,
                prefix: args.prefix,
                skip_empty: args.skip_empty,
                keep: rules,
            };
            let now = Timestamp::now();
            let set = opened.controller.set_policy(&opened.pool, &dataset, policy, now).await?;
            Policy::of(dataset.name.as_str(), set)
        }
        Target::Server(remote) => {
            let rule = |rule: Option<Keep>| rule.map(show_keep).unwrap_or_default();
            let keep = proto::KeepRules {
                last: rule(rules.last),
                hourly: rule(rules.hourly),
                daily: rule(rules.daily),
                weekly: rule(rules.weekly),
                monthly: rule(rules.monthly),
            };
            let request = proto::SetPolicyRequest {
                pool: remote.pool,
                dataset: args.dataset.unwrap_or_default(),
                schedule: args.schedule,
                time_zone: args.time_zone,
                prefix: args.prefix,
                skip_empty: args.skip_empty,
                keep: Some(keep),
            };
            remote.client.set_policy(request).await?.into()
        }
    };
    args.common.output.print(&shown, Policy::text)
}

/// A snapshot, and what the policy decides about it.
#[derive(Serialize)]
struct Judged {
    name: String,
    created: String,
    verdict: Verdict,
    why: String,
}

#[derive(Serialize)]
struct PolicyAndSnapshots {
    #[serde(flatten)]
    policy: Policy,
    snapshots: Vec<Judged>,
}

async fn show(name: Option<&str>, common: &Common) -> anyhow::Result<()> {
    let shown = match common.place.target().await? {
        Target::Pool(opened) => of_pool(&opened, name).await?,
        Target::Server(remote) => {
            let name = name.unwrap_or_default();
            let (client, pool) = (&remote.client, &remote.pool);
            let told = patiently(async || client.policy_with_decisions(pool, name).await);
            let mut told = told.await?;
            let snapshots = std::mem::take(&mut told.decisions).into_iter().map(judged);
            PolicyAndSnapshots { snapshots: snapshots.collect(), policy: told.into() }
        }
    };
    common.output.print(&shown, |shown| {
        let row = |s: &Judged| vec![s.name.clone(), s.created.clone(), keeps(&s.verdict)];
        let rows: Vec<_> = shown.snapshots.iter().map(row).collect();
        let snapshots = match rows.is_empty() {
            true => String::new(),
            false => format!("\n{}", table(&["SNAPSHOT", "CREATED", "DECISION"], &rows)),
        };
        shown.policy.text() + &snapshots
    })
}

async fn of_pool(opened: &Opened, name: Option<&str>) -> anyhow::Result<PolicyAndSnapshots> {
    let dataset = opened.browser.dataset_or_default(name).await?;
    let now = Timestamp::now();
    let policy = opened.controller.policy(&opened.pool, &dataset, now).await?;
    // A policy that cannot be read decides nothing.
    let verdicts = match policy.broken {
        None => opened.controller.policy_verdicts(&opened.pool, &dataset, now).await?,
        Some(_) => Vec::new(),
    };
    let snapshots = verdicts.into_iter().map(|(snapshot, verdict)| Judged {
        name: snapshot.name.to_string(),
        created: when(snapshot.created),
        why: verdict.to_string(),
        verdict,
    });
    Ok(PolicyAndSnapshots {
        policy: Policy::of(dataset.name.as_str(), policy),
        snapshots: snapshots.collect(),
    })
}

/// A decision as a server tells it.
fn judged(told: proto::Decision) -> Judged {
    use proto::decision::Reason as Told;
    const RULES: [&str; 5] = ["last", "hourly", "daily", "weekly", "monthly"];
    let rule = |name: &String| RULES.into_iter().find(|rule| rule == name);
    let reason = match told.reason() {
        Told::NoRule => None,
        Told::NotByPolicy => Some(Reason::NotByPolicy),
        Told::Unfinished => Some(Reason::Unfinished),
        Told::Held => Some(Reason::Held(told.held_by)),
        Told::AheadOfClock => Some(Reason::AheadOfClock),
        Told::Rules => Some(Reason::Rules(told.rules.iter().filter_map(rule).collect())),
        Told::Newest => Some(Reason::Newest),
        Told::PolicyChanged => Some(Reason::PolicyChanged),
        Told::Unspecified => Some(Reason::Held("a reason of a later version".to_owned())),
    };
    let verdict = reason.map_or(Verdict::Delete, Verdict::Keep);
    Judged {
        name: told.snapshot,
        created: when(time(told.created)),
        why: verdict.to_string(),
        verdict,
    }
}

fn keeps(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Keep(_) => format!("keep: {verdict}"),
        Verdict::Delete => format!("delete: {verdict}"),
    }
}

async fn list(common: &Common) -> anyhow::Result<()> {
    let mut shown: Vec<Policy> = match common.place.target().await? {
        Target::Pool(opened) => {
            let datasets = opened.pool.catalog.datasets().await?.into_iter();
            let datasets: HashMap<_, String> =
                datasets.map(|at| (at.record.incarnation, at.record.name.to_string())).collect();
            let policies = opened.controller.policies(&opened.pool, Timestamp::now()).await?;
            // The policy of a dataset that is gone goes with its next slot.
            let known = policies.into_iter().filter_map(|policy| {
                Some(Policy::of(datasets.get(&policy.dataset.incarnation)?, policy))
            });
            known.collect()
        }
        Target::Server(remote) => {
            let told = patiently(async || remote.client.policies(&remote.pool).await).await?;
            told.into_iter().map(Into::into).collect()
        }
    };
    shown.sort_by(|a, b| a.dataset.cmp(&b.dataset));
    common.output.print(&shown, |shown| {
        let row = |p: &Policy| {
            let next = if p.broken.is_some() { None } else { p.next.clone() };
            let next = next.unwrap_or_else(|| "never".to_owned());
            vec![p.dataset.clone(), p.schedule.clone(), next, p.keep()]
        };
        let rows: Vec<_> = shown.iter().map(row).collect();
        table(&["DATASET", "SCHEDULE", "NEXT", "KEEP"], &rows)
    })
}

async fn delete(name: &str, common: &Common) -> anyhow::Result<()> {
    match common.place.target().await? {
        Target::Pool(opened) => {
            let dataset = opened.browser.dataset(name).await?;
            opened.controller.delete_policy(&opened.pool, &dataset, Timestamp::now()).await?;
        }
        Target::Server(remote) => remote.client.delete_policy(&remote.pool, name).await?,
    }
    common.output.print(&serde_json::json!({ "deleted": name }), |_| {
        format!("deleted the policy of dataset {name}; its snapshots stay\n")
    })
}

/// The snapshots that `simulate` prints.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SimulatedRows {
    Kept,
    All,
}

/// A simulation as JSON.
#[derive(Serialize)]
struct Simulation {
    dataset: String,
    until: String,
    slots: u64,
    most_snapshots: u64,
    kept: u64,
    snapshots: Vec<SimulatedLine>,
}

#[derive(Serialize)]
struct SimulatedLine {
    name: String,
    created: String,
    exists: bool,
    deleted: Option<String>,
    why: String,
}

impl SimulatedLine {
    fn of(snapshot: &SimulatedSnapshot) -> Self {
        Self {
            name: snapshot.name.clone(),
            created: when(snapshot.created),
            exists: snapshot.exists,
            deleted: snapshot.deleted.map(when),
            why: snapshot.verdict.to_string(),
        }
    }

    fn row(&self) -> Vec<String> {
        let what = match &self.deleted {
            Some(at) => format!("deleted at {at}"),
            None => format!("keep: {}", self.why),
        };
        let name = if self.exists { self.name.clone() } else { format!("{} (new)", self.name) };
        vec![name, what]
    }
}

async fn simulate(
    name: Option<&str>,
    days: u32,
    which: SimulatedRows,
    common: &Common,
) -> anyhow::Result<()> {
    let on = common.place.target().await?;
    let simulated = match &on {
        Target::Pool(opened) => {
            let dataset = opened.browser.dataset_or_default(name).await?;
            let (controller, now) = (&opened.controller, Timestamp::now());
            let done = controller.simulate_policy(&opened.pool, &dataset, now, days).await?;
            simulation(&dataset, &done, which)
        }
        Target::Server(remote) => {
            let dataset = remote.live_or_default(name).await?;
            let request = proto::SimulatePolicyRequest {
                pool: remote.pool.clone(),
                dataset: dataset.clone(),
                days,
                all: which == SimulatedRows::All,
            };
            let client = &remote.client;
            let simulated = patiently(async || client.simulate_policy(request.clone()).await);
            told(dataset, simulated.await?)
        }
    };
    common.output.print(&simulated, simulation_text)
}

/// A simulation as a server tells it.
fn told(dataset: String, told: proto::SimulatePolicyResponse) -> Simulation {
    let kept = told.snapshots.iter().filter(|s| s.deleted.is_none()).count();
    let line = |snapshot: proto::SimulatedSnapshot| SimulatedLine {
        name: snapshot.name,
        created: when(time(snapshot.created)),
        exists: snapshot.exists,
        deleted: snapshot.deleted.map(|at| when(time(Some(at)))),
        why: snapshot.reason,
    };
    Simulation {
        dataset,
        until: when(time(told.until)),
        slots: told.slots,
        most_snapshots: told.most,
        kept: kept as u64,
        snapshots: told.snapshots.into_iter().map(line).collect(),
    }
}

fn simulation(dataset: &Dataset, done: &Simulated, which: SimulatedRows) -> Simulation {
    let kept = done.snapshots.iter().filter(|s| s.deleted.is_none()).count();
    // Snapshots that exist already are always shown: people look for their deletion.
    let is_shown =
        |s: &&SimulatedSnapshot| which == SimulatedRows::All || s.deleted.is_none() || s.exists;
    Simulation {
        dataset: dataset.name.to_string(),
        until: when(done.until),
        slots: done.slots as u64,
        most_snapshots: done.most as u64,
        kept: kept as u64,
        snapshots: done.snapshots.iter().filter(is_shown).map(SimulatedLine::of).collect(),
    }
}

fn simulation_text(done: &Simulation) -> String {
    let rows: Vec<_> = done.snapshots.iter().map(SimulatedLine::row).collect();
    format!(
        "{}\n{} until {}: {} would be left, and never more than {}\n",
        table(&["SNAPSHOT", "DECISION"], &rows).trim_end(),
        plural(done.slots, "slot"),
        done.until,
        plural(done.kept, "snapshot"),
        done.most_snapshots
    )
}

async fn run_now(name: Option<&str>, common: &Common) -> anyhow::Result<()> {
    let on = common.place.target().await?;
    let name = on.live_or_default(name).await?;
    let ran = match &on {
        Target::Pool(opened) => {
            let dataset = opened.browser.dataset(&name).await?;
            let (controller, now) = (&opened.controller, Timestamp::now());
            controller.run_policy_now(&opened.pool, &dataset, now).await?
        }
        Target::Server(remote) => {
            let told = remote.client.run_policy(&remote.pool, &name).await?;
            Ran { snapshot: some(told.snapshot), deleted: told.deleted }
        }
    };
    common.output.print(&ran, |Ran { snapshot, deleted }| {
        let made = match snapshot {
            Some(snapshot) => format!("made snapshot {name}@{snapshot}\n"),
            None => format!("dataset {name} has not changed since its last snapshot\n"),
        };
        let deleted = deleted.iter().map(|gone| format!("deleted snapshot {name}@{gone}\n"));
        made + &deleted.collect::<String>()
    })
}
