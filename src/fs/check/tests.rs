//! Every problem is found, and a sound dataset has none.

use super::*;
use crate::chunk::{ChunkRef, Codec};
use crate::fs::api::FileKind;
use crate::fs::key::NameHash;
use crate::fs::row::{DirEntryRow, Extent, Row, Segment, Source, TruncationMask};
use crate::types::{ChunkHash, EntryName, Epoch, Incarnation, Timestamp};
use std::collections::BTreeMap;

type Table = BTreeMap<Bytes, Bytes>;

impl Rows for Table {
    async fn page(
        &self,
        from: Bytes,
        to: Bytes,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, FsError> {
        Ok(self.range(from..to).take(limit).map(|(k, v)| (k.clone(), v.clone())).collect())
    }
}

const NAME_KEY: [u8; 16] = [3; 16];

fn inode(kind: FileKind, size: u64, nlink: u32) -> Inode {
    let at = Timestamp::from_nanos(5);
    Inode {
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        nlink,
        size,
        allocated: 0,
        rdev: (0, 0),
        atime: at,
        mtime: at,
        ctime: at,
        generation: 1 << 32,
        parent: InodeNo::ROOT,
        data: DataId(0),
        record_bits: 12,
        truncations: 0,
        masks: vec![],
        exclusive: None,
        fs_group_epoch: 0,
        target: None,
    }
}

fn name(text: &str) -> EntryName {
    EntryName::try_from(text.as_bytes().to_vec()).unwrap()
}

fn entry_key(dir: u64, text: &str) -> Bytes {
    key::dir_entry(InodeNo(dir), NameHash::of(&NAME_KEY, text.as_bytes()), 0)
}

fn entry(table: &mut Table, dir: u64, text: &str, ino: u64, kind: FileKind) {
    table.insert(
        entry_key(dir, text),
        DirEntryRow { ino: InodeNo(ino), kind, name: name(text) }.encode(),
    );
}

fn pack() -> PackId {
    PackId { creator: Incarnation::from_bytes([1; 16]), epoch: Epoch(1), seq: 1 }
}

fn chunk() -> Source {
    let chunk = ChunkRef {
        hash: ChunkHash([1; 32]),
        pack: pack(),
        offset: 0,
        stored_len: 10,
        raw_len: 100,
        codec: Codec::None,
    };
    Source::Chunk { chunk, from: 10 }
}

/// Root with a file of two extents, linked twice, and a directory with a symbolic link.
fn sound() -> Table {
    let mut table = Table::new();
    let superblock = Superblock {
        next_inode: 100,
        next_data: 100,
        inodes: 4,
        allocated: 95,
        name_key: NAME_KEY,
        writer_epoch: 1,
        settled: 0,
        batch_seq: 1,
        fs_group: None,
        fs_group_epoch: 0,
    };
    table.insert(key::superblock(), superblock.encode());
    table.insert(key::inode(InodeNo(1)), inode(FileKind::Directory, 2, 3).encode());
    let file = Inode { allocated: 95, data: DataId(7), ..inode(FileKind::Regular, 4096 + 90, 2) };
    table.insert(key::inode(InodeNo(2)), file.encode());
    table.insert(key::inode(InodeNo(3)), inode(FileKind::Directory, 2, 2).encode());
    table.insert(
        key::inode(InodeNo(4)),
        Inode { target: Some(b"abc".to_vec()), ..inode(FileKind::Symlink, 3, 1) }.encode(),
    );
    entry(&mut table, 1, "file", 2, FileKind::Regular);
    entry(&mut table, 1, "dir", 3, FileKind::Directory);
    entry(&mut table, 3, "link", 4, FileKind::Symlink);
    entry(&mut table, 3, "again", 2, FileKind::Regular);
    extent(
        &mut table,
        7,
        0,
        vec![Segment { start: 10, len: 5, source: Source::Inline(vec![1; 5].into()) }],
    );
    extent(&mut table, 7, 1, vec![Segment { start: 0, len: 90, source: chunk() }]);
    extent(&mut table, 8, 0, vec![Segment { start: 0, len: 90, source: chunk() }]);
    table.insert(key::orphan(DataId(8)), Orphan { from: 0, inode: None }.encode());
    table.insert(key::usage(pack()), Usage { refs: 2, sealed: false }.encode());
    table
}

fn extent(table: &mut Table, data: u64, n: u64, segments: Vec<Segment>) {
    table.insert(key::extent(DataId(data), n), Extent { truncations: 0, segments }.encode());
}

fn changed<R: Row>(table: &mut Table, at: Bytes, change: impl FnOnce(&mut R)) {
    let mut row = R::decode(&table[&at]).unwrap();
    change(&mut row);
    table.insert(at, row.encode());
}

async fn problems(table: &Table) -> Vec<Problem> {
    let mut found: Vec<_> =
        check(table).await.unwrap().findings.iter().map(|finding| finding.problem).collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[tokio::test]
async fn a_sound_dataset_is_clean_in_one_part_and_in_many() {
    let table = sound();
    for part in 1..6 {
        let report = check_parts(&table, part).await.unwrap();
        assert_eq!(report.findings, [], "parts of {part}");
        assert_eq!(
            (report.inodes, report.entries, report.records, report.allocated),
            (4, 4, 3, 95)
        );
    }
}

#[tokio::test]
async fn every_problem_is_found() {
    type Break = fn(&mut Table);
    let cases: Vec<(Break, &[Problem])> = vec![
        (|t| drop(t.remove(&key::superblock())), &[Problem::Superblock]),
        (|t| drop(t.insert(Bytes::from_static(b"Ishort"), Bytes::new())), &[Problem::Key]),
        (
            |t| drop(t.insert(key::inode(InodeNo(4)), Bytes::from_static(b"\x01\xff"))),
            &[Problem::Row, Problem::Entry],
        ),
        (|t| changed::<Superblock>(t, key::superblock(), |s| s.inodes += 1), &[Problem::Counts]),
        (|t| changed::<Superblock>(t, key::superblock(), |s| s.allocated -= 1), &[Problem::Counts]),
        (
            |t| changed::<Superblock>(t, key::superblock(), |s| s.next_inode = 4),
            &[Problem::Reservation],
        ),
        (
            |t| changed::<Superblock>(t, key::superblock(), |s| s.next_data = 8),
            &[Problem::Reservation],
        ),
        (
            |t| entry(t, 1, "ghost", 77, FileKind::Regular),
            &[Problem::Entry, Problem::DirectorySize],
        ),
        (|t| entry(t, 55, "x", 4, FileKind::Symlink), &[Problem::Entry, Problem::Links]),
        (
            |t| changed::<DirEntryRow>(t, entry_key(1, "file"), |e| e.kind = FileKind::Fifo),
            &[Problem::Entry],
        ),
        (
            |t| changed::<DirEntryRow>(t, entry_key(1, "file"), |e| e.name = name("other")),
            &[Problem::Entry],
        ),
        (|t| changed::<Inode>(t, key::inode(InodeNo(2)), |i| i.nlink = 1), &[Problem::Links]),
        (|t| changed::<Inode>(t, key::inode(InodeNo(1)), |i| i.nlink = 2), &[Problem::Links]),
        (
            |t| changed::<Inode>(t, key::inode(InodeNo(1)), |i| i.size = 7),
            &[Problem::DirectorySize],
        ),
        (
            |t| changed::<Inode>(t, key::inode(InodeNo(3)), |i| i.parent = InodeNo(3)),
            &[Problem::Parent],
        ),
        (|t| changed::<Inode>(t, key::inode(InodeNo(4)), |i| i.size = 9), &[Problem::Inode]),
        (|t| changed::<Inode>(t, key::inode(InodeNo(2)), |i| i.size = 4096), &[Problem::BehindEnd]),
        (|t| changed::<Usage>(t, key::usage(pack()), |u| u.refs = 1), &[Problem::Usage]),
        (|t| drop(t.remove(&key::usage(pack()))), &[Problem::Usage]),
        (|t| drop(t.remove(&key::orphan(DataId(8)))), &[Problem::Extents]),
        (
            |t| drop(t.insert(key::orphan(DataId(7)), Orphan { from: 0, inode: None }.encode())),
            &[Problem::Reclaim],
        ),
        (
            |t| {
                changed::<Inode>(t, key::inode(InodeNo(2)), |i| {
                    i.truncations = 1;
                    i.masks = vec![TruncationMask { first: 1, truncations: 1 }];
                });
            },
            &[Problem::Reclaim],
        ),
        (
            |t| {
                extent(
                    t,
                    7,
                    0,
                    vec![Segment { start: 10, len: 5, source: Source::Inline(vec![1; 4].into()) }],
                );
            },
            &[Problem::Extents],
        ),
        (
            |t| {
                extent(
                    t,
                    7,
                    0,
                    vec![Segment {
                        start: 4092,
                        len: 5,
                        source: Source::Inline(vec![1; 5].into()),
                    }],
                );
            },
            &[Problem::Extents],
        ),
        (|t| extent(t, 7, 0, vec![]), &[Problem::Allocated]),
    ];
    for (n, (break_it, expected)) in cases.into_iter().enumerate() {
        let mut table = sound();
        break_it(&mut table);
        assert_eq!(problems(&table).await, expected, "case {n}");
    }
}

#[tokio::test]
async fn a_detached_circle_of_directories_is_found() {
    let mut table = sound();
    for (ino, parent) in [(10, 11), (11, 10)] {
        let row = Inode { parent: InodeNo(parent), ..inode(FileKind::Directory, 1, 3) };
        table.insert(key::inode(InodeNo(ino)), row.encode());
        entry(&mut table, parent, "d", ino, FileKind::Directory);
    }
    changed::<Superblock>(&mut table, key::superblock(), |s| s.inodes += 2);
    assert_eq!(problems(&table).await, [Problem::Parent]);
}
