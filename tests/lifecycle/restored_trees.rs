//! Restores in place of what trees hold: hard links, depth, many files, and what is in the way of
//! some of them.

use super::{World, data, run};
use crate::restore::{is_sound, restore, tree, wanted};
use crate::support::files::{child, content, create, mkdir, name, root, top, write, write_at};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use zerofs_csi::fs::api::*;
use zerofs_csi::types::{Class, Classify, Timestamp};

/// While the names of one file take the place of others, each of them is there.
#[test]
fn a_name_that_becomes_a_hard_link_is_never_away() {
    run(async {
        const NAMES: usize = 300;
        let (world, volume, open) = World::with_open().await;
        let fs = &*open.exported;
        let dir = top::mkdir(fs, "dir").await;
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
                    if child(&*open.exported, dir, &format!("name {n}")).await.is_err() {
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
        world.close(open).await;
        is_sound(&world, volume, "at the end").await;
    });
}

/// A tree of many files: what it costs.
#[test]
fn requests_of_a_restore_are_few() {
    run(async {
        const FILES: usize = 1000;
        let (world, volume, open) = World::with_open().await;
        let fs = &*open.exported;
        let dir = top::mkdir(fs, "dir").await;
        for n in 0..FILES {
            let file = create(fs, dir, &format!("file {n}")).await;
            write_at(fs, file, 0, &data(n as u64, 6_000)).await;
        }
        open.fs.sync().await.unwrap();
        let cut = world.snapshot(volume, "cut").await;
        let (before, began) = (world.bucket().requests(), std::time::Instant::now());
        let restored = restore(&world, volume, &wanted(cut, "dir", "copy", false)).await.unwrap();
        let (after, took) = (world.bucket().requests(), began.elapsed());
        let (gets, puts) = (after.get - before.get, after.put - before.put);
        println!(
            "{FILES} files of 6,000 bytes in place: {gets} GETs, {puts} PUTs, {took:?} \
             (unoptimised)"
        );
        assert_eq!((restored.objects, restored.bytes), (FILES as u64 + 1, 6_000 * FILES as u64));
        assert!(gets + puts < FILES as u64 / 4, "{gets} GETs, {puts} PUTs");
        world.close(open).await;
    });
}

/// One file's failure keeps no other from being restored.
#[test]
fn what_cannot_be_restored_is_told_and_the_rest_is_restored() {
    run(async {
        let (world, volume, open) = World::with_open().await;
        let fs = &*open.exported;
        let dir = top::mkdir(fs, "dir").await;
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
                mkdir(fs, sub, &format!("file {n}")).await;
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
            assert_eq!(content(fs, sub, &format!("file {n}")).await, b"good");
        }
        let attr = fs.getattr(sub).await.unwrap();
        assert_eq!(
            (attr.mode & 0o777, attr.mtime),
            (0o511, Timestamp::from_nanos(77)),
            "its folder is as it was"
        );
        // Another process learns the same.
        let elsewhere = world.beside("controller-1");
        let mailbox = world.serve_mailbox(Duration::from_millis(50));
        let refused = restore(&elsewhere, volume, &wanted(cut, "/", "/", true)).await.unwrap_err();
        assert!(
            refused.class() == Class::Exists && refused.to_string().contains("and not 25:"),
            "{refused}"
        );
        mailbox.stop().await;
        world.close(open).await;
        is_sound(&world, volume, "at the end").await;
    });
}

#[test]
fn a_tree_of_any_depth_is_restored() {
    run(async {
        const DEPTH: usize = 1100;
        let (world, volume, open) = World::with_open().await;
        let fs = &*open.exported;
        let mut dir = fs.root();
        for n in 0..DEPTH {
            write(fs, dir, "beside", format!("{n}").as_bytes()).await;
            dir = mkdir(fs, dir, "d").await;
        }
        let cut = world.snapshot(volume, "cut").await;
        let restored = restore(&world, volume, &wanted(cut, "d", "copy", false)).await.unwrap();
        assert_eq!(restored.objects, 2 * DEPTH as u64 - 1);
        let mut dir = top::child(fs, "copy").await.unwrap().file;
        for n in 1..DEPTH {
            assert_eq!(content(fs, dir, "beside").await, format!("{n}").as_bytes());
            dir = child(fs, dir, "d").await.unwrap().file;
        }
        world.close(open).await;
    });
}

/// Links, pipes and devices may have several names, too.
#[test]
fn an_object_with_several_names_stays_one() {
    run(async {
        let (world, volume, open) = World::with_open().await;
        let fs = &*open.exported;
        let dir = top::mkdir(fs, "dir").await;
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
        let copy = top::child(fs, "copy").await.unwrap().file;
        for (kind, _) in &kinds {
            let (first, second) = (
                child(fs, copy, kind).await.unwrap(),
                child(fs, copy, &format!("second {kind}")).await.unwrap(),
            );
            assert!(first.file == second.file && first.nlink == 2, "{kind}: {first:?} {second:?}");
        }
        world.close(open).await;
        is_sound(&world, volume, "at the end").await;
    });
}
