//! Logging: to the standard error, as text for people or JSON for collectors.

use super::config::{LogConfig, LogFormat};
use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// SlateDB and the HTTP stack log much that only their authors need.
const DEFAULT_FILTER: &str = "info,slatedb=warn,object_store=warn,hyper=warn,h2=warn,foyer=warn,\
    foyer_storage=warn,foyer_memory=warn";

/// The filter of commands. Detaching a clone plans the compaction of all its tables; if another
/// takes some of them first, SlateDB refuses the plan and logs an error, and a new plan is made.
/// The command itself reports a failure in the end.
const REFUSED_PLANS: &str = "slatedb::compactor=off";

pub fn start(config: &LogConfig, default: Option<&str>) -> anyhow::Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => filter,
        _ => config.filter.clone().unwrap_or_else(|| {
            default.map_or_else(|| DEFAULT_FILTER.to_owned(), |d| format!("{d},{REFUSED_PLANS}"))
        }),
    };
    let filter = EnvFilter::try_new(&filter).with_context(|| format!("log filter {filter:?}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.format {
        LogFormat::Text => {
            builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("logging: {error}"))
}
