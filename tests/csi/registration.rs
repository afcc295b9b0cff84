//! Kubelet's plugin registration.

use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use zerofs_csi::csi::proto::registration::registration_client::RegistrationClient;
use zerofs_csi::csi::proto::registration::{InfoRequest, RegistrationStatus};
use zerofs_csi::csi::{Registrar, RegistrationState};

fn registrar(dir: &Path) -> Registrar {
    Registrar {
        driver: "zerofs.csi.dev".into(),
        registry_dir: dir.into(),
        endpoint: PathBuf::from("/kubelet/csi.sock"),
        state: RegistrationState::default(),
    }
}

fn serve(
    dir: &Path,
    inherited: Option<OwnedFd>,
    stop: &CancellationToken,
) -> JoinHandle<std::io::Result<()>> {
    let registering = registrar(dir).listen(inherited).unwrap();
    tokio::spawn(registrar(dir).serve(registering, stop.clone()))
}

async fn client(socket: &Path) -> RegistrationClient<Channel> {
    let socket = socket.to_owned();
    for _ in 0..200 {
        let path = socket.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        match Endpoint::from_static("http://socket").connect_with_connector(connector).await {
            Ok(channel) => return RegistrationClient::new(channel),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
    panic!("nobody serves {}", socket.display())
}

/// `:authority` as grpc-go makes it of a target that is a path (`encodeAuthority`), which is how
/// kubelet dials.
fn authority(path: &Path) -> String {
    path.to_str().unwrap().bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'-' | b'_' | b'.' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+'
            | b',' | b';' | b'=' | b':' | b'[' | b']' | b'@' => encoded.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => encoded.push(char::from(byte)),
            _ => write!(encoded, "%{byte:02X}").unwrap(),
        }
        encoded
    })
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// RFC 7541, 6.2.2: a literal without indexing. A length of 127 and more has a second part.
fn header(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| match text.len() {
        short @ ..127 => [&[u8::try_from(short).unwrap()], text.as_bytes()].concat(),
        long => [&[127, u8::try_from(long - 127).unwrap()], text.as_bytes()].concat(),
    };
    [vec![0], text(name), text(value)].concat()
}

// RFC 9113, 6: types of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;

/// GetInfo in kubelet's own bytes, which no Rust client sends: `http` refuses to make this
/// authority. The answer's message, or the code by which the server resets the stream.
async fn get_info_as_kubelet(socket: &Path, authority: &str) -> Result<Vec<u8>, u32> {
    let headers = [
        header(":method", "POST"),
        header(":scheme", "http"),
        header(":path", "/pluginregistration.Registration/GetInfo"),
        header(":authority", authority),
        header("content-type", "application/grpc"),
        header("te", "trailers"),
    ];
    let request = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(SETTINGS, 0, 0, &[]),
        frame(HEADERS, 4, 1, &headers.concat()),
        frame(DATA, 1, 1, &[0; 5]),
    ];
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(&request.concat()).await.unwrap();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.unwrap();
        match head[3] {
            DATA => return Ok(payload),
            RST_STREAM => return Err(u32::from_be_bytes(payload.try_into().unwrap())),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubelets_authority_is_understood() {
    let dir = tempfile::tempdir().unwrap();
    // Kubelet's folder elsewhere: microk8s, and a name that must be encoded.
    for folder in
        ["plugins_registry", "var/snap/microk8s/common/var/lib/kubelet", "a folder, 100%é"]
    {
        let folder = dir.path().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let stop = CancellationToken::new();
        let served = serve(&folder, None, &stop);
        let socket = registrar(&folder).path();
        let info = get_info_as_kubelet(&socket, &authority(&socket)).await;
        let info = info.unwrap_or_else(|code| {
            panic!("{}: the stream is reset with code {code}", folder.display())
        });
        assert!(info.windows(9).any(|part| part == b"CSIPlugin"), "{info:?}");
        // Why the name has an `@`: the usual name's authority is a PROTOCOL_ERROR.
        let usual = authority(&folder.join("zerofs.csi.dev-reg.sock"));
        assert_eq!(get_info_as_kubelet(&socket, &usual).await, Err(1));
        stop.cancel();
        served.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubelet_is_told_where_the_driver_is() {
    let dir = tempfile::tempdir().unwrap();
    let (stop, registrar) = (CancellationToken::new(), registrar(dir.path()));
    let (state, socket) = (registrar.state.clone(), dir.path().join("zerofs.csi.dev@reg.sock"));
    let registering = registrar.listen(None).unwrap();
    let served = tokio::spawn(registrar.serve(registering, stop.clone()));
    let mut kubelet = client(&socket).await;
    let info = kubelet.get_info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "zerofs.csi.dev"));
    assert_eq!(
        (info.endpoint.as_str(), info.supported_versions),
        ("/kubelet/csi.sock", vec!["1.0.0".to_owned()])
    );
    assert!(state.missing().unwrap().contains("has not registered"));
    let refused = RegistrationStatus { plugin_registered: false, error: "no CSINode".to_owned() };
    kubelet.notify_registration_status(refused).await.unwrap();
    assert!(state.missing().unwrap().contains("no CSINode"));
    let status = RegistrationStatus { plugin_registered: true, error: String::new() };
    kubelet.notify_registration_status(status).await.unwrap();
    assert_eq!(state.missing(), None);
    drop(kubelet);
    stop.cancel();
    served.await.unwrap().unwrap();
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_pod_leaves_the_new_ones_socket_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("zerofs.csi.dev@reg.sock");
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

/// Kubelet watches the folder: a socket that is made again has it forget the driver first.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_handed_over_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("zerofs.csi.dev@reg.sock");
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
