//! The key of this process on the channel, and TLS with keys that are recognised by their SHA-256.
//!
//! Keys are raw (RFC 7250): a certificate would only repeat what the bucket says of the session.
//! TLS 1.3 only, without resumption: every connection proves that the peer has its key.

use crate::control::channel::KeySha256;
use aws_lc_rs::digest;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use std::sync::Arc;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs as provider,
    verify_tls13_signature_with_raw_key,
};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme, version,
};

#[derive(Clone, Debug, thiserror::Error)]
#[error("making the key of this node's channel: {0}")]
pub struct IdentityError(String);

fn failed(error: impl std::fmt::Display) -> IdentityError {
    IdentityError(error.to_string())
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    key: Arc<CertifiedKey>,
    sha256: KeySha256,
    provider: Arc<CryptoProvider>,
}

/// Without the key.
impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("sha256", &self.sha256).finish_non_exhaustive()
    }
}

impl Identity {
    /// Makes a key, which is in memory only.
    ///
    /// # Errors
    /// The machine gives no random bytes.
    pub fn generate() -> Result<Self, IdentityError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(failed)?;
        let secret = pair.to_pkcs8v1().map_err(failed)?;
        let secret = PrivatePkcs8KeyDer::from(secret.as_ref().to_vec());
        let signing = provider::sign::any_ecdsa_type(&secret.into()).map_err(failed)?;
        let public = signing.public_key().ok_or_else(|| failed("it has no public part"))?;
        let public = CertificateDer::from(public.to_vec());
        let sha256 = sha256(&public);
        let key = Arc::new(CertifiedKey::new(vec![public], signing));
        Ok(Self { key, sha256, provider: Arc::new(provider::default_provider()) })
    }

    pub fn sha256(&self) -> KeySha256 {
        self.sha256
    }

    /// Accepts every peer that has the private key of the public one it presents; [`presented`]
    /// says which that is.
    ///
    /// # Errors
    /// The crypto provider does not support TLS 1.3.
    pub fn server(&self) -> Result<Arc<ServerConfig>, IdentityError> {
        let verifier = Arc::new(RawKeys { expected: None, algorithms: self.algorithms() });
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(failed)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.key.clone())));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// Accepts the server of this key alone.
    ///
    /// # Errors
    /// The crypto provider does not support TLS 1.3.
    pub fn client(&self, server: KeySha256) -> Result<Arc<ClientConfig>, IdentityError> {
        let verifier = Arc::new(RawKeys { expected: Some(server), algorithms: self.algorithms() });
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
                self.key.clone(),
            )));
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(Arc::new(config))
    }

    fn algorithms(&self) -> WebPkiSupportedAlgorithms {
        self.provider.signature_verification_algorithms
    }
}

fn sha256(key: &[u8]) -> KeySha256 {
    let mut sha256 = [0; 32];
    let digest = digest::digest(&digest::SHA256, key);
    sha256.iter_mut().zip(digest.as_ref()).for_each(|(to, byte)| *to = *byte);
    sha256
}

/// The SHA-256 of the key that a peer has presented.
pub fn presented(keys: Option<&[CertificateDer<'_>]>) -> Option<KeySha256> {
    keys?.first().map(|key| sha256(key))
}

#[derive(Debug)]
struct RawKeys {
    /// None: whoever asks later compares it.
    expected: Option<KeySha256>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl RawKeys {
    fn check(&self, key: &[u8]) -> Result<(), Error> {
        match self.expected {
            Some(expected) if expected != sha256(key) => {
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            _ => Ok(()),
        }
    }

    fn signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
    }

    fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".to_owned()))
    }
}

impl ServerCertVerifier for RawKeys {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for RawKeys {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    async fn meet(server: &Identity, client: &Identity, expected: KeySha256) -> Option<KeySha256> {
        let (near, far) = duplex(64 << 10);
        let acceptor = TlsAcceptor::from(server.server().unwrap());
        let connector = TlsConnector::from(client.client(expected).unwrap());
        let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        let connecting = async {
            let mut stream = connector.connect(name, near).await.ok()?;
            stream.write_all(b"x").await.ok()?;
            stream.read_u8().await.ok()
        };
        let accepting = async {
            let mut stream = acceptor.accept(far).await.ok()?;
            let key = presented(stream.get_ref().1.peer_certificates());
            stream.read_u8().await.ok()?;
            stream.write_all(b"y").await.ok()?;
            key
        };
        let (connected, accepted) = tokio::join!(connecting, accepting);
        connected.and(accepted)
    }

    #[tokio::test]
    async fn each_side_knows_the_others_key() {
        let (one, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        assert_ne!(one.sha256(), other.sha256());
        assert_eq!(meet(&one, &other, one.sha256()).await, Some(other.sha256()));
        assert_eq!(meet(&one, &other, other.sha256()).await, None, "not the server expected");
    }
}
