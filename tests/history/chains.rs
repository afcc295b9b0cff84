//! Long chains of clones, and many clones of one snapshot: they stay right, and neither depth nor
//! siblings cost requests (R13).

use crate::deleting::run;
use crate::model::{Found, Model};
use crate::ops::{Where, bytes};
use crate::work::{self, again};
use crate::world::Process;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use zerofs_csi::bucket::Requests;
use zerofs_csi::control::Source;
use zerofs_csi::fs::db;
use zerofs_csi::types::{FamilyId, SnapshotHandle, VolumeHandle};

const CHAIN: u64 = 50;
const SIBLINGS: usize = 200;
/// The chain grows so far before the first collection.
const UNCOLLECTED: u64 = 12;
/// R13: never more.
const ANCESTORS_MAX: usize = 8;
/// Clones are detached past this depth (R13).
const ANCESTORS_KEPT: usize = 4;

async fn ancestors(process: &Process, family: FamilyId, volume: VolumeHandle) -> usize {
    let place =
        process.volumes.settings().place(&process.catalog, family, volume.dataset.incarnation);
    if db::exists(&place).await.unwrap() { db::ancestors(&place).await.unwrap() } else { 0 }
}

/// Written and closed.
async fn write(process: &Process, model: &mut Model, volume: VolumeHandle, file: &str, seed: u64) {
    work::write(process, model, volume, file, 0, &bytes(&[seed, seed + 1000, seed + 2000], 0))
        .await
        .unwrap();
    work::close(process, model, volume).await.unwrap();
}

async fn cut(process: &Process, of: VolumeHandle, name: &str) -> SnapshotHandle {
    again(async || process.controller.create_snapshot(of, name.parse().unwrap()).await)
        .await
        .unwrap()
        .handle
}

/// A clone of a snapshot.
async fn clone(process: &Process, name: &str, of: SnapshotHandle) -> VolumeHandle {
    let made = again(async || process.create(name, Some(Source::Snapshot(of))).await).await;
    made.unwrap_or_else(|error| panic!("{name}: {error}")).handle
}

fn since(process: &Process, before: Requests) -> u64 {
    let now = process.catalog.bucket().requests();
    let all = |requests: Requests| {
        requests.get + requests.put + requests.list + requests.head + requests.delete
    };
    all(now) - all(before)
}

/// Requests of opening and reading all of a volume, by a process that has nothing of it in memory.
async fn read_cold(process: &Process, volume: VolumeHandle) -> (Found, u64) {
    let cold = process.another("cold").await;
    let before = cold.catalog.bucket().requests();
    let found = cold.read(volume).await.unwrap();
    let cost = since(&cold, before);
    cold.volumes.close(volume.dataset).await.unwrap();
    (found, cost)
}

#[test]
fn a_chain_of_clones_of_clones_stays_right_shallow_and_as_cheap_to_read() {
    let seed =
        crate::support::run::setting("HISTORY_SEED").unwrap_or_else(|| rand::random::<u64>() >> 16);
    println!("HISTORY_SEED={seed}");
    run(async |process| {
        let (mut model, mut rng) = (Model::default(), StdRng::seed_from_u64(seed));
        let first = process.create("v0", None).await.unwrap();
        let family = FamilyId::from(first.handle.dataset.incarnation);
        model.made("v0", first.handle, Found::new());
        write(process, &mut model, first.handle, "x", 0).await;
        let (mut last, mut deepest, mut cost) = (first.handle, 0, BTreeMap::new());
        // One that would read too many is detached at once, and may fail after that.
        let failpoints = process.catalog.bucket().failpoints();
        failpoints.set("control.create.detached", "1*return").unwrap();
        for n in 1..=CHAIN {
            let of = cut(process, last, "cut").await;
            let content = model.dataset(last).unwrap().content();
            let name = format!("v{n}");
            last = clone(process, &name, of).await;
            model.made(&name, last, content);
            deepest = deepest.max(ancestors(process, family, last).await);
            write(process, &mut model, last, ["x", "y", "z"][n as usize % 3], n).await;
            // Snapshots and datasets of the middle go while the chain grows, and after.
            work::delete_snapshot(process, &mut model, of).await.unwrap();
            if n > UNCOLLECTED && rng.random_bool(0.2) {
                let middle = model.datasets[rng.random_range(0..model.datasets.len())].handle;
                if middle != last {
                    work::delete(process, &mut model, middle).await.unwrap();
                }
                process.collect(Where::Here).await.unwrap();
            }
            if [15, 30, CHAIN].contains(&n) {
                process.collect(Where::Here).await.unwrap();
                let (found, requests) = read_cold(process, last).await;
                model.dataset(last).unwrap().compare(&found).unwrap();
                cost.insert(n, (ancestors(process, family, last).await, requests));
            }
        }
        println!(
            "by place in the chain, ancestors still attached and requests of opening and reading \
             it all: {cost:?}"
        );
        assert!(deepest == ANCESTORS_MAX, "{deepest}");
        assert!(failpoints.passed()["control.create.detached"] >= 2);
        assert!(cost.values().all(|(attached, _)| *attached <= ANCESTORS_KEPT), "{cost:?}");
        let mut middle: Vec<VolumeHandle> =
            model.datasets.iter().map(|d| d.handle).filter(|handle| *handle != last).collect();
        middle.shuffle(&mut rng);
        for (n, handle) in middle.into_iter().enumerate() {
            work::delete(process, &mut model, handle).await.unwrap();
            if n % 8 == 7 {
                process.collect(Where::Here).await.unwrap();
                work::compare(process, &mut model).await.unwrap();
                work::perform(process, &mut model, &crate::ops::Op::CloseAll, &Default::default())
                    .await
                    .unwrap();
            }
        }
        process.collect(Where::Here).await.unwrap();
        assert_eq!(
            process.catalog.datasets().await.unwrap().len(),
            1,
            "nothing but the last is needed"
        );
        assert_eq!(ancestors(process, family, last).await, 0);
        let (found, alone) = read_cold(process, last).await;
        model.dataset(last).unwrap().compare(&found).unwrap();
        // As one that was never cloned and holds the same.
        let plain = process.create("plain", None).await.unwrap().handle;
        model.made("plain", plain, Found::new());
        for (file, content) in &found {
            work::write(process, &mut model, plain, file, 0, content).await.unwrap();
        }
        work::close(process, &mut model, plain).await.unwrap();
        let (_, never_cloned) = read_cold(process, plain).await;
        println!(
            "requests of opening and reading the last one alone: {alone}; one that was never \
             cloned: {never_cloned}"
        );
        assert!(alone <= never_cloned + found.len() as u64 + 6, "{alone} and {never_cloned}");
        for volume in [last, plain] {
            work::delete(process, &mut model, volume).await.unwrap();
        }
        process.collect(Where::Here).await.unwrap();
        assert_eq!(work::left(process).await, Vec::<String>::new());
    });
}

#[test]
fn many_clones_of_one_snapshot_at_once() {
    run(async |process| {
        let mut model = Model::default();
        let source = process.create("source", None).await.unwrap().handle;
        model.made("source", source, Found::new());
        write(process, &mut model, source, "x", 0).await;
        let of = cut(process, source, "cut").await;
        let before = process.catalog.bucket().requests();
        process.create("alone", Some(Source::Snapshot(of))).await.unwrap();
        let alone = since(process, before);
        let before = process.catalog.bucket().requests();
        let create = async |n: usize| {
            let name = format!("clone{n}");
            (name.clone(), process.create(&name, Some(Source::Snapshot(of))).await.unwrap().handle)
        };
        let made = futures::future::join_all((0..SIBLINGS).map(|n| Box::pin(create(n)))).await;
        let each = since(process, before) as f64 / SIBLINGS as f64;
        let before = process.catalog.bucket().requests();
        process.create("last", Some(Source::Snapshot(of))).await.unwrap();
        let last = since(process, before);
        println!(
            "requests of a clone: the first {alone}, each of {SIBLINGS} at once {each}, one more \
             {last}"
        );
        // One that was overtaken has put a version for nothing, and reads the newest.
        assert!(each <= alone as f64 + 6.0 && last <= alone + 4, "{alone}, {each}, {last}");
        let content = model.dataset(source).unwrap().content();
        for (name, handle) in &made {
            model.made(name, *handle, content.clone());
        }
        write(process, &mut model, made[SIBLINGS / 2].1, "y", 7).await;
        work::delete(process, &mut model, source).await.unwrap();
        work::delete_snapshot(process, &mut model, of).await.unwrap();
        for n in (0..SIBLINGS).step_by(20) {
            let (_, found) = (n, process.read(made[n].1).await.unwrap());
            model.dataset(made[n].1).unwrap().compare(&found).unwrap();
            work::close(process, &mut model, made[n].1).await.unwrap();
        }
    });
}
