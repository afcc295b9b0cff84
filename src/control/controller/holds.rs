//! Holds: tags that keep a snapshot from being deleted, by a policy or by hand, until each is
//! released.

use super::group::may_be_held;
use super::{Controller, SnapshotInfo, snapshot_info};
use crate::catalog::{CatalogError, State};
use crate::control::{ControlError, Pool};
use crate::types::SnapshotHandle;

/// Most holds of one snapshot.
const HOLDS_MAX: usize = 64;
/// The longest tag, in bytes.
const TAG_BYTES_MAX: usize = 64;

impl Controller {
    /// Holds a snapshot under a tag; one that is held under it already stays so.
    pub async fn hold_snapshot(
        &self,
        snapshot: SnapshotHandle,
        tag: &str,
    ) -> Result<SnapshotInfo, ControlError> {
        check_tag(tag)?;
        let pool = self.pool_of_snapshot(snapshot)?;
        let mut full = false;
        let changed = pool.catalog.update_snapshot(snapshot.snapshot, |record| {
            let what = format!("snapshot {}", record.name);
            if record.state != State::Ready {
                return Err(CatalogError::NotFound { what });
            }
            full = record.holds.len() >= HOLDS_MAX && !record.holds.contains(tag);
            if full {
                return Err(CatalogError::Precondition { what, why: "it has too many".into() });
            }
            record.holds.insert(tag.to_owned());
            Ok(())
        });
        match changed.await {
            Ok(at) if may_be_held(pool, &at.record).await? => Ok(snapshot_info(pool, at.record)),
            Ok(at) => {
                let what = format!("the group snapshot of {}", at.record.name);
                self.unhold_snapshot(snapshot, tag).await?;
                Err(ControlError::Precondition(format!("{what} is being deleted")))
            }
            Err(CatalogError::Precondition { what, .. }) if full => Err(ControlError::Exhausted(
                format!("{what} has {HOLDS_MAX} holds, which is the limit: release some first"),
            )),
            Err(error) => Err(error.into()),
        }
    }

    /// Releases the hold under a tag; it is an error if there is none.
    pub async fn unhold_snapshot(
        &self,
        snapshot: SnapshotHandle,
        tag: &str,
    ) -> Result<SnapshotInfo, ControlError> {
        let pool = self.pool_of_snapshot(snapshot)?;
        let changed = pool.catalog.update_snapshot(snapshot.snapshot, |record| {
            if record.holds.remove(tag) {
                return Ok(());
            }
            let tags: Vec<&str> = record.holds.iter().map(String::as_str).collect();
            let tags = if tags.is_empty() { "none".to_owned() } else { tags.join(", ") };
            let what = format!("hold {tag:?} of snapshot {} (its holds: {tags})", record.name);
            Err(CatalogError::NotFound { what })
        });
        Ok(snapshot_info(pool, changed.await?.record))
    }

    fn pool_of_snapshot(&self, snapshot: SnapshotHandle) -> Result<&Pool, ControlError> {
        self.known_pool(snapshot.pool, &format!("snapshot {snapshot}"))
    }
}

fn check_tag(tag: &str) -> Result<(), ControlError> {
    let is_tag = !tag.is_empty()
        && tag.len() <= TAG_BYTES_MAX
        && tag.trim() == tag
        && !tag.contains(|c: char| c.is_control() || c == ',');
    match is_tag {
        true => Ok(()),
        false => Err(ControlError::Invalid(format!(
            "the tag {tag:?} is not allowed: use 1 to {TAG_BYTES_MAX} bytes without commas, \
             control characters, and spaces at the ends"
        ))),
    }
}
