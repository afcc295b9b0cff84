//! Procedures on a name in a directory: LOOKUP, CREATE, MKDIR, SYMLINK, MKNOD, REMOVE, RMDIR,
//! RENAME, LINK (RFC 1813 §3.3).

use super::args::{DirOpArgs, HandleArg, NodeArg};
use super::attr;
use super::call::{Call, Target, held, held_once};
use super::export::ExportTable;
use super::handle;
use super::reply::Reply;
use super::status::NfsStat;
use crate::fs::api::{Change, CreateHow, Created, FileSystem, SYMLINK_BYTES_MAX, SetAttr, Special};
use crate::types::EntryName;
use bytes::Bytes;

const NAME_BYTES_MAX: usize = 255;

/// Refuses names that no file system has. `.` and `..` pass.
pub fn check(name: &[u8]) -> Result<(), NfsStat> {
    if name.len() > NAME_BYTES_MAX {
        return Err(NfsStat::NameTooLong);
    }
    if name.is_empty() || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(NfsStat::Inval);
    }
    Ok(())
}

/// A name to make or remove; `dots` is what `.` and `..` get.
fn entry(name: &[u8], dots: NfsStat) -> Result<EntryName, NfsStat> {
    check(name)?;
    EntryName::try_from(name).map_err(|_| dots)
}

pub async fn lookup<T: ExportTable>(call: Call<T>, place: DirOpArgs) -> Reply {
    let mut target = match call.target(place.dir).await {
        Ok(target) => target,
        Err(status) => return call.failed_with_attr(status, None).await,
    };
    let found = async {
        check(&place.name)?;
        held!(call, target.export, target.export.fs.lookup(&call.caller, target.file, &place.name))
    };
    match found.await {
        Ok((attr, dir)) => {
            let mut out = call.results(NfsStat::Ok, 2 * attr::ATTR_BYTES + 64);
            handle::encode(&mut out, &target.export.seal(attr.file));
            attr::post_op(&mut out, target.export.fsid, Some(&attr));
            attr::post_op(&mut out, target.export.fsid, Some(&dir));
            Reply::small(out)
        }
        Err(status) => call.failed_with_attr(status, Some(&target)).await,
    }
}

/// The directory of a place, or the reply with the error.
macro_rules! directory {
    ($call:expr, $place:expr) => {
        match $call.target($place.dir).await {
            Ok(target) => target,
            Err(status) => return $call.failed_with_wcc(status, None).await,
        }
    };
}

async fn created<T: ExportTable>(
    call: &Call<T>,
    target: &Target<T::Fs>,
    made: Result<Created, NfsStat>,
) -> Reply {
    match made {
        Ok(made) => {
            let mut out = call.results(NfsStat::Ok, 3 * attr::ATTR_BYTES + 64);
            out.bool(true);
            handle::encode(&mut out, &target.export.seal(made.attr.file));
            attr::post_op(&mut out, target.export.fsid, Some(&made.attr));
            attr::change(&mut out, target.export.fsid, &made.dir);
            Reply::small(out)
        }
        Err(status) => call.failed_with_wcc(status, Some(target)).await,
    }
}

pub async fn create<T: ExportTable>(call: Call<T>, at: DirOpArgs, how: CreateHow) -> Reply {
    let mut target = directory!(call, at);
    let made = async {
        let name = entry(&at.name, NfsStat::Exist)?;
        held_once!(
            call,
            target.export,
            target.export.fs.create(&call.caller, target.file, &name, how)
        )
    };
    let made = made.await;
    created(&call, &target, made).await
}

pub async fn mkdir<T: ExportTable>(call: Call<T>, at: DirOpArgs, set: SetAttr) -> Reply {
    let mut target = directory!(call, at);
    let made = async {
        let name = entry(&at.name, NfsStat::Exist)?;
        held_once!(
            call,
            target.export,
            target.export.fs.mkdir(&call.caller, target.file, &name, set)
        )
    };
    let made = made.await;
    created(&call, &target, made).await
}

async fn make<T: ExportTable>(call: Call<T>, at: DirOpArgs, what: Special, set: SetAttr) -> Reply {
    let mut target = directory!(call, at);
    let made = async {
        let name = entry(&at.name, NfsStat::Exist)?;
        held_once!(
            call,
            target.export,
            target.export.fs.make(&call.caller, target.file, &name, what.clone(), set)
        )
    };
    let made = made.await;
    created(&call, &target, made).await
}

pub async fn symlink<T: ExportTable>(
    call: Call<T>,
    at: DirOpArgs,
    set: SetAttr,
    link: Bytes,
) -> Reply {
    if link.len() > SYMLINK_BYTES_MAX {
        return refused(call, at, NfsStat::NameTooLong).await;
    }
    // RFC 1813 §3.3.10 leaves the text to the client, but no path of any client holds a NUL, and
    // none is empty (POSIX symlink).
    if link.is_empty() || link.contains(&0) {
        return refused(call, at, NfsStat::Inval).await;
    }
    make(call, at, Special::Symlink(link), set).await
}

pub async fn mknod<T: ExportTable>(call: Call<T>, at: DirOpArgs, node: NodeArg) -> Reply {
    match node {
        NodeArg::Special(what, set) => make(call, at, what, set).await,
        NodeArg::BadType => refused(call, at, NfsStat::BadType).await,
    }
}

async fn refused<T: ExportTable>(call: Call<T>, at: DirOpArgs, status: NfsStat) -> Reply {
    let target = directory!(call, at);
    call.failed_with_wcc(status, Some(&target)).await
}

async fn changed<T: ExportTable>(
    call: &Call<T>,
    target: &Target<T::Fs>,
    change: Result<Change, NfsStat>,
) -> Reply {
    match change {
        Ok(change) => {
            let mut out = call.results(NfsStat::Ok, 2 * attr::ATTR_BYTES);
            attr::change(&mut out, target.export.fsid, &change);
            Reply::small(out)
        }
        Err(status) => call.failed_with_wcc(status, Some(target)).await,
    }
}

pub async fn remove<T: ExportTable>(call: Call<T>, at: DirOpArgs) -> Reply {
    let mut target = directory!(call, at);
    let change = async {
        let name = entry(&at.name, NfsStat::Inval)?;
        held_once!(call, target.export, target.export.fs.remove(&call.caller, target.file, &name))
    };
    let change = change.await;
    changed(&call, &target, change).await
}

pub async fn rmdir<T: ExportTable>(call: Call<T>, at: DirOpArgs) -> Reply {
    let mut target = directory!(call, at);
    let change = async {
        // POSIX rmdir: `.` is invalid, `..` is never empty.
        let dots = if *at.name == *b".." { NfsStat::NotEmpty } else { NfsStat::Inval };
        let name = entry(&at.name, dots)?;
        held_once!(call, target.export, target.export.fs.rmdir(&call.caller, target.file, &name))
    };
    let change = change.await;
    changed(&call, &target, change).await
}

pub async fn rename<T: ExportTable>(call: Call<T>, from: DirOpArgs, to: DirOpArgs) -> Reply {
    let (source, mut target) = match (call.target(from.dir).await, call.target(to.dir).await) {
        (Ok(source), Ok(target)) => (source, target),
        (Err(status), _) | (_, Err(status)) => {
            return renamed(&call, None, None, Err(status)).await;
        }
    };
    let change = async {
        if source.export.id != target.export.id {
            return Err(NfsStat::CrossDevice);
        }
        let (from, to) = (entry(&from.name, NfsStat::Inval)?, entry(&to.name, NfsStat::Inval)?);
        held_once!(
            call,
            target.export,
            target.export.fs.rename(&call.caller, (source.file, &from), (target.file, &to))
        )
    };
    let change = change.await;
    renamed(&call, Some(&source), Some(&target), change).await
}

async fn renamed<T: ExportTable>(
    call: &Call<T>,
    source: Option<&Target<T::Fs>>,
    target: Option<&Target<T::Fs>>,
    change: Result<(Change, Change), NfsStat>,
) -> Reply {
    let fsid = target.map_or(0, |target| target.export.fsid);
    let mut out;
    match change {
        Ok((from, to)) => {
            out = call.results(NfsStat::Ok, 4 * attr::ATTR_BYTES);
            attr::change(&mut out, fsid, &from);
            attr::change(&mut out, fsid, &to);
        }
        Err(status) => {
            out = call.results(status, 2 * attr::ATTR_BYTES + 24);
            for dir in [source, target] {
                let after = match dir {
                    Some(dir) => dir.attr_after(status).await,
                    None => None,
                };
                attr::wcc(&mut out, dir.map_or(0, |dir| dir.export.fsid), None, after.as_ref());
            }
        }
    }
    Reply::small(out)
}

pub async fn link<T: ExportTable>(call: Call<T>, file: HandleArg, at: DirOpArgs) -> Reply {
    let (source, mut target) = match (call.target(file).await, call.target(at.dir).await) {
        (Ok(source), Ok(target)) => (source, target),
        (Err(status), _) | (_, Err(status)) => return linked(&call, None, status).await,
    };
    let change = async {
        if source.export.id != target.export.id {
            return Err(NfsStat::CrossDevice);
        }
        let name = entry(&at.name, NfsStat::Exist)?;
        held_once!(
            call,
            target.export,
            target.export.fs.link(&call.caller, source.file, target.file, &name)
        )
    };
    match change.await {
        Ok((attr, dir)) => {
            let mut out = call.results(NfsStat::Ok, 3 * attr::ATTR_BYTES);
            attr::post_op(&mut out, target.export.fsid, Some(&attr));
            attr::change(&mut out, target.export.fsid, &dir);
            Reply::small(out)
        }
        Err(status) => linked(&call, Some((&source, &target)), status).await,
    }
}

type Ends<'a, F> = (&'a Target<F>, &'a Target<F>);

async fn linked<T: ExportTable>(
    call: &Call<T>,
    ends: Option<Ends<'_, T::Fs>>,
    status: NfsStat,
) -> Reply {
    let mut out = call.results(status, 2 * attr::ATTR_BYTES + 16);
    let (file, dir) = match ends {
        Some((file, dir)) => (file.attr_after(status).await, dir.attr_after(status).await),
        None => (None, None),
    };
    let fsid = ends.map_or(0, |(_, dir)| dir.export.fsid);
    attr::post_op(&mut out, fsid, file.as_ref());
    attr::wcc(&mut out, fsid, None, dir.as_ref());
    Reply::small(out)
}
