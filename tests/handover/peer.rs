//! The other side of a hand-over, by its bytes.

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

pub struct Peer(OwnedFd);

fn socket() -> OwnedFd {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .unwrap()
}

impl Peer {
    /// Connects like a new process.
    pub fn connect(state: &Path) -> Self {
        let peer = socket();
        rustix::net::connect(&peer, &SocketAddrUnix::new(state.join("handover.sock")).unwrap())
            .unwrap();
        Self(peer)
    }

    pub fn send(&self, text: &str) {
        self.send_with(text, None);
    }

    pub fn send_with(&self, text: &str, fd: Option<&OwnedFd>) {
        let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        rustix::net::sendmsg(
            &self.0,
            &[IoSlice::new(text.as_bytes())],
            &mut control,
            SendFlags::NOSIGNAL,
        )
        .unwrap();
    }

    /// The next message; empty if the other side has closed.
    pub fn receive(&self) -> (String, Vec<OwnedFd>) {
        rustix::net::sockopt::set_socket_timeout(
            &self.0,
            rustix::net::sockopt::Timeout::Recv,
            Some(crate::support::program::LIMIT),
        )
        .unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = vec![0; 64 << 10];
        let got = rustix::net::recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let got = match got {
            Ok(got) => got,
            Err(rustix::io::Errno::CONNRESET) => return (String::new(), vec![]),
            Err(error) => panic!("nothing arrives: {error}"),
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                fds.extend(more);
            }
        }
        bytes.truncate(got.bytes);
        (String::from_utf8(bytes).unwrap(), fds)
    }

    #[track_caller]
    pub fn expect(&self, start: &str) -> Vec<OwnedFd> {
        let (text, fds) = self.receive();
        assert!(text.starts_with(start), "{text:?} where {start:?} belongs");
        fds
    }
}

/// The listener of a process that serves.
pub struct Listener(OwnedFd);

impl Listener {
    pub fn bind(state: &Path) -> Self {
        let (socket, path) = (socket(), state.join("handover.sock"));
        std::fs::remove_file(&path).ok();
        rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        rustix::net::listen(&socket, 8).unwrap();
        Self(socket)
    }

    pub fn next(&self) -> Peer {
        Peer(rustix::net::accept(&self.0).unwrap())
    }
}

pub fn try_lock(state: &Path) -> Option<File> {
    let file =
        File::options().create(true).truncate(false).write(true).open(state.join("lock")).unwrap();
    file.try_lock().ok().map(|()| file)
}

/// The lock on a state folder, once it is free.
pub fn lock(state: &Path) -> File {
    let since = Instant::now();
    loop {
        if let Some(lock) = try_lock(state) {
            return lock;
        }
        assert!(since.elapsed() < crate::support::program::LIMIT, "the state folder stays locked");
        std::thread::sleep(Duration::from_millis(1));
    }
}
