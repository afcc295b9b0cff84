//! The arguments of every NFSv3 procedure (RFC 1813 §3.3), parsed once into types that later code
//! can trust.

use super::handle::Handle;
use super::record::LARGE_RECORD_BYTES;
use super::xdr::{Cursor, Result, XdrError};
use crate::fs::api::{
    CreateHow, DirCookie, IO_BYTES_MAX, SYMLINK_BYTES_MAX, SetAttr, SetTime, Special, Stability,
};
use crate::types::Timestamp;
use bytes::Bytes;

/// An NFSv3 procedure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Procedure {
    Null = 0,
    GetAttr = 1,
    SetAttr = 2,
    Lookup = 3,
    Access = 4,
    ReadLink = 5,
    Read = 6,
    Write = 7,
    Create = 8,
    MkDir = 9,
    Symlink = 10,
    MkNod = 11,
    Remove = 12,
    RmDir = 13,
    Rename = 14,
    Link = 15,
    ReadDir = 16,
    ReadDirPlus = 17,
    FsStat = 18,
    FsInfo = 19,
    PathConf = 20,
    Commit = 21,
}

impl Procedure {
    pub const ALL: [Self; 22] = [
        Self::Null,
        Self::GetAttr,
        Self::SetAttr,
        Self::Lookup,
        Self::Access,
        Self::ReadLink,
        Self::Read,
        Self::Write,
        Self::Create,
        Self::MkDir,
        Self::Symlink,
        Self::MkNod,
        Self::Remove,
        Self::RmDir,
        Self::Rename,
        Self::Link,
        Self::ReadDir,
        Self::ReadDirPlus,
        Self::FsStat,
        Self::FsInfo,
        Self::PathConf,
        Self::Commit,
    ];

    pub fn from_wire(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    /// Returns whether a copy that takes effect late does harm (R20, R36).
    pub fn once(self) -> bool {
        match self {
            Self::SetAttr
            | Self::Write
            | Self::Create
            | Self::MkDir
            | Self::Symlink
            | Self::MkNod
            | Self::Remove
            | Self::RmDir
            | Self::Rename
            | Self::Link => true,
            Self::Null
            | Self::GetAttr
            | Self::Lookup
            | Self::Access
            | Self::ReadLink
            | Self::Read
            | Self::ReadDir
            | Self::ReadDirPlus
            | Self::FsStat
            | Self::FsInfo
            | Self::PathConf
            | Self::Commit => false,
        }
    }
}

/// A handle argument; `None`: not a handle that this program ever issued (`BADHANDLE`).
pub type HandleArg = Option<Handle>;

/// A name argument: any bytes, of a length that fits a record. The procedure validates it.
pub type NameArg = Box<[u8]>;

/// A directory and a name in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirOpArgs {
    pub dir: HandleArg,
    pub name: NameArg,
}

/// The arguments of MKNOD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeArg {
    Special(Special, SetAttr),
    /// A type that MKNOD does not make (`BADTYPE`).
    BadType,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Args {
    Null,
    GetAttr(HandleArg),
    SetAttr { file: HandleArg, set: SetAttr, guard: Option<Timestamp> },
    Lookup(DirOpArgs),
    Access { file: HandleArg, want: u32 },
    ReadLink(HandleArg),
    Read { file: HandleArg, offset: u64, count: u32 },
    Write { file: HandleArg, offset: u64, stability: Stability, data: Bytes },
    Create { at: DirOpArgs, how: CreateHow },
    MkDir { at: DirOpArgs, set: SetAttr },
    Symlink { at: DirOpArgs, set: SetAttr, target: Bytes },
    MkNod { at: DirOpArgs, node: NodeArg },
    Remove(DirOpArgs),
    RmDir(DirOpArgs),
    Rename { from: DirOpArgs, to: DirOpArgs },
    Link { file: HandleArg, at: DirOpArgs },
    ReadDir { dir: HandleArg, after: DirCookie, verifier: [u8; 8], count: u32 },
    ReadDirPlus { dir: HandleArg, after: DirCookie, verifier: [u8; 8], count: u32 },
    FsStat(HandleArg),
    FsInfo(HandleArg),
    PathConf(HandleArg),
    Commit { file: HandleArg, offset: u64, count: u32 },
}

/// A longer name cannot be in a path that any system accepts; a name between this and 255 bytes
/// gets `NAMETOOLONG`.
const NAME_ARG_BYTES_MAX: usize = 4096;

impl Args {
    /// Bytes after the arguments are ignored, as other servers do.
    ///
    /// # Errors
    /// The bytes are not this procedure's arguments (`GARBAGE_ARGS`).
    pub fn decode(procedure: Procedure, args: &mut Cursor<'_>) -> Result<Self> {
        Ok(match procedure {
            Procedure::Null => Self::Null,
            Procedure::GetAttr => Self::GetAttr(Handle::decode(args)?),
            Procedure::SetAttr => Self::SetAttr {
                file: Handle::decode(args)?,
                set: set_attr(args)?,
                guard: guard(args)?,
            },
            Procedure::Lookup => Self::Lookup(place(args)?),
            Procedure::Access => Self::Access { file: Handle::decode(args)?, want: args.u32()? },
            Procedure::ReadLink => Self::ReadLink(Handle::decode(args)?),
            Procedure::Read => {
                Self::Read { file: Handle::decode(args)?, offset: args.u64()?, count: args.u32()? }
            }
            Procedure::Write => write(args)?,
            Procedure::Create => Self::Create { at: place(args)?, how: how(args)? },
            Procedure::MkDir => Self::MkDir { at: place(args)?, set: set_attr(args)? },
            Procedure::Symlink => symlink(args)?,
            Procedure::MkNod => Self::MkNod { at: place(args)?, node: node(args)? },
            Procedure::Remove => Self::Remove(place(args)?),
            Procedure::RmDir => Self::RmDir(place(args)?),
            Procedure::Rename => Self::Rename { from: place(args)?, to: place(args)? },
            Procedure::Link => Self::Link { file: Handle::decode(args)?, at: place(args)? },
            Procedure::ReadDir => {
                let (dir, after, verifier) =
                    (Handle::decode(args)?, DirCookie(args.u64()?), args.array()?);
                Self::ReadDir { dir, after, verifier, count: args.u32()? }
            }
            Procedure::ReadDirPlus => {
                let (dir, after, verifier) =
                    (Handle::decode(args)?, DirCookie(args.u64()?), args.array()?);
                // The limit of names in the reply is a hint; the second number bounds the reply.
                let _dircount = args.u32()?;
                Self::ReadDirPlus { dir, after, verifier, count: args.u32()? }
            }
            Procedure::FsStat => Self::FsStat(Handle::decode(args)?),
            Procedure::FsInfo => Self::FsInfo(Handle::decode(args)?),
            Procedure::PathConf => Self::PathConf(Handle::decode(args)?),
            Procedure::Commit => Self::Commit {
                file: Handle::decode(args)?,
                offset: args.u64()?,
                count: args.u32()?,
            },
        })
    }
}

fn place(args: &mut Cursor<'_>) -> Result<DirOpArgs> {
    Ok(DirOpArgs { dir: Handle::decode(args)?, name: args.opaque(NAME_ARG_BYTES_MAX)?.into() })
}

fn write(args: &mut Cursor<'_>) -> Result<Args> {
    let file = Handle::decode(args)?;
    let (offset, count) = (args.u64()?, args.u32()?);
    let stability = match args.u32()? {
        0 => Stability::Unstable,
        1 => Stability::DataSync,
        2 => Stability::FileSync,
        _ => return Err(XdrError("an unknown stable_how")),
    };
    let data = args.payload(IO_BYTES_MAX, LARGE_RECORD_BYTES / 2)?;
    // RFC 1813 §3.3.7: count is the length of the data; with less data the call was damaged.
    if data.len() != count as usize {
        return Err(XdrError("count differs from the length of the data"));
    }
    Ok(Args::Write { file, offset, stability, data })
}

fn symlink(args: &mut Cursor<'_>) -> Result<Args> {
    let at = place(args)?;
    let set = set_attr(args)?;
    let target = Bytes::copy_from_slice(args.opaque(SYMLINK_BYTES_MAX + 1)?);
    Ok(Args::Symlink { at, set, target })
}

fn option<'a, T>(
    args: &mut Cursor<'a>,
    read: impl FnOnce(&mut Cursor<'a>) -> Result<T>,
) -> Result<Option<T>> {
    if args.bool()? { read(args).map(Some) } else { Ok(None) }
}

fn time(args: &mut Cursor<'_>) -> Result<Timestamp> {
    let (secs, nanos) = (args.u32()?, args.u32()?);
    Ok(Timestamp::from_parts(i64::from(secs), nanos.min(999_999_999)))
}

fn set_time(args: &mut Cursor<'_>) -> Result<SetTime> {
    match args.u32()? {
        0 => Ok(SetTime::Keep),
        1 => Ok(SetTime::Now),
        2 => time(args).map(SetTime::To),
        _ => Err(XdrError("an unknown time_how")),
    }
}

fn set_attr(args: &mut Cursor<'_>) -> Result<SetAttr> {
    Ok(SetAttr {
        mode: option(args, Cursor::u32)?.map(|mode| mode & 0o7777),
        uid: option(args, Cursor::u32)?,
        gid: option(args, Cursor::u32)?,
        size: option(args, Cursor::u64)?,
        atime: set_time(args)?,
        mtime: set_time(args)?,
    })
}

fn guard(args: &mut Cursor<'_>) -> Result<Option<Timestamp>> {
    option(args, time)
}

fn how(args: &mut Cursor<'_>) -> Result<CreateHow> {
    match args.u32()? {
        0 => set_attr(args).map(CreateHow::Unchecked),
        1 => set_attr(args).map(CreateHow::Guarded),
        2 => args.array().map(CreateHow::Exclusive),
        _ => Err(XdrError("an unknown createmode3")),
    }
}

fn node(args: &mut Cursor<'_>) -> Result<NodeArg> {
    let kind = args.u32()?;
    Ok(match kind {
        3 | 4 => {
            let set = set_attr(args)?;
            let (major, minor) = (args.u32()?, args.u32()?);
            let device = if kind == 3 {
                Special::BlockDevice(major, minor)
            } else {
                Special::CharDevice(major, minor)
            };
            NodeArg::Special(device, set)
        }
        6 => NodeArg::Special(Special::Socket, set_attr(args)?),
        7 => NodeArg::Special(Special::Fifo, set_attr(args)?),
        1 | 2 | 5 => NodeArg::BadType,
        _ => return Err(XdrError("an unknown ftype3")),
    })
}
