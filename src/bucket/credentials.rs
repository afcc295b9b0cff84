//! Settings and credentials of a store beside its URL.

use super::BucketError;
use super::folder::FolderStore;
use super::http::Connector;
use super::url::{Location, PoolUrl};
use crate::telemetry::Failpoints;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{ClientConfigKey, ObjectStore, RetryConfig};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use zeroize::Zeroizing;

const STORE_PREFIXES: [&str; 4] = ["aws_", "google_", "azure_storage_", "azure_"];
/// Options that are credentials, without the store's prefix.
const SECRET_OPTIONS: [&str; 17] = [
    "access_key_id",
    "secret_access_key",
    "session_token",
    "token",
    "service_account_key",
    "account_key",
    "access_key",
    "master_key",
    "sas_key",
    "sas_token",
    "client_id",
    "client_secret",
    "tenant_id",
    "authority_id",
    "bearer_token",
    "application_credentials",
    "service_account",
];

/// Credentials and options of a store, by the names that its own tools use: `access_key_id`,
/// `secret_access_key`, `session_token`, `region`, `endpoint`, `allow_http`; `service_account_key`;
/// `account_name`, `account_key`, … Names may carry the store's prefix (`aws_`, `google_`,
/// `azure_`) and be in any case. Values never show in `Debug`.
#[derive(Clone, Default)]
pub struct Credentials {
    environment: bool,
    options: BTreeMap<String, Arc<Zeroizing<String>>>,
}

impl Credentials {
    /// No credentials: an anonymous caller, or a local store.
    pub fn none() -> Self {
        Self::default()
    }

    /// From the variables of this process's environment that the store's own tools read (`AWS_…`,
    /// `GOOGLE_…`, `AZURE_…`).
    pub fn from_env() -> Self {
        Self { environment: true, options: BTreeMap::new() }
    }

    /// Returns whether an option proves who the caller is, and does not say where the store is.
    pub fn is_secret(name: &str) -> bool {
        let name = name.trim().to_ascii_lowercase().replace('-', "_");
        let bare = STORE_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
        SECRET_OPTIONS.contains(&bare.unwrap_or(&name))
    }

    /// Adds options, each replacing an earlier one of its name.
    #[must_use]
    pub fn with<K: AsRef<str>, V: Into<String>>(
        mut self,
        options: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        for (key, value) in options {
            let key = key.as_ref().trim().to_ascii_lowercase().replace('-', "_");
            self.options.insert(key, Arc::new(Zeroizing::new(value.into())));
        }
        self
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.options.keys().collect();
        f.debug_struct("Credentials")
            .field("environment", &self.environment)
            .field("options", &names)
            .finish()
    }
}

/// Tells whether a missing folder is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Folder {
    #[default]
    MustExist,
    Create,
}

/// The in-memory stores of this process, by name.
static MEMORY: LazyLock<Mutex<HashMap<String, Arc<InMemory>>>> = LazyLock::new(Mutex::default);

pub(super) fn open(
    url: &PoolUrl,
    credentials: &Credentials,
    folder: Folder,
    failpoints: &Failpoints,
) -> Result<Arc<dyn ObjectStore>, BucketError> {
    match url.location() {
        Location::S3 { bucket } => {
            let start = if credentials.environment {
                AmazonS3Builder::from_env()
            } else {
                AmazonS3Builder::new()
            };
            let start = start
                .with_bucket_name(bucket)
                .with_retry(no_retries())
                .with_http_connector(Connector);
            let start = defaults(start, |b, k, v| b.with_config(AmazonS3ConfigKey::Client(k), v));
            let built = apply(url, credentials, start, |b, key: AmazonS3ConfigKey, v| {
                b.with_config(key, v)
            })?;
            finish(url, built.build())
        }
        Location::Gcs { bucket } => {
            let start = if credentials.environment {
                GoogleCloudStorageBuilder::from_env()
            } else {
                GoogleCloudStorageBuilder::new()
            };
            let start = start
                .with_bucket_name(bucket)
                .with_retry(no_retries())
                .with_http_connector(Connector);
            let start = defaults(start, |b, k, v| b.with_config(GoogleConfigKey::Client(k), v));
            let built =
                apply(url, credentials, start, |b, key: GoogleConfigKey, v| b.with_config(key, v))?;
            finish(url, built.build())
        }
        Location::Azure { container } => {
            let start = if credentials.environment {
                MicrosoftAzureBuilder::from_env()
            } else {
                MicrosoftAzureBuilder::new()
            };
            let start = start
                .with_container_name(container)
                .with_retry(no_retries())
                .with_http_connector(Connector);
            let start = defaults(start, |b, k, v| b.with_config(AzureConfigKey::Client(k), v));
            let built =
                apply(url, credentials, start, |b, key: AzureConfigKey, v| b.with_config(key, v))?;
            finish(url, built.build())
        }
        Location::Folder { path } => open_folder(url, path, folder, failpoints),
        Location::Memory { name } => Ok(MEMORY.lock().entry(name.clone()).or_default().clone()),
    }
}

/// Attempts are made and counted in one place, [`super::limits`].
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() }
}

/// Time limits of the connection: the request's own is [`super::Limits`], this one only ends
/// requests that those have abandoned.
fn defaults<B>(builder: B, set: impl Fn(B, ClientConfigKey, &'static str) -> B) -> B {
    let builder = set(builder, ClientConfigKey::ConnectTimeout, "5 seconds");
    set(builder, ClientConfigKey::Timeout, "10 minutes")
}

fn apply<B, K: FromStr>(
    url: &PoolUrl,
    credentials: &Credentials,
    mut builder: B,
    set: impl Fn(B, K, String) -> B,
) -> Result<B, BucketError> {
    for (name, value) in &credentials.options {
        let key = name.parse().map_err(|_| {
            let why = format!(
                "there is no option {name:?} for this kind of store: see the \
                documentation on credentials"
            );
            BucketError::Options { url: url.to_string(), why }
        })?;
        builder = set(builder, key, value.to_string());
    }
    Ok(builder)
}

fn finish(
    url: &PoolUrl,
    built: object_store::Result<impl ObjectStore>,
) -> Result<Arc<dyn ObjectStore>, BucketError> {
    match built {
        Ok(store) => Ok(Arc::new(store)),
        Err(error) => {
            Err(BucketError::Options { url: url.to_string(), why: super::error::text(&error) })
        }
    }
}

fn open_folder(
    url: &PoolUrl,
    path: &std::path::Path,
    folder: Folder,
    failpoints: &Failpoints,
) -> Result<Arc<dyn ObjectStore>, BucketError> {
    let missing =
        |why: std::io::Error| BucketError::Missing { url: url.to_string(), why: why.to_string() };
    if folder == Folder::Create {
        std::fs::create_dir_all(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                BucketError::Denied { key: url.to_string(), why: error.to_string() }
            }
            _ => missing(error),
        })?;
    }
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => {
            return Err(BucketError::Url { url: url.to_string(), why: "not a folder".to_owned() });
        }
        Err(error) => return Err(missing(error)),
    }
    let store = LocalFileSystem::new_with_prefix(path)
        .map_err(|e| super::error::of_store(url.as_str(), "", &e))?;
    // Without fsync an acknowledgement means nothing; without clean-up the folders of deleted
    // objects would stay.
    let store = store.with_fsync(true).with_automatic_cleanup(true);
    Ok(Arc::new(FolderStore::new(store, path, failpoints.clone()).map_err(missing)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(
        url: &PoolUrl,
        credentials: &Credentials,
        folder: Folder,
    ) -> Result<Arc<dyn ObjectStore>, BucketError> {
        super::open(url, credentials, folder, &Failpoints::default())
    }

    fn url(text: &str) -> PoolUrl {
        text.parse().unwrap()
    }

    #[test]
    fn options_have_the_names_of_the_stores_own_tools() {
        let s3 = [
            ("access_key_id", "k"),
            ("secret-access-key", "s"),
            ("AWS_SESSION_TOKEN", "t"),
            ("endpoint", "http://127.0.0.1:1"),
            ("region", "r"),
            ("allow_http", "true"),
        ];
        open(&url("s3://b/p"), &Credentials::none().with(s3), Folder::MustExist).unwrap();
        let azure = [("account_name", "a"), ("account_key", "c2VjcmV0")];
        open(&url("az://c/p"), &Credentials::none().with(azure), Folder::MustExist).unwrap();
        let key = r#"{"private_key":"x","private_key_id":"i","client_email":"c",
            "gcs_base_url":"http://127.0.0.1:1","disable_oauth":true}"#;
        open(
            &url("gs://b/p"),
            &Credentials::none().with([("service_account_key", key)]),
            Folder::MustExist,
        )
        .unwrap();
    }

    #[test]
    fn an_unknown_option_is_named_and_its_value_is_not() {
        let credentials = Credentials::none().with([("acces_key", "hunter2")]);
        let error =
            open(&url("s3://b/p"), &credentials, Folder::MustExist).unwrap_err().to_string();
        assert!(error.contains("acces_key") && !error.contains("hunter2"), "{error}");
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }

    #[test]
    fn a_folder_must_exist_or_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = url(&format!("file://{}/a/b", dir.path().display()));
        assert!(matches!(
            open(&at, &Credentials::none(), Folder::MustExist),
            Err(BucketError::Missing { .. })
        ));
        open(&at, &Credentials::none(), Folder::Create).unwrap();
        open(&at, &Credentials::none(), Folder::MustExist).unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "x").unwrap();
        let at = url(&format!("file://{}", file.display()));
        assert!(matches!(
            open(&at, &Credentials::none(), Folder::MustExist),
            Err(BucketError::Url { .. })
        ));
    }
}
