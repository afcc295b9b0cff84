//! XDR (RFC 4506): a cursor over a received record and an encoder of replies.
//!
//! Every length is checked against a limit and against the bytes that are there before anything is
//! allocated.

use bytes::Bytes;

/// The bytes do not match the type, are missing, or exceed a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed XDR: {0}")]
pub struct XdrError(pub &'static str);

pub type Result<T> = std::result::Result<T, XdrError>;

/// Bytes that pad an opaque of `len` bytes to a multiple of four.
pub const fn padding(len: usize) -> usize {
    len.wrapping_neg() & 3
}

/// Reads values from the front of a record.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    record: &'a Bytes,
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(record: &'a Bytes) -> Self {
        Self { record, rest: record }
    }

    /// The bytes that were not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(XdrError("truncated"))?;
        self.rest = rest;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(XdrError("truncated"))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub fn bool(&mut self) -> Result<bool> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(XdrError("a boolean that is neither 0 nor 1")),
        }
    }

    /// A variable-length opaque or string of at most `max` bytes.
    pub fn opaque(&mut self, max: usize) -> Result<&'a [u8]> {
        let len = self.u32()? as usize;
        if len > max {
            return Err(XdrError("longer than the limit"));
        }
        let bytes = self.take(len)?;
        self.take(padding(len))?;
        Ok(bytes)
    }

    /// Like [`Cursor::opaque`], sharing the record's memory. A payload much smaller than the record
    /// that it would keep in memory is copied instead. Padding may be missing at the end of the
    /// record, as some clients send it.
    pub fn payload(&mut self, max: usize, copy_below: usize) -> Result<Bytes> {
        let len = self.u32()? as usize;
        if len > max {
            return Err(XdrError("longer than the limit"));
        }
        let bytes = self.take(len)?;
        self.take(padding(len).min(self.rest.len()))?;
        if len < copy_below {
            return Ok(Bytes::copy_from_slice(bytes));
        }
        Ok(self.record.slice_ref(bytes))
    }
}

/// Writes values to the end of a buffer.
#[derive(Clone, Debug, Default)]
pub struct Encoder {
    out: Vec<u8>,
}

impl Encoder {
    pub fn with_capacity(bytes: usize) -> Self {
        Self { out: Vec::with_capacity(bytes) }
    }

    pub fn len(&self) -> usize {
        self.out.len()
    }

    pub fn into_vec(self) -> Vec<u8> {
        self.out
    }

    /// Drops everything after the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.out.truncate(len);
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.u32(u32::from(value))
    }

    /// Fixed-length opaque whose length is a multiple of four.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    /// Variable-length opaque with its padding. Everything that this program encodes is far below 4
    /// GiB.
    pub fn opaque(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.out.extend_from_slice(bytes);
        self.out.resize(self.out.len() + padding(bytes.len()), 0);
        self
    }

    /// Overwrites four bytes that were written earlier.
    pub fn patch_u32(&mut self, at: usize, value: u32) {
        if let Some(slot) = self.out.get_mut(at..at + 4) {
            slot.copy_from_slice(&value.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opaque_needs_its_padding_and_keeps_its_limit() {
        let mut out = Encoder::default();
        out.opaque(b"hello").u32(7);
        let record = Bytes::from(out.into_vec());
        assert_eq!(record.len(), 16);
        let mut cursor = Cursor::new(&record);
        assert_eq!(cursor.opaque(5), Ok(&b"hello"[..]));
        assert_eq!(cursor.u32(), Ok(7));
        assert!(cursor.rest().is_empty());
        assert!(Cursor::new(&record).opaque(4).is_err());
        for len in 0..12 {
            let cut = record.slice(..len);
            assert!(Cursor::new(&cut).opaque(64).is_err(), "{len}");
        }
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        let record = Bytes::from_static(&[0xff; 8]);
        assert_eq!(Cursor::new(&record).opaque(usize::MAX), Err(XdrError("truncated")));
        assert!(Cursor::new(&record).payload(usize::MAX, usize::MAX).is_err());
    }

    #[test]
    fn a_large_payload_shares_the_record() {
        let mut out = Encoder::default();
        out.opaque(&[9; 4096]);
        let record = Bytes::from(out.into_vec());
        let shared = Cursor::new(&record).payload(8192, 1024).unwrap();
        assert_eq!(shared.as_ptr(), record[4..].as_ptr());
        let copied = Cursor::new(&record).payload(8192, 8192).unwrap();
        assert_ne!(copied.as_ptr(), record[4..].as_ptr());
        assert_eq!(shared, copied);
    }
}
