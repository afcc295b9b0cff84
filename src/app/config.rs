//! The configuration file: YAML, strict. An unknown key is an error that names its line.

use crate::admin::AdminConfig;
use crate::bucket::PoolUrl;
use crate::control::{SIZE_DEFAULT, SIZE_MAX, SIZE_MIN};
use crate::types::ByteSize;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The largest configuration file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The default of `limits.memory`: below 300 MB after every workload of `bench` (a file of 1 GiB,
/// 10,000 small files).
pub(super) const MEMORY_DEFAULT: ByteSize = ByteSize(280 << 20);
/// The smallest `limits.memory`: less has no room for two packs, a few calls of the largest size
/// and the caches' smallest shards.
const MEMORY_MIN: ByteSize = ByteSize(96 << 20);

/// Below, a busy machine loses its leases; above, NodeStage could not wait for one within kubelet's
/// two minutes.
const LEASE_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(5)..=Duration::from_secs(60);

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The driver's name in CSI.
    #[serde(default = "driver_name")]
    pub driver_name: String,
    /// Pools by name. A StorageClass names one.
    #[serde(default)]
    pub pools: BTreeMap<String, PoolConfig>,
    /// The pool of requests that name none; may be left out when there is only one.
    #[serde(default)]
    pub default_pool: Option<String>,
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Unflushed data and changes reach the store after this long.
    #[serde(default = "flush_interval", with = "human_duration")]
    pub flush_interval: Duration,
    /// Time between collections of a controller or server.
    #[serde(default = "collect_interval", with = "human_duration")]
    pub collect_interval: Duration,
    /// Bytes per second that collections read of packs that they rewrite; 0: no limit.
    #[serde(default = "collect_rate")]
    pub collect_rate: ByteSize,
    /// Time that a snapshot waits for the owner of a volume in another process.
    #[serde(default = "owner_timeout", with = "human_duration")]
    pub owner_timeout: Duration,
    /// Interval at which an owner reads its mailbox while it writes, and after a request. An idle
    /// one reads it with each heartbeat, a third of `lease` apart.
    #[serde(default = "mailbox_interval", with = "human_duration")]
    pub mailbox_interval: Duration,
    /// Time for which a node without heartbeats keeps its volumes from other nodes, between 5 and
    /// 60 seconds. A longer lease lets calls go on through longer outages of the store; NodeStage
    /// waits for it inside one call.
    #[serde(default = "lease", with = "human_duration")]
    pub lease: Duration,
    /// `serve` closes a dataset that no client has used for this long; the next call opens it
    /// again.
    #[serde(default = "export_idle", with = "human_duration")]
    pub export_idle: Duration,
    /// The channel between nodes: without it, a volume is mounted on one node at a time.
    #[serde(default)]
    pub channel: Option<ChannelConfig>,
    /// Inline volumes of pods: without it, none are allowed.
    #[serde(default)]
    pub ephemeral: Option<EphemeralConfig>,
    #[serde(default)]
    pub log: LogConfig,
    /// The administration interface and its page.
    #[serde(default)]
    pub admin: AdminConfig,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolConfig {
    pub url: PoolUrl,
    /// Options and credentials of the store, by the names its own tools use.
    #[serde(default)]
    pub credentials: BTreeMap<String, String>,
    /// A folder with a file for each of them, as Kubernetes mounts a Secret, or a YAML file of
    /// them.
    #[serde(default)]
    pub credentials_file: Option<PathBuf>,
    /// The passphrase of an encrypted pool: the file's first line.
    #[serde(default)]
    pub passphrase_file: Option<PathBuf>,
    /// The key of an encrypted pool, instead of a passphrase: 32 bytes in base 64, the file's first
    /// line.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// Credentials and passphrase come with the secrets of CSI requests, and override those
    /// configured here.
    #[serde(default)]
    pub request_secrets: bool,
}

/// Without the values of credentials.
impl std::fmt::Debug for PoolConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolConfig")
            .field("url", &self.url)
            .field("credentials", &self.credentials.keys())
            .field("credentials_file", &self.credentials_file)
            .field("passphrase_file", &self.passphrase_file)
            .finish()
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Volumes open at once in one process.
    pub volumes_max: usize,
    /// Connections of the usual mount: the largest `nconnect` among the StorageClasses. A node
    /// takes fewer volumes where each needs several of its reserved ports.
    pub connections_per_volume: u32,
    /// Memory of the process. The sizes below are shares of it unless they are given; those that
    /// are given come on top.
    pub memory: ByteSize,
    /// Written data held in memory, for all volumes together.
    pub dirty_bytes: Option<ByteSize>,
    /// Inodes, directories and extents held in memory, for all volumes together.
    pub metadata_cache: Option<ByteSize>,
    /// Database blocks held in memory, for all volumes together.
    pub block_cache: Option<ByteSize>,
    /// File data held in memory, for all volumes together.
    pub data_cache: Option<ByteSize>,
    /// Parts of packs held on disk below the state folder, for all volumes together; 0: none.
    /// Without it, a share of what the disk has free.
    pub disk_cache: Option<ByteSize>,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            volumes_max: 256,
            connections_per_volume: 1,
            memory: MEMORY_DEFAULT,
            dirty_bytes: None,
            metadata_cache: None,
            block_cache: None,
            data_cache: None,
            disk_cache: None,
        }
    }
}

/// `channel` of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChannelConfig {
    /// Where a node accepts the calls that others relay to it: the same port on every node.
    pub listen: SocketAddr,
    /// The address at which other nodes reach this one; it may be left out where `listen` names
    /// one.
    #[serde(default)]
    pub address: Option<IpAddr>,
}

/// `ephemeral` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EphemeralConfig {
    /// The pools that pods may use; the first is that of volumes which name none.
    pub pools: Vec<String>,
    /// The largest size of an inline volume.
    #[serde(default = "ephemeral_size")]
    pub max_size: ByteSize,
}

fn ephemeral_size() -> ByteSize {
    ByteSize(SIZE_DEFAULT)
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LogConfig {
    pub format: LogFormat,
    /// A filter like that of `RUST_LOG`, which takes precedence.
    pub filter: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

fn driver_name() -> String {
    crate::csi::DRIVER.to_owned()
}

fn flush_interval() -> Duration {
    Duration::from_secs(2)
}

/// Hardly noticeable to a disk or bucket that serves pods, and a TiB in nine hours.
fn collect_rate() -> ByteSize {
    ByteSize(32 << 20)
}

fn collect_interval() -> Duration {
    Duration::from_secs(600)
}

fn owner_timeout() -> Duration {
    Duration::from_secs(30)
}

fn export_idle() -> Duration {
    Duration::from_secs(600)
}

fn lease() -> Duration {
    crate::volume::LeaseSettings::LEASE
}

fn mailbox_interval() -> Duration {
    Duration::from_secs(2)
}

mod human_duration {
    use serde::{Deserialize, Deserializer, de::Error};
    use std::time::Duration;

    /// The shortest interval: anything below is a busy loop, not a setting.
    const MIN: Duration = Duration::from_millis(10);

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        let parsed = humantime::parse_duration(&text).map_err(|_| {
            D::Error::custom(format!("{text:?} is not a duration like 5s, 200ms or 10m"))
        })?;
        if parsed < MIN {
            return Err(D::Error::custom(format!("{text:?} is too short: at least 10ms")));
        }
        Ok(parsed)
    }
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("configuration {path}: {why}")]
    File { path: PathBuf, why: String },
    #[error("configuration {path}: {why}")]
    Meaning { path: PathBuf, why: String },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            driver_name: driver_name(),
            pools: BTreeMap::new(),
            default_pool: None,
            limits: LimitsConfig::default(),
            flush_interval: flush_interval(),
            collect_interval: collect_interval(),
            collect_rate: collect_rate(),
            owner_timeout: owner_timeout(),
            mailbox_interval: mailbox_interval(),
            lease: lease(),
            export_idle: export_idle(),
            channel: None,
            ephemeral: None,
            log: LogConfig::default(),
            admin: AdminConfig::default(),
        }
    }
}

impl Config {
    /// # Errors
    /// Names the file, the line and the correct form.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let file = |why: String| ConfigError::File { path: path.to_owned(), why };
        let size = std::fs::metadata(path)
            .map_err(|error| file(format!("{error}: name a readable file with --config")))?
            .len();
        if size > FILE_BYTES_MAX {
            return Err(file(format!("{size} bytes is too large: at most {FILE_BYTES_MAX}")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| file(error.to_string()))?;
        Self::parse(&text).map_err(|why| ConfigError::Meaning { path: path.to_owned(), why })
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        // Without the lines around a mistake: they may hold credentials.
        let options = serde_saphyr::options! { with_snippet: false };
        let config: Self = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| error.to_string())?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if !crate::csi::is_driver_name(&self.driver_name) {
            return Err(format!(
                "driverName {:?} is not a domain name of at most 63 characters",
                self.driver_name
            ));
        }
        if let Some(name) = &self.default_pool
            && !self.pools.contains_key(name)
        {
            return Err(format!("defaultPool {name:?} is not among the pools"));
        }
        if let Some(ephemeral) = &self.ephemeral {
            if let Some(name) = ephemeral.pools.iter().find(|name| !self.pools.contains_key(*name))
            {
                return Err(format!("ephemeral.pools: {name:?} is not among the pools"));
            }
            let of_requests =
                |name: &&String| self.pools.get(*name).is_some_and(|pool| pool.request_secrets);
            if let Some(name) = ephemeral.pools.iter().find(of_requests) {
                return Err(format!(
                    "ephemeral.pools: {name:?} takes its credentials from requests, and those of a \
                     pod open no pool: give it credentials of its own"
                ));
            }
            if !(SIZE_MIN..=SIZE_MAX).contains(&ephemeral.max_size.0) {
                return Err(format!(
                    "ephemeral.maxSize: {} is out of range; use 1Mi to 1Pi",
                    ephemeral.max_size
                ));
            }
        }
        for (name, pool) in &self.pools {
            if pool.key_file.is_some() && pool.passphrase_file.is_some() {
                return Err(format!(
                    "pool {name}: keyFile and passphraseFile are mutually exclusive: remove one"
                ));
            }
        }
        self.admin.check()?;
        if !LEASE_RANGE.contains(&self.lease) {
            let (lease, least, most) = (
                self.lease.as_secs_f32(),
                LEASE_RANGE.start().as_secs(),
                LEASE_RANGE.end().as_secs(),
            );
            return Err(format!("lease: {lease} s is out of range; use {least}s to {most}s"));
        }
        if self.limits.volumes_max == 0 {
            return Err("limits.volumesMax: must be at least 1".to_owned());
        }
        if self.limits.memory < MEMORY_MIN {
            return Err(format!(
                "limits.memory: {} is too small; use at least {}",
                self.limits.memory, MEMORY_MIN
            ));
        }
        let floor = ByteSize(4 << 20);
        for (name, size) in
            [("dirtyBytes", self.limits.dirty_bytes), ("metadataCache", self.limits.metadata_cache)]
        {
            if let Some(size) = size.filter(|size| *size < floor) {
                return Err(format!("limits.{name}: {size} is too small; use at least {floor}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_configuration_has_defaults() {
        let config = Config::parse("pools:\n  default:\n    url: file:///srv/pool\n").unwrap();
        assert_eq!(config.pools["default"].url.as_str(), "file:///srv/pool");
        assert_eq!(config.limits.volumes_max, 256);
        assert_eq!(config.limits.disk_cache, None);
        assert_eq!(config.flush_interval, Duration::from_secs(2));
    }

    #[test]
    fn a_full_configuration_is_understood() {
        let text = "
defaultPool: fast
pools:
  fast:
    url: s3://bucket/fast
    credentials: { region: eu-central-1, access_key_id: a }
    passphraseFile: /run/secrets/pass
  slow:
    url: gs://bucket/slow
    credentialsFile: /run/secrets/gcs
    keyFile: /run/secrets/key
    requestSecrets: true
limits: { volumesMax: 12, dirtyBytes: 128Mi, dataCache: 1Gi, diskCache: 0 }
flushInterval: 500ms
channel: { listen: '0.0.0.0:12050', address: 192.0.2.1 }
log: { format: json, filter: debug }
";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.limits.dirty_bytes, Some(ByteSize(128 << 20)));
        assert_eq!(config.limits.disk_cache, Some(ByteSize(0)));
        assert_eq!(config.log.format, LogFormat::Json);
        assert_eq!(config.flush_interval, Duration::from_millis(500));
        let channel = config.channel.unwrap();
        assert_eq!(channel.listen.port(), 12050);
        assert_eq!(channel.address, Some("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn no_secret_is_shown() {
        let pool = |rest: &str| {
            format!("pools:\n  a:\n    url: s3://b\n    credentials:\n      key: hunter2\n{rest}")
        };
        let mistakes = [
            pool("    pasphrase: y\n"),
            pool("      key: hunter2\n"),
            pool("limits: { volumesMax: many }\n"),
            pool("     bad indent: [\n"),
            "pools:\n  a:\n    url: s3://b\n    credentials: hunter2\n".to_owned(),
            "pools:\n  a:\n    url: s3://b\n    credentials: [hunter2]\n".to_owned(),
            "pools:\n  a:\n    url: s3://b\n    credentials: { key: [hunter2] }\n".to_owned(),
        ];
        for text in mistakes {
            let why = Config::parse(&text).unwrap_err();
            assert!(!why.contains("hunter2") && why.contains("line"), "{text}: {why}");
        }
        let config = Config::parse(&pool("")).unwrap();
        let shown = format!("{config:?}");
        assert!(shown.contains("key") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let cases = [
            ("pools:\n  a:\n    url: file:///x\n    pasphrase: y\n", "pasphrase", "line 4"),
            ("pools:\n  a:\n    url: ftp://x\n", "ftp", "line 3"),
            ("limits:\n  dirtyBytes: lots\n", "lots", "line 2"),
            ("flushInterval: soon\n", "soon", "line 1"),
            ("flushInterval: 0s\n", "0s", "line 1"),
            ("pool: x\n", "pool", "line 1"),
        ];
        for (text, what, line) in cases {
            let why = Config::parse(text).unwrap_err();
            assert!(why.contains(what) && why.contains(line), "{text:?}: {why}");
        }
        for text in [
            "driverName: no/slash\n",
            "defaultPool: a\n",
            "limits: { volumesMax: 0 }\n",
            "limits: { dirtyBytes: 1 }\n",
            "pools: { a: { url: \"file:///x\", keyFile: /a, passphraseFile: /b } }\n",
            "limits: { memory: 32Mi }\n",
            "lease: 4s\n",
            "lease: 2m\n",
            "[",
            "pools: 3",
        ] {
            assert!(Config::parse(text).is_err(), "{text:?}");
        }
    }
}
