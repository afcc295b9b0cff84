//! READ, WRITE, COMMIT (RFC 1813 §3.3.6, §3.3.7, §3.3.21).

use super::args::HandleArg;
use super::attr;
use super::call::{Call, held};
use super::export::ExportTable;
use super::reply::{Reply, WriteAnswer};
use super::status::NfsStat;
use crate::fs::api::{FileSystem, IO_BYTES_MAX, Stability};
use bytes::Bytes;

/// The most bytes that a READ may return.
pub fn read_bytes(count: u32) -> u32 {
    count.min(IO_BYTES_MAX as u32)
}

pub async fn read<T: ExportTable>(
    call: Call<T>,
    file: HandleArg,
    offset: u64,
    count: u32,
) -> Reply {
    let mut target = match call.target(file).await {
        Ok(target) => target,
        Err(status) => return call.failed_with_attr(status, None).await,
    };
    match held!(
        call,
        target.export,
        target.export.fs.read(&call.caller, target.file, offset, read_bytes(count))
    ) {
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

pub async fn write<T: ExportTable>(
    call: Call<T>,
    file: HandleArg,
    offset: u64,
    data: Bytes,
    stability: Stability,
) -> Reply {
    let mut target = match call.target(file).await {
        Ok(target) => target,
        Err(status) => {
            return call
                .failed_with_wcc(status, None)
                .await
                .with_write_answer(WriteAnswer::failed(status));
        }
    };
    match held!(
        call,
        target.export,
        target.export.fs.write(&call.caller, target.file, offset, data.clone(), stability)
    ) {
        Ok(written) => {
            let verifier = target.export.fs.write_verifier();
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
    let mut target = match call.target(file).await {
        Ok(target) => target,
        Err(status) => return call.failed_with_wcc(status, None).await,
    };
    match held!(
        call,
        target.export,
        target.export.fs.commit(&call.caller, target.file, offset, count)
    ) {
        Ok(change) => {
            let mut out = call.results(NfsStat::Ok, 2 * attr::ATTR_BYTES);
            attr::change(&mut out, target.export.fsid, &change);
            out.raw(&target.export.fs.write_verifier());
            Reply::small(out)
        }
        Err(status) => call.failed_with_wcc(status, Some(&target)).await,
    }
}
