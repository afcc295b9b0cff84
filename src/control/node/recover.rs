//! Recovers after a restart: volumes that an earlier run recorded are reopened, closed, or
//! abandoned (R24).

use super::super::{ControlError, Pool};
use super::agent::{NodeAgent, Staged, State};
use super::endpoint::{EndpointError, Endpoints};
use super::let_go::is_ours;
use super::record::Record;
use crate::catalog::{Dataset, Form, Owner, State as DatasetState};
use crate::mount::Mounter;
use crate::types::Classify;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Volumes reopened at once: an opening mostly waits for the store, and mounts wait for it.
const AT_ONCE: usize = 32;
/// Backoff between attempts while the store does not answer.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// The step that a record needs, given the state of the machine and the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Mounted and ours: serve it again.
    Reopen,
    /// Ours, not mounted: replay its journal, close it, and release it.
    Close,
    /// Mounted, and owned by another process now: answer ESTALE.
    Stale,
    /// Neither mounted nor ours: remove the record.
    Forget,
}

/// R24: a restart never steals. `mounted`: in this boot of the machine. A claim by this very run in
/// an earlier attempt is ours too.
fn step(record: &Record, me: &Owner, mounted: bool, dataset: Option<&Dataset>) -> Step {
    // A snapshot has no owner: its mounts go on reading.
    let frozen = dataset.is_some_and(|dataset| {
        dataset.form == Form::Snapshot && dataset.state == DatasetState::Ready
    });
    let ours = dataset.is_some_and(|dataset| is_ours(record, me, dataset));
    match (ours || frozen && mounted, mounted) {
        (true, true) => Step::Reopen,
        (true, false) => Step::Close,
        (false, true) => Step::Stale,
        (false, false) => Step::Forget,
    }
}

impl<M: Mounter, E: Endpoints> NodeAgent<M, E> {
    /// Marks every recorded volume as being reopened, listens on the endpoints of mounted ones, and
    /// starts to reopen them all. Returns at once: no volume keeps the CSI socket waiting.
    pub(super) async fn recover(self: &Arc<Self>) -> Result<(), ControlError> {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        let records = self.records.all().await?;
        records.iter().for_each(|record| self.set(record.volume.dataset, State::Opening));
        self.listen_first(&records).await;
        for record in records {
            let (agent, turns) = (self.clone(), turns.clone());
            tokio::spawn(async move { agent.recover_one(&record, &turns).await });
        }
        Ok(())
    }

    /// Runs before anything else, even before the pools are opened: a client whose connection is
    /// refused retries only after seconds.
    async fn listen_first(&self, records: &[Record]) {
        let Ok(mounts) = self.mounter.list().await else { return };
        for record in records.iter().filter(|record| record.boot == self.settings.boot) {
            let device = Self::device(record.volume.dataset);
            if let Some(at) = record.endpoint
                && mounts.iter().any(|mount| mount.device == device)
                && let Err(error) = self.listen_again(record, at).await
            {
                tracing::warn!(
                    volume = %record.volume,
                    %error,
                    "nobody answers its mount yet: it is tried again"
                );
            }
        }
    }

    /// Retries while the store does not answer, for as long as it takes: the mount is waiting too.
    async fn recover_one(&self, record: &Record, turns: &Semaphore) {
        let volume = record.volume;
        let mut wait = RETRY_MIN;
        let mut pools = self.pools.watch();
        loop {
            pools.mark_unchanged();
            let tried = {
                let Ok(_turn) = turns.acquire().await else { return };
                // This process has left: the one that replaced it reopens the volume.
                let Ok(_stay) = self.stay().await else { return };
                self.try_recover(record).await
            };
            match tried {
                Ok(state) => return self.set(volume.dataset, state),
                Err(ControlError::Unavailable(why)) if self.pools.by_id(volume.pool).is_err() => {
                    tracing::info!(%volume, why, "a staged volume waits for its pool");
                    tokio::select! {
                        () = tokio::time::sleep(RETRY_MAX) => {}
                        Ok(()) = pools.changed() => {}
                    }
                }
                Err(error) if error.class().may_pass() => {
                    tracing::warn!(
                        %volume,
                        %error,
                        retry_secs = wait.as_secs_f32(),
                        "a staged volume cannot be reopened yet"
                    );
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
                Err(error) => return self.give_up(record, &error).await,
            }
        }
    }

    /// Gives up a volume whose error will not pass with time. A mount must not hang for it; without
    /// a mount the next stage call returns the error.
    async fn give_up(&self, record: &Record, error: &ControlError) {
        let volume = record.volume;
        match self.mounts_of(volume.dataset).await {
            Ok((ours, _)) if ours.is_empty() => {
                tracing::error!(
                    %volume,
                    %error,
                    "a volume that was being staged cannot be opened; it is closed the next time \
                     it can"
                );
                self.set(volume.dataset, State::Idle);
            }
            _ => self.go_stale(record, &error.to_string()).await,
        }
    }

    async fn try_recover(&self, record: &Record) -> Result<State, ControlError> {
        let volume = record.volume;
        let (ours, _) = self.mounts_of(volume.dataset).await?;
        let mounted = record.boot == self.settings.boot && !ours.is_empty();
        if let Some(at) = record.endpoint.filter(|_| mounted) {
            self.listen_again(record, at).await?;
        }
        let pool = self.pools.by_id(volume.pool)?;
        let dataset = match pool {
            Some(pool) => pool.catalog.dataset_by_id(volume.dataset).await?.map(|at| at.record),
            None => None,
        };
        let step = step(record, &self.volumes.owner(), mounted, dataset.as_ref());
        tracing::info!(%volume, ?step, "a volume was staged when the node plugin stopped");
        match (step, pool) {
            (Step::Reopen, Some(pool)) => self.reopen(record, pool).await,
            (Step::Close, Some(pool)) => self.close_left(record, pool).await,
            (Step::Forget, _) => self.forget(record).await,
            (Step::Reopen | Step::Close | Step::Stale, _) => {
                let why = match (pool, dataset.map(|dataset| dataset.owner)) {
                    (None, _) => "its pool is not configured".to_owned(),
                    (_, None) => "its dataset is gone".to_owned(),
                    (_, Some(None)) => "its dataset was released".to_owned(),
                    (_, Some(Some(owner))) => {
                        format!("node {} owns it in session {}", owner.node, owner.session)
                    }
                };
                self.go_stale(record, &why).await;
                Ok(State::Lost(Arc::new(record.clone())))
            }
        }
    }

    async fn reopen(&self, record: &Record, pool: &Pool) -> Result<State, ControlError> {
        let volume = record.volume;
        let at = record.endpoint.ok_or_else(|| {
            ControlError::Internal(format!("volume {volume} is mounted from no address"))
        })?;
        let mut record = record.clone();
        // Before the dataset's record names this session: a crash in between must find it among
        // those that are ours.
        let session = self.volumes.settings().session;
        if !record.sessions.contains(&session) {
            record.sessions.push(session);
            self.records.write(&record).await?;
        }
        let open = self.volumes.attach(&pool.catalog, volume.dataset).await?;
        self.listen_again(&record, at).await?;
        self.endpoints.serve(&open)?;
        record.sessions = vec![session];
        self.records.write(&record).await?;
        Ok(State::Staged(Arc::new(Staged { record, volume: open })))
    }

    /// Listens again: the kernel's client reconnects faster to a listening socket, and its calls
    /// wait there.
    async fn listen_again(&self, record: &Record, at: SocketAddr) -> Result<(), ControlError> {
        let dataset = record.volume.dataset;
        match self.endpoints.listen(dataset, &Self::export(dataset), at).await {
            // The previous run of the process may take a moment to release it.
            Err(EndpointError::Taken(at)) => Err(ControlError::Unavailable(format!(
                "address {at} of volume {} is in use",
                record.volume
            ))),
            listening => Ok(listening?),
        }
    }

    async fn close_left(&self, record: &Record, pool: &Pool) -> Result<State, ControlError> {
        self.close_again(record, pool).await?;
        self.forget(record).await
    }

    async fn forget(&self, record: &Record) -> Result<State, ControlError> {
        self.records.remove(record.volume.dataset).await?;
        Ok(State::Idle)
    }
}
