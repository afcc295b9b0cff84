//! Datasets: one chain for each name; a dataset that is created again has another incarnation (R2).
//! A dataset that has been renamed keeps the chain of its first name ([`super::rename`]).

use super::chain::{Chain, Newest, Versioned};
use super::change::Removable;
use super::rename::{Slot, dataset_in, slot_of, taken};
use super::{Catalog, CatalogError, Dataset, State};
use crate::types::{DatasetId, DatasetName, NameKey};

/// A dataset's name as it was read: the dataset that has it, if any, and where the record of a new
/// one goes.
#[derive(Clone, Debug)]
pub struct DatasetSlot {
    newest: Newest<Slot>,
    found: Option<Versioned<Dataset>>,
}

impl DatasetSlot {
    /// The record of the dataset that has the name, whatever its state.
    pub fn record(&self) -> Option<&Versioned<Dataset>> {
        self.found.as_ref()
    }
}

impl Catalog {
    fn dataset_chain(&self, key: NameKey, what: String) -> Chain<'_> {
        self.chain(format!("datasets/{key}"), what)
    }

    pub(super) fn dataset_by_name(&self, name: &DatasetName) -> Chain<'_> {
        self.dataset_chain(Dataset::key_of(name), format!("dataset {name}"))
    }

    pub(super) fn dataset_of(&self, id: DatasetId) -> Chain<'_> {
        self.dataset_chain(id.key, format!("dataset {id}"))
    }

    /// The record found by a dataset's name, whatever its state (`Dead` and absent are `None`).
    pub async fn dataset(
        &self,
        name: &DatasetName,
    ) -> Result<Option<Versioned<Dataset>>, CatalogError> {
        let found = self.dataset_slot(name).await?.found;
        Ok(found.filter(|at| at.record.state != State::Dead))
    }

    /// As [`Self::dataset`], for a caller that may insert a record of that name
    /// ([`Self::insert_dataset_at`]).
    pub async fn dataset_slot(&self, name: &DatasetName) -> Result<DatasetSlot, CatalogError> {
        let newest = self.dataset_by_name(name).newest::<Slot>().await?;
        let found = match &newest {
            Newest::Absent | Newest::Ended { .. } => None,
            Newest::Live(at) => match &at.record {
                Slot::Dataset(dataset) if dataset.name == *name => dataset_in(at.clone()),
                slot => self.by_alias(slot, name).await?,
            },
        };
        Ok(DatasetSlot { newest, found })
    }

    /// The record of exactly this incarnation; `None` when it does not exist and the pool does.
    pub async fn dataset_by_id(
        &self,
        id: DatasetId,
    ) -> Result<Option<Versioned<Dataset>>, CatalogError> {
        let found = self.dataset_of(id).newest::<Slot>().await?.live().and_then(dataset_in);
        if found.is_none() {
            self.confirm().await?;
        }
        Ok(found.filter(|at| at.record.incarnation == id.incarnation))
    }

    /// All datasets in any state, in the order of their keys.
    pub async fn datasets(&self) -> Result<Vec<Versioned<Dataset>>, CatalogError> {
        let slots = self.all::<Slot>("datasets", "dataset").await?;
        Ok(slots.into_iter().filter_map(dataset_in).collect())
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
        let read = self.dataset_slot(&dataset.name).await?;
        self.insert_dataset_at(read, dataset).await
    }

    /// As [`Self::insert_dataset`], where the caller has just read the name: one request less.
    pub async fn insert_dataset_at(
        &self,
        read: DatasetSlot,
        dataset: Dataset,
    ) -> Result<Versioned<Dataset>, CatalogError> {
        let (name, id) = (dataset.name.clone(), dataset.id());
        let chain = self.dataset_by_name(&name);
        let former = self.free_slot(&read.newest, &name, id).await?;
        let over = |there: &Slot| match there {
            Slot::Alias(found) if Some(found.alias) == former => Ok(()),
            Slot::Alias(_) => Err(chain.contended()),
            Slot::Dataset(there) => Err(taken(&name, there)),
        };
        let dataset = Slot::Dataset(Box::new(dataset));
        let inserted = chain.insert_after(read.newest, dataset, over).await?;
        dataset_in(inserted).ok_or_else(|| chain.contended())
    }

    /// Compare-and-swap: fails with `Contended` when it is no longer the newest. On success `at` is
    /// the new version.
    pub async fn swap_dataset(
        &self,
        at: &mut Versioned<Dataset>,
        next: Dataset,
    ) -> Result<(), CatalogError> {
        self.dataset_of(at.record.id()).swap(at, next).await
    }

    /// Reads, changes and swaps; retried a bounded number of times while others change it. `change`
    /// may refuse. `NotFound` only when the pool is there.
    pub async fn update_dataset(
        &self,
        id: DatasetId,
        mut change: impl FnMut(&mut Dataset) -> Result<(), CatalogError> + Send,
    ) -> Result<Versioned<Dataset>, CatalogError> {
        let chain = self.dataset_of(id);
        let changed = chain.update(|slot| change(this(slot, id)?)).await;
        in_slot(self.or_confirm(changed).await?, id)
    }

    /// As [`Self::update_dataset`], where the caller has just read the record: one request less.
    pub async fn update_dataset_from(
        &self,
        at: &Versioned<Dataset>,
        mut change: impl FnMut(&mut Dataset) -> Result<(), CatalogError> + Send,
    ) -> Result<Versioned<Dataset>, CatalogError> {
        let id = at.record.id();
        let chain = self.dataset_of(id);
        let at = slot_of(at.clone());
        let changed = chain.update_from(&at, |slot| change(this(slot, id)?)).await;
        in_slot(self.or_confirm(changed).await?, id)
    }

    /// `NotFound` is only believed while the pool is there.
    async fn or_confirm<T>(&self, changed: Result<T, CatalogError>) -> Result<T, CatalogError> {
        if let Err(CatalogError::NotFound { .. }) = &changed {
            self.confirm().await?;
        }
        changed
    }

    /// Removes a `Dead` record: its name is free then. [`Self::release_name`] comes first.
    pub async fn remove_dataset(&self, id: DatasetId) -> Result<(), CatalogError> {
        let chain = self.dataset_of(id);
        let judge = |slot: &Slot| match slot {
            Slot::Dataset(dataset) if dataset.incarnation == id.incarnation => {
                match dataset.state {
                    // Another dataset has just got the name.
                    State::Dead if dataset.naming.alias.is_some() => Err(chain.contended()),
                    State::Dead => Ok(Removable::This),
                    _ => Err(not_dead(format!("dataset {}", dataset.name))),
                }
            }
            _ => Ok(Removable::Another),
        };
        chain.remove(judge).await
    }
}

/// The dataset of that id in a slot.
pub(super) fn this(slot: &mut Slot, id: DatasetId) -> Result<&mut Dataset, CatalogError> {
    match slot {
        Slot::Dataset(dataset) if dataset.incarnation == id.incarnation => Ok(dataset),
        _ => Err(absent(id)),
    }
}

fn in_slot(at: Versioned<Slot>, id: DatasetId) -> Result<Versioned<Dataset>, CatalogError> {
    dataset_in(at).ok_or_else(|| absent(id))
}

fn absent(id: DatasetId) -> CatalogError {
    CatalogError::NotFound { what: format!("dataset {id}") }
}

/// A record that is not dead may have an effect that must be removed first (R3).
pub(super) fn not_dead(what: String) -> CatalogError {
    CatalogError::Precondition {
        what,
        why: "its record is removed only once it is dead: delete it first".to_owned(),
    }
}
