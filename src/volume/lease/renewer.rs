//! The lease of this session in one pool: renewed while volumes are open there. After it has
//! expired, every dataset that the session owns is claimed again.

use super::LeaseSettings;
use super::ownership::{LeaseGuard, Ownership, OwnershipEnd};
use crate::bucket::BucketError;
use crate::catalog::{Catalog, CatalogError, Heartbeat, NodeStatus, Owner};
use crate::types::{ClaimId, Classify, DatasetId, SessionId};
use futures::StreamExt;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Records claimed again at once after the lease has expired.
const REACQUIRES_AT_ONCE: usize = 8;

/// The lease of this session in one pool. Cheap to clone.
#[derive(Clone)]
pub struct LeaseRenewer(Arc<RenewerState>);

/// The state of a renewer, shared by its handles, its tasks and the ownerships.
pub struct RenewerState {
    catalog: Catalog,
    settings: LeaseSettings,
    session: SessionId,
    heartbeat: Heartbeat,
    /// Answers may be given before this moment of the clock, in nanoseconds.
    until: AtomicU64,
    /// Counts how often the lease began, or began again after it had expired. Raised before
    /// `until` is.
    generation: AtomicU64,
    owned: Mutex<HashMap<DatasetId, Arc<Ownership>>>,
    /// Set while records are claimed again.
    reacquiring: AtomicBool,
    renewal: tokio::sync::Mutex<Renewal>,
    wake: Notify,
    renewed: watch::Sender<()>,
    /// Woken when a renewal's listing shows requests in this session's mailbox.
    mailbox: Arc<Notify>,
}

/// The state of renewals, locked for one renewal at a time.
#[derive(Default)]
struct Renewal {
    /// The number of the last heartbeat sent. Never used twice: a request that was given up may
    /// land late.
    number: u64,
    /// Set while the task runs.
    runs: bool,
    /// The last renewal failed.
    failed: bool,
}

/// A renewed lease, under which a dataset may be claimed.
pub struct Begun {
    pub guard: LeaseGuard,
    /// The generation of the lease that the claim will be good for.
    pub generation: u64,
}

impl LeaseRenewer {
    /// A renewer for this session, as `owner` names it. `mailbox` is notified when a request waits
    /// for this session.
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
        Self(Arc::new(RenewerState {
            catalog,
            settings,
            session: owner.session,
            heartbeat,
            until: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            owned: Mutex::default(),
            reacquiring: AtomicBool::new(false),
            renewal: Default::default(),
            wake: Notify::new(),
            renewed: watch::Sender::new(()),
            mailbox,
        }))
    }

    /// Renews the lease before a dataset is claimed, so that others see the session's heartbeat.
    /// Revocations of earlier claims may be there, and are void.
    pub async fn begin(&self, dataset: DatasetId, claim: ClaimId) -> Result<Begun, CatalogError> {
        let state = &self.0;
        let mut renewal = state.renewal.lock().await;
        state.renew(&mut renewal).await?;
        let generation = state.generation();
        let ownership = Arc::new(Ownership::new(state.clone(), dataset, claim));
        state.owned.lock().insert(dataset, ownership.clone());
        let guard = LeaseGuard::new(ownership);
        if !std::mem::replace(&mut renewal.runs, true) {
            tokio::spawn(renew_while_open(state.clone()));
        }
        Ok(Begun { guard, generation })
    }
}

/// Renews until no volume of the pool is open.
async fn renew_while_open(state: Arc<RenewerState>) {
    let mut failing = false;
    loop {
        state.wait(failing).await;
        {
            let mut renewal = state.renewal.lock().await;
            if state.owned.lock().is_empty() {
                renewal.runs = false;
                return state.stop_heartbeat(&renewal).await;
            }
            failing = state.renew_or_warn(&mut renewal, failing).await;
        }
        if !state.reacquiring.swap(true, Ordering::AcqRel) {
            tokio::spawn(reacquire_owned(state.clone()));
        }
    }
}

/// Claims every record again that needs it. Beside the renewals: hundreds of records may take
/// longer than a lease, which would expire again meanwhile, so that no claim would ever last.
async fn reacquire_owned(state: Arc<RenewerState>) {
    while !state.reacquire_all().await {
        tokio::time::sleep(state.settings.retry()).await;
    }
    state.reacquiring.store(false, Ordering::Release);
}

impl RenewerState {
    fn now(&self) -> u64 {
        nanos(self.settings.clock.now())
    }

    pub fn is_valid(&self) -> bool {
        let until = self.until.load(Ordering::Acquire);
        self.now() < until
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// For a call that waits for the lease, or for its record to be claimed again: that is under
    /// way beside the renewals, which more callers must not make more frequent.
    pub fn renew_soon(&self) {
        if !self.is_valid() || !self.reacquiring.load(Ordering::Acquire) {
            self.wake.notify_one();
        }
    }

    pub fn renewed(&self) -> watch::Receiver<()> {
        self.renewed.subscribe()
    }

    /// Drops an ownership whose volume is closed.
    pub fn forget(&self, ownership: &Arc<Ownership>) {
        let mut owned = self.owned.lock();
        if owned.get(&ownership.dataset).is_some_and(|now| Arc::ptr_eq(now, ownership)) {
            owned.remove(&ownership.dataset);
        }
        if owned.is_empty() {
            self.wake.notify_one();
        }
    }

    /// Waits until the next renewal is due, or somebody asks for one. After a failure only time
    /// counts, so that the number of callers does not make the requests to a store that is away
    /// more frequent.
    async fn wait(&self, failing: bool) {
        if failing {
            return tokio::time::sleep(self.settings.retry()).await;
        }
        tokio::select! {
            () = tokio::time::sleep(self.settings.interval()) => {}
            () = self.wake.notified() => {}
        }
    }

    async fn renew_or_warn(&self, renewal: &mut Renewal, failing: bool) -> bool {
        match self.renew(renewal).await {
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

    async fn renew(&self, renewal: &mut Renewal) -> Result<(), CatalogError> {
        let limit = self.settings.renewal_limit();
        let renewed = tokio::time::timeout(limit, self.renew_now(renewal)).await;
        let renewed = renewed.unwrap_or_else(|_| {
            Err(CatalogError::Stopped {
                what: format!("the renewal of the lease of node {}", self.heartbeat.node),
            })
        });
        renewal.failed = renewed.is_err();
        renewed
    }

    async fn renew_now(&self, renewal: &mut Renewal) -> Result<(), CatalogError> {
        // A session that cannot end a renewal, because the store refuses its listings or no answer
        // comes back, must not keep its datasets by heartbeats that still arrive.
        if renewal.failed && !self.is_valid() {
            self.catalog.node_status(self.session).await?;
        }
        renewal.number += 1;
        // Taken before the renewal is sent (R26).
        let sent = self.settings.clock.now();
        self.step("volume.lease.before-renewal").await?;
        self.catalog.put_heartbeat(self.session, renewal.number, &self.heartbeat).await?;
        self.step("volume.lease.after-renewal").await?;
        let status = self.catalog.node_status(self.session).await?;
        if status.requests > 0 {
            self.mailbox.notify_one();
        }
        self.apply_revocations(&status).await?;
        self.extend(sent);
        let old: Vec<u64> =
            status.heartbeats.iter().copied().filter(|number| *number < renewal.number).collect();
        if let Err(error) = self.catalog.remove_heartbeats(self.session, &old).await {
            tracing::debug!(%error, "old heartbeats stay until the next renewal");
        }
        Ok(())
    }

    /// Ends the ownership of every revoked claim, before the renewal counts.
    async fn apply_revocations(&self, status: &NodeStatus) -> Result<(), CatalogError> {
        for claim in &status.revocations {
            let revoked =
                self.owned.lock().values().find(|ownership| ownership.is_of(*claim)).cloned();
            let Some(ownership) = revoked.filter(|ownership| !ownership.has_ended()) else {
                continue;
            };
            if let Some(revocation) = self.catalog.revocation(self.session, *claim).await? {
                let (dataset, why, by) = (ownership.dataset, revocation.why, revocation.by);
                tracing::warn!(
                    %dataset,
                    ?why,
                    by,
                    "ownership revoked; stopped serving the volume"
                );
                ownership.end(OwnershipEnd::Revoked(*claim));
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
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        self.until.store(until, Ordering::Release);
        self.renewed.send_replace(());
    }

    /// After the lease has expired: claims every record again that still names this session.
    /// Returns whether every record could be read and written.
    async fn reacquire_all(&self) -> bool {
        let generation = self.generation();
        let owned: Vec<Arc<Ownership>> = self
            .owned
            .lock()
            .values()
            .filter(|ownership| ownership.needs_reacquiring(generation))
            .cloned()
            .collect();
        if owned.is_empty() {
            return true;
        }
        let reacquisitions = futures::stream::iter(owned)
            .map(|ownership| self.reacquire(ownership, generation))
            .buffer_unordered(REACQUIRES_AT_ONCE);
        let all_reacquired = reacquisitions.fold(true, async |all, one| all && one).await;
        self.renewed.send_replace(());
        all_reacquired
    }

    async fn reacquire(&self, ownership: Arc<Ownership>, generation: u64) -> bool {
        let dataset = ownership.dataset;
        if let Err(error) = self.step("volume.lease.before-reacquire").await {
            tracing::debug!(%error, "the dataset will be claimed again with the next renewal");
            return false;
        }
        let mut another = false;
        let written = self.catalog.update_dataset(dataset, |record| {
            another = !ownership.renew(record);
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
                at.record.owner.iter().for_each(|owner| ownership.renewed(owner.claim));
                ownership.confirm(generation);
            }
            Err(CatalogError::NotFound { .. }) => ownership.end(OwnershipEnd::Taken),
            Err(_) if another => ownership.end(OwnershipEnd::Taken),
            Err(error) => {
                tracing::warn!(
                    %dataset,
                    %error,
                    class = ?error.class(),
                    "the lease had expired: the calls of the volume wait until its record can be \
                     written"
                );
                return false;
            }
        }
        true
    }

    /// Removes the heartbeat: no volume is open, and an idle node makes no request.
    async fn stop_heartbeat(&self, renewal: &Renewal) {
        self.until.store(0, Ordering::Release);
        if let Err(error) = self.catalog.remove_heartbeats(self.session, &[renewal.number]).await {
            tracing::debug!(%error, "the last heartbeat stays until a collection removes it");
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
