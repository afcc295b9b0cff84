//! Reports the damaged volumes of this process to controllers, by an object in its folder of the
//! pool: a node plugin has no access to Kubernetes' API. A volume is damaged while a table of its
//! database cannot be compacted, and where damage has stopped it.
//!
//! ```text
//! node:       damage is found ─▶ put nodes/<session>/damage/<dataset>
//! controller: collects, which lists nodes/ ─▶ reads the report ─▶ posts an event ─▶ removes it
//! ```
//! A volume that is well costs no request, on either side. Each damage is reported once: again only
//! after the volume was well in between. A crash leaves a report, which a collection removes when
//! it is a day old.

use super::{ControlError, Pools};
use crate::catalog::DamageReport;
use crate::types::{Class, Classify, DatasetId, PoolId, Timestamp};
use crate::volume::{Lost, Volumes};
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Interval at which the volumes are looked at, in memory.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Most reports that wait for the store.
const PENDING_MAX: usize = 256;

/// Reports until stopped.
pub async fn report_damage(pools: Pools, volumes: Volumes, stop: CancellationToken) {
    let mut losses = volumes.lost();
    let mut reporter = Reporter { pools, volumes, pending: HashMap::new(), known: HashSet::new() };
    let reporting = async {
        loop {
            if let Ok(Ok(lost)) = tokio::time::timeout(POLL_INTERVAL, losses.recv()).await {
                reporter.lost(&lost);
            }
            reporter.look();
            reporter.send().await;
        }
    };
    // The next process finds again what could not be written.
    stop.run_until_cancelled(reporting).await;
}

struct Reporter {
    pools: Pools,
    volumes: Volumes,
    /// Damage that is not in the store yet.
    pending: HashMap<DatasetId, Pending>,
    /// Damaged volumes, reported or about to be.
    known: HashSet<DatasetId>,
}

#[derive(Clone)]
struct Pending {
    pool: PoolId,
    why: String,
    created: Timestamp,
}

impl Reporter {
    fn lost(&mut self, lost: &Lost) {
        if lost.why.class() == Class::Corrupt {
            self.found(lost.pool, lost.dataset, lost.why.to_string());
        }
    }

    fn look(&mut self) {
        // A guard counts as a use of the volume: none is kept.
        let open = self.volumes.list().into_iter();
        let open: Vec<_> =
            open.map(|volume| (volume.pool, volume.dataset.id(), volume.fs.damage())).collect();
        for (pool, dataset, damage) in open {
            match damage {
                Some(why) => self.found(pool, dataset, why.to_string()),
                None => self.well(dataset),
            }
        }
    }

    fn found(&mut self, pool: PoolId, dataset: DatasetId, why: String) {
        if self.pending.len() < PENDING_MAX && self.known.insert(dataset) {
            self.pending.insert(dataset, Pending { pool, why, created: Timestamp::now() });
        }
    }

    fn well(&mut self, dataset: DatasetId) {
        // One that could not be written yet is written all the same: it says when it was.
        if !self.pending.contains_key(&dataset) {
            self.known.remove(&dataset);
        }
    }

    async fn send(&mut self) {
        for (dataset, pending) in self.pending.clone() {
            match self.put(dataset, pending).await {
                Ok(()) => drop(self.pending.remove(&dataset)),
                Err(error) => {
                    tracing::debug!(%dataset, %error, "cannot report a damaged volume; retrying");
                }
            }
        }
    }

    async fn put(&self, dataset: DatasetId, pending: Pending) -> Result<(), ControlError> {
        let Pending { pool, why, created } = pending;
        // A pool that had the volume open is open.
        let Some(pool) = self.pools.by_id(pool)? else { return Ok(()) };
        let settings = self.volumes.settings();
        let report = DamageReport { dataset, node: settings.node.clone(), why, created };
        pool.catalog.put_damage_report(settings.session, &report).await?;
        pool.step("control.damage.reported").await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::Bucket;
    use crate::catalog::Catalog;
    use crate::fs::FsError;
    use crate::types::{Incarnation, NameKey};

    #[tokio::test]
    async fn each_damage_is_reported_once_and_costs_nothing_otherwise() {
        let catalog = Catalog::create(Bucket::memory(), None).await.unwrap();
        let pools = Pools::one("p", catalog.clone());
        let volumes = Volumes::new(crate::volume::VolumeSettings {
            node: "n".to_owned(),
            session: crate::types::SessionId::random(),
            journal_dir: None,
            cache: crate::fs::db::DbCache::new(1 << 20),
            chunk_cache: crate::chunk::ChunkCache::memory(1 << 20),
            flush_interval: Duration::from_secs(1),
            memory: crate::fs::FsMemory::new(1 << 20, 1 << 20),
            volumes_max: 1,
        });
        let pool = pools.iter().next().unwrap().id();
        let volume = |n| DatasetId {
            key: NameKey::from_bytes([n; 16]),
            incarnation: Incarnation::from_bytes([n; 16]),
        };
        let mut reporter = Reporter {
            pools,
            volumes: volumes.clone(),
            pending: HashMap::new(),
            known: HashSet::new(),
        };
        let before = catalog.bucket().requests();
        reporter.look();
        reporter.well(volume(1));
        reporter.lost(&Lost { pool, dataset: volume(2), opening: 1, why: FsError::Fenced });
        reporter.send().await;
        assert_eq!(catalog.bucket().requests(), before, "nothing is damaged");

        // The first attempt fails after it was written.
        let failpoints = catalog.bucket().failpoints();
        failpoints.set("control.damage.reported", "1*return").unwrap();
        reporter.found(pool, volume(1), "table a".to_owned());
        let why = FsError::Corrupt("count of a pack".to_owned());
        reporter.lost(&Lost { pool, dataset: volume(2), opening: 1, why });
        for _ in 0..3 {
            reporter.found(pool, volume(1), "table a".to_owned());
            reporter.send().await;
        }
        let reports = catalog.damage_reports().await.unwrap();
        let mut told: Vec<_> =
            reports.iter().map(|(_, report)| (report.dataset, report.why.as_str())).collect();
        told.sort_by_key(|(dataset, _)| dataset.incarnation);
        assert_eq!(told, [(volume(1), "table a"), (volume(2), "corrupt data: count of a pack")]);

        // Posted, and so removed: only damage after the volume was well is another one.
        let session = volumes.settings().session;
        for n in [1, 2] {
            catalog.remove_damage_report(session, volume(n)).await.unwrap();
        }
        reporter.found(pool, volume(1), "table b".to_owned());
        reporter.send().await;
        assert_eq!(catalog.damage_reports().await.unwrap(), []);
        reporter.well(volume(1));
        reporter.found(pool, volume(1), "table b".to_owned());
        reporter.send().await;
        let again = catalog.damage_reports().await.unwrap();
        assert_eq!(again.len(), 1);
        assert_eq!((again[0].0, again[0].1.why.as_str()), (session, "table b"));
    }
}
