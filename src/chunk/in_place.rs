//! Reads chunks from files of this machine, of a pool in a folder or of the disk cache, as far as
//! the kernel has them in memory, on the caller's thread. There is no request to share then, and no
//! task or hand-over to pay for. Whatever cannot be read this way, for any reason, is left to the
//! general path, which also finds the exact error.

use super::coder::{Backing, Coder};
use super::cpu;
use super::groups::GROUP_BYTES;
use super::pack::Sealing;
use super::plan::range_of;
use super::reader::Reader;
use super::relocated::{self, Generation};
use super::{ChunkRef, Codec};
use crate::types::PackId;
use bytes::Bytes;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Bytes of chunks that are read from their pack together, each verified while it is in the
/// processor's cache.
const TOGETHER_BYTES: u64 = 256 << 10;

/// A chunk that was asked for and is not in memory, with its place in the answer.
pub(super) type Missing = (usize, ChunkRef);

impl Reader {
    /// Completes those chunks that can be read without waiting, and returns the others.
    pub(super) async fn read_in_place(
        &self,
        missing: Vec<Missing>,
        data: &mut [Bytes],
    ) -> Vec<Missing> {
        if !self.has_files() {
            return missing;
        }
        let bytes: usize = missing.iter().map(|(_, chunk)| chunk.raw_len as usize).sum();
        if bytes >= cpu::INLINE_BYTES {
            // The caller's next call goes on beside this one.
            tokio::task::yield_now().await;
        }
        let mut left = Vec::new();
        let mut rest = missing.as_slice();
        while !rest.is_empty() {
            let (now, after) = rest.split_at(together(rest));
            match self.read_pack_in_place(now) {
                Some(found) => {
                    for ((index, chunk), bytes) in now.iter().zip(found) {
                        self.cache.0.insert(chunk.hash, bytes.clone());
                        if let Some(slot) = data.get_mut(*index) {
                            *slot = bytes;
                        }
                    }
                }
                None => left.extend_from_slice(now),
            }
            rest = after;
        }
        left
    }

    /// Returns whether any chunk is in a file of this machine.
    fn has_files(&self) -> bool {
        self.bucket.is_local() || self.disk().is_some()
    }

    /// Ranges of a pack's object. Not verified.
    fn ranges_in_place(
        &self,
        pack: PackId,
        generation: Generation,
        ranges: &[Range<u64>],
    ) -> Option<Vec<Bytes>> {
        let key = relocated::key(self.family, pack, generation);
        if self.bucket.is_local() {
            return self.bucket.read_in_place(&key, ranges);
        }
        self.disk()?.read_in_place(&key, ranges)
    }

    /// Chunks of one pack.
    fn read_pack_in_place(&self, chunks: &[Missing]) -> Option<Vec<Bytes>> {
        let (generation, located): (Vec<_>, Vec<_>) =
            chunks.iter().map(|(_, chunk)| self.located(chunk)).unzip();
        let generation = *generation.first()?;
        let ranges: Vec<_> = located.iter().map(range_of).collect();
        let pack = located.first()?.pack;
        let stored = self.ranges_in_place(pack, generation, &ranges)?;
        let opened = stored.into_iter().zip(&located).map(|(stored, chunk)| {
            if has_groups(&self.coder, chunk) {
                let groups = self.coder.verify_groups(chunk, &stored)?;
                self.cache.0.groups.lock().insert(chunk.hash, groups);
                return Some(stored);
            }
            self.coder.decode(chunk, stored, Backing::Whole).ok()
        });
        let opened: Vec<Bytes> = opened.collect::<Option<_>>()?;
        if !self.bucket.is_local() {
            let hits = &self.cache.0.counts.disk_hits;
            hits.fetch_add(opened.len() as u64, Ordering::Relaxed);
        }
        Some(opened)
    }

    /// Part of a chunk whose groups are known, verified by them.
    pub(super) fn read_part(&self, chunk: &ChunkRef, from: u32, len: u32) -> Option<Bytes> {
        if len == 0 || !self.has_files() || !has_groups(&self.coder, chunk) {
            return None;
        }
        let end = from.checked_add(len).filter(|end| *end <= chunk.raw_len)?;
        let (first, last) = (from / GROUP_BYTES, (end - 1) / GROUP_BYTES);
        let start = first * GROUP_BYTES;
        let stop = ((last + 1) * GROUP_BYTES).min(chunk.raw_len);
        // More than half of it is read whole, and kept.
        if (stop - start) * 2 > chunk.raw_len {
            return None;
        }
        let known =
            self.cache.0.groups.lock().get(&chunk.hash, first as usize..last as usize + 1)?;
        let (generation, located) = self.located(chunk);
        let at = u64::from(located.offset);
        let range = at + u64::from(start)..at + u64::from(stop);
        let ranges = std::slice::from_ref(&range);
        let bytes = self.ranges_in_place(chunk.pack, generation, ranges)?.pop()?;
        let whole = bytes
            .chunks(GROUP_BYTES as usize)
            .zip(known)
            .zip(first..)
            .all(|((bytes, known), index)| self.coder.group(index as usize, bytes) == known);
        whole.then(|| bytes.slice((from - start) as usize..(end - start) as usize))
    }
}

/// The number of leading chunks that are in one pack and are read together, at least one.
fn together(chunks: &[Missing]) -> usize {
    let mut bytes = 0;
    let first = chunks.first().map(|(_, chunk)| chunk.pack);
    let taken = chunks.iter().take_while(|(_, chunk)| {
        bytes += u64::from(chunk.stored_len);
        Some(chunk.pack) == first && bytes <= TOGETHER_BYTES
    });
    taken.count().max(1)
}

/// Returns whether a chunk is stored as its data is, and has groups.
fn has_groups(coder: &Coder, chunk: &ChunkRef) -> bool {
    chunk.codec == Codec::None
        && coder.sealing() == Sealing::Plain
        && chunk.stored_len == chunk.raw_len
        && chunk.raw_len > GROUP_BYTES
}
