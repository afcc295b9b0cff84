//! Limits of a volume's bandwidth and calls ([`Throttle`](crate::fs::Throttle)), at the edge.
//!
//! Only READ and WRITE are limited: a GETATTR, a COMMIT or a change of a name never waits for a
//! limit, nor behind a call that does. A READ waits before it takes bytes of the budget; one whose
//! connection has gone by then is not carried out, and not charged. A WRITE is carried out when it
//! arrives, and its reply waits: its payload is the file system's then, and not in memory for as
//! long as the call waits. What a client has in flight is bounded, so it writes at the rate of the
//! replies. Beyond a queue of half a minute (of 15 s for the limit of calls) a call is told to
//! retry. A relay keeps a call until it has its reply, within bytes of each connection and each
//! volume: further calls of a shared volume wait behind its own writes, and no other volume does.

use super::args::Args;
use super::budget::{Bytes, Taken};
use super::call::Call;
use super::data;
use super::dispatch::Answer;
use super::export::{Export, ExportTable, Found};
use super::outbox::Outbox;
use super::reply::{Reply, WriteAnswer};
use super::shared::Shared;
use super::status::NfsStat;
use crate::fs::api::FileSystem;
use crate::fs::{Admission, Delay, Io};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The wait of a call for its volume's limits, which the stop of its server ends: then every call
/// in progress is answered.
pub struct Wait<F> {
    export: Arc<Export<F>>,
    delay: Delay,
    stop: CancellationToken,
}

impl<F: FileSystem> Wait<F> {
    /// The export may be lost by then.
    async fn ended(&self) {
        tokio::select! {
            () = self.delay.passed() => {}
            () = self.stop.cancelled() => {}
        }
    }
}

pub enum Admitted<F> {
    Now,
    Later(Wait<F>),
    /// To be told to retry.
    Refused,
}

/// Charges a call to its volume. One that waits for its export to open is not charged.
pub fn admit<T: ExportTable>(shared: &Shared<T>, args: &Args) -> Admitted<T::Fs> {
    let (handle, io, bytes) = match args {
        Args::Read { file: Some(handle), count, .. } => {
            (handle, Io::Read, data::read_bytes(*count) as usize)
        }
        Args::Write { file: Some(handle), data, .. } => (handle, Io::Write, data.len()),
        _ => return Admitted::Now,
    };
    let Found::Open(export) = shared.table.find(handle.export) else { return Admitted::Now };
    // A forged handle uses up nobody's limit.
    if export.open(handle).is_err() {
        return Admitted::Now;
    }
    let Some(throttle) = export.fs.throttle() else { return Admitted::Now };
    match throttle.admit(io, bytes) {
        Admission::Now => Admitted::Now,
        Admission::Later(delay) => {
            let stop = shared.stop.clone();
            Admitted::Later(Wait { export: export.clone(), delay, stop })
        }
        Admission::Refused => Admitted::Refused,
    }
}

/// A READ's connection was closed while it waited.
pub struct Gone;

/// Waits for a READ's turn: for the limits of its volume, then for bytes of the budget.
///
/// # Errors
/// [`Gone`]: nobody would get its data.
pub async fn turn<F: FileSystem>(
    wait: Option<Wait<F>>,
    (budget, bytes): (&Bytes, usize),
    outbox: &Outbox,
) -> Result<Option<Taken>, Gone> {
    if let Some(wait) = wait {
        tokio::select! {
            () = wait.ended() => {}
            () = outbox.gone() => {
                wait.delay.cancel();
                return Err(Gone);
            }
        }
    }
    tokio::select! {
        taken = budget.take(bytes) => Ok(taken),
        () = outbox.gone() => Err(Gone),
    }
}

/// A WRITE whose reply waits; `taken` is released once it is carried out. A volume that is lost
/// meanwhile answers nothing else (R25).
pub fn answered_late<F: FileSystem>(
    xid: u32,
    answer: Answer,
    taken: Option<Taken>,
    wait: Wait<F>,
) -> Answer {
    Box::pin(async move {
        let reply = answer.await;
        drop(taken);
        wait.ended().await;
        match wait.export.is_lost() {
            true => WriteAnswer::failed(NfsStat::Stale).again(xid),
            false => reply,
        }
    })
}

/// The reply to a READ or WRITE that is to be sent again later.
pub async fn retry<T: ExportTable>(call: &Call<T>, args: &Args) -> Reply {
    let status = NfsStat::Jukebox;
    match args {
        Args::Write { .. } => {
            call.failed_with_wcc(status, None).await.with_write_answer(WriteAnswer::failed(status))
        }
        _ => call.failed_with_attr(status, None).await,
    }
}
