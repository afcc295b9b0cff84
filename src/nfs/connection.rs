//! One connection: reads records, starts calls, sends replies in the order of completion.
//!
//! A call is polled once where it is read: most are answered from memory, and cost no task. One
//! that must wait becomes a task of its own, which writes its reply itself. A call that has begun
//! is never cancelled: its client may have gone, but it would retransmit the call on another
//! connection.

use super::args::{Args, Procedure};
use super::budget::{Bytes as ByteBudget, Count, Taken};
use super::call::Call;
use super::dispatch::{Answer, dispatch};
use super::duplicate::{Arrived, First};
use super::export::{ExportTable, Found};
use super::limited::{self, Admitted, Wait};
use super::mount::{self, MountArgs};
use super::outbox::{Message, Outbox, SMALL_BYTES};
use super::peer::Trust;
use super::record::RecordReader;
use super::reply::{Reply, WriteAnswer};
use super::rpc::{
    self, AUTH_NONE, AUTH_SYS, AuthStat, ClientHost, Identity, MOUNT_PROGRAM, NFS_PROGRAM,
    Received, Refusal,
};
use super::shared::{IdleConnection, Shared, Squash};
use super::status::NfsStat;
use super::stream::Stream;
use crate::fs::api::Caller;
use bytes::{BufMut, Bytes, BytesMut};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// Replies collected while records remain in the buffer, in bytes.
const BATCH_BYTES: usize = 64 << 10;
/// Time that a stopping server waits for the peer to close after it, so that no reply is lost to a
/// reset.
const LINGER: Duration = Duration::from_millis(500);
const PROGRAM_VERSION: u32 = 3;

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

/// The handling of a record.
enum Begun {
    Reply(Reply),
    /// A task sends the reply when it is complete.
    Later,
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

    /// Starts the call in a record.
    async fn begin(&mut self, record: Bytes) -> io::Result<()> {
        let received = match rpc::decode(&record).map_err(io::Error::other)? {
            Received::Call(call) => call,
            Received::Refused { xid, why } => {
                self.put(Reply::whole(rpc::refuse(xid, why)), None);
                return Ok(());
            }
        };
        let begun = match (received.program, received.version) {
            (NFS_PROGRAM, PROGRAM_VERSION) => self.nfs(received).await,
            (MOUNT_PROGRAM, PROGRAM_VERSION) => self.mount(received).await,
            (NFS_PROGRAM | MOUNT_PROGRAM, _) => {
                let why = Refusal::ProgramMismatch { low: PROGRAM_VERSION, high: PROGRAM_VERSION };
                Begun::Reply(Reply::whole(rpc::refuse(received.xid, why)))
            }
            _ => Begun::Reply(Reply::whole(rpc::refuse(received.xid, Refusal::ProgramUnavailable))),
        };
        self.receiving = None;
        if let Begun::Reply(reply) = begun {
            self.put(reply, None);
        }
        Ok(())
    }

    async fn nfs(&mut self, mut received: rpc::RpcCall<'_>) -> Begun {
        let xid = received.xid;
        let refuse = |why| Begun::Reply(Reply::whole(rpc::refuse(xid, why)));
        let Some(procedure) = Procedure::from_wire(received.procedure) else {
            return refuse(Refusal::ProcedureUnavailable);
        };
        let identity = match self.identify(&received, procedure) {
            Ok(identity) => identity,
            Err(stat) => return refuse(Refusal::Auth(stat)),
        };
        let raw = received.args.rest();
        let Ok(args) = Args::decode(procedure, &mut received.args) else {
            return refuse(Refusal::GarbageArgs);
        };
        let id = match (&identity, procedure) {
            (Some(identity), Procedure::Write) => Some(identity.write_id(xid, raw)),
            (Some(identity), _) if procedure.once() => {
                Some(identity.call_id(xid, received.procedure, raw))
            }
            _ => None,
        };
        let first = match id.map(|id| self.shared.duplicates.begin(id, &self.outbox, &self.calls)) {
            Some(Arrived::First(first)) => Some(first),
            Some(Arrived::Joined) => return Begun::Later,
            // A lost volume answers nothing else, not even what it had answered (R25).
            Some(Arrived::Answered(_)) if self.is_gone(&args) => {
                return Begun::Reply(WriteAnswer::failed(NfsStat::Stale).again(xid));
            }
            Some(Arrived::Answered(answer)) => return Begun::Reply(answer.again(xid)),
            None => None,
        };
        let caller = self.squash(identity.map_or_else(nobody, |identity| identity.caller(id)));
        self.carry_out(Call { shared: self.shared.clone(), xid, caller }, args, first).await
    }

    /// Returns whether a WRITE's volume is lost to this process, or not served here.
    fn is_gone(&self, args: &Args) -> bool {
        let Args::Write { file: Some(handle), .. } = args else { return false };
        match self.shared.table.find(handle.export) {
            Found::Open(export) => export.is_lost(),
            Found::Opening => false,
            Found::Unknown => true,
        }
    }

    async fn carry_out(&mut self, call: Call<T>, args: Args, first: Option<First>) -> Begun {
        let wait = match limited::admit(&self.shared, &args) {
            Admitted::Now => None,
            Admitted::Later(wait) => Some(wait),
            Admitted::Refused => {
                let reply = limited::retry(&call, &args).await;
                if let Some(first) = first {
                    first.done(&reply);
                }
                return Begun::Reply(reply);
            }
        };
        let mut taken = self.receiving.take();
        let payload = args.payload_bytes();
        if payload > 0 && taken.is_none() {
            taken = match self.write_bytes.try_take(payload) {
                Some(taken) => Some(taken),
                None => {
                    self.send_batch();
                    self.write_bytes.take(payload).await
                }
            };
        }
        if let Some(bytes) = args.reply_bytes() {
            if wait.is_some() {
                return self.wait_for_bytes(call, args, bytes, wait).await;
            }
            match self.read_bytes.try_take(bytes) {
                Some(now) => taken = Some(now),
                None => return self.wait_for_bytes(call, args, bytes, None).await,
            }
        }
        let xid = call.xid;
        let answer = dispatch(call, args);
        match wait {
            None => self.poll_once(answer, taken, first).await,
            Some(wait) => {
                let answer = limited::answered_late(xid, answer, taken, wait);
                self.poll_once(answer, None, first).await
            }
        }
    }

    /// Waits for the limits of a READ's volume, and for its bytes beyond the budget, in a task of
    /// its own, so that later calls do not wait.
    async fn wait_for_bytes(
        &mut self,
        call: Call<T>,
        args: Args,
        bytes: usize,
        wait: Option<Wait<T::Fs>>,
    ) -> Begun {
        self.send_batch();
        self.reads.below(self.shared.options.limits.reads_waiting).await;
        let counted = self.reads.enter();
        let (outbox, budget) = (self.outbox.clone(), self.read_bytes.clone());
        tokio::spawn(async move {
            if let Some(wait) = wait {
                wait.ended().await;
            }
            let taken = budget.take(bytes).await;
            let reply = dispatch(call, args).await;
            outbox.send(Message { taken, ..reply.into_message() });
            drop(counted);
        });
        Begun::Later
    }

    /// Runs a call as far as it gets without waiting.
    async fn poll_once(
        &mut self,
        mut answer: Answer,
        taken: Option<Taken>,
        first: Option<First>,
    ) -> Begun {
        let polled = {
            // Only the file system decides whether the call can go on, not the time that this task
            // has been running.
            let mut answer = std::pin::pin!(tokio::task::unconstrained(&mut answer));
            poll_fn(|cx| Poll::Ready(answer.as_mut().poll(cx))).await
        };
        if let Poll::Ready(reply) = polled {
            if let Some(first) = first {
                first.done(&reply);
            }
            self.put(reply, taken);
            return Begun::Later;
        }
        let counted = self.calls.enter();
        let outbox = self.outbox.clone();
        tokio::spawn(async move {
            let reply = answer.await;
            if let Some(first) = first {
                first.done(&reply);
            }
            outbox.send(Message { taken, ..reply.into_message() });
            drop(counted);
        });
        // Checked after the spawn: this task may end while it waits here, the call may not.
        if self.calls.now() >= self.shared.options.limits.calls {
            self.send_batch();
            self.calls.below(self.shared.options.limits.calls).await;
        }
        Begun::Later
    }

    async fn mount(&mut self, mut received: rpc::RpcCall<'_>) -> Begun {
        let refuse = |why| Begun::Reply(Reply::whole(rpc::refuse(received.xid, why)));
        match MountArgs::decode(received.procedure, &mut received.args) {
            Ok(Some(args)) => {
                let call = Call {
                    shared: self.shared.clone(),
                    xid: received.xid,
                    caller: self.squash(Caller::root()),
                };
                self.poll_once(Box::pin(mount::answer(call, args, self.peer.address)), None, None)
                    .await
            }
            Ok(None) => refuse(Refusal::ProcedureUnavailable),
            Err(_) => refuse(Refusal::GarbageArgs),
        }
    }

    /// The caller; `None` without credentials, if the procedure needs none.
    fn identify(
        &mut self,
        received: &rpc::RpcCall<'_>,
        procedure: Procedure,
    ) -> Result<Option<Arc<Identity>>, AuthStat> {
        match received.flavor {
            AUTH_SYS => {
                if let Some((bytes, identity)) = &self.identity
                    && **bytes == *received.credentials
                {
                    return Ok(Some(identity.clone()));
                }
                let identity = Identity::decode(received.credentials, self.peer.host)
                    .map_err(|_| AuthStat::BadCredentials)?;
                let identity = Arc::new(identity);
                self.identity = Some((received.credentials.into(), identity.clone()));
                Ok(Some(identity))
            }
            AUTH_NONE if procedure.open_to_all() => Ok(None),
            _ => Err(AuthStat::TooWeak),
        }
    }

    fn squash(&self, mut caller: Caller) -> Caller {
        match self.squash {
            Squash::Root { uid, gid } if caller.uid == 0 => {
                (caller.uid, caller.gid) = (uid, gid);
                caller.groups.clear();
            }
            Squash::Root { gid, .. } => {
                if caller.gid == 0 {
                    caller.gid = gid;
                }
                caller.groups.retain(|group| *group != 0);
            }
            Squash::Nobody => {}
        }
        caller
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

/// The caller of a call without credentials.
fn nobody() -> Caller {
    Caller { uid: 65534, gid: 65534, groups: Vec::new(), call: None }
}
