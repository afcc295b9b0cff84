//! The reply to a call, and the short form in which the reply to a WRITE is remembered.

use super::attr;
use super::outbox::Message;
use super::rpc;
use super::status::NfsStat;
use super::xdr::{Encoder, padding};
use crate::fs::api::Stability;
use bytes::Bytes;

/// READ data up to this size is copied behind its header: cheaper than another piece for writev(2).
const FLAT_BYTES: usize = 8 << 10;

/// A reply, complete with its record mark. The data of a READ is not copied.
#[derive(Clone, Debug)]
pub struct Reply {
    head: Bytes,
    data: Vec<Bytes>,
    write: Option<WriteAnswer>,
}

impl Reply {
    pub fn small(out: Encoder) -> Self {
        Self::whole(rpc::finish(out, 0))
    }

    pub fn whole(head: Bytes) -> Self {
        Self { head, data: Vec::new(), write: None }
    }

    /// A reply to a WRITE, with the answer for its copies.
    pub fn with_write_answer(self, answer: WriteAnswer) -> Self {
        Self { write: Some(answer), ..self }
    }

    pub fn write_answer(&self) -> Option<WriteAnswer> {
        self.write
    }

    /// Ends with an opaque made of `data`, `len` bytes long.
    pub fn with_data(mut out: Encoder, mut data: Vec<Bytes>, len: usize) -> Self {
        const ZEROES: &[u8] = &[0; 4];
        out.u32(u32::try_from(len).unwrap_or(u32::MAX));
        let pad = Bytes::from_static(ZEROES.get(..padding(len)).unwrap_or(&[]));
        if len <= FLAT_BYTES {
            for piece in &data {
                out.raw(piece);
            }
            out.raw(&pad);
            return Self::small(out);
        }
        let head = rpc::finish(out, len + pad.len());
        if !pad.is_empty() {
            data.push(pad);
        }
        Self { head, data, write: None }
    }

    pub fn into_message(self) -> Message {
        Message { head: self.head, data: self.data, taken: None }
    }
}

/// The answer of a WRITE without attributes, as it is remembered for its copies (R36).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteAnswer {
    pub status: NfsStat,
    pub count: u32,
    pub committed: Stability,
    /// The verifier of the opening that took the data: with a later one a client would believe lost
    /// data to be kept (R18).
    pub verifier: [u8; 8],
}

impl WriteAnswer {
    pub fn failed(status: NfsStat) -> Self {
        Self { status, count: 0, committed: Stability::Unstable, verifier: [0; 8] }
    }

    pub fn encode(&self, out: &mut Encoder) {
        out.u32(self.count);
        out.u32(match self.committed {
            Stability::Unstable => 0,
            Stability::DataSync => 1,
            Stability::FileSync => 2,
        });
        out.raw(&self.verifier);
    }

    /// The reply to a copy, without attributes: those of the first reply are out of date.
    pub fn again(&self, xid: u32) -> Reply {
        let mut out = rpc::accept(xid, 32);
        out.u32(self.status as u32);
        attr::wcc(&mut out, 0, None, None);
        if self.status == NfsStat::Ok {
            self.encode(&mut out);
        }
        Reply::small(out)
    }
}
