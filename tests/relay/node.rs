//! Nodes that share a volume, each a whole driver, with a client in place of the kernel's.

use crate::support::driver::{
    Driver, LastMount, Mounted, capability, catalog, mounter, new_volume, stage, text,
};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tonic::{Code, Status};
use zerofs_csi::catalog::Owner;
use zerofs_csi::csi::proto::v1::volume_capability::access_mode::Mode;
use zerofs_csi::csi::proto::v1::*;
use zerofs_csi::mount::FakeMounter;
use zerofs_csi::nfs::client::{Client, Credentials, FileHandle};
use zerofs_csi::types::VolumeHandle;

/// The shortest lease there may be.
pub const SETTINGS: &str = "lease: 5s\nmailboxInterval: 50ms\nchannel: { listen: '127.0.0.1:0' }\n";

pub struct Node {
    pub driver: Driver,
    pub seat: &'static str,
    pub last: LastMount,
}

pub fn shared_stage(id: &str, at: &std::path::Path) -> NodeStageVolumeRequest {
    NodeStageVolumeRequest {
        volume_capability: Some(capability(Mode::MultiNodeMultiWriter)),
        ..stage(id, at)
    }
}

impl Node {
    pub async fn start(dir: &Arc<TempDir>, seat: &'static str) -> Self {
        Self::with(dir, seat, SETTINGS).await
    }

    pub async fn with(dir: &Arc<TempDir>, seat: &'static str, settings: &str) -> Self {
        let (mounter, last) = mounter();
        let driver = Driver::seated(dir.clone(), seat, mounter, settings).await;
        Self { driver, seat, last }
    }

    /// A process of a node that may have mounts, beside the one that runs there or after it.
    pub async fn over(
        dir: &Arc<TempDir>,
        seat: &'static str,
        mounter: FakeMounter,
        last: LastMount,
        settings: &str,
    ) -> Self {
        Self { driver: Driver::seated(dir.clone(), seat, mounter, settings).await, seat, last }
    }

    /// The node's name in records.
    pub fn name(&self) -> String {
        let file = self.driver.path(&format!("{}state/node-name", self.seat));
        std::fs::read_to_string(file).unwrap().trim().to_owned()
    }

    /// Stops the process in order, and starts another one with the same mounts.
    pub async fn restart(self) -> Self {
        let Self { driver, seat, last } = self;
        let (dir, mounter) = driver.stop().await;
        Self { driver: Driver::seated(dir, seat, mounter, SETTINGS).await, seat, last }
    }

    pub async fn create_shared(&self, name: &str) -> String {
        let request = CreateVolumeRequest {
            volume_capabilities: vec![capability(Mode::MultiNodeMultiWriter)],
            ..new_volume(name)
        };
        let made = self.driver.controller().create_volume(request).await.unwrap();
        made.into_inner().volume.unwrap().volume_id
    }

    pub fn staging(&self) -> PathBuf {
        self.driver.path(&format!("{}staging", self.seat))
    }

    pub async fn try_stage(&self, id: &str) -> Result<(), Status> {
        let request = shared_stage(id, &self.staging());
        self.driver.node().node_stage_volume(request).await.map(drop)
    }

    pub async fn stage(&self, id: &str) {
        self.try_stage(id).await.unwrap();
    }

    pub async fn unstage(&self, id: &str) {
        for _ in 0..600 {
            match self.driver.unstage(id, &self.staging()).await {
                Ok(_) => return,
                Err(status) => {
                    assert!(
                        matches!(status.code(), Code::Aborted | Code::Unavailable),
                        "{status:?}"
                    );
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("it stays staged");
    }

    pub async fn stats(&self, id: &str) -> Result<Vec<VolumeUsage>, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: id.into(),
            volume_path: text(&self.staging()),
            ..Default::default()
        };
        Ok(self.driver.node().node_get_volume_stats(request).await?.into_inner().usage)
    }

    pub fn mounted(&self) -> Mounted {
        self.last.lock().clone().expect("it is mounted")
    }

    pub fn at(&self) -> SocketAddr {
        self.mounted().what.endpoint
    }

    pub fn root(&self) -> FileHandle {
        self.mounted().root
    }

    /// A client on this node, as its kernel is.
    pub async fn client(&self) -> Client {
        let credentials = Credentials { machine: self.seat.into(), ..Credentials::root() };
        Client::connect(self.at(), &credentials).await.unwrap()
    }
}

pub async fn owner(dir: &TempDir, id: &str) -> Option<Owner> {
    let volume: VolumeHandle = id.parse().unwrap();
    let found = catalog(dir).await.dataset_by_id(volume.dataset).await.unwrap();
    found.expect("the dataset is there").record.owner
}

/// Waits until the record names another session than that of `before`.
pub async fn next_owner(dir: &TempDir, id: &str, before: &Owner) -> (Owner, Duration) {
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(40) {
        if let Some(now) = owner(dir, id).await
            && now.session != before.session
        {
            return (now, since.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nobody takes the volume over")
}
