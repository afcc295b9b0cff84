//! MOUNT version 3 (RFC 1813 appendix I), on the same port as NFS.

use super::call::{Call, Reply};
use super::export::{ExportTable, MountRefused};
use super::handle;
use super::rpc::{self, AUTH_SYS};
use super::xdr::{Cursor, Result};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

/// RFC 1813 §5.1.2, MNTPATHLEN.
const PATH_BYTES_MAX: usize = 1024;
/// What DUMP remembers. It is for people; nothing depends on it.
const MOUNTS_MAX: usize = 1024;

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
    pub fn decode(procedure: u32, args: &mut Cursor<'_>) -> Result<Option<Self>> {
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

/// Who said it mounted what, the latest [`MOUNTS_MAX`].
#[derive(Debug, Default)]
pub struct Mounts(Mutex<VecDeque<(IpAddr, Box<[u8]>)>>);

impl Mounts {
    fn add(&self, peer: IpAddr, path: Box<[u8]>) {
        let mut mounts = self.0.lock();
        if !mounts.iter().any(|(p, at)| *p == peer && *at == path) {
            if mounts.len() >= MOUNTS_MAX {
                mounts.pop_front();
            }
            mounts.push_back((peer, path));
        }
    }

    fn remove(&self, peer: IpAddr, path: Option<&[u8]>) {
        self.0.lock().retain(|(p, at)| *p != peer || path.is_some_and(|path| path != &**at));
    }
}

/// `mountstat3`.
fn status(refused: &MountRefused) -> u32 {
    match refused {
        MountRefused::NotFound => 2,
        MountRefused::Denied => 13,
        // MOUNT has no "try again"; mount(2) reports an I/O error, which the caller repeats.
        MountRefused::Unavailable(_) => 5,
    }
}

pub async fn answer<T: ExportTable>(call: Call<T>, args: MountArgs, peer: SocketAddr) -> Reply {
    let mounts = &call.shared.mounts;
    let mut out = rpc::accept(call.xid, 256);
    match args {
        MountArgs::Null => {}
        MountArgs::Mount(path) => match call.shared.table.mount(&path, peer).await {
            Ok(export) => {
                mounts.add(peer.ip(), path);
                out.u32(0);
                handle::encode(&mut out, &export.root_handle());
                out.u32(1).u32(AUTH_SYS);
            }
            Err(refused) => {
                tracing::info!(path = %path.escape_ascii(), %peer, %refused, "a MOUNT call was refused");
                out.u32(status(&refused));
            }
        },
        MountArgs::Dump => {
            for (peer, path) in mounts.0.lock().iter() {
                out.bool(true).opaque(peer.to_string().as_bytes()).opaque(path);
            }
            out.bool(false);
        }
        MountArgs::Unmount(path) => mounts.remove(peer.ip(), Some(&path)),
        MountArgs::UnmountAll => mounts.remove(peer.ip(), None),
        MountArgs::Export => {
            for export in call.shared.table.list().await {
                // No groups: what is exported is exported to whoever may connect.
                out.bool(true).opaque(export.path.as_bytes()).bool(false);
            }
            out.bool(false);
        }
    }
    Reply::small(out)
}
