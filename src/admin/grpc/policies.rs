//! The service of snapshot policies.

use super::super::auth::{Action, Resource};
use super::call::{Call, CallAdmission, RpcResult};
use super::datasets::failed;
use super::proto::policies_server::Policies;
use super::proto::*;
use super::{Services, convert, page};
use crate::catalog::{self, Keep, SnapshotPolicy};
use crate::control::browse::Browser;
use crate::control::policy::{DEFAULT_PREFIX, ShownPolicy, parse_keep};
use crate::types::Timestamp;
use std::collections::HashMap;
use tonic::{Request, Response, Status};

/// Days that are simulated for callers who ask for no number.
const DAYS_DEFAULT: u32 = 30;
/// The time zone of callers who name none.
const ZONE_DEFAULT: &str = "UTC";

/// A dataset that the caller may do this with.
struct AllowedDataset {
    browser: Browser,
    dataset: catalog::Dataset,
}

impl AllowedDataset {
    /// For the audit log.
    fn about(&self) -> String {
        format!("{}/{}", self.browser.pool().name, self.dataset.name)
    }

    fn shown(&self, policy: ShownPolicy) -> Policy {
        convert::policy(&self.browser.pool().name, self.dataset.name.as_str(), policy)
    }
}

impl Services {
    async fn policy_of(
        &self,
        call: &Call,
        (pool, dataset): (&str, &str),
        action: Action,
    ) -> Result<AllowedDataset, Status> {
        let browser = self.browser(pool)?;
        let dataset = self.dataset(call, &browser, dataset, action).await?;
        Ok(AllowedDataset { browser, dataset })
    }
}

fn rule(name: &str, text: &str) -> Result<Option<Keep>, Status> {
    let wrong = |why: String| Status::invalid_argument(format!("keep.{name}: {why}"));
    Some(text).filter(|text| !text.is_empty()).map(parse_keep).transpose().map_err(wrong)
}

fn policy(new: SetPolicyRequest) -> Result<SnapshotPolicy, Status> {
    let or = |text: String, default: &str| match text.is_empty() {
        true => default.to_owned(),
        false => text,
    };
    let keep = new.keep.unwrap_or_default();
    Ok(SnapshotPolicy {
        schedule: new.schedule,
        time_zone: or(new.time_zone, ZONE_DEFAULT),
        prefix: or(new.prefix, DEFAULT_PREFIX),
        skip_empty: new.skip_empty,
        keep: catalog::KeepRules {
            last: rule("last", &keep.last)?,
            hourly: rule("hourly", &keep.hourly)?,
            daily: rule("daily", &keep.daily)?,
            weekly: rule("weekly", &keep.weekly)?,
            monthly: rule("monthly", &keep.monthly)?,
        },
    })
}

#[tonic::async_trait]
impl Policies for Services {
    async fn list_policies(
        &self,
        request: Request<ListPoliciesRequest>,
    ) -> RpcResult<ListPoliciesResponse> {
        let call = CallAdmission::call(&request)?;
        let ListPoliciesRequest { pool, page_size, page_token } = request.into_inner();
        let browser = self.browser(&pool)?;
        let pool = browser.pool();
        self.admission.allow(&call, Action::List, &Resource::pool(&pool.name)).await?;
        let policies = self.admin.controller.policies(pool, Timestamp::now()).await;
        let mut shown = Vec::new();
        // The policy of a dataset that is gone goes with its next slot.
        let datasets = browser.datasets().await.map_err(failed)?;
        let names: HashMap<_, _> = datasets
            .iter()
            .map(|facts| (facts.dataset.incarnation, facts.dataset.name.as_str()))
            .collect();
        for policy in policies.map_err(failed)? {
            let Some(name) = names.get(&policy.dataset.incarnation) else { continue };
            if self.admission.shows(&call, &Resource::dataset(&pool.name, name)).await {
                shown.push(convert::policy(&pool.name, name, policy));
            }
        }
        shown.sort_by(|a, b| a.dataset.cmp(&b.dataset));
        let key = |policy: &Policy| policy.dataset.as_bytes().to_vec();
        let (policies, next_page_token) = page::cut(shown, key, &page_token, page_size)?;
        Ok(Response::new(ListPoliciesResponse { policies, next_page_token }))
    }

    async fn get_policy(&self, request: Request<GetPolicyRequest>) -> RpcResult<Policy> {
        let call = CallAdmission::call(&request)?;
        let GetPolicyRequest { pool, dataset, decisions } = request.into_inner();
        let of = self.policy_of(&call, (&pool, &dataset), Action::List).await?;
        let (controller, now) = (&self.admin.controller, Timestamp::now());
        let pool = of.browser.pool();
        let found = controller.policy(pool, &of.dataset, now).await.map_err(failed)?;
        // A policy that cannot be read decides nothing.
        let verdicts = match decisions && found.broken.is_none() {
            true => controller.policy_verdicts(pool, &of.dataset, now).await.map_err(failed)?,
            false => vec![],
        };
        let decisions = verdicts.into_iter().map(|(of, verdict)| convert::decision(&of, verdict));
        Ok(Response::new(Policy { decisions: decisions.collect(), ..of.shown(found) }))
    }

    async fn set_policy(&self, request: Request<SetPolicyRequest>) -> RpcResult<Policy> {
        let call = CallAdmission::call(&request)?;
        let new = request.into_inner();
        let at = (new.pool.as_str(), new.dataset.as_str());
        let of = self.policy_of(&call, at, Action::Administer).await?;
        let wanted = policy(new)?;
        let controller = self.admin.controller.clone();
        let (pool, dataset) = (of.browser.pool().clone(), of.dataset.clone());
        let work =
            async move { controller.set_policy(&pool, &dataset, wanted, Timestamp::now()).await };
        let what = ("SetPolicy", of.about());
        let set = self.admission.change(&call, Action::Administer, what, work).await?;
        Ok(Response::new(of.shown(set)))
    }

    async fn delete_policy(
        &self,
        request: Request<DeletePolicyRequest>,
    ) -> RpcResult<DeletePolicyResponse> {
        let call = CallAdmission::call(&request)?;
        let DeletePolicyRequest { pool, dataset } = request.into_inner();
        let of = self.policy_of(&call, (&pool, &dataset), Action::Administer).await?;
        let (controller, what) = (self.admin.controller.clone(), ("DeletePolicy", of.about()));
        let AllowedDataset { browser, dataset } = of;
        let work = async move {
            controller.delete_policy(browser.pool(), &dataset, Timestamp::now()).await
        };
        self.admission.change(&call, Action::Administer, what, work).await?;
        Ok(Response::new(DeletePolicyResponse {}))
    }

    async fn simulate_policy(
        &self,
        request: Request<SimulatePolicyRequest>,
    ) -> RpcResult<SimulatePolicyResponse> {
        let call = CallAdmission::call(&request)?;
        let SimulatePolicyRequest { pool, dataset, days, all } = request.into_inner();
        let of = self.policy_of(&call, (&pool, &dataset), Action::List).await?;
        let days = if days == 0 { DAYS_DEFAULT } else { days };
        let (controller, now) = (&self.admin.controller, Timestamp::now());
        let done = controller.simulate_policy(of.browser.pool(), &of.dataset, now, days).await;
        Ok(Response::new(convert::simulated(done.map_err(failed)?, all)))
    }

    async fn run_policy(&self, request: Request<RunPolicyRequest>) -> RpcResult<RunPolicyResponse> {
        let call = CallAdmission::call(&request)?;
        let RunPolicyRequest { pool, dataset } = request.into_inner();
        let of = self.policy_of(&call, (&pool, &dataset), Action::Administer).await?;
        let (controller, what) = (self.admin.controller.clone(), ("RunPolicy", of.about()));
        let AllowedDataset { browser, dataset } = of;
        let work = async move {
            controller.run_policy_now(browser.pool(), &dataset, Timestamp::now()).await
        };
        let ran = self.admission.change(&call, Action::Administer, what, work).await?;
        let snapshot = ran.snapshot.unwrap_or_default();
        Ok(Response::new(RunPolicyResponse { snapshot, deleted: ran.deleted }))
    }
}
