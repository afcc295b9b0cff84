//! A process leaves its volumes to the next one of its node: nothing that was acknowledged is missing there, nothing is opened here any more.

use super::World;
use std::path::Path;
use std::time::{Duration, Instant};
use zerofs_csi::catalog::Catalog;
use zerofs_csi::chunk::ChunkCache;
use zerofs_csi::fs::FsMemory;
use zerofs_csi::fs::api::{Caller, CreateHow, FileSystem, SetAttr, Stability};
use zerofs_csi::fs::db::DbCache;
use zerofs_csi::types::{Class, Classify, EntryName, SessionId, VolumeHandle};
use zerofs_csi::volume::{Volume, VolumeSettings, Volumes};

const LIMIT: Duration = Duration::from_secs(30);

/// A process of one node, with its journals.
fn process(journals: &Path) -> Volumes {
    Volumes::new(VolumeSettings {
        node: "node-a".to_owned(),
        session: SessionId::random(),
        journal_dir: Some(journals.to_owned()),
        cache: DbCache::new(16 << 20),
        chunk_cache: ChunkCache::memory(16 << 20),
        // Nothing reaches the store by itself.
        flush_interval: Duration::from_secs(3600),
        memory: FsMemory::new(16 << 20, 8 << 20),
        volumes_max: 8,
    })
}

fn name(text: &str) -> EntryName {
    EntryName::try_from(text.as_bytes()).unwrap()
}

async fn make(volume: &Volume, file: &str) {
    let how = CreateHow::Guarded(SetAttr { mode: Some(0o644), ..SetAttr::default() });
    volume.fs.create(&Caller::root(), volume.fs.root(), &name(file), how).await.unwrap();
}

async fn is_there(volumes: &Volumes, pool: &Catalog, id: VolumeHandle, file: &str) -> bool {
    let since = Instant::now();
    loop {
        match volumes.open(pool, id.dataset).await {
            Ok(volume) => return volume.fs.lookup(&Caller::root(), volume.fs.root(), file.as_bytes()).await.is_ok(),
            // What was left lets go of its journal in its own time.
            Err(error) if error.class().may_pass() && since.elapsed() < LIMIT => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn what_was_acknowledged_is_there_for_the_next_process() {
    super::run(async {
        // As it should be; and where the store takes nothing at the last moment.
        for step in [None, Some("fs.commit.before-flush"), Some("fs.commit.before-write")] {
            let journals = tempfile::tempdir().unwrap();
            let world = World::new().await;
            let (pool, id) = (&world.catalog, world.create("v", None).await.unwrap().handle);
            let first = process(journals.path());
            let volume = first.open(pool, id.dataset).await.unwrap();
            make(&volume, "early").await;
            first.prepare_to_leave().await.unwrap();
            make(&volume, "late").await;
            if let Some(step) = step {
                pool.bucket().failpoints().set(step, "return").unwrap();
            }
            drop(volume);
            first.leave(LIMIT).await.unwrap();
            if let Some(step) = step {
                pool.bucket().failpoints().set(step, "off").unwrap();
            }
            let refused = first.open(pool, id.dataset).await.map(drop).unwrap_err();
            assert_eq!(refused.class(), Class::Unavailable, "{refused}");
            assert!(first.have_left() && first.list().is_empty());

            let next = process(journals.path());
            for file in ["early", "late"] {
                assert!(is_there(&next, pool, id, file).await, "{step:?}: {file}");
            }
            next.close(id.dataset).await.unwrap();
        }
    });
}

/// Opening what was left costs what opening a closed volume costs, and little more: that is the pause of an upgrade.
#[test]
fn what_is_left_is_opened_with_few_requests() {
    super::run(async {
        let journals = tempfile::tempdir().unwrap();
        let world = World::new().await;
        let (pool, id) = (&world.catalog, world.create("v", None).await.unwrap().handle);
        let requests = || {
            let now = pool.bucket().requests();
            now.get + now.put + now.list + now.head
        };
        let mut counts = Vec::new();
        for leaves in [false, true] {
            let process_ = process(journals.path());
            let volume = process_.open(pool, id.dataset).await.unwrap();
            for n in 0..40 {
                make(&volume, &format!("file-{leaves}-{n}")).await;
                volume.fs.sync().await.unwrap();
            }
            let file =
                volume.fs.lookup(&Caller::root(), volume.fs.root(), format!("file-{leaves}-0").as_bytes()).await.unwrap().0.file;
            volume.fs.write(&Caller::root(), file, 0, vec![1; 5000].into(), Stability::Unstable).await.unwrap();
            drop(volume);
            let before = requests();
            if leaves {
                process_.prepare_to_leave().await.unwrap();
                let prepared = requests();
                process_.leave(LIMIT).await.unwrap();
                println!("to prepare {}, to leave {}", prepared - before, requests() - prepared);
            } else {
                process_.close(id.dataset).await.unwrap();
                println!("to close {}", requests() - before);
            }
            let before = requests();
            let next = process(journals.path());
            assert!(is_there(&next, pool, id, &format!("file-{leaves}-39")).await);
            counts.push(requests() - before);
            next.close(id.dataset).await.unwrap();
        }
        println!("requests to open after closing, after leaving: {counts:?}");
        assert!(counts[1] <= counts[0] + 8, "{counts:?}");
    });
}
