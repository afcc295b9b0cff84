//! One connection of a client, whose calls are passed on along the endpoint's route.
//!
//! Three tasks in one, which share the unanswered calls: calls are read from the client as long as
//! there is room, sent along the route, and their replies read from there. The first goes on while
//! the route is changed or sought; the other two begin again, with all unanswered calls.

use super::budget::VolumeShare;
use super::outgoing::{Outgoing, SMALL_BYTES, mark};
use super::state::EndpointState;
use super::unanswered::UnansweredCalls;
use super::{Answers, Route};
use crate::nfs::{RecordReader, Stream, is_mount_request, is_reply, is_retry_later, xid_of};
use crate::types::Backoff;
use bytes::{BufMut, BytesMut};
use parking_lot::Mutex;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// Time for which either side may stall in the middle of a record, or take no reply.
const STALL: Duration = Duration::from_secs(60);
/// A call without a reply for this long, while no other has one either, makes the endpoint look for
/// another route; the call stays where it is.
const SILENCE: Duration = Duration::from_secs(5);
const SILENCE_LOOK: Duration = Duration::from_secs(1);
/// Between attempts on a route that broke; it grows to the latter.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_millis(500);
/// Between looks whether the client of a connection without room has gone.
const HANG_UP_LOOK: Duration = Duration::from_secs(1);
/// Calls that are sent together, in bytes.
const BATCH_BYTES: usize = 64 << 10;

/// A connection of a client to an endpoint.
pub struct Relayed {
    stream: Stream,
    endpoint: Arc<EndpointState>,
    /// Calls that are being received.
    records: RecordReader,
    calls: Calls,
    outgoing: Outgoing,
}

/// The unanswered calls, shared by the parts of a connection.
struct Calls {
    unanswered: Mutex<UnansweredCalls>,
    /// Notified when a call was added.
    added: Notify,
    /// The connection is our own. It may ask for the export's handle, which any owner answers, and
    /// says nothing about how the kernel's calls fare.
    is_own: bool,
}

/// Why the parts of a connection ended.
enum End {
    Client(io::Result<()>),
    /// Nothing more came of the route.
    Route,
    RouteChanged,
    Closed,
}

impl Relayed {
    pub fn new(stream: Stream, endpoint: Arc<EndpointState>, is_own: bool) -> Self {
        let unanswered = Mutex::new(UnansweredCalls::new(endpoint.share.clone()));
        Self {
            stream,
            endpoint,
            records: RecordReader::default(),
            calls: Calls { unanswered, added: Notify::new(), is_own },
            outgoing: Outgoing::default(),
        }
    }

    /// Runs until the client has gone, or the endpoint closes.
    pub async fn run(mut self) {
        let mut routes = self.endpoint.routes.subscribe();
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        loop {
            let route = routes.borrow_and_update().clone();
            self.calls.unanswered.lock().send_again();
            let Self { stream, endpoint, records, calls, outgoing } = &mut self;
            let (stream, endpoint, calls) = (&*stream, &**endpoint, &*calls);
            let end = tokio::select! {
                read = read_calls(stream, records, calls, endpoint) => End::Client(read),
                () = follow(&route, stream, calls, outgoing, endpoint, &mut backoff) => End::Route,
                changed = routes.changed() => match changed {
                    Ok(()) => End::RouteChanged,
                    Err(_) => End::Closed,
                },
                () = endpoint.cut.cancelled() => End::Closed,
            };
            match end {
                End::Client(Ok(())) | End::Closed => return,
                End::Client(Err(error)) => {
                    tracing::debug!(%error, "a relayed connection was closed");
                    return;
                }
                End::RouteChanged => backoff.reset(),
                End::Route => {}
            }
        }
    }
}

/// Reads calls from the client until it has gone. May be dropped and called again.
async fn read_calls(
    stream: &Stream,
    records: &mut RecordReader,
    calls: &Calls,
    endpoint: &EndpointState,
) -> io::Result<()> {
    loop {
        while let Some(record) = records.next_record().map_err(io::Error::other)? {
            if is_mount_request(&record) && !calls.is_own && !endpoint.may_mount() {
                return Err(io::Error::other("MNT outside of our own mount of the volume"));
            }
            calls.unanswered.lock().add(record).map_err(io::Error::other)?;
            calls.added.notify_one();
        }
        room(calls, endpoint, stream, records.large_bytes()).await?;
        let limit = records.room();
        match stream.try_read_buf(&mut records.spare().limit(limit)) {
            Ok(0) => return Ok(()),
            Ok(len) => records.received(len),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                wait_for_bytes(stream, records).await?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

async fn wait_for_bytes(stream: &Stream, records: &mut RecordReader) -> io::Result<()> {
    if records.mid_record() {
        let readable = tokio::time::timeout(STALL, stream.readable()).await;
        return readable.map_err(|_| io::Error::from(ErrorKind::TimedOut))?;
    }
    records.release_buffers();
    stream.readable().await
}

/// Waits until another call may be read, or the rest of one of `large` bytes. While none is, a
/// client that has gone is noticed all the same: its calls came again on another connection, and
/// must not be sent once more much later.
async fn room(
    calls: &Calls,
    endpoint: &EndpointState,
    stream: &Stream,
    large: usize,
) -> io::Result<()> {
    if calls.unanswered.lock().may_read(large) {
        return Ok(());
    }
    let room = calls.room(&endpoint.share, large);
    tokio::pin!(room);
    while tokio::time::timeout(HANG_UP_LOOK, &mut room).await.is_err() {
        if stream.is_hung_up() {
            return Err(ErrorKind::ConnectionAborted.into());
        }
    }
    Ok(())
}

impl Calls {
    /// Waits for room for a call, and takes that of a large one.
    async fn room(&self, share: &VolumeShare, large: usize) {
        if large == 0 {
            return self.until(share, |calls| calls.may_read(0)).await;
        }
        // Before its turn: it would hold up the volume's other connections.
        self.until(share, |calls| calls.is_below_limits()).await;
        let _turn = share.turn().await;
        self.until(share, |calls| calls.receive(large)).await;
    }

    async fn until(&self, share: &VolumeShare, holds: impl Fn(&mut UnansweredCalls) -> bool) {
        loop {
            let fewer = share.fewer();
            tokio::pin!(fewer);
            // Registered before the check: a reply that arrives after it is not missed.
            fewer.as_mut().enable();
            if holds(&mut self.unanswered.lock()) {
                return;
            }
            fewer.await;
        }
    }
}

/// Passes calls on along a route until it breaks, and pauses before it may be tried again.
async fn follow(
    route: &Route,
    stream: &Stream,
    calls: &Calls,
    outgoing: &mut Outgoing,
    endpoint: &EndpointState,
    backoff: &mut Backoff,
) {
    // A reply that was begun on an earlier route.
    if outgoing.send(stream, STALL).await.is_err() {
        endpoint.cut_one(stream);
        return std::future::pending().await;
    }
    let broke = match route {
        Route::Held => return std::future::pending().await,
        Route::Here(server) => match server.connect(endpoint.host) {
            Ok(local) => {
                let (from, to) = local.into_split();
                exchange((from, to), Some(&**server), stream, calls, outgoing, endpoint, backoff)
                    .await
            }
            Err(error) => error,
        },
        Route::Owner(owner) => match endpoint.dialer.dial(owner).await {
            Ok(remote) => {
                let (from, to) = tokio::io::split(remote);
                exchange((from, to), None, stream, calls, outgoing, endpoint, backoff).await
            }
            Err(error) => error,
        },
    };
    tracing::debug!(error = %broke, dataset = %endpoint.dataset, "calls wait for another route");
    if !calls.is_own {
        endpoint.disturb();
    }
    tokio::time::sleep(backoff.pause()).await;
}

/// Exchanges calls and replies until the route or the client breaks.
async fn exchange<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    (mut from, mut to): (R, W),
    server: Option<&dyn Answers>,
    stream: &Stream,
    calls: &Calls,
    outgoing: &mut Outgoing,
    endpoint: &EndpointState,
    backoff: &mut Backoff,
) -> io::Error {
    if !calls.is_own {
        endpoint.clear_disturbance();
    }
    backoff.reset();
    let ended = tokio::select! {
        sent = send_calls(calls, &mut to) => sent,
        received = receive(&mut from, server, stream, calls, outgoing, endpoint) => received,
        never = watch_silence(calls, endpoint) => never,
    };
    ended.err().unwrap_or_else(|| ErrorKind::UnexpectedEof.into())
}

async fn send_calls<W: AsyncWrite + Unpin>(calls: &Calls, to: &mut W) -> io::Result<()> {
    let mut batch = BytesMut::new();
    loop {
        loop {
            let next = calls.unanswered.lock().next_unsent();
            let Some(record) = next else { break };
            batch.put_u32(mark(&record));
            if record.len() <= SMALL_BYTES {
                batch.extend_from_slice(&record);
            }
            if record.len() > SMALL_BYTES || batch.len() >= BATCH_BYTES {
                to.write_all(&batch).await?;
                batch.clear();
            }
            if record.len() > SMALL_BYTES {
                to.write_all(&record).await?;
            }
        }
        to.write_all(&batch).await?;
        batch = BytesMut::new();
        to.flush().await?;
        calls.added.notified().await;
    }
}

/// Reads replies, and passes each on once it is whole.
async fn receive<R: AsyncRead + Unpin>(
    from: &mut R,
    server: Option<&dyn Answers>,
    stream: &Stream,
    calls: &Calls,
    outgoing: &mut Outgoing,
    endpoint: &EndpointState,
) -> io::Result<()> {
    let mut replies = RecordReader::default();
    loop {
        while let Some(reply) = replies.next_record().map_err(io::Error::other)? {
            // A volume that is lost answers ESTALE: the next owner is to answer (R25).
            if server.is_some_and(|server| !server.is_valid()) {
                return Err(io::Error::other("the volume is lost to this node"));
            }
            let xid = xid_of(&reply).filter(|_| is_reply(&reply));
            let xid = xid.ok_or_else(|| io::Error::other("a record that is no reply"))?;
            if !calls.unanswered.lock().answered(xid) {
                return Err(io::Error::other("a reply to no call"));
            }
            // An owner that cannot answer says so too: its calls still wait.
            if !calls.is_own && !is_retry_later(&reply) {
                endpoint.answered();
            }
            outgoing.add(reply);
            if outgoing.is_full() {
                send_replies(outgoing, stream, endpoint).await;
            }
        }
        send_replies(outgoing, stream, endpoint).await;
        if !replies.mid_record() {
            replies.release_buffers();
        }
        let limit = replies.room();
        match from.read_buf(&mut replies.spare().limit(limit)).await? {
            0 => return Ok(()),
            len => replies.received(len),
        }
    }
}

/// A client that takes no replies is closed: the part that reads from it ends the connection.
async fn send_replies(outgoing: &mut Outgoing, stream: &Stream, endpoint: &EndpointState) {
    if outgoing.send(stream, STALL).await.is_err() {
        endpoint.cut_one(stream);
        std::future::pending::<()>().await;
    }
}

/// Reports calls that wait for long: their server may be cut off from the store.
async fn watch_silence(calls: &Calls, endpoint: &EndpointState) -> io::Result<()> {
    loop {
        tokio::time::sleep(SILENCE_LOOK).await;
        let oldest = calls.unanswered.lock().oldest();
        if !calls.is_own && oldest.is_some_and(|since| endpoint.silence(since) >= SILENCE) {
            endpoint.disturb();
        }
    }
}
