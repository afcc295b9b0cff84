//! Staged records: one file for each staged volume, in a directory that outlives the process.

use super::super::ControlError;
use crate::types::{DatasetId, SessionId, VolumeHandle};
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The version of the file. One minor version of the driver each way must understand it: add fields
/// with defaults.
const FORMAT: u32 = 1;
/// A record is far smaller; a larger file is no record.
const BYTES_MAX: u64 = 64 << 10;
const SUFFIX: &str = ".json";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    ReadWrite,
    ReadOnly,
}

/// A staged volume, or one that was being staged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StagedRecord {
    pub format: u32,
    #[serde(with = "handle_text")]
    pub volume: VolumeHandle,
    /// The boot id: mounts do not survive a reboot.
    pub boot: String,
    /// The sessions of this node that the dataset's record may name (R24). More than one only while
    /// the volume is being reopened.
    pub sessions: Vec<SessionId>,
    pub target: PathBuf,
    pub access: Access,
    pub options: Vec<String>,
    /// The address on which it is served, once that is known.
    pub endpoint: Option<SocketAddr>,
    /// Other nodes may have it mounted too: it is served or relayed, whoever owns it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
    /// Kubelet's id of an inline volume, which is mounted at its pod's target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<String>,
}

mod handle_text {
    use crate::types::VolumeHandle;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(handle: &VolumeHandle, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(handle)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<VolumeHandle, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

impl StagedRecord {
    pub fn new(
        volume: VolumeHandle,
        boot: String,
        session: SessionId,
        target: PathBuf,
        access: Access,
        options: Vec<String>,
    ) -> Self {
        Self {
            format: FORMAT,
            volume,
            boot,
            sessions: vec![session],
            target,
            access,
            options,
            endpoint: None,
            shared: false,
            ephemeral: None,
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let version: Version = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if version.format != FORMAT {
            return Err(format!(
                "format {} is of another version of the driver; this version supports {FORMAT}",
                version.format
            ));
        }
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }
}

/// The directory of staged records; the chart puts it on a tmpfs.
#[derive(Clone, Debug)]
pub(super) struct StagedRecords {
    dir: PathBuf,
}

impl StagedRecords {
    /// Opens the folder, creating it if it is absent.
    pub async fn open(dir: &Path) -> Result<Self, ControlError> {
        let dir = dir.to_owned();
        tokio::fs::create_dir_all(&dir).await.map_err(|error| {
            failed(
                &dir,
                "creating the directory of staged records",
                &error,
                "make it writable, or give another --state-dir",
            )
        })?;
        Ok(Self { dir })
    }

    fn path(&self, dataset: DatasetId) -> PathBuf {
        self.dir.join(format!("{dataset}{SUFFIX}"))
    }

    /// Replaces the volume's record atomically.
    pub async fn write(&self, record: &StagedRecord) -> Result<(), ControlError> {
        let path = self.path(record.volume.dataset);
        let bytes = serde_json::to_vec_pretty(record)
            .map_err(|error| ControlError::Internal(error.to_string()))?;
        blocking(move || {
            let draft = path.with_extension("draft");
            write_synced(&draft, &bytes)
                .and_then(|()| std::fs::rename(&draft, &path))
                .and_then(|()| sync_parent(&path))
                .map_err(|error| {
                    failed(&path, "writing the staged record", &error, "free some space there")
                })
        })
        .await
    }

    /// Absent counts as removed.
    pub async fn remove(&self, dataset: DatasetId) -> Result<(), ControlError> {
        let path = self.path(dataset);
        blocking(move || match std::fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => {
                Err(failed(&path, "removing the staged record", &error, "remove it by hand"))
            }
            Ok(()) => sync_parent(&path)
                .map_err(|error| failed(&path, "removing the staged record", &error, "retry")),
        })
        .await
    }

    /// One volume's record, if there is one that can be read.
    pub async fn get(&self, dataset: DatasetId) -> Result<Option<StagedRecord>, ControlError> {
        let path = self.path(dataset);
        blocking(move || Ok(path.exists().then(|| read(&path)).flatten())).await
    }

    /// Every record that can be read. One that cannot is reported and left where it is: its mount
    /// may be in use.
    pub async fn all(&self) -> Result<Vec<StagedRecord>, ControlError> {
        let dir = self.dir.clone();
        blocking(move || {
            let entries = std::fs::read_dir(&dir)
                .map_err(|error| failed(&dir, "reading the state directory", &error, "retry"))?;
            let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
            Ok(paths
                .filter(|path| path.to_string_lossy().ends_with(SUFFIX))
                .filter_map(|path| read(&path))
                .collect())
        })
        .await
    }
}

fn read(path: &Path) -> Option<StagedRecord> {
    let parsed = std::fs::metadata(path)
        .and_then(|found| {
            if found.len() > BYTES_MAX {
                Err(ErrorKind::FileTooLarge.into())
            } else {
                std::fs::read(path)
            }
        })
        .map_err(|error| error.to_string())
        .and_then(|bytes| StagedRecord::parse(&bytes));
    match parsed {
        Ok(record) => Some(record),
        Err(why) => {
            let file = path.display();
            tracing::error!(
                %file,
                why,
                "a staged record cannot be read, so its volume is not reopened: unmount the \
                 volume, \
                 then remove the file"
            );
            None
        }
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all())
}

fn failed(path: &Path, doing: &str, error: &std::io::Error, remedy: &str) -> ControlError {
    ControlError::Internal(format!("{}: {doing}: {error}: {remedy}", path.display()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ControlError> + Send + 'static,
) -> Result<T, ControlError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(ControlError::Internal(error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Incarnation, NameKey, PoolId};

    fn record() -> StagedRecord {
        let dataset = DatasetId {
            key: NameKey::of("dataset", "d"),
            incarnation: Incarnation::from_bytes([2; 16]),
        };
        let volume = VolumeHandle { pool: PoolId::from_bytes([1; 16]), dataset };
        let session = SessionId::from_bytes([3; 16]);
        let mut record = StagedRecord::new(
            volume,
            "boot".into(),
            session,
            "/staging".into(),
            Access::ReadOnly,
            vec!["nconnect=2".into()],
        );
        record.endpoint = Some("127.1.2.3:12049".parse().unwrap());
        record
    }

    #[test]
    fn the_bytes_are_fixed() {
        let text = concat!(
            r#"{"format":1,"volume":"v1:aeaqcaibaeaqcaibaeaqcaibae:PLACE","#,
            r#""boot":"boot","sessions":["amb"],"target":"/staging"}"#
        );
        assert!(StagedRecord::parse(text.as_bytes()).is_err());
        let golden = serde_json::to_string(&record()).unwrap();
        let expected = format!(
            concat!(
                r#"{{"format":1,"volume":"{}","boot":"boot","sessions":["{}"],"#,
                r#""target":"/staging","access":"read-only","options":["nconnect=2"],"#,
                r#""endpoint":"127.1.2.3:12049"}}"#
            ),
            record().volume,
            SessionId::from_bytes([3; 16]),
        );
        assert_eq!(golden, expected);
        assert_eq!(StagedRecord::parse(golden.as_bytes()), Ok(record()));
        let shared = StagedRecord { shared: true, ..record() };
        let golden = golden.replace(r#"12049"}"#, r#"12049","shared":true}"#);
        assert_eq!(serde_json::to_string(&shared).unwrap(), golden);
        assert_eq!(StagedRecord::parse(golden.as_bytes()), Ok(shared));
        let inline = StagedRecord { ephemeral: Some("csi-0".to_owned()), ..record() };
        let golden = golden.replace(r#""shared":true"#, r#""ephemeral":"csi-0""#);
        assert_eq!(serde_json::to_string(&inline).unwrap(), golden);
        assert_eq!(StagedRecord::parse(golden.as_bytes()), Ok(inline));
    }

    #[test]
    fn what_is_no_record_says_why() {
        let newer =
            serde_json::to_string(&record()).unwrap().replace("\"format\":1", "\"format\":2");
        assert!(StagedRecord::parse(newer.as_bytes()).unwrap_err().contains("another version"));
        for bad in ["", "{}", "[]", "null", "{\"format\":1}", "{\"format\":-1}", "\u{0}"] {
            assert!(StagedRecord::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn records_are_kept_and_bad_ones_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let records = StagedRecords::open(dir.path()).await.unwrap();
        assert_eq!(records.all().await.unwrap(), []);
        records.write(&record()).await.unwrap();
        let bad = dir.path().join("bad.json");
        std::fs::write(&bad, "{").unwrap();
        std::fs::write(dir.path().join("half.draft"), "{").unwrap();
        assert_eq!(StagedRecords::open(dir.path()).await.unwrap().all().await.unwrap(), [record()]);
        records.remove(record().volume.dataset).await.unwrap();
        records.remove(record().volume.dataset).await.unwrap();
        assert_eq!(records.all().await.unwrap(), []);
        assert!(bad.exists());
    }
}
