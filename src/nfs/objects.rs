//! Procedures on one object: GETATTR, SETATTR, ACCESS, READLINK, FSSTAT, FSINFO, PATHCONF (RFC 1813
//! §3.3).

use super::args::HandleArg;
use super::attr;
use super::call::{Call, Target, held, held_once};
use super::export::ExportTable;
use super::listing::DIR_BYTES_MAX;
use super::reply::Reply;
use super::status::NfsStat;
use crate::fs::api::{Attr, FILE_BYTES_MAX, FileSystem, IO_BYTES_MAX, LINKS_MAX, SetAttr};
use crate::types::Timestamp;

/// FSF3_LINK, FSF3_SYMLINK, FSF3_HOMOGENEOUS, FSF3_CANSETTIME.
const PROPERTIES: u32 = 0x01 | 0x02 | 0x08 | 0x10;
const NAME_BYTES_MAX: u32 = 255;

pub async fn getattr<T: ExportTable>(call: Call<T>, file: HandleArg) -> Reply {
    let found = async {
        let mut target = call.target(file).await?;
        let attr = held!(call, target.export, target.export.fs.getattr(target.file))?;
        Ok((target.export.fsid, attr))
    };
    match found.await {
        Ok((fsid, attr)) => {
            let mut out = call.results(NfsStat::Ok, attr::ATTR_BYTES);
            attr::attr(&mut out, fsid, &attr);
            Reply::small(out)
        }
        Err(status) => call.failed(status),
    }
}

pub async fn setattr<T: ExportTable>(
    call: Call<T>,
    file: HandleArg,
    set: SetAttr,
    guard: Option<Timestamp>,
) -> Reply {
    let mut target = match call.target(file).await {
        Ok(target) => target,
        Err(status) => return call.failed_with_wcc(status, None).await,
    };
    match held_once!(
        call,
        target.export,
        target.export.fs.setattr(&call.caller, target.file, set, guard)
    ) {
        Ok(change) => {
            let mut out = call.results(NfsStat::Ok, 2 * attr::ATTR_BYTES);
            attr::change(&mut out, target.export.fsid, &change);
            Reply::small(out)
        }
        Err(status) => call.failed_with_wcc(status, Some(&target)).await,
    }
}

pub async fn access<T: ExportTable>(call: Call<T>, file: HandleArg, want: u32) -> Reply {
    let mut target = match call.target(file).await {
        Ok(target) => target,
        Err(status) => return call.failed_with_attr(status, None).await,
    };
    match held!(call, target.export, target.export.fs.access(&call.caller, target.file, want)) {
        Ok((granted, attr)) => {
            let mut out = call.results(NfsStat::Ok, attr::ATTR_BYTES + 8);
            attr::post_op(&mut out, target.export.fsid, Some(&attr));
            out.u32(granted);
            Reply::small(out)
        }
        Err(status) => call.failed_with_attr(status, Some(&target)).await,
    }
}

pub async fn readlink<T: ExportTable>(call: Call<T>, file: HandleArg) -> Reply {
    let mut target = match call.target(file).await {
        Ok(target) => target,
        Err(status) => return call.failed_with_attr(status, None).await,
    };
    match held!(call, target.export, target.export.fs.readlink(&call.caller, target.file)) {
        Ok((link, attr)) => {
            let mut out = call.results(NfsStat::Ok, attr::ATTR_BYTES + 12 + link.len());
            attr::post_op(&mut out, target.export.fsid, Some(&attr));
            out.opaque(&link);
            Reply::small(out)
        }
        Err(status) => call.failed_with_attr(status, Some(&target)).await,
    }
}

/// The object and its attributes, for the procedures that answer about the file system it is in.
async fn of_file_system<T: ExportTable>(
    call: &Call<T>,
    file: HandleArg,
) -> Result<(Target<T::Fs>, Attr), NfsStat> {
    let mut target = call.target(file).await?;
    let attr = held!(*call, target.export, target.export.fs.getattr(target.file))?;
    Ok((target, attr))
}

pub async fn fsstat<T: ExportTable>(call: Call<T>, file: HandleArg) -> Reply {
    let found = async {
        let (mut target, attr) = of_file_system(&call, file).await?;
        let stat = held!(call, target.export, target.export.fs.statfs())?;
        Ok((target.export.fsid, attr, stat))
    };
    match found.await {
        Ok((fsid, attr, stat)) => {
            let mut out = call.results(NfsStat::Ok, attr::ATTR_BYTES + 56);
            attr::post_op(&mut out, fsid, Some(&attr));
            out.u64(stat.total_bytes).u64(stat.free_bytes).u64(stat.free_bytes);
            out.u64(stat.total_inodes).u64(stat.free_inodes).u64(stat.free_inodes);
            // invarsec: others may change it at any time.
            out.u32(0);
            Reply::small(out)
        }
        Err(status) => call.failed_with_attr(status, None).await,
    }
}

pub async fn fsinfo<T: ExportTable>(call: Call<T>, file: HandleArg) -> Reply {
    match of_file_system(&call, file).await {
        Ok((target, attr)) => {
            let mut out = call.results(NfsStat::Ok, attr::ATTR_BYTES + 52);
            attr::post_op(&mut out, target.export.fsid, Some(&attr));
            let io = IO_BYTES_MAX as u32;
            // Largest and preferred size, and the preferred multiple: of READ, then of WRITE.
            out.u32(io).u32(io).u32(4096).u32(io).u32(io).u32(4096);
            out.u32(DIR_BYTES_MAX).u64(FILE_BYTES_MAX);
            // Times are kept to the nanosecond.
            out.u32(0).u32(1).u32(PROPERTIES);
            Reply::small(out)
        }
        Err(status) => call.failed_with_attr(status, None).await,
    }
}

pub async fn pathconf<T: ExportTable>(call: Call<T>, file: HandleArg) -> Reply {
    match of_file_system(&call, file).await {
        Ok((target, attr)) => {
            let mut out = call.results(NfsStat::Ok, attr::ATTR_BYTES + 28);
            attr::post_op(&mut out, target.export.fsid, Some(&attr));
            out.u32(LINKS_MAX).u32(NAME_BYTES_MAX);
            // no_trunc, chown_restricted, case_insensitive, case_preserving.
            out.bool(true).bool(true).bool(false).bool(true);
            Reply::small(out)
        }
        Err(status) => call.failed_with_attr(status, None).await,
    }
}
