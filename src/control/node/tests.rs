//! Recovery of the node after a failed close, after a claim whose write has an unknown outcome, and
//! after a late report of a lost volume.

use super::agent::StageState;
use super::*;
use crate::bucket::Bucket;
use crate::catalog::{Catalog, Properties, State};
use crate::chunk::ChunkCache;
use crate::control::channel::{Channel, OwnerRoute, key_of};
use crate::control::{ControlError, Controller, EphemeralWatch, NewVolume, Pools};
use crate::fs::api::StatFs;
use crate::fs::db::DbCache;
use crate::mount::{FakeMounter, Mounter};
use crate::types::{Class, Classify, DatasetId, SessionId, VolumeHandle};
use crate::volume::{Attached, VolumeSettings, Volumes};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The stack of the program's own threads: unoptimised futures of the database are large.
const STACK_BYTES: usize = 8 << 20;

/// Endpoints that serve no client, and remember which listen and which went stale.
#[derive(Default)]
struct Nowhere {
    listening: Mutex<BTreeSet<DatasetId>>,
    stale: Mutex<Vec<DatasetId>>,
}

impl Endpoints for Nowhere {
    type Pass = ();

    async fn listen(
        &self,
        dataset: DatasetId,
        _: &str,
        _: SocketAddr,
        _: Reach,
    ) -> Result<(), EndpointError> {
        self.listening.lock().insert(dataset);
        Ok(())
    }

    fn serve(&self, _: &Attached) -> Result<(), EndpointError> {
        Ok(())
    }

    fn relay(&self, dataset: DatasetId, _: OwnerRoute) -> Result<(), EndpointError> {
        Err(EndpointError::Unknown(dataset))
    }

    fn suspend(&self, _: DatasetId) {}

    async fn disturbed(&self, _: DatasetId) {}

    fn is_disturbed(&self, _: DatasetId) -> bool {
        false
    }

    async fn stats(&self, dataset: DatasetId) -> Result<StatFs, EndpointError> {
        Err(EndpointError::Unanswered(dataset))
    }

    fn allow_mount(&self, dataset: DatasetId) -> Result<(), EndpointError> {
        match self.listening.lock().contains(&dataset) {
            true => Ok(()),
            false => Err(EndpointError::Unknown(dataset)),
        }
    }

    fn stale(&self, dataset: DatasetId) {
        self.stale.lock().push(dataset);
    }

    async fn stop(&self, dataset: DatasetId) {
        self.listening.lock().remove(&dataset);
    }
}

fn volumes(node: &str, journal_dir: Option<PathBuf>) -> Volumes {
    Volumes::new(VolumeSettings {
        node: node.into(),
        session: SessionId::random(),
        journal_dir,
        cache: DbCache::new(16 << 20),
        chunk_cache: ChunkCache::memory(16 << 20),
        flush_interval: Duration::from_millis(200),
        memory: crate::fs::FsMemory::new(16 << 20, 8 << 20),
        volumes_max: 8,
    })
}

struct Node {
    agent: Arc<NodeAgent<FakeMounter, Nowhere>>,
    catalog: Catalog,
    volume: VolumeHandle,
    dir: tempfile::TempDir,
}

impl Node {
    async fn new() -> Self {
        Self::of(&[], None).await
    }

    /// A node with a volume of these access modes.
    async fn of(modes: &[&str], channel: Option<SocketAddr>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::create(Bucket::memory(), None).await.unwrap();
        let volumes = volumes("node", Some(dir.path().join("journal")));
        let pools = Pools::one("p", catalog.clone());
        let new = NewVolume {
            name: "v".parse().unwrap(),
            size: None,
            size_limit: None,
            source: None,
            properties: Properties::default(),
            access_modes: modes.iter().map(|mode| (*mode).to_owned()).collect(),
            form: Default::default(),
            parameters: Default::default(),
        };
        let volume = Controller::new(pools.clone(), volumes.clone())
            .create_volume(None, new)
            .await
            .unwrap()
            .handle;
        let (node, session) = (volumes.settings().node.clone(), volumes.settings().session);
        let settings = NodeSettings {
            hold: channel.map_or(NodeSettings::HOLD, |_| Duration::from_secs(3)),
            ephemeral: EphemeralSettings { pools: vec!["p".into()], size_max: 1 << 30 },
            channel: channel.map(|at| Arc::new(Channel::new(node, session, Some(at), [7; 32]))),
            ..NodeSettings::new(dir.path().join("staged"), "driver".into()).unwrap()
        };
        let agent =
            NodeAgent::start(FakeMounter::new(), Nowhere::default(), volumes, pools, settings)
                .await
                .unwrap();
        Self { agent, catalog, volume, dir }
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("target")
    }

    async fn stage(&self) -> Result<(), ControlError> {
        let wanted = Stage {
            volume: self.volume,
            target: self.target(),
            access: Access::ReadWrite,
            options: vec![],
            group: None,
            ephemeral: None,
        };
        Box::pin(self.agent.stage(wanted)).await
    }

    fn inline() -> EphemeralId {
        format!("csi-{}", "5".repeat(64)).parse().unwrap()
    }

    async fn publish_inline(&self) -> Result<(), ControlError> {
        let wanted = PublishEphemeral {
            id: Self::inline(),
            pool: None,
            size: None,
            properties: Properties::default(),
            target: self.target(),
            access: Access::ReadWrite,
            options: vec![],
            group: None,
        };
        Box::pin(self.agent.publish_ephemeral(wanted)).await
    }

    async fn unpublish_inline(&self) -> Result<(), ControlError> {
        Box::pin(self.agent.unpublish_ephemeral(&Self::inline(), &self.target())).await
    }

    /// The names of inline volumes that nobody has deleted.
    async fn inline_volumes(&self) -> Vec<String> {
        let datasets = self.catalog.datasets().await.unwrap();
        let live = datasets.iter().map(|at| &at.record);
        let live = live.filter(|dataset| dataset.ephemeral && dataset.state == State::Ready);
        live.map(|dataset| dataset.name.to_string()).collect()
    }

    async fn unstage(&self) -> Result<(), ControlError> {
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

/// Kubelet stages a volume for the next pod whose unstaging failed.
#[test]
fn a_volume_whose_release_failed_is_staged_again() {
    run(async {
        let node = Node::new().await;
        node.stage().await.unwrap();
        node.set("catalog.put", "return");
        assert!(node.unstage().await.is_err());
        node.set("catalog.put", "off");
        let mut staged = node.stage().await;
        for _ in 0..400 {
            match &staged {
                Ok(()) => break,
                Err(error) => assert!(error.class().may_pass(), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            staged = node.stage().await;
        }
        staged.unwrap();
        assert!(node.agent.volumes.get(node.volume.dataset).is_some(), "it is open");
        node.unstage().await.unwrap();
        node.assert_released("staged again").await;
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

/// The channel is in the bucket before the record can name the session, and goes with the process.
#[test]
fn a_shared_volume_is_staged_once_the_channel_is_known() {
    run(async {
        let at = "192.0.2.1:12050".parse().unwrap();
        for step in ["channel.before-publish", "channel.after-publish"] {
            let node = Node::of(&["MULTI_NODE_MULTI_WRITER"], Some(at)).await;
            let session = node.agent.volumes.settings().session;
            node.set(step, "1*return");
            assert!(node.stage().await.unwrap_err().class().may_pass(), "{step}");
            node.assert_released(step).await;
            node.stage().await.unwrap();
            let known = node.catalog.channel(session).await.unwrap().unwrap();
            assert_eq!((known.address, key_of(&known)), (Some(at), Some([7; 32])), "{step}");
            node.unstage().await.unwrap();
            node.assert_released(step).await;
            node.agent.end().await;
            assert_eq!(node.catalog.channel(session).await.unwrap(), None, "{step}");
        }
        // A volume of one node needs none.
        let node = Node::of(&["SINGLE_NODE_WRITER"], Some(at)).await;
        node.stage().await.unwrap();
        let session = node.agent.volumes.settings().session;
        assert_eq!(node.catalog.channel(session).await.unwrap(), None);
        node.unstage().await.unwrap();
    });
}

/// Whichever step fails, and whether kubelet then goes on with the pod or gives it up.
#[test]
fn an_inline_volume_leaves_nothing_behind() {
    run(async {
        for gives_up in [false, true] {
            let node = Node::new().await;
            node.set("control.ephemeral.recorded", "1*return");
            assert!(node.publish_inline().await.unwrap_err().class().may_pass());
            assert_eq!(node.inline_volumes().await.len(), 1);
            if !gives_up {
                node.publish_inline().await.unwrap();
                node.publish_inline().await.unwrap();
                assert_eq!(node.inline_volumes().await.len(), 1);
                node.set("control.ephemeral.unstaged", "1*return");
                assert!(node.unpublish_inline().await.unwrap_err().class().may_pass());
            }
            for _ in 0..2 {
                node.unpublish_inline().await.unwrap();
                assert_eq!(node.inline_volumes().await, Vec::<String>::new());
                assert!(!node.target().exists());
            }
            // The pod is there again before the deletion was collected.
            node.publish_inline().await.unwrap();
            let name = format!("ephemeral-{}-1", Node::inline());
            assert_eq!(node.inline_volumes().await, [name]);
            node.unpublish_inline().await.unwrap();
        }
    });
}

/// The store is away for longer than calls are held: the pod may go, and the rest is done when the
/// store is back.
#[test]
fn a_pod_does_not_wait_for_the_deletion_of_its_inline_volume() {
    run(async {
        // With a channel calls are held for three seconds only.
        let node = Node::of(&[], Some("192.0.2.1:12050".parse().unwrap())).await;
        node.publish_inline().await.unwrap();
        node.set("volume.close.release", "return");
        let begun = std::time::Instant::now();
        let refused = node.unpublish_inline().await.unwrap_err();
        assert_eq!(refused.class(), Class::Unavailable, "{refused}");
        let mounts = node.agent.mounter.list().await.unwrap();
        assert!(mounts.is_empty(), "{mounts:?}");
        while node.unpublish_inline().await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "the pod stays");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
        assert!(!node.target().exists());
        assert_eq!(node.inline_volumes().await.len(), 1);
        node.set("volume.close.release", "off");
        while !node.inline_volumes().await.is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(90), "it is never deleted");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}

/// The node has rebooted, so nothing tells which dataset it was, and a pool cannot be read.
#[test]
fn a_pod_of_before_a_reboot_does_not_wait_for_a_pool_that_is_away() {
    run(async {
        let node = Node::new().await;
        let settings = NodeSettings {
            hold: Duration::from_secs(1),
            ephemeral: EphemeralSettings { pools: vec!["away".into()], size_max: 1 << 30 },
            ..NodeSettings::new(node.dir.path().join("rebooted"), "driver".into()).unwrap()
        };
        let (volumes, pools) = (volumes("node", None), Pools::one("p", node.catalog.clone()));
        let (mounter, endpoints) = (FakeMounter::new(), Nowhere::default());
        let rebooted =
            NodeAgent::start(mounter, endpoints, volumes, pools, settings).await.unwrap();
        let (id, target) = (Node::inline(), node.target());
        let begun = std::time::Instant::now();
        rebooted.unpublish_ephemeral(&id, &target).await.unwrap_err();
        while rebooted.unpublish_ephemeral(&id, &target).await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "the pod stays");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    });
}

#[test]
fn an_inline_volume_of_a_lost_node_is_deleted_after_a_day() {
    run(async {
        let node = Node::new().await;
        node.set("control.ephemeral.recorded", "1*return");
        node.publish_inline().await.unwrap_err();
        let pools = Pools::one("p", node.catalog.clone());
        let controller = Controller::new(pools, volumes("controller", None));
        let (mut watch, now) = (EphemeralWatch::default(), std::time::Instant::now());
        for (hours, left) in [(0_u32, 1), (23, 1), (24, 0), (25, 0)] {
            let now = now + hours * Duration::from_secs(3600);
            controller.delete_abandoned(&mut watch, now).await.unwrap();
            assert_eq!(node.inline_volumes().await.len(), left, "after {hours} h");
        }
        let other = node.catalog.dataset_by_id(node.volume.dataset).await.unwrap().unwrap();
        assert_eq!(other.record.state, State::Ready);
    });
}

/// An owner that has no channel keeps its volume, as every owner does of a volume of one node, and
/// the error says what to set.
#[test]
fn an_owner_without_a_channel_keeps_a_shared_volume() {
    run(async {
        let at = "192.0.2.1:12050".parse().unwrap();
        let node = Node::of(&["MULTI_NODE_MULTI_WRITER"], Some(at)).await;
        let owner = volumes("other", None);
        let open = owner.open(&node.catalog, node.volume.dataset).await.unwrap();
        let refused = node.stage().await.unwrap_err();
        assert_eq!(refused.class(), Class::Precondition, "{refused}");
        assert!(refused.to_string().contains("channel.listen"), "{refused}");
        drop(open);
        owner.close(node.volume.dataset).await.unwrap();
        node.stage().await.unwrap();
        node.unstage().await.unwrap();
        node.assert_released("unstaged").await;
    });
}
