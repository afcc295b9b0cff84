//! The serving process's side of a hand-over, once it has decided: the transfer, and the standby.

use super::HandoverError;
use super::channel::Channel;
use super::listener::{STEP_LIMIT, Successor};
use super::message::Message;
use super::sockets::Sockets;
use crate::app::state_dir::{StateDir, StateFolder};
use std::os::fd::AsFd;
use std::time::Duration;

/// Time limit for the new process to lock the state folder.
const ACQUIRE_LIMIT: Duration = Duration::from_secs(10);
/// Between attempts to get the state folder back.
const LOCK_AGAIN: Duration = Duration::from_millis(100);

/// Makes another process the active one. This process serves nothing by now.
///
/// # Errors
/// The other process did not acquire the state folder: this one is still, or again, active.
pub async fn transfer(
    successor: Successor,
    folder: &StateFolder,
    state: StateDir,
    sockets: &Sockets,
) -> Result<Standby, (StateDir, HandoverError)> {
    let (channel, version) = (successor.channel, successor.version);
    if let Err(error) = give(&channel, sockets, version).await {
        return Err((state, error));
    }
    drop(state);
    let taken = async {
        channel.send(&Message::Released, &[], STEP_LIMIT).await?;
        match channel.receive(ACQUIRE_LIMIT).await? {
            (Message::Acquired, _) => Ok(()),
            (other, _) => Err(other.unexpected("Acquired")),
        }
    };
    let standby = |channel| Standby { channel, folder: folder.clone() };
    match taken.await {
        Ok(()) => Ok(standby(channel)),
        // The process that gets the lock now is the active one.
        Err(error) => match folder.try_lock() {
            Ok(Some(state)) => Err((state, error)),
            Ok(None) => Ok(standby(channel)),
            Err(failed) => {
                tracing::error!(
                    error = %format!("{failed:#}"),
                    "cannot lock the state folder"
                );
                Ok(standby(channel))
            }
        },
    }
}

async fn give(channel: &Channel, sockets: &Sockets, version: u16) -> Result<(), HandoverError> {
    for number in 0.. {
        let Some((message, fds)) = sockets.message(number, version)? else { break };
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        channel.send(&message, &fds, STEP_LIMIT).await?;
    }
    Ok(())
}

/// A process on standby: another one is active.
pub struct Standby {
    channel: Channel,
    folder: StateFolder,
}

impl Standby {
    /// Waits until the other process serves.
    ///
    /// # Errors
    /// The other process exited before.
    pub async fn serving(&self) -> Result<(), HandoverError> {
        match self.channel.next().await? {
            (Message::Serving, _) => Ok(()),
            (other, _) => Err(other.unexpected("Serving")),
        }
    }

    /// Waits until the other process has exited, and no other one is active.
    pub async fn until_active(&self) -> StateDir {
        while self.channel.next().await.is_ok() {}
        loop {
            match self.folder.try_lock() {
                Ok(Some(state)) => return state,
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(
                        error = %format!("{error:#}"),
                        "cannot lock the state folder"
                    );
                }
            }
            tokio::time::sleep(LOCK_AGAIN).await;
        }
    }
}
