//! Status numbers, and their mapping from the file system's errors.

use crate::fs::FsError;

/// `nfsstat3` (RFC 1813 §2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u32)]
pub enum NfsStat {
    #[error("NFS3_OK")]
    Ok = 0,
    #[error("NFS3ERR_PERM")]
    Perm = 1,
    #[error("NFS3ERR_NOENT")]
    NoEnt = 2,
    #[error("NFS3ERR_IO")]
    Io = 5,
    #[error("NFS3ERR_NXIO")]
    Nxio = 6,
    #[error("NFS3ERR_ACCES")]
    Access = 13,
    #[error("NFS3ERR_EXIST")]
    Exist = 17,
    #[error("NFS3ERR_XDEV")]
    CrossDevice = 18,
    #[error("NFS3ERR_NODEV")]
    NoDevice = 19,
    #[error("NFS3ERR_NOTDIR")]
    NotDir = 20,
    #[error("NFS3ERR_ISDIR")]
    IsDir = 21,
    #[error("NFS3ERR_INVAL")]
    Inval = 22,
    #[error("NFS3ERR_FBIG")]
    FileTooBig = 27,
    #[error("NFS3ERR_NOSPC")]
    NoSpace = 28,
    #[error("NFS3ERR_ROFS")]
    ReadOnly = 30,
    #[error("NFS3ERR_MLINK")]
    TooManyLinks = 31,
    #[error("NFS3ERR_NAMETOOLONG")]
    NameTooLong = 63,
    #[error("NFS3ERR_NOTEMPTY")]
    NotEmpty = 66,
    #[error("NFS3ERR_DQUOT")]
    Quota = 69,
    #[error("NFS3ERR_STALE")]
    Stale = 70,
    #[error("NFS3ERR_REMOTE")]
    Remote = 71,
    #[error("NFS3ERR_BADHANDLE")]
    BadHandle = 10001,
    #[error("NFS3ERR_NOT_SYNC")]
    NotSync = 10002,
    #[error("NFS3ERR_BAD_COOKIE")]
    BadCookie = 10003,
    #[error("NFS3ERR_NOTSUPP")]
    NotSupported = 10004,
    #[error("NFS3ERR_TOOSMALL")]
    TooSmall = 10005,
    #[error("NFS3ERR_SERVERFAULT")]
    ServerFault = 10006,
    #[error("NFS3ERR_BADTYPE")]
    BadType = 10007,
    #[error("NFS3ERR_JUKEBOX")]
    Jukebox = 10008,
}

const ALL: [NfsStat; 29] = [
    NfsStat::Ok,
    NfsStat::Perm,
    NfsStat::NoEnt,
    NfsStat::Io,
    NfsStat::Nxio,
    NfsStat::Access,
    NfsStat::Exist,
    NfsStat::CrossDevice,
    NfsStat::NoDevice,
    NfsStat::NotDir,
    NfsStat::IsDir,
    NfsStat::Inval,
    NfsStat::FileTooBig,
    NfsStat::NoSpace,
    NfsStat::ReadOnly,
    NfsStat::TooManyLinks,
    NfsStat::NameTooLong,
    NfsStat::NotEmpty,
    NfsStat::Quota,
    NfsStat::Stale,
    NfsStat::Remote,
    NfsStat::BadHandle,
    NfsStat::NotSync,
    NfsStat::BadCookie,
    NfsStat::NotSupported,
    NfsStat::TooSmall,
    NfsStat::ServerFault,
    NfsStat::BadType,
    NfsStat::Jukebox,
];

impl NfsStat {
    /// The status of a number on the wire; `None`: no status of NFSv3.
    pub fn from_wire(number: u32) -> Option<Self> {
        ALL.into_iter().find(|status| *status as u32 == number)
    }
}

impl From<&FsError> for NfsStat {
    fn from(error: &FsError) -> Self {
        match error {
            FsError::NotFound => Self::NoEnt,
            FsError::Exists => Self::Exist,
            FsError::NotDirectory => Self::NotDir,
            FsError::IsDirectory => Self::IsDir,
            FsError::NotEmpty => Self::NotEmpty,
            FsError::NameTooLong => Self::NameTooLong,
            FsError::Access => Self::Access,
            FsError::NotOwner => Self::Perm,
            FsError::Stale => Self::Stale,
            // df shows a dataset's quota as the file system's size, so ENOSPC and not EDQUOT.
            FsError::NoSpace | FsError::NoInodes => Self::NoSpace,
            FsError::ReadOnly => Self::ReadOnly,
            FsError::TooBig => Self::FileTooBig,
            FsError::TooManyLinks => Self::TooManyLinks,
            FsError::CrossDevice => Self::CrossDevice,
            FsError::Invalid(_) => Self::Inval,
            FsError::NotSync => Self::NotSync,
            FsError::BadCookie => Self::BadCookie,
            FsError::NotSupported => Self::NotSupported,
            // The client retries by itself; the call was held as long as its time-out allows.
            FsError::Busy(_) | FsError::Unavailable(_) => Self::Jukebox,
            // Until the volume is unstaged (R25).
            FsError::Fenced => Self::Stale,
            FsError::Corrupt(_) => Self::Io,
            FsError::Internal(_) => Self::ServerFault,
        }
    }
}
