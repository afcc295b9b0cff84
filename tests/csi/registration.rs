//! Kubelet's plugin registration.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use zerofs_csi::csi::Registrar;
use zerofs_csi::csi::proto::registration::registration_client::RegistrationClient;
use zerofs_csi::csi::proto::registration::{InfoRequest, RegistrationStatus};

fn registrar(dir: &Path) -> Registrar {
    Registrar { driver: "zerofs.csi.dev".into(), registry_dir: dir.into(), endpoint: PathBuf::from("/kubelet/csi.sock") }
}

fn serve(dir: &Path, inherited: Option<OwnedFd>, stop: &CancellationToken) -> JoinHandle<std::io::Result<()>> {
    let registering = registrar(dir).listen(inherited).unwrap();
    tokio::spawn(registrar(dir).serve(registering, stop.clone()))
}

async fn client(socket: &Path) -> RegistrationClient<Channel> {
    let socket = socket.to_owned();
    for _ in 0..200 {
        let path = socket.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        match Endpoint::from_static("http://socket").connect_with_connector(connector).await {
            Ok(channel) => return RegistrationClient::new(channel),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
    panic!("nobody serves {}", socket.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn kubelet_is_told_where_the_driver_is() {
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let served = serve(dir.path(), None, &stop);
    let socket = dir.path().join("zerofs.csi.dev-reg.sock");
    let mut kubelet = client(&socket).await;
    let info = kubelet.get_info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "zerofs.csi.dev"));
    assert_eq!((info.endpoint.as_str(), info.supported_versions), ("/kubelet/csi.sock", vec!["1.0.0".to_owned()]));
    let status = RegistrationStatus { plugin_registered: true, error: String::new() };
    kubelet.notify_registration_status(status).await.unwrap();
    drop(kubelet);
    stop.cancel();
    served.await.unwrap().unwrap();
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_pod_leaves_the_new_ones_socket_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("zerofs.csi.dev-reg.sock");
    let (old_stop, new_stop) = (CancellationToken::new(), CancellationToken::new());
    let old = serve(dir.path(), None, &old_stop);
    client(&socket).await.get_info(InfoRequest {}).await.unwrap();
    let before = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&socket).unwrap());
    let new = serve(dir.path(), None, &new_stop);
    while std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&socket).unwrap()) == before {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    old_stop.cancel();
    old.await.unwrap().unwrap();
    client(&socket).await.get_info(InfoRequest {}).await.unwrap();
    new_stop.cancel();
    new.await.unwrap().unwrap();
    assert!(!socket.exists());
}

/// Kubelet watches the folder: a socket that is made anew has it forget the driver first.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_handed_over_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("zerofs.csi.dev-reg.sock");
    let (old_stop, new_stop) = (CancellationToken::new(), CancellationToken::new());
    let registering = registrar(dir.path()).listen(None).unwrap();
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&socket).unwrap());
    let (given, before) = (registering.socket().unwrap(), inode());
    assert_eq!(given.path(), socket);
    let old = tokio::spawn(registrar(dir.path()).serve(registering, old_stop.clone()));
    let new = serve(dir.path(), Some(given.give()), &new_stop);
    old_stop.cancel();
    old.await.unwrap().unwrap();
    assert_eq!(inode(), before);
    client(&socket).await.get_info(InfoRequest {}).await.unwrap();
    new_stop.cancel();
    new.await.unwrap().unwrap();
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_registration_folder_is_an_error() {
    let missing = registrar(Path::new("/no/such/folder")).listen(None).map(drop);
    assert_eq!(missing.unwrap_err().kind(), std::io::ErrorKind::NotFound);
}
