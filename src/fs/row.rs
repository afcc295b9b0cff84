//! The database's values: a version byte, then the row in postcard's encoding. A decoder takes any
//! bytes and returns the row or an error; it never panics and never allocates more than the given
//! bytes could hold.

use super::FsError;
use super::api::FileKind;
use super::key::DataId;
use crate::chunk::ChunkRef;
use crate::types::{EntryName, InodeNo, Timestamp};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version byte of every row that this program writes.
const VERSION: u8 = 1;

/// A row of the database.
pub trait Row: Serialize + DeserializeOwned {
    /// The name of the row in messages.
    const WHAT: &'static str;

    fn encode(&self) -> Bytes {
        let row = postcard::to_extend(self, vec![VERSION]);
        Bytes::from(row.expect("a Vec takes any row"))
    }

    /// Checks the invariants that the encoding does not enforce and the program relies on.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// # Errors
    /// [`FsError::Corrupt`] when the bytes are no such row, or of a version that this program does
    /// not know.
    fn decode(bytes: &[u8]) -> Result<Self, FsError> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => match postcard::take_from_bytes::<Self>(rest) {
                Ok((row, [])) => match row.check() {
                    Ok(()) => Ok(row),
                    Err(why) => Err(FsError::Corrupt(format!("{} row: {why}", Self::WHAT))),
                },
                Ok((_, rest)) => Err(FsError::Corrupt(format!(
                    "{} row with {} bytes too many",
                    Self::WHAT,
                    rest.len()
                ))),
                Err(error) => Err(FsError::Corrupt(format!("{} row: {error}", Self::WHAT))),
            },
            Some((version, _)) => Err(FsError::Corrupt(format!(
                "{} row of version {version}, this program knows version {VERSION}: use a newer \
                 one",
                Self::WHAT
            ))),
            None => Err(FsError::Corrupt(format!("empty {} row", Self::WHAT))),
        }
    }
}

/// `S`. Changed only by the committer (R4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Superblock {
    /// Inode numbers below this may have been allocated: a reservation, raised ahead in blocks.
    pub next_inode: u64,
    /// Data ids below this may have been allocated: a reservation too.
    pub next_data: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Sum of the inodes' allocated bytes, orphans' excluded.
    pub allocated: u64,
    /// Key of the directory hash, inherited by clones (R21).
    pub name_key: [u8; 16],
    /// The SlateDB writer epoch that wrote this row last (R9, R16).
    pub writer_epoch: u64,
    /// Every pack of `writer_epoch` up to this number is referenced by this state or never will be
    /// (R9).
    pub settled: u64,
    /// Sequence of the last batch in this state: journal records up to it are contained (R16).
    pub batch_seq: u64,
    /// The group that is shown for inodes older than `fs_group_epoch` (R28).
    pub fs_group: Option<u32>,
    pub fs_group_epoch: u32,
}

/// `I`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    pub kind: FileKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    /// Bytes of a file, bytes of a link's target, number of entries of a directory.
    pub size: u64,
    /// Bytes accounted: the length of the extents' segments, holes excluded.
    pub allocated: u64,
    pub rdev: (u32, u32),
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// Holds the writer epoch (R7).
    pub generation: u64,
    /// The parent of a directory; unused for others.
    pub parent: InodeNo,
    /// A regular file's content (R5).
    pub data: DataId,
    /// The record size is two to the power of this: 12 to 20 (R6).
    pub record_bits: u8,
    /// Count of truncations that left a mask; extents remember the count they were written at (R5).
    pub truncations: u32,
    /// At most [`MASKS_MAX`].
    pub masks: Vec<TruncationMask>,
    /// Verifier of the EXCLUSIVE create that made the file.
    pub exclusive: Option<[u8; 8]>,
    pub fs_group_epoch: u32,
    /// Target of a symbolic link.
    pub target: Option<Vec<u8>>,
}

/// Most masks an inode carries; a further truncation waits for reclaim (R5).
pub const MASKS_MAX: usize = 8;

/// Extents from `first` on that were written at a lower truncation count are holes (R5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TruncationMask {
    pub first: u64,
    pub truncations: u32,
}

/// `D`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntryRow {
    pub ino: InodeNo,
    pub kind: FileKind,
    pub name: EntryName,
}

/// `X`: one extent of a file. Segments are in order and do not overlap; ranges between them are
/// holes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The inode's `truncations` when the extent was last written.
    pub truncations: u32,
    pub segments: Vec<Segment>,
}

/// Part of an extent: a 4 KiB overwrite of a large extent adds a segment instead of rewriting the
/// extent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Offset in the extent, bytes.
    pub start: u32,
    /// Bytes, never 0.
    pub len: u32,
    pub source: Source,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// The bytes themselves: small data is inlined until it moves to a pack.
    Inline(#[serde(with = "raw_bytes")] Bytes),
    /// Bytes `from..from + len` of a chunk. Counts as one reference in `U`.
    Chunk { chunk: ChunkRef, from: u32 },
}

/// Bytes are written as postcard writes a `Vec<u8>`: length, then the bytes.
mod raw_bytes {
    use bytes::Bytes;
    use serde::de::{Deserializer, Error, SeqAccess, Visitor};
    use serde::ser::Serializer;

    pub fn serialize<S: Serializer>(bytes: &Bytes, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(bytes)
    }

    struct Raw;

    impl<'de> Visitor<'de> for Raw {
        type Value = Bytes;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("bytes")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
            Ok(Bytes::copy_from_slice(bytes))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Bytes, A::Error> {
            let mut bytes = Vec::new();
            while let Some(byte) = seq.next_element::<u8>()? {
                bytes.push(byte);
            }
            Ok(bytes.into())
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
        d.deserialize_bytes(Raw)
    }
}

/// `O`: content that no inode refers to, or a file's extents past a truncation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    /// Extents before this one are gone or still in use.
    pub from: u64,
    /// Set when the data id still belongs to this inode: only extents older than its masks go, then
    /// the masks.
    pub inode: Option<InodeNo>,
}

/// `U`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub refs: u64,
    /// No new references (R12).
    pub sealed: bool,
}

/// `R`: the answer to a call that must not be done twice (R20).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    pub client: u64,
    pub xid: u32,
    pub checksum: u64,
    /// The object that the call made or changed; its attributes are read again for the repeated
    /// answer.
    pub object: Option<(InodeNo, u64)>,
    /// Counts the calls: the highest is the newest. The slot is any that was free.
    pub seq: u64,
}

impl Row for Superblock {
    const WHAT: &'static str = "superblock";
}
impl Row for Inode {
    const WHAT: &'static str = "inode";

    fn check(&self) -> Result<(), String> {
        if self.kind == FileKind::Regular && !(12..=20).contains(&self.record_bits) {
            return Err(format!("extents of 2^{} bytes", self.record_bits));
        }
        Ok(())
    }
}
impl Row for DirEntryRow {
    const WHAT: &'static str = "directory entry";
}
impl Row for Extent {
    const WHAT: &'static str = "extent";
}
impl Row for Orphan {
    const WHAT: &'static str = "orphan";
}
impl Row for Usage {
    const WHAT: &'static str = "pack usage";
}
impl Row for Reply {
    const WHAT: &'static str = "reply";
}
