//! One connection between the two processes: messages with descriptors, each whole or not at all.

use super::message::{BYTES_MAX, FDS_MAX, Message};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::fs::File;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

/// The name of the hand-over socket in the state folder.
const NAME: &str = "handover.sock";
/// Processes that may wait at once; they are answered one after another.
const BACKLOG: i32 = 8;

#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// No process listens.
    #[error("no process listens on the hand-over socket")]
    Nobody,
    #[error("the other process refused: {0}")]
    Refused(String),
    #[error("the other process exited or gave up")]
    Ended,
    #[error("the other process did not answer within {0:?}")]
    Silent(Duration),
    #[error("unexpected message from the other process: {0}")]
    Unintelligible(String),
    #[error("the other process belongs to another user (uid {0})")]
    Stranger(u32),
    #[error("hand-over socket: {0}")]
    Io(#[from] Error),
}

pub(super) struct Channel {
    stream: UnixStream,
}

fn socket() -> Result<OwnedFd, Error> {
    // SEQPACKET keeps each message whole, with its descriptors.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// The address of a file in a folder, however long the folder's path is: a socket's has at most 107
/// bytes.
fn address(dir: &File, name: &str) -> Result<SocketAddrUnix, Error> {
    Ok(SocketAddrUnix::new(PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd())))?)
}

/// Creates the hand-over socket of a state folder, in place of one that a dead process left.
pub(super) fn listen(state_dir: &Path) -> Result<UnixListener, Error> {
    let dir = File::open(state_dir)?;
    let draft = format!(".{NAME}-{:x}-{:08x}", std::process::id(), rand::random::<u32>());
    let listener = socket()?;
    rustix::net::bind(&listener, &address(&dir, &draft)?)?;
    // Only our own user opens it.
    rustix::fs::chmodat(
        &dir,
        &draft,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        rustix::fs::AtFlags::empty(),
    )?;
    rustix::net::listen(&listener, BACKLOG)?;
    rustix::fs::renameat(&dir, &draft, &dir, NAME)?;
    UnixListener::from_std(listener.into())
}

impl Channel {
    /// Connects to the hand-over socket of a state folder.
    pub async fn connect(state_dir: &Path) -> Result<Self, HandoverError> {
        let dir = File::open(state_dir)?;
        let socket = socket()?;
        match rustix::net::connect(&socket, &address(&dir, NAME)?) {
            Ok(()) => {}
            Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT) => {
                return Err(HandoverError::Nobody);
            }
            // The queue of the listener is full.
            Err(rustix::io::Errno::AGAIN) => return Err(HandoverError::Silent(Duration::ZERO)),
            Err(error) => return Err(Error::from(error).into()),
        }
        Self::over(UnixStream::from_std(socket.into())?)
    }

    /// A connection whose other end must be our own user, or root.
    pub fn over(stream: UnixStream) -> Result<Self, HandoverError> {
        let uid = stream.peer_cred()?.uid();
        if uid != 0 && uid != rustix::process::geteuid().as_raw() {
            return Err(HandoverError::Stranger(uid));
        }
        Ok(Self { stream })
    }

    pub async fn send(
        &self,
        message: &Message,
        fds: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(), HandoverError> {
        let bytes = message.encode()?;
        let sent = self.stream.async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    "too many descriptors for one message",
                ));
            }
            Ok(rustix::net::sendmsg(
                &self.stream,
                &[IoSlice::new(&bytes)],
                &mut control,
                SendFlags::NOSIGNAL,
            )?)
        });
        match tokio::time::timeout(limit, sent).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error))
                if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) =>
            {
                Err(HandoverError::Ended)
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(HandoverError::Silent(limit)),
        }
    }

    pub async fn receive(&self, limit: Duration) -> Result<(Message, Vec<OwnedFd>), HandoverError> {
        match tokio::time::timeout(limit, self.next()).await {
            Ok(received) => received,
            Err(_) => Err(HandoverError::Silent(limit)),
        }
    }

    /// The next message, without a limit.
    pub async fn next(&self) -> Result<(Message, Vec<OwnedFd>), HandoverError> {
        let received = self.stream.async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut bytes = vec![0; BYTES_MAX];
            let got = rustix::net::recvmsg(
                &self.stream,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
            )?;
            let mut fds = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(more) = message {
                    fds.extend(more);
                }
            }
            if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
                return Err(Error::new(ErrorKind::InvalidData, "a message exceeds the limits"));
            }
            bytes.truncate(got.bytes);
            Ok((bytes, fds))
        });
        let (bytes, fds) = match received.await {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                return Err(HandoverError::Ended);
            }
            Err(error) => return Err(error.into()),
        };
        // No message is empty.
        if bytes.is_empty() {
            return Err(HandoverError::Ended);
        }
        Ok((Message::decode(&bytes)?, fds))
    }

    /// Returns whether the other process still holds its end.
    pub async fn is_there(&self) -> bool {
        !matches!(tokio::time::timeout(Duration::ZERO, self.next()).await, Ok(Err(_)))
    }
}
