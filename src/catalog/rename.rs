//! Renames of datasets. A dataset's id has the key of its first name, and never changes:
//! PersistentVolumes, snapshots, file handles and locks carry it.
//!
//! ```text
//!   chain of a name's key        the name finds
//!   ────────────────────────     ──────────────────────────────────────────
//!   dataset that has the name    that dataset
//!   dataset renamed away         the dataset of its alias, if that counts
//!   alias alone                  the dataset of the alias, if that counts
//!   nothing                      nothing
//! ```
//! So one chain decides who has a name, whether a dataset is created under it or renamed to it. An
//! alias **counts** while its dataset has the name, or is being renamed to it by the attempt that
//! wrote the alias.
//!
//! A rename has three steps:
//! 1. The **intent**, in the dataset's record, with a fresh attempt: from here on an alias of this
//!    attempt counts.
//! 2. The **alias**, in the chain of the new name. It replaces one that does not count, compared
//!    with exactly the version that was judged.
//! 3. The new name, in the dataset's record, if the intent is still that of this attempt.
//!
//! Two datasets never have one name. An alias is replaced only after its dataset was read without
//! the name and without the attempt. An attempt is never used twice, and step 3 needs it in the
//! record, so that the dataset cannot get the name by that attempt any more; another attempt has to
//! pass step 2 again.
//!
//! A crash leaves an intent, which the next rename of the dataset replaces, and until then the name
//! is refused to others; or an alias that does not count, which the next use of the name replaces.
//!
//! Others take the intent away ([`Catalog::keep_name`]) when they have made something by the
//! dataset's name: step 3 fails then.

use super::chain::{Newest, Versioned};
use super::change::Removable;
use super::{Alias, AliasRecord, Catalog, CatalogError, Dataset, Naming, RenameIntent, State};
use crate::types::{DatasetId, DatasetName, Incarnation};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// The content of the chain of a dataset name's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Slot {
    Dataset(Box<Dataset>),
    Alias(AliasRecord),
}

impl<'de> Deserialize<'de> for Slot {
    /// Decides by the name, which an alias has none of, so that an error says what is wrong with
    /// the record.
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let fields = serde_json::Value::deserialize(input)?;
        let slot = match fields.get("name") {
            None => AliasRecord::deserialize(fields).map(Self::Alias),
            Some(_) => Box::deserialize(fields).map(Self::Dataset),
        };
        slot.map_err(D::Error::custom)
    }
}

impl Slot {
    pub fn dataset(self) -> Option<Dataset> {
        match self {
            Self::Dataset(dataset) => Some(*dataset),
            Self::Alias(_) => None,
        }
    }

    fn holder(&self) -> Option<&Dataset> {
        match self {
            Self::Dataset(dataset) => Some(dataset),
            Self::Alias(_) => None,
        }
    }

    /// The alias of a name that no dataset has by its own key.
    fn alias(&self) -> Option<Alias> {
        match self {
            Self::Dataset(dataset) => dataset.naming.alias,
            Self::Alias(record) => Some(record.alias),
        }
    }
}

/// A rename whose intent is durable.
#[derive(Clone, Debug)]
pub struct Rename {
    id: DatasetId,
    before: DatasetName,
    name: DatasetName,
    attempt: Incarnation,
}

/// The dataset whose record the slot has.
pub(super) fn dataset_in(at: Versioned<Slot>) -> Option<Versioned<Dataset>> {
    let Versioned { version, record, floor } = at;
    record.dataset().map(|record| Versioned { version, record, floor })
}

pub(super) fn slot_of(at: Versioned<Dataset>) -> Versioned<Slot> {
    let Versioned { version, record, floor } = at;
    Versioned { version, record: Slot::Dataset(Box::new(record)), floor }
}

impl Catalog {
    /// Gives a dataset another name, and returns its record. Its id stays.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] where another has the name, or is getting it;
    /// [`CatalogError::Precondition`] for a dataset that is not `Ready`.
    pub async fn rename_dataset(
        &self,
        id: DatasetId,
        name: &DatasetName,
    ) -> Result<Versioned<Dataset>, CatalogError> {
        let (unchanged, rename) = self.begin_rename(id, name).await?;
        match rename {
            Some(rename) => self.complete_rename(&rename).await,
            None => Ok(unchanged),
        }
    }

    /// Step 1. `None`: the dataset has the name.
    ///
    /// # Errors
    /// As [`Self::rename_dataset`].
    pub async fn begin_rename(
        &self,
        id: DatasetId,
        name: &DatasetName,
    ) -> Result<(Versioned<Dataset>, Option<Rename>), CatalogError> {
        let attempt = Incarnation::random();
        let mut before = name.clone();
        let intended = self.update_dataset(id, |dataset| {
            if dataset.state != State::Ready {
                return Err(not_ready(dataset));
            }
            before = dataset.name.clone();
            let intent = RenameIntent { name: name.clone(), attempt };
            dataset.naming.intent = Some(intent).filter(|_| before != *name);
            Ok(())
        });
        let intended = intended.await?;
        if before == *name {
            return Ok((intended, None));
        }
        self.step("catalog.rename.intent").await?;
        Ok((intended, Some(Rename { id, before, name: name.clone(), attempt })))
    }

    /// Steps 2 and 3.
    ///
    /// # Errors
    /// As [`Self::rename_dataset`]; [`CatalogError::InProgress`] where the intent was taken away,
    /// or replaced.
    pub async fn complete_rename(
        &self,
        rename: &Rename,
    ) -> Result<Versioned<Dataset>, CatalogError> {
        let Rename { id, before, name, attempt } = rename;
        if let Err(error) = self.claim_name(*id, name, *attempt).await {
            self.withdraw_rename(rename).await?;
            return Err(error);
        }
        self.step("catalog.rename.alias").await?;
        let renamed = self.update_dataset(*id, |dataset| {
            if dataset.name == *name {
                return Ok(());
            }
            if dataset.state != State::Ready {
                return Err(not_ready(dataset));
            }
            if !has_intent(dataset, name, *attempt) {
                let of = &dataset.name;
                let what = format!("another rename of dataset {of}, or a writable snapshot of it,");
                return Err(CatalogError::InProgress { what });
            }
            dataset.name = name.clone();
            dataset.naming.intent = None;
            dataset.naming.key = (Dataset::key_of(name) != id.key).then_some(id.key);
            Ok(())
        });
        let renamed = renamed.await?;
        self.step("catalog.rename.renamed").await?;
        self.forget_alias(*id, before).await?;
        Ok(renamed)
    }

    /// Gives the intent of a rename up.
    pub async fn withdraw_rename(&self, rename: &Rename) -> Result<(), CatalogError> {
        let withdrawn = self.update_dataset(rename.id, |dataset| {
            if has_intent(dataset, &rename.name, rename.attempt) {
                dataset.naming.intent = None;
            }
            Ok(())
        });
        withdrawn.await.map(drop)
    }

    /// Ends a rename in progress of a dataset that has this name: it keeps the name until somebody
    /// begins to rename it again. Returns its record, which may have another name; `None`: the
    /// dataset does not exist.
    pub async fn keep_name(
        &self,
        id: DatasetId,
        name: &DatasetName,
    ) -> Result<Option<Dataset>, CatalogError> {
        let Some(at) = self.dataset_by_id(id).await? else { return Ok(None) };
        if at.record.name != *name || at.record.naming.intent.is_none() {
            return Ok(Some(at.record));
        }
        let kept = self.update_dataset_from(&at, |dataset| {
            if dataset.name == *name {
                dataset.naming.intent = None;
            }
            Ok(())
        });
        match kept.await {
            Ok(at) => Ok(Some(at.record)),
            Err(CatalogError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Step 2: makes the name find the dataset.
    async fn claim_name(
        &self,
        id: DatasetId,
        name: &DatasetName,
        attempt: Incarnation,
    ) -> Result<(), CatalogError> {
        let chain = self.dataset_by_name(name);
        let newest = chain.newest::<Slot>().await?;
        let seen = self.free_slot(&newest, name, id).await?;
        let alias = Alias { dataset: id, attempt };
        match newest {
            Newest::Live(at) if matches!(at.record, Slot::Dataset(_)) => {
                let changed = chain.update_from(&at, |slot: &mut Slot| {
                    if slot.alias() != seen {
                        return Err(chain.contended());
                    }
                    let Slot::Dataset(holder) = slot else { return Err(chain.contended()) };
                    let own = holder.incarnation == id.incarnation;
                    if !own && may_have(holder, name) {
                        return Err(taken(name, holder));
                    }
                    // By its own key the dataset needs none.
                    holder.naming.alias = Some(alias).filter(|_| !own);
                    Ok(())
                });
                changed.await.map(drop)
            }
            newest => {
                let over = |slot: &Slot| match slot {
                    Slot::Alias(found) if Some(found.alias) == seen => Ok(()),
                    _ => Err(chain.contended()),
                };
                chain.insert_after(newest, Slot::Alias(AliasRecord { alias }), over).await.map(drop)
            }
        }
    }

    /// Refuses a slot by which another dataset has the name, or is getting it. Returns the alias in
    /// it, which does not count.
    pub(super) async fn free_slot(
        &self,
        newest: &Newest<Slot>,
        name: &DatasetName,
        by: DatasetId,
    ) -> Result<Option<Alias>, CatalogError> {
        let Newest::Live(at) = newest else { return Ok(None) };
        if let Slot::Dataset(dataset) = &at.record
            && dataset.incarnation != by.incarnation
            && may_have(dataset, name)
        {
            return Err(taken(name, dataset));
        }
        let Some(alias) = at.record.alias() else { return Ok(None) };
        let holder = self.dataset_at(alias.dataset).await?.map(|at| at.record);
        match holder.filter(|of| alias.dataset != by && counts(of, name, alias.attempt)) {
            Some(holder) => Err(taken(name, &holder)),
            None => Ok(Some(alias)),
        }
    }

    /// The dataset that has a name whose key another one has, or none.
    pub(super) async fn by_alias(
        &self,
        slot: &Slot,
        name: &DatasetName,
    ) -> Result<Option<Versioned<Dataset>>, CatalogError> {
        let Some(alias) = slot.alias() else { return Ok(None) };
        Ok(self.dataset_at(alias.dataset).await?.filter(|at| at.record.name == *name))
    }

    async fn dataset_at(&self, id: DatasetId) -> Result<Option<Versioned<Dataset>>, CatalogError> {
        let found = self.dataset_of(id).newest::<Slot>().await?.live().and_then(dataset_in);
        Ok(found.filter(|at| at.record.incarnation == id.incarnation))
    }

    /// Removes the alias by which a name found the dataset, which has another name, or is dead.
    async fn forget_alias(&self, id: DatasetId, name: &DatasetName) -> Result<(), CatalogError> {
        if Dataset::key_of(name) == id.key {
            return Ok(());
        }
        let chain = self.dataset_by_name(name);
        let Newest::Live(at) = chain.newest::<Slot>().await? else { return Ok(()) };
        let Some(alias) = at.record.alias().filter(|alias| alias.dataset == id) else {
            return Ok(());
        };
        let holder = self.dataset_at(id).await?.map(|at| at.record);
        let may_have = |of: &Dataset| of.state != State::Dead && may_have(of, name);
        if holder.as_ref().is_some_and(may_have) {
            return Ok(());
        }
        match at.record {
            Slot::Alias(_) => {
                let judge = |slot: &Slot| match slot {
                    Slot::Alias(found) if found.alias == alias => Ok(Removable::This),
                    _ => Ok(Removable::Another),
                };
                chain.remove(judge).await
            }
            Slot::Dataset(_) => {
                let forgotten = chain.update_from(&at, |slot: &mut Slot| {
                    if let Slot::Dataset(former) = slot
                        && former.naming.alias == Some(alias)
                    {
                        former.naming.alias = None;
                    }
                    Ok(())
                });
                forgotten.await.map(drop)
            }
        }
    }

    /// Removes the alias that leads to a `Dead` dataset.
    /// One that begins in its record stays, alone.
    pub async fn release_name(&self, dead: &Dataset) -> Result<(), CatalogError> {
        if *dead.naming == Naming::default() {
            return Ok(());
        }
        let id = dead.id();
        self.forget_alias(id, &dead.name).await?;
        let chain = self.dataset_of(id);
        let left = chain.update(|slot: &mut Slot| {
            let is_it = |of: &&Dataset| of.incarnation == id.incarnation;
            let dead = slot.holder().filter(is_it).filter(|of| of.state == State::Dead);
            if let Some(alias) = dead.and_then(|of| of.naming.alias) {
                *slot = Slot::Alias(AliasRecord { alias });
            }
            Ok(())
        });
        match left.await {
            Ok(_) | Err(CatalogError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn step(&self, name: &str) -> Result<(), CatalogError> {
        let passed = self.bucket().failpoints().step(name).await;
        passed.map_err(|error| CatalogError::bucket("renaming a dataset", error))
    }
}

/// The error for a name that a dataset has, or is getting, or had first.
pub(super) fn taken(name: &DatasetName, by: &Dataset) -> CatalogError {
    if by.state == State::Dead {
        return CatalogError::InProgress { what: format!("the removal of dataset {}", by.name) };
    }
    let intended = by.naming.intent.as_ref().is_some_and(|intent| intent.name == *name);
    let why = match by.name == *name {
        true => format!("it is {}", by.id()),
        false if intended => format!(
            "dataset {former} is being renamed to it: complete that with `zerofs-csi dataset \
             rename {former} {name}`, or give {former} another name",
            former = by.name
        ),
        false => format!(
            "it is the first name of dataset {}, by which Kubernetes knows that until it is \
             deleted: create a dataset of another name, and rename it",
            by.name
        ),
    };
    CatalogError::Exists { what: format!("dataset {name}"), why }
}

/// Whether a dataset has a name, or may get it.
fn may_have(dataset: &Dataset, name: &DatasetName) -> bool {
    let intended = dataset.naming.intent.as_ref();
    let intends = intended.is_some_and(|intent| intent.name == *name);
    dataset.name == *name || intends && dataset.state == State::Ready
}

/// Whether a dataset has a name, or may get it by this attempt.
fn counts(dataset: &Dataset, name: &DatasetName, attempt: Incarnation) -> bool {
    dataset.name == *name || dataset.state == State::Ready && has_intent(dataset, name, attempt)
}

fn has_intent(dataset: &Dataset, name: &DatasetName, attempt: Incarnation) -> bool {
    let intended = dataset.naming.intent.as_ref();
    intended.is_some_and(|intent| intent.name == *name && intent.attempt == attempt)
}

fn not_ready(dataset: &Dataset) -> CatalogError {
    let what = format!("dataset {}", dataset.name);
    match dataset.state {
        State::Creating => CatalogError::InProgress { what },
        _ => CatalogError::NotFound { what },
    }
}
