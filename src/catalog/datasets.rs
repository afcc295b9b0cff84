//! Datasets: one chain for each name; a dataset that is created again has another incarnation (R2).

use super::chain::{Chain, Versioned};
use super::change::Removable;
use super::{Catalog, CatalogError, Dataset, State};
use crate::types::{DatasetId, DatasetName, NameKey};

impl Catalog {
    fn dataset_chain(&self, key: NameKey, what: String) -> Chain<'_> {
        self.chain(format!("datasets/{key}"), what)
    }

    fn dataset_by_name(&self, name: &DatasetName) -> Chain<'_> {
        self.dataset_chain(NameKey::of("dataset", name.as_str()), format!("dataset {name}"))
    }

    fn dataset_of(&self, id: DatasetId) -> Chain<'_> {
        self.dataset_chain(id.key, format!("dataset {id}"))
    }

    /// The record found by a dataset's name, whatever its state (`Dead` and absent are `None`).
    pub async fn dataset(
        &self,
        name: &DatasetName,
    ) -> Result<Option<Versioned<Dataset>>, CatalogError> {
        let found = self.dataset_by_name(name).newest::<Dataset>().await?.live();
        Ok(found.filter(|at| at.record.state != State::Dead))
    }

    /// The record of exactly this incarnation; `None` when it does not exist and the pool does.
    pub async fn dataset_by_id(
        &self,
        id: DatasetId,
    ) -> Result<Option<Versioned<Dataset>>, CatalogError> {
        let found = self.dataset_of(id).newest::<Dataset>().await?.live();
        if found.is_none() {
            self.confirm().await?;
        }
        Ok(found.filter(|at| at.record.incarnation == id.incarnation))
    }

    /// All datasets in any state, in the order of their keys.
    pub async fn datasets(&self) -> Result<Vec<Versioned<Dataset>>, CatalogError> {
        self.all("datasets", "dataset").await
    }

    /// Writes the first version of a dataset's record.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] when a live one is there, [`CatalogError::InProgress`] when a
    /// `Dead` one is: only that record says what its cleaner has yet to remove (R3).
    pub async fn insert_dataset(
        &self,
        dataset: Dataset,
    ) -> Result<Versioned<Dataset>, CatalogError> {
        let chain = self.dataset_by_name(&dataset.name);
        chain
            .insert(dataset, |there| match there.state {
                State::Dead => Err(CatalogError::InProgress {
                    what: format!("the removal of dataset {}", there.name),
                }),
                _ => Err(CatalogError::Exists {
                    what: format!("dataset {}", there.name),
                    why: format!("it is {}", there.id()),
                }),
            })
            .await
    }

    /// Compare-and-swap: fails with `Contended` when it is no longer the newest. On success `at` is
    /// the new version.
    pub async fn swap_dataset(
        &self,
        at: &mut Versioned<Dataset>,
        next: Dataset,
    ) -> Result<(), CatalogError> {
        self.dataset_by_name(&at.record.name).swap(at, next).await
    }

    /// Reads, changes and swaps; retried a bounded number of times while others change it. `change`
    /// may refuse. `NotFound` only when the pool is there.
    pub async fn update_dataset(
        &self,
        id: DatasetId,
        mut change: impl FnMut(&mut Dataset) -> Result<(), CatalogError> + Send,
    ) -> Result<Versioned<Dataset>, CatalogError> {
        let chain = self.dataset_of(id);
        let changed = chain.update(|dataset| {
            is_this(dataset, id)?;
            change(dataset)
        });
        self.or_confirm(changed.await).await
    }

    /// As [`Self::update_dataset`], where the caller has just read the record: one request less.
    pub async fn update_dataset_from(
        &self,
        at: &Versioned<Dataset>,
        mut change: impl FnMut(&mut Dataset) -> Result<(), CatalogError> + Send,
    ) -> Result<Versioned<Dataset>, CatalogError> {
        let id = at.record.id();
        let chain = self.dataset_of(id);
        let changed = chain.update_from(at, |dataset| {
            is_this(dataset, id)?;
            change(dataset)
        });
        self.or_confirm(changed.await).await
    }

    /// `NotFound` is only believed while the pool is there.
    async fn or_confirm<T>(&self, changed: Result<T, CatalogError>) -> Result<T, CatalogError> {
        if let Err(CatalogError::NotFound { .. }) = &changed {
            self.confirm().await?;
        }
        changed
    }

    /// Removes a `Dead` record: its name is free then.
    pub async fn remove_dataset(&self, id: DatasetId) -> Result<(), CatalogError> {
        let judge = |dataset: &Dataset| match dataset.state {
            _ if dataset.incarnation != id.incarnation => Ok(Removable::Another),
            State::Dead => Ok(Removable::This),
            _ => Err(not_dead(format!("dataset {}", dataset.name))),
        };
        self.dataset_of(id).remove(judge).await
    }
}

fn is_this(dataset: &Dataset, id: DatasetId) -> Result<(), CatalogError> {
    match dataset.incarnation == id.incarnation {
        true => Ok(()),
        false => Err(CatalogError::NotFound { what: format!("dataset {id}") }),
    }
}

/// A record that is not dead may have an effect that must be removed first (R3).
pub(super) fn not_dead(what: String) -> CatalogError {
    CatalogError::Precondition {
        what,
        why: "its record is removed only once it is dead: delete it first".to_owned(),
    }
}
