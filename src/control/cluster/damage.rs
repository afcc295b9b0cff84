//! Events for the damaged volumes that nodes report ([`damage_report`]): one on the
//! PersistentVolume of each.
//!
//! A report of a volume without a PersistentVolume here is another cluster's, and stays. A crash
//! between the event and the removal of its report posts nothing twice: the event has its name.
//!
//! [`damage_report`]: crate::control::report_damage

use super::Watcher;
use super::events::Warning;
use crate::catalog::DamageReport;
use crate::control::{ControlError, Pool};
use crate::types::{SessionId, VolumeHandle};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume};
use kube::api::ListParams;
use kube::{Api, Client, Resource};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

/// PersistentVolumes in a page of a list.
const PAGE: u32 = 500;
/// Pages of one search: more PersistentVolumes than any cluster has.
const PAGES_MAX: usize = 1000;
/// Time limit for a page: revocations wait for it.
const PAGE_LIMIT: Duration = Duration::from_secs(10);
/// Most characters of a report's reason in an event, so that the advice behind it has room.
const WHY_CHARS_MAX: usize = 300;

impl Watcher {
    /// Posts the reports of all pools. Those that could not be posted are met again by the next
    /// collection.
    pub(super) async fn post_damage(&self) {
        for pool in self.controller.pools().iter() {
            if let Err(error) = self.post_damage_in(pool).await {
                tracing::warn!(
                    pool = pool.name,
                    %error,
                    "cannot post events for damaged volumes; the next collection retries"
                );
            }
        }
    }

    async fn post_damage_in(&self, pool: &Pool) -> Result<(), ControlError> {
        let reports = pool.catalog.damage_reports().await?;
        if reports.is_empty() {
            return Ok(());
        }
        let handle = |dataset| VolumeHandle { pool: pool.id(), dataset }.to_string();
        let wanted = reports.iter().map(|(_, report)| handle(report.dataset)).collect();
        let found = find_volumes(&self.client, &wanted).await.map_err(|error| {
            ControlError::Unavailable(format!("searching for PersistentVolumes: {error}"))
        })?;
        for (session, report) in reports {
            let Some(volume) = found.get(&handle(report.dataset)) else {
                tracing::debug!(dataset = %report.dataset, "damaged, and not of this cluster");
                continue;
            };
            let dataset = report.dataset;
            if self.events.post(warning(session, report, volume.clone())).await {
                pool.step("control.damage.posted").await?;
                pool.catalog.remove_damage_report(session, dataset).await?;
            }
        }
        Ok(())
    }
}

fn warning(session: SessionId, report: DamageReport, regarding: ObjectReference) -> Warning {
    let DamageReport { dataset, node, why, created } = report;
    let why: String = why.chars().take(WHY_CHARS_MAX).collect();
    Warning {
        about: format!("damaged {session} {dataset} {}", created.as_nanos()),
        reason: "VolumeDamaged",
        action: "Restore",
        note: format!(
            "the volume's database is damaged, as node {node} reports: {why}. The volume stops \
             accepting changes before long, if it has not. Put the object back from another \
             version or copy of the bucket, or clone a snapshot that `zerofs-csi check` finds \
             clean; the log of the node's plugin has the rest"
        ),
        regarding,
        at: SystemTime::from(created),
    }
}

/// The PersistentVolumes with these handles.
async fn find_volumes(
    client: &Client,
    wanted: &HashSet<String>,
) -> Result<HashMap<String, ObjectReference>, Box<dyn std::error::Error + Send + Sync>> {
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let mut found = HashMap::new();
    let mut page = ListParams::default().limit(PAGE);
    for _ in 0..PAGES_MAX {
        let listed = tokio::time::timeout(PAGE_LIMIT, volumes.list(&page)).await??;
        for volume in &listed.items {
            let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
            if let Some(csi) = csi.filter(|csi| wanted.contains(&csi.volume_handle)) {
                found.insert(csi.volume_handle.clone(), volume.object_ref(&()));
            }
        }
        let next = listed.metadata.continue_.filter(|next| !next.is_empty());
        let Some(next) = next.filter(|_| found.len() < wanted.len()) else { break };
        page = page.continue_token(&next);
    }
    Ok(found)
}
