//! The differences between two states of one dataset.

use super::{Browser, Root, refused};
use crate::control::ControlError;
use crate::fs::{Comparison, PathDifference};
use crate::types::Class;
use tokio::sync::mpsc;

/// Differences that wait for whoever takes them.
const WAITING: usize = 256;

impl Browser {
    /// Reports every difference between two states, in no particular order, until `each` returns
    /// an error.
    ///
    /// # Errors
    /// `Invalid` for states of different datasets; those of reading, and of `each`.
    pub async fn diff<E: From<ControlError>>(
        &self,
        before: &Root,
        after: &Root,
        mut each: impl FnMut(&PathDifference) -> Result<(), E>,
    ) -> Result<(), E> {
        let (to, mut found) = mpsc::channel(WAITING);
        let taking = async move {
            while let Some(found) = found.recv().await {
                each(&found)?;
            }
            Ok::<(), E>(())
        };
        let (compared, taken) = tokio::join!(Box::pin(self.diff_to(before, after, to)), taking);
        taken?;
        Ok(compared?)
    }

    /// As [`Self::diff`], at the pace of whoever takes the differences from the channel, until its
    /// other end is gone.
    pub async fn diff_to(
        &self,
        before: &Root,
        after: &Root,
        to: mpsc::Sender<PathDifference>,
    ) -> Result<(), ControlError> {
        if before.dataset() != after.dataset() {
            let (before, after) = (self.name_of(before).await?, self.name_of(after).await?);
            return Err(apart(&before, &after));
        }
        let before = self.open(before).await?;
        let after = self.open(after).await?;
        let mut comparison = Comparison::new(before.files(), after.files()).await?;
        while let Some(found) = comparison.next().await? {
            if to.send(found).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The error for two states that cannot be compared.
pub fn apart(before: &str, after: &str) -> ControlError {
    let why = format!(
        "{before} and {after} belong to different datasets: compare two states of one dataset"
    );
    refused(Class::Invalid, why)
}
