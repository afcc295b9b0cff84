//! The configured pools, opened.

use super::ControlError;
use crate::catalog::Catalog;
use crate::types::PoolId;
use std::path::PathBuf;
use std::sync::Arc;

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
        Ok(self.catalog.bucket().failpoints().step(name).await.map_err(crate::bucket::BucketError::from)?)
    }
}

/// Every pool of the process. Cheap to clone.
#[derive(Clone)]
pub struct Pools {
    pools: Arc<Vec<Pool>>,
    default: Option<String>,
}

impl Pools {
    /// # Errors
    /// When two pools share a name or an id, or the default is none of them.
    pub fn new(pools: Vec<Pool>, default: Option<String>) -> Result<Self, ControlError> {
        for (i, pool) in pools.iter().enumerate() {
            for other in pools.iter().skip(i + 1) {
                if pool.name == other.name || pool.id() == other.id() {
                    let why = format!("pools {} and {} have one name or are one pool: configure each once", pool.name, other.name);
                    return Err(ControlError::Invalid(why));
                }
            }
        }
        if let Some(name) = &default
            && !pools.iter().any(|pool| pool.name == *name)
        {
            return Err(ControlError::Invalid(format!("the default pool {name} is not among the pools configured")));
        }
        Ok(Self { pools: Arc::new(pools), default })
    }

    /// One pool, which is the default.
    pub fn one(name: &str, catalog: Catalog) -> Self {
        Self { pools: Arc::new(vec![Pool { name: name.to_owned(), catalog, folder: None }]), default: None }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.pools.iter()
    }

    /// By configured name; `None`: the default one, or the only one.
    pub fn get(&self, name: Option<&str>) -> Result<&Pool, ControlError> {
        let known = || self.pools.iter().map(|pool| pool.name.as_str()).collect::<Vec<_>>().join(", ");
        match (name.or(self.default.as_deref()), self.pools.as_slice()) {
            (Some(name), pools) => pools
                .iter()
                .find(|pool| pool.name == name)
                .ok_or_else(|| ControlError::Invalid(format!("pool {name:?} is not configured; there are: {}", known()))),
            (None, [only]) => Ok(only),
            (None, _) => Err(ControlError::Invalid(format!("name a pool; there are: {}", known()))),
        }
    }

    pub fn by_id(&self, id: PoolId) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.id() == id)
    }
}
