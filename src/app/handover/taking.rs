//! The side of the new process.

use super::HandoverError;
use super::channel::Channel;
use super::door::{COMPLAIN_AGAIN, STEP_LIMIT};
use super::message::{Hello, Message};
use super::sockets::Sockets;
use crate::app::health::Health;
use crate::app::state_dir::{StateDir, StateFolder};
use crate::control::Pools;
use anyhow::Context;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Time limit for the serving process between its acceptance and its sockets: it flushes everything
/// to the store first.
const GIVING_LIMIT: Duration = Duration::from_secs(120);
/// Time for which the state folder may stay locked after it was handed over, or after the process
/// that had it went silent.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
const LOCK_AGAIN: Duration = Duration::from_millis(5);
/// Between knocks: whoever is asked holds its CSI calls back for a moment, so a refusal is not
/// answered with another knock at once.
const KNOCK_MIN: Duration = Duration::from_secs(2);
const KNOCK_MAX: Duration = Duration::from_secs(15);
/// Between looks whether the state folder is free.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The right to serve.
pub struct Turn {
    pub state: StateDir,
    /// Sockets inherited from the previous process.
    pub sockets: Arc<Sockets>,
    /// Another process, or an earlier life of this one, serves CSI calls until they come here.
    pub replaces: bool,
    predecessor: Option<Channel>,
}

impl Turn {
    /// Nobody had it before.
    pub fn first(state: StateDir) -> Self {
        Self { state, sockets: Arc::default(), replaces: false, predecessor: None }
    }

    /// The turn of a process to which serving came back.
    pub fn again(state: StateDir, sockets: Sockets) -> Self {
        Self { state, sockets: Arc::new(sockets), replaces: true, predecessor: None }
    }

    pub fn split(self) -> (StateDir, Arc<Sockets>, Predecessor) {
        (self.state, self.sockets, Predecessor(self.predecessor))
    }
}

/// The process before this one, which learns by this link of this one's end.
pub struct Predecessor(Option<Channel>);

impl Predecessor {
    /// Notifies the predecessor that every socket is served.
    pub async fn serving(&self) {
        if let Some(channel) = &self.0
            && let Err(error) = channel.send(&Message::Serving, &[], STEP_LIMIT).await
        {
            tracing::info!(%error, "the process before this one has ended");
        }
    }
}

/// Waits until this process may serve: the state folder is free, or the process that has it hands
/// over. `hello`: this process's description, given the pools that it has open. `patience`: time to
/// wait for a process that does not hand over; none: for ever. Returns `None` when stopped.
///
/// # Errors
/// The state folder cannot be used, or `patience` has passed.
pub async fn wait_for_turn(
    folder: &StateFolder,
    hello: impl Fn(Vec<String>) -> Hello,
    pools: &Pools,
    patience: Option<Duration>,
    health: &Health,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Turn>> {
    let started = Instant::now();
    let (mut told, mut pause) = ((String::new(), started), KNOCK_MIN);
    loop {
        if let Some(state) = folder.try_lock()? {
            return Ok(Some(Turn::first(state)));
        }
        let open = pools.iter().map(|pool| pool.id().to_string()).collect();
        let mut why = match take_over(folder, hello(open)).await {
            Ok(turn) => return Ok(Some(turn)),
            Err(error) => error.to_string(),
        };
        for (pool, reason) in pools.not_open() {
            why += &format!("; pool {pool} is not open yet: {reason}");
        }
        health.wait(why.clone());
        if why != told.0 || told.1.elapsed() > COMPLAIN_AGAIN {
            tracing::warn!(
                why,
                state = %folder.path().display(),
                "another process serves, and goes on: this one takes over when it can"
            );
            told = (why.clone(), Instant::now());
        }
        if patience.is_some_and(|patience| started.elapsed() > patience) {
            let at = folder.path().display();
            let why = format!(
                "another process uses it and does not hand over ({why}): stop that one, or give \
                 another --state-dir"
            );
            return Err(std::io::Error::new(std::io::ErrorKind::ResourceBusy, why))
                .with_context(|| format!("state folder {at}"));
        }
        let knock = Instant::now() + pause;
        pause = (pause * 2).min(KNOCK_MAX);
        while Instant::now() < knock {
            if let Some(state) = folder.try_lock()? {
                return Ok(Some(Turn::first(state)));
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }
}

async fn take_over(folder: &StateFolder, hello: Hello) -> Result<Turn, HandoverError> {
    let channel = Channel::connect(folder.path()).await?;
    channel.send(&Message::Hello(hello), &[], STEP_LIMIT).await?;
    match channel.receive(STEP_LIMIT).await? {
        (Message::Accepted { version, program }, _) => {
            tracing::info!(version, program, "the process before this one hands over");
        }
        (other, _) => return Err(other.unexpected("an answer")),
    }
    let sockets = Sockets::default();
    let given = receive(&channel, &sockets).await;
    match &given {
        // Given, or its end has freed the state folder.
        Ok(()) | Err(HandoverError::Ended) => {}
        Err(_) => return Err(given.err().unwrap_or(HandoverError::Ended)),
    }
    let Some(state) = lock(folder).await? else {
        // The predecessor goes on serving.
        return Err(given.err().unwrap_or(HandoverError::Silent(LOCK_LIMIT)));
    };
    if let Err(error) = channel.send(&Message::Taken, &[], STEP_LIMIT).await {
        tracing::info!(%error, "the process before this one has ended");
    }
    Ok(Turn { state, sockets: Arc::new(sockets), replaces: true, predecessor: Some(channel) })
}

async fn receive(channel: &Channel, sockets: &Sockets) -> Result<(), HandoverError> {
    loop {
        match channel.receive(GIVING_LIMIT).await? {
            (Message::Sockets(items), fds) => sockets.add(items, fds)?,
            (Message::Yours, _) => return Ok(()),
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
