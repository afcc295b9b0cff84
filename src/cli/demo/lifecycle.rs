//! The lifecycle of a volume: every step through the CSI sockets, every byte compared.

use super::csi::{Csi, Published};
use super::files::MountedFiles;
use super::kernel::KernelFiles;
use super::model::{self, ModelTree, What};
use super::steps::Steps;
use super::work_dir::WorkDir;
use super::workload;
use crate::cli::copy_out::{Effect, How, Overwrite, Unwatched, copy_out};
use crate::cli::exit::Wrong;
use crate::cli::files::OpenFiles;
use crate::cli::target::Opened;
use crate::control::browse::Root;
use crate::types::{ByteSize, Class, Timestamp};
use anyhow::{Context, ensure};
use tokio_util::sync::CancellationToken;

/// The size of both volumes.
const SIZE: i64 = 4 << 30;
const SEED: u64 = 20_261_121;
const CLONE_FILE: &str = "only-here";

/// A volume that is mounted.
struct MountedVolume {
    id: String,
    published: Published,
    files: MountedFiles,
    /// The tree that it should hold.
    tree: ModelTree,
}

/// Runs the steps between the start and the stop of the services.
pub async fn run(
    steps: &mut Steps,
    work_dir: &WorkDir,
    opened: &Opened,
    csi: Csi,
    mounted: impl Fn(&Published) -> anyhow::Result<MountedFiles>,
) -> anyhow::Result<()> {
    if !opened.pool.catalog.datasets().await?.is_empty() {
        return Err(Wrong::new(
            Class::Precondition,
            "the pool holds datasets: give demo an empty pool, because it verifies that nothing is \
             left",
        ));
    }
    let mut source = create(steps, &csi, &mounted).await?;
    let snapshot = steps
        .run("snapshot", async {
            Ok((csi.snapshot(&source.id, "demo-cut").await?, "CreateSnapshot".to_owned()))
        })
        .await?;
    let snapshot_tree = source.tree.clone();
    change(steps, &mut source).await?;
    let clone = clone(steps, &csi, &snapshot, snapshot_tree, &mounted).await?;
    compare(steps, "compare the volume", &source).await?;
    compare(steps, "compare the clone", &clone).await?;
    write_to_clone(steps, &source, &clone).await?;
    steps
        .run("restore one file from the snapshot", restore_one(opened, work_dir, &clone.tree))
        .await?;
    delete(steps, &csi, source, &snapshot, clone).await?;
    steps.run("collect", Box::pin(collect(opened))).await
}

async fn create(
    steps: &mut Steps,
    csi: &Csi,
    mounted: impl Fn(&Published) -> anyhow::Result<MountedFiles>,
) -> anyhow::Result<MountedVolume> {
    let (id, published) = steps
        .run("create, stage, publish", async {
            let id = csi.create("demo", SIZE, None).await?;
            let published = csi.publish(&id, "demo").await?;
            let calls = "CreateVolume, NodeStageVolume, NodePublishVolume";
            Ok(((id, published), calls.to_owned()))
        })
        .await?;
    let (files, tree) = (mounted(&published)?, ModelTree::generate(SEED));
    let writing = async {
        workload::create(&files, &tree).await?;
        let is_link = |what: &What| matches!(what, What::Symlink(_) | What::HardLink(_));
        let links = tree.entries.values().filter(|entry| is_link(&entry.what)).count();
        let (bytes, objects) = (ByteSize(tree.bytes()), tree.entries.len());
        Ok(((), format!("{bytes} in {} files, {links} links, {objects} objects", model::FILES)))
    };
    steps.run("write 1,000 files", writing).await?;
    Ok(MountedVolume { id, published, files, tree })
}

async fn change(steps: &mut Steps, volume: &mut MountedVolume) -> anyhow::Result<()> {
    let changing = async {
        let changes = model::changes(&volume.tree, SEED + 1);
        let at = Timestamp::from_parts(Timestamp::now().secs(), 123_456_789);
        workload::apply(&volume.files, &mut volume.tree, &changes, at).await?;
        Ok(((), format!("{} changes", changes.len())))
    };
    steps.run("overwrite, truncate, delete, rename, add", changing).await
}

async fn clone(
    steps: &mut Steps,
    csi: &Csi,
    snapshot: &str,
    tree: ModelTree,
    mounted: impl Fn(&Published) -> anyhow::Result<MountedFiles>,
) -> anyhow::Result<MountedVolume> {
    let (id, published) = steps
        .run("clone from the snapshot", async {
            let id = csi.create("demo-clone", SIZE, Some(snapshot)).await?;
            let published = csi.publish(&id, "demo-clone").await?;
            let calls = "CreateVolume from snapshot, staged and published";
            Ok(((id, published), calls.to_owned()))
        })
        .await?;
    let files = mounted(&published)?;
    Ok(MountedVolume { id, published, files, tree })
}

async fn compare(steps: &mut Steps, name: &str, volume: &MountedVolume) -> anyhow::Result<()> {
    let comparing = async {
        let compared = workload::compare(&volume.files, &volume.tree).await?;
        let bytes = ByteSize(compared.bytes);
        Ok(((), format!("{} objects, {bytes}: identical", compared.objects)))
    };
    steps.run(name, comparing).await
}

async fn write_to_clone(
    steps: &mut Steps,
    source: &MountedVolume,
    clone: &MountedVolume,
) -> anyhow::Result<()> {
    let writing = async {
        clone.files.create(CLONE_FILE).await?;
        clone.files.write(CLONE_FILE, 0, bytes::Bytes::from_static(b"clone")).await?;
        clone.files.fsync(CLONE_FILE).await?;
        ensure!(
            !source.files.list("").await?.contains(&CLONE_FILE.to_owned()),
            "the source shows a file written to the clone"
        );
        Ok(((), "the source does not see it".to_owned()))
    };
    steps.run("write to the clone only", writing).await
}

async fn delete(
    steps: &mut Steps,
    csi: &Csi,
    source: MountedVolume,
    snapshot: &str,
    clone: MountedVolume,
) -> anyhow::Result<()> {
    drop((source.files, clone.files));
    let deleting = async {
        csi.unpublish(&source.published).await?;
        csi.delete(&source.id).await?;
        csi.delete_snapshot(snapshot).await?;
        csi.unpublish(&clone.published).await?;
        csi.delete(&clone.id).await?;
        let order = "in this order: the snapshot outlives its volume, the clone outlives both";
        Ok(((), order.to_owned()))
    };
    steps.run("unpublish, delete source, snapshot, clone", deleting).await
}

async fn restore_one(
    opened: &Opened,
    work_dir: &WorkDir,
    tree: &ModelTree,
) -> anyhow::Result<((), String)> {
    let largest = tree.files().into_iter().max_by_key(|path| match &tree.entries[path].what {
        What::File { size, .. } => *size,
        _ => 0,
    });
    let path = largest.context("no file")?;
    let snapshot = opened.browser.snapshot("demo", "demo-cut").await?;
    let target = work_dir.path().join("restored");
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
    let local = KernelFiles { root: work_dir.path().to_owned() };
    let mut at = 0;
    while at < *size {
        let expected = model::content(*size, pieces, at, 1 << 20);
        ensure!(
            local.read("restored", at, expected.len()).await? == expected,
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
