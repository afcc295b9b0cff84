//! The space that datasets and snapshots take.
//!
//! - **referenced**: bytes of data that it refers to, as its users see them; **logical**: the
//!   lengths of its files, holes included.
//! - **unique**: stored bytes that nothing else refers to, which its deletion frees. Counted by
//!   packs this is an estimate, too low where a pack is shared; counted by chunks it is exact,
//!   except for rows inside databases.
//! - **stored**: stored bytes of all that it refers to, shared or not. Counted by packs it is too
//!   high where a pack holds other data as well.
//!
//! An estimate reads a row for each pack; exact figures read every extent of the family, and
//! remember each chunk.

use super::roots::{self, OpenRoot, RootRef, usage};
use super::{ControlError, Pool};
use crate::chunk::parse_object;
use crate::fs::FsError;
use crate::fs::api::FileKind;
use crate::fs::db::Reader;
use crate::fs::key;
use crate::fs::row::{self, Extent, Inode, Row, Superblock};
use crate::types::{DatasetId, FamilyId, InodeNo, PackId};
use crate::volume::Volumes;
use bytes::Bytes;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// Most chunks of one family that exact figures remember: about 100 bytes each, so 1.6 GiB for a
/// TiB in records of 64 KiB.
const CHUNKS_MAX: usize = 16 << 20;

/// The space of one dataset or snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpaceOf {
    /// `DATASET` or `DATASET@SNAPSHOT`.
    pub name: String,
    pub referenced_bytes: u64,
    /// Known only where every inode was read.
    pub logical_bytes: Option<u64>,
    pub unique_bytes: u64,
    /// Stored bytes of the data that it refers to, with what others refer to as well. An estimate
    /// is the size of the packs that it uses, too high where these hold other data.
    pub stored_bytes: u64,
    /// Set when `unique_bytes` and `stored_bytes` are estimates.
    pub estimated: bool,
}

/// The space of a pool, or of the objects in it that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Space {
    pub of: Vec<SpaceOf>,
    /// Everything in the pool.
    pub packs: u64,
    pub pack_bytes: u64,
    pub database_bytes: u64,
    /// Data that datasets refer to, divided by the data stored for them: the saving by clones and
    /// equal chunks. Known where every extent was read.
    pub dedup_ratio: Option<f64>,
    /// The data of these chunks divided by their stored bytes.
    pub compression_ratio: Option<f64>,
}

/// The accuracy of the figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accuracy {
    Estimate,
    Exact,
}

/// The roots that use a chunk.
struct Chunk {
    root: u32,
    shared: bool,
    stored: u32,
    raw: u32,
    in_head: bool,
    /// The root that counted it last, each of which counts it once.
    counted: Option<u32>,
}

/// Keyed by location: equal data that was stored twice takes twice the space.
type Chunks = HashMap<(PackId, u32), Chunk>;

#[derive(Default)]
struct Sums {
    /// Bytes of heads.
    referred: u64,
    raw: u64,
    stored: u64,
}

/// Measures a dataset with its snapshots, or all.
///
/// # Errors
/// [`ControlError::Exhausted`] when exact figures would take too much memory.
pub async fn space(
    pool: &Pool,
    volumes: &Volumes,
    only: Option<DatasetId>,
    accuracy: Accuracy,
) -> Result<Space, ControlError> {
    let bucket = pool.catalog.bucket();
    let (mut space, mut sizes) = (Space::default(), HashMap::<PackId, u64>::new());
    let mut packs = bucket.pages("packs/");
    while let Some(page) = packs.next().await? {
        for object in page {
            let name = object.key.strip_prefix("packs/").and_then(|rest| rest.split_once('/'));
            if let Some((pack, _)) = name.and_then(|(_, name)| parse_object(name)) {
                *sizes.entry(pack).or_default() += object.bytes;
                space.packs += 1;
                space.pack_bytes += object.bytes;
            }
        }
    }
    let mut databases = bucket.pages("vol/");
    while let Some(page) = databases.next().await? {
        space.database_bytes += page.iter().map(|object| object.bytes).sum::<u64>();
    }
    let sources = roots::list(pool).await?;
    let wanted =
        |source: &RootRef| only.is_none_or(|only| only.incarnation == source.dataset().incarnation);
    let mut families: BTreeMap<FamilyId, Vec<&RootRef>> = BTreeMap::new();
    for source in &sources {
        families.entry(source.family()).or_default().push(source);
    }
    let mut sums = Sums::default();
    for family in families.into_values().filter(|family| family.iter().any(|source| wanted(source)))
    {
        let of = match accuracy {
            Accuracy::Estimate => by_packs(pool, volumes, &family, &sizes).await?,
            Accuracy::Exact => by_chunks(pool, volumes, &family, &mut sums).await?,
        };
        let asked = family.iter().zip(of).filter(|(source, _)| wanted(source));
        space.of.extend(asked.filter_map(|(_, of)| of));
    }
    space.of.sort_by(|a, b| a.name.cmp(&b.name));
    if accuracy == Accuracy::Exact && sums.raw > 0 && sums.stored > 0 {
        space.dedup_ratio = Some(sums.referred as f64 / sums.raw as f64);
        space.compression_ratio = Some(sums.raw as f64 / sums.stored as f64);
    }
    Ok(space)
}

/// In the order of the sources; `None` for what holds nothing yet.
async fn by_packs(
    pool: &Pool,
    volumes: &Volumes,
    family: &[&RootRef],
    sizes: &HashMap<PackId, u64>,
) -> Result<Vec<Option<SpaceOf>>, ControlError> {
    let (mut of, mut used) =
        (Vec::with_capacity(family.len()), HashMap::<PackId, (usize, bool)>::new());
    for (n, source) in family.iter().enumerate() {
        let Some(root) = OpenRoot::open(pool, volumes, source).await? else {
            of.push(None);
            continue;
        };
        let read =
            async { Ok::<_, FsError>((referenced(root.rows()).await?, usage(root.rows()).await?)) }
                .await;
        let name = root.name.clone();
        root.close().await?;
        let (referenced_bytes, usage) = read?;
        let mut stored_bytes = 0;
        for (pack, _) in usage {
            used.entry(pack).and_modify(|(_, shared)| *shared = true).or_insert((n, false));
            stored_bytes += sizes.get(&pack).copied().unwrap_or(0);
        }
        of.push(Some(SpaceOf {
            name,
            referenced_bytes,
            logical_bytes: None,
            unique_bytes: 0,
            stored_bytes,
            estimated: true,
        }));
    }
    for (pack, (n, shared)) in used {
        if let (false, Some(Some(of))) = (shared, of.get_mut(n)) {
            of.unique_bytes += sizes.get(&pack).copied().unwrap_or(0);
        }
    }
    Ok(of)
}

async fn by_chunks(
    pool: &Pool,
    volumes: &Volumes,
    family: &[&RootRef],
    sums: &mut Sums,
) -> Result<Vec<Option<SpaceOf>>, ControlError> {
    let (mut of, mut chunks) = (Vec::with_capacity(family.len()), Chunks::new());
    for (n, source) in family.iter().enumerate() {
        let Some(root) = OpenRoot::open(pool, volumes, source).await? else {
            of.push(None);
            continue;
        };
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        let read = read_chunks(&root, n, source.is_head(), &mut chunks).await;
        let measured = match read {
            Ok(used) => {
                async { Ok((used, referenced(root.rows()).await?, logical(root.rows()).await?)) }
                    .await
            }
            Err(error) => Err(error),
        };
        let name = root.name.clone();
        root.close().await?;
        let (used, referenced_bytes, logical) = measured?;
        sums.referred += if source.is_head() { used.referred } else { 0 };
        of.push(Some(SpaceOf {
            name,
            referenced_bytes,
            logical_bytes: Some(logical),
            unique_bytes: 0,
            stored_bytes: used.stored,
            estimated: false,
        }));
    }
    for chunk in chunks.into_values() {
        if chunk.in_head {
            sums.raw += u64::from(chunk.raw);
            sums.stored += u64::from(chunk.stored);
        }
        if let (false, Some(Some(of))) = (chunk.shared, of.get_mut(chunk.root as usize)) {
            of.unique_bytes += u64::from(chunk.stored);
        }
    }
    Ok(of)
}

/// Bytes of the chunks of one root.
#[derive(Default)]
struct Used {
    /// That its records show.
    referred: u64,
    stored: u64,
}

async fn read_chunks(
    root: &OpenRoot,
    n: u32,
    in_head: bool,
    chunks: &mut Chunks,
) -> Result<Used, ControlError> {
    let mut used = Used::default();
    let mut pages = root.rows().pages(Bytes::from_static(b"X"), Bytes::from_static(b"Y"));
    while let Some(rows) = pages.next().await? {
        let records =
            rows.iter().map(|(_, row)| Extent::decode(row)).collect::<Result<Vec<_>, _>>()?;
        for segment in records.into_iter().flat_map(|record| record.segments) {
            let row::Source::Chunk { chunk, .. } = segment.source else { continue };
            used.referred += u64::from(segment.len);
            let known = chunks.entry((chunk.pack, chunk.offset)).or_insert(Chunk {
                root: n,
                shared: false,
                stored: chunk.stored_len,
                raw: chunk.raw_len,
                in_head,
                counted: None,
            });
            if known.counted.replace(n) != Some(n) {
                used.stored += u64::from(known.stored);
            }
            known.shared |= known.root != n;
            known.in_head |= in_head;
        }
        if chunks.len() > CHUNKS_MAX {
            let why = "too many chunks for exact figures: ask for one dataset of another family, \
                or for an estimate";
            return Err(ControlError::Exhausted(why.to_owned()));
        }
    }
    Ok(used)
}

async fn referenced(reader: &Reader) -> Result<u64, FsError> {
    let row = reader
        .get(&key::superblock())
        .await?
        .ok_or_else(|| FsError::Corrupt("no superblock".to_owned()))?;
    Ok(Superblock::decode(&row)?.allocated)
}

async fn logical(reader: &Reader) -> Result<u64, FsError> {
    let mut pages = reader.pages(key::inode(InodeNo(0)), Bytes::from_static(b"J"));
    let mut bytes = 0_u64;
    while let Some(rows) = pages.next().await? {
        for (_, row) in &rows {
            let inode = Inode::decode(row)?;
            if inode.kind == FileKind::Regular {
                bytes = bytes.saturating_add(inode.size);
            }
        }
    }
    Ok(bytes)
}
