//! A record: one batch, as bytes.
//!
//! ```text
//! version:1 seq:8 next inode:8 next data:8 inodes:8 allocated:8 fs-group flag:1 [fs-group:4]
//! refs:4 (creator:16 epoch:8 pack:8 delta:8)*
//! rows:4 (key length:2 key value flag:1 [value length:4 value])*
//! ```
//! Numbers are little-endian.

use crate::fs::FsError;
use crate::types::{Epoch, Incarnation, PackId};
use bytes::{BufMut, Bytes};

const VERSION: u8 = 1;

/// A batch, its sequence number, and the numbers allocated by then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub seq: u64,
    pub next_inode: u64,
    pub next_data: u64,
    pub rows: Vec<(Bytes, Option<Bytes>)>,
    pub refs: Vec<(PackId, i64)>,
    pub inodes: i64,
    pub allocated: i64,
    pub fs_group: Option<u32>,
}

/// A record's fields, borrowed from the committer's queue.
#[derive(Clone, Copy)]
pub struct RecordRef<'a> {
    pub seq: u64,
    pub next_inode: u64,
    pub next_data: u64,
    pub rows: &'a [(Bytes, Option<Bytes>)],
    pub refs: &'a [(PackId, i64)],
    pub inodes: i64,
    pub allocated: i64,
    pub fs_group: Option<u32>,
}

#[cfg(test)]
impl Record {
    pub fn borrowed(&self) -> RecordRef<'_> {
        let Self { seq, next_inode, next_data, rows, refs, inodes, allocated, fs_group } = self;
        RecordRef {
            seq: *seq,
            next_inode: *next_inode,
            next_data: *next_data,
            rows,
            refs,
            inodes: *inodes,
            allocated: *allocated,
            fs_group: *fs_group,
        }
    }
}

impl RecordRef<'_> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(VERSION);
        out.put_u64_le(self.seq);
        out.put_u64_le(self.next_inode);
        out.put_u64_le(self.next_data);
        out.put_i64_le(self.inodes);
        out.put_i64_le(self.allocated);
        out.put_u8(u8::from(self.fs_group.is_some()));
        if let Some(group) = self.fs_group {
            out.put_u32_le(group);
        }
        out.put_u32_le(self.refs.len() as u32);
        for (pack, delta) in self.refs {
            out.put_slice(pack.creator.as_bytes());
            out.put_u64_le(pack.epoch.0);
            out.put_u64_le(pack.seq);
            out.put_i64_le(*delta);
        }
        out.put_u32_le(self.rows.len() as u32);
        for (key, value) in self.rows {
            // Keys are at most 33 bytes, values at most a record's row: see `fs::key` and
            // `fs::row`.
            out.put_u16_le(key.len() as u16);
            out.put_slice(key);
            out.put_u8(u8::from(value.is_some()));
            if let Some(value) = value {
                out.put_u32_le(value.len() as u32);
                out.put_slice(value);
            }
        }
    }
}

/// Decodes a record's payload.
///
/// # Errors
/// [`FsError::Corrupt`] for bytes that are not a record; never panics, and allocates no more than
/// the bytes could hold.
pub fn decode_record(bytes: &[u8]) -> Result<Record, FsError> {
    let mut input = Input { bytes };
    let record = input.record().ok_or_else(|| FsError::Corrupt("journal record".into()))?;
    match input.bytes {
        [] => Ok(record),
        rest => Err(FsError::Corrupt(format!("journal record with {} bytes too many", rest.len()))),
    }
}

struct Input<'a> {
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(n)?;
        self.bytes = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.array()? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }

    fn record(&mut self) -> Option<Record> {
        if self.array()? != [VERSION] {
            return None;
        }
        let mut record = Record {
            seq: self.u64()?,
            next_inode: self.u64()?,
            next_data: self.u64()?,
            inodes: self.i64()?,
            allocated: self.i64()?,
            ..Record::default()
        };
        record.fs_group = if self.flag()? { Some(self.u32()?) } else { None };
        for _ in 0..self.u32()? {
            record.refs.push(self.reference()?);
        }
        for _ in 0..self.u32()? {
            record.rows.push(self.row()?);
        }
        Some(record)
    }

    fn reference(&mut self) -> Option<(PackId, i64)> {
        let creator = Incarnation::from_bytes(self.array()?);
        let pack = PackId { creator, epoch: Epoch(self.u64()?), seq: self.u64()? };
        Some((pack, self.i64()?))
    }

    fn row(&mut self) -> Option<(Bytes, Option<Bytes>)> {
        let key_len = self.array().map(u16::from_le_bytes)?;
        let key = Bytes::copy_from_slice(self.take(key_len.into())?);
        if !self.flag()? {
            return Some((key, None));
        }
        let len = usize::try_from(self.u32()?).ok()?;
        Some((key, Some(Bytes::copy_from_slice(self.take(len)?))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Record {
        Record {
            seq: 1,
            next_inode: 2,
            next_data: 3,
            rows: vec![
                (Bytes::from_static(b"key"), Some(Bytes::from_static(b"value"))),
                (Bytes::from_static(b"gone"), None),
            ],
            refs: vec![(
                PackId { creator: Incarnation::from_bytes([9; 16]), epoch: Epoch(4), seq: 5 },
                -6,
            )],
            inodes: -1,
            allocated: 7,
            fs_group: Some(8),
        }
    }

    #[test]
    fn records_round_trip() {
        for record in [sample(), Record::default()] {
            let mut bytes = Vec::new();
            record.borrowed().encode(&mut bytes);
            assert_eq!(decode_record(&bytes).unwrap(), record);
            for cut in 0..bytes.len() {
                assert!(decode_record(&bytes[..cut]).is_err());
            }
            bytes.push(0);
            assert!(decode_record(&bytes).is_err());
        }
    }

    #[test]
    fn the_bytes_of_a_record_are_fixed() {
        let mut bytes = Vec::new();
        sample().borrowed().encode(&mut bytes);
        let expected = concat!(
            "01",
            "0100000000000000",
            "0200000000000000",
            "0300000000000000",
            "ffffffffffffffff",
            "0700000000000000",
            "01",
            "08000000",
            "01000000",
            "09090909090909090909090909090909",
            "0400000000000000",
            "0500000000000000",
            "faffffffffffffff",
            "02000000",
            "0300",
            "6b6579",
            "01",
            "05000000",
            "76616c7565",
            "0400",
            "676f6e65",
            "00",
        );
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes), expected);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = decode_record(&bytes);
            let mut versioned = vec![VERSION];
            versioned.extend(&bytes);
            let _ = decode_record(&versioned);
        }
    }
}
