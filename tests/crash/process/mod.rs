//! A process on a pool: it does a script's calls, and dies when told to. A runtime of its own is
//! the process: when it goes, so does every task of it.

use crate::calls::{Done, call, repeatable, walk};
use crate::script::{Op, Policy, Promise, Script, Tree, agrees, difference};
use crate::storage::Storage;
use crate::support::world::{World, new_volume};
use bytes::Bytes;
use std::time::{Duration, Instant};
use zerofs_csi::catalog::{Catalog, Keep, KeepRules, Properties, SnapshotPolicy};
use zerofs_csi::chunk::ChunkCache;
use zerofs_csi::control::{ControlError, NewVolume, PropertyChanges, Source};
use zerofs_csi::fs::db::DbCache;
use zerofs_csi::telemetry::Failpoints;
use zerofs_csi::types::{Class, Classify, Incarnation, SnapshotHandle, Timestamp, VolumeHandle};
use zerofs_csi::volume::VolumeGuard;

mod stored;

/// The stack of the program's own threads: unoptimised futures of the database are large.
const STACK_BYTES: usize = 8 << 20;
/// The time that [`Op::Until`] waits for the background, whose step may be the one that fails.
const UNTIL_LIMIT: Duration = Duration::from_millis(300);
/// … when nothing fails, on a busy machine.
const UNTIL_LIMIT_PATIENT: Duration = Duration::from_secs(20);
const VOLUME: &str = "volume";

/// Runs as the program runs; nothing of it is left when this returns.
pub fn run<T: Send + 'static>(name: &str, process: impl Future<Output = T> + Send + 'static) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(name)
        .enable_all()
        .thread_stack_size(STACK_BYTES)
        .build()
        .unwrap();
    let done = runtime.spawn(process);
    let done = runtime.block_on(done);
    runtime.shutdown_timeout(Duration::from_secs(20));
    done.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
}

/// The progress of a script.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Calls answered.
    pub acked: usize,
}

impl Progress {
    /// Calls whose effect survives the node.
    pub fn durable(self, script: &Script) -> usize {
        script.ops[..self.acked]
            .iter()
            .rposition(|op| op.promise() == Promise::Durable)
            .map_or(0, |at| at + 1)
    }
}

/// The state that a process must find when it starts.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// The state is that before one of these calls.
    pub first: usize,
    pub last: usize,
    /// The call that was not answered, or the next one.
    pub next: usize,
}

/// Where and why a process ended.
#[derive(Debug)]
pub struct Died {
    pub at: usize,
    pub why: String,
}

/// A process: one node plugin and controller.
pub struct Process {
    world: World,
    script: Script,
    volume: Option<VolumeGuard>,
    until: Duration,
}

impl Process {
    pub async fn start(
        storage: &Storage,
        failpoints: impl FnOnce(&Failpoints),
        script: Script,
    ) -> Self {
        let catalog =
            Catalog::open(storage.bucket(), storage.secret.as_ref()).await.expect("the pool opens");
        failpoints(catalog.bucket().failpoints());
        let world = World::builder("node").journals(storage.journals()).settings(|settings| {
            settings.cache = DbCache::new(8 << 20);
            settings.chunk_cache = ChunkCache::memory(8 << 20);
            settings.flush_interval = Duration::from_millis(100);
        });
        Self { world: world.on(catalog), script, volume: None, until: UNTIL_LIMIT }
    }

    /// Waits for the background for as long as it takes.
    pub fn patient(mut self) -> Self {
        self.until = UNTIL_LIMIT_PATIENT;
        self
    }

    pub fn failpoints(&self) -> &Failpoints {
        self.world.failpoints()
    }

    /// Opens, compares what is there with what is expected, and does the rest of the script's
    /// calls.
    pub async fn play(
        &mut self,
        expected: Expected,
        mut answered: impl FnMut(usize),
    ) -> Result<(), Died> {
        let died = |at| move |why| Died { at, why };
        let found = self
            .persist(|process| Box::pin(process.opened()))
            .await
            .map_err(died(expected.next))?;
        let from = self.matched(expected, &found);
        for at in from..self.script.ops.len() {
            self.persist(|process| Box::pin(process.perform(at))).await.map_err(died(at))?;
            answered(at + 1);
        }
        Ok(())
    }

    /// As [`Self::play`], then to the end: collected, and deleted.
    pub async fn run(
        &mut self,
        expected: Expected,
        answered: impl FnMut(usize),
    ) -> Result<(), Died> {
        self.play(expected, answered).await?;
        let at = self.script.ops.len();
        self.persist(|process| Box::pin(process.finish())).await.map_err(|why| Died { at, why })
    }

    /// The volume's tree, or the reason why it cannot be read.
    pub async fn look(&self) -> Result<Tree, (Class, String)> {
        let listed = self
            .world
            .controller
            .volumes()
            .await
            .map_err(|error| (error.class(), error.to_string()))?;
        let handle = listed.first().expect("there is a volume").handle;
        let volume = self
            .world
            .volumes
            .open(&self.world.catalog, handle.dataset)
            .await
            .map_err(|error| (error.class(), error.to_string()))?;
        walk(&volume).await.map_err(|error| (error.class(), error.to_string()))
    }

    /// Repeats what fails, as a client does.
    async fn persist<T>(
        &mut self,
        mut call: impl for<'a> FnMut(
            &'a mut Self,
        )
            -> std::pin::Pin<Box<dyn Future<Output = Done<T>> + Send + 'a>>,
    ) -> Done<T> {
        let mut last = String::new();
        for _ in 0..3 {
            match call(self).await {
                Ok(done) => return Ok(done),
                Err(why) => last = why,
            }
        }
        Err(last)
    }

    /// The call to go on with.
    fn matched(&self, expected: Expected, found: &Tree) -> usize {
        let last = expected.last.min(self.script.trees.len() - 1);
        match (expected.first..=last).rev().find(|at| agrees(&self.script.trees[*at], found)) {
            Some(at) => at.min(expected.next),
            None => {
                let (last, what) = (
                    difference(&self.script.trees[last], found),
                    difference(&self.script.trees[expected.first], found),
                );
                panic!(
                    "the tree is of no state between {expected:?}; to the first: {what}; to \
                     the last: {last}"
                );
            }
        }
    }

    async fn opened(&mut self) -> Done<Tree> {
        let handle = self.handle(VOLUME, None).await?;
        self.check_rows(handle).await?;
        let volume = self.open(handle).await?;
        let found = walk(&volume).await.map_err(|error| repeatable(&"looking", &error))?;
        self.volume = Some(volume);
        Ok(found)
    }

    async fn open(&self, handle: VolumeHandle) -> Done<VolumeGuard> {
        // The engine lets go of the journal of an opening that failed a moment later.
        let mut tries = 0;
        loop {
            match self.world.volumes.open(&self.world.catalog, handle.dataset).await {
                Err(error) if error.class() == Class::InProgress && tries < 100 => tries += 1,
                opened => return opened.map_err(|error| repeatable(&"opening", &error)),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A volume of a name, made if need be.
    async fn handle(&self, name: &str, source: Option<Source>) -> Done<VolumeHandle> {
        let new = NewVolume {
            // Not smaller than what it may be copied from.
            size: Some(if name == VOLUME { 1 << 29 } else { 1 << 30 }),
            properties: Properties { record_bytes: 4096, ..Properties::default() },
            ..new_volume(name, source)
        };
        let made = self.world.controller.create_volume(None, new).await;
        made.map(|made| made.handle).map_err(|error| repeatable(&name, &error))
    }

    fn fs(&self) -> Done<&VolumeGuard> {
        self.volume.as_ref().ok_or_else(|| "the volume is closed".to_owned())
    }

    async fn perform(&mut self, at: usize) -> Done<()> {
        let op = self.script.ops[at].clone();
        let failed = |error: ControlError| repeatable(&op, &error);
        match &op {
            Op::Until(step) => {
                let started = Instant::now();
                while !self.failpoints().passed().contains_key(*step)
                    && started.elapsed() < self.until
                {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(())
            }
            Op::Reopen => {
                self.close().await?;
                self.volume = Some(self.open(self.handle(VOLUME, None).await?).await?);
                Ok(())
            }
            Op::Expand(bytes) => {
                let handle = self.handle_of(VOLUME).await?.expect("it is there");
                self.world
                    .controller
                    .expand_volume(handle, *bytes, None)
                    .await
                    .map(drop)
                    .map_err(failed)
            }
            Op::Inodes(quota) => {
                let handle = self.handle_of(VOLUME).await?.expect("it is there");
                let changes =
                    PropertyChanges { inodes: Some(Some(*quota)), ..PropertyChanges::default() };
                self.world
                    .controller
                    .set_properties(handle, changes)
                    .await
                    .map(drop)
                    .map_err(failed)
            }
            Op::Policy(policy) => self.policy(*policy).await,
            Op::Snapshot(name) => {
                let handle = self.handle_of(VOLUME).await?.expect("it is there");
                self.world
                    .controller
                    .create_csi_snapshot(handle, name.parse().unwrap())
                    .await
                    .map(drop)
                    .map_err(failed)
            }
            Op::Clone(name, of) => {
                let snapshot = self.snapshot(of).await?.ok_or("the snapshot is gone")?;
                let expected = self.script.snapshot(of).clone();
                self.compare(name, Source::Snapshot(snapshot), &expected).await
            }
            Op::Copy(name) => {
                let source = self.handle_of(VOLUME).await?.expect("it is there");
                let expected = self.script.trees[at].clone();
                self.compare(name, Source::Volume(source), &expected).await
            }
            Op::Delete(name) => match self.handle_of(name).await? {
                Some(handle) => self.world.controller.delete_volume(handle).await.map_err(failed),
                None => Ok(()),
            },
            Op::DeleteSnapshot(name) => match self.snapshot(name).await? {
                Some(handle) => self.world.controller.delete_snapshot(handle).await.map_err(failed),
                None => Ok(()),
            },
            Op::Collect => {
                // A leftover as of the compactor of a deleted database.
                let stray = format!("vol/{}/compacted/stray.sst", Incarnation::random());
                self.world.bucket().put(&stray, Bytes::from_static(b"stray")).await.expect("a put");
                self.collect().await
            }
            on_files => call(self.fs()?, at, on_files).await,
        }
    }

    /// Makes a volume from a source and compares it with what it must hold.
    async fn compare(&self, name: &str, source: Source, expected: &Tree) -> Done<()> {
        let handle = self.handle(name, Some(source)).await?;
        let volume = self.open(handle).await?;
        let found = walk(&volume).await.map_err(|error| repeatable(&"looking", &error))?;
        assert!(agrees(expected, &found), "{name}: {}", difference(expected, &found));
        drop(volume);
        self.world
            .volumes
            .close(handle.dataset)
            .await
            .map_err(|error| repeatable(&name, &error))?;
        self.check_rows(handle).await
    }

    async fn handle_of(&self, name: &str) -> Done<Option<VolumeHandle>> {
        let listed =
            self.world.controller.volumes().await.map_err(|error| repeatable(&name, &error))?;
        Ok(listed
            .into_iter()
            .find(|volume| volume.dataset.name.to_string() == name)
            .map(|volume| volume.handle))
    }

    async fn policy(&self, policy: Policy) -> Done<()> {
        let handle = self.handle_of(VOLUME).await?.expect("it is there");
        let read = self.world.catalog.dataset_by_id(handle.dataset).await;
        let read = read.map_err(|error| repeatable(&"policy", &error))?;
        let dataset = read.expect("it is there").record;
        let pool = self.world.pool();
        let now = Timestamp::from_parts(1_800_000_000, 0);
        let done = match policy {
            Policy::Set => {
                let policy = SnapshotPolicy {
                    schedule: "1h".to_owned(),
                    time_zone: "UTC".to_owned(),
                    prefix: "auto-".to_owned(),
                    skip_empty: false,
                    keep: KeepRules { last: Some(Keep::Count(3)), ..KeepRules::default() },
                };
                self.world.controller.set_policy(pool, &dataset, policy, now).await.map(drop)
            }
            Policy::Deleted => match self.world.controller.delete_policy(pool, &dataset, now).await
            {
                // By the call that failed after it.
                Err(error) if error.class() == Class::NotFound => Ok(()),
                deleted => deleted,
            },
        };
        done.map_err(|error| repeatable(&"policy", &error))
    }

    async fn snapshot(&self, name: &str) -> Done<Option<SnapshotHandle>> {
        let listed = self
            .world
            .controller
            .snapshots(None)
            .await
            .map_err(|error| repeatable(&name, &error))?;
        Ok(listed.into_iter().find(|s| s.snapshot.name.to_string() == name).map(|s| s.handle))
    }

    async fn collect(&self) -> Done<()> {
        let pool = self.world.pool();
        self.world
            .controller
            .collector(pool)
            .collect()
            .await
            .map(drop)
            .map_err(|error| repeatable(&"collect", &error))
    }

    async fn close(&mut self) -> Done<()> {
        if let Some(volume) = self.volume.take() {
            let closed = self.world.volumes.close(volume.dataset.id()).await;
            if closed.is_err() && self.world.volumes.get(volume.dataset.id()).is_some() {
                self.volume = Some(volume);
            }
            closed.map_err(|error| repeatable(&"closing", &error))?;
        }
        Ok(())
    }

    /// Closed and collected, the pool holds what the rows refer to and nothing else; deleted and
    /// collected, nothing.
    async fn finish(&mut self) -> Done<()> {
        if let Some(handle) = self.handle_of(VOLUME).await? {
            let volume = self.open(handle).await?;
            let found = walk(&volume).await.map_err(|error| repeatable(&"looking", &error))?;
            let expected = self.script.trees.last().expect("there is one");
            assert!(agrees(expected, &found), "at the end: {}", difference(expected, &found));
            self.volume = Some(volume);
            self.close().await?;
            self.collect().await?;
            self.check_rows(handle).await?;
            let referred = self.referred(handle).await?;
            assert_eq!(
                self.packs().await,
                referred,
                "packs that are stored, and packs that rows refer to, after a collection"
            );
            self.world
                .controller
                .delete_volume(handle)
                .await
                .map_err(|error| repeatable(&"deleting", &error))?;
        }
        // Objects that a compactor wrote as its process died are strays for a later collection.
        for _ in 0..20 {
            self.collect().await?;
            if self.left().await.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("left after everything was deleted: {:?}", self.left().await);
    }
}
