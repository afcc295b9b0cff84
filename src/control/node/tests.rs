//! Recovery of the node after a failed close, after a claim whose write has an unknown outcome, and
//! after a late report of a lost volume.

use super::agent::StageState;
use super::*;
use crate::bucket::Bucket;
use crate::catalog::{Catalog, Properties};
use crate::chunk::ChunkCache;
use crate::control::{Controller, NewVolume, Pools};
use crate::fs::db::DbCache;
use crate::mount::FakeMounter;
use crate::types::{Class, Classify, DatasetId, SessionId, VolumeHandle};
use crate::volume::{Attached, VolumeSettings, Volumes};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The stack of the program's own threads: unoptimised futures of the database are large.
const STACK_BYTES: usize = 8 << 20;

/// Endpoints that serve no client, and remember which went stale.
#[derive(Default)]
struct Nowhere {
    stale: Mutex<Vec<DatasetId>>,
}

impl Endpoints for Nowhere {
    type Pass = ();

    async fn listen(&self, _: DatasetId, _: &str, _: SocketAddr) -> Result<(), EndpointError> {
        Ok(())
    }

    fn serve(&self, _: &Attached) -> Result<(), EndpointError> {
        Ok(())
    }

    fn allow_mount(&self, _: DatasetId) -> Result<(), EndpointError> {
        Ok(())
    }

    fn stale(&self, dataset: DatasetId) {
        self.stale.lock().push(dataset);
    }

    async fn stop(&self, _: DatasetId) {}
}

struct Node {
    agent: Arc<NodeAgent<FakeMounter, Nowhere>>,
    catalog: Catalog,
    volume: VolumeHandle,
    dir: tempfile::TempDir,
}

impl Node {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::create(Bucket::memory(), None).await.unwrap();
        let volumes = Volumes::new(VolumeSettings {
            node: "node".into(),
            session: SessionId::random(),
            journal_dir: Some(dir.path().join("journal")),
            cache: DbCache::new(16 << 20),
            chunk_cache: ChunkCache::memory(16 << 20),
            flush_interval: Duration::from_millis(200),
            memory: crate::fs::FsMemory::new(16 << 20, 8 << 20),
            volumes_max: 8,
        });
        let pools = Pools::one("p", catalog.clone());
        let new = NewVolume {
            name: "v".parse().unwrap(),
            size: None,
            size_limit: None,
            source: None,
            properties: Properties::default(),
            access_modes: vec![],
            form: Default::default(),
            parameters: Default::default(),
        };
        let volume = Controller::new(pools.clone(), volumes.clone())
            .create_volume(None, new)
            .await
            .unwrap()
            .handle;
        let settings = NodeSettings::new(dir.path().join("staged"), "driver".into()).unwrap();
        let agent =
            NodeAgent::start(FakeMounter::new(), Nowhere::default(), volumes, pools, settings)
                .await
                .unwrap();
        Self { agent, catalog, volume, dir }
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("target")
    }

    async fn stage(&self) -> Result<(), crate::control::ControlError> {
        let wanted = Stage {
            volume: self.volume,
            target: self.target(),
            access: Access::ReadWrite,
            options: vec![],
        };
        Box::pin(self.agent.stage(wanted)).await
    }

    async fn unstage(&self) -> Result<(), crate::control::ControlError> {
        Box::pin(self.agent.unstage(self.volume, &self.target())).await
    }

    /// Retries as kubelet does: a volume that has stopped releases its journal in its own time.
    async fn unstage_at_last(&self, when: &str) {
        for _ in 0..400 {
            match self.unstage().await {
                Ok(()) => return,
                Err(error) => assert!(
                    matches!(error.class(), Class::InProgress | Class::Unavailable),
                    "{when}: {error}"
                ),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{when}: it stays staged");
    }

    fn set(&self, step: &str, action: &str) {
        self.catalog.bucket().failpoints().set(step, action).unwrap();
    }

    async fn is_owned(&self) -> bool {
        self.catalog
            .dataset_by_id(self.volume.dataset)
            .await
            .unwrap()
            .unwrap()
            .record
            .owner
            .is_some()
    }

    async fn assert_released(&self, when: &str) {
        assert!(!self.is_owned().await, "{when}: another node can never have it");
        assert_eq!(std::fs::read_dir(self.dir.path().join("staged")).unwrap().count(), 0, "{when}");
        assert!(matches!(self.agent.state(self.volume.dataset), StageState::Idle), "{when}");
    }
}

fn run(test: impl Future<Output = ()> + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .thread_stack_size(STACK_BYTES)
        .build()
        .unwrap();
    let done = runtime.spawn(test);
    runtime.block_on(done).unwrap();
}

#[test]
fn an_owner_that_was_not_released_is_released_by_a_retry_of_unstage() {
    run(async {
        // The database is closed and its owner stays; the database stays open; its last changes do
        // not reach the store.
        for step in [
            "catalog.put",
            "fs.commit.before-close",
            "fs.commit.after-close",
            "fs.commit.before-flush",
        ] {
            let node = Node::new().await;
            node.stage().await.unwrap();
            node.set(step, "1*return");
            assert!(node.unstage().await.is_err(), "{step}");
            assert!(node.is_owned().await, "{step}: the failure has no point");
            node.unstage_at_last(step).await;
            node.assert_released(step).await;
            node.stage().await.unwrap();
            node.unstage().await.unwrap();
        }
    });
}

#[test]
fn a_claim_that_was_written_though_it_failed_is_taken_back() {
    run(async {
        for step in ["catalog.put-check", "volume.open.claimed"] {
            let node = Node::new().await;
            node.set(step, "1*return");
            assert!(node.stage().await.is_err(), "{step}");
            node.assert_released(step).await;
        }
    });
}

/// The store is away for the whole of a stage that fails and of what undoes it.
#[test]
fn what_cannot_be_undone_is_undone_by_unstaging() {
    run(async {
        let node = Node::new().await;
        node.set("volume.open.claimed", "return");
        node.set("volume.close.release", "return");
        assert!(node.stage().await.is_err());
        assert!(node.is_owned().await, "the failure has no point");
        assert!(node.unstage().await.is_err(), "a volume that stays this node's is not unstaged");
        node.set("volume.open.claimed", "off");
        node.set("volume.close.release", "off");
        node.unstage().await.unwrap();
        node.assert_released("unstaged").await;
    });
}

#[test]
fn a_loss_reported_late_does_not_touch_what_was_staged_since() {
    run(async {
        let node = Node::new().await;
        node.stage().await.unwrap();
        let StageState::Staged(before) = node.agent.state(node.volume.dataset) else {
            panic!("not staged")
        };
        node.unstage().await.unwrap();
        node.agent.lose_staged(&before, "late");
        assert!(matches!(node.agent.state(node.volume.dataset), StageState::Idle));
        node.stage().await.unwrap();
        node.agent.lose_staged(&before, "late");
        let StageState::Staged(now) = node.agent.state(node.volume.dataset) else {
            panic!("a live volume was given up")
        };
        assert!(node.agent.endpoints.stale.lock().is_empty());
        node.agent.lose_staged(&now, "in time");
        assert!(matches!(node.agent.state(node.volume.dataset), StageState::Lost(_)));
        assert_eq!(*node.agent.endpoints.stale.lock(), [node.volume.dataset]);
        drop((before, now));
        node.unstage_at_last("lost, not fenced").await;
        node.assert_released("lost, not fenced").await;
    });
}
