//! Opening a volume: its record is claimed, its database opened under the claim, and a restore that
//! was interrupted ended. Whatever fails says how far the claim has come, so that the process knows
//! whether it may be the owner.

use super::VolumeError;
use super::claim::{ActiveClaim, Opening, Openings, claim_from};
use super::entry::{Open, Users, VolumeEntry};
use super::exported::ExportedFs;
use super::journals;
use super::lease::{ExpiredLease, LeaseGuard};
use super::lifecycle::ClaimOutcome;
use super::ownership::{self, Before};
use super::restoring::end_restore;
use super::volumes::{Volume, Volumes};
use crate::catalog::{Catalog, Dataset};
use crate::fs::{Fs, FsError};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio_util::sync::CancellationToken;

impl Volumes {
    pub(super) async fn open_now(
        &self,
        entry: &VolumeEntry,
        expired: Option<&ExpiredLease>,
    ) -> Result<Open, NotOpened> {
        let (pool, id) = (&entry.pool, entry.id);
        let me = self.owner_with_journals().await?;
        let absent = || NotOpened {
            error: VolumeError::NotFound { what: format!("dataset {id}") },
            claim: ClaimOutcome::Refused,
        };
        // Checked before a heartbeat is written in vain.
        let at = pool.dataset_by_id(id).await?.ok_or_else(absent)?;
        let record = &at.record;
        let stopped = self.stopped_here(pool, record, &me).await?;
        let expired = expired.or(stopped.as_ref());
        ownership::may_take(record, &me, expired).map_err(NotOpened::at_claim)?;
        let begun = self.renewer(pool).begin(id, me.claim).await?;
        if self.inner.handed_over.load(Ordering::SeqCst) {
            // The hand-over did not wait for this: the next process may have it open by now.
            return Err(VolumeError::HandedOver { dataset: id.to_string() }.into());
        }
        let active = ActiveClaim::Volume(begun.guard.ownership().clone());
        entry.claiming(active.clone());
        let claimed = claim_from(pool, &at, &me, expired).await;
        let (dataset, before) = claimed.map_err(NotOpened::at_claim)?;
        entry.claimed(active.clone());
        if let (Before::Another, Some(owner)) = (before, &record.owner) {
            tracing::warn!(
                dataset = %dataset.name,
                from = owner.node,
                session = %owner.session,
                "taking the dataset over from a node that has stopped: changes that only its \
                 journal holds are lost"
            );
        }
        begun.guard.claimed(begun.generation);
        let step = pool.bucket().failpoints().step("volume.open.claimed").await;
        let opened = match step {
            Ok(()) => self.open_fs(pool, &dataset, &begun.guard, active).await,
            Err(injected) => {
                let source = FsError::Unavailable(injected.to_string());
                Err(VolumeError::Fs { dataset: dataset.name.to_string(), source })
            }
        };
        match opened {
            Ok(volume) => {
                end_restore(pool, &volume).await;
                Ok(Open {
                    volume: Arc::new(volume),
                    guard: Arc::new(begun.guard),
                    closed: CancellationToken::new(),
                })
            }
            Err(error) => {
                // An unfinished release by force is finished by the next opening, which voids the
                // earlier journal (R34).
                let claim = if before == Before::Released {
                    ClaimOutcome::Clean
                } else {
                    ClaimOutcome::NeedsRecovery
                };
                Err(NotOpened { error, claim })
            }
        }
    }

    async fn open_fs(
        &self,
        pool: &Catalog,
        dataset: &Dataset,
        guard: &LeaseGuard,
        claim: ActiveClaim,
    ) -> Result<Volume, VolumeError> {
        let settings = self.settings();
        let journal =
            settings.journal_dir.as_ref().map(|dir| journals::path(dir, pool, dataset.id()));
        let place = settings.place(pool, dataset.family, dataset.incarnation);
        let chunks = self.chunks(pool, dataset.family);
        let mut openings = Openings::new(pool, &place, dataset.id(), &claim);
        let fs = loop {
            let Opening { place, expected } = openings.next().await?;
            let options = settings.options(dataset, journal.clone());
            match Fs::open_under(
                &place,
                chunks.clone(),
                options,
                expected,
                guard.ownership().clone(),
            )
            .await
            {
                Err(FsError::Fenced) => {}
                opened => {
                    break opened.map_err(|source| VolumeError::Fs {
                        dataset: dataset.name.to_string(),
                        source,
                    })?;
                }
            }
        };
        let handle_key = pool.keyring().handle_key(dataset.incarnation, &dataset.handle_secret);
        let fs = Arc::new(fs);
        let exported = ExportedFs::live(
            fs.clone(),
            pool.clone(),
            dataset.incarnation,
            self.open_snapshots().clone(),
        );
        let opening = self.inner.openings.fetch_add(1, Ordering::Relaxed);
        let (exported, users) = (Arc::new(exported), Users::default());
        Ok(Volume {
            pool: pool.pool().id,
            dataset: dataset.clone(),
            fs,
            exported,
            handle_key,
            opening,
            claim,
            users,
            chunks,
        })
    }
}

/// Why a volume did not open, and the outcome of its claim.
pub(super) struct NotOpened {
    pub error: VolumeError,
    pub claim: ClaimOutcome,
}

impl NotOpened {
    fn at_claim(error: VolumeError) -> Self {
        let claim = match &error {
            VolumeError::Catalog(_) | VolumeError::Io(_) | VolumeError::Fs { .. } => {
                ClaimOutcome::Unknown
            }
            VolumeError::NotFound { .. }
            | VolumeError::Owned { .. }
            | VolumeError::Deleting { .. }
            | VolumeError::Creating { .. }
            | VolumeError::Full { .. }
            | VolumeError::HandedOver { .. }
            | VolumeError::ReadOnly { .. } => ClaimOutcome::Refused,
        };
        Self { error, claim }
    }
}

impl<E: Into<VolumeError>> From<E> for NotOpened {
    fn from(error: E) -> Self {
        Self { error: error.into(), claim: ClaimOutcome::NotTried }
    }
}
