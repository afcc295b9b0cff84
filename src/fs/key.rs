//! The database's keys. One tag byte, then big-endian numbers, so that scans come in order.
//!
//! ```text
//! S                                   superblock
//! I <inode:8>                         inode
//! D <dir:8> <hash:6> <n:2>            directory entry (R21: `n` is never compacted)
//! X <data id:8> <extent:8>            extent of a file's data
//! O <data id:8>                       data to be reclaimed
//! U <creator:16> <epoch:8> <seq:8>    references held into a pack
//! R <slot:4>                          duplicate request cache (a ring of slots)
//! ```
//! Keys are readable in SlateDB's indexes whatever the encryption, so no name is ever part of one:
//! directory keys hold a keyed hash.

use super::api::DirCookie;
use crate::types::{Epoch, Incarnation, InodeNo, PackId};
use bytes::Bytes;

/// A data id names the content of a file until it is truncated to 0 (R5).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct DataId(pub u64);

impl DataId {
    /// The end of the range of this id's keys. Ids are given out from 1 upwards and never get near
    /// the end of the range.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// 47 bits of keyed hash of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameHash(u64);

impl NameHash {
    pub fn of(key: &[u8; 16], name: &[u8]) -> Self {
        use std::hash::Hasher;
        let mut hasher = siphasher::sip::SipHasher24::new_with_key(key);
        hasher.write(name);
        Self(hasher.finish() >> 17)
    }

    pub fn get(self) -> u64 {
        self.0
    }

    /// Only some of the bits: for tests of names that share a hash.
    pub(super) fn masked(self, keep: u64) -> Self {
        Self(self.0 & keep)
    }
}

/// The cookie of `.snapshots` in a root directory that shows it.
pub const COOKIE_SNAPSHOTS: DirCookie = DirCookie(3);
/// Cookies 0 to 3 are taken (start, `.`, `..`, `.snapshots`): an entry's cookie is hash and `n`,
/// plus this.
const COOKIE_BASE: u64 = COOKIE_SNAPSHOTS.0 + 1;

/// The cookie of an entry: one zero bit, 47 bits of hash, 16 bits of n, offset past the reserved
/// ones. The very last `n`s of the last hash would overflow the zero bit; they do not overflow the
/// integer, as 2^63 + 3 still fits.
pub fn cookie(hash: NameHash, n: u16) -> DirCookie {
    DirCookie(((hash.0 << 16) | u64::from(n)) + COOKIE_BASE)
}

/// The key at which the entries of a directory begin.
pub const FIRST: (NameHash, u16) = (NameHash(0), 0);

/// The position of the first entry after a cookie; `None` for a cookie that was never returned.
pub fn position_after(after: DirCookie) -> Option<(NameHash, u16)> {
    let position = match after.0 {
        0..COOKIE_BASE => 0,
        given => given.checked_sub(COOKIE_BASE)?.checked_add(1)?,
    };
    let is_one = position <= 1 << 63;
    is_one.then_some((NameHash(position >> 16), (position & 0xffff) as u16))
}

fn build(tag: u8, parts: &[&[u8]]) -> Bytes {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|p| p.len()).sum::<usize>());
    key.push(tag);
    parts.iter().for_each(|p| key.extend_from_slice(p));
    key.into()
}

/// The first key after `key`, where a scan that ended at `key` continues.
pub fn after(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

pub fn superblock() -> Bytes {
    Bytes::from_static(b"S")
}

pub fn inode(ino: InodeNo) -> Bytes {
    build(b'I', &[&ino.0.to_be_bytes()])
}

pub fn dir_entry(dir: InodeNo, hash: NameHash, n: u16) -> Bytes {
    let position = (hash.0 << 16) | u64::from(n);
    build(b'D', &[&dir.0.to_be_bytes(), &position.to_be_bytes()])
}

/// All entries of a directory.
pub fn dir(dir: InodeNo) -> Bytes {
    build(b'D', &[&dir.0.to_be_bytes()])
}

/// All entries of a directory whose names have this hash.
pub fn dir_hash(dir: InodeNo, hash: NameHash) -> Bytes {
    build(b'D', &[&dir.0.to_be_bytes(), &hash.0.to_be_bytes()[2..]])
}

pub fn extent(data: DataId, extent: u64) -> Bytes {
    build(b'X', &[&data.0.to_be_bytes(), &extent.to_be_bytes()])
}

/// All extents of a data id.
pub fn extents(data: DataId) -> Bytes {
    build(b'X', &[&data.0.to_be_bytes()])
}

pub fn orphan(data: DataId) -> Bytes {
    build(b'O', &[&data.0.to_be_bytes()])
}

pub fn usage(pack: PackId) -> Bytes {
    build(b'U', &[pack.creator.as_bytes(), &pack.epoch.0.to_be_bytes(), &pack.seq.to_be_bytes()])
}

pub fn reply(slot: u32) -> Bytes {
    build(b'R', &[&slot.to_be_bytes()])
}

/// A decoded key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Superblock,
    Inode(InodeNo),
    DirEntry { dir: InodeNo, hash: NameHash, n: u16 },
    Extent(DataId, u64),
    Orphan(DataId),
    Usage(PackId),
    Reply(u32),
}

impl Key {
    /// `None` for bytes that are not a key of this format.
    pub fn parse(key: &[u8]) -> Option<Self> {
        fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
            Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
        }
        let (tag, rest) = key.split_first()?;
        match (tag, rest.len()) {
            (b'S', 0) => Some(Self::Superblock),
            (b'I', 8) => Some(Self::Inode(InodeNo(u64_at(rest, 0)?))),
            (b'D', 16) => {
                let position = u64_at(rest, 8)?;
                let (hash, n) = (NameHash(position >> 16), (position & 0xffff) as u16);
                (position < 1 << 63).then_some(Self::DirEntry {
                    dir: InodeNo(u64_at(rest, 0)?),
                    hash,
                    n,
                })
            }
            (b'X', 16) => Some(Self::Extent(DataId(u64_at(rest, 0)?), u64_at(rest, 8)?)),
            (b'O', 8) => Some(Self::Orphan(DataId(u64_at(rest, 0)?))),
            (b'U', 32) => {
                let creator = Incarnation::from_bytes(rest.get(..16)?.try_into().ok()?);
                Some(Self::Usage(PackId {
                    creator,
                    epoch: Epoch(u64_at(rest, 16)?),
                    seq: u64_at(rest, 24)?,
                }))
            }
            (b'R', 4) => Some(Self::Reply(u32::from_be_bytes(rest.try_into().ok()?))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_parse_back() {
        let pack = PackId { creator: Incarnation::from_bytes([9; 16]), epoch: Epoch(2), seq: 3 };
        let hash = NameHash::of(&[1; 16], b"name");
        let cases = [
            (superblock(), Key::Superblock),
            (inode(InodeNo(7)), Key::Inode(InodeNo(7))),
            (dir_entry(InodeNo(7), hash, 5), Key::DirEntry { dir: InodeNo(7), hash, n: 5 }),
            (extent(DataId(4), 9), Key::Extent(DataId(4), 9)),
            (orphan(DataId(4)), Key::Orphan(DataId(4))),
            (usage(pack), Key::Usage(pack)),
            (reply(11), Key::Reply(11)),
        ];
        for (bytes, key) in cases {
            assert_eq!(Key::parse(&bytes), Some(key));
            assert_eq!(Key::parse(&bytes[..bytes.len() - 1]).filter(|_| bytes.len() > 2), None);
        }
        assert_eq!(Key::parse(b""), None);
    }

    #[test]
    fn a_cookie_continues_after_its_entry() {
        let hash = NameHash::of(&[1; 16], b"name");
        assert_eq!(position_after(cookie(hash, 5)), Some((hash, 6)));
        assert!(dir_entry(InodeNo(7), hash, 6) > dir_entry(InodeNo(7), hash, 5));
        for before in [DirCookie(2), COOKIE_SNAPSHOTS] {
            assert_eq!(position_after(before), Some(FIRST));
        }
        assert!(position_after(cookie(NameHash((1 << 47) - 1), u16::MAX)).is_some());
        assert_eq!(position_after(DirCookie(u64::MAX)), None);
    }
}
