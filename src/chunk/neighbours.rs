//! Small chunks that lie beside each other in a pack, as files that were written together do, come
//! with one request: where a second small chunk of a block is missed soon after a first, the whole
//! block is fetched into the disk cache, and its other chunks are read from there.
//!
//! One miss alone fetches no more than its chunk: somebody who reads small pieces here and there
//! pays for no block.

use super::blocks::{BLOCK_BYTES, Block};
use super::plan::Fetch;
use super::reader::{Completion, Reader, reading};
use super::{ChunkError, relocated};
use crate::types::PackId;
use std::ops::Range;
use std::sync::Arc;

/// A larger request is not for small chunks.
const SMALL_BYTES: u64 = 32 << 10;

impl Reader {
    /// The block to fetch instead of a small range.
    pub(super) fn block_of(&self, fetch: &Fetch) -> Option<Block> {
        self.disk()?;
        let pack = fetch.chunks.first()?.pack;
        let number = fetch.range.start / BLOCK_BYTES;
        let is_small = fetch.range.end - fetch.range.start <= SMALL_BYTES;
        (is_small && self.blocks.lock().miss((pack, number))).then_some((pack, number))
    }

    /// Completes reads of small chunks, with the block that they begin in.
    pub(super) async fn fetch_block(
        self: Arc<Self>,
        block: Block,
        fetch: Fetch,
        completions: Vec<Completion>,
    ) {
        let turn = self.blocks.lock().turn(block);
        let held = turn.lock().await;
        // The task before may have fetched it.
        let mut missed = self.try_disk(completions).await;
        if !missed.is_empty() {
            missed = self.fetch_range(block.0, range(block, &fetch), missed).await;
        }
        drop(held);
        self.blocks.lock().done(block, turn);
        if !missed.is_empty() {
            self.fetch(fetch, missed, None).await;
        }
    }

    /// Returns the completions whose own ranges have to be asked for: the block cannot be read, as
    /// where a damaged reference points past the pack's end.
    async fn fetch_range(
        &self,
        pack: PackId,
        range: Range<u64>,
        completions: Vec<Completion>,
    ) -> Vec<Completion> {
        let shared = &self.cache.0;
        // Neither semaphore is ever closed. A block is far below 4 GiB.
        let _slot = shared.reads.acquire().await;
        let _room = shared.read_budget.acquire_many((range.end - range.start) as u32).await;
        if self.locations.lock().get(pack).is_some() {
            self.fetch_relocated(pack, completions).await;
            return Vec::new();
        }
        let key = relocated::key(self.family, pack, 0);
        match self.bucket.get_up_to(&key, range.clone()).await.map_err(|e| reading(pack, e)) {
            Ok(bytes) => {
                let completions = completions.into_iter().map(|own| (own.chunk, own)).collect();
                // Whoever comes next finds the block there.
                if let Some(written) = self.complete(key, range.start, bytes, completions).await {
                    // Cut off when the process ends.
                    let _ended = written.await;
                }
            }
            Err(ChunkError::Missing { .. }) => self.fetch_relocated(pack, completions).await,
            Err(_) => return completions,
        }
        Vec::new()
    }
}

/// The block, and the end of a small chunk that begins in it.
fn range((_, number): Block, fetch: &Fetch) -> Range<u64> {
    let start = number * BLOCK_BYTES;
    start..(start + BLOCK_BYTES + SMALL_BYTES).max(fetch.range.end)
}
