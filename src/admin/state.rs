//! State shared by the administration interfaces: the use cases of the process, and who may call
//! them.

use super::access::{Access, Authenticated};
use super::auth::audit::{self, Audited};
use super::auth::{Action, Resource};
use super::problem::Problem;
use crate::control::Tasks;
use crate::control::browse::Browser;
use crate::control::policy::PolicyStatus;
use crate::control::{Controller, Pool};
use crate::types::PoolId;
use crate::volume::Volumes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// The use cases that the edge stands on.
pub struct Admin {
    pub controller: Arc<Controller>,
    pub volumes: Volumes,
    pub tasks: Tasks,
    /// Counts of the snapshot policies that this process runs.
    pub policies: PolicyStatus,
    pub access: Arc<Access>,
    /// One for each pool: it keeps roots open.
    browsers: Mutex<HashMap<PoolId, Browser>>,
}

impl Admin {
    pub fn new(
        controller: Arc<Controller>,
        volumes: Volumes,
        tasks: Tasks,
        policies: PolicyStatus,
        access: Arc<Access>,
    ) -> Self {
        Self { controller, volumes, tasks, policies, access, browsers: Mutex::default() }
    }

    /// # Errors
    /// When the caller may not do this.
    pub async fn allow(
        &self,
        known: &Authenticated,
        action: Action,
        resource: &Resource,
    ) -> Result<(), Problem> {
        Ok(self.access.authorizer.allow(&known.caller, action, resource).await?)
    }

    /// Returns whether the caller may see a dataset.
    pub async fn sees(&self, known: &Authenticated, pool: &str, dataset: &str) -> bool {
        let resource = Resource::dataset(pool, dataset);
        self.access.authorizer.allow(&known.caller, Action::List, &resource).await.is_ok()
    }

    /// A pool by the name in the URL.
    pub fn pool(&self, name: &str) -> Result<&Pool, Problem> {
        let known = self.controller.pools().iter().any(|pool| pool.name == name);
        let waiting = self.controller.pools().not_open().iter().any(|(pool, _)| pool == name);
        if !known && !waiting {
            let why = format!("pool {name:?} is not configured; GET /api/v1/pools lists all pools");
            return Err(Problem::of(crate::types::Class::NotFound, why));
        }
        Ok(self.controller.pools().get(Some(name))?)
    }

    pub fn browser(&self, pool: &Pool) -> Browser {
        let mut browsers = self.browsers.lock();
        browsers.entry(pool.id()).or_insert_with(|| Browser::new(pool, &self.volumes)).clone()
    }

    /// The browser of a dataset's pool, for a caller who may do this to the dataset.
    pub async fn browse(
        &self,
        known: &Authenticated,
        action: Action,
        pool: &str,
        dataset: &str,
    ) -> Result<Browser, Problem> {
        self.allow(known, action, &Resource::dataset(pool, dataset)).await?;
        Ok(self.browser(self.pool(pool)?))
    }

    /// Closes what is open, so that nothing stays retained.
    pub async fn close(&self) {
        let browsers: Vec<Browser> = self.browsers.lock().drain().map(|(_, it)| it).collect();
        for browser in browsers {
            browser.close().await;
        }
    }
}

/// Begins work that the audit log has to show.
pub fn audited(
    known: &Authenticated,
    action: Action,
    what: &'static str,
    object: String,
) -> Audited {
    audit::begin(&known.caller, known.peer.at, action, what, object)
}
