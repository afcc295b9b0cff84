//! Replies on their way to a client. What was begun is finished whatever happens to the route: a
//! record that is cut short would make every later one unreadable.

use crate::nfs::Stream;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::time::Duration;

/// The last fragment's flag in a record mark (RFC 5531 §11).
const LAST_FRAGMENT: u32 = 1 << 31;
/// A record up to this size is copied next to others.
pub const SMALL_BYTES: usize = 16 << 10;
/// Copied records that are sent together.
const BATCH_BYTES: usize = 64 << 10;
/// Pieces handed to one writev(2).
const PIECES_MAX: usize = 16;

/// The mark in front of a record of one fragment.
pub fn mark(record: &[u8]) -> u32 {
    u32::try_from(record.len()).unwrap_or(0) | LAST_FRAGMENT
}

#[derive(Debug, Default)]
pub struct Outgoing {
    batch: BytesMut,
    pieces: VecDeque<Bytes>,
}

impl Outgoing {
    pub fn add(&mut self, record: Bytes) {
        self.batch.put_u32(mark(&record));
        if record.len() <= SMALL_BYTES {
            self.batch.extend_from_slice(&record);
            return;
        }
        self.pieces.push_back(self.batch.split().freeze());
        self.pieces.push_back(record);
    }

    /// Returns whether it is time to send.
    pub fn is_full(&self) -> bool {
        !self.pieces.is_empty() || self.batch.len() >= BATCH_BYTES
    }

    /// Sends everything. May be dropped and called again.
    ///
    /// # Errors
    /// The stream broke, or took nothing for `stall`.
    pub async fn send(&mut self, stream: &Stream, stall: Duration) -> io::Result<()> {
        if !self.batch.is_empty() {
            self.pieces.push_back(self.batch.split().freeze());
        }
        while !self.pieces.is_empty() {
            let slices: Vec<IoSlice<'_>> =
                self.pieces.iter().take(PIECES_MAX).map(|piece| IoSlice::new(piece)).collect();
            match stream.try_write_vectored(&slices) {
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let writable = tokio::time::timeout(stall, stream.writable()).await;
                    writable.map_err(|_| io::Error::from(ErrorKind::TimedOut))??;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            if written < piece.len() {
                piece.advance(written);
                return;
            }
            written -= piece.len();
            self.pieces.pop_front();
        }
    }
}
