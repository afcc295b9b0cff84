//! Creating, snapshotting and cloning take as many requests for 100,000 files as for ten; an idle
//! volume costs a heartbeat; a collection reads of a volume in use what is new in it.

use super::World;
use crate::support::files::{name, top};
use std::time::Duration;
use zerofs_csi::bucket::{Bucket, Limits, Requests};
use zerofs_csi::control::Source;
use zerofs_csi::fs::api::FileKind;
use zerofs_csi::fs::db::{Database, DbCache};
use zerofs_csi::fs::key::{self, NameHash};
use zerofs_csi::fs::row::DirEntryRow;
use zerofs_csi::fs::{Batch, Committer};
use zerofs_csi::telemetry::Failpoints;
use zerofs_csi::types::{FamilyId, InodeNo, VolumeHandle};
use zerofs_csi::volume::{LeaseSettings, Volume, place};

/// Writes the rows of this many files, straight through the committer: a hundred thousand calls
/// would take minutes unoptimised.
async fn fill(world: &World, volume: VolumeHandle, files: usize) {
    world.write(volume, "first", b"makes the database").await;
    let place = place(
        &world.catalog,
        FamilyId::from(volume.dataset.incarnation),
        volume.dataset.incarnation,
        &DbCache::new(8 << 20),
    );
    let db = Database::open(&place, None).await.unwrap();
    let committer =
        Committer::start(db, None, Box::new(|| 0), Failpoints::default()).await.unwrap();
    let hash_key = committer.superblock().name_key;
    let mut left = files;
    while left > 0 {
        let mut batch = Batch::default();
        for _ in 0..left.min(1000) {
            let (ino, _) = committer.new_inode().unwrap();
            let name = name(&format!("file{}", ino.0));
            let entry = DirEntryRow { ino, kind: FileKind::Regular, name: name.clone() };
            batch.put(
                key::dir_entry(InodeNo::ROOT, NameHash::of(&hash_key, name.as_bytes()), 0),
                &entry,
            );
            batch.rows.push((key::inode(ino), Some(vec![7; 100].into())));
            left -= 1;
        }
        let ticket = committer.submit(batch).unwrap();
        committer.durable(ticket).await.unwrap();
    }
    committer.close().await.unwrap();
}

async fn counted(files: usize) -> [Requests; 3] {
    let world = World::new().await;
    let bucket = world.bucket().clone();
    let since = |before: Requests| bucket.requests() - before;
    let at = bucket.requests();
    let volume = world.volume("source").await;
    let create = since(at);
    fill(&world, volume, files).await;
    let at = bucket.requests();
    let cut = world.csi_snapshot(volume, "cut").await;
    let snapshot = since(at);
    let at = bucket.requests();
    world.create("clone", Some(Source::Snapshot(cut))).await.unwrap();
    [create, snapshot, since(at)]
}

/// An opened database looks at its manifest once by itself, in a task of its own: its GETs may come
/// before the count ends, or after.
const FIRST_POLL: u64 = 2;

#[test]
fn requests_do_not_depend_on_the_number_of_files() {
    super::run(async {
        let few = counted(10).await;
        let many = counted(100_000).await;
        println!("CreateVolume, CreateSnapshot, CreateVolume from snapshot: {many:#?}");
        let surely = |counts: [Requests; 3]| counts.map(|count| Requests { get: 0, ..count });
        assert_eq!(surely(many), surely(few));
        for (many, few) in many.iter().zip(&few) {
            assert!(many.get.abs_diff(few.get) <= FIRST_POLL, "{many:?} and {few:?}");
        }
    });
}

/// docs/failover.md: while volumes are open, a heartbeat every 15 seconds, whatever
/// their number, and nothing else.
#[test]
fn an_idle_node_costs_its_heartbeat_however_many_volumes_it_has_open() {
    super::paused(|| async {
        let (one, many) = (idle_hour(1).await, idle_hour(5).await);
        println!("an hour of a node with idle volumes: {one:?}");
        for (hour, volumes) in [(one, 1), (many, 5)] {
            let beats = 239..=241;
            assert!(
                [hour.put, hour.list, hour.delete].iter().all(|n| beats.contains(n)),
                "{volumes} volumes: {hour:?}"
            );
            assert_eq!((hour.get, hour.head), (0, 0), "{volumes} volumes: {hour:?}");
        }
    });
}

/// The requests of an hour with this many volumes open, long after they were last written, with an
/// owner that looks into its mailbox.
async fn idle_hour(volumes: usize) -> Requests {
    let world = World::new().await;
    let mailbox = world.serve_mailbox(Duration::from_secs(2));
    let mut open = Vec::new();
    for n in 0..volumes {
        let volume = world.volume(&format!("v{n}")).await;
        world.write(volume, "file", b"some bytes").await;
        open.push(world.open(volume).await);
    }
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    let before = world.bucket().requests();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let hour = world.bucket().requests() - before;
    mailbox.stop().await;
    hour
}

/// How long another process waits for a snapshot of a volume that a node has open: of an idle one,
/// and of one that is written to.
async fn waits() -> [Duration; 2] {
    let world = World::new().await;
    let elsewhere = world.beside("controller-1");
    let mailbox = world.serve_mailbox(Duration::from_secs(2));
    let volume = world.volume("v").await;
    let open = world.open(volume).await;
    let mut waits = [Duration::ZERO; 2];
    for (n, wait) in waits.iter_mut().enumerate() {
        // Long after it was opened, or a request was there, and soon after a renewal.
        tokio::time::sleep(Duration::from_secs(3601)).await;
        if n == 1 {
            sync_often(&open, 0, 1).await;
        }
        let name = format!("cut{n}").parse().unwrap();
        let asked = tokio::time::Instant::now();
        elsewhere.controller.create_snapshot(volume, name).await.unwrap();
        *wait = asked.elapsed();
    }
    mailbox.stop().await;
    waits
}

/// A request is read with the next renewal of the lease, 15 seconds later at most, and within 2 of
/// a volume in use; whoever asked looks for the answer each second.
#[test]
fn a_request_is_read_with_the_next_renewal_or_while_the_volume_is_used_within_two_seconds() {
    super::paused(|| async {
        let look = Duration::from_secs(1);
        let [idle, used] = waits().await;
        println!("a snapshot asked of an idle owner: {idle:?}; of one in use: {used:?}");
        assert!(idle <= LeaseSettings::default().interval() + look, "{idle:?}");
        assert!(used <= Duration::from_secs(2) + look, "{used:?}");
    });
}

/// The requests of collections in an idle pool with this many volumes, each with two snapshots,
/// after a first one.
async fn idle(volumes: usize) -> Requests {
    let world = World::new().await;
    for n in 0..volumes {
        let volume = world.volume(&format!("v{n}")).await;
        world.create(&format!("v{n}-never-opened"), None).await.unwrap();
        for name in ["one", "two"] {
            world.write(volume, name, &super::data(n as u64, 50_000)).await;
            world.snapshot(volume, name).await;
        }
    }
    world.collect().await;
    let before = world.bucket().requests();
    world.collect().await;
    world.bucket().requests() - before
}

#[test]
fn a_collection_of_an_idle_pool_is_listings_however_many_volumes_there_are() {
    super::run(async {
        let (few, many) = (idle(1).await, idle(12).await);
        println!("a collection of an idle pool: {many:?}");
        assert_eq!(many, few);
        assert_eq!((many.get, many.put, many.head, many.delete), (0, 0, 0, 0), "{many:?}");
    });
}

/// Makes changes that are each synced: a WAL object each.
async fn sync_often(volume: &Volume, from: usize, times: usize) {
    for n in from..from + times {
        top::create(&*volume.fs, &format!("file{n}")).await;
        volume.fs.sync().await.unwrap();
    }
}

#[test]
fn a_collection_reads_of_a_volume_in_use_only_what_is_new() {
    super::run(async {
        let bucket = Bucket::memory();
        let owner = World::builder("node-a").create(bucket.clone()).await;
        let volume = owner.volume("v").await;
        let open = owner.open(volume).await;
        // Counts on its own: the owner looks at its manifest while a slow collection goes on.
        let bucket = bucket.with_limits(Limits::default());
        let controller = World::builder("controller-1").open(bucket.clone()).await;
        sync_often(&open, 0, 200).await;
        controller.collect().await;
        let mut counts = Vec::new();
        for round in 0..4 {
            sync_often(&open, 200 + round * 8, 8).await;
            let before = bucket.requests();
            controller.collect().await;
            counts.push(bucket.requests() - before);
        }
        println!("collections, each after 8 syncs of one volume: {counts:#?}");
        for count in counts {
            // The objects, and of the database its manifests and what a MemTable flush has made of
            // earlier ones.
            assert!(count.get <= 8 + 16 && count.head <= 4, "{count:?}");
        }
    });
}
