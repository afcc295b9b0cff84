//! Through the user-space NFS client, where there is no kernel client.

use super::attributes::{NewAttributes, Stat};
use super::model::{leaf, parent};
use crate::fs::api::{CreateHow, DirCookie, IO_BYTES_MAX, SetAttr, SetTime, Special, Stability};
use crate::nfs::client::{Client, ClientError, FileHandle};
use anyhow::Context;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes of one listing's reply.
const LIST_BYTES: u32 = 256 << 10;

pub struct UserFiles {
    client: Client,
    root: FileHandle,
    /// Handles by path: they stay valid whatever happens to other names.
    handles: parking_lot::Mutex<HashMap<String, FileHandle>>,
    /// Held by the one lookup chain that fills the table.
    gate: Arc<tokio::sync::Mutex<()>>,
}

fn failed(doing: &str, path: &str) -> impl FnOnce(ClientError) -> anyhow::Error {
    let what = format!("{doing} /{path}");
    move |error| anyhow::Error::new(error).context(what)
}

impl UserFiles {
    pub fn new(client: Client, root: FileHandle) -> Self {
        Self { client, root, handles: parking_lot::Mutex::default(), gate: Arc::default() }
    }

    async fn handle(&self, path: &str) -> anyhow::Result<FileHandle> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        if let Some(handle) = self.handles.lock().get(path) {
            return Ok(handle.clone());
        }
        let _gate = self.gate.lock().await;
        let (mut at, mut walked) = (self.root.clone(), String::new());
        for name in path.split('/') {
            walked = super::model::join(&walked, name);
            let known = self.handles.lock().get(&walked).cloned();
            at = match known {
                Some(handle) => handle,
                None => {
                    self.client
                        .lookup(&at, name.as_bytes())
                        .await
                        .map_err(failed("look up", &walked))?
                        .handle
                }
            };
            self.handles.lock().insert(walked.clone(), at.clone());
        }
        Ok(at)
    }

    fn keep(&self, path: &str, handle: FileHandle) {
        self.handles.lock().insert(path.to_owned(), handle);
    }

    pub async fn mkdir(&self, path: &str) -> anyhow::Result<()> {
        let dir = self.handle(parent(path)).await?;
        let set = SetAttr { mode: Some(0o755), ..SetAttr::default() };
        let made = self
            .client
            .mkdir(&dir, leaf(path).as_bytes(), &set)
            .await
            .map_err(failed("mkdir", path))?;
        self.keep(path, made.handle);
        Ok(())
    }

    pub async fn create(&self, path: &str) -> anyhow::Result<()> {
        let dir = self.handle(parent(path)).await?;
        let how = CreateHow::Guarded(SetAttr { mode: Some(0o644), ..SetAttr::default() });
        let made = self
            .client
            .create(&dir, leaf(path).as_bytes(), &how)
            .await
            .map_err(failed("create", path))?;
        self.keep(path, made.handle);
        Ok(())
    }

    pub async fn write(&self, path: &str, at: u64, data: Bytes) -> anyhow::Result<()> {
        let file = self.handle(path).await?;
        let mut done = 0;
        while done < data.len() {
            let part = data.slice(done..data.len().min(done + IO_BYTES_MAX));
            let wrote = self.client.write(&file, at + done as u64, part, Stability::Unstable).await;
            let count = wrote.map_err(failed("write", path))?.count as usize;
            anyhow::ensure!(count > 0, "write /{path}: the server took nothing");
            done += count;
        }
        Ok(())
    }

    pub async fn fsync(&self, path: &str) -> anyhow::Result<()> {
        let file = self.handle(path).await?;
        self.client.commit(&file, 0, 0).await.map_err(failed("commit", path)).map(drop)
    }

    pub async fn truncate(&self, path: &str, size: u64) -> anyhow::Result<()> {
        self.setattr(path, SetAttr { size: Some(size), ..SetAttr::default() }).await
    }

    async fn setattr(&self, path: &str, set: SetAttr) -> anyhow::Result<()> {
        let file = self.handle(path).await?;
        self.client
            .setattr(&file, &set, None)
            .await
            .map_err(failed("set attributes of", path))
            .map(drop)
    }

    pub async fn symlink(&self, path: &str, target: &str) -> anyhow::Result<()> {
        let dir = self.handle(parent(path)).await?;
        let what = Special::Symlink(Bytes::copy_from_slice(target.as_bytes()));
        let made = self.client.make(&dir, leaf(path).as_bytes(), &what, &SetAttr::default()).await;
        self.keep(path, made.map_err(failed("symlink", path))?.handle);
        Ok(())
    }

    pub async fn link(&self, path: &str, of: &str) -> anyhow::Result<()> {
        let (file, dir) = (self.handle(of).await?, self.handle(parent(path)).await?);
        self.client
            .link(&file, &dir, leaf(path).as_bytes())
            .await
            .map_err(failed("link", path))
            .map(drop)
    }

    pub async fn remove(&self, path: &str) -> anyhow::Result<()> {
        let dir = self.handle(parent(path)).await?;
        self.client.remove(&dir, leaf(path).as_bytes()).await.map_err(failed("remove", path))?;
        self.handles.lock().remove(path);
        Ok(())
    }

    pub async fn rename(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let (source, target) = (self.handle(parent(from)).await?, self.handle(parent(to)).await?);
        let renamed = self
            .client
            .rename((&source, leaf(from).as_bytes()), (&target, leaf(to).as_bytes()))
            .await;
        renamed.map_err(failed("rename", from))?;
        let moved = self.handles.lock().remove(from);
        if let Some(handle) = moved {
            self.keep(to, handle);
        }
        Ok(())
    }

    pub async fn set(&self, path: &str, attributes: NewAttributes) -> anyhow::Result<()> {
        let at = SetTime::To(attributes.mtime);
        let (uid, gid) = (Some(attributes.uid), Some(attributes.gid));
        // As chown(2) and chmod(2) do it: a change of owner may clear set-id bits.
        self.setattr(path, SetAttr { uid, gid, ..SetAttr::default() }).await?;
        self.setattr(
            path,
            SetAttr { mode: attributes.mode, atime: at, mtime: at, ..SetAttr::default() },
        )
        .await
    }

    pub async fn chmod(&self, path: &str, mode: u32) -> anyhow::Result<()> {
        self.setattr(path, SetAttr { mode: Some(mode), ..SetAttr::default() }).await
    }

    pub async fn stat(&self, path: &str) -> anyhow::Result<Stat> {
        let file = self.handle(path).await?;
        let attr = self.client.getattr(&file).await.map_err(failed("stat", path))?;
        Ok(Stat {
            kind: attr.kind,
            mode: attr.mode & 0o7777,
            uid: attr.uid,
            gid: attr.gid,
            size: attr.size,
            nlink: attr.nlink,
            mtime: attr.mtime,
            fileid: attr.fileid,
        })
    }

    pub async fn list(&self, path: &str) -> anyhow::Result<Vec<String>> {
        let dir = self.handle(path).await?;
        let (mut names, mut after, mut verifier) = (Vec::new(), DirCookie::default(), [0; 8]);
        loop {
            let page = self
                .client
                .readdirplus(&dir, after, verifier, LIST_BYTES)
                .await
                .map_err(failed("list", path))?;
            verifier = page.verifier;
            for entry in page.entries {
                after = entry.cookie;
                let name = String::from_utf8(entry.name.to_vec())
                    .with_context(|| format!("a name in /{path}"))?;
                if name != "." && name != ".." {
                    if let Some(handle) = entry.handle {
                        self.keep(&super::model::join(path, &name), handle);
                    }
                    names.push(name);
                }
            }
            if page.eof {
                return Ok(names);
            }
        }
    }

    pub async fn readlink(&self, path: &str) -> anyhow::Result<String> {
        let link = self.handle(path).await?;
        let target = self.client.readlink(&link).await.map_err(failed("readlink", path))?;
        Ok(String::from_utf8(target.to_vec())?)
    }

    pub async fn read(&self, path: &str, at: u64, len: usize) -> anyhow::Result<Vec<u8>> {
        let file = self.handle(path).await?;
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let count = u32::try_from((len - bytes.len()).min(IO_BYTES_MAX))?;
            let read = self
                .client
                .read(&file, at + bytes.len() as u64, count)
                .await
                .map_err(failed("read", path))?;
            bytes.extend_from_slice(&read.data);
            if read.eof || read.data.is_empty() {
                break;
            }
        }
        Ok(bytes)
    }
}
