//! MOUNT version 3 (RFC 1813 appendix I), on the same port as NFS.

use super::call::{Call, held};
use super::export::{ExportTable, MountPoint, MountRefused};
use super::handle::{self, HANDLE_BYTES};
use super::names;
use super::reply::Reply;
use super::rpc::{self, AUTH_SYS};
use super::status::NfsStat;
use super::xdr::{self, Cursor};
use crate::fs::api::{FileKind, FileSystem};
use std::fmt::Display;
use std::net::SocketAddr;

/// RFC 1813 §5.1.2, MNTPATHLEN.
const PATH_BYTES_MAX: usize = 1024;
/// A procedure of MOUNT with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountArgs {
    Null,
    Mount(Box<[u8]>),
    Dump,
    Unmount(Box<[u8]>),
    UnmountAll,
    Export,
}

impl MountArgs {
    /// `None`: no such procedure.
    ///
    /// # Errors
    /// The bytes are not this procedure's arguments (`GARBAGE_ARGS`).
    pub fn decode(procedure: u32, args: &mut Cursor<'_>) -> xdr::Result<Option<Self>> {
        Ok(Some(match procedure {
            0 => Self::Null,
            1 => Self::Mount(args.opaque(PATH_BYTES_MAX)?.into()),
            2 => Self::Dump,
            3 => Self::Unmount(args.opaque(PATH_BYTES_MAX)?.into()),
            4 => Self::UnmountAll,
            5 => Self::Export,
            _ => return Ok(None),
        }))
    }
}

/// `mountstat3`.
fn status(refused: &MountRefused) -> u32 {
    match refused {
        MountRefused::NotFound => 2,
        MountRefused::Denied => 13,
        // MOUNT has no "try again"; mount(2) reports an I/O error, and the caller retries.
        MountRefused::Unavailable(_) => 5,
    }
}

/// The handle that a path leads to, or `mountstat3`.
async fn mount<T: ExportTable>(
    call: &Call<T>,
    path: &[u8],
    peer: SocketAddr,
) -> Result<[u8; HANDLE_BYTES], u32> {
    let refuse = |refused: &dyn Display, status| {
        tracing::info!(path = %path.escape_ascii(), %peer, %refused, "refused a MOUNT call");
        status
    };
    let point = call
        .shared
        .table
        .mount(path, peer)
        .await
        .map_err(|refused| refuse(&refused, status(&refused)))?;
    descend(call, &point).await.map_err(|refused| refuse(&refused, below_status(refused)))
}

/// Walks from the root to a directory, with the rights of the caller. Links are not followed: the
/// client resolves them.
async fn descend<T: ExportTable>(
    call: &Call<T>,
    point: &MountPoint<T::Fs>,
) -> Result<[u8; HANDLE_BYTES], NfsStat> {
    let mut export = point.export.clone();
    let mut at = export.fs.root();
    for name in
        point.below.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".")
    {
        names::check(name)?;
        if name == b".." {
            return Err(NfsStat::Inval);
        }
        let (found, _) = held!(*call, export, export.fs.lookup(&call.caller, at, name))?;
        if found.kind != FileKind::Directory {
            return Err(NfsStat::NotDir);
        }
        at = found.file;
    }
    Ok(export.seal(at))
}

/// The statuses that MOUNT shares with NFS have the same numbers there (RFC 1813 §5.1.5); the
/// others are an I/O error.
fn below_status(status: NfsStat) -> u32 {
    let shared = [
        NfsStat::Perm,
        NfsStat::NoEnt,
        NfsStat::Access,
        NfsStat::NotDir,
        NfsStat::Inval,
        NfsStat::NameTooLong,
    ];
    if shared.contains(&status) { status as u32 } else { NfsStat::Io as u32 }
}

pub async fn answer<T: ExportTable>(call: Call<T>, args: MountArgs, peer: SocketAddr) -> Reply {
    let mounts = &call.shared.mounts;
    let mut out = rpc::accept(call.xid, 256);
    match args {
        MountArgs::Null => {}
        MountArgs::Mount(path) => match mount(&call, &path, peer).await {
            Ok(handle) => {
                mounts.add(peer.ip(), path);
                out.u32(0);
                handle::encode(&mut out, &handle);
                out.u32(1).u32(AUTH_SYS);
            }
            Err(status) => drop(out.u32(status)),
        },
        MountArgs::Dump => {
            mounts.for_each(|peer, path| {
                out.bool(true).opaque(peer.to_string().as_bytes()).opaque(path);
            });
            out.bool(false);
        }
        MountArgs::Unmount(path) => mounts.remove(peer.ip(), Some(&path)),
        MountArgs::UnmountAll => mounts.remove(peer.ip(), None),
        MountArgs::Export => {
            for export in call.shared.table.list().await {
                // No groups: any client that may connect may mount.
                out.bool(true).opaque(export.path.as_bytes()).bool(false);
            }
            out.bool(false);
        }
    }
    Reply::small(out)
}
