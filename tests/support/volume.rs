//! A dataset on a bucket in memory, to be opened again and again, and cloned.

use std::path::PathBuf;
use std::time::Duration;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::chunk::{ChunkCache, ChunkStore, Codec};
use zerofs_csi::crypto::Keyring;
use zerofs_csi::fs::db::{self, CheckpointId, DbCache, DbPlace};
use zerofs_csi::fs::{
    Fs, FsError, FsMemory, FsOptions, FsProperties, RootAttr, SnapshotFs, SyncMode,
};
use zerofs_csi::types::{FamilyId, Incarnation, IoLimits, PoolId, WallClock};

/// The parts of a dataset that exist while it is closed.
#[derive(Clone)]
pub struct Dataset {
    pub place: DbPlace,
    pub options: FsOptions,
    family: FamilyId,
    keyring: Keyring,
    chunks: ChunkCache,
    journals: PathBuf,
}

impl Dataset {
    pub fn new(bucket: Bucket, journals: PathBuf) -> Self {
        let incarnation = Incarnation::random();
        let place = DbPlace::new(bucket, incarnation, None, DbCache::new(16 << 20));
        let options = FsOptions {
            properties: FsProperties {
                sync: SyncMode::Standard,
                quota_bytes: None,
                quota_inodes: None,
                record_bytes: 4096,
                codec: Codec::Lz4,
                shows_snapshots: false,
                limits: IoLimits::default(),
            },
            flush_interval: Duration::from_millis(100),
            memory: FsMemory::new(16 << 20, 16 << 20),
            journal: Some(journals.join(incarnation.to_string())),
            root: RootAttr { uid: 0, gid: 0, mode: 0o755 },
            clock: WallClock::default(),
        };
        let (family, keyring) = (FamilyId::from(incarnation), Keyring::plain(PoolId::random()));
        Self { place, options, family, keyring, chunks: ChunkCache::memory(16 << 20), journals }
    }

    /// As a new process has it: on `bucket`, with nothing in memory, its journal in `journals` or
    /// without one.
    pub fn reborn(&mut self, bucket: Bucket, journals: Option<&std::path::Path>) {
        (self.place.bucket, self.place.cache) = (bucket, DbCache::new(4 << 20));
        self.chunks = ChunkCache::memory(4 << 20);
        self.options.memory = FsMemory::new(8 << 20, 4 << 20);
        self.options.journal =
            journals.map(|folder| folder.join(self.place.incarnation.to_string()));
    }

    /// Opens it, once.
    pub async fn try_open(&self) -> Result<Fs, FsError> {
        let chunks = ChunkStore::new(
            self.place.bucket.clone(),
            self.family,
            &self.keyring,
            self.chunks.clone(),
        );
        Fs::open(&self.place, chunks, self.options.clone()).await
    }

    /// Opens it, waiting a little for an earlier opening that was dropped to let go of the journal.
    pub async fn open(&self) -> Fs {
        for _ in 0..200 {
            match self.try_open().await {
                Ok(fs) => return fs,
                Err(FsError::Busy(_)) => tokio::time::sleep(Duration::from_millis(25)).await,
                Err(error) => panic!("the dataset does not open: {error}"),
            }
        }
        panic!("the journal stays locked");
    }

    /// A snapshot of this dataset, read as `.snapshots` shows it.
    #[allow(dead_code, reason = "not every test program reads one")]
    pub async fn snapshot_fs(&self, checkpoint: CheckpointId) -> SnapshotFs {
        let chunks = ChunkStore::new(
            self.place.bucket.clone(),
            self.family,
            &self.keyring,
            self.chunks.clone(),
        );
        SnapshotFs::open(&self.place, checkpoint, chunks, self.options.memory.snapshots())
            .await
            .expect("a snapshot")
    }

    /// A clone of a snapshot of this dataset.
    pub async fn clone_from(&self, checkpoint: CheckpointId) -> Self {
        let incarnation = Incarnation::random();
        let mut clone = self.clone();
        clone.place.incarnation = incarnation;
        clone.options.journal = Some(self.journals.join(incarnation.to_string()));
        let database = db::NewClone::read(&clone.place, self.place.incarnation, checkpoint).await;
        database.expect("a snapshot").make().await.expect("a clone");
        clone
    }
}
