//! The pack usage of roots as they were last read: a root that has not changed is not read again,
//! so a collection of an idle pool needs only listings, however many volumes and snapshots there
//! are.
//!
//! - The version of a snapshot is its checkpoint, which never changes.
//! - The version of a head is the listing of its database. Every change of it is a new object, a
//!   manifest or a part of the WAL; both are numbered, and the newest manifest is never removed, so
//!   that no two states list the same objects. They are listed after the catalog, and a head whose
//!   listing is unchanged is unchanged since it was read (R11).

use super::Objects;
use crate::catalog::{Dataset, Snapshot};
use crate::fs::db::CheckpointId;
use crate::fs::row::Usage;
use crate::types::{Epoch, FamilyId, Incarnation, PackId, SnapshotId};
use blake3::Hash;
use std::collections::HashMap;
use std::sync::Arc;

/// Rows of pack usage in the cache, of some 60 bytes each. Roots beyond are read every time.
const ROWS_MAX: usize = 1 << 18;

/// One root's use of packs.
pub(super) enum RootUsage {
    /// The dataset was never opened, so it has no database.
    NoDatabase,
    /// The head's durable `S`, where it has one: its writer epoch and settled pack (R9).
    Head {
        dataset: Incarnation,
        settled: Option<(Epoch, u64)>,
        usage: Vec<(PackId, Usage)>,
    },
    Snapshot {
        usage: Vec<(PackId, Usage)>,
    },
    /// A tombstoned head whose database cannot be read.
    Unreadable(Incarnation),
    /// A snapshot that is being made and has no checkpoint yet.
    Pending(FamilyId, SnapshotId),
}

impl RootUsage {
    /// Its size in the cache.
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Head { usage, .. } | Self::Snapshot { usage } => usage.len().max(1),
            Self::NoDatabase | Self::Unreadable(_) | Self::Pending(..) => 1,
        }
    }
}

/// A root at one point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RootVersion {
    root: Incarnation,
    version: Hash,
}

impl RootVersion {
    /// `objects`: of every database, as listed before the head is read.
    pub(super) fn of_head(dataset: &Dataset, objects: &Objects) -> Self {
        let mut version = blake3::Hasher::new();
        for object in objects.get(&dataset.incarnation).into_iter().flatten() {
            let tag = object.tag.as_deref().unwrap_or_default();
            for part in [&object.key, tag] {
                version.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
            }
        }
        Self { root: dataset.incarnation, version: version.finalize() }
    }

    pub(super) fn of_snapshot(snapshot: &Snapshot, checkpoint: CheckpointId) -> Self {
        Self { root: snapshot.incarnation, version: blake3::hash(&checkpoint.0) }
    }
}

#[derive(Default)]
pub(super) struct RootCache {
    usages: HashMap<Incarnation, (Hash, Arc<RootUsage>)>,
    rows: usize,
}

impl RootCache {
    pub(super) fn get(&self, at: RootVersion) -> Option<Arc<RootUsage>> {
        self.usages
            .get(&at.root)
            .filter(|(version, _)| *version == at.version)
            .map(|(_, usage)| usage.clone())
    }

    pub(super) fn put(&mut self, at: RootVersion, usage: Arc<RootUsage>) {
        self.forget(at.root);
        let rows = usage.rows();
        if self.rows + rows <= ROWS_MAX {
            self.rows += rows;
            self.usages.insert(at.root, (at.version, usage));
        }
    }

    fn forget(&mut self, root: Incarnation) {
        if let Some((_, usage)) = self.usages.remove(&root) {
            self.rows -= usage.rows();
        }
    }

    /// Forgets roots that are gone.
    pub(super) fn retain(&mut self, is_there: impl Fn(Incarnation) -> bool) {
        let gone: Vec<Incarnation> =
            self.usages.keys().copied().filter(|root| !is_there(*root)).collect();
        gone.into_iter().for_each(|root| self.forget(root));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::Listed;
    use crate::catalog::State;
    use crate::control::collect::plan::tests::{dataset, snapshot};
    use std::time::SystemTime;

    fn usage(rows: usize) -> Arc<RootUsage> {
        let pack = |seq| PackId { creator: Incarnation::from_bytes([1; 16]), epoch: Epoch(1), seq };
        Arc::new(RootUsage::Snapshot {
            usage: (0..rows as u64).map(|n| (pack(n), Usage { refs: 1, sealed: false })).collect(),
        })
    }

    fn objects(of: &Dataset, listed: &[(&str, &str)]) -> Objects {
        let object = |(key, tag): &(&str, &str)| Listed {
            key: (*key).to_owned(),
            bytes: 1,
            modified: SystemTime::UNIX_EPOCH,
            tag: Some((*tag).to_owned()),
        };
        Objects::from([(of.incarnation, listed.iter().map(object).collect())])
    }

    #[test]
    fn a_root_that_changed_in_any_way_is_unknown() {
        let head = dataset(1, State::Ready, None);
        let at = |listed: &[(&str, &str)]| RootVersion::of_head(&head, &objects(&head, listed));
        let mut cache = RootCache::default();
        cache.put(at(&[("manifest/1", "a"), ("wal/1", "b")]), usage(3));
        assert!(cache.get(at(&[("manifest/1", "a"), ("wal/1", "b")])).is_some());
        for other in [
            &[("manifest/1", "a"), ("wal/1", "b"), ("wal/2", "c")][..],
            &[("manifest/2", "a"), ("wal/1", "b")],
            &[("manifest/1", "a"), ("wal/1", "other")],
            &[("manifest/1", "aw"), ("al/1", "b")],
            &[("manifest/1", "a")],
            &[],
        ] {
            assert!(cache.get(at(other)).is_none(), "{other:?}");
        }
        let cut = snapshot(2, &head, State::Ready, &[]);
        cache.put(RootVersion::of_snapshot(&cut, CheckpointId([7; 16])), usage(1));
        assert!(cache.get(RootVersion::of_snapshot(&cut, CheckpointId([7; 16]))).is_some());
        assert!(cache.get(RootVersion::of_snapshot(&cut, CheckpointId([8; 16]))).is_none());
        cache.retain(|root| root == head.incarnation);
        assert!(cache.get(RootVersion::of_snapshot(&cut, CheckpointId([7; 16]))).is_none());
        assert_eq!(cache.rows, 3);
    }

    #[test]
    fn the_cache_is_bounded() {
        let mut cache = RootCache::default();
        for n in 0..=255u8 {
            let head = dataset(n, State::Ready, None);
            cache.put(RootVersion::of_head(&head, &Objects::new()), usage(ROWS_MAX / 100));
            cache.put(
                RootVersion::of_head(&head, &objects(&head, &[("a", "b")])),
                usage(ROWS_MAX / 100),
            );
        }
        assert!(
            cache.rows <= ROWS_MAX && cache.usages.len() == 100,
            "{} rows of {} roots",
            cache.rows,
            cache.usages.len()
        );
    }
}
