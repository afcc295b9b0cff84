//! Finds damaged tables when compaction makes no progress.
//!
//! SlateDB retries a compaction that meets a damaged table at once and without end, and reports no
//! error. L0 grows meanwhile, and once it is full all writes stop. So a compaction that takes long
//! is a reason to read every row: that shows which table is damaged, if one is.
//!
//! ```text
//! compaction takes long ─▶ all rows are read ─▶ none damaged: the compaction goes on
//!                                             └▶ damaged table: logged ─┬▶ retry ─▶ restored
//!                                                                       └▶ L0 full ─▶ changes fail
//! ```

use super::{DbCache, DbPlace, Reader, settings};
use crate::fs::FsError;
use bytes::Bytes;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A compaction that takes longer is investigated, and again after twice as long.
const SUSPICIOUS: Duration = Duration::from_secs(60);
/// Reading every row bypasses the cache of the process, which may hold data that the store has
/// lost.
const CACHE_BYTES: u64 = 4 << 20;

/// The known damage of an open database's tables.
#[derive(Debug)]
pub(super) struct Damage(watch::Sender<Option<FsError>>);

impl Damage {
    pub fn none() -> Self {
        Self(watch::Sender::new(None))
    }

    /// The last damage found, until compaction makes progress again.
    pub fn found(&self) -> Option<FsError> {
        self.0.borrow().clone()
    }

    /// Records the result of a compaction, and logs a change.
    pub fn tell(&self, place: &DbPlace, found: Option<&FsError>) {
        let text = |error: &FsError| error.to_string();
        let is_new = self.0.send_if_modified(|last| {
            let is_new = last.as_ref().map(text) != found.map(text);
            *last = found.cloned();
            is_new
        });
        match found {
            Some(error) if is_new => tracing::error!(
                %error, incarnation = %place.incarnation,
                "a table of the volume's database is damaged: it is not compacted, and once {} \
                 tables wait for that no change is taken any \
                 more; put the object back from another version or copy of the bucket, or clone a \
                 snapshot that `zerofs-csi check` finds clean",
                settings::L0_MAX
            ),
            None if is_new => {
                tracing::info!(
                    incarnation = %place.incarnation,
                    "the volume's database is compacted again"
                );
            }
            _ => {}
        }
    }
}

/// Decides when to look for damage.
pub(super) struct Suspicion {
    at: Instant,
    wait: Duration,
}

impl Suspicion {
    pub fn new() -> Self {
        Self { at: Instant::now() + SUSPICIOUS, wait: SUSPICIOUS }
    }

    /// Reads every row if it is due.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] names the damage. No other error is a reason to stop compacting.
    pub async fn look(&mut self, place: &DbPlace) -> Result<(), FsError> {
        if Instant::now() < self.at {
            return Ok(());
        }
        let read = Box::pin(read_all(place)).await;
        self.wait *= 2;
        self.at = Instant::now() + self.wait;
        match read {
            Err(error @ FsError::Corrupt(_)) => Err(error),
            Err(error) => {
                tracing::debug!(%error, "a compaction that takes long could not be looked into");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

async fn read_all(place: &DbPlace) -> Result<(), FsError> {
    let uncached = DbPlace { cache: DbCache::new(CACHE_BYTES), ..place.clone() };
    let reader = Reader::newest(&uncached).await?;
    let read = async {
        let mut pages = reader.pages(Bytes::new(), Bytes::from_static(&[0xff]));
        while pages.next().await?.is_some() {}
        Ok(())
    };
    let read = read.await;
    reader.close().await?;
    read
}
