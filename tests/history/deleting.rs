//! Deletions that ended half way, each in a state that a history meets only by luck.

use crate::model::Model;
use crate::ops::Where;
use crate::work;
use crate::world::{Process, World};
use bytes::Bytes;
use zerofs_csi::control::Collected;
use zerofs_csi::types::VolumeHandle;

/// Runs as a process does, with the stack that one has.
pub fn run(test: impl AsyncFn(&Process) + Sync) {
    let wrong = crate::support::run::concurrently(&[()], |()| {
        let world = World::new();
        let process = world.process().clone();
        world.run(test(&process));
        Ok(())
    });
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// A volume with data, deleted and not collected.
async fn deleted(process: &Process, model: &mut Model, name: &str) -> VolumeHandle {
    let volume = process.create(name, None).await.unwrap().handle;
    model.made(name, volume, Default::default());
    for n in 0..3 {
        work::write(process, model, volume, &format!("x{n}"), 0, &crate::ops::bytes(&[n; 20], 0))
            .await
            .unwrap();
        work::close(process, model, volume).await.unwrap();
    }
    work::delete(process, model, volume).await.unwrap();
    volume
}

async fn collect(process: &Process) -> Collected {
    process.collect(Where::Here).await.unwrap()
}

fn folder(volume: VolumeHandle, part: &str) -> String {
    format!("vol/{}/{part}", volume.dataset.incarnation)
}

async fn remove(process: &Process, prefix: &str) {
    let bucket = process.catalog.bucket();
    let keys: Vec<String> =
        bucket.list(prefix).await.unwrap().into_iter().map(|object| object.key).collect();
    assert!(!keys.is_empty(), "{prefix}");
    bucket.delete(&keys).await.unwrap();
}

/// A store need not list the parts of a database in an order that lets it be opened when some are
/// gone.
#[test]
fn a_database_of_which_parts_are_gone_is_removed() {
    for gone in ["wal", "compacted", "manifest"] {
        run(async |process| {
            let volume = deleted(process, &mut Model::default(), "a").await;
            process.catalog.bucket().put(&folder(volume, ".deleting"), Bytes::new()).await.unwrap();
            remove(process, &folder(volume, gone)).await;
            let done = collect(process).await;
            assert_eq!(
                (done.datasets.len(), work::left(process).await),
                (1, vec![]),
                "{gone}: {done:?}"
            );
        });
    }
}

/// A writer's last object came when the database and the mark of its deletion were gone, and the
/// record was not yet.
#[test]
fn what_came_after_a_database_was_removed_goes_with_its_record() {
    run(async |process| {
        let volume = deleted(process, &mut Model::default(), "a").await;
        remove(process, &folder(volume, "")).await;
        process
            .catalog
            .bucket()
            .put(&folder(volume, "wal/00000000000000000009.sst"), Bytes::new())
            .await
            .unwrap();
        let done = collect(process).await;
        assert_eq!((done.datasets.len(), work::left(process).await), (1, vec![]), "{done:?}");
    });
}

#[test]
fn a_damaged_database_that_is_deleted_keeps_no_other() {
    run(async |process| {
        let mut model = Model::default();
        let damaged = deleted(process, &mut model, "a").await;
        deleted(process, &mut model, "b").await;
        let bucket = process.catalog.bucket();
        for object in bucket.list(&folder(damaged, "manifest")).await.unwrap() {
            bucket.put(&object.key, Bytes::from_static(b"no manifest")).await.unwrap();
        }
        let done = collect(process).await;
        assert_eq!((done.datasets.len(), done.retained.len()), (1, 1), "{done:?}");
        assert!(done.retained[0].why.contains("by hand"), "it says what to do: {done:?}");
    });
}

/// Two collectors that remove the same things at the same time.
#[test]
fn two_collectors_do_each_others_work() {
    run(async |process| {
        let mut model = Model::default();
        for name in ["a", "b", "c", "d"] {
            deleted(process, &mut model, name).await;
        }
        let both = tokio::join!(
            process.collect(Where::Here),
            process.collect(Where::Elsewhere),
            process.collect(Where::Here)
        );
        assert!(both.0.is_ok() && both.1.is_ok() && both.2.is_ok(), "{both:?}");
        collect(process).await;
        assert_eq!(work::left(process).await, Vec::<String>::new());
    });
}
