//! Writing the owner into a dataset's record, and out of it: [`ownership`] decides.

use super::VolumeError;
use super::lease::Forfeit;
use super::ownership::{self, Before};
use crate::catalog::{Catalog, CatalogError, Dataset, Owner};
use crate::types::DatasetId;

/// Writes `me` into the record.
pub(super) async fn claim(
    pool: &Catalog,
    id: DatasetId,
    me: &Owner,
    forfeit: Option<&Forfeit>,
) -> Result<(Dataset, Before), VolumeError> {
    let mut answer = None;
    let swapped = pool
        .update_dataset(id, |dataset| match ownership::take(dataset, me, forfeit) {
            Ok(before) => {
                answer = Some(Ok(before));
                Ok(())
            }
            Err(error) => {
                answer = Some(Err(error));
                Err(CatalogError::Precondition { what: format!("dataset {}", dataset.name), why: "it cannot be opened".into() })
            }
        })
        .await;
    match (answer, swapped) {
        (Some(Ok(before)), Ok(at)) => Ok((at.record, before)),
        (Some(Err(refused)), _) => Err(refused),
        (_, Err(CatalogError::NotFound { what })) => Err(VolumeError::NotFound { what }),
        (Some(Ok(Before::Released)), Err(error)) => {
            // The record may have been written although its writer was not told. Nothing was opened under it.
            if let Err(error) = release(pool, id, me).await {
                tracing::warn!(dataset = %id, %error, "a claim that failed may have been written: opening it here again clears it");
            }
            Err(error.into())
        }
        (_, Err(error)) => Err(error.into()),
        (None, Ok(at)) => Err(VolumeError::Io(format!("dataset {} was not claimed", at.record.name))),
    }
}

/// Takes `me` out of the record: the dataset is cleanly closed (R16). A record that names someone else stays.
pub(super) async fn release(pool: &Catalog, id: DatasetId, me: &Owner) -> Result<(), VolumeError> {
    let mut ours = true;
    let swapped = pool
        .update_dataset(id, |dataset| {
            ours = ownership::holds(dataset, me);
            if !ours {
                return Err(CatalogError::Precondition {
                    what: format!("dataset {}", dataset.name),
                    why: "another owns it".into(),
                });
            }
            dataset.owner = None;
            Ok(())
        })
        .await;
    match swapped {
        Ok(_) | Err(CatalogError::NotFound { .. }) => Ok(()),
        Err(_) if !ours => Ok(()),
        Err(error) => Err(error.into()),
    }
}
