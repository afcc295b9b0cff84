//! `task …`: the long work of a running server.

use super::args::{Common, TaskCommand};
use super::exit::Wrong;
use super::remote::{Remote, patiently, some, time};
use super::report::{table, when};
use crate::admin::grpc::proto;
use crate::admin::grpc::proto::task::{Kind, Outcome};
use crate::app;
use crate::types::{ByteSize, Class};
use serde::Serialize;

pub fn run(command: TaskCommand) -> anyhow::Result<()> {
    app::start_logging(&Default::default(), Some("warn"))?;
    app::run(async move {
        match command {
            TaskCommand::List { common } => list(&common).await,
            TaskCommand::Show { id, common } => show(id, &common).await,
            TaskCommand::Stop { id, common } => stop(id, &common).await,
        }
    })
}

/// A task as JSON.
#[derive(Serialize)]
struct TaskShown {
    /// Counted from 1 since the server started.
    id: u64,
    kind: &'static str,
    state: &'static str,
    pool: String,
    /// The object of the work: `DATASET`, `DATASET@SNAPSHOT:/PATH`, or the pool.
    subject: String,
    started: String,
    /// `None` while it runs.
    ended: Option<String>,
    /// Files and folders of a restore, packs of a scrub or collection.
    objects: u64,
    bytes: u64,
    /// A summary of the work, or the reason why it failed.
    message: Option<String>,
}

impl From<proto::Task> for TaskShown {
    fn from(task: proto::Task) -> Self {
        let kind = match task.kind() {
            Kind::Restore => "restore",
            Kind::Scrub => "scrub",
            Kind::Collection => "collection",
            Kind::Unspecified => "unknown",
        };
        let state = match task.outcome() {
            Outcome::Running => "running",
            Outcome::Done => "done",
            Outcome::Failed => "failed",
            Outcome::Stopped => "stopped",
            Outcome::Unspecified => "unknown",
        };
        Self {
            id: task.id,
            kind,
            state,
            pool: task.pool,
            subject: task.subject,
            started: when(time(task.started)),
            ended: task.ended.map(|at| when(time(Some(at)))),
            objects: task.objects,
            bytes: task.bytes,
            message: some(task.message),
        }
    }
}

impl TaskShown {
    fn row(&self) -> Vec<String> {
        vec![
            self.id.to_string(),
            self.kind.to_owned(),
            self.state.to_owned(),
            self.started.clone(),
            self.objects.to_string(),
            ByteSize(self.bytes).to_string(),
            self.pool.clone(),
            self.subject.clone(),
        ]
    }

    fn text(&self) -> String {
        let done = format!("{} objects, {}", self.objects, ByteSize(self.bytes));
        let rows = [
            ("task", Some(self.id.to_string())),
            ("kind", Some(self.kind.to_owned())),
            ("state", Some(self.state.to_owned())),
            ("pool", Some(self.pool.clone())),
            ("subject", Some(self.subject.clone())),
            ("started", Some(self.started.clone())),
            ("ended", self.ended.clone()),
            ("progress", Some(done)),
            ("message", self.message.clone()),
        ];
        let known = rows.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        known.map(|(name, value)| format!("{name:<12} {value}\n")).collect()
    }
}

async fn list(common: &Common) -> anyhow::Result<()> {
    let remote = common.place.server_itself().await?;
    known_pool(&remote).await?;
    let told = patiently(async || remote.client.list_tasks().await).await?;
    let of_pool = told.into_iter().filter(|task| is_of_pool(&remote, task));
    let shown: Vec<TaskShown> = of_pool.map(Into::into).collect();
    common.output.print(&shown, |shown| {
        let header = ["TASK", "KIND", "STATE", "STARTED", "OBJECTS", "BYTES", "POOL", "SUBJECT"];
        table(&header, &shown.iter().map(TaskShown::row).collect::<Vec<_>>())
    })
}

async fn show(id: u64, common: &Common) -> anyhow::Result<()> {
    let remote = common.place.server_itself().await?;
    let shown = TaskShown::from(task(&remote, id).await?);
    common.output.print(&shown, TaskShown::text)
}

async fn stop(id: u64, common: &Common) -> anyhow::Result<()> {
    let remote = common.place.server_itself().await?;
    task(&remote, id).await?;
    let shown = TaskShown::from(remote.client.stop_task(id).await?);
    common.output.print(&shown, |shown| {
        let TaskShown { kind, state, subject, .. } = shown;
        match shown.ended {
            None => format!("asked task {id} to stop, the {kind} of {subject}; it ends soon\n"),
            Some(_) => format!("task {id} has ended already, the {kind} of {subject}: {state}\n"),
        }
    })
}

/// A task of the server, or of the pool that the command names.
async fn task(remote: &Remote, id: u64) -> anyhow::Result<proto::Task> {
    known_pool(remote).await?;
    let found = patiently(async || remote.client.task(id).await).await?;
    match is_of_pool(remote, &found) {
        true => Ok(found),
        false => {
            let why = format!(
                "task {id} is one of pool {}, and not of {}: leave --pool out",
                found.pool, remote.pool
            );
            Err(Wrong::new(Class::NotFound, why))
        }
    }
}

fn is_of_pool(remote: &Remote, task: &proto::Task) -> bool {
    remote.pool.is_empty() || remote.pool == task.pool
}

/// Refuses the name of a pool that the server does not have: it would have no tasks.
async fn known_pool(remote: &Remote) -> anyhow::Result<()> {
    if remote.pool.is_empty() {
        return Ok(());
    }
    let pools = patiently(async || remote.client.pools().await).await?;
    let names: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
    match names.contains(&remote.pool.as_str()) {
        true => Ok(()),
        false => {
            let (pool, known) = (&remote.pool, names.join(", "));
            let why = format!("--pool {pool}: the server has no such pool; there are: {known}");
            Err(Wrong::new(Class::Invalid, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_shown_with_what_is_known_of_it() {
        let mut task = proto::Task {
            id: 3,
            kind: Kind::Scrub.into(),
            pool: "main".to_owned(),
            subject: "web".to_owned(),
            objects: 2,
            bytes: 4096,
            outcome: Outcome::Running.into(),
            ..Default::default()
        };
        let running = TaskShown::from(task.clone()).text();
        assert!(running.starts_with("task         3\nkind         scrub\n"), "{running}");
        assert!(!running.contains("ended") && !running.contains("message"), "{running}");
        task.outcome = Outcome::Failed.into();
        task.ended = Some(Default::default());
        task.message = "the store does not answer".to_owned();
        let failed = TaskShown::from(task).text();
        assert!(failed.contains("ended        1970-01-01T00:00:00Z\n"), "{failed}");
        assert!(failed.ends_with("message      the store does not answer\n"), "{failed}");
    }
}
