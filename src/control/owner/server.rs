//! The owner's side: one server of requests, whichever carrier brings them, and the mailbox.
//!
//! The mailbox is in the folder that each renewal of the session's lease lists, so that a request
//! is seen within a third of a lease at no cost: an idle volume costs its node's heartbeat and
//! nothing else. Where requests are likely it is polled more often ([`polling`]).
//!
//! [`polling`]: super::polling

use super::channel;
use super::local::Local;
use super::long::LongRequests;
use super::mailbox::{BYTES_MAX, Message, RequestStatus, decode_request};
use super::polling::Polling;
use super::request::OwnerRequest;
use crate::bucket::{Bucket, Listed};
use crate::catalog::{mailbox_reply, mailbox_requests};
use crate::control::channel::Channel;
use crate::control::locks::KeyedMutex;
use crate::control::node::Mounts;
use crate::control::{ControlError, Pool, Pools};
use crate::fs::{FREEZE_MAX, Progress};
use crate::types::{Class, DatasetId, PoolId};
use crate::volume::Volumes;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Time for which a request waits for another one for the same volume.
const TURN_LIMIT: Duration = Duration::from_secs(20);
/// Between polls while a group snapshot is made: its volumes are frozen until its last request was
/// seen.
const URGENT_INTERVAL: Duration = Duration::from_millis(100);
/// The time within which another request of a group snapshot follows.
const URGENT: Duration = FREEZE_MAX;
/// The same after the last one, which comes to all volumes at once.
const URGENT_END: Duration = Duration::from_millis(500);
/// Requests of mailboxes that are carried out at once.
const REQUESTS_AT_ONCE: usize = 64;
/// Replies that were not fetched for this long are removed.
const REPLY_AGE_MAX: Duration = Duration::from_secs(600);

/// Carries out the requests of other processes for the volumes that are open here.
pub struct RequestServer {
    pools: Pools,
    local: Local,
    long: Mutex<LongRequests>,
    /// One request at a time for a dataset, in their order: of two that apply its properties the
    /// later one read the newer record, and one checkpoint is made of one name.
    datasets: KeyedMutex<DatasetId>,
    /// Requests that are carried out for connections of the channel.
    acting: TaskTracker,
    /// Where other processes reach this server beside the mailbox.
    channel: Option<Arc<Channel>>,
}

impl RequestServer {
    pub fn new(pools: Pools, volumes: Volumes, mounts: Arc<dyn Mounts>) -> Self {
        Self {
            pools,
            local: Local { volumes, mounts },
            long: Default::default(),
            datasets: Default::default(),
            acting: Default::default(),
            channel: None,
        }
    }

    /// Makes the channel known in the bucket of each pool of which a volume is open.
    #[must_use]
    pub fn with_channel(self, channel: Option<Arc<Channel>>) -> Self {
        Self { channel, ..self }
    }

    /// Answers the requests of one connection of the channel until it ends. Who asks has been
    /// recognised as a session of the pool.
    ///
    /// # Errors
    /// The connection broke, or was idle for too long.
    pub async fn serve_connection(
        self: &Arc<Self>,
        pool: PoolId,
        stream: &mut (impl AsyncRead + AsyncWrite + Send + Unpin),
    ) -> std::io::Result<()> {
        let pool = self.pools.by_id(pool).map_err(std::io::Error::other)?;
        match pool {
            Some(pool) => channel::answer(stream, |message| self.act_apart(pool, message)).await,
            None => Ok(()),
        }
    }

    /// As [`Self::answer`], in a task: it is completed whoever waits.
    async fn act_apart(
        self: &Arc<Self>,
        pool: &Pool,
        message: Message,
    ) -> std::io::Result<Option<RequestStatus>> {
        let (server, pool) = (self.clone(), pool.clone());
        let acting = self.acting.spawn(async move { server.answer(&pool, message).await });
        acting.await.map_err(std::io::Error::other)
    }

    /// Waits until what was begun for connections of the channel has ended, or the time is over.
    pub async fn finish(&self, limit: Duration) {
        self.acting.close();
        if tokio::time::timeout(limit, self.acting.wait()).await.is_err() {
            tracing::warn!("requests of other processes did not end in time");
        }
    }

    /// Answers the requests in this session's mailboxes until stopped, and then those that it has
    /// begun. `interval`: between polls while requests are likely.
    pub async fn serve_mailbox(self: Arc<Self>, interval: Duration, stop: CancellationToken) {
        let mailbox = Arc::new(MailboxServer::new(self.clone()));
        let mut polling = Polling::default();
        let volumes = &self.local.volumes;
        loop {
            let interval =
                if mailbox.is_urgent() { interval.min(URGENT_INTERVAL) } else { interval };
            let seen = tokio::select! {
                () = stop.cancelled() => break,
                () = volumes.requested() => true,
                () = tokio::time::sleep(interval) => false,
                // The interval is shorter from now on.
                () = mailbox.hurry.notified() => false,
            };
            for pool in self.pools.iter() {
                self.publish(pool).await;
                if mailbox.replied_in(pool.id()) {
                    polling.expect_more(pool.id());
                }
                if !polling.is_due(pool.id(), volumes) && !seen {
                    continue;
                }
                if let Err(error) = mailbox.poll(pool).await {
                    tracing::warn!(
                        pool = pool.name,
                        %error,
                        "reading the mailbox failed: other processes wait for snapshots of \
                         volumes that are open here; retrying"
                    );
                }
            }
        }
        mailbox.tasks.close();
        mailbox.tasks.wait().await;
    }

    async fn publish(&self, pool: &Pool) {
        let Some(channel) = &self.channel else { return };
        if self.local.volumes.has_any_of(pool.id())
            && let Err(error) = channel.publish(pool).await
        {
            tracing::warn!(
                pool = pool.name,
                %error,
                "cannot make this node's channel known: other processes ask by mailbox; retrying"
            );
        }
    }

    /// A volume that is open is acted on for its own pool alone: whoever asks has that pool's
    /// credentials, and no others. `None`: this node's lease has expired, so that another may have
    /// the volume by now.
    fn refuses(&self, pool: &Pool, dataset: DatasetId) -> Option<Option<RequestStatus>> {
        let Some(volume) = self.local.volumes.get(dataset) else { return Some(None) };
        if volume.pool != pool.id() {
            let why = format!("dataset {dataset} is not of pool {}", pool.id());
            return Some(Some(RequestStatus::failed(Class::Precondition, why)));
        }
        volume.claim.holds().then_some(None)
    }

    /// `None`: the volume is not open, not yet or no longer; the asker waits, and then reads the
    /// record again.
    async fn answer(&self, pool: &Pool, message: Message) -> Option<RequestStatus> {
        let Message { dataset, request, start_token, .. } = message;
        if let Some(refused) = self.refuses(pool, dataset)? {
            return Some(refused);
        }
        let _turn = match request.ends_freeze() {
            // A request that waits for the end of a freeze may have the turn.
            true => None,
            false => {
                let locked = tokio::time::timeout(TURN_LIMIT, self.datasets.lock(dataset)).await;
                let Ok(turn) = locked else {
                    let why = "another request for the volume is in progress; retry";
                    return Some(RequestStatus::failed(Class::InProgress, why));
                };
                Some(turn)
            }
        };
        if let OwnerRequest::StopRestore { call } = request {
            self.long.lock().stop_restore(dataset, call);
        }
        if request.is_long() {
            let volume = self.local.volumes.get(dataset)?;
            let mut long = self.long.lock();
            return Some(long.answer(&self.local, &pool.catalog, volume, request, start_token));
        }
        let progress = Progress::default();
        Some(self.local.act(&pool.catalog, dataset, &request, &progress).await?.into())
    }
}

/// The mailboxes of one session. Each request is a task of its own: one that takes long keeps no
/// other waiting, above all not one of a group snapshot, whose volumes are frozen meanwhile.
struct MailboxServer {
    server: Arc<RequestServer>,
    tasks: TaskTracker,
    permits: Arc<Semaphore>,
    /// Keys of the requests that have a task.
    begun: Mutex<HashSet<String>>,
    /// Pools in which there was a reply since the last poll.
    replied_in: Mutex<HashSet<PoolId>>,
    /// Keys of replies, to be removed when they are old.
    replied: Mutex<HashMap<String, Instant>>,
    /// Until when it polls often.
    urgent_until: Mutex<Option<Instant>>,
    /// Notified when that begins.
    hurry: Notify,
}

/// A request that has a task. Without it, also after a panic, the request is read again.
struct Begun {
    mailbox: Arc<MailboxServer>,
    key: String,
}

impl Begun {
    fn new(mailbox: Arc<MailboxServer>, key: String) -> Self {
        mailbox.begun.lock().insert(key.clone());
        Self { mailbox, key }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.mailbox.begun.lock().remove(&self.key);
    }
}

impl MailboxServer {
    fn new(server: Arc<RequestServer>) -> Self {
        Self {
            server,
            tasks: TaskTracker::new(),
            permits: Arc::new(Semaphore::new(REQUESTS_AT_ONCE)),
            begun: Mutex::default(),
            replied_in: Mutex::default(),
            replied: Mutex::default(),
            urgent_until: Mutex::default(),
            hurry: Notify::new(),
        }
    }

    fn is_urgent(&self) -> bool {
        self.urgent_until.lock().is_some_and(|until| Instant::now() < until)
    }

    /// Returns whether there was a reply since this was asked.
    fn replied_in(&self, pool: PoolId) -> bool {
        self.replied_in.lock().remove(&pool)
    }

    /// Begins to carry out the new requests in a pool, the newest first: those are still waited
    /// for. The rest is left to the next poll.
    async fn poll(self: &Arc<Self>, pool: &Pool) -> Result<(), ControlError> {
        let volumes = &self.server.local.volumes;
        if !volumes.has_any_of(pool.id()) {
            return Ok(());
        }
        let bucket = pool.catalog.bucket();
        let mut waiting = bucket.list(&mailbox_requests(volumes.settings().session)).await?;
        waiting.sort_by_key(|listed| std::cmp::Reverse(listed.modified));
        for Listed { key, .. } in waiting {
            if self.begun.lock().contains(&key) {
                continue;
            }
            let Ok(permit) = self.permits.clone().try_acquire_owned() else { break };
            let begun = Begun::new(self.clone(), key.clone());
            let (mailbox, pool) = (self.clone(), pool.clone());
            self.tasks.spawn(async move {
                let _held = (permit, begun);
                match Box::pin(mailbox.reply(&pool, &key)).await {
                    Ok(true) => drop(mailbox.replied_in.lock().insert(pool.id())),
                    Ok(false) => {}
                    Err(error) => tracing::warn!(
                        pool = pool.name,
                        %error,
                        "a request of another process was not answered; it is read again"
                    ),
                }
            });
        }
        self.server.long.lock().tidy(volumes);
        self.remove_old_replies(bucket).await
    }

    /// Replies to a request; `false`: it is gone, or waits for the volume.
    async fn reply(&self, pool: &Pool, request: &String) -> Result<bool, ControlError> {
        let bucket = pool.catalog.bucket();
        let Some((_, id)) = request.rsplit_once('/') else { return Ok(false) };
        let Some(bytes) = bucket.get(request, BYTES_MAX).await? else { return Ok(false) };
        let outcome = match decode_request(&bytes) {
            Ok(message) => {
                self.expect_after(&message.request);
                self.server.answer(pool, message).await
            }
            Err(refused) => Some(refused),
        };
        let Some(outcome) = outcome else { return Ok(false) };
        let key = mailbox_reply(self.server.local.volumes.settings().session, id);
        bucket.put(&key, outcome.encode()?.into()).await?;
        bucket.delete(std::slice::from_ref(request)).await?;
        self.replied.lock().insert(key, Instant::now());
        Ok(true)
    }

    fn expect_after(&self, request: &OwnerRequest) {
        if request.is_urgent() {
            let is_last = matches!(request, OwnerRequest::Thaw { .. });
            let until = Instant::now() + if is_last { URGENT_END } else { URGENT };
            *self.urgent_until.lock() = Some(until);
            self.hurry.notify_one();
        }
    }

    async fn remove_old_replies(&self, bucket: &Bucket) -> Result<(), ControlError> {
        let old: Vec<String> = {
            let replied = self.replied.lock();
            let old = replied.iter().filter(|(_, at)| at.elapsed() > REPLY_AGE_MAX);
            old.map(|(key, _)| key.clone()).collect()
        };
        if !old.is_empty() {
            bucket.delete(&old).await?;
            self.replied.lock().retain(|key, _| !old.contains(key));
        }
        Ok(())
    }
}
