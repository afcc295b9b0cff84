//! Attributes on the wire (RFC 1813 §2.5, §2.6).

use super::xdr::{Cursor, Encoder, Result, XdrError};
use crate::fs::api::{Attr, Before, Change, FileKind, SetAttr, SetTime};
use crate::types::Timestamp;

/// Encoded length of `fattr3`.
pub const ATTR_BYTES: usize = 84;

/// `ftype3`.
fn kind_to_wire(kind: FileKind) -> u32 {
    match kind {
        FileKind::Regular => 1,
        FileKind::Directory => 2,
        FileKind::BlockDevice => 3,
        FileKind::CharDevice => 4,
        FileKind::Symlink => 5,
        FileKind::Socket => 6,
        FileKind::Fifo => 7,
    }
}

fn kind_from_wire(number: u32) -> Result<FileKind> {
    Ok(match number {
        1 => FileKind::Regular,
        2 => FileKind::Directory,
        3 => FileKind::BlockDevice,
        4 => FileKind::CharDevice,
        5 => FileKind::Symlink,
        6 => FileKind::Socket,
        7 => FileKind::Fifo,
        _ => return Err(XdrError("an unknown ftype3")),
    })
}

/// `nfstime3` has unsigned seconds: times before 1970 or after 2106 are clamped.
pub fn time(out: &mut Encoder, at: Timestamp) {
    match u32::try_from(at.secs()) {
        Ok(secs) => out.u32(secs).u32(at.subsec_nanos()),
        Err(_) if at.secs() < 0 => out.u32(0).u32(0),
        Err(_) => out.u32(u32::MAX).u32(999_999_999),
    };
}

/// `fattr3`.
pub fn attr(out: &mut Encoder, fsid: u64, attr: &Attr) {
    out.u32(kind_to_wire(attr.kind)).u32(attr.mode).u32(attr.nlink).u32(attr.uid).u32(attr.gid);
    out.u64(attr.size)
        .u64(attr.allocated)
        .u32(attr.rdev.0)
        .u32(attr.rdev.1)
        .u64(fsid)
        .u64(attr.file.ino.0);
    time(out, attr.atime);
    time(out, attr.mtime);
    time(out, attr.ctime);
}

/// `post_op_attr`.
pub fn post_op(out: &mut Encoder, fsid: u64, of: Option<&Attr>) {
    out.bool(of.is_some());
    if let Some(of) = of {
        attr(out, fsid, of);
    }
}

/// `wcc_data`.
pub fn wcc(out: &mut Encoder, fsid: u64, before: Option<&Before>, after: Option<&Attr>) {
    out.bool(before.is_some());
    if let Some(before) = before {
        out.u64(before.size);
        time(out, before.mtime);
        time(out, before.ctime);
    }
    post_op(out, fsid, after);
}

/// `wcc_data` of a completed change.
pub fn change(out: &mut Encoder, fsid: u64, change: &Change) {
    wcc(out, fsid, change.before.as_ref(), Some(&change.after));
}

/// `sattr3`.
pub fn set(out: &mut Encoder, set: &SetAttr) {
    for number in [set.mode, set.uid, set.gid] {
        out.bool(number.is_some());
        if let Some(number) = number {
            out.u32(number);
        }
    }
    out.bool(set.size.is_some());
    if let Some(size) = set.size {
        out.u64(size);
    }
    for at in [set.atime, set.mtime] {
        match at {
            SetTime::Keep => {
                out.u32(0);
            }
            SetTime::Now => {
                out.u32(1);
            }
            SetTime::To(at) => {
                out.u32(2);
                time(out, at);
            }
        }
    }
}

/// Attributes as a client sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileAttr {
    pub kind: FileKind,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub used: u64,
    pub rdev: (u32, u32),
    pub fsid: u64,
    pub fileid: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

fn read_time(from: &mut Cursor<'_>) -> Result<Timestamp> {
    let (secs, nanos) = (from.u32()?, from.u32()?);
    Ok(Timestamp::from_parts(i64::from(secs), nanos))
}

impl FileAttr {
    /// Reads `fattr3`.
    ///
    /// # Errors
    /// An unknown type, or too few bytes.
    pub fn decode(from: &mut Cursor<'_>) -> Result<Self> {
        Ok(Self {
            kind: kind_from_wire(from.u32()?)?,
            mode: from.u32()?,
            nlink: from.u32()?,
            uid: from.u32()?,
            gid: from.u32()?,
            size: from.u64()?,
            used: from.u64()?,
            rdev: (from.u32()?, from.u32()?),
            fsid: from.u64()?,
            fileid: from.u64()?,
            atime: read_time(from)?,
            mtime: read_time(from)?,
            ctime: read_time(from)?,
        })
    }

    /// Reads `post_op_attr`.
    ///
    /// # Errors
    /// Like [`FileAttr::decode`].
    pub fn decode_post_op(from: &mut Cursor<'_>) -> Result<Option<Self>> {
        if from.bool()? { Self::decode(from).map(Some) } else { Ok(None) }
    }
}

/// `wcc_data` as a client sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wcc {
    pub before: Option<Before>,
    pub after: Option<FileAttr>,
}

impl Wcc {
    /// # Errors
    /// Like [`FileAttr::decode`].
    pub fn decode(from: &mut Cursor<'_>) -> Result<Self> {
        let before = if from.bool()? {
            Some(Before { size: from.u64()?, mtime: read_time(from)?, ctime: read_time(from)? })
        } else {
            None
        };
        Ok(Self { before, after: FileAttr::decode_post_op(from)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::api::FileRef;
    use crate::types::InodeNo;
    use bytes::Bytes;

    #[test]
    fn attributes_survive_the_wire() {
        let at = |secs| Timestamp::from_parts(secs, 5);
        let sent = Attr {
            file: FileRef { ino: InodeNo(9), generation: 1 },
            kind: FileKind::BlockDevice,
            mode: 0o4755,
            uid: 1,
            gid: 2,
            nlink: 3,
            size: 4,
            allocated: 4096,
            rdev: (8, 1),
            atime: at(-1),
            mtime: at(1),
            ctime: at(1 << 33),
        };
        let mut out = Encoder::default();
        attr(&mut out, 11, &sent);
        assert_eq!(out.len(), ATTR_BYTES);
        let bytes = Bytes::from(out.into_vec());
        let got = FileAttr::decode(&mut Cursor::new(&bytes)).unwrap();
        assert_eq!(
            (got.kind, got.mode, got.fileid, got.fsid, got.rdev),
            (sent.kind, sent.mode, 9, 11, (8, 1))
        );
        assert_eq!((got.atime, got.mtime), (Timestamp::from_nanos(0), at(1)));
        assert_eq!(got.ctime, Timestamp::from_parts(i64::from(u32::MAX), 999_999_999));
    }
}
