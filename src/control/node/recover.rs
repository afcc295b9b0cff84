//! Recovery after a restart: the volumes of staged records are reopened, closed, or forgotten
//! (R24).

use super::super::{ControlError, Pool};
use super::agent::{NodeAgent, StageState, Staged};
use super::endpoint::{EndpointError, Endpoints, Reach};
use super::record::StagedRecord;
use super::release::is_ours;
use super::shared::{Backing, SharedVolume};
use crate::catalog::{Dataset, Form, Owner, State};
use crate::mount::Mounter;
use crate::types::{Backoff, Classify};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Volumes reopened at once: an opening mostly waits for the store, and mounts wait for it.
const AT_ONCE: usize = 32;
/// The pause between attempts while the store does not answer, which doubles.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// Sessions that the record of a shared volume names: it may be relayed through many restarts.
const SESSIONS_MAX: usize = 8;

/// The recovery of the volume of a staged record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recovery {
    /// Mounted and ours: serve it again.
    Reopen,
    /// Mounted and shared: serve or relay it, whoever owns it now.
    Follow,
    /// Ours, not mounted: replay its journal, close it, and release it.
    Close,
    /// Mounted, and another owner has it: answer ESTALE.
    Stale,
    /// Neither mounted nor ours.
    Forget,
}

/// A restart never takes a dataset from another owner (R24). `mounted`: since this boot. A claim of
/// this session in an earlier attempt is ours, too.
fn recovery(
    record: &StagedRecord,
    me: &Owner,
    (mounted, reach): (bool, Reach),
    dataset: Option<&Dataset>,
) -> Recovery {
    let is_ready = dataset.is_some_and(|dataset| dataset.state == State::Ready);
    if mounted && is_ready && reach == Reach::ManyNodes {
        return Recovery::Follow;
    }
    // A snapshot has no owner: its mount goes on reading.
    let read_only = dataset
        .is_some_and(|dataset| dataset.form == Form::Snapshot && dataset.state == State::Ready);
    let ours = dataset.is_some_and(|dataset| is_ours(record, me, dataset));
    match (ours || read_only && mounted, mounted) {
        (true, true) => Recovery::Reopen,
        (true, false) => Recovery::Close,
        (false, true) => Recovery::Stale,
        (false, false) => Recovery::Forget,
    }
}

impl<M: Mounter, E: Endpoints> NodeAgent<M, E> {
    /// Marks every recorded volume as being reopened, listens on the endpoints of mounted ones, and
    /// starts to reopen all. Returns at once: the CSI socket waits for no volume.
    pub(super) async fn recover(self: &Arc<Self>) -> Result<(), ControlError> {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        let records = self.records.all().await?;
        records.iter().for_each(|record| self.set(record.volume.dataset, StageState::Opening));
        self.listen_first(&records).await;
        for record in records {
            let (agent, turns) = (self.clone(), turns.clone());
            tokio::spawn(async move { agent.recover_one(&record, &turns).await });
        }
        Ok(())
    }

    /// Listens before anything else happens, even the opening of pools: a client that is refused
    /// retries only after seconds.
    async fn listen_first(&self, records: &[StagedRecord]) {
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
                    "the endpoint of a mount cannot be served yet; retrying"
                );
            }
        }
    }

    /// Retries for as long as the store does not answer: the mount is waiting, too.
    async fn recover_one(self: &Arc<Self>, record: &StagedRecord, turns: &Semaphore) {
        let volume = record.volume;
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        let mut pools = self.pools.watch();
        loop {
            pools.mark_unchanged();
            let tried = {
                let Ok(_turn) = turns.acquire().await else { return };
                // Handed over: the next process reopens it.
                let Ok(_present) = self.present().await else { return };
                if !self.is_staged(volume.dataset) {
                    return self.forget_unpublished(record).await;
                }
                self.try_recover(record).await
            };
            match tried {
                Ok(state) => {
                    if !self.set_recovered(volume.dataset, state) {
                        self.forget_unpublished(record).await;
                    }
                    return;
                }
                Err(ControlError::Unavailable(why)) if self.pools.by_id(volume.pool).is_err() => {
                    tracing::info!(%volume, why, "a staged volume waits for its pool");
                    tokio::select! {
                        () = tokio::time::sleep(RETRY_MAX) => {}
                        Ok(()) = pools.changed() => {}
                    }
                }
                Err(error) if error.class().may_pass() => {
                    let wait = backoff.pause();
                    tracing::warn!(
                        %volume,
                        %error,
                        retry_secs = wait.as_secs_f32(),
                        "a staged volume cannot be reopened yet; retrying"
                    );
                    tokio::time::sleep(wait).await;
                }
                Err(error) => return self.give_up(record, &error).await,
            }
        }
    }

    /// Gives up on an error that a retry cannot help. A mount answers ESTALE instead of hanging;
    /// without one the next staging reports the error.
    async fn give_up(&self, record: &StagedRecord, error: &ControlError) {
        let volume = record.volume;
        let mounts = self.mounts_of(volume.dataset).await;
        if !self.is_staged(volume.dataset) {
            return self.forget_unpublished(record).await;
        }
        match mounts {
            Ok((ours, _)) if ours.is_empty() => {
                tracing::error!(
                    %volume,
                    %error,
                    "a volume that was being staged cannot be opened; it will be closed by the \
                     next \
                     staging or start"
                );
                self.set(volume.dataset, StageState::Idle);
            }
            _ => self.go_stale(record, &error.to_string()).await,
        }
    }

    /// Ends what a recovery has done for an inline volume that was unpublished meanwhile.
    async fn forget_unpublished(&self, record: &StagedRecord) {
        let volume = record.volume;
        self.endpoints.stop(volume.dataset).await;
        if let Err(error) = self.records.remove(volume.dataset).await {
            tracing::warn!(%volume, %error, "a staged record stays until the next start");
        }
    }

    async fn try_recover(
        self: &Arc<Self>,
        record: &StagedRecord,
    ) -> Result<StageState, ControlError> {
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
        let mounted = (mounted, self.reach(record));
        let recovery = recovery(record, &self.volumes.owner(), mounted, dataset.as_ref());
        tracing::info!(
            %volume,
            ?recovery,
            "recovering a volume that was staged when the node plugin stopped"
        );
        match (recovery, pool) {
            (Recovery::Reopen, Some(pool)) => self.reopen(record, pool).await,
            (Recovery::Follow, Some(pool)) => self.follow_again(record, pool).await,
            (Recovery::Close, Some(pool)) => self.close_left(record, pool).await,
            (Recovery::Forget, _) => self.forget(record).await,
            (Recovery::Reopen | Recovery::Follow | Recovery::Close | Recovery::Stale, _) => {
                let why = match (pool, dataset.map(|dataset| dataset.owner)) {
                    (None, _) => "its pool is not configured".to_owned(),
                    (_, None) => "its dataset is gone".to_owned(),
                    (_, Some(None)) => "its dataset was released".to_owned(),
                    (_, Some(Some(owner))) => {
                        format!("node {} owns it in session {}", owner.node, owner.session)
                    }
                };
                if self.is_staged(volume.dataset) {
                    self.go_stale(record, &why).await;
                }
                Ok(StageState::Lost(Arc::new(record.clone())))
            }
        }
    }

    async fn reopen(&self, record: &StagedRecord, pool: &Pool) -> Result<StageState, ControlError> {
        let volume = record.volume;
        let at = record.endpoint.ok_or_else(|| {
            ControlError::Internal(format!("volume {volume} is mounted from no address"))
        })?;
        let mut record = record.clone();
        // Written before the dataset's record names this session: after a crash in between, the
        // next process must know the session as one of this node's.
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
        let backing = Backing::Owned(open);
        Ok(StageState::Staged(Arc::new(Staged { record, backing })))
    }

    async fn follow_again(
        self: &Arc<Self>,
        record: &StagedRecord,
        pool: &Pool,
    ) -> Result<StageState, ControlError> {
        let mut record = record.clone();
        // Written before the dataset's record can name this session, as in `reopen`.
        let session = self.volumes.settings().session;
        if !record.sessions.contains(&session) {
            record.sessions.push(session);
            let old = record.sessions.len().saturating_sub(SESSIONS_MAX);
            record.sessions.drain(..old);
            self.records.write(&record).await?;
        }
        self.publish_channel(pool).await?;
        let shared = Arc::new(SharedVolume::default());
        self.follow(&shared, pool.clone(), record.volume, None);
        let backing = Backing::Shared(shared);
        Ok(StageState::Staged(Arc::new(Staged { record, backing })))
    }

    /// Listens on the endpoint again: the kernel's client reconnects sooner to a socket that
    /// listens, and its calls wait there.
    async fn listen_again(
        &self,
        record: &StagedRecord,
        at: SocketAddr,
    ) -> Result<(), ControlError> {
        let dataset = record.volume.dataset;
        match self.listen_on(dataset, at, self.reach(record)).await {
            // The previous process may take a moment to close its socket.
            Err(EndpointError::Taken(at)) => Err(ControlError::Unavailable(format!(
                "address {at} of volume {} is in use",
                record.volume
            ))),
            listening => Ok(listening?),
        }
    }

    async fn close_left(
        &self,
        record: &StagedRecord,
        pool: &Pool,
    ) -> Result<StageState, ControlError> {
        self.close_again(record, pool).await?;
        self.forget(record).await
    }

    async fn forget(&self, record: &StagedRecord) -> Result<StageState, ControlError> {
        self.records.remove(record.volume.dataset).await?;
        Ok(StageState::Idle)
    }
}
