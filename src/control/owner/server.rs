//! The owner's side of the mailbox.
//!
//! The mailbox is in the folder that each renewal of the session's lease lists, so that a request
//! is seen within a third of a lease at no cost: an idle volume costs its node's heartbeat and
//! nothing else. Where requests are likely it is polled more often ([`polling`]).
//!
//! [`polling`]: super::polling

use super::local::Local;
use super::long::LongRequests;
use super::mailbox::{BYTES_MAX, Message, REQUESTS_MAX, RequestStatus, decode_request};
use super::polling::Polling;
use crate::bucket::Bucket;
use crate::catalog::{mailbox_reply, mailbox_requests};
use crate::control::node::Mounts;
use crate::control::{ControlError, Pool, Pools};
use crate::volume::Volumes;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Replies that were not fetched for this long are removed.
const REPLY_AGE_MAX: Duration = Duration::from_secs(600);

/// Answers the requests in this session's mailboxes until stopped. `interval`: between polls while
/// requests are likely.
pub async fn serve_mailbox(
    pools: Pools,
    volumes: Volumes,
    mounts: Arc<dyn Mounts>,
    interval: Duration,
    stop: CancellationToken,
) {
    let local = Local { volumes: volumes.clone(), mounts };
    let mut server =
        MailboxServer { local, replied: HashMap::new(), long: LongRequests::default() };
    let mut polling = Polling::default();
    loop {
        let seen = tokio::select! {
            () = stop.cancelled() => return,
            () = volumes.requested() => true,
            () = tokio::time::sleep(interval) => false,
        };
        for pool in pools.iter() {
            if !polling.is_due(pool.id(), &volumes) && !seen {
                continue;
            }
            match server.poll(pool).await {
                Ok(0) => {}
                Ok(_) => polling.expect_more(pool.id()),
                Err(error) => {
                    tracing::warn!(
                        pool = pool.name,
                        %error,
                        "reading the mailbox failed: other processes wait for snapshots of volumes \
                         that are open here; retrying"
                    );
                }
            }
        }
    }
}

struct MailboxServer {
    local: Local,
    /// Keys of replies, to be removed when they are old.
    replied: HashMap<String, Instant>,
    long: LongRequests,
}

impl MailboxServer {
    /// Polls the mailbox in a pool. Returns the number of requests that it replied to.
    async fn poll(&mut self, pool: &Pool) -> Result<usize, ControlError> {
        let volumes = &self.local.volumes;
        if !volumes.has_any_of(pool.id()) {
            return Ok(0);
        }
        let (bucket, session) = (pool.catalog.bucket(), volumes.settings().session);
        let prefix = mailbox_requests(session);
        let mut waiting = bucket.list(&prefix).await?;
        waiting.sort_by_key(|listed| std::cmp::Reverse(listed.modified));
        let mut replied = 0;
        for listed in waiting.into_iter().take(REQUESTS_MAX) {
            let Some(id) = listed.key.strip_prefix(&prefix) else { continue };
            let Some(bytes) = bucket.get(&listed.key, BYTES_MAX).await? else { continue };
            let outcome = match decode_request(&bytes) {
                Ok(message) => self.answer(pool, message).await,
                Err(refused) => Some(refused),
            };
            let Some(outcome) = outcome else { continue };
            let key = mailbox_reply(session, id);
            bucket.put(&key, outcome.encode()?.into()).await?;
            bucket.delete(std::slice::from_ref(&listed.key)).await?;
            self.replied.insert(key, Instant::now());
            replied += 1;
        }
        self.long.tidy(&self.local.volumes);
        self.remove_old_replies(bucket).await?;
        Ok(replied)
    }

    /// `None`: the volume is not open, not yet or no longer; the asker waits, and then reads the
    /// record again.
    async fn answer(&mut self, pool: &Pool, message: Message) -> Option<RequestStatus> {
        let Message { dataset, request, start_token, .. } = message;
        if request.is_long() {
            let volume = self.local.volumes.get(dataset)?;
            return Some(self.long.answer(
                &self.local,
                &pool.catalog,
                volume,
                request,
                start_token,
            ));
        }
        Some(self.local.act(&pool.catalog, dataset, &request).await?.into())
    }

    async fn remove_old_replies(&mut self, bucket: &Bucket) -> Result<(), ControlError> {
        let old: Vec<String> = self
            .replied
            .iter()
            .filter(|(_, at)| at.elapsed() > REPLY_AGE_MAX)
            .map(|(key, _)| key.clone())
            .collect();
        if !old.is_empty() {
            bucket.delete(&old).await?;
            self.replied.retain(|key, _| !old.contains(key));
        }
        Ok(())
    }
}
