//! Takes a volume from its owner: by asking it, or by revoking its claim (R27).
//!
//! A revocation states that a node no longer uses a volume. An administrator writes it, or a
//! watcher of the cluster (the node is gone, or tainted out-of-service, or no pod with the claim is
//! left there), into the owner's own folder. An owner that is alive reads it with its next renewal,
//! stops serving the volume, closes and releases it. A dead owner has stopped when its lease has
//! expired. A revocation ends one claim. An owner that has claimed the volume again meanwhile has
//! another, which is revoked separately (R31).

use super::Controller;
use super::delete::tombstone_lost;
use crate::bucket::PutNew;
use crate::catalog::{Dataset, Owner, Revocation, RevocationReason, State};
use crate::control::owner::{OwnerReply, OwnerRequest, owner_of};
use crate::control::takeover::{self, OwnerState, WhileAlive};
use crate::control::{ControlError, Pool};
use crate::types::{ClaimId, Timestamp, VolumeHandle};
use crate::volume::{VolumeError, finish_release, release_lost, unvoided_journal_dir};
use std::time::Duration;

/// Most claims of one session that a forced release revokes: the session claims again after its
/// lease expired, or when the volume is used there again.
const CLAIMS_MAX: usize = 8;

/// How a volume is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseMode {
    /// Only by an owner that does not use it.
    IfIdle,
    /// Also against its owner's will: the caller consents to lose changes that only the owner's
    /// journal holds.
    Force,
}

impl Controller {
    /// Revokes a claim, if the record is still of it: its node must release the volume, and other
    /// nodes may take it once it must have done so. Returns at once, whether it was not revoked
    /// before.
    pub async fn revoke_claim(
        &self,
        volume: VolumeHandle,
        claim: ClaimId,
        why: RevocationReason,
    ) -> Result<bool, ControlError> {
        let (pool, dataset) = match self.dataset_to_release(volume).await {
            Err(ControlError::NotFound { .. }) => return Ok(false),
            found => found?,
        };
        match owner_of(&dataset).filter(|owner| owner.claim == claim) {
            Some(owner) => Ok(self.revoke(pool, &dataset, owner, why).await? == PutNew::Created),
            None => Ok(false),
        }
    }

    /// Has the volume released by its owner. Returns the name of the node that had it. Not owned
    /// counts as released. With the journal given up this waits until the owner has applied a
    /// revocation, or must have stopped: its lease at most.
    ///
    /// # Errors
    /// [`ControlError::Precondition`] unless it is forced: while the owner uses the
    /// volume, or does not answer.
    pub async fn release_volume(
        &self,
        volume: VolumeHandle,
        mode: ReleaseMode,
    ) -> Result<Option<String>, ControlError> {
        let _lock = self.lock_volume(volume.dataset)?;
        let (pool, dataset) = self.dataset_to_release(volume).await?;
        let Some(owner) = owner_of(&dataset) else {
            if mode == ReleaseMode::Force
                && dataset.owner.as_ref().and_then(unvoided_journal_dir).is_some()
            {
                finish_release(self.volumes.settings(), &pool.catalog, volume.dataset).await?;
            }
            return Ok(None);
        };
        if self.volumes.get(volume.dataset).is_some() {
            let name = &dataset.name;
            return Err(ControlError::Precondition(format!(
                "volume {name} is open in this process: unmount it, then retry"
            )));
        }
        match mode {
            ReleaseMode::IfIdle => self.request_release(pool, &dataset, owner).await?,
            ReleaseMode::Force => self.release_by_force(pool, &dataset, owner).await?,
        }
        Ok(Some(owner.node.clone()))
    }

    async fn dataset_to_release(
        &self,
        volume: VolumeHandle,
    ) -> Result<(&Pool, Dataset), ControlError> {
        let absent = || ControlError::NotFound { what: format!("volume {volume}") };
        let pool = self.pool(volume.pool)?.ok_or_else(absent)?;
        let dataset = pool.catalog.dataset_by_id(volume.dataset).await?.ok_or_else(absent)?.record;
        if dataset.state == State::Ready { Ok((pool, dataset)) } else { Err(absent()) }
    }

    async fn request_release(
        &self,
        pool: &Pool,
        dataset: &Dataset,
        owner: &Owner,
    ) -> Result<(), ControlError> {
        let (name, node) = (&dataset.name, &owner.node);
        if self.ask(pool, dataset, owner, &OwnerRequest::Ping).await.is_err() {
            return Err(ControlError::Precondition(format!(
                "volume {name} belongs to node {node}, which does not answer: start it again, and \
                 nothing is lost; or, if that machine is gone for good, retry with --force, which \
                 gives up what only its journal holds (some seconds of changes that were not \
                 synced)"
            )));
        }
        let request = OwnerRequest::HandOver { claim: owner.claim };
        self.ask(pool, dataset, owner, &request).await.map(drop).map_err(|error| {
            ControlError::Precondition(format!(
                "volume {name} is open on node {node}, which answers ({error}): unmount it there, \
                 then retry; or release it with --force, and its mounts there answer ESTALE"
            ))
        })
    }

    async fn release_by_force(
        &self,
        pool: &Pool,
        dataset: &Dataset,
        owner: &Owner,
    ) -> Result<(), ControlError> {
        pool.step("control.release.begin").await?;
        let (mut owner, session) = (owner.clone(), owner.session);
        for _ in 0..CLAIMS_MAX {
            self.end_claim(pool, dataset, &owner).await?;
            let now =
                pool.catalog.dataset_by_id(dataset.id()).await?.and_then(|at| at.record.owner);
            match now.filter(|now| now.session == session) {
                Some(again) => owner = again,
                None => return Ok(()),
            }
        }
        let (name, node) = (&dataset.name, &owner.node);
        Err(ControlError::Precondition(format!(
            "node {node} claimed volume {name} again each time that it was released: stop what \
             uses it there, then retry"
        )))
    }

    /// Revokes one claim, and waits for its end.
    async fn end_claim(
        &self,
        pool: &Pool,
        dataset: &Dataset,
        owner: &Owner,
    ) -> Result<(), ControlError> {
        self.revoke(pool, dataset, owner, RevocationReason::Administrator).await?;
        pool.step("control.release.revoked").await?;
        let lease_secs = self.volumes.lease().lease.as_secs().max(owner.lease_millis / 1000);
        tracing::warn!(
            volume = %dataset.name,
            node = owner.node,
            lease_secs,
            "ownership of the volume was revoked; waiting for its node to release it, or for its \
             lease to expire"
        );
        let waited =
            takeover::until_stopped(pool, &self.volumes, dataset.id(), owner, WhileAlive::Wait)
                .await?;
        if let OwnerState::Stopped(expired) = waited {
            match release_lost(self.volumes.settings(), &pool.catalog, dataset.id(), &expired).await
            {
                // The owner came back, or another node was faster: the record is read again.
                Err(VolumeError::Owned { .. }) => {}
                released => released?,
            }
        }
        if let Err(error) = pool.catalog.remove_revocation(owner.session, owner.claim).await {
            tracing::debug!(
                %error,
                "the revocation of a claim that has ended stays until it is collected"
            );
        }
        Ok(())
    }

    /// Tombstones a volume of a dead owner. Returns whether it has no owner now. An owner that is
    /// alive keeps it. `patience`: time to wait for the lease of one that is silent.
    pub(super) async fn delete_from_dead(
        &self,
        pool: &Pool,
        dataset: &Dataset,
        owner: &Owner,
        patience: Duration,
    ) -> Result<bool, ControlError> {
        if self.volumes.get(dataset.id()).is_some() {
            return Ok(false);
        }
        let waited = tokio::select! {
            // A live owner answers sooner than its next heartbeat shows.
            Ok(_) = self.ask(pool, dataset, owner, &OwnerRequest::Ping) => return Ok(false),
            waited = takeover::until_stopped(
                pool, &self.volumes, dataset.id(), owner, WhileAlive::GiveUp,
            ) => waited?,
            () = tokio::time::sleep(patience) => return Ok(false),
        };
        match waited {
            OwnerState::Ended => Ok(true),
            OwnerState::Alive => Ok(false),
            OwnerState::Stopped(expired) => {
                tombstone_lost(pool, dataset.id(), expired.owner().claim).await?;
                Ok(true)
            }
        }
    }

    async fn ask(
        &self,
        pool: &Pool,
        dataset: &Dataset,
        owner: &Owner,
        request: &OwnerRequest,
    ) -> Result<OwnerReply, ControlError> {
        let (about, limit) = ((dataset.id(), dataset.name.as_str()), self.owners.timeout());
        self.owners.carriers().ask_owner(pool, about, owner, request, limit).await
    }

    async fn revoke(
        &self,
        pool: &Pool,
        dataset: &Dataset,
        owner: &Owner,
        why: RevocationReason,
    ) -> Result<PutNew, ControlError> {
        let by = self.volumes.settings().node.clone();
        let revocation = Revocation {
            dataset: dataset.id(),
            claim: owner.claim,
            why,
            by,
            created: Timestamp::now(),
        };
        Ok(pool.catalog.put_revocation(owner.session, &revocation).await?)
    }
}
