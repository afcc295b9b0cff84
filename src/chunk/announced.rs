//! Packs that are about to be rewritten, announced to whoever opens a dataset later (R12).
//!
//! ```text
//! collector: put announced/<family>/<pack> ─▶ list the heads, and have each seal ─▶ mark ─▶ rewrite ─▶ (first object gone) remove
//! opening:   list announced/<family>       ─▶ learn from the footers of other packs what is stored
//! ```
//!
//! The object is no record: it says nothing but that it is there. One that is left behind costs
//! space: what the pack holds is stored again.

use super::ChunkError;
use super::store::ChunkStore;
use crate::types::{FamilyId, PackId};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::HashSet;

/// For people who look into the bucket.
const SIGN: &[u8] = b"{\"format\":1}";
const PUTS_AT_ONCE: usize = 8;

/// What announces a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    pub key: String,
    pub family: FamilyId,
    pub pack: PackId,
}

impl Announced {
    /// Where all of a pool are.
    pub const PREFIX: &str = "announced/";

    fn prefix(family: FamilyId) -> String {
        format!("{}{family}/", Self::PREFIX)
    }

    /// `None` for what announces nothing.
    pub fn parse(key: &str) -> Option<Self> {
        let (family, pack) = key.strip_prefix(Self::PREFIX)?.split_once('/')?;
        Some(Self { key: key.to_owned(), family: family.parse().ok()?, pack: pack.parse().ok()? })
    }
}

impl ChunkStore {
    /// Announces packs. Whoever lists them once this is done finds them.
    pub async fn announce(&self, packs: &[PackId]) -> Result<(), ChunkError> {
        let (family, bucket) = (self.0.family, &self.0.bucket);
        let put = |pack: PackId| async move {
            let key = format!("{}{pack}", Announced::prefix(family));
            let put = bucket.put(&key, Bytes::from_static(SIGN)).await;
            put.map_err(|source| ChunkError::Bucket { doing: "announcing", pack, source })
        };
        stream::iter(packs.to_vec()).map(put).buffer_unordered(PUTS_AT_ONCE).try_collect().await
    }

    pub async fn announced(&self) -> Result<HashSet<PackId>, ChunkError> {
        let family = self.0.family;
        let listed = self.0.bucket.list(&Announced::prefix(family)).await;
        let listed = listed.map_err(|source| ChunkError::Family {
            doing: "listing the announced",
            family,
            source,
        })?;
        Ok(listed
            .iter()
            .filter_map(|object| Announced::parse(&object.key))
            .map(|announced| announced.pack)
            .collect())
    }
}
