//! What outlives a process: the pool and the node's disk.

use object_store::memory::InMemory;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zerofs_csi::bucket::{Bucket, Credentials, Folder, Limits};
use zerofs_csi::catalog::Catalog;
use zerofs_csi::crypto::Secret;

/// The state that outlives a process: the pool and the node's disk.
#[derive(Clone)]
pub struct Storage {
    store: Option<Arc<InMemory>>,
    folder: PathBuf,
    pub secret: Option<Secret>,
}

impl Storage {
    /// A pool in memory; only the journals are on the disk.
    pub fn memory(folder: &Path) -> Self {
        Self { store: Some(Arc::default()), folder: folder.to_owned(), secret: None }
    }

    /// A pool in a folder, that processes share.
    pub fn folder(folder: &Path) -> Self {
        std::fs::create_dir_all(folder.join("pool")).unwrap();
        Self { store: None, folder: folder.to_owned(), secret: None }
    }

    /// With a pool that is encrypted if there is a secret.
    pub fn sealed(mut self, secret: Option<Secret>) -> Self {
        self.secret = secret;
        self
    }

    /// A copy of a pool in memory.
    pub fn fork(&self) -> Self {
        Self { store: Some(Arc::new(self.store().fork())), ..self.clone() }
    }

    pub fn store(&self) -> &InMemory {
        self.store.as_ref().expect("a pool in memory")
    }

    /// As when the node is lost. The folder's identity stays: a node without it takes its volumes
    /// back only when its own lease has ended, which is tested elsewhere.
    pub fn lose_journals(&self) {
        let entries = std::fs::read_dir(self.journals())
            .map(|found| found.flatten().map(|entry| entry.path()).collect::<Vec<_>>());
        for path in entries
            .unwrap_or_default()
            .into_iter()
            .filter(|path| path.file_name().is_none_or(|name| name != "directory-id"))
        {
            let _ = if path.is_dir() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
        }
    }

    pub fn journals(&self) -> PathBuf {
        self.folder.join("journals")
    }

    pub fn bucket(&self) -> Bucket {
        match &self.store {
            Some(store) => Bucket::on(store.clone(), Default::default()),
            None => {
                let url = format!("file://{}", self.folder.join("pool").display()).parse().unwrap();
                Bucket::open(&url, &Credentials::none(), Folder::MustExist, Limits::default())
                    .unwrap()
            }
        }
    }

    pub async fn create(&self) {
        Catalog::create(self.bucket(), self.secret.as_ref()).await.unwrap();
    }
}
