//! Calls over one TCP connection, matched to their replies by transaction id.

use super::dial::{Credentials, connect};
use crate::nfs::outbox::{Message, Outbox};
use crate::nfs::record::RecordReader;
use crate::nfs::rpc;
use crate::nfs::status::NfsStat;
use crate::nfs::stream::Stream;
use crate::nfs::xdr::{Cursor, Encoder, XdrError, padding};
use crate::types::{Class, Classify};
use bytes::{BufMut, Bytes};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot reach the NFS server {server}: {why}")]
    Connect { server: SocketAddr, why: String },
    #[error("the connection to the NFS server ended")]
    Disconnected,
    #[error("the NFS server did not answer within {0:?}")]
    TimedOut(Duration),
    #[error("the NFS server's reply is not understood: {0}")]
    Reply(#[from] XdrError),
    #[error("{0}")]
    Status(NfsStat),
    #[error("the server refuses to mount {path}: MOUNT status {status}")]
    Mount { path: String, status: u32 },
    #[error("the server has no {what}: say its port")]
    NoPort { what: &'static str },
}

impl ClientError {
    /// The server's status, if that is the error.
    pub fn status(&self) -> Option<NfsStat> {
        match self {
            Self::Status(status) => Some(*status),
            _ => None,
        }
    }
}

impl Classify for ClientError {
    fn class(&self) -> Class {
        match self {
            Self::Connect { .. } | Self::Disconnected | Self::TimedOut(_) => Class::Unavailable,
            Self::Reply(_) => Class::Corrupt,
            Self::Mount { .. } | Self::NoPort { .. } => Class::NotFound,
            Self::Status(status) => match status {
                NfsStat::NoEnt | NfsStat::Stale | NfsStat::BadHandle => Class::NotFound,
                NfsStat::Exist => Class::Exists,
                NfsStat::Jukebox => Class::Unavailable,
                NfsStat::Access | NfsStat::Perm => Class::Denied,
                NfsStat::NoSpace | NfsStat::Quota => Class::Exhausted,
                NfsStat::NotSupported => Class::Unsupported,
                NfsStat::Io | NfsStat::ServerFault => Class::Internal,
                _ => Class::Invalid,
            },
        }
    }
}

pub type Result<T> = std::result::Result<T, ClientError>;

/// Time limit of a call. Longer than a server holds one.
const CALL_TIMEOUT: Duration = Duration::from_secs(90);

#[derive(Debug, Default)]
struct Waiting {
    replies: HashMap<u32, oneshot::Sender<Bytes>>,
    next: u32,
    closed: bool,
}

impl Waiting {
    fn enter(&mut self) -> Option<(u32, oneshot::Receiver<Bytes>)> {
        if self.closed {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        self.next = self.next.wrapping_add(1);
        self.replies.insert(self.next, sender);
        Some((self.next, receiver))
    }
}

/// A connection to a server. Cheap to clone; the connection ends with the last clone.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    outbox: Arc<Outbox>,
    waiting: Arc<Mutex<Waiting>>,
    credentials: Vec<u8>,
    tasks: [tokio::task::AbortHandle; 2],
}

impl Drop for Inner {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.outbox.close();
    }
}

impl Client {
    /// Connects, from a reserved port where this process may use one.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub async fn connect(server: SocketAddr, credentials: &Credentials) -> Result<Self> {
        let stream = connect(server)
            .await
            .map_err(|error| ClientError::Connect { server, why: error.to_string() })?;
        Ok(Self::over(Stream::Tcp(stream), credentials))
    }

    /// Calls over a connection within this machine.
    pub fn local(stream: UnixStream, credentials: &Credentials) -> Self {
        Self::over(Stream::Local(stream), credentials)
    }

    fn over(stream: Stream, credentials: &Credentials) -> Self {
        let stream = Arc::new(stream);
        let outbox = Arc::new(Outbox::new(stream.clone()));
        // The first xid differs per client, so that it does not match a call that a server
        // remembers.
        let waiting = Arc::new(Mutex::new(Waiting { next: rand::random(), ..Waiting::default() }));
        let writer = tokio::spawn({
            let (outbox, waiting) = (outbox.clone(), waiting.clone());
            async move {
                outbox.writer(CALL_TIMEOUT).await;
                close(&waiting);
            }
        });
        let reader = tokio::spawn({
            let waiting = waiting.clone();
            async move {
                if let Err(error) = receive(&stream, &waiting).await {
                    tracing::debug!(%error, "the connection to an NFS server ended");
                }
                close(&waiting);
            }
        });
        let tasks = [writer.abort_handle(), reader.abort_handle()];
        Self {
            inner: Arc::new(Inner { outbox, waiting, credentials: credentials.encode(), tasks }),
        }
    }

    /// Makes a call and returns the record from its results on. `write` adds the arguments.
    pub(super) async fn call(
        &self,
        program: u32,
        procedure: u32,
        write: impl FnOnce(&mut Encoder),
    ) -> Result<Bytes> {
        self.call_with(program, 3, procedure, None, write).await
    }

    /// Like `call`, in a version of the program, with an opaque as the last argument that is not
    /// copied.
    pub(super) async fn call_with(
        &self,
        program: u32,
        version: u32,
        procedure: u32,
        payload: Option<Bytes>,
        write: impl FnOnce(&mut Encoder),
    ) -> Result<Bytes> {
        let (xid, reply) = self.inner.waiting.lock().enter().ok_or(ClientError::Disconnected)?;
        let mut out = rpc::call(xid, program, version, procedure, &self.inner.credentials, 256);
        write(&mut out);
        let message = match payload {
            None => Message::small(rpc::finish(out, 0)),
            Some(data) => {
                out.u32(u32::try_from(data.len()).unwrap_or(u32::MAX));
                let pad = Bytes::from_static(ZEROES.get(..padding(data.len())).unwrap_or(&[]));
                let head = rpc::finish(out, data.len() + pad.len());
                Message { head, data: vec![data, pad], taken: None }
            }
        };
        self.inner.outbox.post(message);
        let reply = match tokio::time::timeout(CALL_TIMEOUT, reply).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) => return Err(ClientError::Disconnected),
            Err(_) => {
                self.inner.waiting.lock().replies.remove(&xid);
                return Err(ClientError::TimedOut(CALL_TIMEOUT));
            }
        };
        let mut cursor = Cursor::new(&reply);
        rpc::decode_reply(&mut cursor)?;
        Ok(reply.slice_ref(cursor.rest()))
    }
}

const ZEROES: &[u8] = &[0; 4];

/// Fails every waiting call, and all later ones.
fn close(waiting: &Mutex<Waiting>) {
    let mut waiting = waiting.lock();
    waiting.closed = true;
    waiting.replies.clear();
}

async fn receive(stream: &Stream, waiting: &Mutex<Waiting>) -> io::Result<()> {
    let mut records = RecordReader::default();
    loop {
        while let Some(mut record) = records.next_record().map_err(io::Error::other)? {
            let Some(xid) = record.first_chunk::<4>().map(|xid| u32::from_be_bytes(*xid)) else {
                return Err(io::Error::other("a reply without a transaction id"));
            };
            let reply = record.split_off(4);
            if let Some(caller) = waiting.lock().replies.remove(&xid) {
                // The caller has given up.
                let _given_up = caller.send(reply);
            }
        }
        let room = records.room();
        match stream.try_read_buf(&mut records.spare().limit(room)) {
            Ok(0) => return Ok(()),
            Ok(len) => records.received(len),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.readable().await?,
            Err(error) => return Err(error),
        }
    }
}
