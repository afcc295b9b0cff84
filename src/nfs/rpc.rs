//! ONC RPC (RFC 5531): call headers, credentials, reply headers.

use super::status::NfsStat;
use super::xdr::{Cursor, Encoder, Result, XdrError};
use crate::fs::api::{CallId, Caller};
use crate::types::is_owner;
use bytes::Bytes;
use siphasher::sip::SipHasher13;
use std::hash::Hasher;
use std::net::IpAddr;

pub const NFS_PROGRAM: u32 = 100_003;
pub const MOUNT_PROGRAM: u32 = 100_005;
pub const PORTMAP_PROGRAM: u32 = 100_000;
const RPC_VERSION: u32 = 2;
const CALL: u32 = 0;
const REPLY: u32 = 1;
pub const AUTH_NONE: u32 = 0;
pub const AUTH_SYS: u32 = 1;
/// The longest body of credentials or verifier (RFC 5531 §8.2).
const AUTH_BYTES_MAX: usize = 400;
/// RFC 5531 appendix A.
const MACHINE_BYTES_MAX: usize = 255;
const GROUPS_MAX: u32 = 16;
/// The arguments of a WRITE before its data: the longest handle with its length, offset, count,
/// stable_how, length of the data.
const WRITE_HEAD_BYTES: usize = 4 + 64 + 8 + 4 + 4 + 4;
/// The last fragment's flag in a record mark.
pub const LAST_FRAGMENT: u32 = 1 << 31;

/// `auth_stat` of a refused call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AuthStat {
    BadCredentials = 1,
    TooWeak = 5,
}

/// The reason why a call was not carried out, for the reply header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    RpcMismatch,
    Auth(AuthStat),
    ProgramUnavailable,
    ProgramMismatch { low: u32, high: u32 },
    ProcedureUnavailable,
    GarbageArgs,
}

/// A call whose header was understood. `args` stands at the first byte of the arguments.
#[derive(Debug)]
pub struct RpcCall<'a> {
    pub xid: u32,
    pub program: u32,
    pub version: u32,
    pub procedure: u32,
    pub flavor: u32,
    pub credentials: &'a [u8],
    pub args: Cursor<'a>,
}

/// The kind of a record.
#[derive(Debug)]
pub enum Received<'a> {
    Call(RpcCall<'a>),
    /// To be answered with a refusal.
    Refused {
        xid: u32,
        why: Refusal,
    },
}

/// # Errors
/// No call: nothing sensible can follow on this connection.
pub fn decode(record: &Bytes) -> Result<Received<'_>> {
    let mut args = Cursor::new(record);
    let xid = args.u32()?;
    if args.u32()? != CALL {
        return Err(XdrError("not a call"));
    }
    if args.u32()? != RPC_VERSION {
        return Ok(Received::Refused { xid, why: Refusal::RpcMismatch });
    }
    let (program, version, procedure) = (args.u32()?, args.u32()?, args.u32()?);
    let flavor = args.u32()?;
    let Ok(credentials) = args.opaque(AUTH_BYTES_MAX) else {
        return Ok(Received::Refused { xid, why: Refusal::Auth(AuthStat::BadCredentials) });
    };
    let _verifier_flavor = args.u32()?;
    args.opaque(AUTH_BYTES_MAX)?;
    Ok(Received::Call(RpcCall { xid, program, version, procedure, flavor, credentials, args }))
}

/// The host of a client: a part of what recognises its retransmitted calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientHost {
    /// The address that it connects from.
    Address(IpAddr),
    /// A node whose relay passes its calls on: the same identity whichever node answers them, so
    /// that a call which comes again after the volume has moved gets its first answer (R20).
    Node([u8; 16]),
}

/// The transaction id of a call or reply; `None`: it is too short.
pub fn xid_of(record: &[u8]) -> Option<u32> {
    record.first_chunk::<4>().map(|xid| u32::from_be_bytes(*xid))
}

/// Returns whether a record is a reply.
pub fn is_reply(record: &[u8]) -> bool {
    record.get(4..8).is_some_and(|kind| kind == REPLY.to_be_bytes())
}

fn has_word(record: &[u8], at: usize, value: u32) -> bool {
    record.get(at..at + 4).is_some_and(|word| word == value.to_be_bytes())
}

/// Returns whether a record is a call that asks for the handle of an export (MNT).
pub fn is_mount_request(record: &[u8]) -> bool {
    const MNT: u32 = 1;
    has_word(record, 4, CALL) && has_word(record, 12, MOUNT_PROGRAM) && has_word(record, 20, MNT)
}

/// Returns whether a record is a reply of ours that tells the client to try again later
/// (NFS3ERR_JUKEBOX).
pub fn is_retry_later(record: &[u8]) -> bool {
    // Accepted, an empty verifier, carried out, and the status that begins the result.
    let words = [REPLY, 0, 0, 0, 0, NfsStat::Jukebox as u32];
    words.into_iter().zip((4..).step_by(4)).all(|(word, at)| has_word(record, at, word))
}

/// The caller according to AUTH_SYS, and its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// The first half of a [`CallId`]: host and machine name.
    client: u64,
}

impl Identity {
    /// Reads the body of AUTH_SYS credentials.
    ///
    /// # Errors
    /// A machine name of more than 255 bytes, more than 16 groups, an invalid user or group, or too
    /// few bytes.
    pub fn decode(credentials: &[u8], host: ClientHost) -> Result<Self> {
        let body = Bytes::copy_from_slice(credentials);
        let mut body = Cursor::new(&body);
        let _stamp = body.u32()?;
        let machine = body.opaque(MACHINE_BYTES_MAX)?;
        let (uid, gid, count) = (body.u32()?, body.u32()?, body.u32()?);
        if count > GROUPS_MAX {
            return Err(XdrError("more than 16 groups"));
        }
        let groups = (0..count).map(|_| body.u32()).collect::<Result<Vec<u32>>>()?;
        if ![uid, gid].iter().chain(&groups).all(|number| is_owner(*number)) {
            return Err(XdrError("the reserved user or group -1"));
        }
        let mut hasher = SipHasher13::new();
        match host {
            ClientHost::Address(address) => match address.to_canonical() {
                IpAddr::V4(address) => hasher.write(&address.octets()),
                IpAddr::V6(address) => hasher.write(&address.octets()),
            },
            ClientHost::Node(node) => hasher.write(&node),
        }
        hasher.write(machine);
        Ok(Self { uid, gid, groups, client: hasher.finish() })
    }

    pub fn caller(&self, call: Option<CallId>) -> Caller {
        Caller { uid: self.uid, gid: self.gid, groups: self.groups.clone(), call }
    }

    /// Recognises a retransmission. The hash has a fixed key: the id is kept in the database across
    /// restarts (R20), and a client that makes two of its own calls collide harms only itself.
    pub fn call_id(&self, xid: u32, procedure: u32, args: &[u8]) -> CallId {
        let mut hasher = SipHasher13::new();
        hasher.write_u32(procedure);
        hasher.write(args);
        CallId { client: self.client, xid, checksum: hasher.finish() }
    }

    /// Like [`Self::call_id`], for a WRITE. The id is kept in memory only, and its megabyte is
    /// summed many times faster: the file and the range are hashed, and a CRC of the data
    /// distinguishes calls that two transports of one client send under the same number.
    pub fn write_id(&self, xid: u32, args: &[u8]) -> CallId {
        let mut hasher = SipHasher13::new();
        hasher.write(args.get(..WRITE_HEAD_BYTES).unwrap_or(args));
        hasher.write_u32(crc32fast::hash(args));
        CallId { client: self.client, xid, checksum: hasher.finish() }
    }
}

/// Begins a successful reply: record mark (filled in by [`finish`]) and header; the results follow.
pub fn accept(xid: u32, capacity: usize) -> Encoder {
    let mut out = Encoder::with_capacity(28 + capacity);
    out.u32(0).u32(xid).u32(REPLY).u32(0).u32(AUTH_NONE).u32(0).u32(0);
    out
}

/// Ends a reply that `more` bytes will follow.
pub fn finish(mut out: Encoder, more: usize) -> Bytes {
    let len = u32::try_from(out.len() - 4 + more).unwrap_or(0);
    out.patch_u32(0, len | LAST_FRAGMENT);
    Bytes::from(out.into_vec())
}

/// A whole reply with the reason why a call was not carried out.
pub fn refuse(xid: u32, why: Refusal) -> Bytes {
    let mut out = Encoder::with_capacity(40);
    out.u32(0).u32(xid).u32(REPLY);
    match why {
        Refusal::RpcMismatch => out.u32(1).u32(0).u32(RPC_VERSION).u32(RPC_VERSION),
        Refusal::Auth(stat) => out.u32(1).u32(1).u32(stat as u32),
        Refusal::ProgramUnavailable => out.u32(0).u32(AUTH_NONE).u32(0).u32(1),
        Refusal::ProgramMismatch { low, high } => {
            out.u32(0).u32(AUTH_NONE).u32(0).u32(2).u32(low).u32(high)
        }
        Refusal::ProcedureUnavailable => out.u32(0).u32(AUTH_NONE).u32(0).u32(3),
        Refusal::GarbageArgs => out.u32(0).u32(AUTH_NONE).u32(0).u32(4),
    };
    finish(out, 0)
}

/// Begins a call: record mark (filled in by [`finish`]), header, credentials; the arguments follow.
pub fn call(
    xid: u32,
    program: u32,
    version: u32,
    procedure: u32,
    credentials: &[u8],
    capacity: usize,
) -> Encoder {
    let mut out = Encoder::with_capacity(44 + credentials.len() + capacity);
    out.u32(0).u32(xid).u32(CALL).u32(RPC_VERSION).u32(program).u32(version).u32(procedure);
    out.u32(AUTH_SYS).opaque(credentials).u32(AUTH_NONE).u32(0);
    out
}

/// The body of AUTH_SYS credentials. Groups past the sixteenth are left out.
pub fn auth_sys(machine: &str, uid: u32, gid: u32, groups: &[u32]) -> Vec<u8> {
    let mut out = Encoder::default();
    let groups = groups.get(..GROUPS_MAX as usize).unwrap_or(groups);
    let machine = machine.as_bytes();
    out.u32(0).opaque(machine.get(..MACHINE_BYTES_MAX).unwrap_or(machine)).u32(uid).u32(gid);
    out.u32(groups.len() as u32);
    for group in groups {
        out.u32(*group);
    }
    out.into_vec()
}

/// Reads a reply's header up to the results.
///
/// # Errors
/// The server refused the call, or the bytes are no reply.
pub fn decode_reply(args: &mut Cursor<'_>) -> Result<()> {
    if args.u32()? != REPLY {
        return Err(XdrError("not a reply"));
    }
    if args.u32()? != 0 {
        return Err(match (args.u32()?, args.u32()?) {
            (0, _) => XdrError("refused: RPC version mismatch"),
            (1, 5) => XdrError("refused: credentials too weak"),
            (1, _) => XdrError("refused: authentication error"),
            _ => XdrError("refused"),
        });
    }
    let _verifier_flavor = args.u32()?;
    args.opaque(AUTH_BYTES_MAX)?;
    match args.u32()? {
        0 => Ok(()),
        1 => Err(XdrError("refused: program unavailable")),
        2 => Err(XdrError("refused: program version not supported")),
        3 => Err(XdrError("refused: procedure unavailable")),
        4 => Err(XdrError("refused: arguments not understood")),
        _ => Err(XdrError("refused: server error")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: ClientHost = ClientHost::Address(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));

    #[test]
    fn a_call_is_read_as_it_was_written() {
        let credentials = auth_sys("node", 1, 2, &[3, 4]);
        let mut out = call(7, NFS_PROGRAM, 3, 1, &credentials, 0);
        out.u32(99);
        let record = finish(out, 0).slice(4..);
        let Ok(Received::Call(call)) = decode(&record) else { panic!("not a call") };
        assert_eq!((call.xid, call.program, call.version, call.procedure), (7, NFS_PROGRAM, 3, 1));
        assert_eq!(call.args.rest(), 99u32.to_be_bytes());
        let identity = Identity::decode(call.credentials, PEER).unwrap();
        assert_eq!((identity.uid, identity.gid, &identity.groups[..]), (1, 2, &[3, 4][..]));
        for len in 0..40 {
            let cut = record.slice(..len);
            assert!(!matches!(decode(&cut), Ok(Received::Call(_))), "{len}");
        }
    }

    #[test]
    fn more_than_sixteen_groups_are_refused_before_anything_is_allocated() {
        let mut body = auth_sys("", 0, 0, &[]);
        let end = body.len() - 4;
        for claimed in [17, 1 << 31, u32::MAX] {
            body[end..].copy_from_slice(&u32::to_be_bytes(claimed));
            assert_eq!(Identity::decode(&body, PEER), Err(XdrError("more than 16 groups")));
        }
        assert_eq!(auth_sys("", 0, 0, &[1; 40]).len(), body.len() + 64);
    }

    #[test]
    fn the_client_is_its_machine_not_its_port() {
        let of = |machine, host| {
            Identity::decode(&auth_sys(machine, 0, 0, &[]), host).unwrap().call_id(1, 12, b"args")
        };
        let address = |text: &str| ClientHost::Address(text.parse().unwrap());
        assert_eq!(of("a", PEER), of("a", PEER));
        assert_ne!(of("a", PEER), of("b", PEER));
        assert_ne!(of("a", PEER), of("a", address("127.0.0.2")));
        assert_eq!(of("a", PEER), of("a", address("::ffff:127.0.0.1")));
        assert_ne!(of("a", ClientHost::Node([1; 16])), of("a", ClientHost::Node([2; 16])));
    }
}
