//! Secrets of 256 random bits: tokens, and the ids of sessions.
//!
//! A slow hash protects what people choose from guessing. Nobody guesses 256 random bits, so a fast
//! hash is as safe, and a request with a wrong token costs no more than a right one. Hashes are
//! compared in constant time (`blake3::Hash`'s own comparison).

use data_encoding::BASE64URL_NOPAD;
use std::fmt;
use zeroize::Zeroizing;

/// Tells a token from other text, for programs that look for secrets in what is published.
const PREFIX: &str = "zerofs_";
/// The random bytes of a secret.
const BYTES: usize = 32;
/// No longer text is hashed.
const TEXT_MAX: usize = 128;

/// A secret, shown once to whoever it is for.
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn random() -> Self {
        let bytes = Zeroizing::new(rand::random::<[u8; BYTES]>());
        Self(Zeroizing::new(format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&*bytes))))
    }

    /// The text to hand out.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub fn hash(&self) -> blake3::Hash {
        blake3::hash(self.0.as_bytes())
    }
}

/// Never its text.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The hash of a secret that a caller presents; `None` for what cannot be one.
pub(super) fn presented(text: &str) -> Option<blake3::Hash> {
    (text.len() <= TEXT_MAX && text.starts_with(PREFIX)).then(|| blake3::hash(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_recognised_by_its_hash_alone() {
        let secret = Secret::random();
        assert_eq!(secret.reveal().len(), PREFIX.len() + 43);
        assert_eq!(presented(secret.reveal()), Some(secret.hash()));
        assert_ne!(secret.hash(), Secret::random().hash());
        assert!(!format!("{secret:?}").contains(secret.reveal()));
        for wrong in ["", "abc", &"x".repeat(64), &format!("{PREFIX}{}", "x".repeat(200))] {
            assert_eq!(presented(wrong), None, "{wrong:?}");
        }
    }
}
