//! Plans the extents of a flush, and stores those of their parts that go to packs.

use super::taken::Taken;
use crate::chunk::{ChunkError, ChunkRef, Packing, Stored};
use crate::fs::FsError;
use crate::fs::content::Contents;
use crate::fs::content::extents::visible;
use crate::fs::content::plan::{self, Allowance, ExtentPart, Plan, Urgency};
use crate::fs::inode::Node;
use crate::fs::inode::{Buffer, Pieces};
use crate::fs::row::{Extent, Segment};
use crate::types::{Class, Classify};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Extents are planned and packed in groups, several at a time. Each is of one step of a reader's
/// read-ahead (`content.rs` of inodes), and its chunks lie side by side in a pack; where little of
/// a step is dirty, of several.
const GROUP_BYTES: u64 = 4 << 20;
const GROUP_RECORDS: usize = 1024;
const GROUPS_AT_ONCE: usize = 4;
/// A flush of at least this many bytes closes its packs without waiting for others to fill them.
const SOON_BYTES: u64 = 4 << 20;

/// An extent as the flush will write it.
struct Planned {
    n: u64,
    old: Option<Arc<Extent>>,
    parts: Vec<ExtentPart>,
}

/// A group of the taken extents, in flight to packs.
#[derive(Default)]
struct ExtentGroup {
    planned: Vec<Planned>,
    packing: Option<Packing>,
    lost: Vec<(u64, FsError)>,
}

/// Everything that the batch needs.
#[derive(Default)]
pub(super) struct Prepared {
    pub extents: Vec<(u64, Option<Arc<Extent>>, Vec<Segment>)>,
    /// Dropped when the batch has been submitted: then their packs may settle (R9).
    pub stored: Vec<Stored>,
    pub lost: Vec<(u64, FsError)>,
}

impl Contents {
    pub(super) async fn prepare(
        &self,
        node: &Node,
        taken: &Taken,
        urgency: Urgency,
    ) -> Result<Prepared, FsError> {
        self.committer.step("fs.content.before-pack").await?;
        let groups = stream::iter(groups(&taken.buffer, taken.row.record_bits))
            .map(|group| self.pack_group(node, taken, urgency, group).boxed());
        let groups: Vec<ExtentGroup> = groups.buffered(GROUPS_AT_ONCE).try_collect().await?;
        // Packs of small files wait a little for each other, unless writers wait for the memory.
        let hurries = taken.buffer.charge() >= SOON_BYTES || self.room.is_low();
        let urgency = match urgency {
            Urgency::Background if hurries => Urgency::Soon,
            urgency => urgency,
        };
        let prepared = self.store_groups(groups, urgency).await?;
        self.committer.step("fs.content.before-submit").await?;
        Ok(prepared)
    }

    /// Waits for the packs and replaces the bytes by references.
    async fn store_groups(
        &self,
        groups: Vec<ExtentGroup>,
        urgency: Urgency,
    ) -> Result<Prepared, FsError> {
        let mut prepared = Prepared::default();
        let waits = groups.into_iter().map(|mut group| async move {
            let stored = match (group.packing.take(), urgency) {
                (None, _) => None,
                (Some(packing), Urgency::Now) => Some(packing.stored().await?),
                (Some(packing), Urgency::Soon) => Some(packing.stored_soon().await?),
                (Some(packing), Urgency::Background) => Some(packing.stored_in_background().await?),
            };
            Ok::<_, ChunkError>((group, stored))
        });
        for (group, stored) in futures::future::try_join_all(waits).await? {
            prepared.lost.extend(group.lost);
            let refs: Vec<ChunkRef> =
                stored.as_ref().map(|s| s.refs().to_vec()).unwrap_or_default();
            let mut refs = refs.into_iter();
            for planned in group.planned {
                let segments = plan::finish(planned.parts, &mut refs).ok_or_else(|| {
                    FsError::Internal("a packing answered fewer chunks than were added".to_owned())
                })?;
                prepared.extents.push((planned.n, planned.old, segments));
            }
            prepared.stored.extend(stored);
        }
        Ok(prepared)
    }

    /// Plans the extents of a group and gives the packer the data that goes to packs.
    async fn pack_group(
        &self,
        node: &Node,
        taken: &Taken,
        urgency: Urgency,
        group: Vec<(u64, Pieces)>,
    ) -> Result<ExtentGroup, FsError> {
        let mut allowance = Allowance::new(urgency, taken.buffer.charge());
        let old = self.old_extents(node, taken, &group).await;
        let mut out = ExtentGroup::default();
        let mut rewrites = Vec::new();
        for (n, pieces) in group {
            let old = match &old {
                Ok(old) => old.get(&n).cloned().flatten(),
                Err(error) if is_permanent(error) => {
                    out.lost.push((n, error.clone()));
                    continue;
                }
                Err(error) => return Err(error.clone()),
            };
            let below = visible(&taken.row.masks, n, old.as_ref()).map_or(&[][..], |r| &r.segments);
            match plan::overlay(below, pieces.runs(), &mut allowance) {
                Plan::Parts(parts) => out.planned.push(Planned { n, old, parts }),
                Plan::Rewrite(segments) => rewrites.push((n, old, segments)),
            }
        }
        self.rewrite(rewrites, &mut out).await?;
        self.pack(&mut out).await?;
        Ok(out)
    }

    async fn pack(&self, group: &mut ExtentGroup) -> Result<(), FsError> {
        let raw: Vec<Bytes> = group
            .planned
            .iter()
            .flat_map(|planned| &planned.parts)
            .filter_map(|part| match part {
                ExtentPart::Pack { bytes, .. } => Some(bytes.clone()),
                ExtentPart::Ready(_) => None,
            })
            .collect();
        if !raw.is_empty() {
            self.recall.stores(&raw);
            group.packing = Some(self.packer.add(raw).await?);
        }
        Ok(())
    }

    /// The rows that will be replaced.
    async fn old_extents(
        &self,
        node: &Node,
        taken: &Taken,
        group: &[(u64, Pieces)],
    ) -> Result<BTreeMap<u64, Option<Arc<Extent>>>, FsError> {
        let mut old = BTreeMap::new();
        let numbers: Vec<u64> =
            group.iter().map(|(n, _)| *n).filter(|n| *n < taken.absent_from).collect();
        let mut numbers = numbers.into_iter().peekable();
        while let Some(first) = numbers.next() {
            let mut last = first;
            // One scan for extents that are near each other, but none across a large gap.
            while let Some(next) = numbers.next_if(|next| next - last <= 64) {
                last = next;
            }
            old.extend(self.load(node, &taken.row, first..=last).await?);
        }
        Ok(old)
    }

    async fn rewrite(
        &self,
        rewrites: Vec<(u64, Option<Arc<Extent>>, Vec<Segment>)>,
        out: &mut ExtentGroup,
    ) -> Result<(), FsError> {
        for (n, old, segments) in rewrites {
            let chunks = plan::chunks_of(&segments);
            let parts = match self.chunks.read(&chunks).await {
                Ok(data) => {
                    let data: HashMap<_, _> = chunks.iter().map(|c| c.hash).zip(data).collect();
                    plan::rewrite(&segments, &data).ok_or_else(|| {
                        FsError::Corrupt(format!("extent {n} refers past its chunks"))
                    })
                }
                Err(error) => Err(FsError::from(error)),
            };
            match parts {
                Ok(parts) => out.planned.push(Planned { n, old, parts }),
                Err(error) if is_permanent(&error) => out.lost.push((n, error)),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn groups(buffer: &Buffer, record_bits: u8) -> Vec<Vec<(u64, Pieces)>> {
    let step = |n: u64| (n << record_bits) / GROUP_BYTES;
    let mut groups: Vec<Vec<(u64, Pieces)>> = vec![Vec::new()];
    let mut bytes = 0;
    for (n, pieces) in buffer.extents() {
        let begins_step = groups
            .last()
            .and_then(|group| group.last())
            .is_some_and(|(last, _)| step(*last) != step(n));
        let is_full = bytes >= 2 * GROUP_BYTES || (bytes >= GROUP_BYTES / 2 && begins_step);
        if is_full || groups.last().is_some_and(|g| g.len() >= GROUP_RECORDS) {
            groups.push(Vec::new());
            bytes = 0;
        }
        bytes += pieces.charge();
        if let Some(group) = groups.last_mut() {
            group.push((n, pieces.clone()));
        }
    }
    groups
}

/// Returns whether a retry cannot help: the data below is damaged.
fn is_permanent(error: &FsError) -> bool {
    matches!(error.class(), Class::Corrupt)
}
