//! The database's keys and rows, and what a node's journal begins with.
//!
//! To renew after a deliberate change of format: run with `ZEROFS_GOLDEN=print`, and raise the
//! rows' version.

use bytes::Bytes;
use std::path::Path;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::chunk::{ChunkRef, Codec};
use zerofs_csi::fs::api::FileKind;
use zerofs_csi::fs::db::{Database, DbCache, DbPlace};
use zerofs_csi::fs::key::{self, DataId, Key, NameHash};
use zerofs_csi::fs::row::*;
use zerofs_csi::fs::{Batch, Committer};
use zerofs_csi::telemetry::Failpoints;
use zerofs_csi::types::*;

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// The row's bytes are the golden ones, the golden ones are read as the row, and bytes cut off
/// anywhere are no row.
fn check<R: Row + PartialEq + std::fmt::Debug>(row: &R, golden: &str) {
    let bytes = row.encode();
    if std::env::var("ZEROFS_GOLDEN").is_ok_and(|v| v == "print") {
        println!("{}: {}", R::WHAT, hex(&bytes));
        return;
    }
    assert_eq!(hex(&bytes), golden, "{}", R::WHAT);
    assert_eq!(R::decode(&bytes).unwrap(), *row);
    for cut in 0..bytes.len() {
        assert!(R::decode(&bytes[..cut]).is_err(), "{} cut at {cut}", R::WHAT);
    }
    let newer = [&[2], &bytes[1..]].concat();
    assert!(R::decode(&newer).unwrap_err().to_string().contains("newer"), "{}", R::WHAT);
}

fn time(nanos: i64) -> Timestamp {
    Timestamp::from_nanos(nanos)
}

fn pack() -> PackId {
    PackId { creator: Incarnation::from_bytes([0x11; 16]), epoch: Epoch(0x0203), seq: 0x0405 }
}

fn chunk(codec: Codec) -> ChunkRef {
    ChunkRef {
        hash: ChunkHash([0x22; 32]),
        pack: pack(),
        offset: 4711,
        stored_len: 300,
        raw_len: 4096,
        codec,
    }
}

fn inode() -> Inode {
    Inode {
        kind: FileKind::Regular,
        mode: 0o4755,
        uid: 1000,
        gid: 100,
        nlink: 2,
        size: 1 << 33,
        allocated: 4096,
        rdev: (8, 1),
        atime: time(-1),
        mtime: time(1_790_000_000_123_456_789),
        ctime: time(1_790_000_001_000_000_000),
        generation: 7 << 32 | 9,
        parent: InodeNo(1),
        data: DataId(300),
        record_bits: 16,
        truncations: 3,
        masks: vec![
            TruncationMask { first: 17, truncations: 2 },
            TruncationMask { first: 5, truncations: 3 },
        ],
        exclusive: Some([0x33; 8]),
        fs_group_epoch: 1,
        target: None,
    }
}

#[test]
fn superblock() {
    let row = Superblock {
        next_inode: 300,
        next_data: 301,
        inodes: 12,
        allocated: 1 << 40,
        name_key: [0x44; 16],
        writer_epoch: 5,
        settled: 6,
        batch_seq: 70_000,
        fs_group: Some(2000),
        fs_group_epoch: 1,
    };
    check(&row, include_str!("golden/rows/superblock.hex").trim_end());
}

#[test]
fn inodes() {
    check(&inode(), include_str!("golden/rows/inode-file.hex").trim_end());
    let link = Inode {
        kind: FileKind::Symlink,
        masks: vec![],
        exclusive: None,
        target: Some(b"to/here".to_vec()),
        ..inode()
    };
    check(&link, include_str!("golden/rows/inode-symlink.hex").trim_end());
    // Kinds are numbers in the row: their order is of the format.
    let kinds = [
        FileKind::Regular,
        FileKind::Directory,
        FileKind::Symlink,
        FileKind::BlockDevice,
        FileKind::CharDevice,
        FileKind::Fifo,
        FileKind::Socket,
    ];
    for (number, kind) in kinds.into_iter().enumerate() {
        assert_eq!(Inode { kind, ..inode() }.encode()[1], number as u8, "{kind:?}");
    }
}

#[test]
fn entries_orphans_usage_and_replies() {
    let entry = DirEntryRow {
        ino: InodeNo(300),
        kind: FileKind::Fifo,
        name: EntryName::try_from(&b"na\xffme"[..]).unwrap(),
    };
    check(&entry, include_str!("golden/rows/entry.hex").trim_end());
    check(
        &Orphan { from: 1024, inode: Some(InodeNo(300)) },
        include_str!("golden/rows/orphan.hex").trim_end(),
    );
    check(&Usage { refs: 70_000, sealed: true }, include_str!("golden/rows/usage.hex").trim_end());
    let reply = Reply {
        client: 1 << 63,
        xid: 0xdead_beef,
        checksum: 77,
        object: Some((InodeNo(300), 7 << 32)),
        seq: 1025,
    };
    check(&reply, include_str!("golden/rows/reply.hex").trim_end());
}

#[test]
fn records() {
    let segments = vec![
        Segment { start: 0, len: 5, source: Source::Inline(Bytes::from_static(b"hello")) },
        Segment {
            start: 512,
            len: 1024,
            source: Source::Chunk { chunk: chunk(Codec::Lz4), from: 128 },
        },
        Segment {
            start: 2048,
            len: 4,
            source: Source::Chunk { chunk: chunk(Codec::None), from: 0 },
        },
    ];
    check(&Extent { truncations: 2, segments }, include_str!("golden/rows/extent.hex").trim_end());
}

#[test]
fn keys() {
    let hash = NameHash::of(&[0x44; 16], b"name");
    let keys = [
        (key::superblock(), Key::Superblock),
        (key::inode(InodeNo(0x0102)), Key::Inode(InodeNo(0x0102))),
        (
            key::dir_entry(InodeNo(1), hash, 0x0304),
            Key::DirEntry { dir: InodeNo(1), hash, n: 0x0304 },
        ),
        (key::extent(DataId(5), 0x0607), Key::Extent(DataId(5), 0x0607)),
        (key::orphan(DataId(8)), Key::Orphan(DataId(8))),
        (key::usage(pack()), Key::Usage(pack())),
        (key::reply(0x090a), Key::Reply(0x090a)),
    ];
    let text: String = keys.iter().map(|(bytes, _)| hex(bytes) + "\n").collect();
    if std::env::var("ZEROFS_GOLDEN").is_ok_and(|v| v == "print") {
        println!("keys\n{text}");
        return;
    }
    assert_eq!(text, include_str!("golden/rows/keys.hex"));
    for (bytes, key) in keys {
        assert_eq!(Key::parse(&bytes), Some(key));
    }
}

/// Magic, version, incarnation, epoch, first sequence: then comes a nonce and the checksum over all
/// of it.
#[tokio::test]
async fn the_journal_begins_with_whose_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    let segment = |path: &Path| std::fs::read(path.with_extension("0")).unwrap();
    let incarnation = Incarnation::from_bytes([0x55; 16]);
    let place = DbPlace::new(Bucket::memory(), incarnation, None, DbCache::new(4 << 20));
    let db = Database::open(&place, None).await.unwrap();
    let committer =
        Committer::start(db, Some(&journal), Box::new(|| 0), Failpoints::default()).await.unwrap();
    let header = segment(&journal);
    assert_eq!(header.len(), 76);
    let first = committer.last().0 + 1;
    let expected = [
        b"zfcsijnl".as_slice(),
        &1_u32.to_le_bytes(),
        incarnation.as_bytes(),
        &committer.epoch().0.to_le_bytes(),
        &first.to_le_bytes(),
    ]
    .concat();
    assert_eq!(hex(&header[..44]), hex(&expected));
    assert_eq!(header[60..], blake3::hash(&header[..60]).as_bytes()[..16]);
    // A record: its length, the checksum chained to the one before, the batch.
    committer
        .applied(
            committer
                .submit(Batch { rows: vec![(key::inode(InodeNo(9)), None)], ..Batch::default() })
                .unwrap(),
        )
        .await
        .unwrap();
    let bytes = segment(&journal);
    let length = u32::from_le_bytes(bytes[76..80].try_into().unwrap()) as usize;
    assert_eq!(bytes.len(), 76 + 4 + 16 + length);
    let mut chained = blake3::Hasher::new();
    chained.update(&header[60..]).update(&bytes[76..80]).update(&bytes[96..]);
    assert_eq!(bytes[80..96], chained.finalize().as_bytes()[..16]);
    assert_eq!(bytes[96..105], [&[1], first.to_le_bytes().as_slice()].concat());
    committer.close().await.unwrap();
}
