//! The use cases beneath the interface: what they ask the store for, what they keep open, and that
//! a tree is walked and read whole.

use crate::support::files::{create, name, root, top, write_at};
use crate::support::run::run;
use crate::support::world as support;
use bytes::Bytes;
use futures::TryStreamExt;
use std::sync::Arc;
use std::time::Duration;
use zerofs_csi::catalog::Catalog;
use zerofs_csi::control::browse::{Browser, Pattern};
use zerofs_csi::control::{ControlError, Controller};
use zerofs_csi::fs::api::{FileSystem, SetAttr, Special};
use zerofs_csi::types::{Class, Classify};

const SNAPSHOTS: usize = 20;
const FILES: usize = 1500;

struct World {
    catalog: Catalog,
    controller: Arc<Controller>,
    browser: Browser,
}

/// The dataset `a` with a folder of many files, a link, and a file with a hole.
async fn world() -> World {
    let (world, volume, open) = support::World::with_open().await;
    let fs = &*open.fs;
    let folder = top::mkdir(fs, "many").await;
    for n in 0..FILES {
        create(fs, folder, &format!("f{n:04}")).await;
    }
    let holes = top::write(fs, "holes", b"").await;
    write_at(fs, holes, 9 << 20, b"end").await;
    let link = Special::Symlink(Bytes::from_static(b"many"));
    fs.make(&root(), fs.root(), &name("link"), link, SetAttr::default()).await.unwrap();
    world.close(open).await;
    for n in 0..SNAPSHOTS {
        world.snapshot(volume, &format!("s{n}")).await;
    }
    let browser = Browser::new(world.pool(), &world.volumes);
    let support::World { catalog, controller, .. } = world;
    World { catalog, controller, browser }
}

async fn registered(world: &World) -> usize {
    world.catalog.readers(None, std::time::SystemTime::now()).await.unwrap().live.values().sum()
}

#[test]
fn an_open_root_costs_nothing_and_few_stay_open() {
    run(async {
        let world = world().await;
        let browser = &world.browser;
        let root = browser.root("a", Some("s0")).await.unwrap();
        let first = browser.open(&root).await.unwrap();
        let file = first.stat(b"/many/f0001").await.unwrap();
        drop(first);
        let before = world.catalog.bucket().requests();
        let again = browser.open(&root).await.unwrap();
        assert_eq!(again.stat(b"/many/f0001").await.unwrap(), file);
        assert_eq!(world.catalog.bucket().requests(), before, "it was open");
        drop(again);

        for n in 0..SNAPSHOTS {
            let root = browser.root("a", Some(&format!("s{n}"))).await.unwrap();
            browser.open(&root).await.unwrap();
        }
        for _ in 0..200 {
            if registered(&world).await <= 16 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        assert_eq!(registered(&world).await, 16);
        let versions = browser.history(&browser.dataset("a").await.unwrap(), b"/holes").await;
        let versions = versions.unwrap();
        assert_eq!((versions.len(), versions[0].states as usize), (1, SNAPSHOTS + 1));
        browser.close().await;
        assert_eq!(registered(&world).await, 0);
    });
}

#[test]
fn trees_are_walked_and_read_whole() {
    run(async {
        let world = world().await;
        let root = world.browser.root("a", Some("s3")).await.unwrap();
        let open = world.browser.open(&root).await.unwrap();
        let mut walk = open.walk(open.stat(b"/").await.unwrap());
        let mut paths = Vec::new();
        while let Some(entry) = walk.next().await.unwrap() {
            paths.push(String::from_utf8(entry.path).unwrap());
        }
        assert_eq!(paths[0], "/");
        paths.sort();
        let mut expected = vec!["/".to_owned(), "/holes".into(), "/link".into(), "/many".into()];
        expected.extend((0..FILES).map(|n| format!("/many/f{n:04}")));
        expected.sort();
        assert_eq!(paths, expected);

        let (mut listed, mut from, mut pages) = (Vec::new(), None, 0);
        loop {
            let (entries, next) = open.list(b"/many", from, 400).await.unwrap();
            assert!(entries.len() <= 400);
            listed.extend(entries.into_iter().map(|entry| entry.path));
            pages += 1;
            from = next;
            if from.is_none() {
                break;
            }
        }
        listed.sort();
        listed.dedup();
        assert_eq!((listed.len(), pages), (FILES, 4));

        let file = open.stat(b"/holes").await.unwrap();
        let read = async |from: u64, to: u64| {
            let pieces: Vec<Bytes> = open.read(&file, from..to).try_collect().await?;
            assert!(pieces.iter().all(|piece| piece.len() <= 4 << 20 && !piece.is_empty()));
            Ok::<_, ControlError>(pieces.concat())
        };
        let whole = read(0, u64::MAX).await.unwrap();
        assert_eq!(whole.len(), (9 << 20) + 3);
        assert!(whole[..9 << 20].iter().all(|byte| *byte == 0) && whole.ends_with(b"end"));
        assert_eq!(read((9 << 20) - 1, (9 << 20) + 2).await.unwrap(), b"\0en");
        assert_eq!(read(1 << 30, u64::MAX).await.unwrap(), b"");
        let link = open.stat(b"/link").await.unwrap();
        let refused = open.read(&link, 0..9).try_collect::<Vec<_>>().await.unwrap_err();
        assert_eq!(refused.class(), Class::Invalid);
        let through = open.stat(b"/link/f0001").await.unwrap_err();
        assert!(through.to_string().contains("symbolic link to many"), "{through}");

        let (mut hits, pattern) = (0, Pattern::new(b"f00*9").unwrap());
        let count = |_| {
            hits += 1;
            Ok::<_, ControlError>(())
        };
        let searched = world.browser.find(&[root.clone(), root], &pattern, count).await.unwrap();
        assert_eq!((hits, searched.roots, searched.limited), (20, 2, false));
        drop((walk, open));
        world.browser.close().await;
        drop(world.controller);
    });
}
