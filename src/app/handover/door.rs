//! The side of the process that serves.

use super::HandoverError;
use super::channel::{self, Channel};
use super::message::{Hello, Message, VERSION};
use super::sockets::Sockets;
use crate::app::state_dir::{StateDir, StateFolder};
use parking_lot::Mutex;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};

/// Time limit for each message that the other side can send or read at once.
pub(super) const STEP_LIMIT: Duration = Duration::from_secs(5);
/// Time limit for the new process to lock the state folder.
const TAKEN_LIMIT: Duration = Duration::from_secs(10);
/// Between tries to get the state folder back.
const LOCK_AGAIN: Duration = Duration::from_millis(100);
/// A pause after accept(2) fails: it is out of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// The same reason is logged again after this.
pub(super) const COMPLAIN_AGAIN: Duration = Duration::from_secs(60);

/// The socket to which the next process connects.
pub struct Door {
    listener: UnixListener,
    /// The reason why the last process was refused, and when that was logged: an incompatible
    /// process connects again and again.
    told: Mutex<Option<(String, Instant)>>,
}

/// A process that is ready to take over.
pub struct Successor {
    channel: Channel,
    pub hello: Hello,
}

impl Door {
    /// # Errors
    /// When the socket cannot be made.
    pub fn open(state: &StateDir) -> std::io::Result<Self> {
        Ok(Self { listener: channel::listen(state.path())?, told: Mutex::default() })
    }

    fn tell(&self, error: &HandoverError) {
        let (why, mut told) = (error.to_string(), self.told.lock());
        if told.as_ref().is_none_or(|(last, at)| *last != why || at.elapsed() > COMPLAIN_AGAIN) {
            tracing::warn!(
                why,
                "a process that wants to take over is turned away; this one goes on"
            );
            *told = Some((why, Instant::now()));
        }
    }

    /// Returns the next process that connects and is compatible; others get the reason for the
    /// refusal.
    pub async fn next(&self, fits: impl Fn(&Hello) -> Result<(), String>) -> Successor {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => match meet(stream, &fits).await {
                    Ok(successor) => return successor,
                    Err(error) => self.tell(&error),
                },
                Err(error) => {
                    tracing::warn!(%error, "nobody can take over at the moment");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn meet(
    stream: UnixStream,
    fits: &impl Fn(&Hello) -> Result<(), String>,
) -> Result<Successor, HandoverError> {
    let channel = Channel::over(stream)?;
    let hello = match channel.receive(STEP_LIMIT).await? {
        (Message::Hello(hello), _) => hello,
        (other, _) => return Err(other.unexpected("a greeting")),
    };
    match hello.common().and_then(|_| fits(&hello)) {
        Ok(()) => Ok(Successor { channel, hello }),
        Err(why) => {
            channel.send(&Message::Refused { why: why.clone() }, &[], STEP_LIMIT).await?;
            Err(HandoverError::Refused(why))
        }
    }
}

impl Successor {
    /// Accepts the process, which waits from now on.
    pub async fn accept(&self) -> Result<(), HandoverError> {
        let accepted =
            Message::Accepted { version: VERSION, program: env!("CARGO_PKG_VERSION").to_owned() };
        self.channel.send(&accepted, &[], STEP_LIMIT).await
    }

    /// This process goes on; the other may knock again.
    pub async fn refuse(self, why: String) {
        // The process may have ended.
        let _gone = self.channel.send(&Message::Refused { why }, &[], STEP_LIMIT).await;
    }

    /// Returns whether the process still waits.
    pub async fn is_there(&self) -> bool {
        self.channel.is_there().await
    }
}

/// Gives the turn to another process. This process must have stopped serving.
///
/// # Errors
/// The other process did not take the turn, which stays here.
pub async fn pass_on(
    successor: Successor,
    folder: &StateFolder,
    state: StateDir,
    sockets: &Sockets,
) -> Result<Standing, (StateDir, HandoverError)> {
    let channel = successor.channel;
    if let Err(error) = give(&channel, sockets).await {
        return Err((state, error));
    }
    drop(state);
    let taken = async {
        channel.send(&Message::Yours, &[], STEP_LIMIT).await?;
        match channel.receive(TAKEN_LIMIT).await? {
            (Message::Taken, _) => Ok(()),
            (other, _) => Err(other.unexpected("its taking")),
        }
    };
    let standing = |channel| Standing { channel, folder: folder.clone() };
    match taken.await {
        Ok(()) => Ok(standing(channel)),
        // The process that gets the lock now has the turn.
        Err(error) => match folder.try_lock() {
            Ok(Some(state)) => Err((state, error)),
            Ok(None) => Ok(standing(channel)),
            Err(failed) => {
                tracing::error!(
                    error = %format!("{failed:#}"),
                    "the state folder cannot be locked"
                );
                Ok(standing(channel))
            }
        },
    }
}

async fn give(channel: &Channel, sockets: &Sockets) -> Result<(), HandoverError> {
    for number in 0.. {
        let Some((message, fds)) = sockets.message(number)? else { break };
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        channel.send(&message, &fds, STEP_LIMIT).await?;
    }
    Ok(())
}

/// The turn is another process's.
pub struct Standing {
    channel: Channel,
    folder: StateFolder,
}

impl Standing {
    /// Waits until the other process serves.
    ///
    /// # Errors
    /// The other process ended before it served.
    pub async fn serving(&self) -> Result<(), HandoverError> {
        match self.channel.next().await? {
            (Message::Serving, _) => Ok(()),
            (other, _) => Err(other.unexpected("that it serves")),
        }
    }

    /// Waits until the other process has ended, and no third process has the turn.
    pub async fn turn(&self) -> StateDir {
        while self.channel.next().await.is_ok() {}
        loop {
            match self.folder.try_lock() {
                Ok(Some(state)) => return state,
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(
                        error = %format!("{error:#}"),
                        "the state folder cannot be locked"
                    )
                }
            }
            tokio::time::sleep(LOCK_AGAIN).await;
        }
    }
}
