//! The channel between nodes as the bucket knows it: where a node session accepts the calls that
//! others relay to it and the requests for its volumes, and the key by which each recognises the
//! other.
//!
//! The object is written before the session stages a shared volume of the pool, soon after it
//! opened another, or before it asks an owner for something; renewed while it lives, and removed at
//! its end. The collector removes one that a crash leaves. Whoever may write
//! to the bucket can write such an object: the bucket's credentials are what a node is trusted by.

use super::{ControlError, Pool};
use crate::catalog::{CatalogError, NodeChannel};
use crate::types::{DatasetId, PoolId, SessionId};
use data_encoding::HEXLOWER;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// The object is written again after this long: far below the day after which the collector takes
/// its session for ended.
const RENEWAL: Duration = Duration::from_secs(6 * 3600);
/// Between looks whether that is due.
pub(super) const RENEWAL_LOOK: Duration = Duration::from_secs(600);

/// The process is about to end.
const WITHDRAW_LIMIT: Duration = Duration::from_secs(2);

/// SHA-256 of a public key.
pub type KeySha256 = [u8; 32];

/// The channel of this process.
#[derive(Debug)]
pub struct Channel {
    node: String,
    session: SessionId,
    /// None: it accepts nothing, and only asks.
    address: Option<SocketAddr>,
    key: KeySha256,
    /// Each pool has a lock of its own: one whose store is slow holds no other up.
    published: parking_lot::Mutex<HashMap<PoolId, Arc<Mutex<Published>>>>,
    /// Nothing more is written.
    withdrawn: AtomicBool,
}

#[derive(Debug)]
struct Published {
    pool: Pool,
    /// Never used twice: a request that was given up may land late.
    number: u64,
    /// None: not written yet.
    at: Option<Instant>,
    /// [`NodeChannel::relays`].
    relays: bool,
}

/// The way to the owner of a shared volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerRoute {
    pub pool: PoolId,
    pub dataset: DatasetId,
    pub node: String,
    pub session: SessionId,
    pub address: SocketAddr,
    pub key: KeySha256,
}

impl Channel {
    /// `address`: where other nodes reach this one; `None`: nowhere.
    pub fn new(
        node: String,
        session: SessionId,
        address: Option<SocketAddr>,
        key: KeySha256,
    ) -> Self {
        Self {
            node,
            session,
            address,
            key,
            published: Default::default(),
            withdrawn: Default::default(),
        }
    }

    /// Makes the channel known in a pool, unless it is; again when its object is old.
    pub(super) async fn publish(&self, pool: &Pool) -> Result<(), ControlError> {
        self.publish_for(pool, false).await
    }

    /// As [`Self::publish`], to those also who relay calls on shared volumes.
    pub(super) async fn publish_for_relays(&self, pool: &Pool) -> Result<(), ControlError> {
        self.publish_for(pool, true).await
    }

    async fn publish_for(&self, pool: &Pool, relays: bool) -> Result<(), ControlError> {
        let new = || Published { pool: pool.clone(), number: 0, at: None, relays };
        let entry = {
            let mut published = self.published.lock();
            published.entry(pool.id()).or_insert_with(|| Arc::new(Mutex::new(new()))).clone()
        };
        let mut entry = entry.lock().await;
        if self.withdrawn.load(Ordering::SeqCst) {
            return Err(ControlError::Unavailable("this process is about to end; retry".into()));
        }
        match entry.at {
            Some(at) if at.elapsed() < RENEWAL && entry.relays >= relays => Ok(()),
            _ => {
                entry.relays |= relays;
                self.write(&mut entry).await
            }
        }
    }

    /// Writes the objects again that are due, or gone: a collector with a wrong clock may have
    /// taken this session for ended.
    pub(super) async fn renew(&self) {
        let entries: Vec<_> = self.published.lock().values().cloned().collect();
        for entry in entries {
            let mut entry = entry.lock().await;
            if entry.at.is_some_and(|at| at.elapsed() < RENEWAL)
                && !matches!(entry.pool.catalog.channel(self.session).await, Ok(None))
            {
                continue;
            }
            if let Err(error) = self.write(&mut entry).await {
                let pool = &entry.pool.name;
                tracing::warn!(pool, %error, "cannot renew this node's channel; retrying");
            }
        }
    }

    async fn write(&self, entry: &mut Published) -> Result<(), ControlError> {
        entry.number += 1;
        let channel = NodeChannel {
            node: self.node.clone(),
            address: self.address,
            relays: entry.relays,
            key_sha256: HEXLOWER.encode(&self.key),
        };
        let catalog = &entry.pool.catalog;
        entry.pool.step("channel.before-publish").await?;
        catalog.put_channel(self.session, entry.number, &channel).await?;
        entry.pool.step("channel.after-publish").await?;
        entry.at = Some(Instant::now());
        if entry.number > 1
            && let Err(error) = catalog.remove_channels(self.session, entry.number).await
        {
            tracing::debug!(%error, "an earlier channel object stays until the next renewal");
        }
        Ok(())
    }

    /// Removes the objects, at the end of the session, within a time limit.
    pub async fn withdraw(&self) {
        self.withdrawn.store(true, Ordering::SeqCst);
        let removed = tokio::time::timeout(WITHDRAW_LIMIT, async {
            let published = std::mem::take(&mut *self.published.lock());
            for entry in published.into_values() {
                let entry = entry.lock().await;
                entry.pool.catalog.remove_channels(self.session, u64::MAX).await?;
            }
            Ok::<_, CatalogError>(())
        });
        if !matches!(removed.await, Ok(Ok(()))) {
            tracing::debug!("a channel object stays until a collection removes it");
        }
    }
}

/// The use of a route to an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RouteFor {
    /// Calls on a shared volume.
    Relay,
    Requests,
}

/// The way to a session that owns `dataset`; `None`: it has no channel for that.
pub(super) async fn route(
    pool: &Pool,
    dataset: DatasetId,
    session: SessionId,
    wanted: RouteFor,
) -> Result<Option<OwnerRoute>, ControlError> {
    let Some(channel) = pool.catalog.channel(session).await? else { return Ok(None) };
    if wanted == RouteFor::Relay && !channel.relays {
        return Ok(None);
    }
    let (Some(key), Some(address)) = (key_of(&channel), channel.address) else { return Ok(None) };
    Ok(Some(OwnerRoute { pool: pool.id(), dataset, node: channel.node, session, address, key }))
}

/// The key of a channel; `None`: the object holds none.
pub fn key_of(channel: &NodeChannel) -> Option<KeySha256> {
    HEXLOWER.decode(channel.key_sha256.as_bytes()).ok()?.try_into().ok()
}
