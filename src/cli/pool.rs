//! `pool create`, `pool info`.

use super::args::{Output, PoolArgs, PoolCommand};
use crate::app;
use crate::catalog::{Catalog, PoolRecord};
use serde_json::{Value, json};

pub fn run(command: PoolCommand) -> anyhow::Result<()> {
    app::start_logging(&Default::default(), Some("warn"))?;
    app::run(async move {
        match command {
            PoolCommand::Create { pool, output } => create(&pool, output).await,
            PoolCommand::Info { pool, output } => {
                let opened = pool.open().await?;
                print(output, &opened.pool.catalog, "pool")
            }
        }
    })
}

async fn create(pool: &PoolArgs, output: Output) -> anyhow::Result<()> {
    let config = pool.config()?;
    for pool in config.pools.values() {
        let catalog = pool.create().await?;
        print(output, &catalog, "created pool")?;
    }
    Ok(())
}

fn print(output: Output, catalog: &Catalog, what: &str) -> anyhow::Result<()> {
    output.print(&describe(catalog.bucket().url(), catalog.pool()), |report| {
        let encrypted = if report["encrypted"] == Value::Bool(true) { "encrypted" } else { "not encrypted" };
        format!("{what} {} at {}, {encrypted}\n", text(&report["id"]), text(&report["url"]))
    })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn describe(url: &str, pool: &PoolRecord) -> Value {
    json!({ "id": pool.id, "url": url, "created_unix_secs": pool.created.secs(), "encrypted": pool.encryption.is_some(), "features": pool.features })
}
