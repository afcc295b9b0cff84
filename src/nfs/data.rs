//! READ, WRITE, COMMIT (RFC 1813 §3.3.6, §3.3.7, §3.3.21).

use super::args::HandleArg;
use super::attr;
use super::call::{Call, Reply, held};
use super::export::ExportTable;
use super::rpc;
use super::status::NfsStat;
use super::xdr::Encoder;
use crate::fs::api::{FileSystem, IO_BYTES_MAX, Stability};
use bytes::Bytes;

/// What a READ may answer, in bytes.
pub fn read_bytes(count: u32) -> u32 {
    count.min(IO_BYTES_MAX as u32)
}

pub async fn read<T: ExportTable>(
    call: Call<T>,
    file: HandleArg,
    offset: u64,
    count: u32,
) -> Reply {
    let target = match call.target(file).await {
        Ok(target) => target,
        Err(status) => return call.failed_with_attr(status, None).await,
    };
    let fs = &target.export.fs;
    match held!(call, target.export, fs.read(&call.caller, target.file, offset, read_bytes(count)))
    {
        Ok(read) => {
            let len = read.data.iter().map(Bytes::len).sum::<usize>();
            let mut out = call.results(NfsStat::Ok, attr::ATTR_BYTES + 16 + len.min(16 << 10));
            attr::post_op(&mut out, target.export.fsid, Some(&read.attr));
            out.u32(u32::try_from(len).unwrap_or(u32::MAX)).bool(read.eof);
            Reply::with_data(out, read.data, len)
        }
        Err(status) => call.failed_with_attr(status, Some(&target)).await,
    }
}

/// The answer of a WRITE without attributes, as it is remembered for its copies (R36).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteAnswer {
    status: NfsStat,
    count: u32,
    committed: Stability,
    /// The verifier of the opening that took the data: with a later one a client would believe lost
    /// data to be kept (R18).
    verifier: [u8; 8],
}

impl WriteAnswer {
    pub fn failed(status: NfsStat) -> Self {
        Self { status, count: 0, committed: Stability::Unstable, verifier: [0; 8] }
    }

    fn encode(&self, out: &mut Encoder) {
        out.u32(self.count);
        out.u32(match self.committed {
            Stability::Unstable => 0,
            Stability::DataSync => 1,
            Stability::FileSync => 2,
        });
        out.raw(&self.verifier);
    }

    /// The reply to a copy. It says nothing of attributes: those of then are old by now.
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

pub async fn write<T: ExportTable>(
    call: Call<T>,
    file: HandleArg,
    offset: u64,
    data: Bytes,
    stability: Stability,
) -> Reply {
    let target = match call.target(file).await {
        Ok(target) => target,
        Err(status) => {
            return call
                .failed_with_wcc(status, None)
                .await
                .with_write_answer(WriteAnswer::failed(status));
        }
    };
    let fs = &target.export.fs;
    match held!(
        call,
        target.export,
        fs.write(&call.caller, target.file, offset, data.clone(), stability)
    ) {
        Ok(written) => {
            let verifier = fs.write_verifier();
            let answer = WriteAnswer {
                status: NfsStat::Ok,
                count: written.count,
                committed: written.committed,
                verifier,
            };
            let mut out = call.results(NfsStat::Ok, 2 * attr::ATTR_BYTES);
            attr::change(&mut out, target.export.fsid, &written.change);
            answer.encode(&mut out);
            Reply::small(out).with_write_answer(answer)
        }
        Err(status) => call
            .failed_with_wcc(status, Some(&target))
            .await
            .with_write_answer(WriteAnswer::failed(status)),
    }
}

pub async fn commit<T: ExportTable>(
    call: Call<T>,
    file: HandleArg,
    offset: u64,
    count: u32,
) -> Reply {
    let target = match call.target(file).await {
        Ok(target) => target,
        Err(status) => return call.failed_with_wcc(status, None).await,
    };
    let fs = &target.export.fs;
    match held!(call, target.export, fs.commit(&call.caller, target.file, offset, count)) {
        Ok(change) => {
            let mut out = call.results(NfsStat::Ok, 2 * attr::ATTR_BYTES);
            attr::change(&mut out, target.export.fsid, &change);
            out.raw(&fs.write_verifier());
            Reply::small(out)
        }
        Err(status) => call.failed_with_wcc(status, Some(&target)).await,
    }
}
