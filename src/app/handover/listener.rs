//! The serving process's side of a hand-over, up to its decision.

use super::HandoverError;
use super::channel::{self, Channel};
use super::message::{Hello, Message};
use crate::app::state_dir::StateDir;
use parking_lot::Mutex;
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};

/// Time limit for a message that the other side can send or read without waiting.
pub(super) const STEP_LIMIT: Duration = Duration::from_secs(5);
/// A pause after accept(2) fails: it is out of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// After this time the same reason is logged again.
pub(super) const COMPLAIN_AGAIN: Duration = Duration::from_secs(60);

/// The socket on which the next process asks for a hand-over.
pub struct HandoverListener {
    listener: UnixListener,
    /// The reason why the last process was refused, and when that was logged: it asks again and
    /// again.
    warned: Mutex<Option<(String, Instant)>>,
}

/// A process that is ready to take over.
pub struct Successor {
    pub(super) channel: Channel,
    pub hello: Hello,
    /// The newest version of the protocol that both support.
    pub(super) version: u16,
}

impl HandoverListener {
    /// # Errors
    /// When the socket cannot be made.
    pub fn bind(state: &StateDir) -> std::io::Result<Self> {
        Ok(Self { listener: channel::listen(state.path())?, warned: Mutex::default() })
    }

    fn warn_once(&self, error: &HandoverError) {
        let (why, mut warned) = (error.to_string(), self.warned.lock());
        if warned.as_ref().is_none_or(|(last, at)| *last != why || at.elapsed() > COMPLAIN_AGAIN) {
            tracing::warn!(
                why,
                "refused a process that asked for a hand-over; this one keeps serving"
            );
            *warned = Some((why, Instant::now()));
        }
    }

    /// Returns the next process that asks and is compatible; others are refused with the reason.
    pub async fn next(&self, fits: impl Fn(&Hello) -> Result<(), String>) -> Successor {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => match meet(stream, &fits).await {
                    Ok(successor) => return successor,
                    Err(error) => self.warn_once(&error),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a hand-over request; retrying");
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
    match hello.common().and_then(|version| fits(&hello).map(|()| version)) {
        Ok(version) => Ok(Successor { channel, hello, version }),
        Err(why) => {
            channel.send(&Message::Refused { why: why.clone() }, &[], STEP_LIMIT).await?;
            Err(HandoverError::Refused(why))
        }
    }
}

impl Successor {
    /// Accepts the process, which waits from now on.
    pub async fn accept(&self) -> Result<(), HandoverError> {
        let accepted = Message::Accepted {
            version: self.version,
            program: env!("CARGO_PKG_VERSION").to_owned(),
        };
        self.channel.send(&accepted, &[], STEP_LIMIT).await
    }

    /// Refuses the process, which may ask again.
    pub async fn refuse(self, why: String) {
        // The process may have exited.
        let _gone = self.channel.send(&Message::Refused { why }, &[], STEP_LIMIT).await;
    }

    /// Returns whether the process still waits.
    pub async fn is_there(&self) -> bool {
        self.channel.is_there().await
    }
}
