//! `gc`.

use super::args::GcArgs;
use super::report::Progress;
use crate::app;
use crate::catalog::Dataset;
use crate::control::browse::Names;
use crate::control::{Collected, Plan, Retained};
use crate::types::ByteSize;
use std::sync::Arc;
use std::time::Duration;

/// Time that it waits for a collection of another process before it collects concurrently.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn run(args: GcArgs) -> anyhow::Result<()> {
    app::start_logging(&Default::default(), Some("warn"))?;
    app::run(async move {
        let opened = args.common.place.pool_itself().await?;
        let progress = Arc::new(Progress::new());
        progress.say("reading every dataset and snapshot");
        let shown = progress.clone();
        let mut collector = opened
            .controller
            .collector(&opened.pool)
            .at_rate(args.rate.map(|rate| rate.0))
            .reporting(move |done| {
                shown.say(&format!(
                    "{} packs deleted, {} rewritten, {} clones detached",
                    done.packs,
                    done.rewritten,
                    done.detached.len()
                ));
            });
        if args.dry_run {
            let plan = collector.plan().await?;
            drop((collector, progress));
            let datasets: Vec<Dataset> =
                opened.pool.catalog.datasets().await?.into_iter().map(|at| at.record).collect();
            let names = Names::all(&opened.pool, &datasets).await?;
            args.common.output.print(&plan, |plan| plan_text(plan, &names))
        } else {
            let done = collector.collect_or_wait(PATIENCE).await?;
            drop((collector, progress));
            args.common.output.print(&done, done_text)
        }
    })
}

fn plan_text(plan: &Plan, names: &Names) -> String {
    let mut text = format!(
        "would delete {} packs ({}), {} snapshots, {} datasets; packs that only these refer to \
         follow in the next collection\n",
        plan.packs.len(),
        ByteSize(plan.pack_bytes),
        plan.snapshots.len(),
        plan.datasets.len()
    );
    plan.packs
        .iter()
        .for_each(|pack| text += &format!("pack      {} ({})\n", pack.key, ByteSize(pack.bytes)));
    plan.databases.iter().for_each(|db| {
        text += &format!("stray     vol/{} ({} objects)\n", db.incarnation, db.keys.len());
    });
    plan.checkpoints.iter().for_each(|stray| {
        text += &format!(
            "stray     checkpoint {} of vol/{}, which no record names\n",
            stray.snapshot, stray.dataset
        );
    });
    plan.abandoned_clones.iter().for_each(|id| {
        text += &format!("abandon   clone {}, which was never finished\n", names.dataset(*id));
    });
    plan.abandoned_snapshots.iter().for_each(|id| {
        text += &format!("abandon   snapshot {}, which was never finished\n", names.snapshot(*id));
    });
    plan.snapshots.iter().for_each(|id| text += &format!("snapshot  {}\n", names.snapshot(*id)));
    plan.datasets.iter().for_each(|id| text += &format!("dataset   {}\n", names.dataset(*id)));
    plan.detach.iter().for_each(|id| text += &format!("detach    {}\n", names.dataset(*id)));
    plan.rewrite.iter().for_each(|c| {
        text +=
            &format!("rewrite   pack {} ({}), subject to a full mark\n", c.pack, ByteSize(c.bytes));
    });
    plan.obsolete_markers.iter().for_each(|key| text += &format!("obsolete  {key}\n"));
    plan.maintenance.iter().for_each(|id| {
        text += &format!("collect   vol/{} ({})\n", id.incarnation, names.dataset(*id));
    });
    text + &retained_text(&plan.retained)
}

fn done_text(done: &Collected) -> String {
    let text = format!(
        "deleted {} packs ({}), {} snapshots, {} datasets; rewrote {} packs ({} freed); detached \
         {} clones; collected {} databases\n",
        done.packs,
        ByteSize(done.pack_bytes),
        done.snapshots.len(),
        done.datasets.len(),
        done.rewritten,
        ByteSize(done.rewritten_bytes),
        done.detached.len(),
        done.databases
    );
    text + &retained_text(&done.retained)
}

fn retained_text(retained: &[Retained]) -> String {
    retained.iter().map(|it| format!("retained  {}: {}\n", it.what, it.why)).collect()
}
