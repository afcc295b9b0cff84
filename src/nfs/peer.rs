//! The peer of a connection from this machine: AUTH_SYS credentials are only the client's own claim
//! (R23).
//!
//! A port below 1024 means that root, or the kernel, opened the socket. For other ports the
//! kernel's table of sockets shows whose socket it is, so that a program of root's, or of the user
//! that this server runs as, needs no such port.

use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::sync::Semaphore;

/// Tables of the connections of this network namespace.
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// Most bytes read of a table: some 400,000 sockets.
const TABLE_BYTES_MAX: u64 = 64 << 20;
/// One table is read at a time, however many connections come.
static READING: Semaphore = Semaphore::const_new(1);

/// Ports that only root may use, unless the administrator lowered `ip_unprivileged_port_start`.
pub(super) const RESERVED_BELOW: u16 = 1024;

/// Returns whether the peer may act for root here: it has a reserved port, or its socket is root's
/// or our own user's. `local` is our end.
pub(super) async fn is_privileged(peer: SocketAddr, local: SocketAddr) -> bool {
    if peer.port() < RESERVED_BELOW {
        return true;
    }
    if !peer.ip().to_canonical().is_loopback() {
        return false;
    }
    let Ok(_turn) = READING.acquire().await else { return false };
    let owner = tokio::task::spawn_blocking(move || owner(peer, local)).await;
    let ours = rustix::process::geteuid().as_raw();
    matches!(owner, Ok(Some(uid)) if uid == 0 || uid == ours)
}

/// The user whose socket is at `from`, connected to `to`.
fn owner(from: SocketAddr, to: SocketAddr) -> Option<u32> {
    TABLES.iter().find_map(|path| {
        let table = BufReader::new(std::fs::File::open(path).ok()?.take(TABLE_BYTES_MAX));
        table.lines().map_while(Result::ok).find_map(|line| owner_in(&line, from, to))
    })
}

/// The owner in one line of a table, if it is the line of this connection. A socket that its
/// program has closed shows root as its owner, so only one that is established and has an inode
/// counts.
fn owner_in(line: &str, from: SocketAddr, to: SocketAddr) -> Option<u32> {
    const ESTABLISHED: &str = "01";
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    // The state is followed by queues, timer and retransmissions.
    let (uid, inode) = (fields.nth(3)?, fields.nth(1)?);
    if state != ESTABLISHED
        || inode == "0"
        || address(local)? != canonical(from)
        || address(remote)? != canonical(to)
    {
        return None;
    }
    uid.parse().ok()
}

fn canonical(at: SocketAddr) -> SocketAddr {
    SocketAddr::new(at.ip().to_canonical(), at.port())
}

/// `0100007F:1F90`: each 32-bit word of the address as a number of this machine, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word =
        |at: usize| Some(u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match ip.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (at, part) in octets.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(at)?);
            }
            IpAddr::from(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(canonical(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?)))
}

/// The peers that may connect (R23).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Peers {
    /// From this machine, from a port that only root or the kernel may use.
    #[default]
    LoopbackReserved,
    /// From this machine.
    Loopback,
    /// From a reserved port; on this machine also root, and the user that this process runs as,
    /// from any port.
    Privileged,
    /// Like `Privileged`, and all others without root's rights.
    Everybody,
}

impl Peers {
    /// Decides about a connection to `local`, our end. A listener on loopback serves this machine
    /// alone, whatever the kernel routes there (`route_localnet`). `None` refuses.
    pub async fn admit(self, peer: SocketAddr, local: SocketAddr) -> Option<Trust> {
        let is_loopback = |at: SocketAddr| at.ip().to_canonical().is_loopback();
        let outside = is_loopback(local) && !is_loopback(peer);
        let whole = match self {
            Self::LoopbackReserved => is_loopback(peer) && peer.port() < RESERVED_BELOW,
            Self::Loopback => is_loopback(peer),
            Self::Privileged | Self::Everybody => !outside && is_privileged(peer, local).await,
        };
        match (whole, self) {
            (true, _) => Some(Trust::Whole),
            (false, Self::Everybody) if !outside => Some(Trust::Squashed),
            (false, _) => None,
        }
    }
}

/// The rights of a connection that was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    Whole,
    /// The connection's superuser is mapped to nobody.
    Squashed,
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpSocket, TcpStream};

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_line_of_the_table_is_read() {
        let line = |state: &str, inode: &str| {
            format!(
                "   3: 0100007F:C350 0100007F:2F11 {state} 00000000:00000000 00:00000000 00000000  \
                 1000        0 {inode} 1 0 20 4 30 10 -1"
            )
        };
        let (from, to) = (at("127.0.0.1:50000"), at("127.0.0.1:12049"));
        assert_eq!(owner_in(&line("01", "77"), from, to), Some(1000));
        assert_eq!(owner_in(&line("01", "77"), to, from), None, "the other end of it");
        assert_eq!(owner_in(&line("06", "77"), from, to), None, "TIME_WAIT shows root");
        assert_eq!(owner_in(&line("01", "0"), from, to), None, "closed by its program");
        let mapped = "1: 0000000000000000FFFF00000100007F:C350 \
            0000000000000000FFFF00000100007F:2F11 01 0:0 0:0 0 5 0 9";
        assert_eq!(owner_in(mapped, from, to), Some(5));
        assert_eq!(address("00000000000000000000000001000000:0050"), Some(at("[::1]:80")));
        for bad in [
            "",
            "sl local_address",
            "0: x:y z 01",
            "0: 0100007F:C350",
            "0: é:1 0100007F:2F11 01 0:0 0:0 0 5 0 9",
        ] {
            assert_eq!(owner_in(bad, from, to), None, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_socket_of_this_very_process_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(local).unwrap();
        let peer = client.local_addr().unwrap();
        assert_eq!(owner(peer, local), Some(rustix::process::geteuid().as_raw()));
        assert!(is_privileged(peer, local).await);
        drop(client);
        assert_eq!(owner(peer, local), None, "its owner is no longer known");
        assert!(!is_privileged(at("192.0.2.1:5000"), local).await);
    }

    /// A connection whose socket is `uid`'s: its two ends.
    async fn connected(
        listener: &TcpListener,
        uid: Option<u32>,
    ) -> (TcpStream, SocketAddr, SocketAddr) {
        let socket = TcpSocket::new_v4().unwrap();
        std::os::unix::fs::fchown(&socket, uid, None).unwrap();
        let stream = socket.connect(listener.local_addr().unwrap()).await.unwrap();
        let ends = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        (stream, ends.0, ends.1)
    }

    #[tokio::test]
    async fn only_who_may_be_root_is_served_in_full() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (_ours, peer, local) = connected(&listener, None).await;
        assert_eq!(Peers::Privileged.admit(peer, local).await, Some(Trust::Whole));
        assert_eq!(Peers::Everybody.admit(peer, local).await, Some(Trust::Whole));
        assert_eq!(Peers::LoopbackReserved.admit(peer, local).await, None);
        let reserved = SocketAddr::new(peer.ip(), 1023);
        assert_eq!(Peers::Privileged.admit(reserved, local).await, Some(Trust::Whole));
        assert_eq!(Peers::LoopbackReserved.admit(reserved, local).await, Some(Trust::Whole));
        // Only root may give a socket away.
        if rustix::process::geteuid().is_root() {
            let (_theirs, peer, local) = connected(&listener, Some(65534)).await;
            assert_eq!(Peers::Privileged.admit(peer, local).await, None);
            assert_eq!(Peers::Everybody.admit(peer, local).await, Some(Trust::Squashed));
        }
        let far: SocketAddr = "192.0.2.1:700".parse().unwrap();
        for peers in [Peers::Privileged, Peers::Everybody] {
            assert_eq!(peers.admit(far, local).await, None, "loopback is this machine's alone");
            assert_eq!(
                peers.admit(far, "192.0.2.9:12049".parse().unwrap()).await,
                Some(Trust::Whole)
            );
        }
    }
}
