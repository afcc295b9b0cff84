//! Restores in place: by reference, through whoever has the volume, and whatever fails.

use super::snapdir::{child, mkdir, name, read, root, write};
use super::{World, data, run};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use zerofs_csi::catalog::{Catalog, Dataset, Owner};
use zerofs_csi::control::{ControlError, Replaced, RestoreInPlace};
use zerofs_csi::fs::Restored;
use zerofs_csi::fs::api::*;
use zerofs_csi::fs::check::check;
use zerofs_csi::fs::db::{DbCache, Reader};
use zerofs_csi::types::{
    Class, Classify, DatasetId, Incarnation, SessionId, SnapshotHandle, Timestamp, VolumeHandle,
};
use zerofs_csi::volume::{ActiveClaim, ExportedFs, collect_released, forget_restore, place};

/// Kind, mode, owner, mtime, links, content.
type Object = (FileKind, u32, u32, Timestamp, u32, Vec<u8>);

async fn tree(fs: &ExportedFs, top: FileRef) -> BTreeMap<String, Object> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![(String::new(), top)];
    let limit = ListLimit { entries: 5000, bytes: 1 << 20, entry_bytes: 32, with_attr: false };
    while let Some((path, dir)) = waiting.pop() {
        for entry in fs.readdir(&root(), dir, DirCookie(0), limit).await.unwrap().entries {
            if entry.name == "." || entry.name == ".." {
                continue;
            }
            let attr = child(fs, dir, std::str::from_utf8(&entry.name).unwrap()).await.unwrap();
            let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
            let content = match attr.kind {
                FileKind::Regular => read(fs, attr.file).await,
                FileKind::Symlink => fs.readlink(&root(), attr.file).await.unwrap().0.to_vec(),
                _ => Vec::new(),
            };
            if attr.kind == FileKind::Directory {
                waiting.push((path.clone(), attr.file));
            }
            found.insert(path, (attr.kind, attr.mode, attr.uid, attr.mtime, attr.nlink, content));
        }
    }
    found
}

fn wanted(snapshot: SnapshotHandle, from: &str, to: &str, overwrite: bool) -> RestoreInPlace {
    RestoreInPlace {
        call: Incarnation::random(),
        snapshot: snapshot.snapshot,
        from: from.into(),
        to: to.into(),
        overwrite,
    }
}

async fn restore(
    world: &World,
    volume: VolumeHandle,
    wanted: &RestoreInPlace,
) -> Result<Restored, ControlError> {
    Box::pin(world.controller.restore_in_place(volume, wanted, &|_| ())).await
}

/// A tree with what there is: large and small files, holes, links, modes, owners, times.
async fn fill(fs: &ExportedFs) {
    let top = fs.root();
    let dir = fs
        .mkdir(&root(), top, &name("dir"), SetAttr { mode: Some(0o2750), ..SetAttr::default() })
        .await
        .unwrap()
        .attr
        .file;
    let inner = mkdir(fs, dir, "inner").await;
    for (n, len) in [0, 3_000, 70_000, 400_000].into_iter().enumerate() {
        write(fs, inner, &format!("file {n}"), &data(n as u64, len)).await;
    }
    // More records than one batch holds.
    let large = write(fs, dir, "large", b"").await;
    for at in 0..40u64 {
        let part = Bytes::from(data(at + 50, 1 << 20));
        fs.write(&root(), large, at << 20, part, Stability::Unstable).await.unwrap();
    }
    fs.write(&root(), large, 200 << 20, Bytes::from_static(b"behind a hole"), Stability::Unstable)
        .await
        .unwrap();
    fs.commit(&root(), large, 0, 0).await.unwrap();
    fs.setattr(&root(), large, SetAttr { size: Some((36 << 20) + 77), ..SetAttr::default() }, None)
        .await
        .unwrap();
    fs.setattr(&root(), large, SetAttr { size: Some(50 << 20), ..SetAttr::default() }, None)
        .await
        .unwrap();
    fs.link(&root(), large, inner, &name("second name")).await.unwrap();
    fs.make(
        &root(),
        dir,
        &name("link"),
        Special::Symlink("inner/file 2".into()),
        SetAttr::default(),
    )
    .await
    .unwrap();
    fs.make(&root(), dir, &name("fifo"), Special::Fifo, SetAttr::default()).await.unwrap();
    let set = SetAttr {
        uid: Some(5),
        mtime: SetTime::To(Timestamp::from_nanos(1_234_567_890)),
        ..SetAttr::default()
    };
    fs.setattr(&root(), inner, set, None).await.unwrap();
    fs.setattr(
        &root(),
        dir,
        SetAttr { mtime: SetTime::To(Timestamp::from_nanos(99)), ..SetAttr::default() },
        None,
    )
    .await
    .unwrap();
}

async fn is_sound(world: &World, volume: VolumeHandle, when: &str) {
    let record = world.catalog.dataset_by_id(volume.dataset).await.unwrap().unwrap().record;
    let at = place(&world.catalog, record.family, record.incarnation, &DbCache::new(8 << 20));
    let reader = Reader::newest(&at).await.unwrap();
    let report = check(&reader).await.unwrap();
    reader.close().await.unwrap();
    assert!(report.is_clean(), "{when}: {:#?}", report.findings);
    assert_eq!(record.restoring, None, "{when}");
    for at in world.catalog.snapshots(Some(record.incarnation)).await.unwrap() {
        assert_eq!(at.record.dependants, [], "{when}");
    }
}

/// Every pack is unreadable while something is done.
async fn without_packs<T>(world: &World, work: impl Future<Output = T>) -> T {
    let bucket = world.catalog.bucket();
    let mut packs = Vec::new();
    for listed in bucket.list("packs/").await.unwrap() {
        let bytes = bucket.get(&listed.key, 1 << 30).await.unwrap().unwrap();
        bucket.put(&listed.key, Bytes::from_static(b"away")).await.unwrap();
        packs.push((listed.key, bytes));
    }
    assert!(!packs.is_empty());
    let done = work.await;
    let now: Vec<_> =
        bucket.list("packs/").await.unwrap().into_iter().map(|l| (l.key, l.bytes)).collect();
    let before: Vec<_> = packs.iter().map(|(key, _)| (key.clone(), 4)).collect();
    assert_eq!(now, before, "no pack is written");
    for (key, bytes) in packs {
        bucket.put(&key, bytes).await.unwrap();
    }
    done
}

#[test]
fn a_tree_is_put_back_by_reference_through_any_owner() {
    run(async {
        let (world, volume, open) = World::with_open().await;
        fill(&open.exported).await;
        open.fs.sync().await.unwrap();
        let cut = world.snapshot(volume, "cut").await;
        let before = tree(&open.exported, open.exported.root()).await;
        let spoil = async |fs: &ExportedFs| {
            let dir = child(fs, fs.root(), "dir").await.unwrap().file;
            let inner = child(fs, dir, "inner").await.unwrap().file;
            for gone in ["file 1", "file 3", "second name"] {
                fs.remove(&root(), inner, &name(gone)).await.unwrap();
            }
            write(fs, inner, "file 2", b"other").await;
            fs.remove(&root(), dir, &name("large")).await.unwrap();
            fs.remove(&root(), dir, &name("link")).await.unwrap();
            fs.setattr(&root(), dir, SetAttr { mode: Some(0o700), ..SetAttr::default() }, None)
                .await
                .unwrap();
        };
        let same = |now: &BTreeMap<String, Object>, when: &str| {
            for (path, object) in &before {
                let found = now.get(path).unwrap_or_else(|| panic!("{when}: {path} is not there"));
                let differs = (found.0, found.1, found.2, found.3, found.4)
                    != (object.0, object.1, object.2, object.3, object.4);
                assert!(!differs && found.5 == object.5, "{when}: {path}");
            }
        };

        // The volume is open in this process.
        spoil(&open.exported).await;
        let objects =
            without_packs(&world, restore(&world, volume, &wanted(cut, "dir", "dir", true)))
                .await
                .unwrap()
                .objects;
        // All but the empty file and the pipe, which nobody touched.
        assert_eq!(objects, 8);
        same(&tree(&open.exported, open.exported.root()).await, "open here");
        // Beside what is there, under another name.
        without_packs(&world, restore(&world, volume, &wanted(cut, "/dir/inner", "/copy", false)))
            .await
            .unwrap();
        let copy = child(&open.exported, open.exported.root(), "copy").await.unwrap();
        assert_eq!((copy.uid, copy.mtime), (5, Timestamp::from_nanos(1_234_567_890)));

        // The volume is open in another process.
        spoil(&open.exported).await;
        let elsewhere = World::on(world.catalog.clone(), "controller-1");
        let mailbox = world.serve_mailbox(Duration::from_millis(50));
        let again = wanted(cut, "dir", "dir", true);
        assert_eq!(
            without_packs(&world, restore(&elsewhere, volume, &again)).await.unwrap().objects,
            8
        );
        same(&tree(&open.exported, open.exported.root()).await, "open elsewhere");
        let missing =
            restore(&elsewhere, volume, &wanted(cut, "dir/none", "x", false)).await.unwrap_err();
        assert!(
            missing.class() == Class::NotFound && missing.to_string().contains("/dir/none"),
            "{missing}"
        );
        mailbox.stop().await;

        // Nobody has it open.
        spoil(&open.exported).await;
        drop(open);
        world.volumes.close(volume.dataset).await.unwrap();
        without_packs(&world, restore(&elsewhere, volume, &wanted(cut, "/", "/", true)))
            .await
            .unwrap();
        let open = elsewhere.volumes.open(&world.catalog, volume.dataset).await.unwrap();
        same(&tree(&open.exported, open.exported.root()).await, "released");
        drop(open);
        elsewhere.volumes.close(volume.dataset).await.unwrap();
        is_sound(&world, volume, "at the end").await;

        // The restored rows no longer need the snapshot.
        world.controller.delete_snapshot(cut).await.unwrap();
        world.collect().await;
        let open = elsewhere.volumes.open(&world.catalog, volume.dataset).await.unwrap();
        same(&tree(&open.exported, open.exported.root()).await, "without the snapshot");
        drop(open);
        elsewhere.volumes.close(volume.dataset).await.unwrap();
        world.controller.delete_volume(volume).await.unwrap();
        world.collect().await;
        world.assert_empty("all is deleted").await;
    });
}

#[test]
fn what_did_not_change_stays_open() {
    run(async {
        let (world, volume, open) = World::with_open().await;
        let fs = &open.exported;
        let dir = mkdir(fs, fs.root(), "dir").await;
        let (same, linked) =
            (write(fs, dir, "same", b"same").await, write(fs, dir, "linked", b"linked").await);
        let (spoilt, set_back) =
            (write(fs, dir, "spoilt", b"good").await, write(fs, dir, "set back", b"good").await);
        fs.link(&root(), linked, fs.root(), &name("second name")).await.unwrap();
        let mtime = child(fs, dir, "set back").await.unwrap().mtime;
        let cut = world.snapshot(volume, "cut").await;
        let before = tree(fs, fs.root()).await;
        for file in [spoilt, set_back] {
            fs.write(&root(), file, 0, Bytes::from_static(b"evil"), Stability::FileSync)
                .await
                .unwrap();
        }
        fs.setattr(
            &root(),
            set_back,
            SetAttr { mtime: SetTime::To(mtime), ..SetAttr::default() },
            None,
        )
        .await
        .unwrap();
        let restored = restore(&world, volume, &wanted(cut, "/", "/", true)).await.unwrap();
        // The root, the folder, and the two files.
        assert_eq!(restored, Restored { objects: 4, bytes: 8 });
        assert_eq!(tree(fs, fs.root()).await, before);
        for (name, was, stays) in [
            ("same", same, true),
            ("linked", linked, true),
            ("spoilt", spoilt, false),
            ("set back", set_back, false),
        ] {
            assert_eq!(child(fs, dir, name).await.unwrap().file == was, stays, "{name}");
        }
        assert_eq!(
            (read(fs, same).await, read(fs, linked).await),
            (b"same".to_vec(), b"linked".to_vec())
        );
    });
}

#[test]
fn what_is_in_the_way_or_nowhere_is_said() {
    run(async {
        let (world, volume, open) = World::with_open().await;
        let fs = &open.exported;
        write(fs, fs.root(), "file", b"content").await;
        let dir = mkdir(fs, fs.root(), "dir").await;
        write(fs, dir, "in", b"inside").await;
        let cut = world.snapshot(volume, "cut").await;
        write(fs, dir, "new", b"new").await;
        write(fs, fs.root(), "file", b"changed").await;
        let cases = [
            (wanted(cut, "file", "file", false), Class::Exists, "/file"),
            (wanted(cut, "dir", "dir", false), Class::Exists, "/dir"),
            (wanted(cut, "file", "dir", true), Class::Exists, "a folder is in the way"),
            (wanted(cut, "dir", "file", true), Class::Exists, "a file is in the way"),
            (wanted(cut, "file", "/", true), Class::Exists, "root"),
            (wanted(cut, "/", "/", false), Class::Exists, "root"),
            (wanted(cut, "none", "x", false), Class::NotFound, "/none is not in the snapshot"),
            (wanted(cut, "file/below", "x", false), Class::NotFound, "/file/below"),
            (wanted(cut, "file", "none/x", false), Class::NotFound, "the folder /none"),
            (wanted(cut, "file", ".snapshots/x", false), Class::Exists, ".snapshots"),
            (wanted(cut, "../file", "x", false), Class::Invalid, ".."),
            (wanted(cut, "file", "dir/../../x", false), Class::Invalid, ".."),
        ];
        for (wanted, class, why) in cases {
            let refused = restore(&world, volume, &wanted).await.unwrap_err();
            assert!(
                refused.class() == class && refused.to_string().contains(why),
                "{wanted:?}: {refused}"
            );
            assert_eq!(
                read(fs, child(fs, fs.root(), "file").await.unwrap().file).await,
                b"changed"
            );
        }
        // By force: the file is replaced, the folder keeps what else is in it.
        restore(&world, volume, &wanted(cut, "file", "file", true)).await.unwrap();
        restore(&world, volume, &wanted(cut, "dir", "dir", true)).await.unwrap();
        assert_eq!(read(fs, child(fs, fs.root(), "file").await.unwrap().file).await, b"content");
        assert_eq!(read(fs, child(fs, dir, "new").await.unwrap().file).await, b"new");
        let other = world.create("b", None).await.unwrap().handle;
        let refused =
            restore(&world, other, &wanted(cut, "file", "file", false)).await.unwrap_err();
        assert_eq!(refused.class(), Class::Invalid, "{refused}");
        drop(open);
        world.volumes.close(volume.dataset).await.unwrap();
        is_sound(&world, volume, "at the end").await;
    });
}

/// After a failure at any step a retry restores everything, and nothing is retained for ever.
#[test]
fn a_restore_that_fails_anywhere_is_repaired_by_a_retry() {
    run(async {
        let steps = [
            ("control.restore.begin", 0),
            ("control.restore.intent", 0),
            ("control.restore.pinned", 0),
            ("fs.restore.object", 4),
            ("fs.content.copied", 0),
            ("control.restore.durable", 0),
            ("volume.restore.forget", 0),
        ];
        let (world, volume, open) = World::with_open().await;
        fill(&open.exported).await;
        open.fs.sync().await.unwrap();
        let cut = world.snapshot(volume, "cut").await;
        drop(open);
        for (n, (step, after)) in steps.into_iter().enumerate() {
            let to = format!("copy {n}");
            let action = if after > 0 {
                format!("{after}*off->1*return->off")
            } else {
                "1*return->off".to_owned()
            };
            world.open(volume).await;
            world.catalog.bucket().failpoints().set(step, &action).unwrap();
            let failed = restore(&world, volume, &wanted(cut, "dir", &to, true)).await;
            assert!(failed.is_err(), "{step}");
            // As after a crash: the next opening mends what is left.
            world.volumes.close(volume.dataset).await.unwrap();
            drop(world.open(volume).await);
            world.volumes.close(volume.dataset).await.unwrap();
            is_sound(&world, volume, step).await;
            let open = world.open(volume).await;
            restore(&world, volume, &wanted(cut, "dir", &to, true)).await.unwrap();
            let copy = child(&open.exported, open.exported.root(), &to).await.unwrap().file;
            let original = child(&open.exported, open.exported.root(), "dir").await.unwrap().file;
            let (copy, original) =
                (tree(&open.exported, copy).await, tree(&open.exported, original).await);
            assert!(copy == original, "{step}");
            drop(open);
            world.volumes.close(volume.dataset).await.unwrap();
            is_sound(&world, volume, step).await;
        }
        // The snapshot is deleted while a restore from it was cut short: it stays until the rows
        // that may refer to it are settled (R10).
        world
            .catalog
            .bucket()
            .failpoints()
            .set("control.restore.durable", "1*return->off")
            .unwrap();
        let open = world.open(volume).await;
        restore(&world, volume, &wanted(cut, "dir", "last", false)).await.unwrap_err();
        world.controller.delete_snapshot(cut).await.unwrap();
        assert_eq!(world.collect().await.snapshots, Vec::<String>::new());
        drop(open);
        world.volumes.close(volume.dataset).await.unwrap();
        drop(world.open(volume).await);
        world.volumes.close(volume.dataset).await.unwrap();
        assert_eq!(world.collect().await.snapshots.len(), 1);
        is_sound(&world, volume, "without the snapshot").await;
        world.controller.delete_volume(volume).await.unwrap();
        world.collect().await;
        world.assert_empty("all is deleted").await;
    });
}

/// Saved by renaming, as editors do, while the restore is at it.
#[test]
fn what_takes_the_name_during_a_restore_is_kept_as_well() {
    run(async {
        let (world, volume, open) = World::with_open().await;
        let fs = &open.exported;
        write(fs, fs.root(), "file", b"old").await;
        open.fs.sync().await.unwrap();
        let cut = world.snapshot(volume, "cut").await;
        write(fs, fs.root(), "file", b"present").await;
        write(fs, fs.root(), "draft", b"saved meanwhile").await;
        let failpoints = world.catalog.bucket().failpoints();
        failpoints.set("fs.restore.kept", "1*pause->off").unwrap();
        let restoring = tokio::spawn({
            let (controller, wanted) =
                (world.controller.clone(), wanted(cut, "file", "file", true));
            let kept = Replaced::KeptBeside;
            async move { controller.restore_in_place_with(volume, &wanted, kept, &|_| ()).await }
        });
        while !failpoints.passed().contains_key("fs.restore.kept") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let top = fs.root();
        fs.rename(&root(), (top, &name("draft")), (top, &name("file"))).await.unwrap();
        failpoints.set("fs.restore.kept", "off").unwrap();
        restoring.await.unwrap().unwrap();
        for (at, content) in
            [("file", &b"old"[..]), ("file.~1", b"present"), ("file.~2", b"saved meanwhile")]
        {
            let found = child(fs, top, at).await.unwrap().file;
            assert_eq!(read(fs, found).await, content, "{at}");
        }
        drop(open);
        world.volumes.close(volume.dataset).await.unwrap();
        is_sound(&world, volume, "at the end").await;
    });
}

async fn edit(catalog: &Catalog, id: DatasetId, mut change: impl FnMut(&mut Dataset) + Send) {
    let changed = catalog.update_dataset(id, |record| {
        change(record);
        Ok(())
    });
    changed.await.unwrap();
}

/// A session that was the owner, and learns late that it is not, takes the snapshot from no restore
/// of the next owner (R10).
#[test]
fn only_the_claim_in_the_record_ends_a_restore() {
    run(async {
        let (world, volume, open) = World::with_open().await;
        write(&open.exported, open.exported.root(), "file", &data(1, 100_000)).await;
        let cut = world.snapshot(volume, "cut").await;
        let (catalog, failpoints) = (world.catalog.clone(), world.catalog.bucket().failpoints());
        let (id, life, mine) = (volume.dataset, volume.dataset.incarnation, open.claim.clone());
        let record = async || catalog.dataset_by_id(id).await.unwrap().unwrap().record;
        let depends = async || {
            let snapshot = catalog.snapshot_by_id(cut.snapshot).await.unwrap().unwrap();
            snapshot.record.dependants.contains(&life)
        };
        let ours = record().await.owner;
        let another = Owner::new("other", SessionId::from_bytes([9; 16]));
        // The same session may have claimed the dataset again, too (R31).
        for (n, next) in [another, world.volumes.owner()].into_iter().enumerate() {
            edit(&catalog, id, |record| record.owner = ours.clone()).await;
            failpoints.set("control.restore.durable", "1*return->off").unwrap();
            let copy = format!("copy{n}");
            restore(&world, volume, &wanted(cut, "file", &copy, false)).await.unwrap_err();
            // The late call has seen its claim in the record, and stops before it changes anything.
            failpoints.set("volume.restore.forget", "1*pause->off").unwrap();
            let before = failpoints.passed().get("volume.restore.forget").copied();
            let late = tokio::spawn({
                let (catalog, mine) = (catalog.clone(), mine.clone());
                async move { forget_restore(&catalog, id, cut.snapshot, &mine).await }
            });
            while failpoints.passed().get("volume.restore.forget").copied() == before {
                tokio::task::yield_now().await;
            }
            // The next owner ends what was left, and restores from the same snapshot.
            edit(&catalog, id, |record| record.owner = Some(next.clone())).await;
            let its = ActiveClaim::Maintenance(next.claim);
            forget_restore(&catalog, id, cut.snapshot, &its).await.unwrap();
            assert!(!depends().await);
            edit(&catalog, id, |record| record.restoring = Some(cut.snapshot)).await;
            let depend = |record: &mut zerofs_csi::catalog::Snapshot| {
                record.dependants.push(life);
                Ok(())
            };
            catalog.update_snapshot(cut.snapshot, depend).await.unwrap();
            failpoints.set("volume.restore.forget", "off").unwrap();
            late.await.unwrap().unwrap();
            assert!(depends().await, "the next owner's restore keeps the snapshot");
            forget_restore(&catalog, id, cut.snapshot, &mine).await.unwrap();
            assert!(depends().await);
            let refused =
                restore(&world, volume, &wanted(cut, "file", "again", false)).await.unwrap_err();
            assert_eq!(refused.class(), Class::Unavailable, "{refused}");
            let again = child(&open.exported, open.exported.root(), "again").await;
            assert!(depends().await && again.is_err());
        }

        // The owner itself makes good what is left, also for another snapshot.
        edit(&catalog, id, |record| record.owner = ours.clone()).await;
        let other = world.snapshot(volume, "other").await;
        restore(&world, volume, &wanted(other, "file", "again", false)).await.unwrap();
        assert!(!depends().await);
        drop(open);
        world.volumes.close(volume.dataset).await.unwrap();
        is_sound(&world, volume, "at the end").await;
    });
}

/// A volume that is never opened again retains its snapshot only until the next maintenance.
#[test]
fn an_interrupted_restore_is_ended_by_the_next_maintenance() {
    run(async {
        let world = World::new().await;
        let volume = world.create("a", None).await.unwrap().handle;
        world.write(volume, "file", &data(1, 100_000)).await;
        let cut = world.snapshot(volume, "cut").await;
        for (n, care) in ["a collection", "a snapshot"].into_iter().enumerate() {
            world
                .catalog
                .bucket()
                .failpoints()
                .set("control.restore.durable", "1*return->off")
                .unwrap();
            restore(&world, volume, &wanted(cut, "file", &format!("copy {n}"), false))
                .await
                .unwrap_err();
            // Its process is gone before it gives the volume back.
            let dead = SessionId::from_bytes([9; 16]);
            edit(&world.catalog, volume.dataset, |record| {
                assert_eq!(record.restoring, Some(cut.snapshot));
                record.owner = Some(Owner::new("(controller)", dead));
            })
            .await;
            match n {
                0 => collect_released(world.volumes.settings(), &world.catalog, volume.dataset)
                    .await
                    .unwrap(),
                _ => drop(
                    world
                        .controller
                        .create_snapshot(volume, "next".parse().unwrap())
                        .await
                        .unwrap(),
                ),
            }
            is_sound(&world, volume, care).await;
        }
        world.controller.delete_snapshot(cut).await.unwrap();
        assert_eq!(world.collect().await.snapshots.len(), 1);
        let found = world.read(volume).await;
        assert!(
            found.len() == 3 && found.values().all(|bytes| *bytes == data(1, 100_000)),
            "{:?}",
            found.keys()
        );
    });
}

/// While the names of one file take the place of others, each of them is there.
#[test]
fn a_name_that_becomes_a_hard_link_is_never_away() {
    run(async {
        const NAMES: usize = 300;
        let (world, volume, open) = World::with_open().await;
        let fs = &open.exported;
        let dir = mkdir(fs, fs.root(), "dir").await;
        let first = write(fs, dir, "name 0", b"one").await;
        for n in 1..NAMES {
            fs.link(&root(), first, dir, &name(&format!("name {n}"))).await.unwrap();
        }
        let cut = world.snapshot(volume, "cut").await;
        // Some keep an old link, the others become files of their own.
        for n in (0..NAMES).filter(|n| n % 3 != 0) {
            fs.remove(&root(), dir, &name(&format!("name {n}"))).await.unwrap();
            write(fs, dir, &format!("name {n}"), b"another").await;
        }
        let done = CancellationToken::new();
        let looking = tokio::spawn({
            let (open, done) = (open.clone(), done.clone());
            async move {
                let (mut looks, mut away) = (0usize, Vec::new());
                while !done.is_cancelled() {
                    let n = looks % NAMES;
                    looks += 1;
                    if child(&open.exported, dir, &format!("name {n}")).await.is_err() {
                        away.push(n);
                    }
                }
                away
            }
        });
        // Also where all names are the restored file's already.
        for _ in 0..2 {
            let restored = restore(&world, volume, &wanted(cut, "dir", "dir", true)).await.unwrap();
            assert_eq!(restored.objects, NAMES as u64 + 1);
        }
        done.cancel();
        assert_eq!(looking.await.unwrap(), Vec::<usize>::new());
        let now = tree(fs, dir).await;
        assert_eq!(now.len(), NAMES);
        assert!(
            now.values().all(|object| object.4 == NAMES as u32 && object.5 == b"one"),
            "{now:?}"
        );
        drop(open);
        world.volumes.close(volume.dataset).await.unwrap();
        is_sound(&world, volume, "at the end").await;
    });
}

/// A tree of many files: what it costs.
#[test]
fn requests_of_a_restore_are_few() {
    run(async {
        const FILES: usize = 1000;
        let (world, volume, open) = World::with_open().await;
        let fs = &open.exported;
        let dir = mkdir(fs, fs.root(), "dir").await;
        let how = CreateHow::Unchecked(SetAttr { mode: Some(0o640), ..SetAttr::default() });
        for n in 0..FILES {
            let file =
                fs.create(&root(), dir, &name(&format!("file {n}")), how).await.unwrap().attr.file;
            fs.write(&root(), file, 0, Bytes::from(data(n as u64, 6_000)), Stability::Unstable)
                .await
                .unwrap();
        }
        open.fs.sync().await.unwrap();
        let cut = world.snapshot(volume, "cut").await;
        let (before, began) = (world.catalog.bucket().requests(), std::time::Instant::now());
        let restored = restore(&world, volume, &wanted(cut, "dir", "copy", false)).await.unwrap();
        let (after, took) = (world.catalog.bucket().requests(), began.elapsed());
        let (gets, puts) = (after.get - before.get, after.put - before.put);
        println!(
            "{FILES} files of 6,000 bytes in place: {gets} GETs, {puts} PUTs, {took:?} \
             (unoptimised)"
        );
        assert_eq!((restored.objects, restored.bytes), (FILES as u64 + 1, 6_000 * FILES as u64));
        assert!(gets + puts < FILES as u64 / 4, "{gets} GETs, {puts} PUTs");
        drop(open);
        world.volumes.close(volume.dataset).await.unwrap();
    });
}

/// One file's failure keeps no other from being restored.
#[test]
fn what_cannot_be_restored_is_told_and_the_rest_is_restored() {
    run(async {
        let (world, volume, open) = World::with_open().await;
        let fs = &open.exported;
        let dir = mkdir(fs, fs.root(), "dir").await;
        let sub = mkdir(fs, dir, "sub").await;
        for n in 0..30 {
            write(fs, sub, &format!("file {n}"), b"good").await;
        }
        let set = SetAttr {
            mode: Some(0o511),
            mtime: SetTime::To(Timestamp::from_nanos(77)),
            ..SetAttr::default()
        };
        fs.setattr(&root(), sub, set, None).await.unwrap();
        let cut = world.snapshot(volume, "cut").await;
        for n in 0..30 {
            fs.remove(&root(), sub, &name(&format!("file {n}"))).await.unwrap();
            if n < 25 {
                fs.mkdir(&root(), sub, &name(&format!("file {n}")), SetAttr::default())
                    .await
                    .unwrap();
            }
        }
        let refused = restore(&world, volume, &wanted(cut, "/", "/", true)).await.unwrap_err();
        let text = refused.to_string();
        assert_eq!(refused.class(), Class::Exists, "{refused}");
        assert!(
            text.starts_with("restored 8 objects, and not 25:") && text.ends_with("and 5 more"),
            "{text}"
        );
        assert_eq!(text.matches("a folder is in the way of a file").count(), 20, "{text}");
        for n in 25..30 {
            assert_eq!(
                read(fs, child(fs, sub, &format!("file {n}")).await.unwrap().file).await,
                b"good"
            );
        }
        let attr = fs.getattr(sub).await.unwrap();
        assert_eq!(
            (attr.mode & 0o777, attr.mtime),
            (0o511, Timestamp::from_nanos(77)),
            "its folder is as it was"
        );
        // Another process learns the same.
        let elsewhere = World::on(world.catalog.clone(), "controller-1");
        let mailbox = world.serve_mailbox(Duration::from_millis(50));
        let refused = restore(&elsewhere, volume, &wanted(cut, "/", "/", true)).await.unwrap_err();
        assert!(
            refused.class() == Class::Exists && refused.to_string().contains("and not 25:"),
            "{refused}"
        );
        mailbox.stop().await;
        drop(open);
        world.volumes.close(volume.dataset).await.unwrap();
        is_sound(&world, volume, "at the end").await;
    });
}

#[test]
fn a_tree_of_any_depth_is_restored() {
    run(async {
        const DEPTH: usize = 1100;
        let (world, volume, open) = World::with_open().await;
        let fs = &open.exported;
        let mut dir = fs.root();
        for n in 0..DEPTH {
            write(fs, dir, "beside", format!("{n}").as_bytes()).await;
            dir = mkdir(fs, dir, "d").await;
        }
        let cut = world.snapshot(volume, "cut").await;
        let restored = restore(&world, volume, &wanted(cut, "d", "copy", false)).await.unwrap();
        assert_eq!(restored.objects, 2 * DEPTH as u64 - 1);
        let mut dir = child(fs, fs.root(), "copy").await.unwrap().file;
        for n in 1..DEPTH {
            assert_eq!(
                read(fs, child(fs, dir, "beside").await.unwrap().file).await,
                format!("{n}").as_bytes()
            );
            dir = child(fs, dir, "d").await.unwrap().file;
        }
        drop(open);
        world.volumes.close(volume.dataset).await.unwrap();
    });
}

/// Links, pipes and devices may have several names, too.
#[test]
fn an_object_with_several_names_stays_one() {
    run(async {
        let (world, volume, open) = World::with_open().await;
        let fs = &open.exported;
        let dir = mkdir(fs, fs.root(), "dir").await;
        let kinds = [
            ("link", Special::Symlink("to".into())),
            ("fifo", Special::Fifo),
            ("device", Special::CharDevice(1, 3)),
        ];
        for (kind, special) in &kinds {
            let made = fs
                .make(&root(), dir, &name(kind), special.clone(), SetAttr::default())
                .await
                .unwrap()
                .attr
                .file;
            fs.link(&root(), made, dir, &name(&format!("second {kind}"))).await.unwrap();
        }
        let cut = world.snapshot(volume, "cut").await;
        restore(&world, volume, &wanted(cut, "dir", "copy", false)).await.unwrap();
        let copy = child(fs, fs.root(), "copy").await.unwrap().file;
        for (kind, _) in &kinds {
            let (first, second) = (
                child(fs, copy, kind).await.unwrap(),
                child(fs, copy, &format!("second {kind}")).await.unwrap(),
            );
            assert!(first.file == second.file && first.nlink == 2, "{kind}: {first:?} {second:?}");
        }
        drop(open);
        world.volumes.close(volume.dataset).await.unwrap();
        is_sound(&world, volume, "at the end").await;
    });
}

/// A file takes no more room than what it replaces gives back beside it (R19).
#[test]
fn what_is_replaced_makes_room_for_what_comes() {
    run(async {
        const FILE: usize = 40 << 20;
        let world = World::new().await;
        let volume = world.create("a", None).await.unwrap().handle;
        edit(&world.catalog, volume.dataset, |record| record.size = Some(64 << 20)).await;
        let open = world.open(volume).await;
        let fs = &open.exported;
        let store = async |name: &str, seed| {
            let file = write(fs, fs.root(), name, b"").await;
            for at in 0..FILE as u64 >> 20 {
                let part = Bytes::from(super::noise(seed + at, 1 << 20));
                fs.write(&root(), file, at << 20, part, Stability::Unstable).await.unwrap();
            }
            fs.commit(&root(), file, 0, 0).await.unwrap();
            file
        };
        let good = store("file", 0).await;
        let before = read(fs, good).await;
        let cut = world.snapshot(volume, "cut").await;
        store("file", 1000).await;
        let refused =
            restore(&world, volume, &wanted(cut, "file", "copy", false)).await.unwrap_err();
        assert_eq!(refused.class(), Class::Exhausted, "a second one has no room: {refused}");
        restore(&world, volume, &wanted(cut, "file", "file", true)).await.unwrap();
        assert!(read(fs, child(fs, fs.root(), "file").await.unwrap().file).await == before);
        // A file that has another name frees nothing.
        fs.write(
            &root(),
            child(fs, fs.root(), "file").await.unwrap().file,
            0,
            "x".into(),
            Stability::FileSync,
        )
        .await
        .unwrap();
        let file = child(fs, fs.root(), "file").await.unwrap().file;
        fs.link(&root(), file, fs.root(), &name("kept")).await.unwrap();
        let refused =
            restore(&world, volume, &wanted(cut, "file", "file", true)).await.unwrap_err();
        assert_eq!(refused.class(), Class::Exhausted, "{refused}");
        drop(open);
        world.volumes.close(volume.dataset).await.unwrap();
        is_sound(&world, volume, "at the end").await;
    });
}
