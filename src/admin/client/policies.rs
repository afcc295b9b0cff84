//! Snapshot policies.

use super::super::grpc::proto::*;
use super::{Client, ClientError};

impl Client {
    /// Every snapshot policy of a pool, by the names of their datasets.
    pub async fn policies(&self, pool: &str) -> Result<Vec<Policy>, ClientError> {
        let (mut all, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListPoliciesRequest { pool: pool.to_owned(), page_size: 0, page_token };
            let page = self.policies_service().list_policies(request).await?.into_inner();
            all.extend(page.policies);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// The snapshot policy of a dataset; `NOT_FOUND` when it has none.
    pub async fn policy(&self, pool: &str, dataset: &str) -> Result<Policy, ClientError> {
        let (pool, dataset) = (pool.to_owned(), dataset.to_owned());
        let request = GetPolicyRequest { pool, dataset, decisions: false };
        Ok(self.policies_service().get_policy(request).await?.into_inner())
    }

    /// As [`Self::policy`], with what it decides about each snapshot.
    pub async fn policy_with_decisions(
        &self,
        pool: &str,
        dataset: &str,
    ) -> Result<Policy, ClientError> {
        let (pool, dataset) = (pool.to_owned(), dataset.to_owned());
        let request = GetPolicyRequest { pool, dataset, decisions: true };
        Ok(self.policies_service().get_policy(request).await?.into_inner())
    }

    /// Sets the snapshot policy of a dataset.
    pub async fn set_policy(&self, request: SetPolicyRequest) -> Result<Policy, ClientError> {
        Ok(self.policies_service().set_policy(request).await?.into_inner())
    }

    /// Deletes the snapshot policy of a dataset; its snapshots stay.
    pub async fn delete_policy(&self, pool: &str, dataset: &str) -> Result<(), ClientError> {
        let request = DeletePolicyRequest { pool: pool.to_owned(), dataset: dataset.to_owned() };
        self.policies_service().delete_policy(request).await?;
        Ok(())
    }

    /// Plays the policy of a dataset over the days ahead.
    pub async fn simulate_policy(
        &self,
        request: SimulatePolicyRequest,
    ) -> Result<SimulatePolicyResponse, ClientError> {
        Ok(self.policies_service().simulate_policy(request).await?.into_inner())
    }

    /// Takes a snapshot by the policy of a dataset at once, and deletes what no rule keeps.
    pub async fn run_policy(
        &self,
        pool: &str,
        dataset: &str,
    ) -> Result<RunPolicyResponse, ClientError> {
        let request = RunPolicyRequest { pool: pool.to_owned(), dataset: dataset.to_owned() };
        Ok(self.policies_service().run_policy(request).await?.into_inner())
    }
}
