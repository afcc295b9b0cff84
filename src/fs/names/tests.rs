//! Names that share a hash, which never happens with all 47 bits; listings of more than memory
//! holds.

use super::Replaceable;
use super::lookup::HASH_BITS;
use crate::bucket::Bucket;
use crate::chunk::{ChunkCache, ChunkStore, Codec};
use crate::crypto::Keyring;
use crate::fs::api::*;
use crate::fs::committer::Ticket;
use crate::fs::db::{DbCache, DbPlace};
use crate::fs::inode::{Loaded, Lookup, Node};
use crate::fs::{Fs, FsError, FsMemory, FsOptions, FsProperties, RootAttr, SyncMode};
use crate::types::{EntryName, FamilyId, Incarnation, InodeNo, IoLimits, PoolId, WallClock};
use std::collections::BTreeSet;
use std::time::Duration;

fn name(text: &str) -> EntryName {
    EntryName::try_from(text.as_bytes()).unwrap()
}

struct Place(DbPlace, Keyring);

impl Place {
    async fn open(&self) -> Fs {
        let Self(place, keyring) = self;
        let options = FsOptions {
            properties: FsProperties {
                sync: SyncMode::Disabled,
                quota_bytes: None,
                quota_inodes: None,
                record_bytes: 4096,
                codec: Codec::Lz4,
                shows_snapshots: false,
                limits: IoLimits::default(),
            },
            flush_interval: Duration::from_secs(1),
            memory: FsMemory::new(1 << 20, 1 << 20),
            journal: None,
            root: RootAttr { uid: 0, gid: 0, mode: 0o755 },
            clock: WallClock::default(),
        };
        let chunks = ChunkStore::new(
            place.bucket.clone(),
            FamilyId::from(place.incarnation),
            keyring,
            ChunkCache::memory(1 << 20),
        );
        Fs::open(place, chunks, options).await.unwrap()
    }
}

async fn names(fs: &Fs) -> BTreeSet<Vec<u8>> {
    let limit = ListLimit { entries: 2, bytes: 1000, entry_bytes: 10, with_attr: false };
    let (mut names, mut after) = (BTreeSet::new(), DirCookie(0));
    loop {
        let listing = fs.readdir(&Caller::root(), fs.root(), after, limit).await.unwrap();
        for entry in listing.entries {
            assert!(entry.cookie > after);
            after = entry.cookie;
            assert!(names.insert(entry.name.to_vec()), "listed twice");
        }
        if listing.eof {
            names.retain(|name| !name.starts_with(b"."));
            return names;
        }
    }
}

/// Background flushes submit without waiting: when the node has left memory and comes back, a
/// COMMIT must still wait for them.
#[tokio::test]
async fn a_node_that_comes_back_waits_for_what_was_submitted() {
    let bucket = Bucket::memory();
    let place = DbPlace::new(bucket, Incarnation::random(), None, DbCache::new(1 << 20));
    let fs = Place(place, Keyring::plain(PoolId::random())).open().await;
    let created = fs
        .create(&Caller::root(), fs.root(), &name("file"), CreateHow::Guarded(SetAttr::default()))
        .await
        .unwrap();
    let file = created.attr.file;
    let submitted = fs.committer.last();
    fs.inodes.forget(file.ino);
    let node = fs.inodes.load(file.ino).await.unwrap().unwrap();
    assert!(node.last() >= submitted, "{:?} {submitted:?}", node.last());
    // And so does one whose row a listing has left in memory.
    fs.inodes.forget(file.ino);
    drop(node);
    let limit = ListLimit { entries: 10, bytes: 1000, entry_bytes: 10, with_attr: true };
    fs.readdir(&Caller::root(), fs.root(), DirCookie(0), limit).await.unwrap();
    assert!(fs.inodes.peek(file.ino).is_none());
    let node = fs.inodes.load(file.ino).await.unwrap().unwrap();
    assert!(node.last() >= submitted, "{:?} {submitted:?}", node.last());
}

#[tokio::test]
async fn names_of_one_hash_live_side_by_side() {
    HASH_BITS.set(1);
    let bucket = Bucket::memory();
    let place = DbPlace::new(bucket, Incarnation::random(), None, DbCache::new(1 << 20));
    let place = Place(place, Keyring::plain(PoolId::random()));
    let mut fs = place.open().await;
    let (root, caller) = (fs.root(), Caller::root());
    let mut model: BTreeSet<Vec<u8>> = BTreeSet::new();
    for step in 0..120u32 {
        let (a, b) = (format!("{}", step * 7 % 13), format!("{}", step * 5 % 11));
        if step % 3 == 0 {
            let removed = fs.remove(&caller, root, &name(&a)).await;
            assert_eq!(removed.is_ok(), model.remove(a.as_bytes()), "{removed:?}");
        } else if step % 3 == 1 {
            let renamed = fs.rename(&caller, (root, &name(&a)), (root, &name(&b))).await;
            let existed = model.remove(a.as_bytes());
            assert_eq!(renamed.is_ok(), existed, "{renamed:?}");
            if existed {
                model.insert(b.into_bytes());
            }
        } else {
            let how = CreateHow::Guarded(SetAttr::default());
            let created = fs.create(&caller, root, &name(&b), how).await;
            assert_eq!(created.is_ok(), model.insert(b.into_bytes()), "{created:?}");
        }
        if step % 10 == 9 {
            fs.close().await.unwrap();
            fs = place.open().await;
        }
        // Before the listing on every other step, so that single buckets are looked up too.
        for n in 0..13 {
            let text = n.to_string();
            let found = fs.lookup(&caller, root, text.as_bytes()).await;
            assert_eq!(found.is_ok(), model.contains(text.as_bytes()), "{text}: {found:?}");
            assert!(found.is_ok() || matches!(found, Err(FsError::NotFound)));
        }
        assert_eq!(names(&fs).await, model, "after step {step}");
    }
    fs.close().await.unwrap();
}

async fn listed(fs: &Fs, dir: FileRef, page: usize) -> Vec<DirEntry> {
    let limit = ListLimit { entries: page, bytes: 1 << 20, entry_bytes: 10, with_attr: true };
    let (mut found, mut after) = (Vec::new(), DirCookie(0));
    loop {
        let listing = fs.readdir(&Caller::root(), dir, after, limit).await.unwrap();
        after = listing.entries.last().map_or(after, |entry| entry.cookie);
        found.extend(listing.entries.into_iter().filter(|entry| !entry.name.starts_with(b".")));
        if listing.eof {
            return found;
        }
    }
}

/// Everything that a listing shows is what GETATTR shows, wherever the attributes come from.
async fn assert_agrees(fs: &Fs, dir: FileRef, expected: usize) {
    let entries = listed(fs, dir, 300).await;
    assert_eq!(entries.len(), expected);
    for entry in entries {
        let attr = entry.attr.unwrap();
        let shown = fs.getattr(attr.file).await.unwrap();
        assert_eq!(
            (attr.file.ino, attr.mode, attr.size, attr.ctime),
            (entry.ino, shown.mode, shown.size, shown.ctime)
        );
    }
}

#[tokio::test]
async fn a_listing_shows_what_getattr_shows_and_makes_no_nodes() {
    const FILES: usize = 800;
    let bucket = Bucket::memory();
    let place = DbPlace::new(bucket, Incarnation::random(), None, DbCache::new(1 << 20));
    let place = Place(place, Keyring::plain(PoolId::random()));
    let fs = place.open().await;
    let caller = Caller::root();
    let dir =
        fs.mkdir(&caller, fs.root(), &name("dir"), SetAttr::default()).await.unwrap().attr.file;
    let create = |n: usize| {
        let (fs, caller) = (&fs, &caller);
        async move {
            let how = CreateHow::Guarded(SetAttr::default());
            fs.create(caller, dir, &name(&n.to_string()), how).await.unwrap().attr.file
        }
    };
    let mut files = Vec::new();
    for first in (0..FILES).step_by(400) {
        files.extend(futures::future::join_all((first..first + 400).map(create)).await);
    }
    assert_agrees(&fs, dir, FILES).await;
    // One object with two names on one page of a listing.
    let pair =
        fs.mkdir(&caller, fs.root(), &name("pair"), SetAttr::default()).await.unwrap().attr.file;
    for link in ["one", "two"] {
        fs.link(&caller, files[0], pair, &name(link)).await.unwrap();
    }
    fs.close().await.unwrap();

    let fs = place.open().await;
    assert_agrees(&fs, pair, 2).await;
    let nodes = fs.inodes.nodes();
    assert_eq!(listed(&fs, dir, 300).await.len(), FILES);
    assert!(fs.inodes.nodes() <= nodes + 1, "a listing makes no nodes");
    assert!(fs.inodes.rows() > 100, "a listing leaves rows in memory");
    // Changes of cached rows, of rows that were evicted, and of files that are dirty while the
    // directory is listed.
    for step in 0..3usize {
        // Some of 300 to 359 are removed below.
        for n in (step..FILES).step_by(37).filter(|n| !(300..360).contains(n)) {
            let set = SetAttr { mode: Some(0o600 + step as u32), ..SetAttr::default() };
            fs.setattr(&caller, files[n], set, None).await.unwrap();
            fs.write(&caller, files[n], 0, vec![1; step + 1].into(), Stability::Unstable)
                .await
                .unwrap();
        }
        assert_agrees(&fs, dir, FILES - step * 20).await;
        for n in 0..20 {
            fs.remove(&caller, dir, &name(&(step * 20 + n + 300).to_string())).await.unwrap();
        }
    }
    fs.close().await.unwrap();
}

/// A handle of a create that was lost with its node names a number that is given out again (R7). A
/// caller that asks for it while the inode is created must not get a second node of it: changes
/// made through one would be unknown to the other.
#[tokio::test]
async fn an_inode_made_while_an_old_handle_is_looked_up_has_one_node() {
    let bucket = Bucket::memory();
    let place = DbPlace::new(bucket, Incarnation::random(), None, DbCache::new(1 << 20));
    let fs = Place(place, Keyring::plain(PoolId::random())).open().await;
    let (next, _) = fs.committer.new_inode().unwrap();
    for (n, looked_up) in ["finds the new row", "finds nothing"].into_iter().enumerate() {
        // The number that the create takes.
        let ino = InodeNo(next.0 + 1 + n as u64);
        let Lookup::Missing(load) = fs.inodes.lookup(ino) else { panic!("nobody knows it yet") };
        let Lookup::Loading(waiting) = fs.inodes.lookup(ino) else { panic!("it is being loaded") };
        let how = CreateHow::Guarded(SetAttr::default());
        let made = fs
            .create(&Caller::root(), fs.root(), &name(&format!("file{n}")), how)
            .await
            .unwrap()
            .attr
            .file;
        assert_eq!(made.ino, ino, "the number is the one that was asked for");
        let node = fs.inodes.peek(ino).unwrap();
        if n == 0 {
            let row = node.row.read().clone();
            assert!(
                matches!(load.finish(Node::new(ino, row, Ticket::default())), Loaded::Overtaken),
                "{looked_up}"
            );
        } else {
            drop(load);
        }
        assert!(waiting.is_cancelled(), "{looked_up}: nobody waits for ever");
        let found = fs.inodes.load(ino).await.unwrap().unwrap();
        assert!(std::sync::Arc::ptr_eq(&node, &found), "{looked_up}: a second node of one inode");
        assert!(
            matches!(
                fs.getattr(FileRef { generation: made.generation ^ 1, ..made }).await,
                Err(FsError::Stale)
            ),
            "{looked_up}"
        );
    }
}

/// A file that has reached its limit of names does not replace another, which stays.
#[tokio::test]
async fn a_link_that_is_refused_leaves_what_has_the_name() {
    let bucket = Bucket::memory();
    let place = DbPlace::new(bucket, Incarnation::random(), None, DbCache::new(1 << 20));
    let fs = Place(place, Keyring::plain(PoolId::random())).open().await;
    let (root, caller) = (fs.root(), Caller::root());
    let mut made = Vec::new();
    for n in ["a", "b"] {
        made.push(
            fs.create(&caller, root, &name(n), CreateHow::Guarded(SetAttr::default()))
                .await
                .unwrap()
                .attr
                .file,
        );
    }
    let found = async |n: &str| fs.lookup(&caller, root, n.as_bytes()).await.unwrap().0;
    let node = fs.inodes.node(made[0]).await.unwrap();
    node.row.write().nlink = LINKS_MAX;
    let refused = fs.names.place_link(made[0], root, &name("b"), Replaceable::Any).await;
    assert!(matches!(refused, Err(FsError::TooManyLinks)), "{refused:?}");
    assert_eq!((found("b").await.file, found("b").await.nlink), (made[1], 1));
    node.row.write().nlink = 1;
    let refused = fs.names.place_link(made[0], root, &name("b"), Replaceable::None).await;
    assert!(matches!(refused, Err(FsError::Exists)), "{refused:?}");
    fs.names
        .place_link(made[0], root, &name("a"), Replaceable::Any)
        .await
        .expect("it is one already");
    let kept = Replaceable::Only(Some(made[0]));
    let other = fs.names.place_link(made[0], root, &name("b"), kept).await.unwrap();
    assert_eq!((other, found("b").await.file), (None, made[1]), "another object has the name");
    fs.names.place_link(made[0], root, &name("b"), Replaceable::Any).await.unwrap();
    assert_eq!((found("b").await.file, found("a").await.nlink), (made[0], 2));
    assert!(fs.inodes.load(made[1].ino).await.unwrap().is_none(), "what was replaced is gone");
    fs.close().await.unwrap();
}
