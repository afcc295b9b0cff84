//! A call being carried out: its caller, its target, and how an error becomes a
//! status.

use super::args::HandleArg;
use super::attr;
use super::export::{Export, ExportTable, Found};
use super::handle::ExportId;
use super::reply::Reply;
use super::rpc;
use super::shared::Shared;
use super::status::NfsStat;
use super::xdr::Encoder;
use crate::fs::FsError;
use crate::fs::api::{Attr, Caller, FileRef, FileSystem};
use crate::types::Backoff;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A call in progress.
pub struct Call<T: ExportTable> {
    pub shared: Arc<Shared<T>>,
    pub xid: u32,
    pub caller: Caller,
}

/// An object that a call is about.
pub struct Target<F> {
    pub export: Arc<Export<F>>,
    pub file: FileRef,
}

impl<F: FileSystem> Target<F> {
    /// For replies to failed calls: clients then need not ask for the attributes themselves.
    pub async fn attr_after(&self, status: NfsStat) -> Option<Attr> {
        match status {
            NfsStat::Stale | NfsStat::BadHandle | NfsStat::Jukebox => None,
            _ => self.export.fs.getattr(self.file).await.ok(),
        }
    }
}

impl<T: ExportTable> Call<T> {
    /// The object that a handle names, once its export is open.
    pub async fn target(&self, handle: HandleArg) -> Result<Target<T::Fs>, NfsStat> {
        let handle = handle.ok_or(NfsStat::BadHandle)?;
        let table = &self.shared.table;
        let export = match table.find(handle.export) {
            Found::Open(export) => export,
            Found::Unknown => return Err(NfsStat::Stale),
            // The call is held instead of refused: after a restart every mount's calls arrive
            // before its dataset is open (R24).
            Found::Opening => {
                let limit = Instant::now() + self.shared.options.hold;
                match opened(table, handle.export, Some(limit)).await {
                    Found::Open(export) => export,
                    Found::Unknown => return Err(NfsStat::Stale),
                    Found::Opening => return Err(NfsStat::Jukebox),
                }
            }
        };
        let file = export.open(&handle)?;
        Ok(Target { export, file })
    }

    /// Begins the results with their status.
    pub fn results(&self, status: NfsStat, capacity: usize) -> Encoder {
        let mut out = rpc::accept(self.xid, 4 + capacity);
        out.u32(status as u32);
        out
    }

    /// Results of a failed call whose failure carries nothing.
    pub fn failed(&self, status: NfsStat) -> Reply {
        Reply::small(self.results(status, 0))
    }

    /// Results of a failed call whose failure carries `post_op_attr`.
    pub async fn failed_with_attr(&self, status: NfsStat, target: Option<&Target<T::Fs>>) -> Reply {
        let after = after(status, target).await;
        let mut out = self.results(status, attr::ATTR_BYTES + 8);
        attr::post_op(&mut out, target.map_or(0, |t| t.export.fsid), after.as_ref());
        Reply::small(out)
    }

    /// Results of a failed call whose failure carries `wcc_data`.
    pub async fn failed_with_wcc(&self, status: NfsStat, target: Option<&Target<T::Fs>>) -> Reply {
        let after = after(status, target).await;
        let mut out = self.results(status, attr::ATTR_BYTES + 12);
        attr::wcc(&mut out, target.map_or(0, |t| t.export.fsid), None, after.as_ref());
        Reply::small(out)
    }
}

async fn after<F: FileSystem>(status: NfsStat, target: Option<&Target<F>>) -> Option<Attr> {
    match target {
        Some(target) => target.attr_after(status).await,
        None => None,
    }
}

/// A call that is held because its volume cannot answer it at the moment.
#[derive(Debug)]
pub struct Hold {
    kind: HeldKind,
    since: Option<Instant>,
    backoff: Backoff,
    /// An attempt may have taken effect although it failed, because its file system ended.
    in_doubt: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeldKind {
    /// The call can be done again as another call.
    Repeatable,
    /// The call must not be done twice (R20).
    Once,
}

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

impl Hold {
    pub fn repeatable() -> Self {
        Self::new(HeldKind::Repeatable)
    }

    /// For a call that must not be done twice.
    pub fn once() -> Self {
        Self::new(HeldKind::Once)
    }

    fn new(kind: HeldKind) -> Self {
        let backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
        Self { kind, since: None, backoff, in_doubt: false }
    }

    /// Returns the status of a failed call; `None`: run it again, on `export`, which may be another
    /// opening of the volume by now. A call is run again only where nothing was done, or under a
    /// [`crate::fs::api::CallId`] by which the file system recognises it, in whichever opening.
    pub async fn judge<T: ExportTable>(
        &mut self,
        call: &Call<T>,
        export: &mut Arc<Export<T::Fs>>,
        error: FsError,
    ) -> Option<NfsStat> {
        match &error {
            // A call in progress when its volume was lost may have taken effect: it must not be
            // done again as another call.
            FsError::Unavailable(_) if export.is_lost() => return Some(NfsStat::Stale),
            FsError::Unavailable(_) => return self.wait(call, export).await,
            FsError::Fenced => export.lose(),
            FsError::Corrupt(_) | FsError::Internal(_) => call.shared.complain(&error),
            _ => {}
        }
        Some(NfsStat::from(&error))
    }

    /// Waits until it is worth while to run the call again.
    async fn wait<T: ExportTable>(
        &mut self,
        call: &Call<T>,
        export: &mut Arc<Export<T::Fs>>,
    ) -> Option<NfsStat> {
        let since = *self.since.get_or_insert_with(Instant::now);
        self.in_doubt |= export.fs.ended().is_some();
        let (pause, limit) = (self.backoff.pause(), self.limit(call, since));
        if limit.is_some_and(|limit| Instant::now() + pause >= limit) {
            return Some(NfsStat::Jukebox);
        }
        tokio::time::sleep(pause).await;
        let found = match call.shared.table.find(export.id) {
            Found::Opening => opened(&call.shared.table, export.id, limit).await,
            found => found,
        };
        match found {
            Found::Open(now) => *export = now,
            Found::Opening => return Some(NfsStat::Jukebox),
            Found::Unknown => return Some(NfsStat::Stale),
        }
        None
    }

    /// The time at which the client is told to retry, which it does under another transaction id. A
    /// call that may have been done, and must not be done twice, waits for the next opening of its
    /// volume, which has its reply if it was done.
    fn limit<T: ExportTable>(&self, call: &Call<T>, since: Instant) -> Option<Instant> {
        let must_be_recognised = self.in_doubt && self.kind == HeldKind::Once;
        (!must_be_recognised).then(|| since + call.shared.options.hold)
    }
}

/// Waits until an export is no longer opening, or for the limit.
async fn opened<T: ExportTable>(table: &T, id: ExportId, limit: Option<Instant>) -> Found<T::Fs> {
    match limit {
        None => table.opened(id).await,
        Some(limit) => {
            tokio::time::timeout_at(limit, table.opened(id)).await.unwrap_or(Found::Opening)
        }
    }
}

/// Calls the file system, holding the call while its volume cannot answer.
macro_rules! held {
    ($call:expr, $export:expr, $operation:expr) => {
        $crate::nfs::call::hold!($crate::nfs::call::Hold::repeatable(), $call, $export, $operation)
    };
}
pub(super) use held;

/// As [`held`], for a call that must not be done twice.
macro_rules! held_once {
    ($call:expr, $export:expr, $operation:expr) => {
        $crate::nfs::call::hold!($crate::nfs::call::Hold::once(), $call, $export, $operation)
    };
}
pub(super) use held_once;

macro_rules! hold {
    ($hold:expr, $call:expr, $export:expr, $operation:expr) => {{
        let mut hold = $hold;
        loop {
            match $operation.await {
                Ok(done) => break Ok(done),
                // Boxed: rare, and large beside the call itself.
                Err(error) => match Box::pin(hold.judge(&$call, &mut $export, error)).await {
                    Some(status) => break Err(status),
                    None => {}
                },
            }
        }
    }};
}
pub(super) use hold;
