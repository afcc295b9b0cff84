//! Claiming a dataset, opening its database under the claim, and releasing it; [`ownership`]
//! decides.
//!
//! ```text
//! claim ─▶ read the writer epoch ─▶ the record is still this claim's? ─▶ open, that epoch expected
//!             ▲                        │ no: another claim has it           │ another opened it
//!             └────────────────────────┼────────────────────────────────────┘ meanwhile
//!                                      ▼ nobody was fenced
//! ```
//! Whoever claims the dataset later also opens its database later, and raises the epoch. So an
//! opener that is delayed at any of these steps finds another claim in the record, or another epoch
//! in the database than it expects: it fails, and fences nobody (R32).

use super::VolumeError;
use super::lease::{ExpiredLease, Ownership};
use super::ownership::{self, Before};
use crate::catalog::{Catalog, CatalogError, Dataset, Owner, Versioned};
use crate::fs::db::{self, DbPlace};
use crate::fs::{FsError, Lease};
use crate::telemetry::Injected;
use crate::types::{ClaimId, DatasetId, Epoch, SessionId};
use std::sync::Arc;

/// Attempts to open under one claim. Each failure is a late opening of an earlier claim, and there
/// are few of them.
const OPENINGS_MAX: usize = 8;

/// Writes `me` into the record.
pub(super) async fn claim(
    pool: &Catalog,
    id: DatasetId,
    me: &Owner,
    expired: Option<&ExpiredLease>,
) -> Result<(Dataset, Before), VolumeError> {
    let absent = || VolumeError::NotFound { what: format!("dataset {id}") };
    let at = pool.dataset_by_id(id).await?.ok_or_else(absent)?;
    claim_from(pool, &at, me, expired).await
}

/// As [`claim`], where the caller has just read the record.
pub(super) async fn claim_from(
    pool: &Catalog,
    at: &Versioned<Dataset>,
    me: &Owner,
    expired: Option<&ExpiredLease>,
) -> Result<(Dataset, Before), VolumeError> {
    let id = at.record.id();
    let mut answer = None;
    let swapped = pool
        .update_dataset_from(at, |dataset| match ownership::take(dataset, me, expired) {
            Ok(before) => {
                answer = Some(Ok(before));
                Ok(())
            }
            Err(error) => {
                answer = Some(Err(error));
                Err(CatalogError::Precondition {
                    what: format!("dataset {}", dataset.name),
                    why: "it cannot be opened".into(),
                })
            }
        })
        .await;
    match (answer, swapped) {
        (Some(Ok(before)), Ok(at)) => Ok((at.record, before)),
        (Some(Err(refused)), _) => Err(refused),
        (_, Err(CatalogError::NotFound { what })) => Err(VolumeError::NotFound { what }),
        (Some(Ok(before)), Err(error)) => {
            // The record may have been written although the write failed. Nothing was opened under
            // it.
            undo(pool, id, &ActiveClaim::Maintenance(me.claim), (before, me.session)).await;
            Err(error.into())
        }
        (_, Err(error)) => Err(error.into()),
        (None, Ok(at)) => {
            Err(VolumeError::Io(format!("dataset {} was not claimed", at.record.name)))
        }
    }
}

/// An opening of a database.
pub(super) struct Opening {
    /// The database: the manifest in which the epoch was found is not read again.
    pub place: DbPlace,
    pub expected: Epoch,
}

/// The openings of a database under a claim that is durable (R32).
pub(super) struct Openings<'a> {
    pool: &'a Catalog,
    place: &'a DbPlace,
    id: DatasetId,
    claim: &'a ActiveClaim,
    tries: usize,
}

/// The claim under which work on a dataset is done. Work under another claim, even of the same
/// session, is not this one's (R31).
#[derive(Clone)]
pub enum ActiveClaim {
    /// The claim of an open volume, which gets another id each time that it is re-acquired after
    /// its lease expired.
    Volume(Arc<Ownership>),
    Maintenance(ClaimId),
}

impl ActiveClaim {
    /// Returns whether this is the claim of that id.
    pub fn is(&self, claim: ClaimId) -> bool {
        match self {
            Self::Volume(ownership) => ownership.is_of(claim),
            Self::Maintenance(mine) => *mine == claim,
        }
    }

    /// Returns whether this process may answer under the claim: a volume's lease may have expired.
    pub fn holds(&self) -> bool {
        match self {
            Self::Volume(ownership) => ownership.holds(),
            Self::Maintenance(_) => true,
        }
    }

    /// Returns whether the dataset's record names this claim.
    pub fn owns(&self, dataset: &Dataset) -> bool {
        dataset.owner.as_ref().is_some_and(|owner| self.is(owner.claim))
    }
}

impl<'a> Openings<'a> {
    pub fn new(
        pool: &'a Catalog,
        place: &'a DbPlace,
        id: DatasetId,
        claim: &'a ActiveClaim,
    ) -> Self {
        Self { pool, place, id, claim, tries: 0 }
    }

    /// The next opening: its writer epoch is read after the claim is durable, and before the record
    /// is read again to see that it still names this claim. To be called again when the opening was
    /// [`FsError::Fenced`]: an opening of an earlier claim came first, and the next one fences it.
    ///
    /// # Errors
    /// When another owns the dataset by now.
    pub async fn next(&mut self) -> Result<Opening, VolumeError> {
        let fs = |source| VolumeError::Fs { dataset: self.id.to_string(), source };
        if self.tries == OPENINGS_MAX {
            return Err(fs(FsError::Fenced));
        }
        self.tries += 1;
        let place = self.place.reading_once();
        let expected = db::epoch(&place).await.map_err(fs)?;
        self.step("volume.claim.epoch").await?;
        let absent = || VolumeError::NotFound { what: format!("dataset {}", self.id) };
        let record = self.pool.dataset_by_id(self.id).await?.ok_or_else(absent)?.record;
        if !self.claim.owns(&record) {
            return Err(lost_to(record.name.to_string(), record.owner));
        }
        self.step("volume.claim.checked").await?;
        Ok(Opening { place, expected })
    }

    async fn step(&self, name: &str) -> Result<(), VolumeError> {
        let failed = |injected: Injected| VolumeError::Fs {
            dataset: self.id.to_string(),
            source: FsError::Unavailable(injected.to_string()),
        };
        self.pool.bucket().failpoints().step(name).await.map_err(failed)
    }
}

/// The error for a record that names another claim. `owner`: the record's.
pub(super) fn lost_to(dataset: String, owner: Option<Owner>) -> VolumeError {
    match owner.filter(|owner| !ownership::is_maintenance(owner)) {
        Some(owner) => {
            VolumeError::Owned { dataset, node: owner.node.clone(), owner: Box::new(owner) }
        }
        None => VolumeError::Fs {
            dataset,
            source: FsError::Busy(
                "its ownership changed while it was being opened; nothing was opened; retry",
            ),
        },
    }
}

/// Takes a claim out of the record: the dataset is cleanly closed (R16). A record that names
/// another claim stays.
pub(super) async fn release(
    pool: &Catalog,
    id: DatasetId,
    claim: &ActiveClaim,
) -> Result<(), VolumeError> {
    replace(pool, id, claim, None).await
}

/// Takes a claim out of the record under which nothing was opened. A dataset that a node owned
/// before stays claimed: the node may hold a journal of it.
pub(super) async fn undo(
    pool: &Catalog,
    id: DatasetId,
    claim: &ActiveClaim,
    (before, session): (Before, SessionId),
) {
    let to = match before {
        Before::Released => None,
        Before::Unfinished(dir) => Some(ownership::voiding_claim(session, Some(dir))),
        Before::Ours | Before::Another => return,
    };
    if let Err(error) = replace(pool, id, claim, to).await {
        tracing::warn!(
            dataset = %id,
            %error,
            "a failed claim may still be in the record; the next opening here clears it"
        );
    }
}

async fn replace(
    pool: &Catalog,
    id: DatasetId,
    claim: &ActiveClaim,
    to: Option<Owner>,
) -> Result<(), VolumeError> {
    let mut ours = true;
    let swapped = pool
        .update_dataset(id, |dataset| {
            ours = claim.owns(dataset);
            if !ours {
                return Err(CatalogError::Precondition {
                    what: format!("dataset {}", dataset.name),
                    why: "another owns it".into(),
                });
            }
            dataset.owner.clone_from(&to);
            Ok(())
        })
        .await;
    match swapped {
        Ok(_) | Err(CatalogError::NotFound { .. }) => Ok(()),
        Err(_) if !ours => Ok(()),
        Err(error) => Err(error.into()),
    }
}
