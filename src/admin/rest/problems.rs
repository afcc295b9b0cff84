//! Problems that need somebody's attention, as far as the caller may see what has them.

use super::ask::Query;
use super::shape::Page;
use super::{Problem, Rest};
use crate::admin::access::Authenticated;
use crate::admin::auth::{Action, Resource};
use crate::control::problems::{Finding, Severity, Sources, Subject};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

/// Something that is wrong.
#[derive(Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trouble {
    /// `error` or `warning`.
    severity: &'static str,
    /// The object with the problem: `pool NAME`, `dataset POOL/NAME`.
    subject: String,
    message: String,
    next_step: String,
}

/// Problems at the moment, worst first
#[utoipa::path(
    get, path = "/problems", tag = "tasks", responses((status = 200, body = Page<Trouble>))
)]
pub async fn list(
    State(rest): State<Rest>,
    known: Authenticated,
    query: Query,
) -> Result<Json<Page<Trouble>>, Problem> {
    query.only(&[])?;
    rest.admin.allow(&known, Action::List, &Resource::Server).await?;
    let sources = Sources {
        controller: &rest.admin.controller,
        volumes: &rest.admin.volumes,
        policies: &rest.admin.policies,
    };
    let mut items = Vec::new();
    for finding in rest.problems.find(sources).await {
        let resource = match &finding.subject {
            Subject::Pool(pool) => Resource::pool(pool),
            Subject::Dataset { pool, dataset } => Resource::dataset(pool, dataset.as_str()),
        };
        if rest.admin.allow(&known, Action::List, &resource).await.is_ok() {
            items.push(shape(finding, &resource));
        }
    }
    Ok(Json(Page::whole(items)))
}

fn shape(finding: Finding, resource: &Resource) -> Trouble {
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let Finding { message, next_step, .. } = finding;
    Trouble { severity, subject: resource.to_string(), message, next_step }
}
