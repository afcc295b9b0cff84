//! `demo`: a volume's lifecycle, through the real CSI sockets, with every byte and attribute
//! compared.
//!
//! Through the kernel's NFS client where this process is root and the kernel has one, else through
//! the user-space client; everything else is the same. The exit status is 0 only if every step
//! passed.

mod attributes;
mod csi;
mod files;
mod kernel;
mod model;
mod play;
mod user;

use super::args::{DemoArgs, PoolArgs};
use super::copy_out::{Effect, How, Overwrite, Unwatched, copy_out};
use super::exit::Wrong;
use super::files::OpenFiles;
use super::report::{Progress, table};
use super::target::Opened;
use crate::app::{self, ServeOptions};
use crate::control::browse::Root;
use crate::mount::{FakeMounter, KernelMounter, MountError, Mounter};
use crate::nfs::Peers;
use crate::nfs::client::{Client, Credentials};
use crate::types::ByteSize;
use crate::types::{Class, Timestamp};
use anyhow::{Context, ensure};
use csi::Csi;
use files::Files;
use kernel::KernelFiles;
use model::{Tree, What};
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use user::UserFiles;

/// The size of both volumes.
const SIZE: i64 = 4 << 30;
const SEED: u64 = 20_261_121;
/// Time limit for the services to start.
const START: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct Step {
    step: String,
    seconds: f64,
    result: String,
}

#[derive(Serialize)]
struct Report {
    pool: String,
    /// `kernel` or `user space`.
    client: &'static str,
    steps: Vec<Step>,
    passed: bool,
}

pub fn run(args: DemoArgs) -> anyhow::Result<()> {
    app::start_logging(&Default::default(), Some("error"))?;
    app::run(async move {
        let room = Room::new()?;
        let url = match &args.pool {
            Some(url) => url.clone(),
            None => format!("file://{}", room.path.join("pool").display()),
        };
        let kernel = kernel_has_nfs();
        let client = if kernel { "kernel" } else { "user space" };
        let mut stage = Stage { steps: vec![], progress: Progress::new(), json: args.output.json };
        if !args.output.json {
            let why = if kernel {
                "the kernel's NFS client"
            } else {
                "the user-space NFS client (mounting needs root and a kernel with NFS)"
            };
            println!("pool {url}, through {why}");
        }
        let played = if kernel {
            let mounted = |published: &csi::Published| {
                Ok(Files::Kernel(KernelFiles { root: published.target.clone() }))
            };
            play(&mut stage, &room, &url, KernelMounter, mounted).await
        } else {
            let clients = Clients::default();
            let (mounter, table) = (clients.mounter(), clients.clone());
            play(&mut stage, &room, &url, mounter, move |published| table.files(&published.staging))
                .await
        };
        drop(stage.progress);
        let report = Report { pool: url, client, steps: stage.steps, passed: played.is_ok() };
        args.output.print(&report, |report| {
            let rows: Vec<Vec<String>> = report
                .steps
                .iter()
                .map(|s| vec![s.step.clone(), format!("{:.2} s", s.seconds), s.result.clone()])
                .collect();
            table(&["STEP", "TIME", "RESULT"], &rows)
                + if report.passed { "all checks passed\n" } else { "" }
        })?;
        played
    })
}

/// A temporary folder, removed at the end.
struct Room {
    path: PathBuf,
}

impl Room {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!(
            "zerofs-demo-{}-{:08x}",
            std::process::id(),
            rand::random::<u32>()
        ));
        std::fs::create_dir_all(path.join("pool")).with_context(|| path.display().to_string())?;
        Ok(Self { path })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Never below a mount: after a failure mounts may remain, and the folder with them.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        if mounts.contains(&self.path.display().to_string()) {
            eprintln!(
                "not removed, because something is still mounted there: {}",
                self.path.display()
            );
        } else if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Runs the steps and records their results.
struct Stage {
    steps: Vec<Step>,
    progress: Progress,
    json: bool,
}

impl Stage {
    async fn step<T>(
        &mut self,
        name: &str,
        doing: impl Future<Output = anyhow::Result<(T, String)>>,
    ) -> anyhow::Result<T> {
        self.progress.say(name);
        let started = Instant::now();
        let done = doing.await.with_context(|| format!("demo step {name:?}"));
        let seconds = started.elapsed().as_secs_f64();
        let result = match &done {
            Ok((_, result)) => result.clone(),
            Err(_) => "FAILED".to_owned(),
        };
        if !self.json {
            self.progress.say("");
        }
        self.steps.push(Step { step: name.to_owned(), seconds, result });
        done.map(|(value, _)| value)
    }
}

/// Connections by staging folder, in place of the kernel's client.
#[derive(Clone, Default)]
struct Clients {
    table: Arc<Mutex<HashMap<PathBuf, (Client, crate::nfs::client::FileHandle)>>>,
}

impl Clients {
    fn mounter(&self) -> FakeMounter {
        let table = self.table.clone();
        FakeMounter::with(move |mount, target| {
            let table = table.clone();
            Box::pin(async move {
                let failed = |why: String| MountError::Kernel {
                    path: target.clone(),
                    doing: "mounting in user space",
                    why,
                };
                let client = Client::connect(mount.endpoint, &Credentials::root())
                    .await
                    .map_err(|e| failed(e.to_string()))?;
                let root = client.mount(&mount.export).await.map_err(|e| failed(e.to_string()))?;
                table.lock().insert(target, (client, root));
                Ok(())
            })
        })
    }

    fn files(&self, staging: &Path) -> anyhow::Result<Files> {
        let (client, root) =
            self.table.lock().get(staging).cloned().context("the volume was not mounted")?;
        Ok(Files::User(Box::new(UserFiles::new(client, root))))
    }
}

fn kernel_has_nfs() -> bool {
    let has = || {
        std::fs::read_to_string("/proc/filesystems")
            .is_ok_and(|text| text.lines().any(|line| line.ends_with("\tnfs")))
    };
    if !rustix::process::geteuid().is_root() {
        return false;
    }
    if !has() {
        // Without the module or modprobe the user-space client is used.
        let _ = std::process::Command::new("modprobe")
            .args(["-a", "nfs", "nfsv3"])
            .stderr(std::process::Stdio::null())
            .status();
    }
    has()
}

/// Runs the services while the steps are played.
async fn play<M: Mounter>(
    stage: &mut Stage,
    room: &Room,
    url: &str,
    mounter: M,
    mounted: impl Fn(&csi::Published) -> anyhow::Result<Files>,
) -> anyhow::Result<()> {
    let pool = PoolArgs { pool: Some(url.to_owned()), config: None, passphrase_file: None };
    let socket = room.path.join("csi.sock");
    let options = ServeOptions {
        admin: None,
        state_dir: room.path.join("state"),
        csi_endpoint: Some(socket.clone()),
        nfs_listen: None,
        nfs_peers: Peers::Privileged,
        peers: Peers::Loopback,
        health_listen: None,
    };
    let stop = CancellationToken::new();
    let (ready, mut readied) = mpsc::unbounded_channel();
    let config = pool.config()?;
    let serving = tokio::spawn({
        let stop = stop.clone();
        async move {
            let say = move |line: String| drop(ready.send(line));
            app::serve(config, options, mounter, &say, stop).await
        }
    });
    let started = stage.step("start controller and node", async {
        match tokio::time::timeout(START, readied.recv()).await {
            Ok(Some(line)) => Ok((true, line.replace(&room.path.display().to_string(), "…"))),
            Ok(None) => Ok((false, String::new())),
            Err(_) => anyhow::bail!("not ready within {} s", START.as_secs()),
        }
    });
    if !started.await? {
        return Err(serving
            .await?
            .err()
            .unwrap_or_else(|| anyhow::anyhow!("the services ended before they were ready")));
    }
    let told = tell(stage, room, &pool, &socket, mounted).await;
    stop.cancel();
    let ended = serving.await?;
    told?;
    stage.step("stop: flush and release", async { ended.map(|()| ((), "clean".to_owned())) }).await
}

async fn tell(
    stage: &mut Stage,
    room: &Room,
    pool: &PoolArgs,
    socket: &Path,
    mounted: impl Fn(&csi::Published) -> anyhow::Result<Files>,
) -> anyhow::Result<()> {
    let opened = pool.open().await?;
    if !opened.pool.catalog.datasets().await?.is_empty() {
        return Err(Wrong::new(
            Class::Precondition,
            "the pool holds datasets: give demo an empty pool, because it verifies that nothing is \
             left",
        ));
    }
    let csi = Csi::connect(socket, room.path.clone()).await?;
    let ok = |text: &str| text.to_owned();

    let (source_id, source) = stage
        .step("create, stage, publish", async {
            let id = csi.create("demo", SIZE, None).await?;
            let published = csi.publish(&id, "demo").await?;
            Ok(((id, published), ok("CreateVolume, NodeStageVolume, NodePublishVolume")))
        })
        .await?;
    let files = mounted(&source)?;
    let mut tree = Tree::planted(SEED);
    stage
        .step("write 1,000 files", async {
            play::plant(&files, &tree).await?;
            let links = tree
                .entries
                .values()
                .filter(|e| matches!(e.what, What::Symlink(_) | What::HardLink(_)))
                .count();
            Ok((
                (),
                format!(
                    "{} in {} files, {links} links, {} objects",
                    ByteSize(tree.bytes()),
                    model::FILES,
                    tree.entries.len()
                ),
            ))
        })
        .await?;
    let snapshot_tree = tree.clone();
    let snapshot = stage
        .step("snapshot", async {
            Ok((csi.snapshot(&source_id, "demo-cut").await?, ok("CreateSnapshot")))
        })
        .await?;
    stage
        .step("overwrite, truncate, delete, rename, add", async {
            let changes = model::changes(&tree, SEED + 1);
            let at = Timestamp::from_parts(Timestamp::now().secs(), 123_456_789);
            play::change(&files, &mut tree, &changes, at).await?;
            Ok(((), format!("{} changes", changes.len())))
        })
        .await?;
    let (clone_id, clone) = stage
        .step("clone from the snapshot", async {
            let id = csi.create("demo-clone", SIZE, Some(&snapshot)).await?;
            let published = csi.publish(&id, "demo-clone").await?;
            Ok(((id, published), ok("CreateVolume from snapshot, staged and published")))
        })
        .await?;
    let clone_files = mounted(&clone)?;
    for (what, files, tree) in
        [("compare the volume", &files, &tree), ("compare the clone", &clone_files, &snapshot_tree)]
    {
        stage
            .step(what, async {
                let compared = play::compare(files, tree).await?;
                Ok((
                    (),
                    format!(
                        "{} objects, {}: identical",
                        compared.objects,
                        ByteSize(compared.bytes)
                    ),
                ))
            })
            .await?;
    }
    stage
        .step("write to the clone only", async {
            clone_files.create("only-here").await?;
            clone_files.write("only-here", 0, bytes::Bytes::from_static(b"clone")).await?;
            clone_files.fsync("only-here").await?;
            ensure!(
                !files.list("").await?.contains(&"only-here".to_owned()),
                "the source shows a file written to the clone"
            );
            Ok(((), ok("the source does not see it")))
        })
        .await?;
    stage
        .step("restore one file from the snapshot", restore_one(&opened, room, &snapshot_tree))
        .await?;
    drop((files, clone_files));
    stage
        .step("unpublish, delete source, snapshot, clone", async {
            csi.unpublish(&source).await?;
            csi.delete(&source_id).await?;
            csi.delete_snapshot(&snapshot).await?;
            csi.unpublish(&clone).await?;
            csi.delete(&clone_id).await?;
            Ok(((), ok("in this order: the snapshot outlives its volume, the clone outlives both")))
        })
        .await?;
    stage.step("collect", Box::pin(collect(&opened))).await
}

async fn restore_one(opened: &Opened, room: &Room, tree: &Tree) -> anyhow::Result<((), String)> {
    let largest = tree.files().into_iter().max_by_key(|path| match &tree.entries[path].what {
        What::File { size, .. } => *size,
        _ => 0,
    });
    let path = largest.context("no file")?;
    let snapshot = opened.browser.snapshot("demo", "demo-cut").await?;
    let target = room.path.join("restored");
    let open = OpenFiles::store(opened, &Root::Snapshot(snapshot)).await?;
    let restored = copy_out(
        open.files(),
        path.as_bytes(),
        &target,
        How { overwrite: Overwrite::Refuse, effect: Effect::Replace },
        &Unwatched,
        &CancellationToken::new(),
    )
    .await;
    open.close().await;
    let restored = restored?;
    let entry = &tree.entries[&path];
    let What::File { size, pieces } = &entry.what else { anyhow::bail!("/{path} is no file") };
    let kept = KernelFiles { root: room.path.clone() };
    let mut at = 0;
    while at < *size {
        let expected = model::content(*size, pieces, at, 1 << 20);
        ensure!(
            kept.read("restored", at, expected.len()).await? == expected,
            "the restored file differs near byte {at}"
        );
        at += expected.len() as u64;
    }
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::symlink_metadata(&target)?) & 0o777;
    ensure!(
        mode == entry.mode & 0o777,
        "the restored file has mode {mode:o}, not {:o}",
        entry.mode
    );
    Ok(((), format!("/{path}, {}: identical", ByteSize(restored.bytes))))
}

async fn collect(opened: &Opened) -> anyhow::Result<((), String)> {
    let done = opened.controller.collector(&opened.pool).collect().await?;
    let bucket = opened.pool.catalog.bucket();
    let (packs, volumes) = (bucket.list("packs/").await?.len(), bucket.list("vol/").await?.len());
    ensure!(
        packs == 0 && volumes == 0,
        "left in the bucket: {packs} objects in packs/, {volumes} in vol/; retained: {:?}",
        done.retained
    );
    ensure!(opened.pool.catalog.datasets().await?.is_empty(), "dataset records are left");
    Ok((
        (),
        format!(
            "{} packs, {} collected; packs/ and vol/ hold 0 objects",
            done.packs,
            ByteSize(done.pack_bytes)
        ),
    ))
}
