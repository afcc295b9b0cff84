//! Requests that take minutes, on the owner's side: one starts a task, the next ones get its
//! progress and result, and other requests do not wait for it.
//!
//! ```text
//! request ─▶ reply: start token ─▶ request with the token: started ─▶ requests: progress, result
//! ```
//! A request may be read long after its asker went away: when the volume is opened again, or when
//! the store delivers it late. Detaching late does no harm. A restore would put old files over
//! those that were written since, so it starts only with a request that brings a start token back:
//! its asker has seen a reply of this very opening of the volume, less than [`TOKEN_AGE_MAX`] ago.
//! A token is for one request, and good once; a request with any other gets a new one.

use super::local::Local;
use super::mailbox::RequestStatus;
use super::request::OwnerRequest;
use crate::catalog::Catalog;
use crate::fs::Progress;
use crate::types::{Class, DatasetId, Incarnation};
use crate::volume::{VolumeGuard, Volumes};
use futures::FutureExt;
use std::collections::{HashMap, VecDeque};
use std::mem::{Discriminant, discriminant};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// An asker that waits brings a token back within two seconds, and an owner that is busy reads it
/// some seconds later.
const TOKEN_AGE_MAX: Duration = Duration::from_secs(60);
/// Most outstanding tokens: as many as requests of one poll. The oldest is dropped for a new one,
/// and its asker gets another.
const TOKENS_MAX: usize = 64;
/// Clones that one owner detaches at once.
const DETACHING_MAX: usize = 2;

#[derive(Default)]
pub(super) struct LongRequests {
    /// The oldest first.
    tokens: VecDeque<StartToken>,
    /// The last request of each kind for each volume.
    last: HashMap<(DatasetId, Discriminant<OwnerRequest>), Running>,
}

struct StartToken {
    token: Incarnation,
    request: OwnerRequest,
    /// The opening at that time: [`Volume::opening`](crate::volume::Volume::opening).
    opening: u64,
    issued: Instant,
}

/// A request that runs, or has ended and may be asked about.
struct Running {
    request: OwnerRequest,
    progress: Arc<Progress>,
    task: JoinHandle<RequestStatus>,
    ended: Option<RequestStatus>,
}

impl Running {
    fn outcome(&mut self) -> Option<&RequestStatus> {
        if self.ended.is_none() {
            let ended = (&mut self.task).now_or_never()?;
            self.ended =
                Some(ended.unwrap_or_else(|error| {
                    RequestStatus::failed(Class::Internal, error.to_string())
                }));
        }
        self.ended.as_ref()
    }

    fn is_running(&self) -> bool {
        self.ended.is_none() && !self.task.is_finished()
    }
}

impl LongRequests {
    /// Returns the progress of the request; starts it if it may be started.
    pub(super) fn answer(
        &mut self,
        local: &Local,
        pool: &Catalog,
        volume: VolumeGuard,
        request: OwnerRequest,
        token: Option<Incarnation>,
    ) -> RequestStatus {
        let (id, name) = (volume.dataset.id(), volume.dataset.name.clone());
        let kind = (id, discriminant(&request));
        if let Some(last) = self.last.get_mut(&kind) {
            let same = last.request == request;
            match last.outcome().cloned() {
                None if same => return RequestStatus::Running(last.progress.now()),
                None => {
                    let what = request.describe(name.as_str());
                    let why = format!("another {what} is in progress; retry");
                    return RequestStatus::failed(Class::InProgress, why);
                }
                Some(ended) if same => {
                    // The same request may be made again later, and is carried out again then.
                    if !request.is_awaited() {
                        self.last.remove(&kind);
                    }
                    return ended;
                }
                Some(_) => {}
            }
        }
        if !request.is_repeatable()
            && !token.is_some_and(|token| self.redeem(token, &request, volume.opening))
        {
            return RequestStatus::StartToken(self.issue(request, volume.opening));
        }
        if request == OwnerRequest::Detach && self.detaching() >= DETACHING_MAX {
            return RequestStatus::failed(Class::InProgress, "detach limit reached; retry");
        }
        self.start(local.clone(), pool.clone(), volume, request)
    }

    fn detaching(&self) -> usize {
        let detaching = |last: &&Running| last.request == OwnerRequest::Detach && last.is_running();
        self.last.values().filter(detaching).count()
    }

    fn redeem(&mut self, token: Incarnation, request: &OwnerRequest, opening: u64) -> bool {
        self.drop_old();
        let good = |issued: &StartToken| {
            issued.token == token && issued.request == *request && issued.opening == opening
        };
        let found = self.tokens.iter().position(good);
        found.and_then(|at| self.tokens.remove(at)).is_some()
    }

    fn issue(&mut self, request: OwnerRequest, opening: u64) -> Incarnation {
        let token = Incarnation::random();
        if self.tokens.len() >= TOKENS_MAX {
            self.tokens.pop_front();
        }
        self.tokens.push_back(StartToken { token, request, opening, issued: Instant::now() });
        token
    }

    fn start(
        &mut self,
        local: Local,
        pool: Catalog,
        volume: VolumeGuard,
        request: OwnerRequest,
    ) -> RequestStatus {
        let kind = (volume.dataset.id(), discriminant(&request));
        let (progress, wanted) = (Arc::new(Progress::default()), request.clone());
        let now = progress.now();
        let task = tokio::spawn({
            let progress = progress.clone();
            async move { Box::pin(local.act_on(&pool, &volume, &wanted, &progress)).await.into() }
        });
        self.last.insert(kind, Running { request, progress, task, ended: None });
        RequestStatus::Running(now)
    }

    /// Asks the restore of that call to stop; its asker gets the result.
    pub(super) fn stop_restore(&self, dataset: DatasetId, call: Incarnation) {
        for ((id, _), running) in &self.last {
            if let OwnerRequest::Restore { wanted, .. } = &running.request
                && (*id, wanted.call) == (dataset, call)
            {
                running.progress.stop();
            }
        }
    }

    fn drop_old(&mut self) {
        self.tokens.retain(|token| token.issued.elapsed() < TOKEN_AGE_MAX);
    }

    /// Drops results that no caller will ask for.
    pub(super) fn tidy(&mut self, volumes: &Volumes) {
        self.drop_old();
        self.last.retain(|(id, _), last| last.is_running() || volumes.get(*id).is_some());
    }
}
