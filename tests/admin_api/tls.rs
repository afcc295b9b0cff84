//! TLS, and clients that are known by their certificates.

use super::http::{Ask, Reply, read};
use super::server::Server;
use serde_json::json;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

const TLS: &str = "  tls: { certFile: ROOM/server.pem, keyFile: ROOM/server.key, clientCaFile: \
    ROOM/ca.pem }\n";

fn file(name: &str) -> String {
    format!("{}/tests/admin_api/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn certificate(name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(file(&format!("{name}.pem"))).unwrap()
}

/// A client that presents this certificate, or none.
fn connector(presents: Option<&str>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(certificate("ca")).unwrap();
    let config = ClientConfig::builder_with_provider(crypto::aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match presents {
        None => config.with_no_client_auth(),
        Some(name) => {
            let key = PrivateKeyDer::from_pem_file(file(&format!("{name}.key"))).unwrap();
            config.with_client_auth_cert(vec![certificate(name)], key).unwrap()
        }
    };
    TlsConnector::from(Arc::new(config))
}

/// The answer, and the certificate that the server has presented.
async fn send(
    ask: &Ask,
    presents: Option<&str>,
) -> std::io::Result<(Reply, CertificateDer<'static>)> {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = TcpStream::connect(ask.at()).await?;
    let mut stream = connector(presents).connect(name, stream).await?;
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
    stream.write_all(&ask.bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok((read(std::io::Cursor::new(answer), false)?, shown))
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_known_by_token_or_certificate() {
    let server = Server::start_with(TLS);
    let status = async |ask: Ask, presents| send(&ask, presents).await.unwrap().0.status;
    assert_eq!(status(server.by("viewer", "GET", "/pools"), None).await, 200);
    assert_eq!(status(server.ask("GET", "/pools"), None).await, 401);
    // Its authority is trusted, but nothing is granted to it.
    assert_eq!(status(server.ask("GET", "/pools"), Some("client")).await, 401);
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &certificate("client"));
    let print = data_encoding::HEXLOWER.encode(digest.as_ref());
    let path = server.room.path().join("tokens.yaml");
    let lines = std::fs::read_to_string(&path).unwrap();
    let line = format!("  - {{ name: machine, role: reader, certificate: 'sha256:{print}' }}\n");
    std::fs::write(path, lines + &line).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let (session, _) = send(&server.ask("GET", "/session"), Some("client")).await.unwrap();
    assert_eq!(
        (&session.json()["caller"], &session.json()["role"]),
        (&json!("machine"), &json!("reader"))
    );
    let change = server.ask("POST", "/pools/main/datasets").json(&json!({ "name": "x" }));
    assert_eq!(status(change, Some("client")).await, 403);
    // An authority that is not trusted.
    assert!(send(&server.ask("GET", "/pools"), Some("stranger")).await.is_err());
    // Without TLS there is no answer.
    assert!(server.by("viewer", "GET", "/pools").try_send().is_err());
    let login = server.ask("POST", "/login").json(&json!({ "token": server.printed }));
    let (reply, _) = send(&login, None).await.unwrap();
    let cookie = reply.header("set-cookie").unwrap();
    assert!(
        cookie.starts_with("__Host-zerofs_session=") && cookie.ends_with("; Secure"),
        "{cookie}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let server = Server::start_with(TLS);
    let ask = server.by("viewer", "GET", "/pools");
    let shown = async || send(&ask, None).await.unwrap().1;
    assert_eq!(shown().await, certificate("server"));
    let replace = |from: &str, to: &str| {
        std::fs::copy(file(from), server.room.path().join(to)).unwrap();
    };
    // Halfway through, key and certificate do not belong together: the former ones stay in use.
    replace("client.pem", "server.pem");
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    assert_eq!(shown().await, certificate("server"));
    replace("client.key", "server.key");
    for _ in 0..100 {
        if shown().await == certificate("client") {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    panic!("the renewed certificate is not used");
}
