//! `space`: shows sizes, and what a deletion would free.

use super::args::SpaceArgs;
use super::report::{Progress, table};
use crate::app;
use crate::control::{Accuracy, Space, space};
use crate::types::ByteSize;

pub fn run(args: SpaceArgs) -> anyhow::Result<()> {
    app::start_logging(&Default::default(), Some("warn"))?;
    app::run(async move {
        let opened = args.common.pool.open().await?;
        let only = opened.only(args.dataset.as_deref()).await?;
        let accuracy = if args.exact { Accuracy::Exact } else { Accuracy::Estimate };
        let progress = Progress::new();
        progress.say("reading datasets and snapshots");
        let measured = Box::pin(space(&opened.pool, &opened.parts.volumes, only, accuracy)).await?;
        drop(progress);
        args.common.output.print(&measured, text)
    })
}

fn text(space: &Space) -> String {
    let size = |bytes: u64| ByteSize(bytes).to_string();
    let row = |of: &crate::control::SpaceOf| {
        let unique = size(of.unique_bytes);
        vec![
            of.name.clone(),
            of.logical_bytes.map_or_else(|| "-".to_owned(), size),
            size(of.referenced_bytes),
            if of.estimated { format!("~{unique}") } else { unique },
        ]
    };
    let mut text = table(
        &["NAME", "LOGICAL", "REFERENCED", "UNIQUE"],
        &space.of.iter().map(row).collect::<Vec<_>>(),
    );
    text += &format!(
        "pool: {} in {} packs, {} in databases\n",
        size(space.pack_bytes),
        space.packs,
        size(space.database_bytes)
    );
    if let (Some(dedup), Some(compression)) = (space.dedup_ratio, space.compression_ratio) {
        text += &format!("deduplicated {dedup:.2} times, compressed {compression:.2} times\n");
    }
    text
}
