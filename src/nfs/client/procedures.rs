//! The procedures of NFSv3 and MOUNT, one method each.

use super::connection::{Client, ClientError, Result};
use super::types::{
    Committed, FileHandle, FsInfo, FsStat, Node, Page, PageEntry, PathConf, ReadReply,
};
use crate::fs::api::{
    CreateHow, DirCookie, IO_BYTES_MAX, SYMLINK_BYTES_MAX, SetAttr, Special, Stability,
};
use crate::nfs::args::Procedure;
use crate::nfs::attr::{self, FileAttr, Wcc};
use crate::nfs::rpc::{MOUNT_PROGRAM, NFS_PROGRAM};
use crate::nfs::status::NfsStat;
use crate::nfs::xdr::{Cursor, Encoder, XdrError};
use crate::types::Timestamp;
use bytes::Bytes;

const NAME_BYTES_MAX: usize = 1024;

fn handle(out: &mut Encoder, handle: &FileHandle) {
    out.opaque(handle.as_bytes());
}

fn place(out: &mut Encoder, dir: &FileHandle, name: &[u8]) {
    out.opaque(dir.as_bytes()).opaque(name);
}

/// Reads the status in front of the results.
fn ok<'a>(reply: &'a Bytes) -> Result<Cursor<'a>> {
    let mut from = Cursor::new(reply);
    match NfsStat::from_wire(from.u32()?) {
        Some(NfsStat::Ok) => Ok(from),
        Some(status) => Err(ClientError::Status(status)),
        None => Err(ClientError::Reply(XdrError("an unknown status"))),
    }
}

impl Client {
    async fn nfs(&self, procedure: Procedure, write: impl FnOnce(&mut Encoder)) -> Result<Bytes> {
        self.call(NFS_PROGRAM, procedure as u32, write).await
    }

    /// # Errors
    /// All methods: the server's status as [`ClientError::Status`], or the reason why there is
    /// none.
    pub async fn null(&self) -> Result<()> {
        self.nfs(Procedure::Null, |_| {}).await.map(drop)
    }

    pub async fn getattr(&self, file: &FileHandle) -> Result<FileAttr> {
        let reply = self.nfs(Procedure::GetAttr, |out| handle(out, file)).await?;
        Ok(FileAttr::decode(&mut ok(&reply)?)?)
    }

    /// `guard`: only if this is the object's ctime.
    pub async fn setattr(
        &self,
        file: &FileHandle,
        set: &SetAttr,
        guard: Option<Timestamp>,
    ) -> Result<Wcc> {
        let write = |out: &mut Encoder| {
            handle(out, file);
            attr::set(out, set);
            out.bool(guard.is_some());
            if let Some(guard) = guard {
                attr::time(out, guard);
            }
        };
        let reply = self.nfs(Procedure::SetAttr, write).await?;
        Ok(Wcc::decode(&mut ok(&reply)?)?)
    }

    pub async fn lookup(&self, dir: &FileHandle, name: &[u8]) -> Result<Node> {
        let reply = self.nfs(Procedure::Lookup, |out| place(out, dir, name)).await?;
        let mut from = ok(&reply)?;
        Ok(Node {
            handle: FileHandle::decode(&mut from)?,
            attr: FileAttr::decode_post_op(&mut from)?,
        })
    }

    /// Returns the granted bits of those asked for.
    pub async fn access(&self, file: &FileHandle, want: u32) -> Result<u32> {
        let reply = self
            .nfs(Procedure::Access, |out| {
                handle(out, file);
                out.u32(want);
            })
            .await?;
        let mut from = ok(&reply)?;
        FileAttr::decode_post_op(&mut from)?;
        Ok(from.u32()?)
    }

    pub async fn readlink(&self, file: &FileHandle) -> Result<Bytes> {
        let reply = self.nfs(Procedure::ReadLink, |out| handle(out, file)).await?;
        let mut from = ok(&reply)?;
        FileAttr::decode_post_op(&mut from)?;
        Ok(from.payload(SYMLINK_BYTES_MAX, usize::MAX)?)
    }

    pub async fn read(&self, file: &FileHandle, offset: u64, count: u32) -> Result<ReadReply> {
        let write = |out: &mut Encoder| {
            handle(out, file);
            out.u64(offset).u32(count);
        };
        let reply = self.nfs(Procedure::Read, write).await?;
        let mut from = ok(&reply)?;
        let attr = FileAttr::decode_post_op(&mut from)?;
        let (len, eof) = (from.u32()?, from.bool()?);
        let data = from.payload(IO_BYTES_MAX, 0)?;
        if data.len() != len as usize {
            return Err(ClientError::Reply(XdrError("count differs from the length of the data")));
        }
        Ok(ReadReply { data, eof, attr })
    }

    pub async fn write(
        &self,
        file: &FileHandle,
        offset: u64,
        data: Bytes,
        stability: Stability,
    ) -> Result<Committed> {
        let count = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let write = |out: &mut Encoder| {
            handle(out, file);
            out.u64(offset).u32(count).u32(match stability {
                Stability::Unstable => 0,
                Stability::DataSync => 1,
                Stability::FileSync => 2,
            });
        };
        let reply =
            self.call_with(NFS_PROGRAM, 3, Procedure::Write as u32, Some(data), write).await?;
        let mut from = ok(&reply)?;
        let attr = Wcc::decode(&mut from)?.after;
        let count = from.u32()?;
        let stability = match from.u32()? {
            0 => Stability::Unstable,
            1 => Stability::DataSync,
            _ => Stability::FileSync,
        };
        Ok(Committed { count, stability, verifier: from.array()?, attr })
    }

    /// `count` 0: to the end of the file.
    pub async fn commit(&self, file: &FileHandle, offset: u64, count: u32) -> Result<Committed> {
        let write = |out: &mut Encoder| {
            handle(out, file);
            out.u64(offset).u32(count);
        };
        let reply = self.nfs(Procedure::Commit, write).await?;
        let mut from = ok(&reply)?;
        let attr = Wcc::decode(&mut from)?.after;
        Ok(Committed { count: 0, stability: Stability::FileSync, verifier: from.array()?, attr })
    }

    /// Reads the results of CREATE, MKDIR, SYMLINK and MKNOD. A server may omit the handle: then it
    /// is looked up.
    async fn made(&self, reply: Bytes, dir: &FileHandle, name: &[u8]) -> Result<Node> {
        let (found, attr) = {
            let mut from = ok(&reply)?;
            (FileHandle::decode_option(&mut from)?, FileAttr::decode_post_op(&mut from)?)
        };
        match found {
            Some(handle) => Ok(Node { handle, attr }),
            None => self.lookup(dir, name).await,
        }
    }

    pub async fn create(&self, dir: &FileHandle, name: &[u8], how: &CreateHow) -> Result<Node> {
        let write = |out: &mut Encoder| {
            place(out, dir, name);
            match how {
                CreateHow::Unchecked(set) => {
                    out.u32(0);
                    attr::set(out, set);
                }
                CreateHow::Guarded(set) => {
                    out.u32(1);
                    attr::set(out, set);
                }
                CreateHow::Exclusive(verifier) => {
                    out.u32(2).raw(verifier);
                }
            }
        };
        let reply = self.nfs(Procedure::Create, write).await?;
        self.made(reply, dir, name).await
    }

    pub async fn mkdir(&self, dir: &FileHandle, name: &[u8], set: &SetAttr) -> Result<Node> {
        let write = |out: &mut Encoder| {
            place(out, dir, name);
            attr::set(out, set);
        };
        let reply = self.nfs(Procedure::MkDir, write).await?;
        self.made(reply, dir, name).await
    }

    /// SYMLINK and MKNOD.
    pub async fn make(
        &self,
        dir: &FileHandle,
        name: &[u8],
        what: &Special,
        set: &SetAttr,
    ) -> Result<Node> {
        let procedure =
            if matches!(what, Special::Symlink(_)) { Procedure::Symlink } else { Procedure::MkNod };
        let write = |out: &mut Encoder| {
            place(out, dir, name);
            match what {
                Special::Symlink(target) => {
                    attr::set(out, set);
                    out.opaque(target);
                }
                Special::BlockDevice(major, minor) | Special::CharDevice(major, minor) => {
                    out.u32(if matches!(what, Special::BlockDevice(..)) { 3 } else { 4 });
                    attr::set(out, set);
                    out.u32(*major).u32(*minor);
                }
                Special::Socket | Special::Fifo => {
                    out.u32(if matches!(what, Special::Socket) { 6 } else { 7 });
                    attr::set(out, set);
                }
            }
        };
        let reply = self.nfs(procedure, write).await?;
        self.made(reply, dir, name).await
    }

    pub async fn remove(&self, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        let reply = self.nfs(Procedure::Remove, |out| place(out, dir, name)).await?;
        Ok(Wcc::decode(&mut ok(&reply)?)?)
    }

    pub async fn rmdir(&self, dir: &FileHandle, name: &[u8]) -> Result<Wcc> {
        let reply = self.nfs(Procedure::RmDir, |out| place(out, dir, name)).await?;
        Ok(Wcc::decode(&mut ok(&reply)?)?)
    }

    /// Returns the changes of the source and target directories.
    pub async fn rename(
        &self,
        from: (&FileHandle, &[u8]),
        to: (&FileHandle, &[u8]),
    ) -> Result<(Wcc, Wcc)> {
        let write = |out: &mut Encoder| {
            place(out, from.0, from.1);
            place(out, to.0, to.1);
        };
        let reply = self.nfs(Procedure::Rename, write).await?;
        let mut from = ok(&reply)?;
        Ok((Wcc::decode(&mut from)?, Wcc::decode(&mut from)?))
    }

    /// Returns the file's attributes and the directory's change.
    pub async fn link(
        &self,
        file: &FileHandle,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<(Option<FileAttr>, Wcc)> {
        let write = |out: &mut Encoder| {
            handle(out, file);
            place(out, dir, name);
        };
        let reply = self.nfs(Procedure::Link, write).await?;
        let mut from = ok(&reply)?;
        Ok((FileAttr::decode_post_op(&mut from)?, Wcc::decode(&mut from)?))
    }

    /// Names only. `count`: the largest reply in bytes.
    pub async fn readdir(
        &self,
        dir: &FileHandle,
        after: DirCookie,
        verifier: [u8; 8],
        count: u32,
    ) -> Result<Page> {
        let write = |out: &mut Encoder| {
            handle(out, dir);
            out.u64(after.0).raw(&verifier).u32(count);
        };
        let reply = self.nfs(Procedure::ReadDir, write).await?;
        page(ok(&reply)?, |_| Ok((None, None)))
    }

    /// With attributes and handles. `count`: the largest reply in bytes.
    pub async fn readdirplus(
        &self,
        dir: &FileHandle,
        after: DirCookie,
        verifier: [u8; 8],
        count: u32,
    ) -> Result<Page> {
        let write = |out: &mut Encoder| {
            handle(out, dir);
            out.u64(after.0).raw(&verifier).u32(count).u32(count);
        };
        let reply = self.nfs(Procedure::ReadDirPlus, write).await?;
        page(ok(&reply)?, |from| {
            Ok((FileAttr::decode_post_op(from)?, FileHandle::decode_option(from)?))
        })
    }

    pub async fn fsstat(&self, file: &FileHandle) -> Result<FsStat> {
        let reply = self.nfs(Procedure::FsStat, |out| handle(out, file)).await?;
        let mut from = ok(&reply)?;
        FileAttr::decode_post_op(&mut from)?;
        Ok(FsStat {
            total_bytes: from.u64()?,
            free_bytes: from.u64()?,
            available_bytes: from.u64()?,
            total_files: from.u64()?,
            free_files: from.u64()?,
            available_files: from.u64()?,
        })
    }

    pub async fn fsinfo(&self, file: &FileHandle) -> Result<FsInfo> {
        let reply = self.nfs(Procedure::FsInfo, |out| handle(out, file)).await?;
        let mut from = ok(&reply)?;
        FileAttr::decode_post_op(&mut from)?;
        let [read_max, _, _, write_max, _, _, dir_preferred] = [(); 7].map(|()| from.u32());
        let file_bytes_max = from.u64()?;
        let _time_delta = from.u64()?;
        let properties = from.u32()?;
        Ok(FsInfo {
            read_max: read_max?,
            write_max: write_max?,
            dir_preferred: dir_preferred?,
            file_bytes_max,
            properties,
        })
    }

    pub async fn pathconf(&self, file: &FileHandle) -> Result<PathConf> {
        let reply = self.nfs(Procedure::PathConf, |out| handle(out, file)).await?;
        let mut from = ok(&reply)?;
        FileAttr::decode_post_op(&mut from)?;
        Ok(PathConf {
            links_max: from.u32()?,
            name_max: from.u32()?,
            no_trunc: from.bool()?,
            chown_restricted: from.bool()?,
            case_insensitive: from.bool()?,
            case_preserving: from.bool()?,
        })
    }

    /// MOUNT's MNT: the root of an export.
    pub async fn mount(&self, path: &str) -> Result<FileHandle> {
        let reply = self
            .call(MOUNT_PROGRAM, 1, |out| {
                out.opaque(path.as_bytes());
            })
            .await?;
        let mut from = Cursor::new(&reply);
        match from.u32()? {
            0 => Ok(FileHandle::decode(&mut from)?),
            status => Err(ClientError::Mount { path: path.to_owned(), status }),
        }
    }

    /// MOUNT's UMNT.
    pub async fn unmount(&self, path: &str) -> Result<()> {
        let write = |out: &mut Encoder| {
            out.opaque(path.as_bytes());
        };
        self.call(MOUNT_PROGRAM, 3, write).await.map(drop)
    }

    /// MOUNT's UMNTALL, which the server must answer though nothing of ours calls it.
    pub async fn unmount_all(&self) -> Result<()> {
        self.call(MOUNT_PROGRAM, 4, |_| {}).await.map(drop)
    }

    /// MOUNT's DUMP: clients and their mounts.
    pub async fn mounts(&self) -> Result<Vec<(Bytes, Bytes)>> {
        let reply = self.call(MOUNT_PROGRAM, 2, |_| {}).await?;
        let mut from = Cursor::new(&reply);
        let mut found = Vec::new();
        while from.bool()? {
            found.push((
                from.payload(NAME_BYTES_MAX, usize::MAX)?,
                from.payload(NAME_BYTES_MAX, usize::MAX)?,
            ));
        }
        Ok(found)
    }

    /// MOUNT's EXPORT: the paths.
    pub async fn exports(&self) -> Result<Vec<Bytes>> {
        let reply = self.call(MOUNT_PROGRAM, 5, |_| {}).await?;
        let mut from = Cursor::new(&reply);
        let mut found = Vec::new();
        while from.bool()? {
            found.push(from.payload(NAME_BYTES_MAX, usize::MAX)?);
            while from.bool()? {
                from.opaque(NAME_BYTES_MAX)?;
            }
        }
        Ok(found)
    }
}

type Plus = (Option<FileAttr>, Option<FileHandle>);

/// Reads a listing, whose size is bounded by the reply's length.
fn page(mut from: Cursor<'_>, plus: impl Fn(&mut Cursor<'_>) -> Result<Plus>) -> Result<Page> {
    let attr = FileAttr::decode_post_op(&mut from)?;
    let verifier = from.array()?;
    let mut entries = Vec::new();
    while from.bool()? {
        let fileid = from.u64()?;
        let name = from.payload(NAME_BYTES_MAX, usize::MAX)?;
        let cookie = DirCookie(from.u64()?);
        let (attr, handle) = plus(&mut from)?;
        entries.push(PageEntry { fileid, name, cookie, attr, handle });
    }
    Ok(Page { entries, eof: from.bool()?, verifier, attr })
}
