//! The loopback address of a volume's endpoint. Pure.
//!
//! All mounts of one address and port share one TCP connection, so every volume has its own address
//! (nfs-facts). It is derived from the dataset, so that it is the same again after the state folder
//! was lost.

use crate::types::DatasetId;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Addresses of 127.0.0.0/8 that are tried.
const V4_TRIES: u32 = 64;
/// Ports of ::1 that are tried where there is no 127.0.0.0/8, from the configured one on.
const V6_TRIES: u16 = 2048;

/// Candidates in the order to try them. Never 127.0.0.0/12, which other software uses (127.0.0.53,
/// 127.0.1.1), and never an address of a network or of all hosts in it.
pub(super) fn candidates(dataset: DatasetId, port: u16) -> impl Iterator<Item = SocketAddr> {
    let v4 =
        (0..V4_TRIES).map(move |attempt| SocketAddr::new(IpAddr::V4(v4(dataset, attempt)), port));
    let start = u16::try_from(hash(dataset, V4_TRIES) % u64::from(V6_TRIES)).unwrap_or_default();
    let v6 = (0..V6_TRIES).map(move |attempt| {
        let offset = (start + attempt) % V6_TRIES;
        SocketAddr::new(
            IpAddr::V6(Ipv6Addr::LOCALHOST),
            port.saturating_add(1).saturating_add(offset),
        )
    });
    v4.chain(v6)
}

fn v4(dataset: DatasetId, attempt: u32) -> Ipv4Addr {
    let [_, a, b, c, ..] = hash(dataset, attempt).to_be_bytes();
    Ipv4Addr::new(127, 16 + a % 239, b, 1 + c % 254)
}

fn hash(dataset: DatasetId, attempt: u32) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(dataset.incarnation.as_bytes()).update(&attempt.to_be_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Incarnation, NameKey};
    use std::collections::HashSet;

    fn dataset(n: u8) -> DatasetId {
        DatasetId {
            key: NameKey::of("dataset", "d"),
            incarnation: Incarnation::from_bytes([n; 16]),
        }
    }

    #[test]
    fn addresses_are_stable_spread_and_clear_of_others() {
        let all: Vec<SocketAddr> =
            (0..=255).map(|n| candidates(dataset(n), 12049).next().unwrap()).collect();
        assert_eq!(all[7], candidates(dataset(7), 12049).next().unwrap());
        assert!(all.iter().collect::<HashSet<_>>().len() > 250);
        for at in all {
            let IpAddr::V4(ip) = at.ip() else { panic!("{at}") };
            let [_, a, _, c] = ip.octets();
            assert!(ip.is_loopback() && (16..255).contains(&a) && (1..255).contains(&c), "{ip}");
        }
    }

    #[test]
    fn without_ipv4_every_port_comes_once() {
        let v6: Vec<SocketAddr> =
            candidates(dataset(1), 12049).filter(SocketAddr::is_ipv6).collect();
        assert_eq!(v6.len(), usize::from(V6_TRIES));
        assert_eq!(v6.iter().collect::<HashSet<_>>().len(), v6.len());
        assert!(v6.iter().all(|at| (12050..12050 + V6_TRIES).contains(&at.port())));
    }
}
