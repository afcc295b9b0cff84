//! Between a chunk's data and its stored bytes: hash, compression, sealing. Pure except for the
//! random nonce.

use super::pack::{PackEntry, PackError, Sealing, decode_footer, encode_footer};
use super::{CHUNK_BYTES_MAX, ChunkRef, Codec};
use crate::crypto::{Keyring, Sealer};
use crate::types::{ChunkHash, FamilyId, PackId};
use bytes::Bytes;
use parking_lot::Mutex;

/// For a chunk of at least this size, samples are compressed first: data that does not compress
/// (media, archives, encrypted files) then costs a few microseconds and not a whole run of the
/// compressor.
const SAMPLE_FROM: usize = 16 << 10;
const SAMPLE_BYTES: usize = 2 << 10;
/// Stored compressed only when that saves at least this part of the chunk: less does not pay for
/// decompressing it at each read.
const MIN_SAVING_PART: usize = 16;
/// The library's default: stronger levels cost more CPU than a network store saves.
const ZSTD_LEVEL: i32 = 3;

/// Hashes, compresses and seals one family's chunks.
pub(super) struct Coder {
    family: FamilyId,
    hash_key: [u8; 32],
    sealer: Option<Sealer>,
}

/// A chunk as it is stored.
pub(super) struct EncodedChunk {
    pub(super) codec: Codec,
    pub(super) bytes: Bytes,
}

/// Distinguishes a buffer of its own from a slice of a larger one, which the slice would keep in
/// memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Backing {
    Whole,
    Part,
}

/// Output of the compressors before its length is known. Not one per thread: there are many more
/// threads than jobs at once.
static SCRATCHES: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
const SCRATCHES_MAX: usize = 8;

fn with_scratch<T>(work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let mut scratch = SCRATCHES.lock().pop().unwrap_or_default();
    let done = work(&mut scratch);
    let mut scratches = SCRATCHES.lock();
    if scratches.len() < SCRATCHES_MAX {
        scratches.push(scratch);
    }
    done
}

impl Coder {
    pub(super) fn new(keyring: &Keyring, family: FamilyId) -> Self {
        Self {
            family,
            hash_key: keyring.chunk_hash_key(family),
            sealer: keyring.chunk_sealer(family),
        }
    }

    pub(super) fn sealing(&self) -> Sealing {
        if self.sealer.is_some() { Sealing::Sealed } else { Sealing::Plain }
    }

    pub(super) fn hash_key(&self) -> &[u8; 32] {
        &self.hash_key
    }

    pub(super) fn hash(&self, raw: &[u8]) -> ChunkHash {
        ChunkHash(*blake3::keyed_hash(&self.hash_key, raw).as_bytes())
    }

    /// The associated data of a chunk's seal: a chunk opens only as itself, in its own family. (The
    /// key is already the pool's own.)
    fn chunk_context(&self, hash: &ChunkHash, codec: Codec) -> [u8; 6 + 16 + 32 + 1] {
        let mut context = [0; 55];
        context[..6].copy_from_slice(b"chunk ");
        context[6..22].copy_from_slice(self.family.as_bytes());
        context[22..54].copy_from_slice(&hash.0);
        context[54] = codec.number();
        context
    }

    fn footer_context(&self, pack: PackId) -> [u8; 7 + 16 + 16 + 8 + 8] {
        let mut context = [0; 55];
        context[..7].copy_from_slice(b"footer ");
        context[7..23].copy_from_slice(self.family.as_bytes());
        context[23..39].copy_from_slice(pack.creator.as_bytes());
        context[39..47].copy_from_slice(&pack.epoch.0.to_le_bytes());
        context[47..].copy_from_slice(&pack.seq.to_le_bytes());
        context
    }

    /// Compresses if that pays, and seals. Data that is neither is passed on without a copy.
    pub(super) fn encode(&self, raw: &Bytes, hash: &ChunkHash, codec: Codec) -> EncodedChunk {
        with_scratch(|scratch| match compress(raw, codec, scratch) {
            Some(compressed) => self.seal(hash, codec, compressed, None),
            None => self.seal(hash, Codec::None, raw, Some(raw)),
        })
    }

    fn seal(
        &self,
        hash: &ChunkHash,
        codec: Codec,
        bytes: &[u8],
        shared: Option<&Bytes>,
    ) -> EncodedChunk {
        let bytes = match (&self.sealer, shared) {
            (Some(sealer), _) => Bytes::from(sealer.seal(&self.chunk_context(hash, codec), bytes)),
            (None, Some(shared)) => shared.clone(),
            (None, None) => Bytes::copy_from_slice(bytes),
        };
        EncodedChunk { codec, bytes }
    }

    /// The data of a chunk from its stored bytes, verified by its hash. Takes any bytes and any
    /// reference.
    ///
    /// # Errors
    /// The reason why the bytes are not the chunk.
    pub(super) fn decode(
        &self,
        chunk: &ChunkRef,
        stored: Bytes,
        backing: Backing,
    ) -> Result<Bytes, String> {
        if stored.len() != chunk.stored_len as usize {
            return Err(format!("it has {} bytes, {} were stored", stored.len(), chunk.stored_len));
        }
        let raw_len = chunk.raw_len as usize;
        if raw_len > CHUNK_BYTES_MAX {
            return Err(format!("its length {raw_len} exceeds the largest chunk"));
        }
        let (stored, backing) = match &self.sealer {
            Some(sealer) => {
                let context = self.chunk_context(&chunk.hash, chunk.codec);
                (
                    Bytes::from(sealer.open(&context, &stored).map_err(|error| error.to_string())?),
                    Backing::Whole,
                )
            }
            None => (stored, backing),
        };
        let raw = match chunk.codec {
            Codec::None if backing == Backing::Part => Bytes::copy_from_slice(&stored),
            Codec::None => stored,
            codec => Bytes::from(decompress(&stored, codec, raw_len)?),
        };
        if raw.len() != raw_len {
            return Err(format!("it has {} bytes, its reference says {raw_len}", raw.len()));
        }
        if self.hash(&raw) != chunk.hash {
            return Err("its data does not match its hash".to_owned());
        }
        Ok(raw)
    }

    /// The footer as stored.
    pub(super) fn encode_footer(&self, pack: PackId, entries: &[PackEntry]) -> Vec<u8> {
        let footer = encode_footer(entries);
        match &self.sealer {
            Some(sealer) => sealer.seal(&self.footer_context(pack), &footer),
            None => footer,
        }
    }

    /// The entries of a footer whose checksum has been checked.
    pub(super) fn decode_footer(
        &self,
        pack: PackId,
        sealing: Sealing,
        footer: &[u8],
    ) -> Result<Vec<PackEntry>, String> {
        let decoded: Result<_, PackError> = match (&self.sealer, sealing) {
            (None, Sealing::Plain) => decode_footer(footer),
            (Some(sealer), Sealing::Sealed) => {
                let footer = sealer
                    .open(&self.footer_context(pack), footer)
                    .map_err(|error| error.to_string())?;
                decode_footer(&footer)
            }
            (None, Sealing::Sealed) => return Err("it is encrypted and the pool is not".to_owned()),
            (Some(_), Sealing::Plain) => {
                return Err("it is not encrypted and the pool is".to_owned());
            }
        };
        decoded.map_err(|error| error.to_string())
    }
}

/// `None`: stored as it is.
fn compress<'s>(raw: &[u8], codec: Codec, scratch: &'s mut Vec<u8>) -> Option<&'s [u8]> {
    if codec == Codec::None || raw.len() < MIN_SAVING_PART || !seems_compressible(raw, scratch) {
        return None;
    }
    let size_max = raw.len() - raw.len() / MIN_SAVING_PART;
    // A compressor that runs out of room says so: what does not fit is not worth it. LZ4 wants room
    // for its worst case.
    let len = match codec {
        Codec::None => return None,
        Codec::Lz4 => {
            lz4_flex::block::compress_into(raw, sized(scratch, lz4_room(raw.len()))).ok()?
        }
        Codec::Zstd => {
            zstd::bulk::compress_to_buffer(raw, sized(scratch, size_max), ZSTD_LEVEL).ok()?
        }
    };
    (len <= size_max).then(|| scratch.get(..len)).flatten()
}

fn lz4_room(len: usize) -> usize {
    lz4_flex::block::get_maximum_output_size(len)
}

fn sized(scratch: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if scratch.len() < len {
        scratch.resize(len, 0);
    }
    scratch.get_mut(..len).unwrap_or_default()
}

/// Tries LZ4 on three samples; true if any of them shrinks.
fn seems_compressible(raw: &[u8], scratch: &mut Vec<u8>) -> bool {
    if raw.len() < SAMPLE_FROM {
        return true;
    }
    let last = raw.len() - SAMPLE_BYTES;
    [0, last / 2, last].into_iter().any(|at| {
        let Some(sample) = raw.get(at..at + SAMPLE_BYTES) else { return false };
        let out = sized(scratch, lz4_room(SAMPLE_BYTES));
        lz4_flex::block::compress_into(sample, out)
            .is_ok_and(|len| len < SAMPLE_BYTES - SAMPLE_BYTES / MIN_SAVING_PART)
    })
}

/// Never more than `raw_len` bytes, whatever the stored bytes claim.
fn decompress(stored: &[u8], codec: Codec, raw_len: usize) -> Result<Vec<u8>, String> {
    let mut raw = vec![0; raw_len];
    let len = match codec {
        Codec::None => return Ok(stored.to_vec()),
        Codec::Lz4 => lz4_flex::block::decompress_into(stored, &mut raw)
            .map_err(|error| format!("LZ4: {error}"))?,
        Codec::Zstd => zstd::bulk::decompress_to_buffer(stored, raw.as_mut_slice())
            .map_err(|error| format!("zstd: {error}"))?,
    };
    raw.truncate(len);
    Ok(raw)
}
