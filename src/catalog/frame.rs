//! A record's bytes: a JSON object that begins with its format and the checksum of what follows.
//!
//! ```json
//! {"format":1,"check":"<BLAKE3 in hexadecimal>","nonce":"<26 characters>","floor":3,…fields…}
//! ```
//! The checksum is over the object's key, the format and every byte behind the checksum, so that a
//! record under another key is as corrupt as one with a flipped bit. Unknown fields are ignored.

use super::CatalogError;
use crate::types::Incarnation;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The format that this program writes, and the newest that it reads.
pub const RECORD_FORMAT: u32 = 1;
/// The largest record, in bytes.
pub const RECORD_BYTES_MAX: u64 = 1 << 20;

const CHECK_CONTEXT: &str = "zerofs-csi 2026-11 catalog record";
const CHECK_CHARS: usize = 64;

/// The header of a version: about itself and its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Random: a writer whose acknowledgement was lost recognises its own write by it (R1).
    pub nonce: Incarnation,
    /// Versions below it may have been removed.
    pub floor: u64,
    /// The chain ends here: every earlier version is removed, and the next one begins another
    /// record.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
}

#[derive(Serialize)]
struct Body<'a, T> {
    #[serde(flatten)]
    header: &'a Header,
    #[serde(flatten)]
    record: Option<&'a T>,
}

fn check(key: &str, format: u32, rest: &str) -> String {
    let mut hasher = blake3::Hasher::new_derive_key(CHECK_CONTEXT);
    // A key has no NUL and a number no letter: the parts cannot run into each other.
    hasher
        .update(key.as_bytes())
        .update(&[0])
        .update(format.to_string().as_bytes())
        .update(&[0])
        .update(rest.as_bytes());
    hasher.finalize().to_hex().to_string()
}

/// The bytes of a record at `key`; without a record, of the end of a chain.
pub fn encode_record<T: Serialize>(
    key: &str,
    header: &Header,
    record: Option<&T>,
) -> Result<Vec<u8>, CatalogError> {
    let body = serde_json::to_string(&Body { header, record });
    let body = body.map_err(|e| CatalogError::Corrupt {
        key: key.to_owned(),
        why: format!("it cannot be written: {e}"),
    })?;
    let rest = body.strip_prefix('{').unwrap_or(&body);
    let check = check(key, RECORD_FORMAT, rest);
    Ok(format!(r#"{{"format":{RECORD_FORMAT},"check":"{check}",{rest}"#).into_bytes())
}

/// Decodes a record at `key`; no record: the end of a chain.
///
/// # Errors
/// [`CatalogError::Version`] for a whole record of another format, [`CatalogError::Corrupt`] for
/// everything else.
pub fn decode_record<T: DeserializeOwned>(
    key: &str,
    bytes: &[u8],
) -> Result<(Header, Option<T>), CatalogError> {
    let corrupt = |why: String| CatalogError::Corrupt { key: key.to_owned(), why };
    let text = std::str::from_utf8(bytes).map_err(|_| corrupt("it is not text".to_owned()))?;
    let Some((format, found, rest)) = split(text) else {
        return Err(match foreign_format(text) {
            Some(version) => {
                CatalogError::Version { key: key.to_owned(), version, known: RECORD_FORMAT }
            }
            None => corrupt("it does not begin like a record".to_owned()),
        });
    };
    if check(key, format, rest) != found {
        return Err(corrupt("its checksum does not match".to_owned()));
    }
    if format != RECORD_FORMAT {
        return Err(CatalogError::Version {
            key: key.to_owned(),
            version: format,
            known: RECORD_FORMAT,
        });
    }
    let header: Header = serde_json::from_str(text).map_err(|e| corrupt(e.to_string()))?;
    if header.gone {
        return Ok((header, None));
    }
    let record = serde_json::from_str(text).map_err(|e| corrupt(e.to_string()))?;
    Ok((header, Some(record)))
}

/// Format, checksum and the rest of a record that begins as this program writes it.
fn split(text: &str) -> Option<(u32, &str, &str)> {
    let (format, rest) = text.strip_prefix(r#"{"format":"#)?.split_once(r#","check":""#)?;
    if format.len() > 9 || !format.bytes().all(|b| b.is_ascii_digit()) || format.starts_with('0') {
        return None;
    }
    let (check, rest) = rest.split_at_checked(CHECK_CHARS)?;
    Some((format.parse().ok()?, check, rest.strip_prefix(r#"","#)?))
}

/// The format of a record that begins in another way, as a later program may write it.
fn foreign_format(text: &str) -> Option<u32> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let found = serde_json::from_str::<Format>(text).ok()?.format;
    (found > RECORD_FORMAT).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        name: String,
        size: Option<u64>,
    }

    fn sample() -> (Header, Sample) {
        let header = Header { nonce: Incarnation::from_bytes([5; 16]), floor: 2, gone: false };
        (header, Sample { name: "a \"quoted\" näme".into(), size: Some(u64::MAX) })
    }

    #[test]
    fn records_round_trip() {
        let (header, record) = sample();
        let bytes = encode_record("k/1", &header, Some(&record)).unwrap();
        assert_eq!(decode_record("k/1", &bytes).unwrap(), (header, Some(record)));
        let end = Header { gone: true, ..header };
        let bytes = encode_record::<Sample>("k/2", &end, None).unwrap();
        assert_eq!(decode_record::<Sample>("k/2", &bytes).unwrap(), (end, None));
    }

    #[test]
    fn every_flipped_bit_and_every_missing_byte_is_seen() {
        let (header, record) = sample();
        let bytes = encode_record("k/1", &header, Some(&record)).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = decode_record::<Sample>("k/1", &bad).unwrap_err();
            assert!(matches!(error, CatalogError::Corrupt { .. }), "bit {bit}: {error}");
        }
        for len in 0..bytes.len() {
            assert!(decode_record::<Sample>("k/1", &bytes[..len]).is_err());
        }
        assert!(
            matches!(decode_record::<Sample>("k/2", &bytes), Err(CatalogError::Corrupt { .. })),
            "at another key"
        );
    }

    #[test]
    fn another_format_is_named() {
        let rest = r#""nonce":"x"}"#;
        let ours = format!(r#"{{"format":7,"check":"{}",{rest}"#, check("k", 7, rest));
        for text in [&ours, r#"{"magic":"z","format":7}"#] {
            let error = decode_record::<Sample>("k", text.as_bytes()).unwrap_err();
            assert!(
                matches!(error, CatalogError::Version { version: 7, known: 1, .. }),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn unknown_fields_are_passed_over() {
        let rest = concat!(
            r#""nonce":"aaaaaaaaaaaaaaaaaaaaaaaaaa","floor":1,"#,
            r#""name":"n","size":null,"later":{"x":1}}"#
        );
        let text = format!(r#"{{"format":1,"check":"{}",{rest}"#, check("k", 1, rest));
        let (header, record) = decode_record::<Sample>("k", text.as_bytes()).unwrap();
        assert_eq!((header.floor, record.unwrap().name.as_str()), (1, "n"));
    }
}
