//! StorageClass parameters, parsed strictly: a misspelt one must not silently give a volume of
//! another kind. Pure.

use super::status::{RequestError, invalid};
use crate::catalog::Properties;
use crate::control::PropertyChanges;
use crate::types::{ByteSize, SyncMode, is_owner, parse_bandwidth};
use std::collections::{BTreeMap, HashMap};

/// The prefix of parameters that external-provisioner adds, or consumes itself.
const RESERVED: &str = "csi.storage.k8s.io/";
const ALLOWED: &str = "pool, sync, recordsize, compression, uid, gid, mode, inodeQuota, snapdir, \
    maxReadBandwidth, maxWriteBandwidth, maxIops";
/// The expected value of a bandwidth.
const BANDWIDTH: &str = "the bytes of a second, like 50Mi, or none";
/// R6: a file's records have 4 KiB to 1 MiB, a power of two.
const RECORD_BYTES_MIN: u32 = 4 << 10;
const RECORD_BYTES_MAX: u32 = 1 << 20;
/// Below this not even an image's directories fit.
const INODES_MIN: u64 = 16;
/// Inode numbers have 44 bits.
const INODES_MAX: u64 = 1 << 43;
/// Parameters are stored in the record, to distinguish a retry from a conflict.
const COUNT_MAX: usize = 64;
const VALUE_BYTES_MAX: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parameters {
    /// The pool's name in the configuration.
    pub pool: Option<String>,
    pub properties: Properties,
    /// The given parameters, without those that are reserved for Kubernetes.
    pub given: BTreeMap<String, String>,
}

pub(super) fn parse(parameters: &HashMap<String, String>) -> Result<Parameters, RequestError> {
    let given: BTreeMap<String, String> = own(parameters)?;
    let mut pool = None;
    let mut properties = Properties::default();
    for (name, value) in &given {
        let bad =
            |expected: &str| invalid(format!("parameter {name}: {value:?} is not {expected}"));
        match name.as_str() {
            "pool" => pool = Some(value.clone()),
            "sync" => {
                let sync: SyncMode =
                    value.parse().map_err(|_| bad("standard, always or disabled"))?;
                properties.sync = Some(sync);
            }
            "recordsize" => {
                properties.record_bytes =
                    record_bytes(value).ok_or_else(|| bad("a power of two from 4Ki to 1Mi"))?;
            }
            "compression" => {
                properties.codec = value.parse().map_err(|_| bad("lz4, zstd or none"))?;
            }
            "uid" => {
                properties.root_uid =
                    owner(value).ok_or_else(|| bad("a user number from 0 to 4294967294"))?;
            }
            "gid" => {
                properties.root_gid =
                    owner(value).ok_or_else(|| bad("a group number from 0 to 4294967294"))?;
            }
            "mode" => {
                properties.root_mode =
                    mode(value).ok_or_else(|| bad("an octal mode from 0 to 7777"))?;
            }
            "inodeQuota" => {
                let quota =
                    number(value).filter(|quota: &u64| (INODES_MIN..=INODES_MAX).contains(quota));
                properties.quota_inodes =
                    Some(quota.ok_or_else(|| bad("a number of inodes of at least 16"))?);
            }
            "snapdir" => {
                properties.snapdir = value.parse().map_err(|_| bad("hidden or visible"))?;
            }
            "maxReadBandwidth" => {
                properties.limits.max_read_bandwidth =
                    parse_bandwidth(value).map_err(|_| bad(BANDWIDTH))?;
            }
            "maxWriteBandwidth" => {
                properties.limits.max_write_bandwidth =
                    parse_bandwidth(value).map_err(|_| bad(BANDWIDTH))?;
            }
            "maxIops" if value == "none" => properties.limits.max_iops = None,
            "maxIops" => {
                let iops = number(value).ok_or_else(|| bad("calls a second, or none"))?;
                properties.limits.max_iops = Some(iops);
            }
            _ => return Err(unknown(name)),
        }
    }
    Ok(Parameters { pool, properties, given })
}

/// The parameters of a VolumeAttributesClass: properties that may change while a volume is in use.
pub(super) fn changes(
    parameters: &HashMap<String, String>,
) -> Result<PropertyChanges, RequestError> {
    const MUTABLE: [&str; 8] = [
        "sync",
        "recordsize",
        "compression",
        "inodeQuota",
        "snapdir",
        "maxReadBandwidth",
        "maxWriteBandwidth",
        "maxIops",
    ];
    let given = own(parameters)?;
    if let Some(name) = given.keys().find(|name| !MUTABLE.contains(&name.as_str())) {
        let why = if ALLOWED.split(", ").any(|known| known == name) {
            "is chosen once, by the StorageClass"
        } else {
            "is unknown"
        };
        return Err(invalid(format!(
            "mutable parameter {:?} {why}: a VolumeAttributesClass has {}",
            short(name),
            MUTABLE.join(", ")
        )));
    }
    let parsed = parse(parameters)?.properties;
    let has = |name: &str| given.contains_key(name);
    Ok(PropertyChanges {
        size: None,
        sync: parsed.sync.map(Some),
        record_bytes: has("recordsize").then_some(parsed.record_bytes),
        codec: has("compression").then_some(parsed.codec),
        snapdir: has("snapdir").then_some(parsed.snapdir),
        inodes: parsed.quota_inodes.map(Some),
        max_read_bandwidth: has("maxReadBandwidth").then_some(parsed.limits.max_read_bandwidth),
        max_write_bandwidth: has("maxWriteBandwidth").then_some(parsed.limits.max_write_bandwidth),
        max_iops: has("maxIops").then_some(parsed.limits.max_iops),
    })
}

/// Refuses all parameters: snapshots take none.
pub(super) fn none(parameters: &HashMap<String, String>) -> Result<(), RequestError> {
    match own(parameters)?.keys().next() {
        None => Ok(()),
        Some(name) => Err(invalid(format!(
            "unknown parameter {:?}: snapshots take no parameters",
            short(name)
        ))),
    }
}

/// The pool that GetCapacity asks about, among the other parameters of the StorageClass.
pub(super) fn pool(parameters: &HashMap<String, String>) -> Option<&str> {
    parameters.get("pool").map(String::as_str)
}

fn own(parameters: &HashMap<String, String>) -> Result<BTreeMap<String, String>, RequestError> {
    if parameters.len() > COUNT_MAX {
        return Err(invalid(format!(
            "{} parameters are too many: at most {COUNT_MAX} are allowed",
            parameters.len()
        )));
    }
    let ours = parameters.iter().filter(|(name, _)| !name.starts_with(RESERVED));
    let mut own = BTreeMap::new();
    for (name, value) in ours {
        if value.len() > VALUE_BYTES_MAX {
            return Err(invalid(format!(
                "parameter {:?} is longer than {VALUE_BYTES_MAX} bytes",
                short(name)
            )));
        }
        own.insert(name.clone(), value.clone());
    }
    Ok(own)
}

fn unknown(name: &str) -> RequestError {
    invalid(format!("unknown parameter {:?}: the parameters are {ALLOWED}", short(name)))
}

/// Bounds a text that is quoted back.
fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn owner(text: &str) -> Option<u32> {
    number(text).filter(|number| is_owner(*number))
}

fn record_bytes(text: &str) -> Option<u32> {
    let size: ByteSize = text.parse().ok()?;
    let bytes = u32::try_from(size.0).ok()?;
    (bytes.is_power_of_two() && (RECORD_BYTES_MIN..=RECORD_BYTES_MAX).contains(&bytes))
        .then_some(bytes)
}

fn mode(text: &str) -> Option<u32> {
    let octal = !text.is_empty() && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    octal.then(|| u32::from_str_radix(text, 8).ok()).flatten().filter(|mode| *mode <= 0o7777)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Snapdir;
    use crate::chunk::Codec;
    use crate::types::IoLimits;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn all_of_them_are_understood() {
        let parsed = parse(&map(&[
            ("pool", "fast"),
            ("sync", "always"),
            ("recordsize", "128Ki"),
            ("compression", "zstd"),
            ("uid", "1000"),
            ("gid", "2000"),
            ("mode", "2775"),
            ("inodeQuota", "5000"),
            ("snapdir", "visible"),
            ("maxReadBandwidth", "100Mi"),
            ("maxWriteBandwidth", "none"),
            ("maxIops", "500"),
            ("csi.storage.k8s.io/pvc/name", "claim"),
        ]))
        .unwrap();
        assert_eq!(parsed.pool.as_deref(), Some("fast"));
        assert_eq!(parsed.given.len(), 12);
        let expected = Properties {
            sync: Some(SyncMode::Always),
            record_bytes: 128 << 10,
            codec: Codec::Zstd,
            quota_inodes: Some(5000),
            root_uid: 1000,
            root_gid: 2000,
            root_mode: 0o2775,
            snapdir: Snapdir::Visible,
            limits: IoLimits {
                max_read_bandwidth: Some(100 << 20),
                max_write_bandwidth: None,
                max_iops: Some(500),
            },
        };
        assert_eq!(parsed.properties, expected);
        assert_eq!(parse(&HashMap::new()).unwrap().properties, Properties::default());
    }

    #[test]
    fn an_unknown_one_is_named_with_those_allowed() {
        let refused = parse(&map(&[("recordSize", "64k")])).unwrap_err().to_string();
        assert!(refused.contains("\"recordSize\"") && refused.contains("inodeQuota"), "{refused}");
        assert!(none(&map(&[("csi.storage.k8s.io/volumesnapshot/name", "s")])).is_ok());
        assert!(none(&map(&[("x", "y")])).is_err());
        assert!(parse(&map(&[(&"k".repeat(9000), "")])).unwrap_err().to_string().len() < 300);
    }

    #[test]
    fn a_class_of_attributes_changes_what_it_names() {
        let given = [
            ("sync", "disabled"),
            ("snapdir", "hidden"),
            ("inodeQuota", "99"),
            ("maxReadBandwidth", "none"),
            ("maxIops", "250"),
        ];
        let parsed = changes(&map(&given)).unwrap();
        let expected = PropertyChanges {
            sync: Some(Some(SyncMode::Disabled)),
            snapdir: Some(Snapdir::Hidden),
            inodes: Some(Some(99)),
            max_read_bandwidth: Some(None),
            max_iops: Some(Some(250)),
            ..PropertyChanges::default()
        };
        assert_eq!(parsed, expected);
        assert_eq!(changes(&map(&[("compression", "none")])).unwrap().codec, Some(Codec::None));
        assert_eq!(changes(&HashMap::new()).unwrap(), PropertyChanges::default());
        for (name, value, why) in [
            ("uid", "1000", "chosen once"),
            ("pool", "fast", "chosen once"),
            ("iops", "100", "unknown"),
            ("maxIops", "many", "calls a second"),
            ("sync", "never", "standard"),
        ] {
            let refused = changes(&map(&[(name, value)])).unwrap_err().to_string();
            assert!(refused.contains(name) && refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn bad_values_are_refused() {
        let bad = [
            ("sync", "Always"),
            ("sync", ""),
            ("recordsize", "3k"),
            ("recordsize", "2k"),
            ("recordsize", "2m"),
            ("recordsize", ""),
            ("recordsize", "k"),
            ("recordsize", "64i"),
            ("recordsize", "-4k"),
            ("recordsize", "99999999999k"),
            ("compression", "gzip"),
            ("uid", "-1"),
            ("uid", "root"),
            ("uid", "4294967296"),
            ("uid", "4294967295"),
            ("gid", "4294967295"),
            ("uid", ""),
            ("gid", "1.5"),
            ("mode", "0o755"),
            ("mode", "778"),
            ("mode", "10000"),
            ("mode", ""),
            ("inodeQuota", "0"),
            ("inodeQuota", "x"),
            ("inodeQuota", "99999999999999999999"),
            ("snapdir", "yes"),
            ("maxReadBandwidth", ""),
            ("maxReadBandwidth", "50Mi/s"),
            ("maxWriteBandwidth", "-1"),
            ("maxIops", ""),
            ("maxIops", "1k"),
        ];
        for (name, value) in bad {
            let refused = parse(&map(&[(name, value)])).unwrap_err().to_string();
            assert!(refused.contains(name) && refused.contains(&format!("{value:?}")), "{refused}");
        }
        assert!(parse(&map(&[("pool", &"x".repeat(257))])).is_err());
    }

    #[test]
    fn record_sizes_have_many_spellings() {
        for text in ["65536", "64k", "64K", "64Ki", "64ki"] {
            assert_eq!(record_bytes(text), Some(64 << 10), "{text}");
        }
        for text in ["1m", "1M", "1Mi", "1024k"] {
            assert_eq!(record_bytes(text), Some(1 << 20), "{text}");
        }
    }
}
