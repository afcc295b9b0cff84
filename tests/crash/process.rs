//! A process on a pool: it does a script's calls, and dies when told to. A runtime of its own is
//! the process: when it goes, so does every task of it.

use crate::script::{
    Object, Op, Policy, Promise, Script, Tree, agrees, bytes, difference, small_name,
};
use crate::setup::{controller, new_volume, settings};
use bytes::Bytes;
use object_store::memory::InMemory;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerofs_csi::bucket::{Bucket, Credentials, Folder, Limits};
use zerofs_csi::catalog::{Catalog, Keep, KeepRules, Properties, SnapshotPolicy, State};
use zerofs_csi::chunk::ChunkCache;
use zerofs_csi::control::{ControlError, Controller, NewVolume, PropertyChanges, Source};
use zerofs_csi::crypto::Secret;
use zerofs_csi::fs::FsError;
use zerofs_csi::fs::api::*;
use zerofs_csi::fs::check::check;
use zerofs_csi::fs::db::{self, DbCache, DbPlace, Reader};
use zerofs_csi::fs::key::{self, Key};
use zerofs_csi::fs::row::{Row, Usage};
use zerofs_csi::telemetry::Failpoints;
use zerofs_csi::types::{
    Class, Classify, EntryName, Incarnation, InodeNo, PackId, SnapshotHandle, Timestamp,
    VolumeHandle,
};
use zerofs_csi::volume::{Volume, VolumeGuard, VolumeSettings, Volumes, place};

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

/// The state that outlives a process: the pool and the node's disk.
#[derive(Clone)]
pub struct Home {
    store: Option<Arc<InMemory>>,
    folder: PathBuf,
    secret: Option<Secret>,
}

impl Home {
    /// A pool in memory; only the journals are on the disk.
    pub fn memory(folder: &Path) -> Self {
        Self { store: Some(Arc::default()), folder: folder.to_owned(), secret: None }
    }

    /// A pool in a folder, that processes share.
    pub fn folder(folder: &Path) -> Self {
        std::fs::create_dir_all(folder.join("pool")).unwrap();
        Self { store: None, folder: folder.to_owned(), secret: None }
    }

    /// With a pool that is encrypted if there is a secret.
    pub fn sealed(mut self, secret: Option<Secret>) -> Self {
        self.secret = secret;
        self
    }

    /// A copy of a pool in memory.
    pub fn fork(&self) -> Self {
        Self { store: Some(Arc::new(self.store().fork())), ..self.clone() }
    }

    pub fn store(&self) -> &InMemory {
        self.store.as_ref().expect("a pool in memory")
    }

    /// As when the node is lost. The folder's identity stays: a node without it takes its volumes
    /// back only when its own lease has ended, which is tested elsewhere.
    pub fn lose_journals(&self) {
        let entries = std::fs::read_dir(self.journals())
            .map(|found| found.flatten().map(|entry| entry.path()).collect::<Vec<_>>());
        for path in entries
            .unwrap_or_default()
            .into_iter()
            .filter(|path| path.file_name().is_none_or(|name| name != "directory-id"))
        {
            let _ = if path.is_dir() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
        }
    }

    pub fn journals(&self) -> PathBuf {
        self.folder.join("journals")
    }

    pub fn bucket(&self) -> Bucket {
        match &self.store {
            Some(store) => Bucket::on(store.clone(), Default::default()),
            None => {
                let url = format!("file://{}", self.folder.join("pool").display()).parse().unwrap();
                Bucket::open(&url, &Credentials::none(), Folder::MustExist, Limits::default())
                    .unwrap()
            }
        }
    }

    pub async fn create(&self) {
        Catalog::create(self.bucket(), self.secret.as_ref()).await.unwrap();
    }
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
    catalog: Catalog,
    volumes: Volumes,
    controller: Controller,
    script: Script,
    volume: Option<VolumeGuard>,
    until: Duration,
}

type Done<T> = Result<T, String>;

/// Errors that a caller repeats; any other is a defect.
fn repeatable(what: &dyn std::fmt::Debug, error: &(impl Classify + std::fmt::Display)) -> String {
    let class = error.class();
    let thread = std::thread::current();
    let of = thread.name().unwrap_or_default();
    assert!(
        matches!(class, Class::Unavailable | Class::InProgress),
        "{of}: {what:?}: {error} ({class:?})"
    );
    error.to_string()
}

impl Process {
    pub async fn start(home: &Home, failpoints: impl FnOnce(&Failpoints), script: Script) -> Self {
        let catalog =
            Catalog::open(home.bucket(), home.secret.as_ref()).await.expect("the pool opens");
        failpoints(catalog.bucket().failpoints());
        let volumes = Volumes::new(VolumeSettings {
            journal_dir: Some(home.journals()),
            cache: DbCache::new(8 << 20),
            chunk_cache: ChunkCache::memory(8 << 20),
            flush_interval: Duration::from_millis(100),
            volumes_max: 8,
            ..settings("node")
        });
        let controller = controller(&catalog, &volumes);
        Self { catalog, volumes, controller, script, volume: None, until: UNTIL_LIMIT }
    }

    /// Waits for the background for as long as it takes.
    pub fn patient(mut self) -> Self {
        self.until = UNTIL_LIMIT_PATIENT;
        self
    }

    pub fn failpoints(&self) -> &Failpoints {
        self.catalog.bucket().failpoints()
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
        let listed =
            self.controller.volumes().await.map_err(|error| (error.class(), error.to_string()))?;
        let handle = listed.first().expect("there is a volume").handle;
        let volume = self
            .volumes
            .open(&self.catalog, handle.dataset)
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
            match self.volumes.open(&self.catalog, handle.dataset).await {
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
        let made = self.controller.create_volume(None, new).await;
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
                self.controller.expand_volume(handle, *bytes, None).await.map(drop).map_err(failed)
            }
            Op::Inodes(quota) => {
                let handle = self.handle_of(VOLUME).await?.expect("it is there");
                let changes =
                    PropertyChanges { inodes: Some(Some(*quota)), ..PropertyChanges::default() };
                self.controller.set_properties(handle, changes).await.map(drop).map_err(failed)
            }
            Op::Policy(policy) => self.policy(*policy).await,
            Op::Snapshot(name) => {
                let handle = self.handle_of(VOLUME).await?.expect("it is there");
                self.controller
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
                Some(handle) => self.controller.delete_volume(handle).await.map_err(failed),
                None => Ok(()),
            },
            Op::DeleteSnapshot(name) => match self.snapshot(name).await? {
                Some(handle) => self.controller.delete_snapshot(handle).await.map_err(failed),
                None => Ok(()),
            },
            Op::Collect => {
                // A leftover as of the compactor of a deleted database.
                let stray = format!("vol/{}/compacted/stray.sst", Incarnation::random());
                self.catalog
                    .bucket()
                    .put(&stray, Bytes::from_static(b"stray"))
                    .await
                    .expect("a put");
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
        self.volumes.close(handle.dataset).await.map_err(|error| repeatable(&name, &error))?;
        self.check_rows(handle).await
    }

    async fn handle_of(&self, name: &str) -> Done<Option<VolumeHandle>> {
        let listed = self.controller.volumes().await.map_err(|error| repeatable(&name, &error))?;
        Ok(listed
            .into_iter()
            .find(|volume| volume.dataset.name.to_string() == name)
            .map(|volume| volume.handle))
    }

    async fn policy(&self, policy: Policy) -> Done<()> {
        let handle = self.handle_of(VOLUME).await?.expect("it is there");
        let read = self.catalog.dataset_by_id(handle.dataset).await;
        let read = read.map_err(|error| repeatable(&"policy", &error))?;
        let dataset = read.expect("it is there").record;
        let pool = self.controller.pools().get(None).expect("the only pool");
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
                self.controller.set_policy(pool, &dataset, policy, now).await.map(drop)
            }
            Policy::Deleted => match self.controller.delete_policy(pool, &dataset, now).await {
                // By the call that failed after it.
                Err(error) if error.class() == Class::NotFound => Ok(()),
                deleted => deleted,
            },
        };
        done.map_err(|error| repeatable(&"policy", &error))
    }

    async fn snapshot(&self, name: &str) -> Done<Option<SnapshotHandle>> {
        let listed =
            self.controller.snapshots(None).await.map_err(|error| repeatable(&name, &error))?;
        Ok(listed.into_iter().find(|s| s.snapshot.name.to_string() == name).map(|s| s.handle))
    }

    async fn collect(&self) -> Done<()> {
        let pool = self.controller.pools().get(None).expect("the only pool");
        self.controller
            .collector(pool)
            .collect()
            .await
            .map(drop)
            .map_err(|error| repeatable(&"collect", &error))
    }

    async fn close(&mut self) -> Done<()> {
        if let Some(volume) = self.volume.take() {
            let closed = self.volumes.close(volume.dataset.id()).await;
            if closed.is_err() && self.volumes.get(volume.dataset.id()).is_some() {
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
            self.controller
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

    async fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for prefix in ["packs/", "vol/"] {
            left.extend(
                self.catalog
                    .bucket()
                    .list(prefix)
                    .await
                    .expect("a listing")
                    .into_iter()
                    .map(|object| object.key),
            );
        }
        left
    }

    async fn packs(&self) -> BTreeSet<PackId> {
        let listed = self.catalog.bucket().list("packs/").await.expect("a listing");
        listed
            .iter()
            .filter_map(|object| object.key.strip_prefix("packs/")?.split_once('/')?.1.parse().ok())
            .collect()
    }

    async fn place(&self, handle: VolumeHandle) -> Done<Option<DbPlace>> {
        let found = self
            .catalog
            .dataset_by_id(handle.dataset)
            .await
            .map_err(|error| repeatable(&"reading", &error))?;
        let Some(dataset) =
            found.map(|at| at.record).filter(|dataset| dataset.state == State::Ready)
        else {
            return Ok(None);
        };
        let place =
            place(&self.catalog, dataset.family, dataset.incarnation, &DbCache::new(4 << 20));
        let exists = db::exists(&place).await.map_err(|error| repeatable(&"looking", &error))?;
        Ok(exists.then_some(place))
    }

    /// The newest durable rows hold together, and every pack that they refer to is stored.
    async fn check_rows(&self, handle: VolumeHandle) -> Done<()> {
        let Some(place) = self.place(handle).await? else { return Ok(()) };
        let reader =
            Reader::newest(&place).await.map_err(|error| repeatable(&"reading", &error))?;
        // A volume that died while it was opened for the first time has no root yet.
        if reader.get(&key::inode(InodeNo::ROOT)).await.expect("a row").is_some() {
            let report = check(&reader).await.expect("readable rows");
            assert!(report.is_clean(), "{:#?}", report.findings);
        }
        reader.close().await.expect("closes");
        let (referred, stored) = (self.referred(handle).await?, self.packs().await);
        assert!(
            referred.is_subset(&stored),
            "packs are missing: {:?}",
            referred.difference(&stored).collect::<Vec<_>>()
        );
        Ok(())
    }

    /// Packs that a dataset's newest rows refer to.
    async fn referred(&self, handle: VolumeHandle) -> Done<BTreeSet<PackId>> {
        let Some(place) = self.place(handle).await? else { return Ok(BTreeSet::new()) };
        let reader =
            Reader::newest(&place).await.map_err(|error| repeatable(&"reading", &error))?;
        let rows = reader
            .scan(Bytes::from_static(b"U"), Bytes::from_static(b"V"), 10_000)
            .await
            .expect("rows");
        reader.close().await.expect("closes");
        let refers = |(key, row): &(Bytes, Bytes)| match Key::parse(key) {
            Some(Key::Usage(pack)) => (Usage::decode(row).expect("a row").refs > 0).then_some(pack),
            other => panic!("{other:?} among the usages"),
        };
        Ok(rows.iter().filter_map(refers).collect())
    }
}

fn entry(text: &str) -> EntryName {
    EntryName::try_from(text.as_bytes()).unwrap()
}

/// The directory and the name in it.
async fn parent(volume: &Volume, path: &str) -> Result<(FileRef, EntryName), FsError> {
    match path.split_once('/') {
        None => Ok((volume.fs.root(), entry(path))),
        Some((dir, name)) => {
            let dir =
                volume.fs.lookup(&Caller::root(), volume.fs.root(), dir.as_bytes()).await?.0.file;
            Ok((dir, entry(name)))
        }
    }
}

async fn file(volume: &Volume, path: &str) -> Result<FileRef, FsError> {
    let (dir, name) = parent(volume, path).await?;
    Ok(volume.fs.lookup(&Caller::root(), dir, name.as_bytes()).await?.0.file)
}

const PLAIN: SetAttr = SetAttr {
    mode: Some(0o644),
    uid: None,
    gid: None,
    size: None,
    atime: SetTime::Keep,
    mtime: SetTime::Keep,
};

/// A call on files, as a client sends it: with the same transaction id when it is repeated.
async fn call(volume: &Volume, at: usize, op: &Op) -> Done<()> {
    let call = CallId { client: 7, xid: at as u32, checksum: at as u64 };
    let caller = Caller { call: Some(call), ..Caller::root() };
    let fs = &volume.fs;
    let done = async {
        match op {
            Op::Create(path) => {
                let (dir, name) = parent(volume, path).await?;
                fs.create(&caller, dir, &name, CreateHow::Guarded(PLAIN)).await.map(drop)
            }
            Op::Mkdir(path) => {
                let (dir, name) = parent(volume, path).await?;
                fs.mkdir(&caller, dir, &name, SetAttr { mode: Some(0o755), ..PLAIN })
                    .await
                    .map(drop)
            }
            Op::Symlink(path, target) => {
                let (dir, name) = parent(volume, path).await?;
                let what = Special::Symlink(Bytes::from_static(target.as_bytes()));
                fs.make(&caller, dir, &name, what, SetAttr::default()).await.map(drop)
            }
            Op::Write { path, at, len, seed } | Op::Loose { path, at, len, seed } => {
                let file = file(volume, path).await?;
                fs.write(&caller, file, *at as u64, bytes(*seed, *len).into(), Stability::Unstable)
                    .await?;
                match op {
                    Op::Write { .. } => fs.commit(&caller, file, 0, 0).await.map(drop),
                    _ => Ok(()),
                }
            }
            Op::Small { folder, files, len } => {
                for n in 0..*files {
                    let (dir, name) =
                        parent(volume, &format!("{folder}/{}", small_name(n))).await?;
                    let made = fs
                        .create(&Caller::root(), dir, &name, CreateHow::Unchecked(PLAIN))
                        .await?
                        .attr
                        .file;
                    fs.write(&caller, made, 0, bytes(n as u64, *len).into(), Stability::FileSync)
                        .await?;
                }
                Ok(())
            }
            Op::Truncate(path, size) => {
                let set = SetAttr { size: Some(*size as u64), ..SetAttr::default() };
                fs.setattr(&caller, file(volume, path).await?, set, None).await.map(drop)
            }
            Op::Mode(path, mode) => {
                let set = SetAttr { mode: Some(*mode), ..SetAttr::default() };
                fs.setattr(&caller, file(volume, path).await?, set, None).await.map(drop)
            }
            Op::Rename(from, to) => {
                let ((from, a), (to, b)) = (parent(volume, from).await?, parent(volume, to).await?);
                fs.rename(&caller, (from, &a), (to, &b)).await.map(drop)
            }
            Op::Link(from, to) => {
                let (dir, name) = parent(volume, to).await?;
                fs.link(&caller, file(volume, from).await?, dir, &name).await.map(drop)
            }
            Op::Remove(path) => {
                let (dir, name) = parent(volume, path).await?;
                fs.remove(&caller, dir, &name).await.map(drop)
            }
            Op::Rmdir(path) => {
                let (dir, name) = parent(volume, path).await?;
                fs.rmdir(&caller, dir, &name).await.map(drop)
            }
            other => unreachable!("{other:?} is no call on files"),
        }
    };
    done.await.map_err(|error| repeatable(&op, &error))
}

/// Everything that is there.
async fn walk(volume: &Volume) -> Result<Tree, FsError> {
    let mut tree = Tree::new();
    let mut todo = vec![(volume.fs.root(), String::new())];
    while let Some((dir, path)) = todo.pop() {
        let limit = ListLimit { entries: 1000, bytes: 1 << 20, entry_bytes: 32, with_attr: true };
        let listing = volume.fs.readdir(&Caller::root(), dir, DirCookie(0), limit).await?;
        assert!(listing.eof, "the directories are small");
        for found in listing.entries.iter().filter(|e| !matches!(&e.name[..], b"." | b"..")) {
            let path = format!("{path}{}", String::from_utf8_lossy(&found.name));
            let attr = found.attr.expect("every name has an object");
            let object = match attr.kind {
                FileKind::Directory => {
                    todo.push((attr.file, format!("{path}/")));
                    Object::Dir { mode: attr.mode }
                }
                FileKind::Symlink => {
                    let target = volume.fs.readlink(&Caller::root(), attr.file).await?.0;
                    Object::Link(String::from_utf8_lossy(&target).into_owned())
                }
                _ => Object::File {
                    mode: attr.mode,
                    data: content(volume, attr).await?,
                    loose: None,
                },
            };
            tree.insert(path, object);
        }
    }
    Ok(tree)
}

async fn content(volume: &Volume, attr: Attr) -> Result<Vec<u8>, FsError> {
    let mut data = Vec::new();
    while (data.len() as u64) < attr.size {
        let read = volume.fs.read(&Caller::root(), attr.file, data.len() as u64, 1 << 20).await?;
        let before = data.len();
        read.data.iter().for_each(|part| data.extend_from_slice(part));
        assert!(data.len() > before, "a read within the file brings nothing");
    }
    Ok(data)
}
