//! `pool create`, `pool info`.

use super::args::{Common, Output, PoolCommand};
use crate::app;
use crate::catalog::{Catalog, PoolRecord};
use serde_json::{Value, json};

pub fn run(command: PoolCommand) -> anyhow::Result<()> {
    app::start_logging(&Default::default(), Some("warn"))?;
    app::run(async move {
        match command {
            PoolCommand::Create { common } => create(&common).await,
            PoolCommand::Info { common } => {
                let opened = common.place.pool_itself().await?;
                print(common.output, &opened.pool.catalog, "pool")
            }
        }
    })
}

async fn create(common: &Common) -> anyhow::Result<()> {
    app::keep_private();
    let config = common.place.pool_itself_at()?;
    for pool in config.pools.values() {
        let catalog = pool.create().await?;
        print(common.output, &catalog, "created pool")?;
    }
    Ok(())
}

fn print(output: Output, catalog: &Catalog, what: &str) -> anyhow::Result<()> {
    output.print(&describe(catalog.bucket().url(), catalog.pool()), |report| {
        let encrypted =
            if report["encrypted"] == Value::Bool(true) { "encrypted" } else { "not encrypted" };
        format!("{what} {} at {}, {encrypted}\n", text(&report["id"]), text(&report["url"]))
    })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn describe(url: &str, pool: &PoolRecord) -> Value {
    json!({
        "id": pool.id,
        "url": url,
        "created_unix_secs": pool.created.secs(),
        "encrypted": pool.encryption.is_some(),
        "features": pool.features,
    })
}
