//! `demo`: a volume's lifecycle, through the real CSI sockets, with every byte and attribute
//! compared.
//!
//! Through the kernel's NFS client where this process is root and the kernel has one, else through
//! the user-space client; everything else is the same. The exit status is 0 only if every step
//! passed.

mod attributes;
mod csi;
mod files;
mod kernel;
mod lifecycle;
mod model;
mod mounts;
mod steps;
mod user;
mod work_dir;
mod workload;

use super::args::{DemoArgs, PoolArgs};
use super::report::table;
use crate::app::{self, ServeOptions};
use crate::mount::{KernelMounter, Mounter};
use crate::nfs::Peers;
use csi::Csi;
use files::MountedFiles;
use kernel::KernelFiles;
use mounts::{UserMounts, kernel_has_nfs};
use serde::Serialize;
use std::time::Duration;
use steps::{Step, Steps};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use work_dir::WorkDir;

/// Time limit for the services to start.
const START: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct DemoReport {
    pool: String,
    /// `kernel` or `user space`.
    client: &'static str,
    steps: Vec<Step>,
    passed: bool,
}

pub fn run(args: DemoArgs) -> anyhow::Result<()> {
    app::start_logging(&Default::default(), Some("error"))?;
    app::run(async move {
        let work_dir = WorkDir::new()?;
        let url = match &args.pool {
            Some(url) => url.clone(),
            None => format!("file://{}", work_dir.path().join("pool").display()),
        };
        let kernel = kernel_has_nfs();
        let client = if kernel { "kernel" } else { "user space" };
        let mut steps = Steps::new(args.output.json);
        if !args.output.json {
            let why = if kernel {
                "the kernel's NFS client"
            } else {
                "the user-space NFS client (mounting needs root and a kernel with NFS)"
            };
            println!("pool {url}, through {why}");
        }
        let outcome = if kernel {
            let mounted = |published: &csi::Published| {
                Ok(MountedFiles::Kernel(KernelFiles { root: published.target.clone() }))
            };
            with_services(&mut steps, &work_dir, &url, KernelMounter, mounted).await
        } else {
            let mounts = UserMounts::default();
            let mounter = mounts.mounter();
            with_services(&mut steps, &work_dir, &url, mounter, move |published| {
                mounts.files(&published.staging)
            })
            .await
        };
        let report =
            DemoReport { pool: url, client, steps: steps.into_done(), passed: outcome.is_ok() };
        args.output.print(&report, |report| {
            let rows: Vec<Vec<String>> = report
                .steps
                .iter()
                .map(|s| vec![s.step.clone(), format!("{:.2} s", s.seconds), s.result.clone()])
                .collect();
            table(&["STEP", "TIME", "RESULT"], &rows)
                + if report.passed { "all checks passed\n" } else { "" }
        })?;
        outcome
    })
}

/// Runs the services while the lifecycle's steps run.
async fn with_services<M: Mounter>(
    steps: &mut Steps,
    work_dir: &WorkDir,
    url: &str,
    mounter: M,
    mounted: impl Fn(&csi::Published) -> anyhow::Result<MountedFiles>,
) -> anyhow::Result<()> {
    let pool = PoolArgs { pool: Some(url.to_owned()), config: None, passphrase_file: None };
    let socket = work_dir.path().join("csi.sock");
    let options = ServeOptions {
        admin: None,
        state_dir: work_dir.path().join("state"),
        csi_endpoint: Some(socket.clone()),
        nfs_listen: None,
        nfs_peers: Peers::Privileged,
        peers: Peers::Loopback,
        health_listen: None,
    };
    let stop = CancellationToken::new();
    let (ready, mut readied) = mpsc::unbounded_channel();
    let config = pool.config()?;
    let serving = tokio::spawn({
        let stop = stop.clone();
        async move {
            let say = move |line: String| drop(ready.send(line));
            app::serve(config, options, mounter, &say, stop).await
        }
    });
    let started = steps.run("start controller and node", async {
        match tokio::time::timeout(START, readied.recv()).await {
            Ok(Some(line)) => Ok((true, line.replace(&work_dir.path().display().to_string(), "…"))),
            Ok(None) => Ok((false, String::new())),
            Err(_) => anyhow::bail!("not ready within {} s", START.as_secs()),
        }
    });
    if !started.await? {
        return Err(serving
            .await?
            .err()
            .unwrap_or_else(|| anyhow::anyhow!("the services ended before they were ready")));
    }
    let outcome = async {
        let opened = pool.open().await?;
        let csi = Csi::connect(&socket, work_dir.path().to_owned()).await?;
        lifecycle::run(steps, work_dir, &opened, csi, mounted).await
    };
    let outcome = outcome.await;
    stop.cancel();
    let ended = serving.await?;
    outcome?;
    steps.run("stop: flush and release", async { ended.map(|()| ((), "clean".to_owned())) }).await
}
