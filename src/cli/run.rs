//! `serve`, `controller`, `node`: processes that run until they are stopped.

use super::args::{AdminArgs, ControllerArgs, NodeArgs, ReadyArgs, ServeArgs};
use super::exit::Wrong;
use crate::admin::rest::WebPage;
use crate::app::{self, AdminOptions, Config, Exposure, NodeOptions, ServeOptions};
use crate::csi;
use crate::mount::KernelMounter;
use crate::nfs::Peers;
use crate::types::Class;
use std::io::Write;
use std::path::PathBuf;

/// Prints the line that announces a process is ready.
#[expect(clippy::needless_pass_by_value, reason = "the callback owns its line")]
fn ready(line: String) {
    let mut out = std::io::stdout();
    // The parent may not read our output.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    tracing::info!("{line}");
}

fn socket(text: &str) -> anyhow::Result<PathBuf> {
    csi::endpoint(text).map_err(|why| Wrong::new(Class::Invalid, why))
}

impl AdminArgs {
    fn options(&self) -> Option<AdminOptions> {
        if self.admin_listen.is_none() && self.admin_socket.is_none() {
            return None;
        }
        Some(AdminOptions {
            listen: self.admin_listen,
            socket: self.admin_socket.clone(),
            page: if self.web { WebPage::Served } else { WebPage::Absent },
            exposure: if self.insecure_admin { Exposure::Anywhere } else { Exposure::Loopback },
        })
    }
}

pub fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let config = args.pool.config()?;
    app::start_logging(&config.log, None)?;
    let csi_endpoint = args.csi_endpoint.as_deref().map(socket).transpose()?;
    let options = ServeOptions {
        state_dir: args.state_dir,
        csi_endpoint,
        nfs_listen: Some(args.nfs_listen),
        nfs_peers: if args.insecure_ports { Peers::Everybody } else { Peers::Privileged },
        peers: Peers::LoopbackReserved,
        health_listen: args.health_listen,
        admin: args.admin.options(),
    };
    app::keep_private();
    app::run(async move {
        let stop = app::stop_signal()?;
        app::serve(config, options, KernelMounter, &ready, stop).await
    })
}

pub fn controller(args: &ControllerArgs) -> anyhow::Result<()> {
    let config = Config::read(&args.config)?;
    app::start_logging(&config.log, None)?;
    let endpoint = socket(&args.csi_endpoint)?;
    let admin = args.admin.options();
    app::keep_private();
    app::run(async move {
        let stop = app::stop_signal()?;
        app::controller(config, &endpoint, args.health_listen, admin, &ready, stop).await
    })
}

pub fn node(args: NodeArgs) -> anyhow::Result<()> {
    let mut config = Config::read(&args.config)?;
    if let (Some(channel), Some(address)) = (&mut config.channel, args.channel_address) {
        channel.address = Some(address);
    }
    app::start_logging(&config.log, None)?;
    let endpoint = socket(&args.csi_endpoint)?;
    let options = NodeOptions {
        node_id: Some(args.node_id),
        state_dir: args.state_dir,
        run_dir: args.run_dir,
        registration: args.registry_dir.zip(args.kubelet_endpoint),
        peers: Peers::LoopbackReserved,
        health_listen: args.health_listen,
        health_socket: args.health_socket,
    };
    app::keep_private();
    app::run(async move {
        let stop = app::stop_signal()?;
        app::node(config, &endpoint, options, KernelMounter, &ready, stop).await
    })
}

/// Asks another process whether it is ready. No third process can answer on its socket.
pub fn ask_ready(args: &ReadyArgs) -> anyhow::Result<()> {
    match app::ask_ready(&args.health_socket) {
        Ok(answer) => {
            println!("{answer}");
            Ok(())
        }
        Err(error) => Err(Wrong::new(Class::Unavailable, format!("{error:#}"))),
    }
}
