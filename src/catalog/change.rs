//! Changes of any record: insert, swap, update, remove. Each retries a bounded number of times
//! while others change the record.

use super::CatalogError;
use super::chain::{Chain, Newest, Put, TRIES, Versioned, pause};
use serde::Serialize;
use serde::de::DeserializeOwned;

impl Chain<'_> {
    /// Writes `record` as the next version. `over` decides about a live record that is in the way.
    pub async fn insert<T: Serialize + DeserializeOwned>(
        &self,
        record: T,
        over: impl Fn(&T) -> Result<(), CatalogError>,
    ) -> Result<Versioned<T>, CatalogError> {
        let newest = self.newest::<T>().await?;
        self.insert_after(newest, record, over).await
    }

    /// As [`Self::insert`], after the version that the caller has just read.
    pub async fn insert_after<T: Serialize + DeserializeOwned>(
        &self,
        newest: Newest<T>,
        record: T,
        over: impl Fn(&T) -> Result<(), CatalogError>,
    ) -> Result<Versioned<T>, CatalogError> {
        let mut known = Some(newest);
        for attempt in 0..TRIES {
            let newest = match known.take() {
                Some(newest) => newest,
                None => self.newest::<T>().await?,
            };
            if let Newest::Live(at) = &newest {
                over(&at.record)?;
            }
            if let Put::Won { version, floor } = self.put(newest.base(), Some(&record)).await? {
                return Ok(Versioned { version, record, floor });
            }
            pause(attempt).await;
        }
        Err(self.contended())
    }

    /// Replaces exactly the version `at`; on success `at` is the new one.
    pub async fn swap<T: Serialize>(
        &self,
        at: &mut Versioned<T>,
        next: T,
    ) -> Result<(), CatalogError> {
        match self.put(at.base(), Some(&next)).await? {
            Put::Won { version, floor } => {
                *at = Versioned { version, record: next, floor };
                Ok(())
            }
            Put::Lost => Err(CatalogError::Contended { what: self.what.clone(), tries: 1 }),
        }
    }

    /// Reads, changes and swaps. `change` may refuse; it is called again when another writer was
    /// faster. A change without effect writes nothing.
    pub async fn update<T: Serialize + DeserializeOwned + Clone + PartialEq>(
        &self,
        mut change: impl FnMut(&mut T) -> Result<(), CatalogError> + Send,
    ) -> Result<Versioned<T>, CatalogError> {
        for attempt in 0..TRIES {
            let Newest::Live(at) = self.newest::<T>().await? else {
                return Err(CatalogError::NotFound { what: self.what.clone() });
            };
            let mut next = at.record.clone();
            change(&mut next)?;
            if next == at.record {
                return Ok(at);
            }
            if let Put::Won { version, floor } = self.put(at.base(), Some(&next)).await? {
                return Ok(Versioned { version, record: next, floor });
            }
            pause(attempt).await;
        }
        Err(self.contended())
    }

    /// As [`Self::update`], but first tries to replace the version that the caller has just read,
    /// which saves the listing. Only a change that is written counts then: where that version needs
    /// none, or `change` refuses it, the newest one decides.
    pub async fn update_from<T: Serialize + DeserializeOwned + Clone + PartialEq>(
        &self,
        at: &Versioned<T>,
        mut change: impl FnMut(&mut T) -> Result<(), CatalogError> + Send,
    ) -> Result<Versioned<T>, CatalogError> {
        let mut next = at.record.clone();
        if change(&mut next).is_ok()
            && next != at.record
            && let Put::Won { version, floor } = self.put(at.base(), Some(&next)).await?
        {
            return Ok(Versioned { version, record: next, floor });
        }
        self.update(change).await
    }

    /// Ends the chain, if `judge` finds that the record is the one to remove and may be removed.
    /// Absent counts as removed.
    pub async fn remove<T: Serialize + DeserializeOwned>(
        &self,
        judge: impl Fn(&T) -> Result<Removable, CatalogError>,
    ) -> Result<(), CatalogError> {
        for attempt in 0..TRIES {
            let at = match self.newest::<T>().await? {
                Newest::Absent => return Ok(()),
                Newest::Ended { version, .. } => return self.clear_ended(version).await,
                Newest::Live(at) => at,
            };
            if judge(&at.record)? == Removable::Another {
                return Ok(());
            }
            if let Put::Won { .. } = self.put::<T>(at.base(), None).await? {
                return Ok(());
            }
            pause(attempt).await;
        }
        Err(self.contended())
    }
}

/// The relation of a record that was found to the one to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removable {
    This,
    /// Another life has taken the name: the one meant is gone.
    Another,
}
