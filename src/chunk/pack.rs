//! The bytes of a pack.
//!
//! ```text
//! header    "zfpack" version flags                                                 8 bytes
//! chunks    one after another, each compressed and sealed as its footer entry says
//! footer    per chunk: hash 32, offset u32, stored length u32, raw length u32, codec u8
//!           (flag 1: the whole footer is sealed)
//! trailer   checksum 32, footer length u32, flags, version, "zfpack"              44 bytes
//! ```
//!
//! Numbers are little-endian. The checksum is BLAKE3 over header, footer and the rest of the
//! trailer; the chunks have their own hashes. A reader that wants the footer needs the object's
//! tail only; a reader that wants a chunk needs its [`ChunkRef`](super::ChunkRef) only.

use super::{CHUNK_BYTES_MAX, Codec};
use crate::crypto::Sealer;
use crate::types::ChunkHash;

const MAGIC: [u8; 6] = *b"zfpack";
/// The format that this program writes, and the only one it reads.
const VERSION: u8 = 1;
/// Flag: footer and chunks are sealed.
const SEALED: u8 = 1;

pub(super) const HEADER_BYTES: u32 = 8;
pub(super) const TRAILER_BYTES: usize = 44;
const ENTRY_BYTES: usize = 45;

/// A pack is closed when it holds this much: large enough that a GiB takes 64 PUTs, small enough
/// that few are held in memory.
pub const PACK_BYTES: u32 = 16 << 20;
/// The data of one append, at most: a step of a reader's read-ahead, which takes one request
/// where its chunks lie side by side in one pack. A pack is therefore closed behind them.
pub(super) const APPEND_BYTES_MAX: usize = 4 << 20;
/// Most chunks of one pack, so that a footer has a bound (1.4 MiB) when they are tiny.
pub(super) const PACK_CHUNKS_MAX: usize = 32 << 10;
/// The longest footer as stored.
pub(super) const FOOTER_BYTES_MAX: usize = PACK_CHUNKS_MAX * ENTRY_BYTES + Sealer::OVERHEAD;

/// No pack has more: it is closed by the append that fills it, and ends with its footer.
pub const OBJECT_BYTES_MAX: usize = PACK_BYTES as usize
    + APPEND_BYTES_MAX
    + PACK_CHUNKS_MAX * Sealer::OVERHEAD
    + FOOTER_BYTES_MAX
    + HEADER_BYTES as usize
    + TRAILER_BYTES;

/// Reasons why the bytes of a pack are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    #[error("{bytes} bytes are too few for a pack")]
    Short { bytes: u64 },
    #[error("its trailer is not a pack's")]
    Magic,
    #[error(
        "it has format version {version}, this program knows version {VERSION}: use a newer one"
    )]
    Version { version: u8 },
    #[error("unknown flags {flags:#04x}: use a newer program")]
    Flags { flags: u8 },
    #[error("the footer's length {bytes} is invalid")]
    FooterLength { bytes: u64 },
    #[error("the footer's checksum is wrong")]
    Checksum,
    #[error("entry {index} of the footer: {why}")]
    Entry { index: usize, why: &'static str },
    #[error("the chunks end at {chunks} and the footer begins at {footer}")]
    Gap { chunks: u32, footer: u64 },
}

/// Distinguishes packs of an encrypted pool from plain ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealing {
    Plain,
    Sealed,
}

impl Sealing {
    fn flags(self) -> u8 {
        match self {
            Self::Plain => 0,
            Self::Sealed => SEALED,
        }
    }
}

/// One chunk of a pack: a [`ChunkRef`](super::ChunkRef) without the pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackEntry {
    pub hash: ChunkHash,
    pub offset: u32,
    pub stored_len: u32,
    pub raw_len: u32,
    pub codec: Codec,
}

impl Codec {
    /// The codec's number in a pack, and in the associated data of a chunk's seal.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd),
            _ => None,
        }
    }
}

pub(super) fn header(sealing: Sealing) -> [u8; HEADER_BYTES as usize] {
    let [a, b, c, d, e, f] = MAGIC;
    [a, b, c, d, e, f, VERSION, sealing.flags()]
}

/// The footer before it is sealed.
pub(super) fn encode_footer(entries: &[PackEntry]) -> Vec<u8> {
    let mut footer = Vec::with_capacity(entries.len() * ENTRY_BYTES + Sealer::OVERHEAD);
    for entry in entries {
        footer.extend_from_slice(&entry.hash.0);
        footer.extend_from_slice(&entry.offset.to_le_bytes());
        footer.extend_from_slice(&entry.stored_len.to_le_bytes());
        footer.extend_from_slice(&entry.raw_len.to_le_bytes());
        footer.push(entry.codec.number());
    }
    footer
}

/// Decodes a footer that is not, or no longer, sealed. Takes any bytes; allocates no more than they
/// could hold.
///
/// # Errors
/// When an entry is impossible: chunks lie one after another from the header on, within the sizes
/// that this program writes.
pub fn decode_footer(footer: &[u8]) -> Result<Vec<PackEntry>, PackError> {
    if !footer.len().is_multiple_of(ENTRY_BYTES) || footer.len() > FOOTER_BYTES_MAX {
        return Err(PackError::FooterLength { bytes: footer.len() as u64 });
    }
    let mut entries = Vec::with_capacity(footer.len() / ENTRY_BYTES);
    let mut end = HEADER_BYTES;
    for (index, bytes) in footer.chunks_exact(ENTRY_BYTES).enumerate() {
        let entry = decode_entry(bytes).map_err(|why| PackError::Entry { index, why })?;
        if entry.offset != end {
            return Err(PackError::Entry {
                index,
                why: "it does not begin at the end of the previous one",
            });
        }
        end = end
            .checked_add(entry.stored_len)
            .ok_or(PackError::Entry { index, why: "it ends beyond 4 GiB" })?;
        entries.push(entry);
    }
    Ok(entries)
}

fn decode_entry(mut bytes: &[u8]) -> Result<PackEntry, &'static str> {
    let cut_off = "it is truncated";
    let hash = take::<32>(&mut bytes).ok_or(cut_off)?;
    let [offset, stored_len, raw_len] = [take::<4>(&mut bytes), take(&mut bytes), take(&mut bytes)];
    let [codec] = take::<1>(&mut bytes).ok_or(cut_off)?;
    let (offset, stored_len, raw_len) =
        (offset.ok_or(cut_off)?, stored_len.ok_or(cut_off)?, raw_len.ok_or(cut_off)?);
    let entry = PackEntry {
        hash: ChunkHash(hash),
        offset: u32::from_le_bytes(offset),
        stored_len: u32::from_le_bytes(stored_len),
        raw_len: u32::from_le_bytes(raw_len),
        codec: Codec::from_number(codec).ok_or("its codec is unknown: use a newer program")?,
    };
    if entry.raw_len as usize > CHUNK_BYTES_MAX {
        return Err("it exceeds the largest chunk");
    }
    if entry.stored_len as usize > entry.raw_len as usize + Sealer::OVERHEAD {
        return Err("its stored length exceeds its length");
    }
    Ok(entry)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

/// The end of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    pub footer_len: u32,
    pub sealing: Sealing,
    checksum: [u8; 32],
}

impl Trailer {
    pub(super) fn new(footer: &[u8], sealing: Sealing) -> Self {
        // At most FOOTER_BYTES_MAX.
        let footer_len = footer.len() as u32;
        Self { footer_len, sealing, checksum: checksum(footer, footer_len, sealing) }
    }

    pub(super) fn encode(&self) -> [u8; TRAILER_BYTES] {
        let mut bytes = [0; TRAILER_BYTES];
        bytes[..32].copy_from_slice(&self.checksum);
        bytes[32..].copy_from_slice(&suffix(self.footer_len, self.sealing));
        bytes
    }

    /// Reads the trailer at the end of `tail`, any bytes.
    ///
    /// # Errors
    /// When it is not one that this program reads.
    pub fn decode(tail: &[u8]) -> Result<Self, PackError> {
        let short = PackError::Short { bytes: tail.len() as u64 };
        let Some(bytes) = tail.last_chunk::<TRAILER_BYTES>() else { return Err(short) };
        let Some((checksum, rest)) = bytes.split_first_chunk::<32>() else { return Err(short) };
        let Some((footer_len, rest)) = rest.split_first_chunk::<4>() else { return Err(short) };
        let &[flags, version, ref magic @ ..] = rest else { return Err(short) };
        if *magic != MAGIC {
            return Err(PackError::Magic);
        }
        if version != VERSION {
            return Err(PackError::Version { version });
        }
        let sealing = match flags {
            0 => Sealing::Plain,
            SEALED => Sealing::Sealed,
            flags => return Err(PackError::Flags { flags }),
        };
        let footer_len = u32::from_le_bytes(*footer_len);
        if footer_len as usize > FOOTER_BYTES_MAX {
            return Err(PackError::FooterLength { bytes: footer_len.into() });
        }
        Ok(Self { footer_len, sealing, checksum: *checksum })
    }

    /// Checks the footer's bytes as stored.
    ///
    /// # Errors
    /// When they are not those that the trailer was written for.
    pub fn check(&self, footer: &[u8]) -> Result<(), PackError> {
        let right = footer.len() == self.footer_len as usize
            && checksum(footer, self.footer_len, self.sealing) == self.checksum;
        if right { Ok(()) } else { Err(PackError::Checksum) }
    }
}

fn suffix(footer_len: u32, sealing: Sealing) -> [u8; TRAILER_BYTES - 32] {
    let [a, b, c, d] = footer_len.to_le_bytes();
    let [m0, m1, m2, m3, m4, m5] = MAGIC;
    [a, b, c, d, sealing.flags(), VERSION, m0, m1, m2, m3, m4, m5]
}

fn checksum(footer: &[u8], footer_len: u32, sealing: Sealing) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("zerofs-csi 2026-11 pack footer");
    hasher.update(&header(sealing)).update(footer).update(&suffix(footer_len, sealing));
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entries(lengths: &[(u16, u16)]) -> Vec<PackEntry> {
        let mut offset = HEADER_BYTES;
        let mut entries = Vec::new();
        for (i, &(raw, saved)) in lengths.iter().enumerate() {
            let raw_len = u32::from(raw);
            let stored_len = raw_len.saturating_sub(saved.into());
            let codec = Codec::from_number((i % 3) as u8).unwrap();
            entries.push(PackEntry {
                hash: ChunkHash([i as u8; 32]),
                offset,
                stored_len,
                raw_len,
                codec,
            });
            offset += stored_len;
        }
        entries
    }

    proptest! {
        #[test]
        fn footers_round_trip(lengths in proptest::collection::vec(any::<(u16, u16)>(), 0..50)) {
            let entries = entries(&lengths);
            prop_assert_eq!(decode_footer(&encode_footer(&entries)).unwrap(), entries);
        }

        #[test]
        fn any_bytes_decode_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode_footer(&bytes);
            let _ = Trailer::decode(&bytes);
        }

        #[test]
        fn a_flipped_bit_is_seen(byte in 0usize..(45 * 3 + TRAILER_BYTES), bit in 0u8..8) {
            let mut bytes = encode_footer(&entries(&[(10, 0), (500, 20), (0, 0)]));
            let trailer = Trailer::new(&bytes, Sealing::Plain).encode();
            bytes.extend_from_slice(&trailer);
            bytes[byte] ^= 1 << bit;
            let seen = Trailer::decode(&bytes).and_then(|t| t.check(&bytes[..45 * 3]));
            prop_assert!(seen.is_err());
        }
    }

    #[test]
    fn impossible_entries_are_refused() {
        let good = entries(&[(100, 0), (100, 0)]);
        let refused = |change: fn(&mut PackEntry)| {
            let mut bad = good.clone();
            change(&mut bad[1]);
            decode_footer(&encode_footer(&bad)).unwrap_err()
        };
        assert!(matches!(refused(|e| e.offset += 1), PackError::Entry { index: 1, .. }));
        assert!(matches!(
            refused(|e| e.raw_len = CHUNK_BYTES_MAX as u32 + 1),
            PackError::Entry { index: 1, .. }
        ));
        assert!(matches!(refused(|e| e.stored_len = 141), PackError::Entry { index: 1, .. }));
    }
}
