//! The new process's side of a hand-over.

use super::HandoverError;
use super::channel::Channel;
use super::listener::{COMPLAIN_AGAIN, STEP_LIMIT};
use super::message::{Hello, Message};
use super::sockets::Sockets;
use crate::app::state_dir::{StateDir, StateFolder};
use crate::control::Pools;
use crate::types::Backoff;
use anyhow::Context;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Time limit for the serving process between accepting and sending its sockets: it flushes to the
/// store first.
const GIVING_LIMIT: Duration = Duration::from_secs(120);
/// Time for which the state folder may stay locked after it was released, or after its process went
/// silent.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
const LOCK_AGAIN: Duration = Duration::from_millis(5);
/// Between requests: the process that is asked holds its CSI calls for a moment, so a refusal is
/// not followed by another request at once.
const ASK_MIN: Duration = Duration::from_secs(2);
const ASK_MAX: Duration = Duration::from_secs(15);
/// Between attempts to lock the state folder.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The right to serve, with everything that came with it.
pub struct Activation {
    pub state: StateDir,
    /// Sockets of the previous process.
    pub sockets: Arc<Sockets>,
    /// Another process, or an earlier active period of this one, serves CSI calls until this one
    /// does.
    pub replaces: bool,
    predecessor: Option<Channel>,
}

impl Activation {
    /// No process was active before.
    pub fn first(state: StateDir) -> Self {
        Self { state, sockets: Arc::default(), replaces: false, predecessor: None }
    }

    /// This process is active again.
    pub fn resumed(state: StateDir, sockets: Sockets) -> Self {
        Self { state, sockets: Arc::new(sockets), replaces: true, predecessor: None }
    }

    pub fn split(self) -> (StateDir, Arc<Sockets>, Predecessor) {
        (self.state, self.sockets, Predecessor(self.predecessor))
    }
}

/// The previous process, which notices by this connection that this one exits.
pub struct Predecessor(Option<Channel>);

impl Predecessor {
    /// Tells it that this process serves on every socket.
    pub async fn serving(&self) {
        if let Some(channel) = &self.0
            && let Err(error) = channel.send(&Message::Serving, &[], STEP_LIMIT).await
        {
            tracing::info!(%error, "the previous process exited");
        }
    }
}

/// Waits until this process may serve: the state folder is free, or the active process hands over.
/// `hello` describes this process, given the pools that it has open. `patience` limits the wait for
/// a process that does not hand over. Returns `None` once `stop` is cancelled.
///
/// # Errors
/// The state folder cannot be used, or `patience` has passed.
pub async fn wait_until_active(
    folder: &StateFolder,
    hello: impl Fn(Vec<String>) -> Hello,
    pools: &Pools,
    patience: Option<Duration>,
    waiting: impl Fn(String),
    stop: &CancellationToken,
) -> anyhow::Result<Option<Activation>> {
    let started = Instant::now();
    let mut warned = (String::new(), started);
    let mut backoff = Backoff::new(ASK_MIN, ASK_MAX);
    loop {
        if let Some(state) = folder.try_lock()? {
            return Ok(Some(Activation::first(state)));
        }
        let open = pools.iter().map(|pool| pool.id().to_string()).collect();
        let mut why = match request(folder, hello(open)).await {
            Ok(active) => return Ok(Some(active)),
            Err(error) => error.to_string(),
        };
        for (pool, reason) in pools.not_open() {
            why += &format!("; pool {pool} is not open yet: {reason}");
        }
        waiting(why.clone());
        if why != warned.0 || warned.1.elapsed() > COMPLAIN_AGAIN {
            tracing::warn!(
                why,
                state = %folder.path().display(),
                "another process keeps serving; retrying the hand-over"
            );
            warned = (why.clone(), Instant::now());
        }
        if patience.is_some_and(|patience| started.elapsed() > patience) {
            let at = folder.path().display();
            let why = format!(
                "another process uses it and does not hand over ({why}): stop that process, or \
                 give another --state-dir"
            );
            return Err(std::io::Error::new(std::io::ErrorKind::ResourceBusy, why))
                .with_context(|| format!("state folder {at}"));
        }
        let ask_at = Instant::now() + backoff.pause();
        while Instant::now() < ask_at {
            if let Some(state) = folder.try_lock()? {
                return Ok(Some(Activation::first(state)));
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
        }
    }
}

async fn request(folder: &StateFolder, hello: Hello) -> Result<Activation, HandoverError> {
    let channel = Channel::connect(folder.path()).await?;
    channel.send(&Message::Hello(hello), &[], STEP_LIMIT).await?;
    match channel.receive(STEP_LIMIT).await? {
        (Message::Accepted { version, program }, _) => {
            tracing::info!(version, program, "the previous process is handing over");
        }
        (other, _) => return Err(other.unexpected("an answer")),
    }
    let sockets = Sockets::default();
    let given = receive(&channel, &sockets).await;
    match &given {
        // Released, or its exit has unlocked the state folder.
        Ok(()) | Err(HandoverError::Ended) => {}
        Err(_) => return Err(given.err().unwrap_or(HandoverError::Ended)),
    }
    let Some(state) = lock(folder).await? else {
        // The active process keeps serving.
        return Err(given.err().unwrap_or(HandoverError::Silent(LOCK_LIMIT)));
    };
    if let Err(error) = channel.send(&Message::Acquired, &[], STEP_LIMIT).await {
        tracing::info!(%error, "the previous process exited");
    }
    Ok(Activation { state, sockets: Arc::new(sockets), replaces: true, predecessor: Some(channel) })
}

async fn receive(channel: &Channel, sockets: &Sockets) -> Result<(), HandoverError> {
    loop {
        match channel.receive(GIVING_LIMIT).await? {
            (Message::Sockets(items), fds) => sockets.add(items, fds)?,
            (Message::Released, _) => return Ok(()),
            (other, _) => return Err(other.unexpected("a socket")),
        }
    }
}

async fn lock(folder: &StateFolder) -> Result<Option<StateDir>, HandoverError> {
    let since = Instant::now();
    loop {
        match folder.try_lock() {
            Ok(Some(state)) => return Ok(Some(state)),
            Ok(None) if since.elapsed() < LOCK_LIMIT => tokio::time::sleep(LOCK_AGAIN).await,
            Ok(None) => return Ok(None),
            Err(error) => return Err(std::io::Error::other(format!("{error:#}")).into()),
        }
    }
}
