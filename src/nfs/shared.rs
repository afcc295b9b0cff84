//! State that a server and its connections share: options, budgets, and the calls and mounts of
//! clients.

use super::budget::{Budget, Bytes, Limits};
use super::duplicate::Duplicates;
use super::mounted::Mounts;
use super::peer::{Peers, Trust};
use crate::fs::FsError;
use parking_lot::Mutex;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// The callers that are mapped to another user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Squash {
    #[default]
    Nobody,
    /// The superuser becomes this user and group, and root's group this group.
    Root { uid: u32, gid: u32 },
}

impl Squash {
    /// The superuser becomes the user and group that own nothing.
    pub const NOBODY: Self = Self::Root { uid: 65534, gid: 65534 };
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub peers: Peers,
    pub squash: Squash,
    pub limits: Limits,
    /// Time that a call waits for its export to open, or for the object store, before the client is
    /// told to retry. Below the client's time-out (`timeo=600` is a minute), or it would send
    /// everything again meanwhile.
    pub hold: Duration,
    /// Time for which a connection may neither take a reply nor finish a record it began.
    pub stall: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            peers: Peers::default(),
            squash: Squash::default(),
            limits: Limits::default(),
            hold: Duration::from_secs(40),
            stall: Duration::from_secs(60),
        }
    }
}

/// A connection between calls: no call has begun to arrive, and every earlier one is answered.
/// Another server, in this process or another, can adopt it.
#[derive(Debug)]
pub struct IdleConnection {
    pub stream: OwnedFd,
    pub trust: Trust,
}

/// The state that the connections of one server share.
pub struct Shared<T> {
    pub(super) table: T,
    pub(super) options: Options,
    pub(super) read_bytes: Bytes,
    pub(super) write_bytes: Bytes,
    pub(super) duplicates: Arc<Duplicates>,
    pub(super) mounts: Mounts,
    pub(super) stop: CancellationToken,
    /// Closes all connections at once; no further reply is sent.
    pub(super) cut: CancellationToken,
    /// Connections that are idle after a quiesce, for another server to adopt.
    idle: Mutex<Vec<IdleConnection>>,
    quiescing: AtomicBool,
    started: Instant,
    complained: AtomicU64,
}

/// Defects are logged at most this often: each is also an answer to a client.
const COMPLAIN_SECS: u64 = 10;

impl<T> Shared<T> {
    pub(super) fn new(table: T, options: Options, budget: &Budget) -> Self {
        Self {
            table,
            read_bytes: budget.read.clone(),
            write_bytes: budget.write.clone(),
            options,
            duplicates: Arc::default(),
            mounts: Mounts::default(),
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            idle: Mutex::default(),
            quiescing: AtomicBool::new(false),
            started: Instant::now(),
            complained: AtomicU64::new(0),
        }
    }

    /// Returns whether a connection that becomes idle is to be given to [`Self::add_idle`].
    pub(super) fn is_quiescing(&self) -> bool {
        self.quiescing.load(Ordering::Acquire)
    }

    pub(super) fn quiesce(&self) {
        self.quiescing.store(true, Ordering::Release);
    }

    pub(super) fn add_idle(&self, connection: IdleConnection) {
        self.idle.lock().push(connection);
    }

    pub(super) fn take_idle(&self) -> Vec<IdleConnection> {
        std::mem::take(&mut self.idle.lock())
    }

    /// Logs a defect, which no client can remedy.
    pub(super) fn complain(&self, error: &FsError) {
        let now = self.started.elapsed().as_secs() + COMPLAIN_SECS;
        let last = self.complained.load(Ordering::Relaxed);
        let due = now >= last + COMPLAIN_SECS;
        if due
            && self
                .complained
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            tracing::error!(%error, "a call failed; run `zerofs-csi check` on the dataset");
        }
    }
}
