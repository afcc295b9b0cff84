//! Scrubs a pool: reads every chunk that datasets and snapshots refer to from the bucket and
//! verifies it.
//!
//! ```text
//! root ─▶ its extents ─▶ the pack of each chunk, read once and whole
//!                     ─▶ chunk damaged or absent? ─▶ the files that use it
//! ```
//!
//! Extents are read instead of listing packs, so that a chunk missing from its pack is found too. A
//! pack is read once, however many roots refer to it. In a dataset that is being written, a chunk
//! that seems damaged is looked up once more: its pack may have been deleted together with the
//! extent. Nothing is reported of what was deleted meanwhile.
//!
//! [`Scrubbed`] is also what a scrub resumes from: packs that were read are not read again.

use super::pace::Pace;
use super::roots::{self, OpenRoot};
use super::{ControlError, Pool};
use crate::chunk::{ChunkError, ChunkRef, ChunkStore};
use crate::fs::FsError;
use crate::fs::api::FileKind;
use crate::fs::db::Reader;
use crate::fs::key::{self, DataId, Key};
use crate::fs::row::{DirEntryRow, Extent, Inode, Row, Source};
use crate::types::{ChunkHash, DatasetId, InodeNo, PackId};
use crate::volume::Volumes;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use tokio_util::sync::CancellationToken;

const FORMAT: u32 = 1;
/// Names of chunks remembered from packs: about 40 bytes each. Beyond, footers are read again.
const HASHES_MAX: usize = 1 << 20;
/// Most damaged uses that are listed; more are only counted.
const USES_MAX: usize = 1000;
/// Longest path from a file to the root that is reported.
const DEPTH_MAX: usize = 256;

/// The findings of a scrub so far.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scrubbed {
    pub format: u32,
    /// Datasets and snapshots whose records were all read.
    pub roots: Vec<String>,
    pub chunks: u64,
    pub bytes: u64,
    pub damaged: Vec<Damaged>,
    /// Damaged uses beyond those.
    pub more: u64,
    /// The damage in each pack that was read; most have none.
    pub packs: BTreeMap<String, Vec<String>>,
}

impl Default for Scrubbed {
    fn default() -> Self {
        Self {
            format: FORMAT,
            roots: vec![],
            chunks: 0,
            bytes: 0,
            damaged: vec![],
            more: 0,
            packs: BTreeMap::new(),
        }
    }
}

/// A chunk that cannot be read, and its users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damaged {
    pub pack: String,
    pub chunk: String,
    pub why: String,
    /// `DATASET:/PATH` or `DATASET@SNAPSHOT:/PATH`, from this byte on.
    pub file: String,
    pub offset: u64,
}

/// A use of a chunk that cannot be read.
struct Suspect {
    data: DataId,
    record: u64,
    start: u32,
    chunk: ChunkRef,
    why: String,
}

/// Reads and verifies the chunks that one pool refers to.
pub struct Scrub<'a> {
    pool: &'a Pool,
    volumes: &'a Volumes,
    pace: Pace,
    found: Scrubbed,
    /// Intact chunks of packs read lately.
    whole: HashMap<PackId, HashSet<ChunkHash>>,
    hashes: usize,
}

impl<'a> Scrub<'a> {
    /// `resumed`: the findings of an earlier scrub that was stopped.
    ///
    /// # Errors
    /// When the findings are of another version.
    pub fn new(
        pool: &'a Pool,
        volumes: &'a Volumes,
        rate: Option<u64>,
        resumed: Option<Scrubbed>,
    ) -> Result<Self, ControlError> {
        let mut found = resumed.unwrap_or_default();
        if found.format != FORMAT {
            return Err(ControlError::Invalid(format!(
                "the state to resume from has format {}, which is not supported: start a new scrub",
                found.format
            )));
        }
        // Extents are read again, so that data written since is verified too; packs are not.
        found.roots.clear();
        found.damaged.clear();
        (found.chunks, found.more) = (0, 0);
        Ok(Self { pool, volumes, pace: Pace::new(rate), found, whole: HashMap::new(), hashes: 0 })
    }

    pub fn found(&self) -> &Scrubbed {
        &self.found
    }

    /// Scrubs a dataset with its snapshots, or all. `each` is called after every pack. Returns
    /// whether it reached the end: a scrub stopped by the token leaves no registration of a reader,
    /// which would retain a deleted snapshot (R14).
    pub async fn run(
        &mut self,
        only: Option<DatasetId>,
        stop: &CancellationToken,
        mut each: impl FnMut(&str, &Scrubbed),
    ) -> Result<bool, ControlError> {
        for source in roots::list(self.pool).await? {
            if only.is_none_or(|only| only.incarnation == source.dataset().incarnation)
                && let Some(root) = OpenRoot::open(self.pool, self.volumes, &source).await?
            {
                self.scrub(root, &source, stop, &mut each).await?;
            }
            if stop.is_cancelled() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn scrub(
        &mut self,
        root: OpenRoot,
        source: &roots::RootRef,
        stop: &CancellationToken,
        each: &mut impl FnMut(&str, &Scrubbed),
    ) -> Result<(), ControlError> {
        let reading = async {
            let suspects = self.suspects(&root, each).await?;
            self.tell(&root, source, suspects).await
        };
        let told = tokio::select! {
            told = Box::pin(reading) => Some(told),
            () = stop.cancelled() => None,
        };
        let name = root.name.clone();
        root.close().await?;
        match told {
            Some(Ok(())) => self.found.roots.push(name),
            // Its objects may have been removed while they were read.
            Some(Err(_)) if source.is_deleted(self.pool).await? => {}
            Some(Err(error)) => return Err(error),
            None => {}
        }
        Ok(())
    }

    /// Reads every record of a root, and the packs it refers to.
    async fn suspects(
        &mut self,
        root: &OpenRoot,
        each: &mut impl FnMut(&str, &Scrubbed),
    ) -> Result<Vec<Suspect>, ControlError> {
        let store = self.volumes.settings().chunks(&self.pool.catalog, root.family);
        let mut suspects = Vec::new();
        let mut pages = root.rows().pages(Bytes::from_static(b"X"), Bytes::from_static(b"Y"));
        while let Some(rows) = pages.next().await? {
            for (row_key, row) in &rows {
                let Some(Key::Extent(data, record)) = Key::parse(row_key) else { continue };
                for segment in Extent::decode(row)?.segments {
                    let Source::Chunk { chunk, .. } = segment.source else { continue };
                    self.found.chunks += 1;
                    if let Some(why) = self.wrong(&store, &chunk, &root.name, each).await? {
                        suspects.push(Suspect { data, record, start: segment.start, chunk, why });
                    }
                }
            }
        }
        Ok(suspects)
    }

    /// Returns the reason why a chunk cannot be read, if there is one.
    async fn wrong(
        &mut self,
        store: &ChunkStore,
        chunk: &ChunkRef,
        root: &str,
        each: &mut impl FnMut(&str, &Scrubbed),
    ) -> Result<Option<String>, ControlError> {
        if !self.whole.contains_key(&chunk.pack) {
            match self.load(store, chunk.pack).await {
                Ok(whole) => self.remember(chunk.pack, whole),
                Err(ChunkError::Missing { .. }) => {
                    return Ok(Some("its pack is not in the bucket".to_owned()));
                }
                // Its footer is damaged; the chunk itself may be whole.
                Err(ChunkError::CorruptPack { .. }) => {
                    return match store.read(std::slice::from_ref(chunk)).await {
                        Ok(_) => Ok(None),
                        Err(
                            error @ (ChunkError::Corrupt { .. } | ChunkError::CorruptPack { .. }),
                        ) => Ok(Some(error.to_string())),
                        Err(error) => Err(ControlError::Unavailable(error.to_string())),
                    };
                }
                Err(error) => return Err(ControlError::Unavailable(error.to_string())),
            }
            each(root, &self.found);
        }
        let whole = self.whole.get(&chunk.pack).is_some_and(|whole| whole.contains(&chunk.hash));
        let damaged = || {
            self.found
                .packs
                .get(&chunk.pack.to_string())
                .is_some_and(|damaged| damaged.contains(&chunk.hash.to_string()))
        };
        Ok((!whole).then(|| {
            if damaged() {
                "its bytes are not what was written".to_owned()
            } else {
                "its pack does not hold it".to_owned()
            }
        }))
    }

    /// Returns the intact chunks of a pack: it is read if it was not read yet, otherwise only its
    /// footer is.
    async fn load(
        &mut self,
        store: &ChunkStore,
        pack: PackId,
    ) -> Result<HashSet<ChunkHash>, ChunkError> {
        if let Some(damaged) = self.found.packs.get(&pack.to_string()) {
            let chunks = store.contents(pack).await?;
            return Ok(chunks
                .into_iter()
                .map(|chunk| chunk.hash)
                .filter(|hash| !damaged.contains(&hash.to_string()))
                .collect());
        }
        let verified = store.verify(pack).await?;
        for (hash, why) in &verified.damaged {
            tracing::error!(pack = %pack, chunk = %hash, why, "a chunk is damaged");
        }
        self.found.bytes += verified.bytes;
        self.found.packs.insert(
            pack.to_string(),
            verified.damaged.iter().map(|(hash, _)| hash.to_string()).collect(),
        );
        self.pace.spend(verified.bytes).await;
        Ok(verified.whole.into_iter().collect())
    }

    fn remember(&mut self, pack: PackId, whole: HashSet<ChunkHash>) {
        if self.hashes + whole.len() > HASHES_MAX {
            self.whole.clear();
            self.hashes = 0;
        }
        self.hashes += whole.len();
        self.whole.insert(pack, whole);
    }

    /// Reports the files of chunks that cannot be read.
    async fn tell(
        &mut self,
        root: &OpenRoot,
        source: &roots::RootRef,
        mut suspects: Vec<Suspect>,
    ) -> Result<(), ControlError> {
        if source.is_head()
            && !suspects.is_empty()
            && let Some(now) = OpenRoot::open(self.pool, self.volumes, source).await?
        {
            let still = still_used(now.rows(), suspects).await;
            now.close().await?;
            suspects = still?;
        }
        // The last look: an hour without a renewal ends a reader's registration.
        if suspects.is_empty() || source.is_deleted(self.pool).await? {
            return Ok(());
        }
        let names =
            names(root.rows(), suspects.iter().map(|suspect| suspect.data).collect()).await?;
        for suspect in suspects {
            if self.found.damaged.len() >= USES_MAX {
                self.found.more += 1;
                continue;
            }
            let (path, bits) = names
                .get(&suspect.data)
                .cloned()
                .unwrap_or_else(|| ("(a file that is deleted)".to_owned(), 0));
            self.found.damaged.push(Damaged {
                pack: suspect.chunk.pack.to_string(),
                chunk: suspect.chunk.hash.to_string(),
                why: suspect.why,
                file: format!("{}:{path}", root.name),
                offset: suspect
                    .record
                    .checked_shl(bits)
                    .unwrap_or(u64::MAX)
                    .saturating_add(u64::from(suspect.start)),
            });
        }
        Ok(())
    }
}

/// Returns the suspects that the dataset still refers to.
async fn still_used(reader: &Reader, suspects: Vec<Suspect>) -> Result<Vec<Suspect>, FsError> {
    let mut still = Vec::new();
    for suspect in suspects {
        let Some(row) = reader.get(&key::extent(suspect.data, suspect.record)).await? else {
            continue;
        };
        let uses = |source: &Source| match source {
            Source::Chunk { chunk, .. } => *chunk == suspect.chunk,
            Source::Inline(_) => false,
        };
        if Extent::decode(&row)?.segments.iter().any(|segment| uses(&segment.source)) {
            still.push(suspect);
        }
    }
    Ok(still)
}

/// The path and record size of the file that each data id belongs to. Reads every inode, and the
/// entries on the paths.
async fn names(
    reader: &Reader,
    wanted: BTreeSet<DataId>,
) -> Result<HashMap<DataId, (String, u32)>, FsError> {
    let mut files = HashMap::new();
    let mut pages = reader.pages(key::inode(InodeNo(0)), Bytes::from_static(b"J"));
    while let Some(rows) = pages.next().await? {
        for (row_key, row) in &rows {
            if let (Some(Key::Inode(ino)), Ok(row)) = (Key::parse(row_key), Inode::decode(row))
                && row.kind == FileKind::Regular
                && wanted.contains(&row.data)
            {
                files.insert(ino, row);
            }
        }
    }
    let entries = entries_of(
        reader,
        Bytes::from_static(b"D"),
        Bytes::from_static(b"E"),
        &files.keys().copied().collect(),
    )
    .await?;
    let mut names = HashMap::new();
    for (ino, row) in files {
        let path = match entries.get(&ino) {
            Some((dir, name)) => format!("{}/{name}", path(reader, *dir).await?),
            None => format!("(inode {ino})"),
        };
        names.insert(row.data, (path, u32::from(row.record_bits)));
    }
    Ok(names)
}

/// One name of each of these inodes, and its directory.
async fn entries_of(
    reader: &Reader,
    from: Bytes,
    to: Bytes,
    wanted: &HashSet<InodeNo>,
) -> Result<HashMap<InodeNo, (InodeNo, String)>, FsError> {
    let mut found = HashMap::new();
    let mut pages = reader.pages(from, to);
    while found.len() < wanted.len()
        && let Some(rows) = pages.next().await?
    {
        for (row_key, row) in &rows {
            if let (Some(Key::DirEntry { dir, .. }), Ok(entry)) =
                (Key::parse(row_key), DirEntryRow::decode(row))
                && wanted.contains(&entry.ino)
            {
                found.insert(
                    entry.ino,
                    (dir, String::from_utf8_lossy(entry.name.as_bytes()).into_owned()),
                );
            }
        }
    }
    Ok(found)
}

/// The path of a directory, without a slash at its end.
async fn path(reader: &Reader, mut dir: InodeNo) -> Result<String, FsError> {
    let mut parts = Vec::new();
    while dir != InodeNo::ROOT && parts.len() < DEPTH_MAX {
        let Some(row) = reader.get(&key::inode(dir)).await? else { break };
        let parent = Inode::decode(&row)?.parent;
        let (from, to) = (key::dir(parent), key::dir(InodeNo(parent.0.saturating_add(1))));
        let name = entries_of(reader, from, to, &HashSet::from([dir]))
            .await?
            .remove(&dir)
            .map(|(_, name)| name);
        parts.push(name.unwrap_or_else(|| format!("(inode {dir})")));
        dir = parent;
    }
    Ok(parts.iter().rev().map(|part| format!("/{part}")).collect())
}
