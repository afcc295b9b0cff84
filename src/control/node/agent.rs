//! The node agent: the state of each volume, and one call at a time for each.

use super::super::channel::{Channel, RENEWAL_LOOK};
use super::super::locks::{OperationLock, OperationLocks};
use super::super::owner::Carriers;
use super::super::{ControlError, Pools};
use super::endpoint::{EndpointError, Endpoints, Reach};
use super::ephemeral_id::{EphemeralId, EphemeralSettings};
use super::ports;
use super::record::{StagedRecord, StagedRecords};
use super::shared::{Backing, SharedVolume};
use crate::mount::{self, MountPoint, Mounter};
use crate::types::{DatasetId, VolumeHandle};
use crate::volume::{Lost, Volumes};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, broadcast, watch};
use tokio_util::sync::CancellationToken;

/// The settings of a node plugin.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// The directory of staged records, a file for each staged volume, and of nothing else: it must
    /// outlive the process, and need not survive a reboot.
    pub staged_dir: PathBuf,
    /// The driver's name, which is also the name of its folder below kubelet's plugins.
    pub driver: String,
    /// The port of every endpoint: outside of the ephemeral range, so that no client happens to sit
    /// on it.
    pub nfs_port: u16,
    /// The boot id: /proc/sys/kernel/random/boot_id.
    pub boot: String,
    /// Time for which a call for a volume that is being reopened is held.
    pub hold: Duration,
    /// Where other nodes relay calls to; without one, a volume is staged on one node at a time.
    pub channel: Option<Arc<Channel>>,
    /// How the owners of volumes in other processes are asked.
    pub carriers: Carriers,
    /// Inline volumes of pods.
    pub ephemeral: EphemeralSettings,
}

impl NodeSettings {
    pub const NFS_PORT: u16 = 12_049;
    /// Within kubelet's two minutes for a call.
    pub const HOLD: Duration = Duration::from_secs(90);

    /// The settings on this machine.
    ///
    /// # Errors
    /// When the boot id cannot be read.
    pub fn new(staged_dir: PathBuf, driver: String) -> Result<Self, ControlError> {
        let file = "/proc/sys/kernel/random/boot_id";
        let boot = std::fs::read_to_string(file)
            .map_err(|error| ControlError::Internal(format!("{file}: {error}")))?;
        Ok(Self {
            staged_dir,
            driver,
            nfs_port: Self::NFS_PORT,
            boot: boot.trim().to_owned(),
            hold: Self::HOLD,
            channel: None,
            carriers: Carriers::default(),
            ephemeral: EphemeralSettings::default(),
        })
    }
}

/// Stages and publishes volumes on this machine.
pub struct NodeAgent<M, E> {
    pub(super) mounter: M,
    pub(super) endpoints: E,
    pub(super) volumes: Volumes,
    pub(super) pools: Pools,
    pub(super) settings: NodeSettings,
    pub(super) records: StagedRecords,
    operations: OperationLocks,
    states: Mutex<HashMap<DatasetId, StateSender>>,
    /// Inline volumes that are unmounted and could not be deleted, and since when.
    pub(super) undeleted: Mutex<HashMap<EphemeralId, Instant>>,
    /// Read by whatever may open, close or mount a volume; written once, by
    /// [`HandoverHold::hand_over`].
    pub(super) presence: Arc<tokio::sync::RwLock<Presence>>,
    /// Ends the tasks that follow the owners of shared volumes.
    pub(super) stopped: CancellationToken,
}

/// The part of this process on the node: it serves the volumes, or another one does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Presence {
    #[default]
    Serving,
    /// The volumes were handed over to another process.
    HandedOver,
}

/// A call for a volume. A hand-over waits for it.
pub(super) struct Entered {
    _present: OwnedRwLockReadGuard<Presence>,
    _call: OperationLock,
}

/// Publishes the state of a volume. An idle volume has none.
type StateSender = watch::Sender<StageState>;

#[derive(Clone)]
pub(super) enum StageState {
    Idle,
    /// Staged by an earlier process; being reopened.
    Opening,
    Staged(Arc<Staged>),
    /// Still mounted, but this process may no longer serve it.
    Lost(Arc<StagedRecord>),
}

pub(super) struct Staged {
    pub record: StagedRecord,
    pub backing: Backing,
}

/// Guard: no call is in progress, and none begins.
pub struct HandoverHold {
    presence: OwnedRwLockWriteGuard<Presence>,
    stopped: CancellationToken,
}

impl HandoverHold {
    /// Hands over for good: waiting calls fail with a retryable error, and their retries reach the
    /// next process.
    pub fn hand_over(mut self) {
        *self.presence = Presence::HandedOver;
        self.stopped.cancel();
    }
}

impl Staged {
    /// Returns whether nobody follows the owner of this shared volume now.
    pub fn is_unfollowed(&self) -> bool {
        matches!(&self.backing, Backing::Shared(shared) if shared.failed.load(Ordering::SeqCst))
    }
}

impl<M: Mounter, E: Endpoints> NodeAgent<M, E> {
    /// Reads the staged records of an earlier process, and begins to reopen their volumes in the
    /// background.
    ///
    /// # Errors
    /// When the state directory cannot be used. A volume that cannot be reopened is not an error
    /// here.
    pub async fn start(
        mounter: M,
        endpoints: E,
        volumes: Volumes,
        pools: Pools,
        settings: NodeSettings,
    ) -> Result<Arc<Self>, ControlError> {
        let records = StagedRecords::open(&settings.staged_dir).await?;
        let agent = Arc::new(Self {
            mounter,
            endpoints,
            volumes,
            pools,
            settings,
            records,
            operations: Default::default(),
            states: Default::default(),
            undeleted: Default::default(),
            presence: Default::default(),
            stopped: Default::default(),
        });
        agent.watch_losses();
        agent.renew_channel();
        agent.recover().await?;
        Ok(agent)
    }

    /// The device that names a volume in mountinfo. No colon except the one before the path: the
    /// kernel's client splits there.
    pub(super) fn device(dataset: DatasetId) -> String {
        format!("{dataset}:{}", Self::export(dataset))
    }

    pub(super) fn export(dataset: DatasetId) -> String {
        format!("/{}", dataset.incarnation)
    }

    /// Returns the endpoints that serve volumes.
    pub fn endpoints(&self) -> &E {
        &self.endpoints
    }

    /// Returns whether a volume is staged here, or is being reopened after a restart.
    pub fn is_staged(&self, dataset: DatasetId) -> bool {
        !matches!(self.state(dataset), StageState::Idle)
    }

    /// One call at a time for a volume.
    pub(super) async fn enter(&self, volume: VolumeHandle) -> Result<Entered, ControlError> {
        let _present = self.present().await?;
        Ok(Entered { _present, _call: self.operations.try_lock(format!("volume {volume}"))? })
    }

    /// One call at a time for an inline volume, which has no other id before it exists.
    pub(super) fn lock_ephemeral(&self, id: &EphemeralId) -> Result<OperationLock, ControlError> {
        self.operations.try_lock(format!("inline volume {id}"))
    }

    /// The records of the volumes that are staged here and not being reopened.
    pub(super) fn staged_records(&self) -> Vec<StagedRecord> {
        let of = |sender: &StateSender| match &*sender.borrow() {
            StageState::Idle | StageState::Opening => None,
            StageState::Staged(staged) => Some(staged.record.clone()),
            StageState::Lost(record) => Some((**record).clone()),
        };
        self.states.lock().values().filter_map(of).collect()
    }

    /// Keeps the node from being handed over until it is dropped. Waits while a hand-over is tried.
    pub(super) async fn present(&self) -> Result<OwnedRwLockReadGuard<Presence>, ControlError> {
        let presence = self.presence.clone().read_owned().await;
        match *presence {
            Presence::Serving => Ok(presence),
            Presence::HandedOver => Err(ControlError::Unavailable(
                "this node plugin was replaced by another process; retry".to_owned(),
            )),
        }
    }

    /// Waits until calls have ended, and lets none begin, so that another process can take the
    /// volumes. Dropping the hold resumes calls here; [`HandoverHold::hand_over`] ends them for
    /// good.
    ///
    /// # Errors
    /// When calls do not end within `limit`.
    pub async fn hold(&self, limit: Duration) -> Result<HandoverHold, ControlError> {
        let held = tokio::time::timeout(limit, self.presence.clone().write_owned()).await;
        let stopped = self.stopped.clone();
        held.map(|presence| HandoverHold { presence, stopped }).map_err(|_| {
            ControlError::Unavailable(
                "timed out waiting for calls for volumes to end; retry".to_owned(),
            )
        })
    }

    pub(super) fn state(&self, dataset: DatasetId) -> StageState {
        self.states.lock().get(&dataset).map_or(StageState::Idle, |sender| sender.borrow().clone())
    }

    pub(super) fn set(&self, dataset: DatasetId, state: StageState) {
        let mut states = self.states.lock();
        if matches!(state, StageState::Idle) {
            if let Some(sender) = states.remove(&dataset) {
                sender.send_replace(StageState::Idle);
            }
        } else {
            states
                .entry(dataset)
                .or_insert_with(|| StateSender::new(StageState::Idle))
                .send_replace(state);
        }
    }

    /// Sets the state that a recovery leads to. `false`: the volume is idle, an inline one that was
    /// unpublished meanwhile.
    pub(super) fn set_recovered(&self, dataset: DatasetId, state: StageState) -> bool {
        let mut states = self.states.lock();
        let Some(sender) = states.get(&dataset) else { return false };
        let is_idle = matches!(state, StageState::Idle);
        sender.send_replace(state);
        if is_idle {
            states.remove(&dataset);
        }
        true
    }

    /// The state once the volume is no longer being reopened; waits as long as the settings allow.
    pub(super) async fn settled(&self, volume: VolumeHandle) -> Result<StageState, ControlError> {
        let Some(mut changes) = self.states.lock().get(&volume.dataset).map(StateSender::subscribe)
        else {
            return Ok(StageState::Idle);
        };
        let settled = changes.wait_for(|state| !matches!(state, StageState::Opening));
        match tokio::time::timeout(self.settings.hold, settled).await {
            Ok(Ok(state)) => Ok(state.clone()),
            Ok(Err(_)) => Ok(StageState::Idle),
            Err(_) => Err(ControlError::Unavailable(format!(
                "volume {volume} is still being reopened after a restart of the node plugin: see \
                 its log; retry"
            ))),
        }
    }

    /// The reserved ports of each volume mounted here. One that is being reopened counts as one.
    pub(super) fn connections(&self) -> Vec<u32> {
        let of = |sender: &StateSender| match &*sender.borrow() {
            StageState::Idle => 0,
            StageState::Opening => 1,
            StageState::Staged(staged) => mount::connections(&staged.record.options),
            StageState::Lost(record) => mount::connections(&record.options),
        };
        self.states.lock().values().map(of).collect()
    }

    /// The number of volumes that the node supports: at most `limit`, and as many as there are
    /// reserved ports for, when each new one takes `usual` of them.
    pub fn volumes_max(&self, limit: u32, usual: u32) -> u32 {
        ports::volumes_max(limit, mount::reserved_ports(), &self.connections(), usual)
    }

    /// Returns every mount of a volume, wherever it is.
    pub(super) async fn mounts_of(
        &self,
        dataset: DatasetId,
    ) -> Result<(Vec<MountPoint>, Vec<MountPoint>), ControlError> {
        let device = Self::device(dataset);
        Ok(self.mounter.list().await?.into_iter().partition(|mount| mount.device == device))
    }

    /// The nodes that may have the volume of a record mounted. Where this node has no channel, it
    /// must own what it serves.
    pub(super) fn reach(&self, record: &StagedRecord) -> Reach {
        match record.shared && self.settings.channel.is_some() {
            true => Reach::ManyNodes,
            false => Reach::OneNode,
        }
    }

    pub(super) async fn listen_on(
        &self,
        dataset: DatasetId,
        at: SocketAddr,
        reach: Reach,
    ) -> Result<(), EndpointError> {
        self.endpoints.listen(dataset, &Self::export(dataset), at, reach).await
    }

    /// Keeps the channel known while this process lives.
    fn renew_channel(&self) {
        let Some(channel) = self.settings.channel.clone() else { return };
        let stopped = self.stopped.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = stopped.cancelled() => return,
                    () = tokio::time::sleep(RENEWAL_LOOK) => channel.renew().await,
                }
            }
        });
    }

    /// Ends what this process does for shared volumes by itself, and takes its channel out of the
    /// bucket. Their mounts wait for the next process, or for another node.
    pub async fn end(&self) {
        self.stopped.cancel();
        if let Some(channel) = &self.settings.channel {
            channel.withdraw().await;
        }
    }

    fn watch_losses(self: &Arc<Self>) {
        let mut losses = self.volumes.lost();
        let agent = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                let loss = losses.recv().await;
                let Some(agent) = agent.upgrade() else { return };
                match loss {
                    Ok(lost) => agent.lose(&lost),
                    Err(broadcast::error::RecvError::Lagged(_)) => agent.lose_missing(),
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        });
    }

    fn lose(&self, lost: &Lost) {
        let StageState::Staged(staged) = self.state(lost.dataset) else { return };
        // A later opening may be staged by now. A shared volume is followed to its next owner.
        match &staged.backing {
            Backing::Owned(volume) if volume.opening() == Some(lost.opening) => {}
            Backing::Owned(_) | Backing::Shared(_) => return,
        }
        self.lose_staged(&staged, &lost.why.to_string());
    }

    /// Answers ESTALE until the volume is unstaged, instead of silence (R25). Does nothing if the
    /// volume was unstaged meanwhile: the endpoint and the state may belong to the next staging.
    pub(super) fn lose_staged(&self, staged: &Arc<Staged>, why: &str) {
        let volume = staged.record.volume;
        let states = self.states.lock();
        let Some(sender) = states.get(&volume.dataset) else { return };
        if !matches!(&*sender.borrow(), StageState::Staged(now) if Arc::ptr_eq(now, staged)) {
            return;
        }
        self.endpoints.stale(volume.dataset);
        sender.send_replace(StageState::Lost(Arc::new(staged.record.clone())));
        drop(states);
        complain(volume, why);
    }

    /// Finds lost volumes after reports were missed: every staged volume must be open.
    fn lose_missing(&self) {
        let states: Vec<StageState> =
            self.states.lock().values().map(|sender| sender.borrow().clone()).collect();
        for state in states {
            if let StageState::Staged(staged) = state
                && matches!(&staged.backing, Backing::Owned(volume) if volume.is_owned())
                && self.volumes.get(staged.record.volume.dataset).is_none()
            {
                self.lose_staged(&staged, "it was lost");
            }
        }
    }

    /// As [`Self::lose_staged`], for a shared volume that no longer has an owner, or cannot be
    /// opened here.
    pub(super) fn lose_shared(&self, volume: VolumeHandle, shared: &Weak<SharedVolume>, why: &str) {
        let Some(shared) = shared.upgrade() else { return };
        shared.failed.store(true, Ordering::SeqCst);
        if let StageState::Staged(staged) = self.state(volume.dataset) {
            match &staged.backing {
                Backing::Shared(now) if Arc::ptr_eq(now, &shared) => {
                    self.lose_staged(&staged, why);
                }
                Backing::Shared(_) | Backing::Owned(_) => {}
            }
            return;
        }
        // The mount in progress fails now, or the end of its staging sees the flag.
        self.endpoints.stale(volume.dataset);
        complain(volume, why);
    }

    /// As [`Self::lose_staged`], for a volume that an earlier process staged and this one cannot
    /// serve.
    pub(super) async fn go_stale(&self, record: &StagedRecord, why: &str) {
        let volume = record.volume;
        self.set(volume.dataset, StageState::Lost(Arc::new(record.clone())));
        complain(volume, why);
        // After a restart no endpoint listens yet.
        if let Some(at) = record.endpoint
            && let Err(error) = self.listen_on(volume.dataset, at, self.reach(record)).await
        {
            tracing::error!(
                %volume,
                %error,
                "the endpoint of a mount cannot be served: processes that use the mount hang until \
                 its pods are deleted"
            );
        }
        self.endpoints.stale(volume.dataset);
    }
}

fn complain(volume: VolumeHandle, why: &str) {
    tracing::error!(
        %volume,
        why,
        "volume lost: its files answer ESTALE; delete its pods so that it is staged again"
    );
}
