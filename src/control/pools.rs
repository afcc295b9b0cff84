//! The configured pools.
//!
//! A pool whose store does not answer when a process starts is opened later. Until then it is
//! **waiting**: requests for it get that answer with the reason, and never that something does not
//! exist.

use super::ControlError;
use crate::catalog::Catalog;
use crate::types::PoolId;
use parking_lot::Mutex;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;

/// A pool as this process knows it.
#[derive(Clone)]
pub struct Pool {
    /// Its name in the configuration.
    pub name: String,
    pub catalog: Catalog,
    /// The folder that a `file://` pool is in: the only kind whose free space can be known.
    pub folder: Option<PathBuf>,
}

impl Pool {
    pub fn id(&self) -> PoolId {
        self.catalog.pool().id
    }

    pub(super) async fn step(&self, name: &str) -> Result<(), ControlError> {
        Ok(self
            .catalog
            .bucket()
            .failpoints()
            .step(name)
            .await
            .map_err(crate::bucket::BucketError::from)?)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.name)
            .field("catalog", &self.catalog)
            .finish_non_exhaustive()
    }
}

/// Every pool of the process. Cheap to clone.
#[derive(Clone)]
pub struct Pools {
    entries: Arc<Vec<PoolEntry>>,
    default: Option<String>,
    /// The number of open pools.
    open: watch::Sender<usize>,
}

struct PoolEntry {
    name: String,
    /// The pool, once it is open.
    pool: OnceLock<Pool>,
    /// The reason why it is not open yet.
    why: Mutex<String>,
}

impl PoolEntry {
    fn waiting(name: String) -> Self {
        Self { name, pool: OnceLock::new(), why: Mutex::new("it is being opened".to_owned()) }
    }

    fn unavailable(&self) -> ControlError {
        ControlError::Unavailable(format!(
            "pool {} is not open yet: {}; it is tried again by itself",
            self.name,
            self.why.lock()
        ))
    }

    fn open(&self) -> Result<&Pool, ControlError> {
        self.pool.get().ok_or_else(|| self.unavailable())
    }
}

impl Pools {
    /// # Errors
    /// When two pools share a name or an id, or the default is not among them.
    pub fn new(pools: Vec<Pool>, default: Option<String>) -> Result<Self, ControlError> {
        let all = Self::waiting(pools.iter().map(|pool| pool.name.clone()), default)?;
        pools.into_iter().try_for_each(|pool| all.opened(pool))?;
        Ok(all)
    }

    /// Pools of these names, none of which is open yet.
    ///
    /// # Errors
    /// When two have the same name, or the default is not among them.
    pub fn waiting(
        names: impl IntoIterator<Item = String>,
        default: Option<String>,
    ) -> Result<Self, ControlError> {
        let entries: Vec<PoolEntry> = names.into_iter().map(PoolEntry::waiting).collect();
        for (i, entry) in entries.iter().enumerate() {
            if entries.iter().skip(i + 1).any(|other| other.name == entry.name) {
                return Err(ControlError::Invalid(format!(
                    "two pools have the name {}: configure each once",
                    entry.name
                )));
            }
        }
        if let Some(name) = &default
            && !entries.iter().any(|entry| entry.name == *name)
        {
            return Err(ControlError::Invalid(format!(
                "the default pool {name} is not among the pools configured"
            )));
        }
        Ok(Self { entries: Arc::new(entries), default, open: watch::Sender::new(0) })
    }

    /// One pool, which is the default.
    pub fn one(name: &str, catalog: Catalog) -> Self {
        let entry = PoolEntry::waiting(name.to_owned());
        let _new = entry.pool.set(Pool { name: name.to_owned(), catalog, folder: None });
        Self { entries: Arc::new(vec![entry]), default: None, open: watch::Sender::new(1) }
    }

    /// Marks the pool of that name as open.
    ///
    /// # Errors
    /// When no pool of that name is waiting, or another is the same pool.
    pub fn opened(&self, pool: Pool) -> Result<(), ControlError> {
        if let Some(other) = self.iter().find(|other| other.id() == pool.id()) {
            let why =
                format!("pools {} and {} are one pool: configure it once", other.name, pool.name);
            return Err(ControlError::Invalid(why));
        }
        let entry = self.entries.iter().find(|entry| entry.name == pool.name);
        match entry.map(|entry| entry.pool.set(pool)) {
            Some(Ok(())) => {
                self.open.send_modify(|open| *open += 1);
                Ok(())
            }
            Some(Err(pool)) => {
                Err(ControlError::Invalid(format!("pool {} is open already", pool.name)))
            }
            None => {
                Err(ControlError::Internal("a pool was opened that is not configured".to_owned()))
            }
        }
    }

    /// Changes whenever a pool is opened.
    pub fn watch(&self) -> watch::Receiver<usize> {
        self.open.subscribe()
    }

    /// Records why a pool is not open yet.
    pub fn not_yet(&self, name: &str, why: String) {
        if let Some(entry) = self.entries.iter().find(|entry| entry.name == name) {
            *entry.why.lock() = why;
        }
    }

    /// The pools that are not open yet, and why.
    pub fn not_open(&self) -> Vec<(String, String)> {
        let waiting = self.entries.iter().filter(|entry| entry.pool.get().is_none());
        waiting.map(|entry| (entry.name.clone(), entry.why.lock().clone())).collect()
    }

    /// The pools that are open.
    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.entries.iter().filter_map(|entry| entry.pool.get())
    }

    /// Returns every pool, for answers that would be wrong without one of them.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`] while one is not open.
    pub fn all(&self) -> Result<Vec<&Pool>, ControlError> {
        self.entries.iter().map(PoolEntry::open).collect()
    }

    /// By configured name; `None`: the default one, or the only one.
    pub fn get(&self, name: Option<&str>) -> Result<&Pool, ControlError> {
        let known =
            || self.entries.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>().join(", ");
        match (name.or(self.default.as_deref()), self.entries.as_slice()) {
            (Some(name), entries) => entries
                .iter()
                .find(|entry| entry.name == name)
                .ok_or_else(|| {
                    ControlError::Invalid(format!(
                        "pool {name:?} is not configured; there are: {}",
                        known()
                    ))
                })?
                .open(),
            (None, [only]) => only.open(),
            (None, _) => Err(ControlError::Invalid(format!("name a pool; there are: {}", known()))),
        }
    }

    /// Finds a pool by id. `None`: no configured pool has it.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`] while a pool that may have the id is not open.
    pub fn by_id(&self, id: PoolId) -> Result<Option<&Pool>, ControlError> {
        if let Some(pool) = self.iter().find(|pool| pool.id() == id) {
            return Ok(Some(pool));
        }
        match self.entries.iter().find(|entry| entry.pool.get().is_none()) {
            Some(entry) => Err(entry.unavailable()),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::Bucket;
    use crate::types::{Class, Classify};

    async fn pool(name: &str) -> Pool {
        Pool {
            name: name.to_owned(),
            catalog: Catalog::create(Bucket::memory(), None).await.unwrap(),
            folder: None,
        }
    }

    #[tokio::test]
    async fn a_pool_that_is_not_open_yet_is_never_missing() {
        let pools = Pools::waiting(["a".to_owned(), "b".to_owned()], Some("a".to_owned())).unwrap();
        let (a, b) = (pool("a").await, pool("b").await);
        pools.opened(a.clone()).unwrap();
        pools.not_yet("b", "the store is away".to_owned());
        assert_eq!(pools.by_id(a.id()).unwrap().map(Pool::id), Some(a.id()));
        for refused in [pools.by_id(b.id()).err(), pools.get(Some("b")).err(), pools.all().err()] {
            let refused = refused.unwrap();
            assert_eq!(refused.class(), Class::Unavailable);
            assert!(refused.to_string().contains("the store is away"), "{refused}");
        }
        assert_eq!(pools.not_open(), [("b".to_owned(), "the store is away".to_owned())]);
        assert!(
            pools.opened(Pool { name: "b".to_owned(), ..a.clone() }).is_err(),
            "one pool under two names"
        );
        pools.opened(b.clone()).unwrap();
        assert!(pools.opened(pool("b").await).is_err() && pools.opened(pool("c").await).is_err());
        assert!(pools.by_id(PoolId::random()).unwrap().is_none());
        assert_eq!(pools.all().unwrap().len(), 2);
        assert_eq!(pools.get(None).unwrap().id(), a.id());
    }
}
