//! Markers of packs that are about to be rewritten, for processes that open a dataset meanwhile
//! (R12).
//!
//! ```text
//! collector: put rewrite-pending/<family>/<pack> ─▶ list the heads, and have each seal ─▶ mark
//!                ─▶ rewrite ─▶ remove, once the first object is gone
//! opening:   list rewrite-pending/<family>       ─▶ learn chunks from other packs' footers
//! ```
//!
//! A marker is no record: only its existence matters. One that is left behind costs space, because
//! the pack's chunks are then stored again.

use super::ChunkError;
use super::store::ChunkStore;
use crate::types::{FamilyId, PackId};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::HashSet;

/// The marker's contents, for people who inspect the bucket.
const MARKER: &[u8] = b"{\"format\":1}";
const PUTS_AT_ONCE: usize = 8;

/// The marker of one pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewritePending {
    pub key: String,
    pub family: FamilyId,
    pub pack: PackId,
}

impl RewritePending {
    /// The prefix of all markers in a pool.
    pub const PREFIX: &str = "rewrite-pending/";

    fn prefix(family: FamilyId) -> String {
        format!("{}{family}/", Self::PREFIX)
    }

    /// `None` if the key is no marker's.
    pub fn parse(key: &str) -> Option<Self> {
        let (family, pack) = key.strip_prefix(Self::PREFIX)?.split_once('/')?;
        Some(Self { key: key.to_owned(), family: family.parse().ok()?, pack: pack.parse().ok()? })
    }
}

impl ChunkStore {
    /// Marks packs. A listing that begins after this returns finds them.
    pub async fn mark_rewrite_pending(&self, packs: &[PackId]) -> Result<(), ChunkError> {
        let (family, bucket) = (self.0.family, &self.0.bucket);
        let put = |pack: PackId| async move {
            let key = format!("{}{pack}", RewritePending::prefix(family));
            let put = bucket.put(&key, Bytes::from_static(MARKER)).await;
            put.map_err(|source| ChunkError::Bucket {
                doing: "marking as rewrite-pending",
                pack,
                source,
            })
        };
        stream::iter(packs.to_vec()).map(put).buffer_unordered(PUTS_AT_ONCE).try_collect().await
    }

    pub async fn rewrite_pending(&self) -> Result<HashSet<PackId>, ChunkError> {
        let family = self.0.family;
        let listed = self.0.bucket.list(&RewritePending::prefix(family)).await;
        let listed = listed.map_err(|source| ChunkError::Family {
            doing: "listing the rewrite-pending markers of",
            family,
            source,
        })?;
        Ok(listed
            .iter()
            .filter_map(|object| RewritePending::parse(&object.key))
            .map(|rewrite_pending| rewrite_pending.pack)
            .collect())
    }
}
