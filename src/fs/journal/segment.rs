//! A segment: one file of records.
//!
//! ```text
//! header  magic:8 version:4 incarnation:16 epoch:8 first sequence:8 nonce:16 checksum:16
//! record  length:4 checksum:16 payload
//! ```
//! A record's checksum is over the checksum before it and its own length and payload; the first
//! follows the header's. BLAKE3, 16 bytes.

use super::{Record, RecordRef, decode_record, io};
use crate::fs::FsError;
use crate::types::{Epoch, Incarnation};
use bytes::BufMut;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"zfcsijnl";
const VERSION: u32 = 1;
pub(super) const HEADER_BYTES: usize = 8 + 4 + 16 + 8 + 8 + 16 + 16;
const FRAME_BYTES: usize = 4 + 16;
/// Larger than any batch: the committer refuses to queue this much. Bounds the bytes that a restart
/// reads.
const FILE_BYTES_MAX: u64 = 256 << 20;

type Checksum = [u8; 16];

/// Identifies the database and epoch of a segment's batches, and the first of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub incarnation: Incarnation,
    pub epoch: Epoch,
    pub first: u64,
}

/// A segment being written.
pub(super) struct JournalSegment {
    file: File,
    path: PathBuf,
    bytes: u64,
    chain: Checksum,
    last: u64,
}

/// Encoded records, to be written at the end of the segment that they were encoded for.
pub(in crate::fs) struct Encoded {
    bytes: Vec<u8>,
    chain: Checksum,
    last: u64,
}

fn checksum(parts: &[&[u8]]) -> Checksum {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let mut sum = Checksum::default();
    hasher.finalize_xof().fill(&mut sum);
    sum
}

impl JournalSegment {
    /// Creates an empty segment, replacing the file's contents.
    pub fn create(path: &Path, header: &Header) -> Result<Self, FsError> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.put_slice(MAGIC);
        bytes.put_u32_le(VERSION);
        bytes.put_slice(header.incarnation.as_bytes());
        bytes.put_u64_le(header.epoch.0);
        bytes.put_u64_le(header.first);
        bytes.put_slice(&rand::random::<[u8; 16]>());
        let chain = checksum(&[&bytes]);
        bytes.put_slice(&chain);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
        let file = file.map_err(|error| io("starting", path, &error))?;
        file.write_all_at(&bytes, 0).map_err(|error| io("starting", path, &error))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            bytes: HEADER_BYTES as u64,
            chain,
            last: header.first.saturating_sub(1),
        })
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The last batch in it.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Encodes records that follow those in the segment.
    pub fn encode(&self, records: &[RecordRef<'_>]) -> Result<Encoded, FsError> {
        let mut out = Vec::new();
        let mut chain = self.chain;
        for record in records {
            let frame = out.len();
            out.put_bytes(0, FRAME_BYTES);
            record.encode(&mut out);
            let (head, payload) = out.split_at_mut(frame + FRAME_BYTES);
            let length = u32::try_from(payload.len())
                .map_err(|_| FsError::Internal("a batch too large for the journal".into()))?;
            chain = checksum(&[&chain, &length.to_le_bytes(), payload]);
            let mut head = &mut head[frame..];
            head.put_u32_le(length);
            head.put_slice(&chain);
        }
        Ok(Encoded {
            bytes: out,
            chain,
            last: records.last().map_or(self.last, |record| record.seq),
        })
    }

    /// Writes all of the records with one write, or none.
    pub fn write(&mut self, encoded: Encoded) -> Result<(), FsError> {
        let Encoded { bytes, chain, last } = encoded;
        if let Err(error) = self.file.write_all_at(&bytes, self.bytes) {
            // The partial write is a torn tail, should truncating it fail too.
            let _ = self.file.set_len(self.bytes);
            return Err(io("appending to", &self.path, &error));
        }
        self.bytes += bytes.len() as u64;
        self.chain = chain;
        self.last = last;
        Ok(())
    }
}

/// Reads a segment's records up to a torn tail; `None` when there is no segment.
pub(super) fn read(path: &Path) -> Result<Option<(Header, Vec<Record>)>, FsError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("opening", path, &error)),
    };
    let size = file.metadata().map_err(|error| io("looking at", path, &error))?.len();
    if size > FILE_BYTES_MAX {
        return Err(FsError::Corrupt(format!(
            "journal {} of {size} bytes: larger than a journal gets",
            path.display()
        )));
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0).map_err(|error| io("reading", path, &error))?;
    let Some((header, chain)) = read_header(path, &bytes)? else {
        tracing::info!(
            path = %path.display(),
            "the journal holds nothing: its creation was not finished"
        );
        return Ok(None);
    };
    let (records, left) =
        read_records(header, chain, bytes.get(HEADER_BYTES..).unwrap_or_default());
    if left > 0 {
        tracing::info!(
            path = %path.display(),
            bytes = left,
            "the journal ends in a torn record, which was never acknowledged"
        );
    }
    Ok(Some((header, records)))
}

fn read_header(path: &Path, bytes: &[u8]) -> Result<Option<(Header, Checksum)>, FsError> {
    let at = |from: usize, to: usize| bytes.get(from..to);
    let number =
        |from: usize| at(from, from + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    if at(0, 8) != Some(MAGIC.as_slice()) {
        return Ok(None);
    }
    let version = at(8, 12).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    if version.is_some_and(|version| version > VERSION) {
        return Err(FsError::Internal(format!(
            "journal {} was written by a newer program: start that one, or remove the file to give \
             up unsynced changes",
            path.display()
        )));
    }
    let (Some(incarnation), Some(epoch), Some(first)) =
        (at(12, 28).and_then(|b| <[u8; 16]>::try_from(b).ok()), number(28), number(36))
    else {
        return Ok(None);
    };
    let (Some(covered), Some(sum)) =
        (at(0, HEADER_BYTES - 16), at(HEADER_BYTES - 16, HEADER_BYTES))
    else {
        return Ok(None);
    };
    let chain = checksum(&[covered]);
    let header =
        Header { incarnation: Incarnation::from_bytes(incarnation), epoch: Epoch(epoch), first };
    Ok((sum == chain).then_some((header, chain)))
}

/// Returns the records that the chain verifies, and the number of bytes after them.
fn read_records(header: Header, mut chain: Checksum, mut bytes: &[u8]) -> (Vec<Record>, usize) {
    let mut records = Vec::new();
    let mut next = header.first;
    while let Some((record, sum, rest)) = read_record(&chain, bytes) {
        if record.seq != next {
            break;
        }
        next += 1;
        records.push(record);
        chain = sum;
        bytes = rest;
    }
    (records, bytes.len())
}

fn read_record<'a>(chain: &Checksum, bytes: &'a [u8]) -> Option<(Record, Checksum, &'a [u8])> {
    let (length, rest) = bytes.split_at_checked(4)?;
    let (sum, rest) = rest.split_at_checked(16)?;
    let bytes_of = u32::from_le_bytes(length.try_into().ok()?);
    let (payload, rest) = rest.split_at_checked(usize::try_from(bytes_of).ok()?)?;
    let expected = checksum(&[chain, length, payload]);
    if sum != expected {
        return None;
    }
    decode_record(payload).ok().map(|record| (record, expected, rest))
}
