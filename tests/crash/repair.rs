//! `check` finds every damage of a row, and `--repair` repairs what follows from the rest, through
//! deaths at each of its steps; what it may not decide it leaves as it is, and it changes nothing
//! that a name leads to.

use crate::script::bytes;
use crate::support::files;
use crate::support::volume::Dataset;
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::fs::api::*;
use zerofs_csi::fs::check::{Problem, Repair, Report, check, repair};
use zerofs_csi::fs::db::{Database, Reader};
use zerofs_csi::fs::key::{self, Key};
use zerofs_csi::fs::row::{DirEntryRow, Inode, Orphan, Row, TruncationMask};
use zerofs_csi::fs::{Batch, Committer, Fs, FsError};
use zerofs_csi::types::InodeNo;

/// A tree with data in rows and in packs; answers its inodes.
async fn make(dataset: &Dataset) -> BTreeMap<&'static str, InodeNo> {
    let fs = dataset.open().await;
    let root = fs.root();
    let dir = files::mkdir(&fs, root, "dir").await;
    let sub = files::mkdir(&fs, dir, "sub").await;
    let mut made = BTreeMap::from([("root", root.ino), ("dir", dir.ino), ("sub", sub.ino)]);
    for (text, at, len) in [("small", root, 900), ("large", dir, 200_000), ("linked", sub, 5000)] {
        let file = files::write(&fs, at, text, &bytes(len as u64, len)).await;
        made.insert(text, file.ino);
        if text == "linked" {
            fs.link(&files::root(), file, root, &files::name("again")).await.unwrap();
        }
    }
    fs.close().await.unwrap();
    made
}

/// The inode and the data behind each name.
async fn look(fs: &Fs) -> BTreeMap<String, (InodeNo, Vec<u8>)> {
    let found = files::tree(fs, fs.root()).await.unwrap().into_iter();
    let found = found.filter(|(_, object)| object.attr.kind != FileKind::Directory);
    found.map(|(path, object)| (path, (object.attr.file.ino, object.content))).collect()
}

async fn committer(dataset: &Dataset) -> Result<Committer, FsError> {
    let database = Database::open(&dataset.place, None).await?;
    Committer::start(database, None, Box::new(|| 0), dataset.place.bucket.failpoints().clone())
        .await
}

async fn report(dataset: &Dataset) -> Report {
    let reader = Reader::newest(&dataset.place).await.unwrap();
    let report = check(&reader).await.unwrap();
    reader.close().await.unwrap();
    report
}

async fn damage(dataset: &Dataset, how: &Damage, made: &BTreeMap<&'static str, InodeNo>) {
    let committer = committer(dataset).await.unwrap();
    let batch = how(&committer, made).await;
    committer.durable(committer.submit(batch).unwrap()).await.unwrap();
    committer.close().await.unwrap();
}

type Made = BTreeMap<&'static str, InodeNo>;
type Damage = Box<dyn for<'a> Fn(&'a Committer, &'a Made) -> BoxFuture<'a, Batch>>;

/// A change of one inode's row.
fn inode(which: &'static str, change: fn(&mut Inode)) -> Damage {
    Box::new(move |committer, made| {
        Box::pin(async move {
            let at = key::inode(made[which]);
            let mut row = Inode::decode(&committer.get(&at).await.unwrap().unwrap()).unwrap();
            change(&mut row);
            let mut batch = Batch::default();
            batch.put(at, &row);
            batch
        })
    })
}

fn batch(
    make: impl for<'a> Fn(&'a Committer, &'a Made) -> BoxFuture<'a, Batch> + 'static,
) -> Damage {
    Box::new(make)
}

async fn row_of(committer: &Committer, ino: InodeNo) -> Inode {
    Inode::decode(&committer.get(&key::inode(ino)).await.unwrap().unwrap()).unwrap()
}

/// A row of a scan whose key and value are wanted.
async fn first(
    committer: &Committer,
    tag: u8,
    wanted: fn(&Key, &[u8]) -> bool,
) -> (bytes::Bytes, Vec<u8>) {
    let rows = committer
        .scan(
            bytes::Bytes::copy_from_slice(&[tag]),
            bytes::Bytes::copy_from_slice(&[tag + 1]),
            1000,
        )
        .await
        .unwrap();
    let found = rows
        .into_iter()
        .find(|(at, row)| wanted(&Key::parse(at).unwrap(), row))
        .expect("such a row");
    (found.0, found.1.to_vec())
}

/// Damage that `check --repair` repairs.
fn mendable() -> Vec<(&'static str, Damage)> {
    vec![
        (
            "the count of inodes",
            batch(|_, _| Box::pin(async { Batch { inodes: 7, ..Batch::default() } })),
        ),
        (
            "the count of bytes",
            batch(|_, _| Box::pin(async { Batch { allocated: 12_345, ..Batch::default() } })),
        ),
        ("a link too many", inode("linked", |row| row.nlink = 3)),
        ("a link too few", inode("linked", |row| row.nlink = 1)),
        ("a directory's links", inode("dir", |row| row.nlink = 9)),
        ("a directory's size", inode("dir", |row| row.size = 0)),
        ("a directory's parent", inode("sub", |row| row.parent = InodeNo::ROOT)),
        ("a file's allocated bytes", inode("large", |row| row.allocated = 1)),
        (
            "a mask that is not queued",
            inode("large", |row| {
                row.truncations = 1;
                row.masks = vec![TruncationMask { first: 1 << 20, truncations: 1 }];
            }),
        ),
        (
            "live data that is queued for reclaim",
            batch(|committer, made| {
                Box::pin(async move {
                    let mut batch = Batch::default();
                    let row = row_of(committer, made["small"]).await;
                    batch.put(key::orphan(row.data), &Orphan { from: 0, inode: None });
                    batch
                })
            }),
        ),
        (
            "references counted that are not there",
            batch(|committer, _| {
                Box::pin(async move {
                    let (at, _) = first(committer, b'U', |_, _| true).await;
                    let Some(Key::Usage(pack)) = Key::parse(&at) else { panic!("a usage") };
                    Batch { refs: vec![(pack, 5)], ..Batch::default() }
                })
            }),
        ),
        (
            "references there that are not counted",
            batch(|committer, _| {
                Box::pin(async move {
                    let (at, _) = first(committer, b'U', |_, _| true).await;
                    let Some(Key::Usage(pack)) = Key::parse(&at) else { panic!("a usage") };
                    Batch { refs: vec![(pack, -1)], ..Batch::default() }
                })
            }),
        ),
        (
            "records of no inode",
            batch(|committer, _| {
                Box::pin(async move {
                    let (at, row) = first(committer, b'X', |_, row| row.len() > 100).await;
                    let Some(Key::Extent(_, n)) = Key::parse(&at) else { panic!("a record") };
                    let data = committer.new_data().unwrap();
                    let mut batch = Batch::default();
                    batch.rows.push((key::extent(data, n), Some(row.into())));
                    batch
                })
            }),
        ),
    ]
}

/// Damage that only an administrator can decide about.
fn undecidable() -> Vec<(&'static str, Damage)> {
    vec![
        (
            "an inode that nothing names",
            batch(|committer, made| {
                Box::pin(async move {
                    let (at, _) = first(committer, b'D', |key, row| {
                        let entry = DirEntryRow::decode(row).unwrap();
                        matches!(key, Key::DirEntry { .. }) && entry.name.as_bytes() == b"small"
                    })
                    .await;
                    let _ = made;
                    let mut batch = Batch::default();
                    batch.delete(at);
                    batch
                })
            }),
        ),
        (
            "an entry of nothing",
            batch(|_, made| {
                Box::pin(async move {
                    let mut batch = Batch { inodes: -1, ..Batch::default() };
                    batch.delete(key::inode(made["small"]));
                    batch
                })
            }),
        ),
        (
            "a row that cannot be read",
            batch(|_, made| {
                Box::pin(async move {
                    Batch {
                        rows: vec![(
                            key::inode(made["small"]),
                            Some(bytes::Bytes::from_static(b"\x01\xff\xff")),
                        )],
                        ..Batch::default()
                    }
                })
            }),
        ),
        ("bytes behind the end", inode("large", |row| row.size = 100)),
    ]
}

fn dataset(folder: &std::path::Path) -> Dataset {
    Dataset::new(Bucket::memory(), folder.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_from_the_rest_is_repaired() {
    for (what, how) in mendable() {
        let folder = tempfile::tempdir().unwrap();
        let mut dataset = dataset(folder.path());
        let made = make(&dataset).await;
        let (before, clean) = {
            let fs = dataset.open().await;
            let found = look(&fs).await;
            fs.close().await.unwrap();
            (found, report(&dataset).await)
        };
        assert!(clean.is_clean() && clean.repairs.is_empty(), "{what}: {:?}", clean.findings);
        damage(&dataset, &how, &made).await;
        let damaged = report(&dataset).await;
        assert!(!damaged.is_clean(), "{what} goes unnoticed");
        assert!(!damaged.repairs.is_empty(), "{what} is not repaired: {:?}", damaged.findings);
        let committer = committer(&dataset).await.unwrap();
        let repaired = repair(&committer).await.unwrap();
        committer.close().await.unwrap();
        assert!(
            repaired.after.is_clean(),
            "{what}, repaired by {:?}: {:?}",
            damaged.repairs,
            repaired.after.findings
        );
        assert!(report(&dataset).await.is_clean(), "{what}: in the store too");
        dataset.options.journal = None;
        let fs = dataset.open().await;
        assert_eq!(look(&fs).await, before, "{what}: what names lead to has changed");
        fs.close().await.unwrap();
        assert!(report(&dataset).await.is_clean(), "{what}: after its reclaim");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_its_owner_can_decide_is_left_alone() {
    for (what, how) in undecidable() {
        let folder = tempfile::tempdir().unwrap();
        let dataset = dataset(folder.path());
        let made = make(&dataset).await;
        damage(&dataset, &how, &made).await;
        let damaged = report(&dataset).await;
        assert!(!damaged.is_clean(), "{what} goes unnoticed");
        let deletes =
            |repair: &Repair| matches!(repair, Repair::Queue(_, Orphan { inode: None, .. }));
        assert!(!damaged.repairs.iter().any(deletes), "{what}: {:?}", damaged.repairs);
        let rows = async |committer: &Committer| {
            let all = committer
                .scan(bytes::Bytes::from_static(b"D"), bytes::Bytes::from_static(b"Y"), 1000)
                .await
                .unwrap();
            all.into_iter().filter(|(at, _)| matches!(at[0], b'D' | b'X')).collect::<Vec<_>>()
        };
        let committer = committer(&dataset).await.unwrap();
        let before = rows(&committer).await;
        let repaired = repair(&committer).await.unwrap();
        assert!(!repaired.after.is_clean(), "{what} was decided: {:?}", repaired.before.findings);
        assert_eq!(rows(&committer).await, before, "{what}: entries or records were changed");
        assert_eq!(
            repaired.after.findings.iter().any(|f| f.problem == Problem::Row),
            what.contains("read"),
            "{what}"
        );
        committer.close().await.unwrap();
    }
}

/// A repair that is interrupted leaves less to repair, and is finished by the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_repair_is_finished_by_the_next() {
    for step in ["fs.check.before-repair", "fs.check.repaired"] {
        for after in 0..3 {
            let folder = tempfile::tempdir().unwrap();
            let dataset = dataset(folder.path());
            let made = make(&dataset).await;
            for (_, how) in mendable().into_iter().take(8) {
                damage(&dataset, &how, &made).await;
            }
            let first = committer(&dataset).await.unwrap();
            dataset
                .place
                .bucket
                .failpoints()
                .set(step, &format!("{after}*off->1*return->off"))
                .unwrap();
            let interrupted = repair(&first).await;
            first.abandon().await;
            drop(first);
            dataset.place.bucket.failpoints().set(step, "off").unwrap();
            let second = committer(&dataset).await.unwrap();
            let repaired = repair(&second).await.unwrap();
            second.close().await.unwrap();
            assert!(
                repaired.after.is_clean(),
                "{step} after {after}, {interrupted:?}: {:?}",
                repaired.after.findings
            );
        }
    }
}
