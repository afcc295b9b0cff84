//! Credentials that come with requests: the `secrets` of CSI, from a StorageClass or
//! VolumeSnapshotClass.
//!
//! Only a pool configured with `requestSecrets` takes its credentials and its passphrase from them.
//! Such a pool is **waiting** until a first request brings some that open it; from then on every
//! request about it that may carry secrets must carry some that open it. Requests that cannot
//! (listing, unstaging) and the collector use those it was opened with.

use super::ControlError;
use crate::types::PoolId;
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use zeroize::Zeroizing;

/// The key of the passphrase, or of a key in base 64, among the secrets. All others are options of
/// the store.
pub const PASSPHRASE: &str = "passphrase";
/// As [`PASSPHRASE`], but a key.
pub const KEY: &str = "key";
/// Names and values of one request together.
const BYTES_MAX: usize = 64 << 10;

/// The secrets of one request. Its values are never printed.
#[derive(Clone, Default)]
pub struct RequestSecrets {
    values: BTreeMap<String, Arc<Zeroizing<String>>>,
}

impl RequestSecrets {
    /// # Errors
    /// When there are too many.
    pub fn new(values: impl IntoIterator<Item = (String, String)>) -> Result<Self, ControlError> {
        let values: BTreeMap<_, _> =
            values.into_iter().map(|(key, value)| (key, Arc::new(Zeroizing::new(value)))).collect();
        let bytes: usize = values.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > BYTES_MAX {
            return Err(ControlError::Invalid(format!(
                "secrets: {bytes} bytes are too many: at most {BYTES_MAX}"
            )));
        }
        Ok(Self { values })
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The passphrase or key, if there is one.
    pub fn passphrase(&self) -> Option<&str> {
        self.values.get(PASSPHRASE).or_else(|| self.values.get(KEY)).map(|value| value.as_str())
    }

    /// Options of the store.
    pub fn options(&self) -> impl Iterator<Item = (&str, &str)> {
        let options = self.values.iter().filter(|(key, _)| *key != PASSPHRASE && *key != KEY);
        options.map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Returns all secrets, to be stored where no other user can read them.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Returns a digest to recognise the same secrets without storing them.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("zerofs-csi 2026-11 request secrets");
        for (key, value) in &self.values {
            for part in [key.as_bytes(), value.as_bytes()] {
                hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
            }
        }
        *hasher.finalize().as_bytes()
    }
}

impl fmt::Debug for RequestSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestSecrets({} values)", self.values.len())
    }
}

/// Which pool a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolOf {
    /// As the request names it; `None`: the default.
    Name(Option<String>),
    /// By an id in the request.
    Id(PoolId),
}

/// Checks the secrets of requests, and opens pools with them; `app` provides it.
pub trait Unlock: Send + Sync + 'static {
    /// Called before a request is carried out.
    ///
    /// # Errors
    /// When the pool takes its credentials from requests and these do not open it.
    fn unlock(
        &self,
        pool: PoolOf,
        secrets: RequestSecrets,
    ) -> BoxFuture<'_, Result<(), ControlError>>;
}

/// The unlocker of a process whose pools all have credentials of their own.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSecrets;

impl Unlock for NoSecrets {
    fn unlock(&self, _: PoolOf, _: RequestSecrets) -> BoxFuture<'_, Result<(), ControlError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(values: &[(&str, &str)]) -> RequestSecrets {
        RequestSecrets::new(values.iter().map(|(k, v)| (k.to_string(), v.to_string()))).unwrap()
    }

    #[test]
    fn values_are_sorted_out_and_never_show() {
        let given = secrets(&[
            ("passphrase", "correct horse"),
            ("access_key_id", "AKIA"),
            ("secret_access_key", "hush"),
        ]);
        assert_eq!(given.passphrase(), Some("correct horse"));
        assert_eq!(
            given.options().collect::<Vec<_>>(),
            [("access_key_id", "AKIA"), ("secret_access_key", "hush")]
        );
        let shown = format!("{given:?}");
        assert!(["horse", "AKIA", "hush"].iter().all(|value| !shown.contains(value)), "{shown}");
        assert_ne!(given.digest(), secrets(&[("passphrase", "correct horse")]).digest());
        assert_ne!(secrets(&[("a", "bc")]).digest(), secrets(&[("ab", "c")]).digest());
        assert!(RequestSecrets::new([("k".to_owned(), "v".repeat(BYTES_MAX))]).is_err());
    }
}
