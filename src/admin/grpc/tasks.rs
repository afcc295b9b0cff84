//! The service of long work.

use super::super::auth::{Action, Place, Resource};
use super::super::watch::{Watch, resource, watch};
use super::call::{Call, CallAdmission, RpcResult};
use super::datasets::failed;
use super::proto;
use super::proto::tasks_server::Tasks;
use super::proto::*;
use super::streams::{Answers, answers};
use super::{Services, convert};
use crate::control::{ControlError, Task, TaskOutcome};
use crate::rpc::status;
use futures::{Stream, StreamExt, stream};
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Progress is reported no more often.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

impl Services {
    /// A task that the caller may do this with.
    async fn allowed(&self, call: &Call, id: u64, action: Action) -> Result<Task, Status> {
        let task = self.admin.tasks.get(id).map_err(failed)?;
        self.admission.allow(call, action, &resource(&task)).await?;
        Ok(task)
    }

    /// A task now, and with its progress until it has ended.
    pub(super) fn progress(
        &self,
        id: u64,
    ) -> impl Stream<Item = Result<Task, Status>> + Send + use<> {
        let (tasks, changes) = (self.admin.tasks.clone(), self.admin.tasks.watch());
        let state = Some((changes, None::<Task>));
        stream::unfold(state, move |state| {
            let tasks = tasks.clone();
            async move {
                let (mut changes, last) = state?;
                if last.is_some() {
                    tokio::time::sleep(REPORT_INTERVAL).await;
                }
                loop {
                    changes.mark_unchanged();
                    let task = match tasks.get(id) {
                        Ok(task) => task,
                        Err(error) => return Some((Err(failed(error)), None)),
                    };
                    if last.as_ref() != Some(&task) {
                        let next = task.is_running().then(|| (changes, Some(task.clone())));
                        return Some((Ok(task), next));
                    }
                    if changes.changed().await.is_err() {
                        return None;
                    }
                }
            }
        })
    }

    /// A place among the tasks that run.
    pub(super) fn task_place(&self, call: &Call) -> Result<Place, Status> {
        let tasks = &self.admission.access().limits.tasks;
        tasks.take(call.caller()).map_err(|full| status(&full))
    }

    /// Writes the outcome of a task into the audit log when it has ended. It has its place until
    /// then.
    pub(super) fn audit_task(
        &self,
        call: &Call,
        action: Action,
        (what, object): (&'static str, String),
        (id, place): (u64, Place),
    ) {
        let audited = self.admission.audit(call, action, what, object);
        let mut progress = Box::pin(self.progress(id));
        tokio::spawn(async move {
            let _place = place;
            let mut last = None;
            while let Some(Ok(task)) = progress.next().await {
                last = Some(task);
            }
            let Some(task) = last else { return };
            audited.add(task.bytes);
            match task.outcome {
                TaskOutcome::Done(_) => audited.done(),
                TaskOutcome::Failed { class, why } => {
                    audited.failed(&ControlError::Refused { class, why });
                }
                // Left as abandoned.
                TaskOutcome::Running | TaskOutcome::Stopped => {}
            }
        });
    }
}

#[tonic::async_trait]
impl Tasks for Services {
    async fn list_tasks(&self, request: Request<ListTasksRequest>) -> RpcResult<ListTasksResponse> {
        let call = CallAdmission::call(&request)?;
        self.admission.allow(&call, Action::List, &Resource::Server).await?;
        let mut tasks = Vec::new();
        for task in self.admin.tasks.list() {
            if self.admission.shows(&call, &resource(&task)).await {
                tasks.push(convert::task(task));
            }
        }
        Ok(Response::new(ListTasksResponse { tasks }))
    }

    async fn get_task(&self, request: Request<GetTaskRequest>) -> RpcResult<proto::Task> {
        let call = CallAdmission::call(&request)?;
        let task = self.allowed(&call, request.into_inner().id, Action::List).await?;
        Ok(Response::new(convert::task(task)))
    }

    async fn stop_task(&self, request: Request<StopTaskRequest>) -> RpcResult<proto::Task> {
        let call = CallAdmission::call(&request)?;
        let id = request.into_inner().id;
        self.allowed(&call, id, Action::Administer).await?;
        Ok(Response::new(convert::task(self.admin.tasks.stop(id).map_err(failed)?)))
    }

    type ScrubStream = Answers<proto::Task>;

    async fn scrub(&self, request: Request<ScrubRequest>) -> RpcResult<Self::ScrubStream> {
        let call = CallAdmission::call(&request)?;
        let ScrubRequest { pool, dataset, bytes_per_second } = request.into_inner();
        let browser = self.browser(&pool)?;
        let pool = browser.pool();
        let only = match dataset.as_str() {
            "" => {
                let resource = Resource::pool(&pool.name);
                self.admission.allow(&call, Action::Administer, &resource).await?;
                None
            }
            name => Some(self.dataset(&call, &browser, name, Action::Administer).await?),
        };
        let rate = Some(bytes_per_second).filter(|rate| *rate > 0);
        let place = self.task_place(&call)?;
        let (tasks, volumes) = (&self.admin.tasks, &self.admin.volumes);
        let id = tasks.start_scrub(pool, volumes, only.as_ref(), rate).map_err(failed)?;
        let about = format!("{}/{dataset}", pool.name);
        self.audit_task(&call, Action::Administer, ("Scrub", about), (id, place));
        let progress = self.progress(id).map(|task| task.map(convert::scrub));
        Ok(Response::new(answers(call, (), progress)))
    }

    type WatchStream = Answers<WatchResponse>;

    async fn watch(&self, request: Request<WatchRequest>) -> RpcResult<Self::WatchStream> {
        let call = CallAdmission::call(&request)?;
        let browser = self.browser(&request.into_inner().pool)?;
        let resource = Resource::pool(&browser.pool().name);
        self.admission.allow(&call, Action::List, &resource).await?;
        let watchers = &self.admission.access().limits.watchers;
        let place = watchers.take(call.caller()).map_err(|full| status(&full))?;
        let wanted = Watch {
            access: self.admission.access().clone(),
            tasks: self.admin.tasks.clone(),
            browser,
            known: call.known().clone(),
        };
        let changes = watch(wanted, place).map(|change| change.map_err(|error| status(&error)));
        Ok(Response::new(answers(call, (), changes)))
    }
}
