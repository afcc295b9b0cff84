//! One connection: reads records, starts calls, sends replies in the order of completion.
//!
//! A call is polled once where it is read: most are answered from memory, and cost no task. One
//! that must wait becomes a task of its own, which writes its reply itself. A call that has begun
//! is never cancelled: its client may have gone, but it would retransmit the call on another
//! connection. A READ that waits for its turn has not begun.

use super::budget::{Bytes as ByteBudget, Count, Taken};
use super::export::ExportTable;
use super::outbox::{Message, Outbox, SMALL_BYTES};
use super::peer::Trust;
use super::record::RecordReader;
use super::reply::Reply;
use super::rpc::{ClientHost, Identity};
use super::shared::{IdleConnection, Shared, Squash};
use super::stream::Stream;
use bytes::{BufMut, BytesMut};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

mod calls;

/// Replies collected while records remain in the buffer, in bytes.
const BATCH_BYTES: usize = 64 << 10;
/// Time that a stopping server waits for the peer to close after it, so that no reply is lost to a
/// reset.
const LINGER: Duration = Duration::from_millis(500);

pub struct Connection<T> {
    stream: Arc<Stream>,
    peer: Peer,
    shared: Arc<Shared<T>>,
    trust: Trust,
    squash: Squash,
    records: RecordReader,
    outbox: Arc<Outbox>,
    /// Replies that will leave together.
    batch: BytesMut,
    read_bytes: ByteBudget,
    write_bytes: ByteBudget,
    /// The budget of the record that is being received.
    receiving: Option<Taken>,
    reads: Count,
    calls: Count,
    /// The last credentials, decoded: most calls of a client carry the same.
    identity: Option<(Box<[u8]>, Arc<Identity>)>,
}

/// The other side of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// For messages, and the list of mounts.
    pub address: SocketAddr,
    pub host: ClientHost,
}

impl Peer {
    pub fn at(address: SocketAddr) -> Self {
        Self { address, host: ClientHost::Address(address.ip()) }
    }

    /// A client whose records a relay has received.
    pub fn relayed(host: ClientHost) -> Self {
        Self { address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0), host }
    }
}

/// The end of reading.
enum End {
    Peer,
    Stop,
}

impl<T: ExportTable> Connection<T> {
    pub fn new(stream: Stream, peer: Peer, shared: Arc<Shared<T>>, trust: Trust) -> Self {
        let stream = Arc::new(stream);
        let squash = match trust {
            Trust::Whole => shared.options.squash,
            Trust::Squashed => Squash::NOBODY,
        };
        Self {
            outbox: Arc::new(Outbox::new(stream.clone())),
            stream,
            peer,
            records: RecordReader::default(),
            batch: BytesMut::new(),
            read_bytes: shared.read_bytes.share(),
            write_bytes: shared.write_bytes.share(),
            receiving: None,
            reads: Count::default(),
            calls: Count::default(),
            identity: None,
            trust,
            squash,
            shared,
        }
    }

    pub async fn run(mut self) {
        let (outbox, cut) = (self.outbox.clone(), self.shared.cut.clone());
        let stall = self.shared.options.stall;
        let served = async {
            match self.receive().await? {
                End::Stop if self.shared.is_quiescing() => self.quiesce().await,
                End::Stop => {
                    self.drain().await;
                    Ok(End::Peer)
                }
                end => Ok(end),
            }
        };
        let ended = tokio::select! {
            ended = served => ended,
            // The peer has not taken a reply for too long, or the socket broke.
            () = outbox.writer(stall) => Ok(End::Peer),
            () = cut.cancelled() => Ok(End::Peer),
        };
        outbox.close();
        match ended {
            Ok(End::Stop) => self.hand_over(),
            Ok(End::Peer) => {}
            Err(error) => {
                tracing::debug!(peer = %self.peer.address, %error, "an NFS connection was closed");
            }
        }
    }

    /// Gives the idle connection away, for another server to adopt.
    fn hand_over(self) {
        match self.stream.as_fd().try_clone_to_owned() {
            Ok(stream) => {
                self.shared.add_idle(IdleConnection { stream, trust: self.trust });
            }
            Err(error) => {
                tracing::warn!(
                    peer = %self.peer.address,
                    %error,
                    "a connection cannot be handed over; its client reconnects"
                );
            }
        }
    }

    /// After a stop: receives the rest of a call that has begun to arrive, answers all calls, and
    /// reads no further.
    async fn quiesce(&mut self) -> io::Result<End> {
        loop {
            while let Some(record) = self.records.next_record().map_err(io::Error::other)? {
                self.begin(record).await?;
            }
            let missing = self.records.missing();
            if missing == 0 {
                break;
            }
            self.send_batch();
            self.wait_for_room().await;
            match self.stream.try_read_buf(&mut self.records.spare().limit(missing)) {
                Ok(0) => return Ok(End::Peer),
                Ok(len) => self.records.received(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.readable().await?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.answered().await;
        Ok(End::Stop)
    }

    /// Waits until every call that was begun is answered, and the answers are sent.
    async fn answered(&mut self) {
        self.send_batch();
        self.reads.below(1).await;
        self.calls.below(1).await;
        self.outbox.drained().await;
    }

    async fn receive(&mut self) -> io::Result<End> {
        loop {
            while let Some(record) = self.records.next_record().map_err(io::Error::other)? {
                self.begin(record).await?;
            }
            self.send_batch();
            self.wait_for_room().await;
            if let Some(end) = self.read().await? {
                return Ok(end);
            }
        }
    }

    /// Stops reading while too many calls of this connection are in progress.
    async fn wait_for_room(&mut self) {
        let limits = &self.shared.options.limits;
        if self.outbox.waiting_bytes() >= limits.reply_bytes {
            self.outbox.room(limits.reply_bytes).await;
        }
        let large = self.records.large_bytes();
        if large > 0 && self.receiving.is_none() {
            self.receiving = self.write_bytes.take(large).await;
        }
    }

    async fn read(&mut self) -> io::Result<Option<End>> {
        loop {
            if self.shared.stop.is_cancelled() {
                return Ok(Some(End::Stop));
            }
            let room = self.records.room();
            match self.stream.try_read_buf(&mut self.records.spare().limit(room)) {
                Ok(0) => return Ok(Some(End::Peer)),
                Ok(len) => {
                    self.records.received(len);
                    return Ok(None);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let idle = !self.records.mid_record();
            if idle {
                self.records.release_buffers();
            }
            tokio::select! {
                ready = self.stream.readable() => ready?,
                () = self.shared.stop.cancelled() => return Ok(Some(End::Stop)),
                () = tokio::time::sleep(self.shared.options.stall), if !idle => {
                    return Err(io::Error::other("timed out in the middle of a record"));
                }
            }
        }
    }

    /// Sends a reply, together with others if it is small.
    fn put(&mut self, reply: Reply, taken: Option<Taken>) {
        let message = Message { taken, ..reply.into_message() };
        if message.len() > SMALL_BYTES {
            return self.outbox.send(message);
        }
        self.batch.extend_from_slice(&message.head);
        for piece in &message.data {
            self.batch.extend_from_slice(piece);
        }
        if self.batch.len() >= BATCH_BYTES {
            self.send_batch();
        }
    }

    fn send_batch(&mut self) {
        if !self.batch.is_empty() {
            self.outbox.send(Message::small(self.batch.split().freeze()));
        }
    }

    /// After a stop: finishes and answers the calls in progress.
    async fn drain(&mut self) {
        self.answered().await;
        let closed = async {
            rustix::net::shutdown(&*self.stream, rustix::net::Shutdown::Write)?;
            let mut rest = BytesMut::with_capacity(BATCH_BYTES);
            loop {
                self.stream.readable().await?;
                rest.clear();
                match self.stream.try_read_buf(&mut rest) {
                    Ok(0) => return io::Result::Ok(()),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        };
        // The peer is gone if this fails.
        let _closed = tokio::time::timeout(LINGER, closed).await;
    }
}
