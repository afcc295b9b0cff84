//! A server under test, with files in a dataset.

use super::http::{Ask, Reply};
use crate::support::nfs;
use crate::support::program::{Server as Process, address, json, ok, program};
use bytes::Bytes;
use std::net::SocketAddr;
use std::path::Path;
use zerofs_csi::fs::api::{SetAttr, Special};
use zerofs_csi::nfs::client::{Client, FileHandle};

/// A name that is not UTF-8.
pub const ODD: &[u8] = b"odd \xff\n name";

pub struct Server {
    /// Ends before its folder goes.
    pub process: Process,
    pub room: tempfile::TempDir,
    pub nfs: SocketAddr,
    pub admin: SocketAddr,
    /// The one-time token.
    pub printed: String,
    /// A token of each role, by the role's name, and others that a test has added.
    tokens: Vec<(String, String)>,
    /// What the server has logged.
    log: std::path::PathBuf,
}

/// A token, and its lines for the file.
pub fn token(args: &[&str]) -> (String, String) {
    let made = json(program(&["token", "create"]).args(args));
    let text = |key: &str| made[key].as_str().unwrap().to_owned();
    (text("token"), text("line"))
}

impl Server {
    /// A server of one pool, `main`, with the dataset `web`.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// `admin`: more keys of `admin:` in the configuration.
    pub fn start_with(admin: &str) -> Self {
        let room = tempfile::tempdir().unwrap();
        std::fs::create_dir(room.path().join("pool")).unwrap();
        let roles = ["viewer", "reader", "restorer", "admin"];
        let (mut tokens, mut lines) = (Vec::new(), "tokens:\n".to_owned());
        for role in roles {
            let (token, line) = token(&["--name", role, "--role", role]);
            tokens.push((role.to_owned(), token));
            lines += &line;
        }
        std::fs::write(room.path().join("tokens.yaml"), lines).unwrap();
        let certificates = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/admin_api/tls");
        for file in ["ca.pem", "server.pem", "server.key"] {
            std::fs::copy(format!("{certificates}/{file}"), room.path().join(file)).unwrap();
        }
        let at = room.path().display();
        let admin = &admin.replace("ROOM", &at.to_string());
        let has_rate = admin.contains("requestsPerSecond");
        let rate = if has_rate { "" } else { "  requestsPerSecond: 100000\n" };
        let config = format!(
            "pools: {{ main: {{ url: 'file://{at}/pool' }} }}\nflushInterval: 100ms\n\
             admin:\n  tokensFile: {at}/tokens.yaml\n{rate}{admin}"
        );
        std::fs::write(room.path().join("config.yaml"), config).unwrap();
        command(room.path(), &["pool", "create"]);
        command(room.path(), &["dataset", "create", "web"]);
        let log = room.path().join("log");
        let serve = ["serve", "--nfs-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        let mut serve = program(&serve);
        for (option, name) in [
            ("--config", "config.yaml"),
            ("--state-dir", "state"),
            ("--admin-socket", "admin.sock"),
        ] {
            serve.arg(option).arg(room.path().join(name));
        }
        let process =
            Process::spawn(serve.arg("--web").stderr(std::fs::File::create(&log).unwrap()));
        let (ready, login) = (process.line(), process.line());
        let admin = address(&ready.replace("https:", "http:"), "admin http://");
        let nfs = address(&ready, "nfs ");
        let printed = login.split_once("#token=").unwrap().1.split(' ').next().unwrap().to_owned();
        Self { nfs, admin, printed, tokens, room, process, log }
    }

    /// Adds a token to the file of a running server.
    pub fn add_token(&mut self, name: &str, args: &[&str]) {
        let (token, line) = token(&[&["--name", name], args].concat());
        let path = self.room.path().join("tokens.yaml");
        let lines = std::fs::read_to_string(&path).unwrap() + &line;
        std::fs::write(path, lines).unwrap();
        self.tokens.push((name.to_owned(), token));
    }

    pub fn token(&self, name: &str) -> &str {
        &self.tokens.iter().find(|(known, _)| known == name).unwrap().1
    }

    /// A request of nobody.
    pub fn ask(&self, method: &str, path: &str) -> Ask {
        Ask::new(self.admin, method, &format!("/api/v1{path}"))
    }

    /// A request of the holder of a token.
    pub fn by(&self, name: &str, method: &str, path: &str) -> Ask {
        let token = format!("Bearer {}", self.token(name));
        self.ask(method, path).with("authorization", &token)
    }

    pub fn get(&self, path: &str) -> Reply {
        self.by("admin", "GET", path).send()
    }

    /// The unix socket of the interface.
    pub fn socket(&self) -> std::path::PathBuf {
        self.room.path().join("admin.sock")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub async fn client(&self) -> (Client, FileHandle) {
        nfs::mount(self.nfs, "/web").await
    }

    /// Files of all kinds, then the snapshot `s1` of them, then a change.
    pub async fn fill(&self) {
        let (client, root) = self.client().await;
        let docs = nfs::mkdir(&client, &root, b"docs").await;
        nfs::write(&client, &docs, b"a.txt", b"first version").await;
        nfs::write(&client, &docs, b"picture.png", &[1, 2, 3]).await;
        nfs::write(&client, &docs, b"empty", b"").await;
        nfs::write(&client, &docs, ODD, b"odd").await;
        let sub = nfs::mkdir(&client, &docs, b"sub").await;
        nfs::write(&client, &sub, b"large", &large()).await;
        let link = Special::Symlink(Bytes::from_static(b"/etc/passwd"));
        client.make(&docs, b"link", &link, &SetAttr::default()).await.unwrap();
        let up = Special::Symlink(Bytes::from_static(b".."));
        client.make(&docs, b"up", &up, &SetAttr::default()).await.unwrap();
        let taken = self.by("admin", "POST", "/pools/main/datasets/web/snapshots");
        let taken = taken.json(&serde_json::json!({ "name": "s1" })).send();
        assert_eq!(taken.status, 201, "{taken:?}");
        nfs::write(&client, &docs, b"a.txt", b"second").await;
        nfs::write(&client, &docs, b"new.txt", b"new").await;
        self.flushed("/docs/new.txt");
    }

    /// Waits until the store has a file: the interface shows what the store has.
    pub fn flushed(&self, path: &str) {
        for _ in 0..300 {
            let url = format!("/pools/main/datasets/web/stat?path={path}");
            if self.get(&url).status == 200 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("{path} does not appear");
    }
}

/// The content of `/docs/sub/large`.
pub fn large() -> Vec<u8> {
    (0..6_000_000u32).map(|i| (i / 7) as u8 ^ (i >> 13) as u8).collect()
}

/// A command on the pool of a room.
fn command(room: &Path, args: &[&str]) {
    ok(program(args).arg("--config").arg(room.join("config.yaml")));
}
