//! Connecting to a server, and the credentials of its calls.

use crate::nfs::rpc;
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
