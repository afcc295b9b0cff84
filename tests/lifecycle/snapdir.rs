//! Snapshots below `/.snapshots` of a volume, as an edge serves them.

use super::{World, data, run};
use crate::support::files::{self, child, content, name, read, root, top, write};
use crate::support::world::new_volume;
use bytes::Bytes;
use futures::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use zerofs_csi::catalog::{Properties, Snapdir};
use zerofs_csi::control::NewVolume;
use zerofs_csi::fs::FsError;
use zerofs_csi::fs::api::*;
use zerofs_csi::types::InodeNo;
use zerofs_csi::volume::ExportedFs;

/// Name, fileid and cookie of every entry, in pages of few.
async fn list(fs: &ExportedFs, dir: FileRef, with_attr: bool) -> Vec<DirEntry> {
    let limit = ListLimit { entries: 3, bytes: 4096, entry_bytes: 64, with_attr };
    files::list_by(fs, dir, limit).await.unwrap()
}

type Shown = BTreeMap<String, (FileKind, u32, u64, Vec<u8>)>;

/// A tree as `find -printf` and `cat` show it: path, kind, mode, size, content. Every fileid is met
/// once, but for `.` and `..`.
async fn tree(fs: &ExportedFs, top: FileRef, fileids: &mut BTreeSet<u64>) -> Shown {
    let found = files::tree(fs, top).await.unwrap().into_iter();
    let shown = |(path, files::Object { attr, listed, content })| {
        assert_eq!(listed, Some(attr), "{path}");
        assert!(fileids.insert(attr.file.ino.0), "fileid {} twice", attr.file.ino);
        (path, (attr.kind, attr.mode, attr.size, content))
    };
    found.map(shown).collect()
}

/// The properties that `find`, `cp -a` and `diff -r` rely on.
#[test]
fn snapshots_are_below_a_directory_of_their_own() {
    run(async {
        let (world, volume, open) = World::with_open().await;
        let fs = &*open.exported;
        let top = fs.root();
        let dir = fs
            .mkdir(&root(), top, &name("dir"), SetAttr { mode: Some(0o750), ..SetAttr::default() })
            .await
            .unwrap();
        let dir = dir.attr.file;
        for n in 0..7 {
            write(fs, dir, &format!("file {n}"), &data(n, 5_000 * n as usize)).await;
        }
        fs.make(&root(), dir, &name("link"), Special::Symlink("file 3".into()), SetAttr::default())
            .await
            .unwrap();
        let before = tree(fs, top, &mut BTreeSet::new()).await;
        world.snapshot(volume, "first").await;
        write(fs, dir, "file 2", &data(99, 300_000)).await;
        fs.remove(&root(), dir, &name("file 5")).await.unwrap();
        world.snapshot(volume, "second").await;
        let between = tree(fs, top, &mut BTreeSet::new()).await;
        top::write(fs, "late", b"late").await;

        let snapshots = top::child(fs, ".snapshots").await.unwrap();
        assert_eq!(
            (snapshots.kind, snapshots.mode, snapshots.nlink),
            (FileKind::Directory, 0o555, 4)
        );
        assert_eq!(snapshots.file.ino, InodeNo::SNAPSHOTS);
        let opened = world.volumes.open_snapshots().count();
        let listed = list(fs, snapshots.file, true).await;
        let names: Vec<_> =
            listed.iter().map(|entry| std::str::from_utf8(&entry.name).unwrap()).collect();
        assert_eq!(names, [".", "..", "first", "second"]);
        assert_eq!(world.volumes.open_snapshots().count(), opened, "listing opens none");
        assert!(!list(fs, top, false).await.iter().any(|entry| entry.name == ".snapshots"));

        let mut fileids: BTreeSet<u64> = BTreeSet::new();
        let live = tree(fs, top, &mut fileids).await;
        assert_eq!(live.len(), between.len() + 1);
        for (snapshot, expected) in [("first", &before), ("second", &between)] {
            let at = child(fs, snapshots.file, snapshot).await.unwrap();
            assert_eq!(&tree(fs, at.file, &mut fileids).await, expected, "{snapshot}");
            assert_eq!(child(fs, at.file, "..").await.unwrap().file, snapshots.file);
            let dots = list(fs, at.file, true).await;
            assert_eq!(
                (dots[1].ino, dots[1].attr.unwrap().file),
                (InodeNo::SNAPSHOTS, snapshots.file)
            );
            let inner = child(fs, at.file, "dir").await.unwrap();
            assert_eq!(child(fs, inner.file, "..").await.unwrap(), at);
            assert_eq!(inner.file.ino.split().1, dir.ino, "the inode as it was");
            assert!(matches!(child(fs, at.file, ".snapshots").await, Err(FsError::NotFound)));
        }
        assert_eq!(child(fs, snapshots.file, "..").await.unwrap().file, top);
        assert!(matches!(child(fs, snapshots.file, "third").await, Err(FsError::NotFound)));
        // Made by whoever, found at once although it was just looked for; and the directory's ctime
        // tells clients.
        world.snapshot(volume, "third").await;
        assert!(child(fs, snapshots.file, "third").await.is_ok());
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let now = fs.getattr(snapshots.file).await.unwrap();
        assert!(now.ctime > snapshots.ctime && now.nlink == 5, "{now:?}");
        world.close(open).await;
    });
}

#[test]
fn nothing_in_a_snapshot_is_changed_and_its_name_is_nobodys() {
    run(async {
        let (world, volume, open) = World::with_open().await;
        let fs = &*open.exported;
        let top = fs.root();
        let live = top::write(fs, "file", b"content").await;
        world.snapshot(volume, "cut").await;
        let snapshots = top::child(fs, ".snapshots").await.unwrap().file;
        let cut = child(fs, snapshots, "cut").await.unwrap().file;
        let file = child(fs, cut, "file").await.unwrap().file;
        let (new, old, hidden) = (name("new"), name("file"), name(".snapshots"));
        let how = CreateHow::Unchecked(SetAttr::default());
        let caller = root();
        for dir in [snapshots, cut] {
            let refused = [
                fs.create(&caller, dir, &new, how).await.map(drop),
                fs.mkdir(&caller, dir, &new, SetAttr::default()).await.map(drop),
                fs.make(&caller, dir, &new, Special::Fifo, SetAttr::default()).await.map(drop),
                fs.remove(&caller, dir, &old).await.map(drop),
                fs.rmdir(&caller, dir, &old).await.map(drop),
                fs.rename(&caller, (dir, &old), (top, &new)).await.map(drop),
                fs.rename(&caller, (top, &old), (dir, &new)).await.map(drop),
                fs.link(&caller, live, dir, &new).await.map(drop),
                fs.setattr(&caller, dir, SetAttr { mode: Some(0o777), ..SetAttr::default() }, None)
                    .await
                    .map(drop),
            ];
            for (n, refused) in refused.into_iter().enumerate() {
                assert!(matches!(refused, Err(FsError::ReadOnly)), "{n}: {refused:?}");
            }
        }
        let write = fs.write(&caller, file, 0, Bytes::from_static(b"x"), Stability::FileSync).await;
        assert!(matches!(write, Err(FsError::ReadOnly)));
        assert!(
            matches!(fs.link(&caller, file, top, &new).await, Err(FsError::CrossDevice)),
            "so that cp -l copies"
        );
        let (granted, _) = fs.access(&caller, cut, u32::MAX).await.unwrap();
        assert_eq!(granted, access::READ | access::LOOKUP);
        // Nobody makes, removes or moves the name in the root; elsewhere it is like any other.
        assert!(matches!(
            fs.mkdir(&caller, top, &hidden, SetAttr::default()).await,
            Err(FsError::Exists)
        ));
        assert!(matches!(fs.create(&caller, top, &hidden, how).await, Err(FsError::Exists)));
        assert!(matches!(fs.link(&caller, live, top, &hidden).await, Err(FsError::Exists)));
        assert!(matches!(
            fs.rename(&caller, (top, &old), (top, &hidden)).await,
            Err(FsError::Exists)
        ));
        assert!(matches!(
            fs.rename(&caller, (top, &hidden), (top, &new)).await,
            Err(FsError::ReadOnly)
        ));
        assert!(matches!(fs.rmdir(&caller, top, &hidden).await, Err(FsError::ReadOnly)));
        let dir = fs.mkdir(&caller, top, &name("dir"), SetAttr::default()).await.unwrap().attr.file;
        fs.mkdir(&caller, dir, &hidden, SetAttr::default()).await.unwrap();
        // Permissions are those of then.
        let other = Caller { uid: 7, gid: 7, ..root() };
        assert!(matches!(fs.read(&other, file, 0, 10).await, Err(FsError::Access)));
        world.close(open).await;
    });
}

/// Handles name snapshot and inode: they outlive the process, and not the snapshot.
#[test]
fn a_deleted_snapshot_is_stale_and_keeps_nothing() {
    run(async {
        let (world, volume, opened) = World::with_open().await;
        let fs = &*opened.exported;
        let stored = data(1, 400_000);
        let live = top::write(fs, "file", &stored).await;
        let cut = world.snapshot(volume, "cut").await;
        let kept = world.snapshot(volume, "kept").await;
        fs.setattr(&root(), live, SetAttr { size: Some(0), ..SetAttr::default() }, None)
            .await
            .unwrap();
        let snapshots = top::child(fs, ".snapshots").await.unwrap().file;
        let (mut files, mut roots) = (Vec::new(), Vec::new());
        for name in ["cut", "kept"] {
            roots.push(child(fs, snapshots, name).await.unwrap().file);
            files.push(child(fs, *roots.last().unwrap(), "file").await.unwrap().file);
        }
        world.close(opened).await;
        world.volumes.open_snapshots().close().await;

        // Another process: nothing is known but the handles.
        let world = world.beside("node-a");
        let opened = world.open(volume).await;
        let fs = &*opened.exported;
        for file in &files {
            assert!(read(fs, *file).await == stored);
        }
        assert_eq!(world.volumes.open_snapshots().count(), 2);
        world.controller.delete_snapshot(cut).await.unwrap();
        // Whoever reads keeps it (R14), until it is noticed.
        let collected = world.collect().await;
        assert!(
            collected.retained.iter().any(|kept| kept.why.contains("1 reader,")),
            "{collected:?}"
        );
        assert_eq!(world.catalog.snapshots(None).await.unwrap().len(), 2);
        let mut stale = false;
        for _ in 0..200 {
            match fs.read(&root(), files[0], 100_000, 10).await {
                Ok(read) => assert_eq!(read.data.concat(), stored[100_000..100_010]),
                Err(error) => {
                    assert!(matches!(error, FsError::Stale), "{error:?}");
                    stale = true;
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(stale, "a deleted snapshot is read for ever");
        assert!(matches!(fs.getattr(roots[0]).await, Err(FsError::Stale)));
        assert!(matches!(child(fs, snapshots, "cut").await, Err(FsError::NotFound)));
        assert!(read(fs, files[1]).await == stored, "the other is there still");
        // Its registration goes with the view.
        for _ in 0..100 {
            if world.collect().await.snapshots.len() == 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(world.catalog.snapshots(None).await.unwrap().len(), 1);
        // A new one of the name is another: the old handles stay stale.
        fs.setattr(&root(), live, SetAttr { size: Some(5), ..SetAttr::default() }, None)
            .await
            .unwrap();
        let again = world.snapshot(volume, "cut").await;
        let root_now = child(fs, snapshots, "cut").await.unwrap().file;
        assert_ne!(root_now.ino, roots[0].ino, "serials are never reused");
        assert!(matches!(fs.getattr(roots[0]).await, Err(FsError::Stale)));
        assert_eq!(content(fs, root_now, "file").await, [0; 5]);
        drop(opened);
        world.volumes.open_snapshots().close().await;
        world.volumes.close(volume.dataset).await.unwrap();
        for handle in [kept, again] {
            world.controller.delete_snapshot(handle).await.unwrap();
        }
        world.controller.delete_volume(volume).await.unwrap();
        world.collect().await;
        world.assert_empty("all is deleted").await;
        assert!(world.bucket().list("readers/").await.unwrap().is_empty());
    });
}

#[test]
fn readers_are_bounded_however_many_snapshots_are_read() {
    run(async {
        const SNAPSHOTS: u64 = 24;
        let (world, volume, open) = World::with_open().await;
        let fs = &*open.exported;
        for n in 0..SNAPSHOTS {
            top::write(fs, "file", &data(n, 9_000)).await;
            world.snapshot(volume, &format!("s{n}")).await;
        }
        let snapshots = top::child(fs, ".snapshots").await.unwrap().file;
        let all: Vec<u64> = (0..SNAPSHOTS).chain((0..SNAPSHOTS).rev()).collect();
        let each = futures::stream::iter(all).map(|n| async move {
            let at = child(fs, snapshots, &format!("s{n}")).await.unwrap().file;
            assert!(content(fs, at, "file").await == data(n, 9_000), "s{n}");
        });
        each.buffer_unordered(6).collect::<Vec<()>>().await;
        let registered = world.bucket().list("readers/").await.unwrap().len();
        assert!(registered <= 2 * 16, "{registered} registrations");
        world.volumes.open_snapshots().close().await;
        world.close(open).await;
    });
}

#[test]
fn a_root_that_shows_its_snapshots_lists_them_once() {
    run(async {
        let world = World::new().await;
        let new = NewVolume {
            properties: Properties { snapdir: Snapdir::Visible, ..Properties::default() },
            ..new_volume("a", None)
        };
        let volume = world.controller.create_volume(None, new).await.unwrap().handle;
        let open = world.open(volume).await;
        let fs = &*open.exported;
        for n in 0..10 {
            top::write(fs, &format!("f{n}"), b"x").await;
        }
        for with_attr in [false, true] {
            let listed = list(fs, fs.root(), with_attr).await;
            let names: BTreeSet<_> = listed.iter().map(|entry| entry.name.clone()).collect();
            assert_eq!((listed.len(), names.len()), (13, 13));
            let shown = listed.iter().find(|entry| entry.name == ".snapshots").unwrap();
            assert_eq!(shown.ino, InodeNo::SNAPSHOTS);
            assert_eq!(shown.attr.map(|attr| attr.kind), with_attr.then_some(FileKind::Directory));
        }
        world.close(open).await;
    });
}

/// A reader that cannot be registered does not read; one that was and failed then is not left
/// behind.
#[test]
fn a_failure_while_a_snapshot_is_opened_leaves_no_reader() {
    run(async {
        let (world, volume, open) = World::with_open().await;
        let fs = &*open.exported;
        top::write(fs, "file", b"content").await;
        world.snapshot(volume, "cut").await;
        let snapshots = top::child(fs, ".snapshots").await.unwrap().file;
        for step in ["catalog.reading", "volume.snapshot.registered"] {
            world.failpoints().set(step, "1*return->off").unwrap();
            assert!(
                matches!(child(fs, snapshots, "cut").await, Err(FsError::Unavailable(_))),
                "{step}"
            );
            gone(&world).await;
            let cut = child(fs, snapshots, "cut").await.unwrap().file;
            assert_eq!(content(fs, cut, "file").await, b"content");
            world.volumes.open_snapshots().close().await;
            gone(&world).await;
        }
        // One that could not be taken back counts for an hour, and is swept then.
        world.failpoints().set("catalog.reading-ended", "1*return->off").unwrap();
        child(fs, snapshots, "cut").await.unwrap();
        world.volumes.open_snapshots().close().await;
        let later = std::time::SystemTime::now() + Duration::from_secs(3700);
        assert_eq!(
            world.catalog.readers(None, std::time::SystemTime::now()).await.unwrap().live.len(),
            1
        );
        assert_eq!(world.catalog.sweep_readers(later).await.unwrap(), 1);
        gone(&world).await;
        world.close(open).await;
    });

    async fn gone(world: &World) {
        for _ in 0..200 {
            if world.bucket().list("readers/").await.unwrap().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("a reader is left behind");
    }
}
