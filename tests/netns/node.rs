//! A node plugin as a process: all of it but mount(2), for which the host's kernel would need a
//! client of its own in each namespace. Its mounter speaks MOUNT as the kernel does, and notes in a
//! file what is mounted, which outlives the process as a mount does.

use crate::network::SEATS;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;
use zerofs_csi::app::{self, Config, NodeOptions};
use zerofs_csi::mount::{FakeMounter, MountError, MountPoint, NfsMount};
use zerofs_csi::nfs::Peers;
use zerofs_csi::nfs::client::{Client, Credentials};

pub fn socket(dir: &Path, seat: &str) -> PathBuf {
    dir.join(format!("{seat}.sock"))
}

pub fn config(dir: &Path, seat: &str) -> PathBuf {
    dir.join(format!("{seat}.yaml"))
}

pub fn staging(dir: &Path, seat: &str) -> PathBuf {
    dir.join(format!("{seat}-staging"))
}

/// What the kernel knows of the mount.
pub fn mounted(dir: &Path, seat: &str) -> PathBuf {
    dir.join(format!("{seat}-mounted.json"))
}

/// Runs the node plugin until it is killed.
pub fn run(dir: &Path, seat: &str) {
    assert!(SEATS.contains(&seat), "{seat}");
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .thread_stack_size(8 << 20)
        .build()
        .unwrap();
    let config = std::fs::read_to_string(config(dir, seat)).unwrap();
    let options = NodeOptions {
        node_id: Some(seat.to_owned()),
        state_dir: dir.join(format!("{seat}-state")),
        run_dir: None,
        registration: None,
        peers: Peers::Loopback,
        health_listen: None,
        health_socket: None,
    };
    let ready = |line: String| println!("{line}");
    let (config, at) = (Config::parse(&config).unwrap(), socket(dir, seat));
    let ended = runtime.block_on(async {
        let mounter = mounter(mounted(dir, seat));
        app::node(config, &at, options, mounter, &ready, CancellationToken::new()).await
    });
    panic!("the node plugin has ended: {ended:?}");
}

fn mounter(noted: PathBuf) -> FakeMounter {
    let before = std::fs::read(&noted).ok();
    let mounter = FakeMounter::with(move |what, target| {
        let noted = noted.clone();
        Box::pin(async move {
            let mounted = mount(&what, &target).await.map_err(|error| MountError::Kernel {
                path: target,
                doing: "mounting",
                why: error.to_string(),
            })?;
            std::fs::write(noted, mounted.to_string()).unwrap();
            Ok(())
        })
    });
    if let Some(before) = before {
        let before: Value = serde_json::from_slice(&before).unwrap();
        let text = |key: &str| before[key].as_str().unwrap().to_owned();
        mounter.add(MountPoint {
            target: text("target").into(),
            device: text("device"),
            kind: "nfs".into(),
            read_only: false,
            flags: vec!["nosuid".into(), "nodev".into()],
        });
    }
    mounter
}

async fn mount(
    what: &NfsMount,
    target: &Path,
) -> Result<Value, zerofs_csi::nfs::client::ClientError> {
    let client = Client::connect(what.endpoint, &Credentials::root()).await?;
    let root = client.mount(&what.export).await?;
    Ok(json!({
        "target": target,
        "device": what.device,
        "endpoint": what.endpoint,
        "root": data_encoding::HEXLOWER.encode(root.as_bytes()),
    }))
}
