//! A server under test, with files in a dataset.

use super::http::{Ask, Reply};
use bytes::Bytes;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use zerofs_csi::fs::api::{CreateHow, SetAttr, Special, Stability};
use zerofs_csi::nfs::client::{Client, Credentials, FileHandle};

/// A name that is not UTF-8.
pub const ODD: &[u8] = b"odd \xff\n name";

pub struct Server {
    pub room: tempfile::TempDir,
    child: Child,
    pub nfs: SocketAddr,
    pub admin: SocketAddr,
    /// The one-time token.
    pub printed: String,
    /// A token of each role, by the role's name, and others that a test has added.
    tokens: Vec<(String, String)>,
    /// What the server has logged.
    log: std::path::PathBuf,
}

/// The command line, with nothing from the environment of the test.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zerofs-csi"));
    command.stdin(Stdio::null());
    for name in ["ZEROFS_PASSPHRASE", "ZEROFS_SERVER", "ZEROFS_TOKEN", "ZEROFS_TOKEN_FILE"] {
        command.env_remove(name);
    }
    command
}

/// A token, and its lines for the file.
pub fn token(args: &[&str]) -> (String, String) {
    let out = program().args(["token", "create", "--json"]).args(args).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    let made: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
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
        let (state, log) = (room.path().join("state"), room.path().join("log"));
        let mut child = program()
            .args([
                "serve",
                "--nfs-listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
                "--web",
            ])
            .arg("--config")
            .arg(room.path().join("config.yaml"))
            .arg("--state-dir")
            .arg(state)
            .arg("--admin-socket")
            .arg(room.path().join("admin.sock"))
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let (mut ready, mut login) = (String::new(), String::new());
        out.read_line(&mut ready).unwrap();
        out.read_line(&mut login).unwrap();
        let after = |word: &str| {
            let mut words = ready.split_whitespace().skip_while(|found| *found != word);
            words.nth(1).unwrap_or_else(|| panic!("{ready:?}")).to_owned()
        };
        let url = after("admin");
        let admin = url.split_once("://").unwrap().1.parse().unwrap();
        let printed = login.split_once("#token=").unwrap().1.split(' ').next().unwrap().to_owned();
        Self { nfs: after("nfs").parse().unwrap(), admin, printed, tokens, room, child, log }
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

    /// Stops the server in order, and waits for its end.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap()
    }

    /// Ends the server at once.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub async fn client(&self) -> (Client, FileHandle) {
        let client = Client::connect(self.nfs, &Credentials::root()).await.unwrap();
        let root = client.mount("/web").await.unwrap();
        (client, root)
    }

    /// Files of all kinds, then the snapshot `s1` of them, then a change.
    pub async fn fill(&self) {
        let (client, root) = self.client().await;
        let docs = folder(&client, &root, b"docs").await;
        write(&client, &docs, b"a.txt", b"first version").await;
        write(&client, &docs, b"picture.png", &[1, 2, 3]).await;
        write(&client, &docs, b"empty", b"").await;
        write(&client, &docs, ODD, b"odd").await;
        let sub = folder(&client, &docs, b"sub").await;
        write(&client, &sub, b"large", &large()).await;
        let link = Special::Symlink(Bytes::from_static(b"/etc/passwd"));
        client.make(&docs, b"link", &link, &SetAttr::default()).await.unwrap();
        let up = Special::Symlink(Bytes::from_static(b".."));
        client.make(&docs, b"up", &up, &SetAttr::default()).await.unwrap();
        let taken = self.by("admin", "POST", "/pools/main/datasets/web/snapshots");
        let taken = taken.json(&serde_json::json!({ "name": "s1" })).send();
        assert_eq!(taken.status, 201, "{taken:?}");
        write(&client, &docs, b"a.txt", b"second").await;
        write(&client, &docs, b"new.txt", b"new").await;
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

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The content of `/docs/sub/large`.
pub fn large() -> Vec<u8> {
    (0..6_000_000u32).map(|i| (i / 7) as u8 ^ (i >> 13) as u8).collect()
}

fn command(room: &Path, args: &[&str]) {
    let out = program().args(args).arg("--config").arg(room.join("config.yaml")).output().unwrap();
    assert!(out.status.success(), "{args:?}: {out:?}");
}

pub async fn folder(client: &Client, dir: &FileHandle, name: &[u8]) -> FileHandle {
    let set = SetAttr { mode: Some(0o755), ..SetAttr::default() };
    client.mkdir(dir, name, &set).await.unwrap().handle
}

pub async fn write(client: &Client, dir: &FileHandle, name: &[u8], data: &[u8]) {
    let set = SetAttr { mode: Some(0o640), size: Some(0), ..SetAttr::default() };
    let file = client.create(dir, name, &CreateHow::Unchecked(set)).await.unwrap().handle;
    for (i, part) in data.chunks(1 << 20).enumerate() {
        let part = Bytes::copy_from_slice(part);
        client.write(&file, (i as u64) << 20, part, Stability::Unstable).await.unwrap();
    }
    client.commit(&file, 0, 0).await.unwrap();
}
