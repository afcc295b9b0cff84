//! Finding a server's ports, connecting, mounting.

use super::connection::{Client, ClientError, Result};
use super::types::FileHandle;
use crate::nfs::rpc::{self, MOUNT_PROGRAM, PORTMAP_PROGRAM};
use crate::nfs::xdr::Cursor;
use std::io;
use std::net::{IpAddr, SocketAddr};
use tokio::net::{TcpSocket, TcpStream};

/// AUTH_SYS credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    pub machine: String,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

impl Credentials {
    pub fn root() -> Self {
        Self { machine: "zerofs-csi".into(), ..Self::default() }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        rpc::auth_sys(&self.machine, self.uid, self.gid, &self.groups)
    }
}

const RESERVED_PORTS: std::ops::RangeInclusive<u16> = 600..=1023;

/// Connects from a reserved port where this process may bind one, as servers expect by default
/// (R23).
pub(super) async fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let span = u32::from(RESERVED_PORTS.end() - RESERVED_PORTS.start()) + 1;
    let first = rand::random_range(0..span);
    for step in 0..span {
        let Ok(port) = u16::try_from((first + step) % span) else { break };
        match from_port(server, RESERVED_PORTS.start() + port).await {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            // In use, here or by an earlier connection to this server.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
                ) => {}
            connected => return connected,
        }
    }
    from_port(server, 0).await
}

async fn from_port(server: SocketAddr, port: u16) -> io::Result<TcpStream> {
    let (socket, any) = match server {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, IpAddr::from([0; 4])),
        SocketAddr::V6(_) => (TcpSocket::new_v6()?, IpAddr::from([0; 16])),
    };
    if port != 0 {
        socket.bind(SocketAddr::new(any, port))?;
    }
    let stream = socket.connect(server).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

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

/// The root of an export: from the MOUNT program at `port` of the host, or where the portmapper
/// says.
///
/// # Errors
/// As [`mount_at`] and [`port_of`].
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
