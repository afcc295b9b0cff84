//! Long work of the server: restores and scrubs.

use super::super::grpc::proto::*;
use super::{Client, ClientError};
use crate::rpc::class;
use crate::types::Class;

impl Client {
    /// Restores paths of a snapshot into its dataset and waits for the end; `each` is called with
    /// the progress. The task that is returned may have failed: see [`Task::failed`]. There is none
    /// for a dry run.
    pub async fn restore(
        &self,
        request: RestoreRequest,
        mut each: impl FnMut(&Task),
    ) -> Result<Option<Task>, ClientError> {
        let mut answers = self.files().restore(request).await?.into_inner();
        let mut last = None;
        while let Some(answer) = answers.message().await? {
            if let Some(task) = answer.task {
                each(&task);
                last = Some(task);
            }
        }
        Ok(last)
    }

    /// Scrubs a dataset with its snapshots, or the pool, and waits for the end; `each` is called
    /// with the progress. The task that is returned may have failed, or found damage.
    pub async fn scrub(
        &self,
        request: ScrubRequest,
        mut each: impl FnMut(&Task),
    ) -> Result<Option<Task>, ClientError> {
        let mut answers = self.tasks().scrub(request).await?.into_inner();
        let mut last = None;
        while let Some(task) = answers.message().await? {
            each(&task);
            last = Some(task);
        }
        Ok(last)
    }

    /// The tasks that run and the last that have ended, newest first, of all pools.
    pub async fn list_tasks(&self) -> Result<Vec<Task>, ClientError> {
        Ok(self.tasks().list_tasks(ListTasksRequest {}).await?.into_inner().tasks)
    }

    /// One task.
    pub async fn task(&self, id: u64) -> Result<Task, ClientError> {
        Ok(self.tasks().get_task(GetTaskRequest { id }).await?.into_inner())
    }

    /// Asks a task to stop.
    pub async fn stop_task(&self, id: u64) -> Result<Task, ClientError> {
        Ok(self.tasks().stop_task(StopTaskRequest { id }).await?.into_inner())
    }
}

impl Task {
    /// The class and the text of the reason why it failed, if it did.
    pub fn failed(&self) -> Option<(Class, &str)> {
        match self.outcome() {
            task::Outcome::Failed => Some((class(self.code.into()), &self.message)),
            _ => None,
        }
    }
}
