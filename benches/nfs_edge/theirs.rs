//! The file system in memory behind nfsserve: as much of its interface as the bench calls.

use crate::memfs::MemFs;
use async_trait::async_trait;
use bytes::Bytes;
use nfsserve::nfs::*;
use nfsserve::tcp::{NFSTcp, NFSTcpListener};
use nfsserve::vfs::{NFSFileSystem, ReadDirResult, VFSCapabilities};
use std::sync::Arc;
use zerofs_csi::fs::api::{
    Attr, Caller, CreateHow, FileKind, FileRef, FileSystem, SetAttr, Stability,
};
use zerofs_csi::types::{EntryName, InodeNo, Timestamp};

struct Theirs(Arc<MemFs>);

pub async fn serve(fs: Arc<MemFs>) {
    let mut listener = NFSTcpListener::bind("127.0.0.1:0", Theirs(fs)).await.unwrap();
    listener.with_export_name("/");
    println!("127.0.0.1:{}", listener.get_listen_port());
    listener.handle_forever().await.unwrap();
}

fn file(id: fileid3) -> FileRef {
    FileRef { ino: InodeNo(id), generation: 1 }
}

fn time(at: Timestamp) -> nfstime3 {
    nfstime3 { seconds: at.secs() as u32, nseconds: at.subsec_nanos() }
}

fn attr(attr: &Attr) -> fattr3 {
    fattr3 {
        ftype: if attr.kind == FileKind::Directory { ftype3::NF3DIR } else { ftype3::NF3REG },
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        size: attr.size,
        used: attr.allocated,
        rdev: specdata3::default(),
        fsid: 1,
        fileid: attr.file.ino.0,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
    }
}

#[async_trait]
impl NFSFileSystem for Theirs {
    fn capabilities(&self) -> VFSCapabilities {
        VFSCapabilities::ReadWrite
    }

    fn root_dir(&self) -> fileid3 {
        InodeNo::ROOT.0
    }

    async fn lookup(&self, dir: fileid3, name: &filename3) -> Result<fileid3, nfsstat3> {
        let found = self
            .0
            .lookup(&Caller::root(), file(dir), name)
            .await
            .map_err(|_| nfsstat3::NFS3ERR_NOENT)?;
        Ok(found.0.file.ino.0)
    }

    async fn getattr(&self, id: fileid3) -> Result<fattr3, nfsstat3> {
        self.0
            .getattr(file(id))
            .await
            .map(|found| attr(&found))
            .map_err(|_| nfsstat3::NFS3ERR_STALE)
    }

    async fn setattr(&self, id: fileid3, _set: sattr3) -> Result<fattr3, nfsstat3> {
        self.getattr(id).await
    }

    async fn read(
        &self,
        id: fileid3,
        offset: u64,
        count: u32,
    ) -> Result<(Vec<u8>, bool), nfsstat3> {
        let read = self
            .0
            .read(&Caller::root(), file(id), offset, count)
            .await
            .map_err(|_| nfsstat3::NFS3ERR_IO)?;
        Ok((read.data.concat(), read.eof))
    }

    async fn write(&self, id: fileid3, offset: u64, data: &[u8]) -> Result<fattr3, nfsstat3> {
        let data = Bytes::copy_from_slice(data);
        let written =
            self.0.write(&Caller::root(), file(id), offset, data, Stability::FileSync).await;
        written.map(|written| attr(&written.change.after)).map_err(|_| nfsstat3::NFS3ERR_IO)
    }

    async fn create(
        &self,
        dir: fileid3,
        name: &filename3,
        _set: sattr3,
    ) -> Result<(fileid3, fattr3), nfsstat3> {
        let name = EntryName::try_from(&name[..]).map_err(|_| nfsstat3::NFS3ERR_INVAL)?;
        let how = CreateHow::Unchecked(SetAttr::default());
        let made = self
            .0
            .create(&Caller::root(), file(dir), &name, how)
            .await
            .map_err(|_| nfsstat3::NFS3ERR_IO)?;
        Ok((made.attr.file.ino.0, attr(&made.attr)))
    }

    async fn create_exclusive(
        &self,
        _dir: fileid3,
        _name: &filename3,
    ) -> Result<fileid3, nfsstat3> {
        Err(nfsstat3::NFS3ERR_NOTSUPP)
    }

    async fn mkdir(&self, _dir: fileid3, _name: &filename3) -> Result<(fileid3, fattr3), nfsstat3> {
        Err(nfsstat3::NFS3ERR_NOTSUPP)
    }

    async fn remove(&self, _dir: fileid3, _name: &filename3) -> Result<(), nfsstat3> {
        Err(nfsstat3::NFS3ERR_NOTSUPP)
    }

    async fn rename(
        &self,
        _from: fileid3,
        _a: &filename3,
        _to: fileid3,
        _b: &filename3,
    ) -> Result<(), nfsstat3> {
        Err(nfsstat3::NFS3ERR_NOTSUPP)
    }

    async fn readdir(
        &self,
        _dir: fileid3,
        _after: fileid3,
        _max: usize,
    ) -> Result<ReadDirResult, nfsstat3> {
        Err(nfsstat3::NFS3ERR_NOTSUPP)
    }

    async fn symlink(
        &self,
        _dir: fileid3,
        _name: &filename3,
        _target: &nfspath3,
        _set: &sattr3,
    ) -> Result<(fileid3, fattr3), nfsstat3> {
        Err(nfsstat3::NFS3ERR_NOTSUPP)
    }

    async fn readlink(&self, _id: fileid3) -> Result<nfspath3, nfsstat3> {
        Err(nfsstat3::NFS3ERR_NOTSUPP)
    }
}
