//! Checkpoints of several datasets at one point in time.
//!
//! ```text
//! prepare all ─▶ freeze all ─▶ checkpoint all ─▶ thaw all: was each unbroken?
//!                    │               │               │ no: Busy, and the caller starts again
//!                    └───────────────┴───────────────┴─▶ whatever is frozen is thawed
//! ```
//! Suppose that a change B is in one of the checkpoints, and A was acknowledged before B began.
//! Then A is in the checkpoint of its dataset: B is in its checkpoint, so it began before its
//! dataset was frozen, which was before the first checkpoint; so A had been acknowledged before
//! that, and a checkpoint has everything acknowledged before it. This holds whoever made A and B,
//! on which node, and however they came to know of each other. Changes that are in progress when a
//! dataset is frozen need not be waited for.
//!
//! The freezes overlap only if none of them ended in between. Each owner answers for its own when
//! it is told to thaw, which is after the last checkpoint: by the token of the freeze, which no
//! later opening of the dataset has, and only while its lease holds (R26).
//!
//! The freeze of an owner whose caller died ends by itself (`FREEZE_MAX`).

use super::super::Owners;
use crate::catalog::Dataset;
use crate::control::owner::{Checkpointed, FreezeToken, FromReply, OwnerRequest};
use crate::control::{ControlError, Pool};
use crate::types::{Class, Classify, Incarnation, Timestamp};
use futures::future::join_all;
use std::time::Duration;
use tokio::time::Instant;

/// Checkpoints at one point in time.
pub(super) struct Cut {
    /// The time that they show.
    pub at: Timestamp,
    /// In the order of the members.
    pub checkpoints: Vec<Checkpointed>,
    /// From before the first freeze until after the last: no change waited longer.
    pub frozen: Duration,
}

pub(super) struct Member<'a> {
    pub dataset: &'a Dataset,
    /// The snapshot that the checkpoint is named after.
    pub snapshot: Incarnation,
}

pub(super) struct Barrier<'a> {
    pub owners: &'a Owners,
    pub pool: &'a Pool,
    pub members: &'a [Member<'a>],
    /// The longest freeze.
    pub limit: Duration,
}

impl Barrier<'_> {
    /// # Errors
    /// `InProgress` when a freeze was broken, so that the checkpoints may be of different times:
    /// they are to be discarded, and may be made again under other names.
    pub async fn cut(&self) -> Result<Cut, ControlError> {
        all(self.each(self.owners, |_, _| OwnerRequest::PrepareFreeze).await.into_iter())
            .map(|done: Vec<()>| drop(done))
            .map_err(known_to_owner)?;
        // An answer that comes when the freeze has ended is of no use.
        let owners = &self.owners.clone().with_timeout(self.limit);
        let limit_millis = u32::try_from(self.limit.as_millis()).unwrap_or(u32::MAX);
        let begun = Instant::now();
        let chosen: Vec<Incarnation> = self.members.iter().map(|_| Incarnation::random()).collect();
        let freeze = |n: usize, _: &Member<'_>| {
            let token = chosen.get(n).copied().unwrap_or_else(Incarnation::random);
            OwnerRequest::Freeze { token, limit_millis }
        };
        let frozen = self.each::<FreezeToken>(owners, freeze).await;
        // One whose reply was lost may be frozen too.
        let token = |(frozen, chosen): (&Result<FreezeToken, ControlError>, &Incarnation)| {
            frozen.as_ref().map_or(FreezeToken::Open(*chosen), |token| *token)
        };
        let mut tokens: Vec<FreezeToken> = frozen.iter().zip(&chosen).map(token).collect();
        let cut = self.cut_frozen(owners, all(frozen.into_iter()), &mut tokens).await;
        let thawed = self.thaw(owners, &tokens).await;
        let frozen = begun.elapsed();
        let (at, checkpoints) = cut?;
        thawed.map_err(broken)?;
        self.pool.step("control.group.thawed").await?;
        let millis = frozen.as_millis();
        tracing::info!(volumes = self.members.len(), millis, "volumes were frozen for a snapshot");
        Ok(Cut { at, checkpoints, frozen })
    }

    async fn cut_frozen(
        &self,
        owners: &Owners,
        frozen: Result<Vec<FreezeToken>, ControlError>,
        tokens: &mut [FreezeToken],
    ) -> Result<(Timestamp, Vec<Checkpointed>), ControlError> {
        let frozen = frozen.map_err(known_to_owner).map_err(broken)?;
        self.pool.step("control.group.frozen").await?;
        let at = Timestamp::now();
        let request = |n: usize, member: &Member<'_>| OwnerRequest::CheckpointFrozen {
            snapshot: member.snapshot,
            freeze: frozen[n],
        };
        let made = self.each::<(Checkpointed, FreezeToken)>(owners, request).await;
        for (token, made) in tokens.iter_mut().zip(&made) {
            if let Ok((_, now)) = made {
                *token = *now;
            }
        }
        let made = all(made.into_iter()).map_err(broken)?;
        self.pool.step("control.group.cut").await?;
        Ok((at, made.into_iter().map(|(made, _)| made).collect()))
    }

    /// # Errors
    /// When a freeze had ended before.
    async fn thaw(&self, owners: &Owners, tokens: &[FreezeToken]) -> Result<(), ControlError> {
        let thaw = |(member, freeze): (&Member<'_>, &FreezeToken)| {
            let (request, dataset) =
                (OwnerRequest::Thaw { freeze: *freeze }, member.dataset.clone());
            async move { Box::pin(owners.perform::<()>(self.pool, &dataset, &request)).await }
        };
        let thawed = join_all(self.members.iter().zip(tokens).map(thaw)).await;
        all(thawed.into_iter()).map(drop)
    }

    /// Has each owner carry out a request, all at once. None is left in progress when another
    /// fails.
    async fn each<T: FromReply>(
        &self,
        owners: &Owners,
        request: impl Fn(usize, &Member<'_>) -> OwnerRequest,
    ) -> Vec<Result<T, ControlError>> {
        let perform = |(n, member): (usize, &Member<'_>)| {
            let (request, dataset) = (request(n, member), member.dataset.clone());
            async move { Box::pin(owners.perform::<T>(self.pool, &dataset, &request)).await }
        };
        join_all(self.members.iter().enumerate().map(perform)).await
    }
}

fn all<T>(done: impl Iterator<Item = Result<T, ControlError>>) -> Result<Vec<T>, ControlError> {
    done.collect()
}

/// An owner of an older version cannot freeze.
fn known_to_owner(error: ControlError) -> ControlError {
    match error.class() {
        Class::Unsupported => ControlError::Precondition(format!(
            "{error}; a group snapshot needs a version with group snapshots on every node that has \
             one of its volumes open"
        )),
        _ => error,
    }
}

/// A volume that was closed, handed over or lost is frozen no longer; an owner that does not answer
/// may be frozen no longer, and will not answer in the next attempt either.
fn broken(error: ControlError) -> ControlError {
    match error.class() {
        Class::Fenced | Class::NotFound | Class::InProgress | Class::Unavailable => {
            ControlError::Refused { class: Class::InProgress, why: error.to_string() }
        }
        _ => error,
    }
}
