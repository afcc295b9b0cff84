//! A record is a chain of versions, each an object made by put-if-absent (R1).
//!
//! ```text
//!   <prefix>/…07   removed: below the floor
//!   <prefix>/…08 ┐
//!   <prefix>/…09 │ kept: a slow writer finds its number taken
//!   <prefix>/…10 ┘ newest; names floor 8
//! ```
//! Reading: list the chain, get its newest version; if it is gone meanwhile, list again.
//!
//! Changing version *n*: put *n + 1* if absent. That alone is not enough: a writer that was delayed
//! since it read *n* may put a number that was used and removed meanwhile, and the store accepts
//! it. So after its put it lists again:
//! - Nothing is newer, and *n* is still there: numbers only grow and the newest is never removed,
//!   so that *n + 1* was never
//!   used. It has won.
//! - Something newer names a floor of at most *n + 1*: the number was never removed. It has won,
//!   and others have made later changes.
//! - Otherwise its put is void: the writer removes it, and reports that it lost. (If others changed
//!   the record more than [`KEEP`] times while it listed, it may have won without knowing; callers
//!   read again and retry, R30.)
//!
//! Versions below the floor that the *replaced* version named are removed after a change, some at a
//! time.
//!
//! The end of a chain is a version too, so that the next incarnation continues the numbering;
//! everything below it is removed. The end itself may be removed when it is so old that no writer
//! can still hold an earlier version ([`Chain::sweep`]).
//!
//! A crash leaves a whole new version or none, and possibly versions below the floor, which the
//! next change removes.

use super::CatalogError;
use super::frame::{Header, RECORD_BYTES_MAX, decode_record, encode_record};
use crate::bucket::{Bucket, BucketError, Listed, PutNew};
use crate::types::Incarnation;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use std::collections::HashMap;
use std::time::{Duration, SystemTime};

/// The number of versions below the newest that are kept.
pub const KEEP: u64 = 8;
/// Versions below the floor are removed once there are this many.
const TRIM: usize = 4;
/// Attempts of an operation that others can disturb.
pub const TRIES: u32 = 10;
/// The age at which the end of a chain may be removed. A request ends after minutes; a machine may
/// sleep for days.
pub const END_AGE_MIN: Duration = Duration::from_secs(30 * 24 * 3600);

/// A record with the version it was read at: a change succeeds only if that is still the newest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<T> {
    pub version: u64,
    pub record: T,
    pub(super) floor: u64,
}

/// The newest version of a chain.
#[derive(Clone, Debug)]
pub(super) enum Newest<T> {
    /// There is no version.
    Absent,
    /// The chain has ended at this version.
    Ended {
        version: u64,
        floor: u64,
    },
    Live(Versioned<T>),
}

impl<T> Newest<T> {
    /// The version that the next one comes after.
    pub fn base(&self) -> Base {
        match self {
            Self::Absent => Base { version: 0, floor: 0 },
            Self::Ended { version, floor } => Base { version: *version, floor: *floor },
            Self::Live(at) => at.base(),
        }
    }

    pub fn live(self) -> Option<Versioned<T>> {
        match self {
            Self::Live(at) => Some(at),
            Self::Absent | Self::Ended { .. } => None,
        }
    }
}

/// The version that a new one replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Base {
    version: u64,
    floor: u64,
}

impl<T> Versioned<T> {
    pub(super) fn base(&self) -> Base {
        Base { version: self.version, floor: self.floor }
    }
}

/// The outcome of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    Won {
        version: u64,
        floor: u64,
    },
    /// Another version is the newest.
    Lost,
}

/// The bytes of versions that were read before. A version's bytes never change, and the store's tag
/// tells an object that was put later under the same key apart.
#[derive(Default)]
pub(super) struct Cache {
    cached: Mutex<CachedVersions>,
}

#[derive(Default)]
struct CachedVersions {
    /// Tag and bytes by key.
    by_key: HashMap<String, (String, Bytes)>,
    bytes: usize,
}

impl Cache {
    const BYTES_MAX: usize = 8 << 20;

    fn get(&self, listed: &Listed) -> Option<Bytes> {
        let cached = self.cached.lock();
        let (tag, bytes) = cached.by_key.get(&listed.key)?;
        (Some(tag) == listed.tag.as_ref()).then(|| bytes.clone())
    }

    fn put(&self, listed: &Listed, bytes: &Bytes) {
        let Some(tag) = &listed.tag else { return };
        let mut cached = self.cached.lock();
        if cached.bytes + bytes.len() > Self::BYTES_MAX {
            *cached = CachedVersions::default();
        }
        cached.bytes += bytes.len();
        let version = (tag.clone(), bytes.clone());
        if let Some((_, replaced)) = cached.by_key.insert(listed.key.clone(), version) {
            cached.bytes -= replaced.len();
        }
    }
}

/// One record's chain.
pub(super) struct Chain<'a> {
    pub bucket: &'a Bucket,
    pub cache: &'a Cache,
    pub prefix: String,
    /// For messages.
    pub what: String,
}

/// The version in an object's name: 20 digits, so that names sort like numbers.
pub(super) fn version_of(name: &str) -> Option<u64> {
    (name.len() == 20 && name.bytes().all(|b| b.is_ascii_digit()))
        .then(|| name.parse().ok())
        .flatten()
}

/// The chain's prefix and the version of a listed object.
pub(super) fn parts_of(key: &str) -> Option<(&str, u64)> {
    let (prefix, name) = key.rsplit_once('/')?;
    Some((prefix, version_of(name)?))
}

impl Chain<'_> {
    fn key(&self, version: u64) -> String {
        format!("{}/{version:020}", self.prefix)
    }

    fn error(&self, doing: &str, source: impl Into<BucketError>) -> CatalogError {
        CatalogError::bucket(format!("{doing} {}", self.what), source)
    }

    pub fn contended(&self) -> CatalogError {
        CatalogError::Contended { what: self.what.clone(), tries: TRIES }
    }

    /// The chain's versions, oldest first.
    pub async fn versions(&self) -> Result<Vec<(u64, Listed)>, CatalogError> {
        let found = self
            .bucket
            .list(&self.prefix)
            .await
            .map_err(|e| self.error("listing the versions of", e))?;
        let ours = |l: Listed| match parts_of(&l.key) {
            Some((prefix, version)) if prefix == self.prefix => Some((version, l)),
            _ => None,
        };
        Ok(found.into_iter().filter_map(ours).collect())
    }

    /// One version; `None` when it was removed meanwhile.
    pub async fn read<T: DeserializeOwned>(
        &self,
        version: u64,
        listed: &Listed,
    ) -> Result<Option<Newest<T>>, CatalogError> {
        let bytes = match self.cache.get(listed) {
            Some(bytes) => bytes,
            None => match self.fetch(&listed.key).await? {
                Some(bytes) => bytes,
                None => return Ok(None),
            },
        };
        let (bytes, decoded) = match decode_record::<T>(&listed.key, &bytes) {
            // The transfer may have damaged the bytes: read once more before calling the object
            // corrupt.
            Err(CatalogError::Corrupt { .. }) => match self.fetch(&listed.key).await? {
                Some(again) => {
                    let decoded = decode_record::<T>(&listed.key, &again)?;
                    (again, decoded)
                }
                None => return Ok(None),
            },
            decoded => (bytes, decoded?),
        };
        self.cache.put(listed, &bytes);
        let (Header { floor, .. }, record) = decoded;
        Ok(Some(match record {
            None => Newest::Ended { version, floor },
            Some(record) => Newest::Live(Versioned { version, record, floor }),
        }))
    }

    async fn fetch(&self, key: &str) -> Result<Option<Bytes>, CatalogError> {
        match self.bucket.get(key, RECORD_BYTES_MAX).await {
            Ok(found) => Ok(found),
            Err(BucketError::TooLarge { bytes, .. }) => Err(CatalogError::Corrupt {
                key: key.to_owned(),
                why: format!("it has {bytes} bytes, more than a record may have"),
            }),
            Err(error) => Err(self.error("reading", error)),
        }
    }

    pub async fn newest<T: DeserializeOwned>(&self) -> Result<Newest<T>, CatalogError> {
        for _ in 0..TRIES {
            let versions = self.versions().await?;
            let Some((version, listed)) = versions.last() else { return Ok(Newest::Absent) };
            // A LIST followed by a 404 means list again (R1).
            if let Some(found) = self.read(*version, listed).await? {
                return Ok(found);
            }
        }
        Err(self.contended())
    }

    /// Puts the version after `base`: the record, or without one the end of the chain.
    pub async fn put<T: Serialize>(
        &self,
        base: Base,
        record: Option<&T>,
    ) -> Result<Put, CatalogError> {
        let version = base.version.saturating_add(1);
        let gone = record.is_none();
        // Everything below the end of a chain goes.
        let floor = if gone { version } else { base.floor.max(version.saturating_sub(KEEP)) };
        let key = self.key(version);
        let header = Header { nonce: Incarnation::random(), floor, gone };
        let bytes = Bytes::from(encode_record(&key, &header, record)?);
        self.step("catalog.put").await?;
        let put = self.bucket.put_new(&key, bytes.clone()).await;
        if put.map_err(|e| self.error("writing", e))? == PutNew::Exists {
            return Ok(Put::Lost);
        }
        self.step("catalog.put-check").await?;
        self.verdict(base, version, floor, &bytes).await
    }

    /// Decides whether a version that was just put counts (R1): see the module's text.
    async fn verdict(
        &self,
        base: Base,
        version: u64,
        floor: u64,
        bytes: &Bytes,
    ) -> Result<Put, CatalogError> {
        for _ in 0..TRIES {
            let versions = self.versions().await?;
            let Some((newest, listed)) = versions.last() else { continue };
            if *newest < version {
                continue;
            }
            let counts = if *newest == version {
                base.version == 0 || versions.iter().any(|(v, _)| *v == base.version)
            } else {
                match self.read::<IgnoredAny>(*newest, listed).await? {
                    Some(found) => found.base().floor <= version,
                    None => continue,
                }
            };
            if !counts {
                self.step("catalog.void").await?;
                self.bucket
                    .delete(&[self.key(version)])
                    .await
                    .map_err(|e| self.error("clearing a late version of", e))?;
                return Ok(Put::Lost);
            }
            if *newest == version {
                // Whoever reads it here next need not request it.
                self.cache.put(listed, bytes);
            }
            // Below the end of a chain nothing is kept; else the floor was raised at least one
            // version ago.
            let end = floor == version;
            self.trim(if end { version } else { base.floor }, &versions).await;
            return Ok(Put::Won { version, floor });
        }
        Err(self.contended())
    }

    /// Removes versions below a floor. The next change removes versions that remain after a
    /// failure.
    async fn trim(&self, floor: u64, versions: &[(u64, Listed)]) {
        let old: Vec<String> =
            versions.iter().filter(|(v, _)| *v < floor).map(|(_, l)| l.key.clone()).collect();
        let ended = versions.last().is_some_and(|(newest, _)| *newest == floor);
        if old.is_empty() || old.len() < TRIM && !ended {
            return;
        }
        let trimmed = match self.step("catalog.trim").await {
            Ok(()) => self
                .bucket
                .delete(&old)
                .await
                .map_err(|e| self.error("removing old versions of", e)),
            Err(error) => Err(error),
        };
        if let Err(error) = trimmed {
            tracing::debug!(
                what = %self.what,
                error = %error,
                "removing old versions of a record failed; its next change retries"
            );
        }
    }

    /// Removes the versions below the end of a chain after an interrupted removal.
    pub async fn clear_ended(&self, end: u64) -> Result<(), CatalogError> {
        let versions = self.versions().await?;
        self.trim(end, &versions).await;
        Ok(())
    }

    /// Removes the end of a chain that is older than [`END_AGE_MIN`], if it is all that is left:
    /// `true` when it did.
    pub async fn sweep(&self, now: SystemTime) -> Result<bool, CatalogError> {
        let versions = self.versions().await?;
        let [(version, end)] = versions.as_slice() else { return Ok(false) };
        let age = now.duration_since(end.modified).unwrap_or_default();
        if age < END_AGE_MIN
            || !matches!(self.read::<IgnoredAny>(*version, end).await?, Some(Newest::Ended { .. }))
        {
            return Ok(false);
        }
        self.step("catalog.sweep").await?;
        let removed = self.bucket.delete(std::slice::from_ref(&end.key)).await;
        removed.map(|()| true).map_err(|e| self.error("removing the end of", e))
    }

    async fn step(&self, name: &str) -> Result<(), CatalogError> {
        self.bucket.failpoints().step(name).await.map_err(|e| self.error("changing", e))
    }
}

/// A pause between tries, so that writers that met do not meet again.
pub(super) async fn pause(attempt: u32) {
    let millis = rand::random_range(0..=(5u64 << attempt.min(6)));
    tokio::time::sleep(Duration::from_millis(millis)).await;
}
