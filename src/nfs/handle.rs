//! File handles, which name an object to a client for as long as the dataset lives.
//!
//! ```text
//! 0        1        4            20      28           36    52
//! version  0 0 0    export id    inode   generation   MAC
//! ```
//! The MAC (SipHash-2-4, 128 bits, under the dataset's handle key) makes the handle a capability
//! (R7, R23): no client can forge one, and one of another dataset or another incarnation of a
//! dataset is not accepted.

use super::status::NfsStat;
use super::xdr::{Cursor, Encoder, Result};
use crate::fs::api::FileRef;
use crate::types::InodeNo;
use siphasher::sip128::{Hasher128, SipHasher24};
use std::hash::Hasher;

/// The longest handle of the protocol (RFC 1813 §2.4, NFS3_FHSIZE).
pub const HANDLE_BYTES_MAX: usize = 64;
/// The length of our handles.
pub const HANDLE_BYTES: usize = 52;
const VERSION: u8 = 1;
const SIGNED_BYTES: usize = 36;

/// The id of an export on the wire, the same after a restart and on every node: the dataset's
/// incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExportId(pub [u8; 16]);

impl ExportId {
    /// A number for `fattr3.fsid`, different for different exports.
    pub fn fsid(&self) -> u64 {
        let (head, tail) = self.0.split_at(8);
        head.iter().zip(tail).fold(0, |id, (a, b)| id << 8 | u64::from(a ^ b))
    }
}

/// Makes and checks the handles of one export.
#[derive(Clone)]
pub struct HandleKey([u8; 16]);

impl HandleKey {
    pub fn new(key: [u8; 16]) -> Self {
        Self(key)
    }

    fn mac(&self, signed: &[u8]) -> [u8; 16] {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write(signed);
        hasher.finish128().as_bytes()
    }

    pub fn seal(&self, export: ExportId, file: FileRef) -> [u8; HANDLE_BYTES] {
        let mut handle = [0; HANDLE_BYTES];
        handle[0] = VERSION;
        handle[4..20].copy_from_slice(&export.0);
        handle[20..28].copy_from_slice(&file.ino.0.to_be_bytes());
        handle[28..36].copy_from_slice(&file.generation.to_be_bytes());
        let mac = self.mac(&handle[..SIGNED_BYTES]);
        handle[SIGNED_BYTES..].copy_from_slice(&mac);
        handle
    }

    /// The object that a handle names.
    ///
    /// # Errors
    /// `BADHANDLE`: this export never issued it.
    pub fn open(&self, handle: &Handle) -> std::result::Result<FileRef, NfsStat> {
        let mut signed = [0; SIGNED_BYTES];
        signed[0] = VERSION;
        signed[4..20].copy_from_slice(&handle.export.0);
        signed[20..28].copy_from_slice(&handle.file.ino.0.to_be_bytes());
        signed[28..36].copy_from_slice(&handle.file.generation.to_be_bytes());
        // Compared as numbers, so that the time does not reveal how many bytes are right.
        if u128::from_be_bytes(self.mac(&signed)) == u128::from_be_bytes(handle.mac) {
            Ok(handle.file)
        } else {
            Err(NfsStat::BadHandle)
        }
    }
}

/// A handle as received, not yet checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    pub export: ExportId,
    file: FileRef,
    mac: [u8; 16],
}

impl Handle {
    /// The handle in these bytes; `None`: of another version or length, or not ours.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HANDLE_BYTES] = bytes.try_into().ok()?;
        let (head, rest) = bytes.split_first_chunk::<4>()?;
        if *head != [VERSION, 0, 0, 0] {
            return None;
        }
        let (export, rest) = rest.split_first_chunk::<16>()?;
        let (ino, rest) = rest.split_first_chunk::<8>()?;
        let (generation, rest) = rest.split_first_chunk::<8>()?;
        let file = FileRef {
            ino: InodeNo(u64::from_be_bytes(*ino)),
            generation: u64::from_be_bytes(*generation),
        };
        Some(Self { export: ExportId(*export), file, mac: rest.try_into().ok()? })
    }

    /// Reads `nfs_fh3`.
    ///
    /// # Errors
    /// No opaque of at most 64 bytes.
    pub fn decode(args: &mut Cursor<'_>) -> Result<Option<Self>> {
        args.opaque(HANDLE_BYTES_MAX).map(Self::parse)
    }
}

/// Writes `nfs_fh3`.
pub fn encode(out: &mut Encoder, handle: &[u8; HANDLE_BYTES]) {
    out.u32(HANDLE_BYTES as u32).raw(handle);
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileRef = FileRef { ino: InodeNo(77), generation: 1 << 40 };
    const EXPORT: ExportId = ExportId([3; 16]);

    #[test]
    fn a_handle_names_its_object_to_its_export_only() {
        let key = HandleKey::new([1; 16]);
        let handle = Handle::parse(&key.seal(EXPORT, FILE)).unwrap();
        assert_eq!((handle.export, key.open(&handle)), (EXPORT, Ok(FILE)));
        assert_eq!(HandleKey::new([2; 16]).open(&handle), Err(NfsStat::BadHandle));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let key = HandleKey::new([1; 16]);
        let good = key.seal(EXPORT, FILE);
        for bit in 0..HANDLE_BYTES * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            let opened = Handle::parse(&bad).map(|handle| key.open(&handle));
            assert!(!matches!(opened, Some(Ok(_))), "bit {bit}");
        }
    }

    #[test]
    fn other_lengths_are_no_handles() {
        let good = HandleKey::new([1; 16]).seal(EXPORT, FILE);
        for len in 0..HANDLE_BYTES {
            assert_eq!(Handle::parse(&good[..len]), None);
        }
        assert_eq!(Handle::parse(&[good.as_slice(), &[0]].concat()), None);
    }
}
