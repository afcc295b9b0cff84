//! The network: a namespace for each node, joined by two bridges. Over one they reach the store,
//! over the other each other.
//!
//! A cut moves a node's link to a bridge that is down. Nothing is refused then, and no carrier is
//! lost: packets vanish both ways, as behind a switch that has failed. (A link without a bridge is
//! the host's, which answers for the store's address: a request still arrived after the node had
//! asked again where the store is, and renewed the lease of an owner that was cut off.)

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

/// The bridge that is down.
const NOWHERE: &str = "br-nowhere";

/// The nodes, by the names that their namespaces have too.
pub const SEATS: [&str; 4] = ["a", "b", "c", "d"];

/// The store's address on its bridge.
pub const STORE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 1, 254));

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Store,
    Peers,
}

impl Link {
    pub const ALL: [Self; 2] = [Self::Store, Self::Peers];

    fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Peers => "peers",
        }
    }

    fn bridge(self) -> String {
        format!("br-{}", self.name())
    }

    fn subnet(self) -> u8 {
        match self {
            Self::Store => 1,
            Self::Peers => 2,
        }
    }

    fn address(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.subnet(), host)
    }

    /// The end of a node's link at the bridge.
    fn port(self, seat: &str) -> String {
        format!("{}-{seat}", self.name())
    }
}

/// The address at which other nodes reach one.
pub fn peer_address(seat: &str) -> Ipv4Addr {
    let host = SEATS.iter().position(|other| *other == seat).expect("it has a seat");
    Link::Peers.address(u8::try_from(host).unwrap() + 1)
}

fn ip(args: &str) {
    let out = Command::new("ip").args(args.split(' ')).output().expect("ip of iproute2");
    assert!(out.status.success(), "ip {args}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Lays the network. The namespaces end with the processes of this program.
pub fn lay() {
    ip("link set lo up");
    ip(&format!("link add {NOWHERE} type bridge"));
    for link in Link::ALL {
        let bridge = link.bridge();
        ip(&format!("link add {bridge} type bridge"));
        ip(&format!("addr add {}/24 dev {bridge}", link.address(254)));
        ip(&format!("link set {bridge} up"));
    }
    for (seat, host) in SEATS.iter().zip(1..) {
        ip(&format!("netns add {seat}"));
        ip(&format!("-n {seat} link set lo up"));
        for link in Link::ALL {
            let (port, name) = (link.port(seat), link.name());
            ip(&format!("link add {port} type veth peer name {name} netns {seat}"));
            ip(&format!("-n {seat} addr add {}/24 dev {name}", link.address(host)));
            ip(&format!("-n {seat} link set {name} up"));
            ip(&format!("link set {port} up"));
            heal(seat, link);
        }
    }
}

pub fn cut(seat: &str, link: Link) {
    ip(&format!("link set {} master {NOWHERE}", link.port(seat)));
}

pub fn heal(seat: &str, link: Link) {
    ip(&format!("link set {} master {}", link.port(seat), link.bridge()));
}

/// This program with other arguments, on a node.
pub fn on(seat: &str, args: &[&OsStr]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", seat]).arg(std::env::current_exe().unwrap()).args(args);
    command
}
