//! A call being carried out: its caller, its target, and how an error becomes a
//! status.

use super::args::HandleArg;
use super::attr;
use super::export::{Export, ExportTable, Found};
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
                match tokio::time::timeout(self.shared.options.hold, table.opened(handle.export))
                    .await
                {
                    Ok(Found::Open(export)) => export,
                    Ok(Found::Unknown) => return Err(NfsStat::Stale),
                    Ok(Found::Opening) | Err(_) => return Err(NfsStat::Jukebox),
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

/// The time for which a call has been held because the object store does not answer.
#[derive(Debug)]
pub struct Hold {
    since: Option<Instant>,
    backoff: Backoff,
}

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

impl Default for Hold {
    fn default() -> Self {
        Self { since: None, backoff: Backoff::new(PAUSE_MIN, PAUSE_MAX) }
    }
}

impl Hold {
    /// Returns the status of a failed call; `None`: run it again. A call is run again only where
    /// nothing was done, or under a [`crate::fs::api::CallId`] by which the file system recognises
    /// it.
    pub async fn judge<T: ExportTable>(
        &mut self,
        call: &Call<T>,
        export: &Export<T::Fs>,
        error: FsError,
    ) -> Option<NfsStat> {
        match &error {
            // A call in progress when its volume stopped may have taken effect: it must not be done
            // again as another call.
            FsError::Unavailable(_) if export.is_lost() => return Some(NfsStat::Stale),
            FsError::Unavailable(_) => {
                let since = *self.since.get_or_insert_with(Instant::now);
                let pause = self.backoff.pause();
                if since.elapsed() + pause < call.shared.options.hold {
                    tokio::time::sleep(pause).await;
                    return None;
                }
            }
            FsError::Fenced => export.lose(),
            FsError::Corrupt(_) | FsError::Internal(_) => call.shared.complain(&error),
            _ => {}
        }
        Some(NfsStat::from(&error))
    }
}

/// Calls the file system, holding the call while the object store does not answer.
macro_rules! held {
    ($call:expr, $export:expr, $operation:expr) => {{
        let mut hold = $crate::nfs::call::Hold::default();
        loop {
            match $operation.await {
                Ok(done) => break Ok(done),
                // Boxed: rare, and large beside the call itself.
                Err(error) => match Box::pin(hold.judge(&$call, &$export, error)).await {
                    Some(status) => break Err(status),
                    None => {}
                },
            }
        }
    }};
}
pub(super) use held;
