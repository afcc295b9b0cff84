//! Group snapshots: one chain for each name, beside the reserved names of snapshots.

use super::chain::{Chain, Versioned};
use super::change::Removable;
use super::datasets::not_dead;
use super::{Catalog, CatalogError, GroupSnapshot, State};
use crate::types::{GroupId, NameKey, SnapshotName};

impl Catalog {
    fn group_chain(&self, key: NameKey, what: String) -> Chain<'_> {
        self.chain(format!("names/group/{key}"), what)
    }

    fn group_by_name(&self, name: &SnapshotName) -> Chain<'_> {
        self.group_chain(GroupSnapshot::key_of(name), format!("group snapshot {name}"))
    }

    fn group_of(&self, id: GroupId) -> Chain<'_> {
        self.group_chain(id.key, format!("group snapshot {id}"))
    }

    /// The record found by a group snapshot's name, whatever its state.
    pub async fn group_snapshot(
        &self,
        name: &SnapshotName,
    ) -> Result<Option<Versioned<GroupSnapshot>>, CatalogError> {
        Ok(self.group_by_name(name).newest::<GroupSnapshot>().await?.live())
    }

    /// The record of exactly this incarnation; `None` when it does not exist and the pool does.
    pub async fn group_snapshot_by_id(
        &self,
        id: GroupId,
    ) -> Result<Option<Versioned<GroupSnapshot>>, CatalogError> {
        let found = self.group_of(id).newest::<GroupSnapshot>().await?.live();
        if found.is_none() {
            self.confirm().await?;
        }
        Ok(found.filter(|at| at.record.incarnation == id.incarnation))
    }

    /// All group snapshots in any state.
    pub async fn group_snapshots(&self) -> Result<Vec<Versioned<GroupSnapshot>>, CatalogError> {
        self.all("names/group", "group snapshot").await
    }

    /// Writes the first version of a group snapshot's record.
    ///
    /// # Errors
    /// [`CatalogError::InProgress`] when one of that name is there.
    pub async fn insert_group_snapshot(
        &self,
        group: GroupSnapshot,
    ) -> Result<Versioned<GroupSnapshot>, CatalogError> {
        let chain = self.group_by_name(&group.name);
        let taken = |there: &GroupSnapshot| {
            Err(CatalogError::InProgress { what: format!("group snapshot {}", there.name) })
        };
        chain.insert(group, taken).await
    }

    /// Compare-and-swap: fails with `Contended` when it is no longer the newest. On success `at` is
    /// the new version.
    pub async fn swap_group_snapshot(
        &self,
        at: &mut Versioned<GroupSnapshot>,
        next: GroupSnapshot,
    ) -> Result<(), CatalogError> {
        self.group_by_name(&at.record.name).swap(at, next).await
    }

    /// Reads, changes and swaps; retried a bounded number of times while others change it. `change`
    /// may refuse.
    pub async fn update_group_snapshot(
        &self,
        id: GroupId,
        mut change: impl FnMut(&mut GroupSnapshot) -> Result<(), CatalogError> + Send,
    ) -> Result<Versioned<GroupSnapshot>, CatalogError> {
        let chain = self.group_of(id);
        let changed = chain.update(|group: &mut GroupSnapshot| {
            if group.incarnation != id.incarnation {
                return Err(CatalogError::NotFound { what: format!("group snapshot {id}") });
            }
            change(group)
        });
        changed.await
    }

    /// Removes the record of one that is being deleted, and whose members are tombstones: its name
    /// is free then.
    pub async fn remove_group_snapshot(&self, id: GroupId) -> Result<(), CatalogError> {
        let judge = |group: &GroupSnapshot| match group.state {
            _ if group.incarnation != id.incarnation => Ok(Removable::Another),
            State::Deleting | State::Dead => Ok(Removable::This),
            _ => Err(not_dead(format!("group snapshot {}", group.name))),
        };
        self.group_of(id).remove(judge).await
    }
}
