//! Restores in place: by reference, through whoever has the volume, and whatever fails.

use super::{World, data, run};
use crate::support::files::{self, child, content, mkdir, name, read, root, top, write, write_at};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;
use zerofs_csi::catalog::{Catalog, Dataset};
use zerofs_csi::control::{ControlError, RestoreInPlace};
use zerofs_csi::fs::Restored;
use zerofs_csi::fs::api::*;
use zerofs_csi::fs::check::check;
use zerofs_csi::fs::db::{DbCache, Reader};
use zerofs_csi::types::{
    Class, Classify, DatasetId, Incarnation, SnapshotHandle, Timestamp, VolumeHandle,
};
use zerofs_csi::volume::{ExportedFs, place};

/// Kind, mode, owner, mtime, links, content.
pub type Object = (FileKind, u32, u32, Timestamp, u32, Vec<u8>);

pub async fn tree(fs: &ExportedFs, top: FileRef) -> BTreeMap<String, Object> {
    let found = files::tree(fs, top).await.unwrap().into_iter();
    let shown = |(path, files::Object { attr, content, .. })| {
        (path, (attr.kind, attr.mode, attr.uid, attr.mtime, attr.nlink, content))
    };
    found.map(shown).collect()
}

pub fn wanted(snapshot: SnapshotHandle, from: &str, to: &str, overwrite: bool) -> RestoreInPlace {
    RestoreInPlace {
        call: Incarnation::random(),
        snapshot: snapshot.snapshot,
        from: from.into(),
        to: to.into(),
        overwrite,
    }
}

pub async fn restore(
    world: &World,
    volume: VolumeHandle,
    wanted: &RestoreInPlace,
) -> Result<Restored, ControlError> {
    Box::pin(world.controller.restore_in_place(volume, wanted, &|_| ())).await
}

/// A tree with what there is: large and small files, holes, links, modes, owners, times.
pub async fn fill(fs: &ExportedFs) {
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
        write_at(fs, large, at << 20, &data(at + 50, 1 << 20)).await;
    }
    write_at(fs, large, 200 << 20, b"behind a hole").await;
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

pub async fn is_sound(world: &World, volume: VolumeHandle, when: &str) {
    let record = world.record(volume).await;
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
    let bucket = world.bucket();
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
            let dir = top::child(fs, "dir").await.unwrap().file;
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
        spoil(&*open.exported).await;
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
        let copy = top::child(&*open.exported, "copy").await.unwrap();
        assert_eq!((copy.uid, copy.mtime), (5, Timestamp::from_nanos(1_234_567_890)));

        // The volume is open in another process.
        spoil(&*open.exported).await;
        let elsewhere = world.beside("controller-1");
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
        spoil(&*open.exported).await;
        world.close(open).await;
        without_packs(&world, restore(&elsewhere, volume, &wanted(cut, "/", "/", true)))
            .await
            .unwrap();
        let open = elsewhere.open(volume).await;
        same(&tree(&open.exported, open.exported.root()).await, "released");
        elsewhere.close(open).await;
        is_sound(&world, volume, "at the end").await;

        // The restored rows no longer need the snapshot.
        world.controller.delete_snapshot(cut).await.unwrap();
        world.collect().await;
        let open = elsewhere.open(volume).await;
        same(&tree(&open.exported, open.exported.root()).await, "without the snapshot");
        elsewhere.close(open).await;
        world.controller.delete_volume(volume).await.unwrap();
        world.collect().await;
        world.assert_empty("all is deleted").await;
    });
}

#[test]
fn what_did_not_change_stays_open() {
    run(async {
        let (world, volume, open) = World::with_open().await;
        let fs = &*open.exported;
        let dir = top::mkdir(fs, "dir").await;
        let (same, linked) =
            (write(fs, dir, "same", b"same").await, write(fs, dir, "linked", b"linked").await);
        let (spoilt, set_back) =
            (write(fs, dir, "spoilt", b"good").await, write(fs, dir, "set back", b"good").await);
        fs.link(&root(), linked, fs.root(), &name("second name")).await.unwrap();
        let mtime = child(fs, dir, "set back").await.unwrap().mtime;
        let cut = world.snapshot(volume, "cut").await;
        let before = tree(fs, fs.root()).await;
        for file in [spoilt, set_back] {
            write_at(fs, file, 0, b"evil").await;
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
        let fs = &*open.exported;
        top::write(fs, "file", b"content").await;
        let dir = top::mkdir(fs, "dir").await;
        write(fs, dir, "in", b"inside").await;
        let cut = world.snapshot(volume, "cut").await;
        write(fs, dir, "new", b"new").await;
        top::write(fs, "file", b"changed").await;
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
            assert_eq!(top::content(fs, "file").await, b"changed");
        }
        // By force: the file is replaced, the folder keeps what else is in it.
        restore(&world, volume, &wanted(cut, "file", "file", true)).await.unwrap();
        restore(&world, volume, &wanted(cut, "dir", "dir", true)).await.unwrap();
        assert_eq!(top::content(fs, "file").await, b"content");
        assert_eq!(content(fs, dir, "new").await, b"new");
        let other = world.volume("b").await;
        let refused =
            restore(&world, other, &wanted(cut, "file", "file", false)).await.unwrap_err();
        assert_eq!(refused.class(), Class::Invalid, "{refused}");
        world.close(open).await;
        is_sound(&world, volume, "at the end").await;
    });
}

pub async fn edit(catalog: &Catalog, id: DatasetId, mut change: impl FnMut(&mut Dataset) + Send) {
    let changed = catalog.update_dataset(id, |record| {
        change(record);
        Ok(())
    });
    changed.await.unwrap();
}

/// A file takes no more room than what it replaces gives back beside it (R19).
#[test]
fn what_is_replaced_makes_room_for_what_comes() {
    run(async {
        const FILE: usize = 40 << 20;
        let world = World::new().await;
        let volume = world.volume("a").await;
        edit(&world.catalog, volume.dataset, |record| record.size = Some(64 << 20)).await;
        let open = world.open(volume).await;
        let fs = &*open.exported;
        let store = async |name: &str, seed| {
            let file = top::write(fs, name, b"").await;
            for at in 0..FILE as u64 >> 20 {
                write_at(fs, file, at << 20, &super::noise(seed + at, 1 << 20)).await;
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
        assert!(top::content(fs, "file").await == before);
        // A file that has another name frees nothing.
        let file = top::child(fs, "file").await.unwrap().file;
        write_at(fs, file, 0, b"x").await;
        fs.link(&root(), file, fs.root(), &name("kept")).await.unwrap();
        let refused =
            restore(&world, volume, &wanted(cut, "file", "file", true)).await.unwrap_err();
        assert_eq!(refused.class(), Class::Exhausted, "{refused}");
        world.close(open).await;
        is_sound(&world, volume, "at the end").await;
    });
}
