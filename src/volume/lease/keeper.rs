//! Renews this session's lease in one pool while volumes are open there, and has ownership
//! confirmed after the lease expired.

use super::LeaseSettings;
use super::tenure::{End, Held, Tenure};
use crate::bucket::BucketError;
use crate::catalog::{Catalog, CatalogError, Heartbeat, Owner, Signs};
use crate::types::{ClaimId, Classify, DatasetId, SessionId};
use futures::StreamExt;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Records confirmed at once after the lease expired.
const CONFIRMS_AT_ONCE: usize = 8;

/// The lease of this session in one pool. Cheap to clone.
#[derive(Clone)]
pub struct Keeper(Arc<Shared>);

/// State shared by the lease, its task and its guards.
pub struct Shared {
    catalog: Catalog,
    settings: LeaseSettings,
    session: SessionId,
    heartbeat: Heartbeat,
    /// Answers may be given before this moment of the clock, in nanoseconds.
    until: AtomicU64,
    /// Counts the times that the lease began, or was re-acquired after it expired. Raised before
    /// `until` is.
    life: AtomicU64,
    tenures: Mutex<HashMap<DatasetId, Arc<Tenure>>>,
    turn: tokio::sync::Mutex<Turn>,
    wake: Notify,
    renewed: watch::Sender<()>,
    /// Woken when a renewal's listing shows requests in this session's mailbox.
    mailbox: Arc<Notify>,
}

/// Held for one renewal at a time.
#[derive(Default)]
struct Turn {
    /// Number of the last heartbeat attempted. Never used twice: an abandoned put may land late.
    number: u64,
    /// Set while the task runs.
    runs: bool,
}

/// What [`Keeper::begin`] hands out: the tenure, and the lease's life that a claim is good for.
pub struct Begun {
    pub held: Held,
    pub life: u64,
}

impl Keeper {
    /// A renewer for this session, as `owner` names it. `mailbox`: notified when a caller waits for
    /// an answer of this session.
    pub fn new(
        catalog: Catalog,
        owner: &Owner,
        settings: LeaseSettings,
        mailbox: Arc<Notify>,
    ) -> Self {
        let heartbeat = Heartbeat {
            node: owner.node.clone(),
            lease_millis: owner.lease_millis,
            boot: settings.clock.boot(),
        };
        Self(Arc::new(Shared {
            catalog,
            settings,
            session: owner.session,
            heartbeat,
            until: AtomicU64::new(0),
            life: AtomicU64::new(0),
            tenures: Mutex::default(),
            turn: Default::default(),
            wake: Notify::new(),
            renewed: watch::Sender::new(()),
            mailbox,
        }))
    }

    /// Called before a dataset is claimed: when this returns, the session has a heartbeat that
    /// others can see. Revocations of earlier claims may exist, and are void.
    pub async fn begin(&self, dataset: DatasetId, claim: ClaimId) -> Result<Begun, CatalogError> {
        let shared = &self.0;
        let mut turn = shared.turn.lock().await;
        shared.renew(&mut turn).await?;
        let life = shared.life();
        let tenure = Arc::new(Tenure::new(shared.clone(), dataset, claim));
        shared.tenures.lock().insert(dataset, tenure.clone());
        let held = Held::new(tenure);
        if !std::mem::replace(&mut turn.runs, true) {
            tokio::spawn(keep(shared.clone()));
        }
        Ok(Begun { held, life })
    }
}

/// Renews until no volume of the pool is open.
async fn keep(shared: Arc<Shared>) {
    let mut failing = false;
    loop {
        shared.wait(failing).await;
        {
            let mut turn = shared.turn.lock().await;
            if shared.tenures.lock().is_empty() {
                turn.runs = false;
                return shared.sign_off(&turn).await;
            }
            failing = shared.renew_or_warn(&mut turn, failing).await;
        }
        failing |= !shared.confirm_all().await;
    }
}

impl Shared {
    fn now(&self) -> u64 {
        nanos(self.settings.clock.now())
    }

    pub fn is_valid(&self) -> bool {
        let until = self.until.load(Ordering::Acquire);
        self.now() < until
    }

    pub fn life(&self) -> u64 {
        self.life.load(Ordering::Acquire)
    }

    pub fn renew_soon(&self) {
        self.wake.notify_one();
    }

    pub fn renewed(&self) -> watch::Receiver<()> {
        self.renewed.subscribe()
    }

    /// Called when its volume is closed.
    pub fn forget(&self, tenure: &Arc<Tenure>) {
        let mut tenures = self.tenures.lock();
        if tenures.get(&tenure.dataset).is_some_and(|now| Arc::ptr_eq(now, tenure)) {
            tenures.remove(&tenure.dataset);
        }
        if tenures.is_empty() {
            self.wake.notify_one();
        }
    }

    /// Waits until a renewal is due or requested; while the store is unreachable, requests do not
    /// make it more frequent.
    async fn wait(&self, failing: bool) {
        if failing {
            return tokio::time::sleep(self.settings.retry()).await;
        }
        tokio::select! {
            () = tokio::time::sleep(self.settings.interval()) => {}
            () = self.wake.notified() => {}
        }
    }

    async fn renew_or_warn(&self, turn: &mut Turn, failing: bool) -> bool {
        match self.renew(turn).await {
            Ok(()) => {
                if failing {
                    tracing::info!(node = self.heartbeat.node, "the node's lease is renewed again");
                }
                false
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(
                        %error,
                        node = self.heartbeat.node,
                        "the node's lease cannot be renewed: unless it can within seconds, calls \
                         wait"
                    );
                }
                true
            }
        }
    }

    async fn renew(&self, turn: &mut Turn) -> Result<(), CatalogError> {
        let limit = self.settings.renewal_limit();
        match tokio::time::timeout(limit, self.renew_now(turn)).await {
            Ok(renewed) => renewed,
            Err(_) => Err(CatalogError::Stopped {
                what: format!("the renewal of the lease of node {}", self.heartbeat.node),
            }),
        }
    }

    async fn renew_now(&self, turn: &mut Turn) -> Result<(), CatalogError> {
        turn.number += 1;
        // Taken before the renewal is sent (R26).
        let sent = self.settings.clock.now();
        self.step("volume.lease.before-renewal").await?;
        self.catalog.put_heartbeat(self.session, turn.number, &self.heartbeat).await?;
        self.step("volume.lease.after-renewal").await?;
        let signs = self.catalog.node_signs(self.session).await?;
        if signs.requests > 0 {
            self.mailbox.notify_one();
        }
        self.heed(&signs).await?;
        self.extend(sent);
        let old: Vec<u64> =
            signs.heartbeats.iter().copied().filter(|number| *number < turn.number).collect();
        if let Err(error) = self.catalog.remove_heartbeats(self.session, &old).await {
            tracing::debug!(%error, "old heartbeats stay until the next renewal");
        }
        Ok(())
    }

    /// Ends claims that are revoked, before the renewal counts.
    async fn heed(&self, signs: &Signs) -> Result<(), CatalogError> {
        for claim in &signs.revocations {
            let revoked = self.tenures.lock().values().find(|tenure| tenure.is_of(*claim)).cloned();
            let Some(tenure) = revoked.filter(|tenure| !tenure.has_ended()) else { continue };
            if let Some(revocation) = self.catalog.revocation(self.session, *claim).await? {
                let (dataset, why, by) = (tenure.dataset, revocation.why, revocation.by);
                tracing::warn!(
                    %dataset,
                    ?why,
                    by,
                    "ownership of the volume was revoked: it is no longer served here"
                );
                tenure.end(End::Revoked(*claim));
                self.renewed.send_replace(());
            }
        }
        Ok(())
    }

    fn extend(&self, sent: Duration) {
        let until = nanos((sent + self.settings.lease).saturating_sub(self.settings.margin()));
        let (before, now) = (self.until.load(Ordering::Acquire), self.now());
        if now >= until {
            // The renewal took as long as the lease itself.
            return;
        }
        if now >= before {
            self.life.fetch_add(1, Ordering::AcqRel);
        }
        self.until.store(until, Ordering::Release);
        self.renewed.send_replace(());
    }

    /// Called after the lease expired: claims every record again that is still this session's.
    /// Returns whether all could be read.
    async fn confirm_all(&self) -> bool {
        let life = self.life();
        let tenures: Vec<Arc<Tenure>> = self
            .tenures
            .lock()
            .values()
            .filter(|tenure| tenure.needs_confirming(life))
            .cloned()
            .collect();
        if tenures.is_empty() {
            return true;
        }
        let confirms = futures::stream::iter(tenures)
            .map(|tenure| self.confirm(tenure, life))
            .buffer_unordered(CONFIRMS_AT_ONCE);
        let confirmed = confirms.fold(true, async |all, one| all && one).await;
        self.renewed.send_replace(());
        confirmed
    }

    async fn confirm(&self, tenure: Arc<Tenure>, life: u64) -> bool {
        let dataset = tenure.dataset;
        if let Err(error) = self.step("volume.lease.before-confirm").await {
            tracing::debug!(%error, "the dataset is claimed again with the next renewal");
            return false;
        }
        let mut another = false;
        let written = self.catalog.update_dataset(dataset, |record| {
            another = !tenure.renew(record);
            if another {
                return Err(CatalogError::Precondition {
                    what: format!("dataset {}", record.name),
                    why: "another owns it".to_owned(),
                });
            }
            Ok(())
        });
        match written.await {
            Ok(at) => {
                at.record.owner.iter().for_each(|owner| tenure.renewed(owner.claim));
                tenure.confirm(life);
            }
            Err(CatalogError::NotFound { .. }) => tenure.end(End::Taken),
            Err(_) if another => tenure.end(End::Taken),
            Err(error) => {
                tracing::warn!(
                    %dataset,
                    %error,
                    class = ?error.class(),
                    "after the lease had lapsed the volume waits until its record can be written"
                );
                return false;
            }
        }
        true
    }

    /// Called when no volume is open: an idle node makes no request, and leaves no heartbeat.
    async fn sign_off(&self, turn: &Turn) {
        self.until.store(0, Ordering::Release);
        if let Err(error) = self.catalog.remove_heartbeats(self.session, &[turn.number]).await {
            tracing::debug!(%error, "the last heartbeat stays until it is collected");
        }
    }

    async fn step(&self, name: &str) -> Result<(), CatalogError> {
        let failed = |injected| CatalogError::Bucket {
            what: "renewing the lease".to_owned(),
            source: BucketError::from(injected),
        };
        self.catalog.bucket().failpoints().step(name).await.map_err(failed)
    }
}

fn nanos(at: Duration) -> u64 {
    u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)
}
