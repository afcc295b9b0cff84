//! The service of snapshots.

use super::super::auth::{Action, Resource};
use super::call::{Call, CallAdmission, RpcResult};
use super::datasets::failed;
use super::proto::snapshots_server::Snapshots;
use super::proto::*;
use super::{Services, convert, page};
use crate::control::browse::{HoldChange, NewSnapshot, SnapshotFacts};
use tonic::{Request, Response, Status};

/// Orders as the list does.
fn key(facts: &SnapshotFacts) -> Vec<u8> {
    let time = facts.created.as_nanos().wrapping_sub(i64::MIN).cast_unsigned();
    let name = format!("{}\0{}", facts.dataset, facts.name);
    [&time.to_be_bytes()[..], name.as_bytes()].concat()
}

impl Services {
    async fn change_hold(
        &self,
        call: &Call,
        HoldSnapshotRequest { pool, dataset, snapshot, tag }: HoldSnapshotRequest,
        (change, what): (HoldChange, &'static str),
    ) -> RpcResult<Snapshot> {
        let browser = self.browser(&pool)?;
        let resource = Resource::dataset(&browser.pool().name, &dataset);
        self.admission.allow(call, Action::Administer, &resource).await?;
        let about = format!("{}/{dataset}@{snapshot} {tag:?}", browser.pool().name);
        let (controller, of) = (self.admin.controller.clone(), browser.clone());
        let work =
            async move { of.change_hold(&controller, (&dataset, &snapshot), &tag, change).await };
        let facts = self.admission.change(call, Action::Administer, (what, about), work).await?;
        Ok(Response::new(convert::snapshot(browser.pool(), facts)))
    }
}

#[tonic::async_trait]
impl Snapshots for Services {
    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> RpcResult<ListSnapshotsResponse> {
        let call = CallAdmission::call(&request)?;
        let ListSnapshotsRequest { pool, dataset, page_size, page_token } = request.into_inner();
        let browser = self.browser(&pool)?;
        let pool = browser.pool();
        let of = match dataset.as_str() {
            "" => {
                self.admission.allow(&call, Action::List, &Resource::pool(&pool.name)).await?;
                None
            }
            name => {
                let resource = Resource::dataset(&pool.name, name);
                self.admission.allow(&call, Action::List, &resource).await?;
                Some(browser.dataset_or_deleted(name).await.map_err(failed)?)
            }
        };
        let mut shown = Vec::new();
        for facts in browser.snapshots(of.as_ref()).await.map_err(failed)? {
            if self.admission.shows(&call, &Resource::dataset(&pool.name, &facts.dataset)).await {
                shown.push(facts);
            }
        }
        let (cut, next_page_token) = page::cut(shown, key, &page_token, page_size)?;
        let snapshots = cut.into_iter().map(|facts| convert::snapshot(pool, facts)).collect();
        Ok(Response::new(ListSnapshotsResponse { snapshots, next_page_token }))
    }

    async fn get_snapshot(&self, request: Request<GetSnapshotRequest>) -> RpcResult<Snapshot> {
        let call = CallAdmission::call(&request)?;
        let GetSnapshotRequest { pool, dataset, snapshot } = request.into_inner();
        let browser = self.browser(&pool)?;
        let resource = Resource::dataset(&browser.pool().name, &dataset);
        self.admission.allow(&call, Action::List, &resource).await?;
        let facts = browser.find_snapshot(&dataset, &snapshot).await.map_err(failed)?;
        Ok(Response::new(convert::snapshot(browser.pool(), facts)))
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> RpcResult<Snapshot> {
        let call = CallAdmission::call(&request)?;
        let CreateSnapshotRequest { pool, dataset, snapshot, writable } = request.into_inner();
        let browser = self.browser(&pool)?;
        let pool = browser.pool().clone();
        let resource = Resource::dataset(&pool.name, &dataset);
        self.admission.allow(&call, Action::Snapshot, &resource).await?;
        let kind = if writable { NewSnapshot::Writable } else { NewSnapshot::ReadOnly };
        let about = format!("{}/{dataset}@{snapshot}", pool.name);
        let controller = self.admin.controller.clone();
        let work =
            async move { browser.make_snapshot(&controller, &dataset, &snapshot, kind).await };
        let made =
            self.admission.change(&call, Action::Snapshot, ("CreateSnapshot", about), work).await?;
        Ok(Response::new(convert::snapshot(&pool, made)))
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> RpcResult<DeleteSnapshotResponse> {
        let call = CallAdmission::call(&request)?;
        let DeleteSnapshotRequest { pool, dataset, snapshot } = request.into_inner();
        let browser = self.browser(&pool)?;
        let resource = Resource::dataset(&browser.pool().name, &dataset);
        self.admission.allow(&call, Action::Administer, &resource).await?;
        let about = format!("{}/{dataset}@{snapshot}", browser.pool().name);
        let full = format!("{dataset}@{snapshot}");
        let controller = self.admin.controller.clone();
        let work = async move { browser.delete_snapshot(&controller, &dataset, &snapshot).await };
        let existed = self
            .admission
            .change(&call, Action::Administer, ("DeleteSnapshot", about), work)
            .await?;
        match existed {
            true => Ok(Response::new(DeleteSnapshotResponse {})),
            false => {
                Err(Status::not_found(format!("snapshot {full} does not exist: nothing to delete")))
            }
        }
    }

    async fn hold_snapshot(&self, request: Request<HoldSnapshotRequest>) -> RpcResult<Snapshot> {
        let call = CallAdmission::call(&request)?;
        self.change_hold(&call, request.into_inner(), (HoldChange::Add, "HoldSnapshot")).await
    }

    async fn release_snapshot(
        &self,
        request: Request<ReleaseSnapshotRequest>,
    ) -> RpcResult<Snapshot> {
        let call = CallAdmission::call(&request)?;
        let ReleaseSnapshotRequest { pool, dataset, snapshot, tag } = request.into_inner();
        let request = HoldSnapshotRequest { pool, dataset, snapshot, tag };
        self.change_hold(&call, request, (HoldChange::Release, "ReleaseSnapshot")).await
    }
}
