//! Streams the content of a file.

use super::{Entry, OpenRoot, kind_name, refused, shown_path};
use crate::control::ControlError;
use crate::fs::api::FileKind;
use crate::types::Class;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, TryFutureExt, stream};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio_util::task::AbortOnDropHandle;

/// The largest piece of a stream.
pub const PIECE_BYTES_MAX: u64 = 4 << 20;
/// The smallest piece, but for the last: less would take many requests for one pack.
const PIECE_BYTES_MIN: u64 = 256 << 10;
/// Memory that all streams of the process aim to stay below: with many of them, pieces are
/// smaller.
const STREAMS_BYTES: u64 = 64 << 20;
/// Pieces of a stream in memory: the one that its reader has, and the next.
const PIECES_HELD: u64 = 2;

/// The number of streams that read.
static STREAMS: AtomicU64 = AtomicU64::new(0);

struct Counted;

impl Counted {
    fn new() -> Self {
        STREAMS.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        STREAMS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The size of the next piece, with that many streams.
fn piece_bytes(streams: u64) -> u64 {
    (STREAMS_BYTES / PIECES_HELD / streams.max(1)).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX)
}

impl OpenRoot {
    /// The bytes of a range of a file, in order, cut at its end; holes are zeros. Pieces of at most
    /// [`PIECE_BYTES_MAX`]; the next one is read while the caller handles one. The root stays open
    /// as long as the stream.
    ///
    /// # Errors
    /// `Invalid` for what is no regular file; the stream ends with the first error.
    pub fn read(
        &self,
        file: &Entry,
        range: Range<u64>,
    ) -> impl Stream<Item = Result<Bytes, ControlError>> + Send + 'static + use<> {
        let wrong = (file.kind != FileKind::Regular).then(|| {
            let why =
                format!("{} is a {}, not a file", shown_path(&file.path), kind_name(file.kind));
            Err(refused(Class::Invalid, why))
        });
        let end = if wrong.is_some() { 0 } else { range.end.min(file.size) };
        let (root, object) = (self.clone(), Arc::new(file.object().clone()));
        let counted = Counted::new();
        let pieces = stream::unfold(range.start, move |at| {
            let _counted = &counted;
            let len = piece_bytes(STREAMS.load(Ordering::Relaxed)).min(end.saturating_sub(at));
            futures::future::ready((len > 0).then_some(((at, len), at.saturating_add(len))))
        });
        let read = move |(at, len)| {
            let (root, object) = (root.clone(), object.clone());
            AbortOnDropHandle::new(tokio::spawn(
                async move { piece(&root, &object, at, len).await },
            ))
            .map_err(|error| ControlError::Internal(format!("a read ended early: {error}")))
            .and_then(futures::future::ready)
        };
        let whole = pieces.map(read).buffered(2);
        stream::iter(wrong).chain(whole).scan(false, |failed, item| {
            let ended = std::mem::replace(failed, item.is_err());
            futures::future::ready((!ended).then_some(item))
        })
    }
}

async fn piece(
    root: &OpenRoot,
    object: &crate::fs::SnapshotInode,
    at: u64,
    len: u64,
) -> Result<Bytes, ControlError> {
    let wanted = u32::try_from(len).unwrap_or(u32::MAX);
    let mut parts = root.files().pieces(object, at, wanted).await?;
    if let [(_, Some(_))] = parts.as_slice()
        && let Some((_, Some(only))) = parts.pop()
    {
        return Ok(only);
    }
    let mut whole = BytesMut::with_capacity(wanted as usize);
    for (len, bytes) in parts {
        match bytes {
            Some(bytes) => whole.extend_from_slice(&bytes),
            None => whole.resize(whole.len() + usize::try_from(len).unwrap_or(0), 0),
        }
    }
    Ok(whole.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_streams_share_the_memory_of_few() {
        assert_eq!(piece_bytes(0), PIECE_BYTES_MAX);
        assert_eq!(piece_bytes(8), PIECE_BYTES_MAX);
        assert!(100 * PIECES_HELD * piece_bytes(100) <= STREAMS_BYTES);
        assert_eq!(piece_bytes(1_000_000), PIECE_BYTES_MIN);
    }
}
