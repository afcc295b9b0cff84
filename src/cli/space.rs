//! `space`: shows sizes, and what a deletion would free.

use super::args::SpaceArgs;
use super::remote::patiently;
use super::report::{Progress, table};
use super::target::Target;
use crate::admin::grpc::proto;
use crate::app;
use crate::control::{Accuracy, Space, SpaceOf, space};
use crate::types::ByteSize;

pub fn run(args: SpaceArgs) -> anyhow::Result<()> {
    app::start_logging(&Default::default(), Some("warn"))?;
    app::run(async move {
        let (target, progress) = (args.common.place.target().await?, Progress::new());
        let only = args.dataset.as_deref();
        progress.say("reading datasets and snapshots");
        let measured = match target {
            Target::Pool(opened) => {
                let only = opened.browser.only(only).await?;
                let accuracy = if args.exact { Accuracy::Exact } else { Accuracy::Estimate };
                let measuring = space(&opened.pool, &opened.parts.volumes, only, accuracy);
                Box::pin(measuring).await.map_err(anyhow::Error::new)
            }
            Target::Server(remote) => {
                let only = only.unwrap_or_default();
                let (client, pool) = (&remote.client, &remote.pool);
                let told = patiently(async || client.space(pool, only, args.exact).await);
                told.await.map(Space::from).map_err(anyhow::Error::new)
            }
        };
        drop(progress);
        args.common.output.print(&measured?, text)
    })
}

impl From<proto::Space> for Space {
    fn from(told: proto::Space) -> Self {
        let of = told.of.into_iter().map(|of| SpaceOf {
            name: of.name,
            referenced_bytes: of.referenced_bytes,
            logical_bytes: of.logical_bytes,
            unique_bytes: of.unique_bytes,
            stored_bytes: of.stored_bytes,
            estimated: of.estimated,
        });
        Self {
            of: of.collect(),
            packs: told.packs,
            pack_bytes: told.pack_bytes,
            database_bytes: told.database_bytes,
            dedup_ratio: told.dedup_ratio,
            compression_ratio: told.compression_ratio,
        }
    }
}

fn text(space: &Space) -> String {
    let size = |bytes: u64| ByteSize(bytes).to_string();
    let row = |of: &SpaceOf| {
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
