//! Record marking on a byte stream (RFC 5531 §11): finds the records in the received bytes.
//!
//! Holds no socket: the connection reads into [`RecordReader::spare`] and takes records from
//! [`RecordReader::next_record`]. Memory is bounded by one record of [`RECORD_BYTES_MAX`] and one
//! small buffer, nothing is filled with zeroes first, and an idle reader holds nothing.

use bytes::{Buf, Bytes, BytesMut};

/// The longest record: the largest WRITE with its header.
pub const RECORD_BYTES_MAX: usize = (1 << 20) + 4096;
/// A record from this size on is received into a buffer of its own, so that its payload can be kept
/// without copying and without pinning neighbours.
pub const LARGE_RECORD_BYTES: usize = 32 << 10;
/// Bytes of the buffer for everything else.
const BUFFER_BYTES: usize = 64 << 10;
/// The most fragments of one record: 1 MiB in pieces of 1 KiB, with room.
const FRAGMENTS_MAX: u32 = 2048;
const LAST_FRAGMENT: u32 = 1 << 31;

/// After any of these the position of the next record is unknown: the connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("a record of more than {RECORD_BYTES_MAX} bytes")]
    TooLong,
    #[error("a record of more than {FRAGMENTS_MAX} fragments")]
    TooManyFragments,
}

/// A record, or part of one, that is received into memory of its own.
#[derive(Debug)]
struct Large {
    bytes: BytesMut,
    /// Bytes of the current fragment that have not arrived.
    missing: usize,
    last: bool,
    fragments: u32,
}

#[derive(Debug, Default)]
pub struct RecordReader {
    buffer: BytesMut,
    large: Option<Large>,
}

impl RecordReader {
    /// The buffer for the next bytes. Always has room.
    pub fn spare(&mut self) -> &mut BytesMut {
        match &mut self.large {
            Some(large) if large.missing > 0 => {
                // Exactly the rest of the fragment: bytes after it belong into the small buffer.
                large.bytes.reserve(large.missing);
                &mut large.bytes
            }
            _ => {
                if self.buffer.capacity() - self.buffer.len() < BUFFER_BYTES / 4 {
                    self.buffer.reserve(BUFFER_BYTES - self.buffer.len().min(BUFFER_BYTES / 2));
                }
                &mut self.buffer
            }
        }
    }

    /// The most bytes that may be put into [`RecordReader::spare`].
    pub fn room(&self) -> usize {
        match &self.large {
            Some(large) if large.missing > 0 => large.missing,
            _ => usize::MAX,
        }
    }

    /// Notes that `len` bytes were put into [`RecordReader::spare`].
    pub fn received(&mut self, len: usize) {
        if let Some(large) = &mut self.large {
            large.missing = large.missing.saturating_sub(len);
        }
    }

    /// Bytes that the large record in progress may need, to request from a budget.
    pub fn large_bytes(&self) -> usize {
        self.large.as_ref().map_or(0, |large| large.bytes.len() + large.missing)
    }

    /// Frees memory while nothing is being received.
    pub fn release_buffers(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// Bytes without which a record that has begun to arrive cannot go on; 0: none has begun. To be
    /// called after [`RecordReader::next_record`] has returned none.
    pub fn missing(&self) -> usize {
        let of_mark = 4usize.saturating_sub(self.buffer.len());
        match &self.large {
            Some(large) if large.missing > 0 => large.missing,
            Some(_) => of_mark.max(1),
            None if self.buffer.is_empty() => 0,
            None if of_mark > 0 => of_mark,
            None => self
                .header()
                .ok()
                .flatten()
                .map_or(1, |(len, _)| (4 + len).saturating_sub(self.buffer.len()).max(1)),
        }
    }

    /// Returns whether a record has begun and not ended.
    pub fn mid_record(&self) -> bool {
        self.large.is_some() || !self.buffer.is_empty()
    }

    /// The next complete record, if it has arrived.
    ///
    /// # Errors
    /// A record beyond the limits; see [`RecordError`].
    pub fn next_record(&mut self) -> Result<Option<Bytes>, RecordError> {
        if self.large.is_none() {
            let Some((len, last)) = self.header()? else { return Ok(None) };
            if last && len < LARGE_RECORD_BYTES {
                return Ok(self.small(len));
            }
            self.buffer.advance(4);
            self.large = Some(Large {
                bytes: BytesMut::with_capacity(len),
                missing: len,
                last,
                fragments: 1,
            });
        }
        loop {
            self.fill();
            let Some(large) = &self.large else { return Ok(None) };
            if large.missing > 0 {
                return Ok(None);
            }
            if large.last {
                return Ok(self.large.take().map(|large| large.bytes.freeze()));
            }
            if !self.next_fragment()? {
                return Ok(None);
            }
        }
    }

    /// The record mark at the front of the buffer, not consumed.
    fn header(&self) -> Result<Option<(usize, bool)>, RecordError> {
        let Some(mark) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let mark = u32::from_be_bytes(*mark);
        let len = (mark & !LAST_FRAGMENT) as usize;
        if len > RECORD_BYTES_MAX {
            return Err(RecordError::TooLong);
        }
        Ok(Some((len, mark & LAST_FRAGMENT != 0)))
    }

    fn small(&mut self, len: usize) -> Option<Bytes> {
        if self.buffer.len() < 4 + len {
            return None;
        }
        self.buffer.advance(4);
        Some(self.buffer.split_to(len).freeze())
    }

    /// Moves the received part of the current fragment out of the small buffer.
    fn fill(&mut self) {
        if let Some(large) = &mut self.large {
            let part = large.missing.min(self.buffer.len());
            if let Some(bytes) = self.buffer.get(..part) {
                large.bytes.extend_from_slice(bytes);
            }
            self.buffer.advance(part);
            large.missing -= part;
        }
    }

    /// Goes on to the record's next fragment; false: its mark has not arrived.
    fn next_fragment(&mut self) -> Result<bool, RecordError> {
        let Some((len, last)) = self.header()? else { return Ok(false) };
        let Some(large) = &mut self.large else { return Ok(false) };
        if large.bytes.len() + len > RECORD_BYTES_MAX {
            return Err(RecordError::TooLong);
        }
        if large.fragments >= FRAGMENTS_MAX {
            return Err(RecordError::TooManyFragments);
        }
        self.buffer.advance(4);
        large.fragments += 1;
        large.missing = len;
        large.last = last;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(len: usize, last: bool) -> [u8; 4] {
        (u32::try_from(len).unwrap() | if last { LAST_FRAGMENT } else { 0 }).to_be_bytes()
    }

    fn put(reader: &mut RecordReader, bytes: &[u8]) {
        reader.spare().extend_from_slice(bytes);
        reader.received(bytes.len());
    }

    /// Feeds a stream in pieces of `step` bytes, as a socket would, and collects the records.
    fn feed(stream: &[u8], step: usize) -> Result<Vec<Bytes>, RecordError> {
        let mut reader = RecordReader::default();
        let (mut found, mut at) = (Vec::new(), 0);
        loop {
            while let Some(record) = reader.next_record()? {
                found.push(record);
            }
            if at == stream.len() {
                return Ok(found);
            }
            let take = step.min(stream.len() - at).min(reader.room());
            put(&mut reader, &stream[at..at + take]);
            at += take;
        }
    }

    fn body(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn records_of_any_size_in_any_pieces() {
        let sizes = [
            0,
            1,
            40,
            LARGE_RECORD_BYTES - 1,
            LARGE_RECORD_BYTES,
            100_000,
            3,
            RECORD_BYTES_MAX,
            80,
        ];
        let mut stream = Vec::new();
        for len in sizes {
            stream.extend(mark(len, true));
            stream.extend(body(len));
        }
        for step in [1, 3, 4, 1000, 65536, stream.len()] {
            let found = feed(&stream, step).unwrap();
            assert_eq!(found.len(), sizes.len());
            for (record, len) in found.iter().zip(sizes) {
                assert!(record[..] == body(len)[..], "{len} bytes in steps of {step}");
            }
        }
    }

    #[test]
    fn fragments_are_joined() {
        let whole = body(50_000);
        let mut stream = Vec::new();
        let mut parts = whole.chunks(1700).peekable();
        while let Some(part) = parts.next() {
            stream.extend(mark(part.len(), false));
            stream.extend(part);
            if parts.peek().is_none() {
                stream.extend(mark(0, true));
            }
        }
        stream.extend(mark(2, true));
        stream.extend(b"ok");
        for step in [1, 5, 4096, stream.len()] {
            let found = feed(&stream, step).unwrap();
            assert_eq!(found.len(), 2);
            assert!(found[0][..] == whole[..]);
            assert_eq!(&found[1][..], b"ok");
        }
    }

    #[test]
    fn limits_close_the_connection() {
        assert_eq!(feed(&mark(RECORD_BYTES_MAX + 1, true), 4), Err(RecordError::TooLong));
        assert_eq!(feed(&[0xff; 64], 64), Err(RecordError::TooLong));
        let endless: Vec<u8> = (0..=FRAGMENTS_MAX).flat_map(|_| mark(0, false)).collect();
        assert_eq!(feed(&endless, 8), Err(RecordError::TooManyFragments));
        let mut sum = Vec::new();
        for _ in 0..2 {
            sum.extend(mark(RECORD_BYTES_MAX / 2 + 1, false));
            sum.extend(body(RECORD_BYTES_MAX / 2 + 1));
        }
        assert_eq!(feed(&sum, 65536), Err(RecordError::TooLong));
    }

    /// A server that adopts a connection must find it between two records.
    #[test]
    fn what_is_missing_ends_where_the_record_ends() {
        let (mut stream, mut ends) = (Vec::new(), vec![0]);
        for len in [0, 1, 40, 3, LARGE_RECORD_BYTES, 7] {
            stream.extend(mark(len, true));
            stream.extend(body(len));
            ends.push(stream.len());
        }
        for parts in [[5, 0, 3], [LARGE_RECORD_BYTES, 2, 0]] {
            for (i, len) in parts.into_iter().enumerate() {
                stream.extend(mark(len, i == 2));
                stream.extend(body(len));
            }
            ends.push(stream.len());
        }
        stream.extend(mark(9, true));
        stream.extend(body(9));
        let near = |end: &usize| end.saturating_sub(12)..(end + 12).min(stream.len());
        for begun in ends.iter().flat_map(near) {
            let (mut reader, mut at) = (RecordReader::default(), 0);
            loop {
                while reader.next_record().unwrap().is_some() {}
                let wanted = if at < begun { begun - at } else { reader.missing() };
                if wanted == 0 {
                    break;
                }
                let take = wanted.min(reader.room()).min(stream.len() - at);
                put(&mut reader, &stream[at..at + take]);
                at += take;
            }
            let end = ends.iter().copied().find(|end| *end >= begun).unwrap_or(stream.len());
            assert_eq!(at, end, "begun up to {begun}");
        }
    }

    #[test]
    fn an_idle_reader_holds_nothing() {
        let mut reader = RecordReader::default();
        put(&mut reader, &mark(4, true));
        assert!(reader.mid_record());
        put(&mut reader, b"abcd");
        assert_eq!(reader.next_record().unwrap().unwrap(), "abcd");
        reader.release_buffers();
        assert_eq!((reader.buffer.capacity(), reader.mid_record()), (0, false));
    }
}
