//! Files through a client of NFS, as root.

use bytes::Bytes;
use std::net::SocketAddr;
use zerofs_csi::fs::api::{CreateHow, SetAttr, Stability};
use zerofs_csi::nfs::client::{Client, Credentials, FileHandle};

/// A client, and the root of an export.
pub async fn mount(at: SocketAddr, export: &str) -> (Client, FileHandle) {
    let client = Client::connect(at, &Credentials::root()).await.unwrap();
    let root = client.mount(export).await.unwrap();
    (client, root)
}

pub async fn mkdir(client: &Client, dir: &FileHandle, name: impl AsRef<[u8]>) -> FileHandle {
    let set = SetAttr { mode: Some(0o755), ..SetAttr::default() };
    client.mkdir(dir, name.as_ref(), &set).await.unwrap().handle
}

/// A file whose content the store has.
pub async fn write(client: &Client, dir: &FileHandle, name: impl AsRef<[u8]>, data: &[u8]) {
    let set = SetAttr { mode: Some(0o640), size: Some(0), ..SetAttr::default() };
    let made = client.create(dir, name.as_ref(), &CreateHow::Unchecked(set)).await;
    let file = made.unwrap().handle;
    for (i, part) in data.chunks(1 << 20).enumerate() {
        let part = Bytes::copy_from_slice(part);
        client.write(&file, (i as u64) << 20, part, Stability::Unstable).await.unwrap();
    }
    client.commit(&file, 0, 0).await.unwrap();
}
