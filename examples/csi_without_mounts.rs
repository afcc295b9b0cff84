//! The driver with a mounter that mounts nothing, for running csi-sanity where the kernel has no
//! NFS client: `tests/csi/sanity target/debug/examples/csi_without_mounts CSI_SANITY`. Takes the
//! arguments of `zerofs-csi serve` that the script gives. Never for real volumes: nothing is ever
//! mounted.

use std::path::PathBuf;
use zerofs_csi::app::{self, Config, ServeOptions};
use zerofs_csi::mount::FakeMounter;
use zerofs_csi::nfs::Peers;

fn option(args: &[String], name: &str) -> anyhow::Result<String> {
    let at = args
        .iter()
        .position(|arg| arg == name)
        .ok_or_else(|| anyhow::anyhow!("{name} is missing"))?;
    args.get(at + 1).cloned().ok_or_else(|| anyhow::anyhow!("{name} has no value"))
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let config = format!("pools:\n  default:\n    url: {}\n", option(&args, "--pool")?);
    let config = Config::parse(&config).map_err(anyhow::Error::msg)?;
    app::start_logging(&config.log, None)?;
    let socket =
        zerofs_csi::csi::endpoint(&option(&args, "--csi-endpoint")?).map_err(anyhow::Error::msg)?;
    let options = ServeOptions {
        state_dir: PathBuf::from(option(&args, "--state-dir")?),
        csi_endpoint: Some(socket),
        nfs_listen: None,
        nfs_peers: Peers::Privileged,
        peers: Peers::Loopback,
        health_listen: None,
        admin: None,
    };
    app::run(async move {
        let stop = app::stop_signal()?;
        app::serve(config, options, FakeMounter::new(), &|line| println!("{line}"), stop).await
    })
}
