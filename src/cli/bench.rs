//! `bench`: puts load on any NFSv3 server and measures it.

use super::args::BenchArgs;
use super::exit::Wrong;
use crate::app;
use crate::load::{self, LoadError, LoadOptions, Row, Workload};
use crate::types::{Class, Classify};
use std::net::ToSocketAddrs;
use std::time::Duration;

/// A longer workload is a typing error.
const SECONDS_MAX: u64 = 3600;

pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    app::start_logging(&Default::default(), Some("warn"))?;
    let invalid = |why: String| Wrong::new(Class::Invalid, why);
    if !args.export.starts_with('/') {
        return Err(invalid(format!("--export {:?}: must start with /", args.export)));
    }
    if !(1..=SECONDS_MAX).contains(&args.seconds) {
        return Err(invalid(format!("--seconds {}: must be 1 to {SECONDS_MAX}", args.seconds)));
    }
    let mut found = args.target.to_socket_addrs().map_err(|error| {
        invalid(format!("--target {:?}: {error}: write HOST:PORT", args.target))
    })?;
    let target = found
        .next()
        .ok_or_else(|| invalid(format!("--target {:?}: the name has no address", args.target)))?;
    let only = args
        .only
        .iter()
        .map(|name| name.parse::<Workload>().map_err(invalid))
        .collect::<Result<Vec<_>, _>>()?;
    let options = LoadOptions {
        only,
        mount_port: args.mount_port,
        time: Duration::from_secs(args.seconds),
        server_pid: args.server_pid,
        files: args.files,
        file_mib: args.file_mib,
        concurrency: args.concurrency.max(1),
        connections: args.connections.max(1),
        directory: args.directory.clone(),
        keep: args.keep,
        ..LoadOptions::new(target, args.export.clone())
    };
    app::run(async move {
        let json = args.output.json;
        if !json {
            println!("{}", Row::HEADING);
        }
        let report = load::run(options, move |row| {
            if !json {
                println!("{row}");
            }
        })
        .await
        .map_err(failed)?;
        if json { args.output.print(&report, ToString::to_string) } else { Ok(()) }
    })
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: LoadError) -> anyhow::Error {
    let class = match &error {
        LoadError::Client { source, .. } => source.class(),
        LoadError::Different { .. } => Class::Corrupt,
        LoadError::Process { .. } => Class::NotFound,
        LoadError::Thread(_) => Class::Internal,
    };
    Wrong::new(class, error.to_string())
}
