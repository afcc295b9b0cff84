//! TLS of the listener, by files that are read again when they change.
//!
//! With a file of certificate authorities, a client may present a certificate; the tokens file says
//! what its fingerprint may do. Clients without one come in by a token, as without TLS.

use parking_lot::Mutex;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, ServerConnection, crypto};

/// A change of the files is noticed after this long at most.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// `admin.tls` of the configuration: PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate of the server, followed by those that lead to its authority.
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    /// The authorities of clients' certificates; without it, clients present none.
    #[serde(default)]
    pub client_ca_file: Option<PathBuf>,
}

#[derive(Clone, Debug, thiserror::Error)]
#[error("TLS file {path}: {why}")]
pub struct TlsError {
    path: PathBuf,
    why: String,
}

struct Loaded {
    stamp: Vec<Option<SystemTime>>,
    looked: Instant,
    acceptor: TlsAcceptor,
}

pub struct Tls {
    files: TlsFiles,
    loaded: Mutex<Loaded>,
}

impl Tls {
    /// # Errors
    /// When a file cannot be read, or key and certificate do not belong together.
    pub fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let stamp = stamp(&files);
        let acceptor = load(&files)?;
        let loaded = Mutex::new(Loaded { stamp, looked: Instant::now(), acceptor });
        Ok(Self { files, loaded })
    }

    /// By the files as they are now. Files that are not usable change nothing: the connections of
    /// today are as safe as those of yesterday.
    pub fn acceptor(&self) -> TlsAcceptor {
        let mut loaded = self.loaded.lock();
        if loaded.looked.elapsed() < LOOK_EVERY {
            return loaded.acceptor.clone();
        }
        loaded.looked = Instant::now();
        let now = stamp(&self.files);
        if now != loaded.stamp {
            loaded.stamp = now;
            match load(&self.files) {
                Ok(acceptor) => {
                    tracing::info!("read the TLS files again");
                    loaded.acceptor = acceptor;
                }
                Err(error) => tracing::error!(
                    %error,
                    "the TLS files have changed and are not usable; the former ones stay in use"
                ),
            }
        }
        loaded.acceptor.clone()
    }
}

fn stamp(files: &TlsFiles) -> Vec<Option<SystemTime>> {
    let paths = [Some(&files.cert_file), Some(&files.key_file), files.client_ca_file.as_ref()];
    let modified = |path: &PathBuf| std::fs::metadata(path).and_then(|about| about.modified()).ok();
    paths.into_iter().map(|path| path.and_then(modified)).collect()
}

fn wrong<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> TlsError + use<'_, E> {
    |error| TlsError { path: path.to_owned(), why: error.to_string() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).map_err(wrong(path))?;
    let all = read.collect::<Result<Vec<_>, _>>().map_err(wrong(path))?;
    match all.is_empty() {
        true => Err(wrong(path)("no certificate in it: write PEM")),
        false => Ok(all),
    }
}

fn load(files: &TlsFiles) -> Result<TlsAcceptor, TlsError> {
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let chain = certificates(&files.cert_file)?;
    let key = PrivateKeyDer::from_pem_file(&files.key_file).map_err(wrong(&files.key_file))?;
    let config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(wrong(&files.cert_file))?;
    let config = match &files.client_ca_file {
        None => config.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(path)? {
                roots.add(root).map_err(wrong(path))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(wrong(path))?;
            config.with_client_cert_verifier(verifier)
        }
    };
    let mut config = config.with_single_cert(chain, key).map_err(wrong(&files.key_file))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The SHA-256 fingerprint of the certificate that a client has presented.
pub fn fingerprint(connection: &ServerConnection) -> Option<[u8; 32]> {
    let certificate = connection.peer_certificates()?.first()?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
    digest.as_ref().try_into().ok()
}
