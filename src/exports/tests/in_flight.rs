//! Calls in progress when their volume is closed, or fails: they are answered by its next opening,
//! and what must not be done twice is not (R20).

use super::*;
use crate::fs::api::{Special, Stability};
use crate::nfs::client::{Client, ClientError, Credentials, FileHandle};
use crate::nfs::{Listed, MountPoint, MountRefused, NfsStat, Options, Peers, Server};
use bytes::Bytes;
use std::net::SocketAddr;

/// Time that a call is held before its client is told to retry: shorter than a volume takes that
/// opens only at the third attempt.
const HOLD: Duration = Duration::from_millis(300);

/// A server whose volume, once it is open again, is used by another client before the calls that
/// wait for it.
#[derive(Clone)]
struct Overtaken {
    table: ServeTable,
    first: Arc<ExportedFs>,
    /// The name that the other client makes.
    makes: Arc<Mutex<Option<&'static str>>>,
}

impl ExportTable for Overtaken {
    type Fs = ExportedFs;

    fn find(&self, id: ExportId) -> Found<ExportedFs> {
        match self.table.find(id) {
            Found::Open(export) if !Arc::ptr_eq(&export.fs, &self.first) => Found::Opening,
            found => found,
        }
    }

    async fn opened(&self, id: ExportId) -> Found<ExportedFs> {
        let found = self.table.opened(id).await;
        let makes = self.makes.lock().take();
        if let (Found::Open(export), Some(name)) = (&found, makes) {
            make(export, name).await;
        }
        found
    }

    async fn mount(
        &self,
        path: &[u8],
        peer: SocketAddr,
    ) -> Result<MountPoint<ExportedFs>, MountRefused> {
        self.table.mount(path, peer).await
    }

    async fn list(&self) -> Vec<Listed> {
        self.table.list().await
    }
}

async fn make(export: &Export<ExportedFs>, name: &str) {
    if !name.starts_with("dir") {
        return create(export, name).await;
    }
    let (entry, root) = (EntryName::try_from(name.as_bytes()).unwrap(), Caller::root());
    export.fs.mkdir(&root, export.fs.root(), &entry, SetAttr::default()).await.unwrap();
}

/// A client of a server over the exports.
struct Scene {
    _server: Server<Overtaken>,
    client: Client,
    root: FileHandle,
}

impl Scene {
    async fn new(serving: &Serving, makes: Option<&'static str>) -> Self {
        let first = serving.mount().await.fs.clone();
        let makes = Arc::new(Mutex::new(makes));
        let table = Overtaken { table: serving.table.clone(), first, makes };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = Options { peers: Peers::Loopback, hold: HOLD, ..Options::default() };
        let server = Server::start(listener, table, options).unwrap();
        let client = Client::connect(server.local_addr(), &Credentials::root()).await.unwrap();
        let root = client.mount("/v").await.unwrap();
        Self { _server: server, client, root }
    }
}

/// A call that must not be done twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Remove,
    RmDir,
    Rename,
    Link,
    Create,
    MkDir,
    Symlink,
    SetAttr,
}

impl Call {
    const ALL: [Self; 8] = [
        Self::Remove,
        Self::RmDir,
        Self::Rename,
        Self::Link,
        Self::Create,
        Self::MkDir,
        Self::Symlink,
        Self::SetAttr,
    ];

    /// The name that the call takes away.
    fn takes(self) -> Option<&'static str> {
        match self {
            Self::Remove => Some("removed"),
            Self::RmDir => Some("dir removed"),
            Self::Rename => Some("renamed"),
            Self::Link | Self::Create | Self::MkDir | Self::Symlink | Self::SetAttr => None,
        }
    }

    /// The step at which the volume fails once the change is where the call's answer needs it: in
    /// the store, or in the journal.
    fn fails_after(self) -> &'static str {
        match self {
            Self::Remove | Self::RmDir | Self::Rename | Self::Link => "fs.commit.after-flush",
            Self::Create | Self::MkDir | Self::Symlink | Self::SetAttr => "fs.journal.after-append",
        }
    }

    async fn done(self, Scene { client, root, .. }: &Scene) -> Result<(), ClientError> {
        let (how, set) = (CreateHow::Guarded(SetAttr::default()), SetAttr::default());
        match self {
            Self::Remove => client.remove(root, b"removed").await.map(drop),
            Self::RmDir => client.rmdir(root, b"dir removed").await.map(drop),
            Self::Rename => client.rename((root, b"renamed"), (root, b"other")).await.map(drop),
            Self::Link => {
                let file = client.lookup(root, b"file").await?.handle;
                client.link(&file, root, b"linked").await.map(drop)
            }
            Self::Create => client.create(root, b"created", &how).await.map(drop),
            Self::MkDir => client.mkdir(root, b"dir made", &set).await.map(drop),
            Self::Symlink => {
                let what = Special::Symlink(Bytes::from_static(b"target"));
                client.make(root, b"symlink", &what, &set).await.map(drop)
            }
            Self::SetAttr => {
                let file = client.lookup(root, b"file").await?;
                let guard = file.attr.map(|attr| attr.ctime);
                let set = SetAttr { mode: Some(0o600), ..set };
                client.setattr(&file.handle, &set, guard).await.map(drop)
            }
        }
    }
}

async fn prepared() -> Serving {
    let serving = Serving::new().await;
    let export = serving.mount().await;
    for name in ["removed", "dir removed", "renamed", "file"] {
        make(&export, name).await;
    }
    serving.volumes.get(serving.id).unwrap().fs.sync().await.unwrap();
    serving
}

#[test]
fn a_call_that_was_done_when_its_volume_failed_is_not_done_twice() {
    run(async {
        let serving = prepared().await;
        let failpoints = serving.catalog.bucket().failpoints().clone();
        for call in Call::ALL {
            let scene = Scene::new(&serving, call.takes()).await;
            failpoints.set(call.fails_after(), "1*return->off").unwrap();
            let done = call.done(&scene).await;
            assert!(done.is_ok(), "{call:?}: {done:?}");
            if let Some(name) = call.takes() {
                let there = scene.client.lookup(&scene.root, name.as_bytes()).await;
                assert!(there.is_ok(), "{call:?}: what another client has made is gone: {there:?}");
            }
        }
        serving.exports.close(Duration::from_secs(30)).await.unwrap();
    });
}

/// The client would retry under another transaction id, by which nobody recognises the call.
#[test]
fn a_call_that_may_have_been_done_is_never_asked_to_retry() {
    run(async {
        let serving = prepared().await;
        let failpoints = serving.catalog.bucket().failpoints().clone();
        for call in Call::ALL {
            let scene = Scene::new(&serving, None).await;
            failpoints.set(call.fails_after(), "1*return->off").unwrap();
            failpoints.set("volume.open.claimed", "2*return->off").unwrap();
            let (done, (asked, read)) = tokio::join!(call.done(&scene), async {
                // Until the volume has failed.
                let mut asked = 0;
                loop {
                    match scene.client.getattr(&scene.root).await {
                        Ok(_) if asked < 3000 => asked += 1,
                        read => return (asked, read),
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
            assert!(done.is_ok(), "{call:?}: {done:?}");
            let status = read.err().and_then(|error| error.status());
            assert_eq!(status, Some(NfsStat::Jukebox), "{call:?}, after {asked} answers");
        }
        serving.exports.close(Duration::from_secs(30)).await.unwrap();
    });
}

/// Uncommitted writes of a client are kept when its volume is closed, or the verifier says that
/// they must be sent again (R18).
#[test]
fn data_that_was_written_before_a_close_is_there_after_it() {
    run(async {
        let serving = prepared().await;
        let Scene { client, root, _server } = Scene::new(&serving, None).await;
        let file = client.lookup(&root, b"file").await.unwrap().handle;
        let data = Bytes::from_static(b"written before the close");
        let written = client.write(&file, 0, data.clone(), Stability::Unstable).await.unwrap();
        serving.volumes.close(serving.id).await.unwrap();
        let committed = client.commit(&file, 0, 0).await.unwrap();
        assert_ne!(written.verifier, committed.verifier, "by another opening");
        assert_eq!(client.read(&file, 0, 100).await.unwrap().data, data);
        serving.exports.close(Duration::from_secs(30)).await.unwrap();
    });
}
