//! One typed request to the process that may act on a dataset.
//!
//! ```text
//!                         ┌─ open in this process ──────▶ local     with the open volume
//! perform(dataset, req) ──┼─ the record names an owner ─▶ channel, or mailbox: it does as local
//!        ▲                └─ released ──────────────────▶ released  under a maintenance claim
//!        └── lost race: the record is read again ─────────┘
//! ```
//!
//! Nouns: an **owner request** is work that only one process may do at a time; a **carrier** brings
//! it to that process; a **start token** is what an asker brings back to start a request that must
//! not be done late ([`long`]).
//!
//! The one rule for a lost race. The dataset's record decides which process may act, and may change
//! while a request is in progress: a carrier that finds that another process may act by now has
//! lost a race. Then the record is read again, and the request goes to the process that it names,
//! [`RACES_MAX`] times at most, and the owners that are asked share one time limit. A restore is
//! not retried here, because a part of it may be done: its caller retries.
//!
//! To add a request: a variant of [`OwnerRequest`] and its arm in [`local`] and [`released`]. To
//! add a carrier: a module that sends a message, and its place in [`ask`].
//!
//! A crash leaves what the carriers' documentation lists.

mod ask;
mod channel;
mod local;
mod long;
mod mailbox;
mod polling;
mod released;
mod request;
mod restore;
mod server;

pub use ask::Carriers;
pub use channel::{DialOwner, OwnerChannel, RequestStream};
pub(super) use request::{Checkpointed, FreezeToken, FromReply, OwnerReply, OwnerRequest};
pub use restore::{Replaced, RestoreInPlace, TreePath};
pub use server::RequestServer;

use self::local::Local;
use self::mailbox::{Addressee, Swept, Unanswered};
use super::node::{Mounts, NoMounts};
use super::{ControlError, Pool};
use crate::bucket::Bucket;
use crate::catalog::{Dataset, Owner};
use crate::fs::{Progress, Restored};
use crate::types::{Class, Classify, DatasetId, SessionId};
use crate::volume::{VolumeError, Volumes, is_maintenance};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// Most times that a request is carried again after a lost race.
const RACES_MAX: usize = 3;
/// Interval at which the record is read while an owner does not answer: it may have died, or handed
/// the dataset over.
const RECORD_LOOK: Duration = Duration::from_secs(5);
/// Before a request is carried again while the record still names the claim that was fenced.
const RACE_PAUSE: Duration = Duration::from_millis(200);
/// Interval at which the progress of work of this process is reported.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// Is told the progress of a restore some times a second, and may ask that it stops, which it does
/// in an orderly state.
pub type Report<'a> = dyn Fn(Restored) -> ControlFlow<()> + Sync + 'a;

/// The owners of datasets, this process among them.
#[derive(Clone)]
pub(super) struct Owners {
    local: Local,
    carriers: Carriers,
    /// Time limit for the answers of owners in other processes, however many are asked.
    timeout: Duration,
    /// Sessions that did not answer, where they are asked only once.
    silent: Option<Arc<Mutex<HashSet<SessionId>>>>,
}

/// The reason why a carrier returned no reply.
enum Undone {
    /// Another process may act by now. The error is that of work which had begun and was fenced.
    LostRace(Option<ControlError>),
    Failed(ControlError),
}

impl From<ControlError> for Undone {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Volume(VolumeError::Owned { .. }) => Self::LostRace(None),
            error if error.class() == Class::Fenced => Self::LostRace(Some(error)),
            error => Self::Failed(error),
        }
    }
}

/// The owner that the record names, unless it is a maintenance claim.
pub(super) fn owner_of(dataset: &Dataset) -> Option<&Owner> {
    dataset.owner.as_ref().filter(|owner| !is_maintenance(owner))
}

impl Owners {
    /// `volumes`: those of this process. `timeout`: time limit for an owner in another process.
    pub(super) fn new(volumes: Volumes, timeout: Duration) -> Self {
        let local = Local { volumes, mounts: Arc::new(NoMounts) };
        Self { local, carriers: Carriers::default(), timeout, silent: None }
    }

    pub(super) fn with_carriers(mut self, carriers: Carriers) -> Self {
        self.carriers = carriers;
        self
    }

    pub(super) fn carriers(&self) -> &Carriers {
        &self.carriers
    }

    pub(super) fn with_mounts(mut self, mounts: Arc<dyn Mounts>) -> Self {
        self.local.mounts = mounts;
        self
    }

    pub(super) fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Waits only once for a session that does not answer, however many of its volumes are
    /// concerned.
    pub(super) fn waiting_once(&self) -> Self {
        Self { silent: Some(Arc::default()), ..self.clone() }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Has a request carried out by the process that may act on the dataset. `dataset`: its record,
    /// as last read.
    ///
    /// # Errors
    /// Those of the work itself; [`ControlError::Unavailable`] when the owner does not answer, and
    /// a class that says to retry when it is too busy.
    pub(super) async fn perform<T: FromReply>(
        &self,
        pool: &Pool,
        dataset: &Dataset,
        request: &OwnerRequest,
    ) -> Result<T, ControlError> {
        self.perform_reporting(pool, dataset, request, &|_| ControlFlow::Continue(())).await
    }

    /// As [`Self::perform`]. `progress` is called with the progress of the owner, wherever it is,
    /// and may ask it to stop.
    pub(super) async fn perform_reporting<T: FromReply>(
        &self,
        pool: &Pool,
        dataset: &Dataset,
        request: &OwnerRequest,
        progress: &Report<'_>,
    ) -> Result<T, ControlError> {
        let absent = || ControlError::NotFound { what: format!("volume {}", dataset.name) };
        let id = dataset.id();
        if self.local.volumes.get(id).is_some()
            && let Some(done) = self.act_here(pool, id, request, progress).await
        {
            match done.map_err(Undone::from) {
                Err(Undone::LostRace(_)) if request.is_repeatable() => {}
                Err(undone) => return Err(undone.into_error(dataset)),
                Ok(reply) => return request::expect(request, &dataset.name, reply),
            }
        }
        let mut record = dataset.clone();
        let deadline = Instant::now() + self.timeout;
        for race in 0..RACES_MAX {
            // Work in progress is not interrupted: only the wait for an answer is limited.
            let left = deadline.saturating_duration_since(Instant::now());
            if race > 0 && left.is_zero() {
                break;
            }
            match Box::pin(self.carry(pool, &record, request, left, progress)).await {
                Err(Undone::LostRace(_)) if request.is_repeatable() => {}
                Err(undone) => return Err(undone.into_error(dataset)),
                Ok(reply) => return request::expect(request, &dataset.name, reply),
            }
            let now = pool.catalog.dataset_by_id(id).await?.ok_or_else(absent)?.record;
            if owner_of(&now).map(|owner| owner.claim) == owner_of(&record).map(|owner| owner.claim)
            {
                tokio::time::sleep(RACE_PAUSE).await;
            }
            record = now;
        }
        Err(Undone::LostRace(None).into_error(dataset))
    }

    /// Carries the request to the process that may act by the record. `limit`: for an answer.
    async fn carry(
        &self,
        pool: &Pool,
        record: &Dataset,
        request: &OwnerRequest,
        limit: Duration,
        progress: &Report<'_>,
    ) -> Result<OwnerReply, Undone> {
        let settings = self.local.volumes.settings();
        let Some(owner) = owner_of(record) else {
            let done = Progress::default();
            let acting = Box::pin(released::act(settings, &pool.catalog, record, request, &done));
            return Ok(reporting(&done, progress, acting).await?);
        };
        if owner.session == settings.session
            && let Some(done) = self.act_here(pool, record.id(), request, progress).await
        {
            return Ok(done?);
        }
        if owner.node == settings.node {
            return Err(Undone::Failed(ControlError::Unavailable(format!(
                "{}: it is being opened or closed here; retry",
                request.describe(record.name.as_str())
            ))));
        }
        let (dataset, name) = (record.id(), record.name.as_str());
        let to = Addressee { pool, owner, dataset, name };
        let asked = tokio::select! {
            asked = self.ask_once(to, request, limit, progress) => asked,
            // The request stays for the collector: it may be done late.
            () = claim_ended(to), if request.is_repeatable() => {
                return Err(Undone::LostRace(None));
            }
        };
        match asked {
            Ok(reply) => Ok(reply),
            Err(Unanswered::Failed(error)) => Err(error.into()),
            Err(Unanswered::Silent(error)) => match pool.catalog.dataset_by_id(dataset).await {
                Ok(Some(now)) if owner_of(&now.record).is_none_or(|o| o.claim != owner.claim) => {
                    Err(Undone::LostRace(None))
                }
                _ => Err(Undone::Failed(error)),
            },
        }
    }

    /// Carries the request out if this process has the volume open.
    async fn act_here(
        &self,
        pool: &Pool,
        dataset: DatasetId,
        request: &OwnerRequest,
        progress: &Report<'_>,
    ) -> Option<Result<OwnerReply, ControlError>> {
        let done = Progress::default();
        let acting = Box::pin(self.local.act(&pool.catalog, dataset, request, &done));
        reporting(&done, progress, acting).await
    }

    async fn ask_once(
        &self,
        to: Addressee<'_>,
        request: &OwnerRequest,
        limit: Duration,
        progress: &Report<'_>,
    ) -> Result<OwnerReply, Unanswered> {
        let session = to.owner.session;
        if self.silent.as_ref().is_some_and(|silent| silent.lock().contains(&session)) {
            let why = format!("node {} does not answer", to.owner.node);
            return Err(Unanswered::Failed(ControlError::Unavailable(why)));
        }
        let asked = self.carriers.ask(to, request, limit, progress).await;
        if let (Err(Unanswered::Silent(_)), Some(silent)) = (&asked, &self.silent) {
            silent.lock().insert(session);
        }
        asked
    }
}

/// Reports the progress of work of this process while it goes on.
async fn reporting<T>(
    done: &Progress,
    report: &Report<'_>,
    mut work: impl Future<Output = T> + Unpin,
) -> T {
    loop {
        let ended = tokio::time::timeout(REPORT_INTERVAL, &mut work).await;
        if report(done.now()).is_break() {
            done.stop();
        }
        if let Ok(result) = ended {
            return result;
        }
    }
}

impl Undone {
    fn into_error(self, dataset: &Dataset) -> ControlError {
        match self {
            Self::LostRace(None) => {
                ControlError::InProgress { what: format!("volume {}", dataset.name) }
            }
            Self::LostRace(Some(error)) | Self::Failed(error) => error,
        }
    }
}

/// Resolves when the record names another claim than that of the owner who is asked.
async fn claim_ended(to: Addressee<'_>) {
    loop {
        tokio::time::sleep(RECORD_LOOK).await;
        match to.pool.catalog.dataset_by_id(to.dataset).await {
            Ok(Some(now))
                if owner_of(&now.record).is_some_and(|owner| owner.claim == to.owner.claim) => {}
            // A failure says nothing: the store may answer the next time.
            Err(_) => {}
            Ok(_) => return,
        }
    }
}

/// Removes old remains of mailboxes and sessions from the bucket.
pub(super) async fn sweep_mailboxes(
    bucket: &Bucket,
    now: SystemTime,
) -> Result<Swept, ControlError> {
    mailbox::sweep(bucket, now).await
}
