//! The byte stream of a connection: TCP, or a socket pair within this machine, by which records
//! that somebody else received reach a server.

use bytes::BufMut;
use futures::FutureExt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Local(UnixStream),
}

impl Stream {
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Local(stream) => stream.readable().await,
        }
    }

    pub async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Local(stream) => stream.writable().await,
        }
    }

    /// Returns whether the peer has closed its side, also while bytes that it sent are not read.
    pub fn is_hung_up(&self) -> bool {
        let ready = match self {
            Self::Tcp(stream) => stream.ready(Interest::READABLE).now_or_never(),
            Self::Local(stream) => stream.ready(Interest::READABLE).now_or_never(),
        };
        matches!(ready, Some(Ok(ready)) if ready.is_read_closed())
    }

    pub fn try_read_buf<B: BufMut>(&self, into: &mut B) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read_buf(into),
            Self::Local(stream) => stream.try_read_buf(into),
        }
    }

    pub fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write_vectored(pieces),
            Self::Local(stream) => stream.try_write_vectored(pieces),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Local(stream) => stream.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_that_has_gone_is_noticed_behind_what_it_sent() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stream = Stream::Local(ours);
        assert!(!stream.is_hung_up());
        assert_eq!(theirs.try_write(b"unread").unwrap(), 6);
        stream.readable().await.unwrap();
        assert!(!stream.is_hung_up());
        drop(theirs);
        for _ in 0..500 {
            if stream.is_hung_up() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("the end of the peer is not noticed");
    }
}
