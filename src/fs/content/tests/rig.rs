//! A file in a database of its own, and a check of all that is accounted of it.

use super::*;

pub(super) const INO: InodeNo = InodeNo(7);

pub(super) struct Rig {
    pub place: DbPlace,
    pub family: FamilyId,
    pub keyring: Keyring,
    pub cache: ChunkCache,
    pub memory: ContentMemory,
    pub committer: Arc<Committer>,
    pub inodes: Arc<Inodes>,
    pub contents: Arc<Contents>,
    pub node: Arc<Node>,
}

pub(super) fn file(committer: &Committer, bits: u8) -> Inode {
    Inode {
        kind: FileKind::Regular,
        mode: 0o644,
        uid: 0,
        gid: 0,
        nlink: 1,
        size: 0,
        allocated: 0,
        rdev: (0, 0),
        atime: Timestamp::from_nanos(0),
        mtime: Timestamp::from_nanos(0),
        ctime: Timestamp::from_nanos(0),
        generation: 1,
        parent: InodeNo::ROOT,
        data: committer.new_data().unwrap(),
        record_bits: bits,
        truncations: 0,
        masks: vec![],
        exclusive: None,
        fs_group_epoch: 0,
        target: None,
    }
}

async fn open(
    place: &DbPlace,
    family: FamilyId,
    keyring: &Keyring,
    cache: &ChunkCache,
    memory: &ContentMemory,
) -> (Arc<Committer>, Arc<Inodes>, Arc<Contents>) {
    let db = Database::open(place, None).await.unwrap();
    let chunks = ChunkStore::new(place.bucket.clone(), family, keyring, cache.clone());
    let packer = chunks.packer(place.incarnation, db.epoch(), Codec::Lz4);
    let settled = packer.clone();
    let committer =
        Committer::start(db, None, Box::new(move || settled.settled()), Failpoints::default())
            .await
            .unwrap();
    let committer = Arc::new(committer);
    let inodes = Arc::new(Inodes::new(committer.clone(), InodeMemory::new(1 << 20)));
    let contents = Arc::new(Contents::new(
        committer.clone(),
        inodes.clone(),
        chunks,
        packer,
        memory,
        Duration::from_secs(3600),
    ));
    (committer, inodes, contents)
}

impl Rig {
    pub async fn new(bits: u8, keyring: Keyring, memory: ContentMemory) -> Self {
        let incarnation = Incarnation::random();
        let family = FamilyId::from(incarnation);
        let sealer = keyring.database_sealer(family);
        let place = DbPlace::new(Bucket::memory(), incarnation, sealer, DbCache::new(16 << 20));
        let cache = ChunkCache::memory(16 << 20);
        let (committer, inodes, contents) = open(&place, family, &keyring, &cache, &memory).await;
        let row = file(&committer, bits);
        let mut batch = Batch { inodes: 1, ..Batch::default() };
        batch.put(key::inode(INO), &row);
        committer.submit(batch).unwrap();
        let node = inodes.insert(Node::new(INO, row, Ticket::default()));
        Self { place, family, keyring, cache, memory, committer, inodes, contents, node }
    }

    /// Closes cleanly and opens again, with nothing cached.
    pub async fn reopen(&mut self) {
        self.contents.flush_all().await.unwrap();
        self.committer.close().await.unwrap();
        self.cache = ChunkCache::memory(16 << 20);
        (self.committer, self.inodes, self.contents) =
            open(&self.place, self.family, &self.keyring, &self.cache, &self.memory).await;
        let row = self.committer.get(&key::inode(INO)).await.unwrap().unwrap();
        let node = Node::new(INO, Inode::decode(&row).unwrap(), Ticket::default());
        self.node = self.inodes.insert(node);
    }

    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), FsError> {
        let room = self.contents.admit(data.len()).await?;
        let _lock = self.node.lock.lock().await;
        let mut row = self.node.row.read().clone();
        self.contents.write(&self.node, &mut row, offset, data, room).await?;
        *self.node.row.write() = row;
        Ok(())
    }

    pub async fn truncate(&self, size: u64) -> Result<(), FsError> {
        self.truncate_with(size, Batch::default()).await
    }

    /// Truncates in a batch that has something else in it.
    pub async fn truncate_with(&self, size: u64, mut batch: Batch) -> Result<(), FsError> {
        let _lock = self.node.lock.lock().await;
        let mut row = self.node.row.read().clone();
        let Some(resize) = self.contents.truncate(&self.node, &mut row, size, &mut batch).await?
        else {
            return Ok(());
        };
        batch.put(key::inode(INO), &resize.stored(&row));
        let ticket = self.committer.submit(batch)?;
        self.contents.resized(&self.node, row, resize);
        self.node.submitted(ticket);
        Ok(())
    }

    /// Removes the file, in a batch that has something else in it.
    pub fn unlink_with(&self, mut batch: Batch) -> Result<(), FsError> {
        let mut row = self.node.row.read().clone();
        let release = self.contents.discard(&self.node, &row, &mut batch);
        assert!(batch.rows.len() as u64 <= truncate::RELEASE_MAX, "O(1)");
        batch.inodes = -1;
        batch.delete(key::inode(INO));
        let ticket = self.committer.submit(batch)?;
        row.nlink = 0;
        *self.node.row.write() = row;
        self.contents.discarded(&self.node, release);
        self.node.submitted(ticket);
        Ok(())
    }

    pub async fn read(&self, offset: u64, count: u32) -> Vec<u8> {
        let row = self.node.row.read().clone();
        self.contents.read(&self.node, &row, offset, count).await.unwrap().concat()
    }

    pub async fn rows(&self, from: Bytes, to: Bytes) -> Vec<(Bytes, Bytes)> {
        self.committer.scan(from, to, usize::MAX).await.unwrap()
    }

    /// Asserts that a full scan agrees with the counters.
    pub async fn exact(&self) {
        let row = self.node.stored(&self.node.row.read());
        let mut by_data: HashMap<DataId, u64> = HashMap::new();
        let mut refs: HashMap<PackId, u64> = HashMap::new();
        for (key, value) in self.rows(key::extents(DataId(0)), key::extents(DataId(u64::MAX))).await
        {
            let Some(Key::Extent(data, _)) = Key::parse(&key) else { panic!("{key:?}") };
            let extent = extents::decode(&value, 20).unwrap();
            assert!(!extent.segments.is_empty());
            *by_data.entry(data).or_default() += segments::bytes(&extent);
            for segment in &extent.segments {
                if let Source::Chunk { chunk, .. } = &segment.source {
                    *refs.entry(chunk.pack).or_default() += 1;
                }
            }
        }
        assert_eq!(by_data.remove(&row.data).unwrap_or(0), row.allocated);
        assert_eq!(self.committer.totals().allocated, row.allocated);
        for (pack, refs) in &refs {
            assert_eq!(self.committer.usage(*pack).refs, *refs, "{pack}");
        }
        for data in by_data.keys() {
            assert!(
                self.committer.get(&key::orphan(*data)).await.unwrap().is_some(),
                "{data:?} is neither used nor an orphan"
            );
        }
        for (key, value) in self.rows(key::orphan(DataId(0)), key::orphan(DataId(u64::MAX))).await {
            let orphan = Orphan::decode(&value).unwrap();
            assert!(orphan.inode.is_none() || Key::parse(&key) == Some(Key::Orphan(row.data)));
        }
        let presented = self.node.row.read().allocated;
        assert_eq!(presented, row.allocated + self.contents.reserved());
        if !self.node.content.is_dirty() {
            assert_eq!(self.contents.reserved(), 0);
            assert_eq!(self.contents.room.used(), 0);
        }
        let durable =
            Inode::decode(&self.committer.get(&key::inode(INO)).await.unwrap().unwrap()).unwrap();
        assert_eq!((durable.size, durable.allocated), (row.size, row.allocated));
    }

    /// As after a restart: no node is in memory.
    pub async fn reclaim_of_nobody(&self) {
        self.inodes.forget(INO);
        self.reclaim().await;
    }

    pub async fn reclaim(&self) {
        let mut broken = Default::default();
        while self.contents.reclaim_round(&mut broken).await.unwrap() == ReclaimStep::More {}
        assert!(broken.is_empty());
    }
}

pub(super) fn limits() -> ContentMemory {
    ContentMemory::new(32 << 20, 1 << 20)
}

pub(super) fn plain() -> Keyring {
    Keyring::plain(PoolId::random())
}
