//! Differences between two snapshots, compared with trees that were read whole.

use super::{World, data, run};
use crate::support::files::{Tree, name, top, tree, write_at};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use zerofs_csi::fs::api::*;
use zerofs_csi::fs::{Aspect, Difference, FsError, PathDifference, compare};
use zerofs_csi::types::SnapshotHandle;
use zerofs_csi::volume::{ExportedFs, RootReader};

async fn differences(
    world: &World,
    before: SnapshotHandle,
    after: SnapshotHandle,
) -> Vec<PathDifference> {
    let open = async |of: SnapshotHandle| {
        let settings = world.volumes.settings();
        let opened = RootReader::snapshot(settings, &world.catalog, of.snapshot).await;
        opened.unwrap().0.into_view().await.unwrap()
    };
    let (before, after) = (open(before).await, open(after).await);
    let mut found = Vec::new();
    let tell = |one: PathDifference| {
        found.push(one);
        Ok::<_, FsError>(())
    };
    compare(before.files(), after.files(), tell).await.unwrap();
    before.close().await.unwrap();
    after.close().await.unwrap();
    found
}

fn text(path: &[u8]) -> String {
    String::from_utf8(path.to_vec()).unwrap()
}

/// Every object of the later tree is added, or comes from one place of the earlier tree; what came
/// is told as far as it differs, and every object of the earlier tree went somewhere or is removed.
fn check(before: &Tree, after: &Tree, found: &[PathDifference], what: &str) {
    let mut renamed = BTreeMap::new();
    let (mut added, mut removed, mut changed) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
    for one in found {
        let path = text(&one.path);
        let fresh = match &one.difference {
            Difference::Added => added.insert(path),
            Difference::Removed => removed.insert(path),
            Difference::Changed(aspects) => changed.insert(path, aspects.clone()).is_none(),
            Difference::Renamed(from, aspects) => {
                changed.insert(path.clone(), aspects.clone());
                renamed.insert(path, text(from)).is_none()
            }
        };
        assert!(fresh, "{what}: told twice: {one:?}");
    }
    fn origin(path: &str, renamed: &BTreeMap<String, String>) -> String {
        match (renamed.get(path), path.rsplit_once('/')) {
            (Some(from), _) => from.clone(),
            (None, Some((parent, name))) => format!("{}/{name}", origin(parent, renamed)),
            (None, None) => String::new(),
        }
    }
    let mut gone: BTreeSet<&String> = before.keys().collect();
    for (path, now) in after {
        if added.contains(path) {
            continue;
        }
        let from = origin(path, &renamed);
        let then = before.get(&from).unwrap_or_else(|| {
            panic!("{what}: {path} comes from {from}, which was not there: {found:#?}")
        });
        assert!(gone.remove(&from), "{what}: {from} went to two places: {found:#?}");
        let told = changed.get(path).cloned().unwrap_or_default();
        let must = [
            (then.content != now.content, Aspect::Content),
            (then.attr.mode != now.attr.mode, Aspect::Mode),
            (then.attr.uid != now.attr.uid, Aspect::Owner),
            (then.attr.file != now.attr.file, Aspect::Replaced),
        ];
        for (differs, aspect) in must {
            assert_eq!(told.contains(&aspect), differs, "{what}: {path} ({aspect:?}): {found:#?}");
        }
    }
    let gone: BTreeSet<String> = gone.into_iter().cloned().collect();
    assert_eq!(gone, removed, "{what}: removed: {found:#?}");
}

/// One random change; what cannot be done is not done.
async fn change(fs: &ExportedFs, rng: &mut StdRng, seed: u64) {
    let now = tree(fs, fs.root()).await.unwrap();
    let caller = Caller::root();
    let mut dirs = vec![(String::new(), fs.root())];
    dirs.extend(
        now.iter()
            .filter(|(_, o)| o.attr.kind == FileKind::Directory)
            .map(|(path, o)| (path.clone(), o.attr.file)),
    );
    let any = |rng: &mut StdRng| {
        now.iter()
            .nth(rng.random_range(0..now.len().max(1)))
            .map(|(path, o)| (path.clone(), o.clone()))
    };
    let dir = dirs[rng.random_range(0..dirs.len())].1;
    let new = name(&format!("n{}", rng.random_range(0..12)));
    let place = |path: &str| {
        let (parent, last) = path.rsplit_once('/').unwrap();
        (dirs.iter().find(|(path, _)| path == parent).unwrap().1, name(last))
    };
    match (rng.random_range(0..10), any(rng)) {
        (0..=2, _) => {
            let how = CreateHow::Unchecked(SetAttr {
                mode: Some(0o600),
                size: Some(0),
                ..SetAttr::default()
            });
            if let Ok(made) = fs.create(&caller, dir, &new, how).await {
                let len = rng.random_range(1..9000);
                write_at(fs, made.attr.file, 0, &data(seed, len)).await;
            }
        }
        (3, _) => drop(fs.mkdir(&caller, dir, &new, SetAttr::default()).await),
        (4, Some((path, object))) => {
            let (at, last) = place(&path);
            match object.attr.kind {
                FileKind::Directory => drop(fs.rmdir(&caller, at, &last).await),
                _ => drop(fs.remove(&caller, at, &last).await),
            }
        }
        (5..=6, Some((path, _))) => {
            let (at, last) = place(&path);
            drop(fs.rename(&caller, (at, &last), (dir, &new)).await);
        }
        (7, Some((_, object))) => {
            let set = SetAttr {
                mode: Some(0o600 | rng.random_range(0..0o100)),
                uid: Some(rng.random_range(0..3)),
                ..SetAttr::default()
            };
            drop(fs.setattr(&caller, object.attr.file, set, None).await);
        }
        (8, Some((_, object))) if object.attr.kind == FileKind::Regular => {
            let at = rng.random_range(0..5000);
            write_at(fs, object.attr.file, at, &data(seed + 7, 50)).await;
        }
        (_, Some((_, object))) if object.attr.kind == FileKind::Regular => {
            drop(fs.link(&caller, object.attr.file, dir, &new).await);
        }
        _ => {}
    }
}

#[test]
fn random_changes_are_told_wholly() {
    run(async {
        for seed in 0..4 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (world, volume, open) = World::with_open().await;
            let mut last: Option<(SnapshotHandle, Tree)> = None;
            for round in 0..5 {
                for n in 0..25 {
                    change(&open.exported, &mut rng, seed * 1000 + n).await;
                }
                let cut = world.snapshot(volume, &format!("s{round}")).await;
                let now = tree(&*open.exported, open.exported.root()).await.unwrap();
                if let Some((before, then)) = &last {
                    let what = format!("seed {seed}, round {round}");
                    check(then, &now, &differences(&world, *before, cut).await, &what);
                    check(
                        &now,
                        then,
                        &differences(&world, cut, *before).await,
                        &format!("{what}, backwards"),
                    );
                    assert_eq!(differences(&world, cut, cut).await, [], "{what}");
                }
                last = Some((cut, now));
            }
            world.close(open).await;
        }
    });
}

/// A directory of more than one page, changed at its ends and in between.
#[test]
fn a_large_directory_is_compared_in_pages() {
    run(async {
        let (world, volume, open) = World::with_open().await;
        let (fs, caller) = (&*open.exported, Caller::root());
        let mut made = Vec::new();
        for n in 0..2500 {
            made.push(top::create(fs, &format!("file {n}")).await);
        }
        let first = world.snapshot(volume, "first").await;
        for n in (0..2500).step_by(50) {
            fs.remove(&caller, fs.root(), &name(&format!("file {n}"))).await.unwrap();
            top::create(fs, &format!("new {n}")).await;
            let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
            fs.setattr(&caller, made[n + 1], set, None).await.unwrap();
            let (from, to) = (name(&format!("file {}", n + 2)), name(&format!("moved {n}")));
            fs.rename(&caller, (fs.root(), &from), (fs.root(), &to)).await.unwrap();
        }
        let second = world.snapshot(volume, "second").await;
        let requests = world.bucket().requests().get;
        let found = differences(&world, first, second).await;
        println!("{} GETs for 2 x 2,500 entries", world.bucket().requests().get - requests);
        let count =
            |is: fn(&Difference) -> bool| found.iter().filter(|one| is(&one.difference)).count();
        assert_eq!(count(|d| matches!(d, Difference::Added)), 50);
        assert_eq!(count(|d| matches!(d, Difference::Removed)), 50);
        assert_eq!(
            count(|d| matches!(d, Difference::Renamed(_, aspects) if aspects.is_empty())),
            50
        );
        assert_eq!(count(|d| *d == Difference::Changed(vec![Aspect::Mode])), 50);
        assert_eq!(found.len(), 201, "and the directory itself");
        world.close(open).await;
    });
}

/// A client that sets the times back after it wrote hides nothing.
#[test]
fn bytes_that_changed_under_an_old_mtime_are_told() {
    run(async {
        let (world, volume, open) = World::with_open().await;
        let (fs, caller) = (&*open.exported, Caller::root());
        let mut made = Vec::new();
        for n in ["written", "touched", "closed"] {
            made.push(top::write(fs, n, &data(3, 300_000)).await);
        }
        open.fs.sync().await.unwrap();
        let first = world.snapshot(volume, "first").await;
        let before = fs.getattr(made[0]).await.unwrap();
        write_at(fs, made[0], 150_000, b"other").await;
        let back = SetAttr {
            atime: SetTime::To(before.atime),
            mtime: SetTime::To(before.mtime),
            ..SetAttr::default()
        };
        fs.setattr(&caller, made[0], back, None).await.unwrap();
        let touch = SetAttr { mtime: SetTime::Now, ..SetAttr::default() };
        fs.setattr(&caller, made[1], touch, None).await.unwrap();
        fs.setattr(&caller, made[2], SetAttr { mode: Some(0o400), ..SetAttr::default() }, None)
            .await
            .unwrap();
        let second = world.snapshot(volume, "second").await;
        let mut found: Vec<_> = differences(&world, first, second)
            .await
            .into_iter()
            .map(|one| (text(&one.path), one.difference))
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let expected =
            [("/closed", Aspect::Mode), ("/touched", Aspect::Times), ("/written", Aspect::Content)];
        assert_eq!(
            found,
            expected.map(|(path, aspect)| (path.to_owned(), Difference::Changed(vec![aspect])))
        );
        world.close(open).await;
    });
}
