//! Read-ahead: chunks that will be read soon are fetched with few, large requests.

use super::ChunkRef;
use super::cache::count;
use super::plan::{Fetch, plan};
use super::reader::{Completion, Reader, check, dedup, weight};
use super::relocated;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

impl Reader {
    /// Fetches chunks that are neither in memory nor in flight, as far as the read-ahead budget
    /// goes. A file on this machine is read ahead by the kernel, into its own memory.
    /// Returns whether there was room for all of them.
    pub(super) async fn prefetch(self: &Arc<Self>, chunks: Vec<ChunkRef>) -> bool {
        let wanted = chunks
            .into_iter()
            .filter(|chunk| check(chunk).is_ok() && self.cache.0.get(&chunk.hash).is_none());
        for fetch in plan(dedup(wanted.collect())) {
            if !self.is_on_disk(&fetch).await && !self.begin_ahead(&fetch) {
                count(&self.cache.0.counts.ahead_dropped);
                return false;
            }
        }
        true
    }

    async fn is_on_disk(&self, fetch: &Fetch) -> bool {
        let Some(pack) = fetch.chunks.first().map(|chunk| chunk.pack) else { return true };
        let key = relocated::key(self.family, pack, 0);
        if self.bucket.is_local() {
            self.bucket.will_read(&key, fetch.range.clone());
            return true;
        }
        match self.disk() {
            Some(disk) => disk.will_read(key, fetch.range.clone()).await,
            None => false,
        }
    }

    /// Begins a fetch; readers of its chunks join it from now on, even while it waits for room.
    fn begin_ahead(self: &Arc<Self>, fetch: &Fetch) -> bool {
        let shared = &self.cache.0;
        let Ok(queued) = shared.read_ahead_queue.clone().try_acquire_many_owned(weight(fetch))
        else {
            return false;
        };
        let mut completions = Vec::new();
        let mut in_flight_reads = self.in_flight_reads.lock();
        for chunk in &fetch.chunks {
            if !in_flight_reads.contains_key(chunk) {
                self.join_or_begin(&mut in_flight_reads, chunk, &mut completions);
            }
        }
        // A runtime that shuts down drops spawned tasks at once, and a dropped completion takes the
        // lock.
        drop(in_flight_reads);
        tokio::spawn(self.clone().fetch_ahead(completions, queued));
        true
    }

    /// Fetches what was not in flight before. `queued`: the bound on what waits.
    async fn fetch_ahead(
        self: Arc<Self>,
        mut completions: Vec<Completion>,
        queued: OwnedSemaphorePermit,
    ) {
        let budget = self.cache.0.read_ahead_budget.clone();
        for fetch in plan(completions.iter().map(|completion| completion.chunk).collect()) {
            let (own, rest) = completions
                .into_iter()
                .partition(|completion| fetch.chunks.contains(&completion.chunk));
            completions = rest;
            // Never closed.
            let room = budget.clone().acquire_many_owned(weight(&fetch)).await.ok();
            self.clone().fetch(fetch, own, room).await;
        }
        drop(queued);
    }
}
