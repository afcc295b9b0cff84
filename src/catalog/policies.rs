//! Snapshot policies, one chain for each dataset that ever had one; and which process runs them.
//!
//! A policy's chain never ends: a policy that is deleted leaves a record that says so, which goes
//! with its dataset. A dataset's incarnation is never reused, so that its chain can be removed
//! object by object then, without an end that a collection would have to look at (R1, R2).
//!
//! The policies are in no dataset's record, because older programs that claim and release datasets
//! would drop a field that they do not know.

use super::chain::{Chain, Newest, Versioned, parts_of};
use super::{Catalog, CatalogError, PolicyRecord, PolicyRun};
use crate::bucket::Listed;
use crate::types::Incarnation;
use std::collections::BTreeMap;
use std::time::SystemTime;

const PREFIX: &str = "policies";

/// The newest version of a policy, as listed.
#[derive(Clone, Debug)]
pub struct PolicyVersion {
    pub dataset: Incarnation,
    pub version: u64,
    listed: Listed,
}

impl Catalog {
    fn policy_chain(&self, dataset: Incarnation) -> Chain<'_> {
        self.chain(format!("{PREFIX}/{dataset}"), "a snapshot policy".to_owned())
    }

    /// The policy record of a dataset; `None`: it never had a policy.
    pub async fn policy(&self, dataset: Incarnation) -> Result<Option<PolicyRecord>, CatalogError> {
        let newest = self.policy_chain(dataset).newest::<PolicyRecord>().await?;
        Ok(newest.live().map(|at| at.record))
    }

    /// Replaces a dataset's policy by another: the last one that is written counts.
    pub async fn write_policy(&self, record: PolicyRecord) -> Result<(), CatalogError> {
        let chain = self.policy_chain(record.dataset.incarnation);
        chain.insert(record, |_| Ok(())).await.map(drop)
    }

    /// The newest version of every policy: one listing, and nothing is read.
    pub async fn policy_versions(&self) -> Result<Vec<PolicyVersion>, CatalogError> {
        let doing = || format!("listing the policies of the pool at {}", self.bucket().url());
        let listed =
            self.bucket().list(PREFIX).await.map_err(|e| CatalogError::bucket(doing(), e))?;
        let mut newest = BTreeMap::new();
        for listed in listed {
            let Some((chain, version)) = parts_of(&listed.key) else { continue };
            let Some(Ok(dataset)) = chain.rsplit('/').next().map(str::parse) else { continue };
            // Keys come in order: a later one of a chain is a newer version.
            newest.insert(dataset, PolicyVersion { dataset, version, listed });
        }
        Ok(newest.into_values().collect())
    }

    /// The record of a version, or of a newer one if that was removed meanwhile; `None`: it was
    /// removed with its dataset.
    pub async fn read_policy(
        &self,
        at: &PolicyVersion,
    ) -> Result<Option<PolicyRecord>, CatalogError> {
        let chain = self.policy_chain(at.dataset);
        let found = match chain.read::<PolicyRecord>(at.version, &at.listed).await? {
            Some(found) => found,
            None => chain.newest::<PolicyRecord>().await?,
        };
        Ok(found.live().map(|at| at.record))
    }

    /// Removes the policy of a dataset that is gone.
    pub async fn remove_policy(&self, dataset: Incarnation) -> Result<(), CatalogError> {
        let doing = || format!("removing the policy of dataset {dataset}, which is gone");
        let failed = |error| CatalogError::bucket(doing(), error);
        let listed = self.bucket().list(&format!("{PREFIX}/{dataset}")).await.map_err(failed)?;
        if listed.is_empty() {
            return Ok(());
        }
        let keys: Vec<String> = listed.into_iter().map(|listed| listed.key).collect();
        self.bucket().delete(&keys).await.map_err(failed)
    }

    fn policy_run_chain(&self) -> Chain<'_> {
        self.chain("policy-run".to_owned(), "the claim to run policies".to_owned())
    }

    /// The claim as it is; `None` before the first one.
    pub async fn policy_run(&self) -> Result<Option<Versioned<PolicyRun>>, CatalogError> {
        Ok(self.policy_run_chain().newest::<PolicyRun>().await?.live())
    }

    /// The time by the store's clock at which a version of the claim was written; `None`: it was
    /// removed since.
    pub async fn policy_run_written(
        &self,
        at: &Versioned<PolicyRun>,
    ) -> Result<Option<SystemTime>, CatalogError> {
        let versions = self.policy_run_chain().versions().await?;
        let found = versions.into_iter().find(|(version, _)| *version == at.version);
        Ok(found.map(|(_, listed)| listed.modified))
    }

    /// Writes the claim over the version `at`, or as the first one.
    ///
    /// # Errors
    /// [`CatalogError::Contended`] when that is no longer the newest.
    pub async fn write_policy_run(
        &self,
        at: Option<Versioned<PolicyRun>>,
        run: PolicyRun,
    ) -> Result<Versioned<PolicyRun>, CatalogError> {
        let chain = self.policy_run_chain();
        match at {
            Some(mut at) => chain.swap(&mut at, run).await.map(|()| at),
            None => chain.insert_after(Newest::Absent, run, |_| Err(chain.contended())).await,
        }
    }
}
