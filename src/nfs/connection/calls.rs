//! The calls of a connection: who makes one, whether it is a repeat, and where it waits.

use super::Connection;
use crate::fs::api::Caller;
use crate::nfs::args::{Args, Procedure};
use crate::nfs::budget::Taken;
use crate::nfs::call::Call;
use crate::nfs::dispatch::{Answer, dispatch};
use crate::nfs::duplicate::{Arrived, First};
use crate::nfs::export::{ExportTable, Found};
use crate::nfs::limited::{self, Admitted, Wait};
use crate::nfs::mount::{self, MountArgs};
use crate::nfs::outbox::Message;
use crate::nfs::reply::{Reply, WriteAnswer};
use crate::nfs::rpc::{
    self, AUTH_NONE, AUTH_SYS, AuthStat, Identity, MOUNT_PROGRAM, NFS_PROGRAM, Received, Refusal,
};
use crate::nfs::shared::Squash;
use crate::nfs::status::NfsStat;
use bytes::Bytes;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;

const PROGRAM_VERSION: u32 = 3;

/// The handling of a record.
enum Begun {
    Reply(Reply),
    /// A task sends the reply when it is complete.
    Later,
}

impl<T: ExportTable> Connection<T> {
    /// Starts the call in a record.
    pub(super) async fn begin(&mut self, record: Bytes) -> io::Result<()> {
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
            if let Ok(taken) = limited::turn(wait, (&budget, bytes), &outbox).await {
                let reply = dispatch(call, args).await;
                outbox.send(Message { taken, ..reply.into_message() });
            }
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
}

/// The caller of a call without credentials.
fn nobody() -> Caller {
    Caller { uid: 65534, gid: 65534, groups: Vec::new(), call: None }
}
