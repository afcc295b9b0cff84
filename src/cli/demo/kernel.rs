//! Through a kernel mount: ordinary system calls.

use super::attributes::{NewAttributes, Stat};
use crate::fs::api::FileKind;
use crate::types::Timestamp;
use anyhow::Context;
use bytes::Bytes;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

pub struct KernelFiles {
    pub root: PathBuf,
}

/// Runs system calls where they may block.
async fn blocking<T: Send + 'static>(
    path: PathBuf,
    doing: &'static str,
    call: impl FnOnce(&std::path::Path) -> std::io::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let shown = path.clone();
    let done = tokio::task::spawn_blocking(move || call(&path)).await?;
    done.with_context(|| format!("{doing} {}", shown.display()))
}

impl KernelFiles {
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub async fn mkdir(&self, path: &str) -> anyhow::Result<()> {
        blocking(self.at(path), "mkdir", |p| fs::create_dir(p)).await
    }

    pub async fn create(&self, path: &str) -> anyhow::Result<()> {
        blocking(self.at(path), "create", |p| File::create_new(p).map(drop)).await
    }

    pub async fn write(&self, path: &str, at: u64, data: Bytes) -> anyhow::Result<()> {
        blocking(self.at(path), "write", move |p| {
            File::options().write(true).open(p)?.write_all_at(&data, at)
        })
        .await
    }

    pub async fn fsync(&self, path: &str) -> anyhow::Result<()> {
        blocking(self.at(path), "fsync", |p| File::options().write(true).open(p)?.sync_all()).await
    }

    pub async fn truncate(&self, path: &str, size: u64) -> anyhow::Result<()> {
        blocking(self.at(path), "truncate", move |p| {
            File::options().write(true).open(p)?.set_len(size)
        })
        .await
    }

    pub async fn symlink(&self, path: &str, target: &str) -> anyhow::Result<()> {
        let target = target.to_owned();
        blocking(self.at(path), "symlink", move |p| std::os::unix::fs::symlink(target, p)).await
    }

    pub async fn link(&self, path: &str, of: &str) -> anyhow::Result<()> {
        let of = self.at(of);
        blocking(self.at(path), "link", move |p| fs::hard_link(of, p)).await
    }

    pub async fn remove(&self, path: &str) -> anyhow::Result<()> {
        blocking(self.at(path), "remove", |p| fs::remove_file(p)).await
    }

    pub async fn rename(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let to = self.at(to);
        blocking(self.at(from), "rename", move |p| fs::rename(p, to)).await
    }

    pub async fn set(&self, path: &str, attributes: NewAttributes) -> anyhow::Result<()> {
        blocking(self.at(path), "set attributes of", move |p| {
            std::os::unix::fs::lchown(p, Some(attributes.uid), Some(attributes.gid))?;
            if let Some(mode) = attributes.mode {
                fs::set_permissions(p, Permissions::from_mode(mode))?;
            }
            let mtime = attributes.mtime;
            let at = rustix::fs::Timespec {
                tv_sec: mtime.secs(),
                tv_nsec: i64::from(mtime.subsec_nanos()),
            };
            let times = rustix::fs::Timestamps { last_access: at, last_modification: at };
            Ok(rustix::fs::utimensat(
                rustix::fs::CWD,
                p,
                &times,
                rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
            )?)
        })
        .await
    }

    pub async fn chmod(&self, path: &str, mode: u32) -> anyhow::Result<()> {
        blocking(self.at(path), "chmod", move |p| {
            fs::set_permissions(p, Permissions::from_mode(mode))
        })
        .await
    }

    pub async fn stat(&self, path: &str) -> anyhow::Result<Stat> {
        let meta = blocking(self.at(path), "stat", |p| fs::symlink_metadata(p)).await?;
        let kind = match meta.file_type() {
            t if t.is_dir() => FileKind::Directory,
            t if t.is_symlink() => FileKind::Symlink,
            t if t.is_fifo() => FileKind::Fifo,
            t if t.is_socket() => FileKind::Socket,
            t if t.is_char_device() => FileKind::CharDevice,
            t if t.is_block_device() => FileKind::BlockDevice,
            _ => FileKind::Regular,
        };
        let nanos = u32::try_from(meta.mtime_nsec()).unwrap_or_default();
        Ok(Stat {
            kind,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            size: meta.size(),
            nlink: u32::try_from(meta.nlink()).unwrap_or(u32::MAX),
            mtime: Timestamp::from_parts(meta.mtime(), nanos),
            fileid: meta.ino(),
        })
    }

    pub async fn list(&self, path: &str) -> anyhow::Result<Vec<String>> {
        blocking(self.at(path), "list", |p| {
            fs::read_dir(p)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        })
        .await
    }

    pub async fn readlink(&self, path: &str) -> anyhow::Result<String> {
        blocking(self.at(path), "readlink", |p| {
            Ok(fs::read_link(p)?.to_string_lossy().into_owned())
        })
        .await
    }

    pub async fn read(&self, path: &str, at: u64, len: usize) -> anyhow::Result<Vec<u8>> {
        blocking(self.at(path), "read", move |p| {
            let (file, mut bytes, mut done) = (File::open(p)?, vec![0; len], 0);
            while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
                match file.read_at(rest, at + done as u64)? {
                    0 => break,
                    n => done += n,
                }
            }
            bytes.truncate(done);
            Ok(bytes)
        })
        .await
    }
}
