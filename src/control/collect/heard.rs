//! The root cache: the usage of each root when it was last read. A root that has not changed since
//! is not read again, so a collection of an idle pool needs only listings, however many volumes and
//! snapshots there are.
//!
//! - A snapshot is its checkpoint, which never changes.
//! - A head is the sum of its database's objects. Every change of it is a new object, a manifest or
//!   a part of the WAL; both are numbered, and the newest manifest is never removed, so that no two
//!   states list the same objects. They are listed after the catalog, and a head whose listing is
//!   unchanged is unchanged since it was read (R11).

use super::Objects;
use super::mark::Said;
use crate::catalog::{Dataset, Snapshot};
use crate::fs::db::CheckpointId;
use crate::types::Incarnation;
use blake3::Hash;
use std::collections::HashMap;
use std::sync::Arc;

/// Rows of pack usage that are kept, of some 60 bytes each. Roots beyond are read every time.
const ROWS_MAX: usize = 1 << 18;

/// A root in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RootState {
    root: Incarnation,
    state: Hash,
}

impl RootState {
    /// `objects`: of every database, as listed before the head is read.
    pub(super) fn of_head(dataset: &Dataset, objects: &Objects) -> Self {
        let mut state = blake3::Hasher::new();
        for object in objects.get(&dataset.incarnation).into_iter().flatten() {
            let tag = object.tag.as_deref().unwrap_or_default();
            for part in [&object.key, tag] {
                state.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
            }
        }
        Self { root: dataset.incarnation, state: state.finalize() }
    }

    pub(super) fn of_snapshot(snapshot: &Snapshot, checkpoint: CheckpointId) -> Self {
        Self { root: snapshot.incarnation, state: blake3::hash(&checkpoint.0) }
    }
}

#[derive(Default)]
pub(super) struct Heard {
    said: HashMap<Incarnation, (Hash, Arc<Said>)>,
    rows: usize,
}

impl Heard {
    pub(super) fn get(&self, at: RootState) -> Option<Arc<Said>> {
        self.said
            .get(&at.root)
            .filter(|(state, _)| *state == at.state)
            .map(|(_, said)| said.clone())
    }

    pub(super) fn put(&mut self, at: RootState, said: Arc<Said>) {
        self.forget(at.root);
        let rows = said.rows();
        if self.rows + rows <= ROWS_MAX {
            self.rows += rows;
            self.said.insert(at.root, (at.state, said));
        }
    }

    fn forget(&mut self, root: Incarnation) {
        if let Some((_, said)) = self.said.remove(&root) {
            self.rows -= said.rows();
        }
    }

    /// Drops the entries of roots that no longer exist.
    pub(super) fn retain(&mut self, is_there: impl Fn(Incarnation) -> bool) {
        let gone: Vec<Incarnation> =
            self.said.keys().copied().filter(|root| !is_there(*root)).collect();
        gone.into_iter().for_each(|root| self.forget(root));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::Listed;
    use crate::catalog::State;
    use crate::control::collect::plan::tests::{dataset, snapshot};
    use crate::fs::row::Usage;
    use crate::types::{Epoch, PackId};
    use std::time::SystemTime;

    fn said(rows: usize) -> Arc<Said> {
        let pack = |seq| PackId { creator: Incarnation::from_bytes([1; 16]), epoch: Epoch(1), seq };
        Arc::new(Said::Snapshot {
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
        let at = |listed: &[(&str, &str)]| RootState::of_head(&head, &objects(&head, listed));
        let mut heard = Heard::default();
        heard.put(at(&[("manifest/1", "a"), ("wal/1", "b")]), said(3));
        assert!(heard.get(at(&[("manifest/1", "a"), ("wal/1", "b")])).is_some());
        for other in [
            &[("manifest/1", "a"), ("wal/1", "b"), ("wal/2", "c")][..],
            &[("manifest/2", "a"), ("wal/1", "b")],
            &[("manifest/1", "a"), ("wal/1", "other")],
            &[("manifest/1", "aw"), ("al/1", "b")],
            &[("manifest/1", "a")],
            &[],
        ] {
            assert!(heard.get(at(other)).is_none(), "{other:?}");
        }
        let cut = snapshot(2, &head, State::Ready, &[]);
        heard.put(RootState::of_snapshot(&cut, CheckpointId([7; 16])), said(1));
        assert!(heard.get(RootState::of_snapshot(&cut, CheckpointId([7; 16]))).is_some());
        assert!(heard.get(RootState::of_snapshot(&cut, CheckpointId([8; 16]))).is_none());
        heard.retain(|root| root == head.incarnation);
        assert!(heard.get(RootState::of_snapshot(&cut, CheckpointId([7; 16]))).is_none());
        assert_eq!(heard.rows, 3);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut heard = Heard::default();
        for n in 0..=255u8 {
            let head = dataset(n, State::Ready, None);
            heard.put(RootState::of_head(&head, &Objects::new()), said(ROWS_MAX / 100));
            heard.put(
                RootState::of_head(&head, &objects(&head, &[("a", "b")])),
                said(ROWS_MAX / 100),
            );
        }
        assert!(
            heard.rows <= ROWS_MAX && heard.said.len() == 100,
            "{} rows of {} roots",
            heard.rows,
            heard.said.len()
        );
    }
}
