//! Walks a tree of a snapshot from its top to its end, one entry at a time: a directory is entered
//! where the caller wants that, and left after its last entry.
//!
//! Bounded memory for a directory of any size: a page of entries for each of the innermost
//! [`PAGES_HELD`] directories; one further up reads its page again from where it was. A tree of any
//! depth: a directory's row and name for each level.

use super::FsError;
use super::inode::Entry;
use super::key::{self, NameHash};
use super::snapshot_fs::{SnapshotFs, SnapshotInode};
use crate::types::{EntryName, InodeNo};
use std::collections::VecDeque;

/// Entries read at a time.
const PAGE_ENTRIES: usize = 1024;
/// The innermost directories that keep what they have read.
const PAGES_HELD: usize = 16;

pub struct Walk<'a> {
    view: &'a SnapshotFs,
    levels: Vec<Level>,
}

struct Level {
    /// In the directory around it; the top has none.
    name: Option<EntryName>,
    dir: SnapshotInode,
    /// The position after the last entry that was returned.
    from: (NameHash, u16),
    page: VecDeque<(NameHash, Entry)>,
    /// There may be entries after the page.
    more: bool,
}

impl<'a> Walk<'a> {
    pub fn new(view: &'a SnapshotFs) -> Self {
        Self { view, levels: Vec::new() }
    }

    /// The number of directories entered.
    pub fn depth(&self) -> usize {
        self.levels.len()
    }

    /// The names on the path from the top to the directory that was entered last.
    pub fn names(&self) -> impl Iterator<Item = &EntryName> {
        self.levels.iter().filter_map(|level| level.name.as_ref())
    }

    /// Enters a directory; the first one is the top. `name`: in the directory around it.
    pub fn enter(&mut self, dir: SnapshotInode, name: Option<EntryName>) {
        self.levels.push(Level { name, dir, from: key::FIRST, page: VecDeque::new(), more: true });
        if let Some(level) = self.levels.iter_mut().rev().nth(PAGES_HELD)
            && !level.page.is_empty()
        {
            level.page = VecDeque::new();
            level.more = true;
        }
    }

    /// The next entry of the directory that was entered last; `None` at its end.
    pub async fn next(&mut self) -> Result<Option<(EntryName, InodeNo)>, FsError> {
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        if level.page.is_empty() && level.more {
            let page = self.view.entries(level.dir.ino, level.from, PAGE_ENTRIES).await?;
            level.more = page.len() == PAGE_ENTRIES;
            level.page = page.into();
        }
        let Some((hash, entry)) = level.page.pop_front() else { return Ok(None) };
        level.from = key::position_after(key::cookie(hash, entry.n)).ok_or(FsError::BadCookie)?;
        Ok(Some((entry.name, entry.ino)))
    }

    /// Leaves the directory that was entered last, and returns it.
    pub fn leave(&mut self) -> Option<SnapshotInode> {
        self.levels.pop().map(|level| level.dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::Bucket;
    use crate::chunk::{ChunkCache, ChunkStore, Codec};
    use crate::crypto::Keyring;
    use crate::fs::api::{Caller, CreateHow, FileKind, FileRef, FileSystem, SetAttr};
    use crate::fs::db::{DbCache, DbPlace, Reader};
    use crate::fs::{Fs, FsMemory, FsOptions, FsProperties, RootAttr, SyncMode};
    use crate::types::{FamilyId, Incarnation, IoLimits, PoolId, WallClock};
    use std::time::Duration;

    async fn files(fs: &Fs, dir: FileRef, count: usize) {
        for first in (0..count).step_by(1000) {
            let create = |n: usize| async move {
                let name = EntryName::try_from(format!("file {n}").as_bytes()).unwrap();
                fs.create(&Caller::root(), dir, &name, CreateHow::Guarded(SetAttr::default()))
                    .await
                    .unwrap();
            };
            futures::future::join_all((first..count.min(first + 1000)).map(create)).await;
        }
    }

    /// However many entries a directory has, and however many directories are entered.
    #[tokio::test]
    async fn little_is_held_and_nothing_is_missed() {
        const MANY: usize = 20_000;
        const DEPTH: usize = 20;
        const BESIDE: usize = 1030;
        let place =
            DbPlace::new(Bucket::memory(), Incarnation::random(), None, DbCache::new(32 << 20));
        let chunks = || {
            let keyring = Keyring::plain(PoolId::random());
            ChunkStore::new(
                place.bucket.clone(),
                FamilyId::from(place.incarnation),
                &keyring,
                ChunkCache::memory(1 << 20),
            )
        };
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
            memory: FsMemory::new(1 << 20, 64 << 20),
            clock: WallClock::default(),
            journal: None,
            root: RootAttr { uid: 0, gid: 0, mode: 0o755 },
        };
        let fs = Fs::open(&place, chunks(), options).await.unwrap();
        files(&fs, fs.root(), MANY).await;
        let mut dir = fs.root();
        for _ in 0..DEPTH {
            let name = EntryName::try_from(&b"d"[..]).unwrap();
            dir =
                fs.mkdir(&Caller::root(), dir, &name, SetAttr::default()).await.unwrap().attr.file;
            files(&fs, dir, BESIDE).await;
        }
        fs.close().await.unwrap();

        let view = SnapshotFs::new(Reader::newest(&place).await.unwrap(), chunks()).await.unwrap();
        let mut walk = Walk::new(&view);
        walk.enter(view.root_inode().clone(), None);
        let (mut found, mut deepest, mut most) = (0, 0, 0);
        while walk.depth() > 0 {
            match walk.next().await.unwrap() {
                Some((name, ino)) => {
                    found += 1;
                    let object = view.inode(ino).await.unwrap();
                    if object.row.kind == FileKind::Directory {
                        walk.enter(object, Some(name));
                    }
                }
                None => drop(walk.leave()),
            }
            deepest = deepest.max(walk.names().count());
            most = most.max(walk.levels.iter().map(|level| level.page.len()).sum());
        }
        assert_eq!((found, deepest), (MANY + DEPTH * (BESIDE + 1), DEPTH));
        assert!(most <= PAGES_HELD * PAGE_ENTRIES, "{most}");
        view.close().await.unwrap();
    }
}
