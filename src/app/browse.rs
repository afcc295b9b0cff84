//! A pool opened by another program, to look into.

use super::config::{Config, PoolConfig};
use super::parts::Parts;
use super::pools::{Missing, open};
use crate::bucket::PoolUrl;
use crate::control::browse::Browser;
use anyhow::Context;

/// The name of a pool that is given only by its URL.
const UNNAMED: &str = "default";

/// Opens the pool at a URL (`s3://BUCKET/PREFIX`, `gs://…`, `az://…`, `file:///FOLDER`) with the
/// credentials of the environment. Nothing is owned: datasets are read as the store has them.
/// [`Browser::close`] ends the registrations of snapshots that were read.
///
/// # Errors
/// When the URL is wrong, there is no pool, or the store does not answer.
pub async fn browse(url: &str) -> anyhow::Result<Browser> {
    let url: PoolUrl = url.parse().with_context(|| format!("pool {url:?}"))?;
    let config =
        Config { pools: [(UNNAMED.to_owned(), PoolConfig::at(url))].into(), ..Config::default() };
    let pools = open(&config, Missing::Refuse).await?;
    let pool = pools.get(None)?.clone();
    let node = format!("library-{:08x}", rand::random::<u32>());
    let parts = Parts::over(config, pools, node, None).await?;
    Ok(Browser::new(&pool, &parts.volumes))
}
