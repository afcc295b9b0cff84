//! Feeds outside bytes to every parser of this edge, without a socket, for the fuzzers.

use super::args::{Args, Procedure};
use super::attr::{FileAttr, Wcc};
use super::handle::{Handle, HandleKey};
use super::mount::MountArgs;
use super::record::{RECORD_BYTES_MAX, RecordReader};
use super::rpc::{self, ClientHost, Identity, Received};
use super::xdr::Cursor;
use bytes::Bytes;
use std::net::{IpAddr, Ipv4Addr};

/// A stream that arrives in pieces of `step` bytes. Returns the number of records found before the
/// stream ended or broke.
///
/// # Panics
/// When a record or the reader's memory exceeds its limit.
pub fn records(stream: &[u8], step: usize) -> usize {
    let (mut reader, mut rest, mut found) = (RecordReader::default(), stream, 0);
    loop {
        loop {
            match reader.next_record() {
                Ok(Some(record)) => {
                    assert!(record.len() <= RECORD_BYTES_MAX);
                    found += 1;
                }
                Ok(None) => break,
                Err(_) => return found,
            }
        }
        assert!(reader.large_bytes() <= RECORD_BYTES_MAX);
        let (now, later) = rest.split_at(step.max(1).min(reader.room()).min(rest.len()));
        if now.is_empty() {
            return found;
        }
        reader.spare().extend_from_slice(now);
        reader.received(now.len());
        rest = later;
    }
}

/// A record as a server reads it: header, credentials, arguments.
pub fn call(record: &[u8]) {
    let record = Bytes::copy_from_slice(record);
    let Ok(Received::Call(mut call)) = rpc::decode(&record) else { return };
    let host = ClientHost::Address(IpAddr::V4(Ipv4Addr::LOCALHOST));
    if let Ok(identity) = Identity::decode(call.credentials, host) {
        identity.caller(Some(identity.call_id(call.xid, call.procedure, call.args.rest())));
    }
    match Procedure::from_wire(call.procedure) {
        Some(procedure) => drop(Args::decode(procedure, &mut call.args)),
        None => drop(MountArgs::decode(call.procedure, &mut call.args)),
    }
}

/// The arguments of an NFS procedure, or of MOUNT's for numbers past the last.
///
/// # Panics
/// The decoded value holds more bytes than came in.
pub fn arguments(procedure: u32, args: &[u8]) {
    let record = Bytes::copy_from_slice(args);
    let mut cursor = Cursor::new(&record);
    match Procedure::from_wire(procedure) {
        Some(procedure) => {
            if let Ok(args) = Args::decode(procedure, &mut cursor) {
                assert!(args.payload_bytes() <= record.len());
                assert!(args.reply_bytes().unwrap_or(0) <= RECORD_BYTES_MAX);
            }
        }
        None => drop(MountArgs::decode(procedure - Procedure::ALL.len() as u32, &mut cursor)),
    }
}

/// A file handle.
///
/// # Panics
/// When forged bytes are accepted.
pub fn handle(bytes: &[u8]) {
    if let Some(handle) = Handle::parse(bytes) {
        assert!(HandleKey::new([7; 16]).open(&handle).is_err(), "a handle was made up");
    }
}

/// A reply as the client reads it.
pub fn reply(record: &[u8]) {
    let record = Bytes::copy_from_slice(record);
    let mut cursor = Cursor::new(&record);
    if rpc::decode_reply(&mut cursor).is_ok() {
        let _wcc = Wcc::decode(&mut cursor.clone());
        let _attr = FileAttr::decode(&mut cursor);
    }
}
