//! `pool create`, `pool info`, `pool change-key`, `pool upgrade`.

use super::args::{Common, NewKeyArgs, Output, PoolCommand};
use super::exit::Wrong;
use crate::app;
use crate::catalog::{Catalog, PoolRecord, RECORD_FORMAT};
use crate::types::Class;
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
            PoolCommand::ChangeKey { new, common } => change_key(&new, &common).await,
            PoolCommand::Upgrade { common } => {
                let opened = common.place.pool_itself().await?;
                upgrade(common.output, &opened.pool.catalog)
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

async fn change_key(new: &NewKeyArgs, common: &Common) -> anyhow::Result<()> {
    app::keep_private();
    let opened = common.place.pool_itself().await?;
    let catalog = &opened.pool.catalog;
    if catalog.pool().encryption.is_none() {
        let why = "the pool is not encrypted: that is decided when a pool is created";
        return Err(Wrong::new(Class::Precondition, why));
    }
    let (passphrase, key) = (new.new_passphrase_file.as_deref(), new.new_key_file.as_deref());
    if let Some(secret) = app::secret_in(passphrase, key)? {
        catalog.change_secret(&secret).await?;
    }
    print(common.output, catalog, "changed the key of pool")
}

/// There has been one format so far: a pool that could be opened has it, as a newer one is refused,
/// and nothing is to be done.
fn upgrade(output: Output, catalog: &Catalog) -> anyhow::Result<()> {
    let (id, url) = (catalog.pool().id, catalog.bucket().url());
    let report = json!({ "id": id, "url": url, "format": RECORD_FORMAT, "upgraded": false });
    output.print(&report, |_| {
        format!("pool {id} at {url} has format {RECORD_FORMAT}, the newest: nothing to do\n")
    })
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
