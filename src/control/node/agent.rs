//! The node agent: the state of each volume, and one call at a time for each.

use super::super::busy::{Busy, Call};
use super::super::{ControlError, Pools};
use super::endpoint::Endpoints;
use super::ports;
use super::record::{Record, Records};
use crate::mount::{self, MountPoint, Mounter};
use crate::types::{DatasetId, VolumeHandle};
use crate::volume::{Attached, Lost, Volumes};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, broadcast, watch};

/// Settings of a node plugin.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// The folder of staged records, one file per volume, and nothing else: it must outlive the
    /// process, and need not outlive a reboot of the machine.
    pub staged_dir: PathBuf,
    /// The driver's name, which is also the name of its folder below kubelet's plugins.
    pub driver: String,
    /// The port of every endpoint: outside of the ephemeral range, so that no client happens to sit
    /// on it.
    pub nfs_port: u16,
    /// The machine's boot id: /proc/sys/kernel/random/boot_id.
    pub boot: String,
    /// Time for which a call for a volume that is being reopened is held.
    pub hold: Duration,
}

impl NodeSettings {
    pub const NFS_PORT: u16 = 12_049;
    /// Within kubelet's two minutes for a call.
    pub const HOLD: Duration = Duration::from_secs(90);

    /// The settings on this machine.
    ///
    /// # Errors
    /// When the machine's boot id cannot be read.
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
    pub(super) records: Records,
    busy: Busy,
    slots: Mutex<HashMap<DatasetId, Slot>>,
    /// Read-locked by operations that may open, close or mount a volume; written once, by
    /// [`Self::leave`].
    pub(super) stay: Arc<tokio::sync::RwLock<Stay>>,
}

/// The part of this process on the node: it serves the volumes, or another one does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stay {
    #[default]
    Here,
    /// Another process goes on with the volumes.
    Left,
}

/// A call for a volume in progress. While there is one, the process does not leave.
pub(super) struct Entered {
    _stay: OwnedRwLockReadGuard<Stay>,
    _call: Call,
}

/// The state of a volume on this node. An idle volume has no slot.
type Slot = watch::Sender<State>;

#[derive(Clone)]
pub(super) enum State {
    Idle,
    /// Recorded by an earlier run of the process; being reopened.
    Opening,
    Staged(Arc<Staged>),
    /// No longer this process's to serve; still mounted.
    Lost(Arc<Record>),
}

pub(super) struct Staged {
    pub record: Record,
    pub volume: Attached,
}

/// Guard: no call is in progress, and none begins.
pub struct Leaving(OwnedRwLockWriteGuard<Stay>);

impl Leaving {
    /// Leaves for good: waiting calls are to be retried, and find the process that replaced this
    /// one.
    pub fn leave(mut self) {
        *self.0 = Stay::Left;
    }
}

impl<M: Mounter, E: Endpoints> NodeAgent<M, E> {
    /// Reads the records of an earlier run, and begins to reopen their volumes in the background.
    ///
    /// # Errors
    /// When the state folder cannot be used. A volume that cannot be reopened is not an error here.
    pub async fn start(
        mounter: M,
        endpoints: E,
        volumes: Volumes,
        pools: Pools,
        settings: NodeSettings,
    ) -> Result<Arc<Self>, ControlError> {
        let records = Records::open(&settings.staged_dir).await?;
        let (busy, slots, stay) = Default::default();
        let agent = Arc::new(Self {
            mounter,
            endpoints,
            volumes,
            pools,
            settings,
            records,
            busy,
            slots,
            stay,
        });
        agent.watch_losses();
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

    /// Returns whether a volume is staged here, or was when the process started and is not released
    /// yet.
    pub fn is_staged(&self, dataset: DatasetId) -> bool {
        !matches!(self.state(dataset), State::Idle)
    }

    /// One call at a time for a volume.
    pub(super) async fn enter(&self, volume: VolumeHandle) -> Result<Entered, ControlError> {
        let _stay = self.stay().await?;
        Ok(Entered { _stay, _call: self.busy.enter(format!("volume {volume}"))? })
    }

    /// While this guard is held the process does not leave. Waits while it is leaving.
    pub(super) async fn stay(&self) -> Result<OwnedRwLockReadGuard<Stay>, ControlError> {
        let stay = self.stay.clone().read_owned().await;
        match *stay {
            Stay::Here => Ok(stay),
            Stay::Left => Err(ControlError::Unavailable(
                "another process of the node plugin has taken this one's place: repeat".to_owned(),
            )),
        }
    }

    /// Waits for calls to end and holds new ones, so that another process can go on with the
    /// volumes once [`Leaving::leave`] is called. If the returned value is dropped instead,
    /// everything goes on here.
    ///
    /// # Errors
    /// When calls do not end within `limit`.
    pub async fn hold(&self, limit: Duration) -> Result<Leaving, ControlError> {
        let held = tokio::time::timeout(limit, self.stay.clone().write_owned()).await;
        held.map(Leaving).map_err(|_| {
            ControlError::Unavailable("calls for volumes do not end in time: repeat".to_owned())
        })
    }

    pub(super) fn state(&self, dataset: DatasetId) -> State {
        self.slots.lock().get(&dataset).map_or(State::Idle, |slot| slot.borrow().clone())
    }

    pub(super) fn set(&self, dataset: DatasetId, state: State) {
        let mut slots = self.slots.lock();
        if matches!(state, State::Idle) {
            if let Some(slot) = slots.remove(&dataset) {
                slot.send_replace(State::Idle);
            }
        } else {
            slots.entry(dataset).or_insert_with(|| Slot::new(State::Idle)).send_replace(state);
        }
    }

    /// Waits until the volume is no longer being reopened, for at most the time in the settings,
    /// and returns its state.
    pub(super) async fn settled(&self, volume: VolumeHandle) -> Result<State, ControlError> {
        let Some(mut changes) = self.slots.lock().get(&volume.dataset).map(Slot::subscribe) else {
            return Ok(State::Idle);
        };
        let settled = changes.wait_for(|state| !matches!(state, State::Opening));
        match tokio::time::timeout(self.settings.hold, settled).await {
            Ok(Ok(state)) => Ok(state.clone()),
            Ok(Err(_)) => Ok(State::Idle),
            Err(_) => Err(ControlError::Unavailable(format!(
                "volume {volume} is still being reopened after a restart of the node plugin: see \
                 its log; repeat"
            ))),
        }
    }

    /// Reserved ports that each volume mounted here takes. One that is being reopened counts as
    /// one.
    pub(super) fn connections(&self) -> Vec<u32> {
        let of = |slot: &Slot| match &*slot.borrow() {
            State::Idle => 0,
            State::Opening => 1,
            State::Staged(staged) => mount::connections(&staged.record.options),
            State::Lost(record) => mount::connections(&record.options),
        };
        self.slots.lock().values().map(of).collect()
    }

    /// Returns the number of volumes that the node takes: `limit` at most, and no more than it has
    /// reserved ports for, where each new one takes `usual` of them.
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
        let State::Staged(staged) = self.state(lost.dataset) else { return };
        // The volume may be staged again by now, under a later opening.
        if staged.volume.opening() != Some(lost.opening) {
            return;
        }
        self.lose_staged(&staged, &lost.why.to_string());
    }

    /// R25: the endpoint answers STALE instead of being silent, until the volume is unstaged. Does
    /// nothing if an unstage was faster: the endpoint and the slot may be those of the next stage
    /// by now.
    pub(super) fn lose_staged(&self, staged: &Arc<Staged>, why: &str) {
        let volume = staged.record.volume;
        let slots = self.slots.lock();
        let Some(slot) = slots.get(&volume.dataset) else { return };
        if !matches!(&*slot.borrow(), State::Staged(now) if Arc::ptr_eq(now, staged)) {
            return;
        }
        self.endpoints.stale(volume.dataset);
        slot.send_replace(State::Lost(Arc::new(staged.record.clone())));
        drop(slots);
        complain(volume, why);
    }

    /// Called after reports were missed: every staged volume must be open.
    fn lose_missing(&self) {
        let slots: Vec<State> =
            self.slots.lock().values().map(|slot| slot.borrow().clone()).collect();
        for state in slots {
            if let State::Staged(staged) = state
                && staged.volume.is_owned()
                && self.volumes.get(staged.record.volume.dataset).is_none()
            {
                self.lose_staged(&staged, "it was lost");
            }
        }
    }

    /// As [`Self::lose_staged`], for a volume that an earlier run staged and this one cannot serve.
    pub(super) async fn go_stale(&self, record: &Record, why: &str) {
        let volume = record.volume;
        self.set(volume.dataset, State::Lost(Arc::new(record.clone())));
        complain(volume, why);
        // After a restart no endpoint listens yet.
        if let Some(at) = record.endpoint
            && let Err(error) =
                self.endpoints.listen(volume.dataset, &Self::export(volume.dataset), at).await
        {
            tracing::error!(
                %volume,
                %error,
                "nobody answers its mount: processes that use it hang until its pods are deleted"
            );
        }
        self.endpoints.stale(volume.dataset);
    }
}

fn complain(volume: VolumeHandle, why: &str) {
    tracing::error!(
        %volume,
        why,
        "the volume is lost to this node: its files answer ESTALE; delete its pods so that it is \
         staged again"
    );
}
