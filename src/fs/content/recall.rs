//! Relearns for deduplication the chunks that the dataset stored before it was opened, from the
//! footers of its packs: the index of known chunks is only in memory. This begins once this opening
//! has stored data itself, so that a volume that only reads, or writes little, costs no request.
//! Chunks of an origin count: a clone begins with the references of its origin.
//!
//! A footer that cannot be read, or a pack that is sealed meanwhile, costs only space: whether a
//! chunk may be referred to is asked at each hit (R10). Nothing is learnt of a pack that is
//! marked as rewrite-pending, or was rewritten: a collector that did not know of this dataset has
//! not asked it to seal the pack, and counts on it to look here (R12). So the markers are listed
//! before any footer is read, and only first objects are read.

use super::Contents;
use crate::types::PackId;
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// An opening that stores less is not worth the requests.
const FROM_BYTES: u64 = 1 << 20;
/// Footers read for an opening: of full packs 8 GiB.
const PACKS_MAX: usize = 256;
/// Footers read concurrently: few, so that calls are not delayed.
const AT_ONCE: usize = 4;

/// Decides when to begin.
#[derive(Default)]
pub(super) struct Recall {
    stored: AtomicU64,
    begin: Notify,
}

impl Recall {
    /// Counts bytes that go to packs.
    pub(super) fn stores(&self, raw: &[Bytes]) {
        let bytes: usize = raw.iter().map(Bytes::len).sum();
        let before = self.stored.fetch_add(bytes as u64, Ordering::Relaxed);
        if before < FROM_BYTES && before + bytes as u64 >= FROM_BYTES {
            self.begin.notify_one();
        }
    }
}

impl Contents {
    pub(super) async fn recall_once(&self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => return,
            () = self.recall.begin.notified() => {}
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.recall_packs() => {}
        }
    }

    async fn recall_packs(&self) {
        let mut packs: Vec<PackId> = self
            .committer
            .open_packs()
            .into_iter()
            .filter(|pack| !self.packer.makes(*pack))
            .collect();
        // The chunks stored last are the likeliest to recur.
        packs.sort_unstable_by_key(|pack| std::cmp::Reverse((pack.epoch, pack.seq)));
        match self.chunks.rewrite_pending().await {
            Ok(rewrite_pending) => packs.retain(|pack| !rewrite_pending.contains(pack)),
            Err(error) => {
                tracing::debug!(
                    %error,
                    "what was stored before is not known to deduplication: equal data is stored \
                     again"
                );
                return;
            }
        }
        let (mut recalled, at_once) = (0, self.packer.learnable_at_once());
        let mut footers = stream::iter(packs.into_iter().take(PACKS_MAX))
            .map(|pack| async move { (pack, self.chunks.contents_of(pack, 0).await) })
            .buffered(AT_ONCE);
        while recalled < at_once
            && let Some((pack, footer)) = footers.next().await
        {
            match footer {
                Ok((chunks, _)) => {
                    recalled += chunks.len();
                    self.packer.learn(&chunks);
                }
                Err(error) => {
                    tracing::debug!(
                        %pack,
                        %error,
                        "what a pack holds is not known to deduplication: equal data is stored \
                         again"
                    );
                }
            }
        }
        tracing::debug!(recalled, "chunks stored before are known to deduplication");
    }
}
