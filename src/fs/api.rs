//! The operations of a file system, as an edge calls them.
//!
//! The set is what NFSv3 can carry (RFC 1813), with POSIX meaning; handles' bytes, status numbers
//! and XDR belong to the edge. Every call is self-contained: there is no open file.

use super::{FsError, Throttle};
use crate::types::{EntryName, InodeNo, Timestamp};
use bytes::Bytes;
use std::future::Future;
use std::sync::Arc;

/// Names an object for as long as the dataset lives: a reused inode number has another generation
/// (R7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileRef {
    pub ino: InodeNo,
    pub generation: u64,
}

/// The caller's identity. `groups` are the supplementary ones, at most 16 from AUTH_SYS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// Identifies a retransmission of a call that must not be done twice (R20); none for calls made
    /// in this process.
    pub call: Option<CallId>,
}

impl Caller {
    /// The superuser, for calls made in this process.
    pub fn root() -> Self {
        Self::default()
    }
}

/// Identifies a call, so that a retransmission is recognised: the client's machine, the transaction
/// id, and a checksum of procedure and arguments. The client's port is not part of it, because that
/// changes with a reconnect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallId {
    pub client: u64,
    pub xid: u32,
    pub checksum: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum FileKind {
    Regular,
    Directory,
    Symlink,
    BlockDevice,
    CharDevice,
    Fifo,
    Socket,
}

/// The attributes that stat(2) returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    pub file: FileRef,
    pub kind: FileKind,
    /// Permission bits, set-id and sticky: the low 12 bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    /// Bytes.
    pub size: u64,
    /// Bytes of space accounted to the file.
    pub allocated: u64,
    /// Major and minor number of a device.
    pub rdev: (u32, u32),
    pub atime: Timestamp,
    pub mtime: Timestamp,
    /// Strictly increases with every change (R8).
    pub ctime: Timestamp,
}

/// The attributes that a client compares to see whether only its own call changed the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    pub size: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

impl From<&Attr> for Before {
    fn from(attr: &Attr) -> Self {
        Self { size: attr.size, mtime: attr.mtime, ctime: attr.ctime }
    }
}

/// An object's attributes around a change, taken under its lock, so that they are atomic with the
/// change. `before` is absent where a retransmitted call was answered from the duplicate request
/// cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub before: Option<Before>,
    pub after: Attr,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetTime {
    #[default]
    Keep,
    Now,
    To(Timestamp),
}

/// The attributes that SETATTR, CREATE, MKDIR, … may set; `None` leaves one unchanged, or takes the
/// default on creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: SetTime,
    pub mtime: SetTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateHow {
    /// An existing regular file counts as success (and is truncated if `size` is set).
    Unchecked(SetAttr),
    /// An existing name fails with [`FsError::Exists`].
    Guarded(SetAttr),
    /// A retransmission with the same verifier succeeds.
    Exclusive([u8; 8]),
}

/// The objects that MKNOD and SYMLINK make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Special {
    Symlink(Bytes),
    BlockDevice(u32, u32),
    CharDevice(u32, u32),
    Fifo,
    Socket,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    pub attr: Attr,
    pub dir: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stability {
    /// May be lost with the server until COMMIT.
    Unstable,
    /// The data, and the metadata needed to read it, are durable.
    DataSync,
    /// Data and all attributes are durable.
    FileSync,
}

#[derive(Clone, Debug)]
pub struct ReadOut {
    /// The bytes in order, as slices of cached chunks: not copied.
    pub data: Vec<Bytes>,
    pub eof: bool,
    pub attr: Attr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    pub count: u32,
    /// At least the stability asked for.
    pub committed: Stability,
    pub change: Change,
}

/// A position in a directory that stays valid whatever is created or removed (R21): 0 before the
/// first entry, 1 after `.`, 2 after `..`, 3 after `.snapshots`, which only a root directory may
/// show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DirCookie(pub u64);

#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Bytes: an [`EntryName`], or `.` or `..`.
    pub name: Bytes,
    pub ino: InodeNo,
    /// Continues after this entry.
    pub cookie: DirCookie,
    /// Present when asked for, and absent where the object was removed meanwhile.
    pub attr: Option<Attr>,
}

#[derive(Clone, Debug)]
pub struct Listing {
    pub entries: Vec<DirEntry>,
    pub eof: bool,
    pub dir: Attr,
}

/// Limits of one page of a directory. The callee stops before either would be exceeded, but returns
/// at least one entry if there is one.
#[derive(Clone, Copy, Debug)]
pub struct ListLimit {
    pub entries: usize,
    /// Sum over the entries of name length plus `entry_bytes`.
    pub bytes: usize,
    /// Bytes that the edge needs for one entry beside its name.
    pub entry_bytes: usize,
    pub with_attr: bool,
}

/// The figures that statfs(2) returns: the dataset's quota, or a large figure where it has none
/// (R19).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub total_inodes: u64,
    pub free_inodes: u64,
}

/// The name in a live root directory that always leads to the directory of snapshots, as `.zfs`
/// does in ZFS. No other object may have it.
pub const SNAPSHOTS_NAME: &[u8] = b".snapshots";

/// Bits of ACCESS, as RFC 1813 §3.3.4 numbers them.
pub mod access {
    pub const READ: u32 = 0x01;
    pub const LOOKUP: u32 = 0x02;
    pub const MODIFY: u32 = 0x04;
    pub const EXTEND: u32 = 0x08;
    pub const DELETE: u32 = 0x10;
    pub const EXECUTE: u32 = 0x20;
}

/// The largest file: 8 TiB.
pub const FILE_BYTES_MAX: u64 = 1 << 43;
/// The largest number of hard links to a file.
pub const LINKS_MAX: u32 = 65_000;
/// The longest target of a symbolic link, in bytes (Linux PATH_MAX without the NUL).
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// The largest READ or WRITE, in bytes.
pub const IO_BYTES_MAX: usize = 1 << 20;

/// A file system. An answer is durable as the dataset's `sync` property promises. The calls that
/// change it have a default, which is the answer of a file system that is read only.
#[allow(unused_variables, reason = "a default body does not look at its parameters")]
pub trait FileSystem: Send + Sync + 'static {
    fn root(&self) -> FileRef;

    /// Random for each writable open of the database (R18).
    fn write_verifier(&self) -> [u8; 8];

    /// The limits of its reads and writes, which the edge keeps; `None`: it has none.
    fn throttle(&self) -> Option<&Arc<Throttle>> {
        None
    }

    /// The reason why every further call fails, once the file system is closed or has failed: with
    /// [`FsError::Fenced`] and [`FsError::Stale`] for good, otherwise until it is opened again. A
    /// call in progress at that time fails, too, though it may have taken effect.
    fn ended(&self) -> Option<FsError> {
        None
    }

    /// Answers from memory where it can; no permission is needed.
    fn getattr(&self, file: FileRef) -> impl Future<Output = Result<Attr, FsError>> + Send;

    /// `guard`: fail with [`FsError::NotSync`] unless this is the object's ctime.
    fn setattr(
        &self,
        caller: &Caller,
        file: FileRef,
        set: SetAttr,
        guard: Option<Timestamp>,
    ) -> impl Future<Output = Result<Change, FsError>> + Send {
        async { Err(FsError::ReadOnly) }
    }

    /// `name` may be `.` or `..`. Returns the attributes of the object and of the directory.
    fn lookup(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &[u8],
    ) -> impl Future<Output = Result<(Attr, Attr), FsError>> + Send;

    /// Returns the bits of those asked for (see [`access`]) that are granted.
    fn access(
        &self,
        caller: &Caller,
        file: FileRef,
        want: u32,
    ) -> impl Future<Output = Result<(u32, Attr), FsError>> + Send;

    fn readlink(
        &self,
        caller: &Caller,
        file: FileRef,
    ) -> impl Future<Output = Result<(Bytes, Attr), FsError>> + Send;

    /// At most [`IO_BYTES_MAX`] bytes; fewer only at the end of the file.
    fn read(
        &self,
        caller: &Caller,
        file: FileRef,
        offset: u64,
        count: u32,
    ) -> impl Future<Output = Result<ReadOut, FsError>> + Send;

    fn write(
        &self,
        caller: &Caller,
        file: FileRef,
        offset: u64,
        data: Bytes,
        stability: Stability,
    ) -> impl Future<Output = Result<Written, FsError>> + Send {
        async { Err(FsError::ReadOnly) }
    }

    /// Makes written data of the range durable; `count` 0 means to the end of the file.
    fn commit(
        &self,
        caller: &Caller,
        file: FileRef,
        offset: u64,
        count: u32,
    ) -> impl Future<Output = Result<Change, FsError>> + Send {
        async { Err(FsError::ReadOnly) }
    }

    fn create(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        how: CreateHow,
    ) -> impl Future<Output = Result<Created, FsError>> + Send {
        async { Err(FsError::ReadOnly) }
    }

    fn mkdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        set: SetAttr,
    ) -> impl Future<Output = Result<Created, FsError>> + Send {
        async { Err(FsError::ReadOnly) }
    }

    /// SYMLINK and MKNOD.
    fn make(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        what: Special,
        set: SetAttr,
    ) -> impl Future<Output = Result<Created, FsError>> + Send {
        async { Err(FsError::ReadOnly) }
    }

    fn remove(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
    ) -> impl Future<Output = Result<Change, FsError>> + Send {
        async { Err(FsError::ReadOnly) }
    }

    fn rmdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
    ) -> impl Future<Output = Result<Change, FsError>> + Send {
        async { Err(FsError::ReadOnly) }
    }

    /// Returns the changes of the source and target directories.
    fn rename(
        &self,
        caller: &Caller,
        from: (FileRef, &EntryName),
        to: (FileRef, &EntryName),
    ) -> impl Future<Output = Result<(Change, Change), FsError>> + Send {
        async { Err(FsError::ReadOnly) }
    }

    /// Returns the file's attributes and the directory's change.
    fn link(
        &self,
        caller: &Caller,
        file: FileRef,
        dir: FileRef,
        name: &EntryName,
    ) -> impl Future<Output = Result<(Attr, Change), FsError>> + Send {
        async { Err(FsError::ReadOnly) }
    }

    fn readdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        after: DirCookie,
        limit: ListLimit,
    ) -> impl Future<Output = Result<Listing, FsError>> + Send;

    fn statfs(&self) -> impl Future<Output = Result<StatFs, FsError>> + Send;
}
