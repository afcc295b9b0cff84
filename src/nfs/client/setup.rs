//! Finding a server's ports, and mounting.

use super::connection::{Client, ClientError, Result};
use super::dial::Credentials;
use super::types::FileHandle;
use crate::nfs::rpc::{MOUNT_PROGRAM, PORTMAP_PROGRAM};
use crate::nfs::xdr::Cursor;
use std::net::{IpAddr, SocketAddr};

const PORTMAP_PORT: u16 = 111;
const PORTMAP_GETPORT: u32 = 3;
const TCP: u32 = 6;

/// The TCP port of a program, version 3, as the host's portmapper says.
///
/// # Errors
/// [`ClientError::NoPort`]: the program is not registered.
pub async fn port_of(host: IpAddr, program: u32, what: &'static str) -> Result<u16> {
    let portmap =
        Client::connect(SocketAddr::new(host, PORTMAP_PORT), &Credentials::root()).await?;
    let reply = portmap
        .call_with(PORTMAP_PROGRAM, 2, PORTMAP_GETPORT, None, |out| {
            out.u32(program).u32(3).u32(TCP).u32(0);
        })
        .await?;
    match Cursor::new(&reply).u32()? {
        0 => Err(ClientError::NoPort { what }),
        port => u16::try_from(port).map_err(|_| ClientError::NoPort { what }),
    }
}

/// The root of an export, from the MOUNT program at an address.
///
/// # Errors
/// [`ClientError::Mount`]: the server refuses.
pub async fn mount_at(
    server: SocketAddr,
    path: &str,
    credentials: &Credentials,
) -> Result<FileHandle> {
    Client::connect(server, credentials).await?.mount(path).await
}

/// The root of an export: from the MOUNT program at `port` of the host, or at the port from the
/// portmapper.
///
/// # Errors
/// Like [`mount_at`] and [`port_of`].
pub async fn mount(
    host: IpAddr,
    port: Option<u16>,
    path: &str,
    credentials: &Credentials,
) -> Result<FileHandle> {
    let port = match port {
        Some(port) => port,
        None => port_of(host, MOUNT_PROGRAM, "MOUNT program").await?,
    };
    mount_at(SocketAddr::new(host, port), path, credentials).await
}
