//! The pause that a client sees when the server is replaced by a new process, and when it is killed
//! and started again: `serve` as a process on a folder pool, one client that writes 4 KiB and
//! commits, call after call, and connects again when its connection is gone.
//!
//! `cargo bench --bench takeover [-- ROUNDS]`: 20 upgrades and 20 kills. TMPDIR chooses the disk,
//! ZEROFS_PROGRAM another build of the program.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench stops by panicking")]

use bytes::Bytes;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use zerofs_csi::fs::api::{CreateHow, SetAttr, Stability};
use zerofs_csi::nfs::client::{Client, ClientError, Credentials};

const ROUNDS: usize = 20;
const BLOCK: usize = 4 << 10;
/// Work between two replacements, and after the last one.
const WORK: Duration = Duration::from_secs(1);
/// Between two tries to connect.
const RECONNECT: Duration = Duration::from_millis(2);

struct Pool<'a> {
    dir: &'a Path,
    listen: SocketAddr,
}

impl Pool<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let built = env!("CARGO_BIN_EXE_zerofs-csi").into();
        let mut command = Command::new(std::env::var_os("ZEROFS_PROGRAM").unwrap_or(built));
        let pool = format!("file://{}", self.dir.join("pool").display());
        command.args(args).args(["--pool", &pool]).stdin(Stdio::null());
        command.env_remove("ZEROFS_PASSPHRASE");
        command
    }

    fn run(&self, args: &[&str]) {
        let out = self.command(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// Starts a server and waits until it serves.
    fn serve(&self) -> Child {
        let state = self.dir.join("state").display().to_string();
        let listen = self.listen.to_string();
        let mut command = self.command(&["serve", "--state-dir", &state, "--nfs-listen", &listen]);
        let mut server = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("nfs"), "{line:?}");
        server
    }
}

/// The observations of the client.
#[derive(Default)]
struct Seen {
    calls: AtomicU64,
    longest_micros: AtomicU64,
    enough: AtomicBool,
}

impl Seen {
    fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_micros.swap(0, Ordering::Relaxed))
    }
}

/// Writes and commits until it is enough. A call ends when it is answered, on whichever connection.
async fn work(server: SocketAddr, seen: Arc<Seen>) {
    let how = CreateHow::Unchecked(SetAttr { mode: Some(0o644), ..SetAttr::default() });
    let (mut open, mut n) = (None, 0_u64);
    while !seen.enough.load(Ordering::Relaxed) {
        let begun = Instant::now();
        loop {
            let done = async {
                let (client, file) = match open.take() {
                    Some(open) => open,
                    None => {
                        let client = Client::connect(server, &Credentials::root()).await?;
                        let root = client.mount("/web").await?;
                        let file = client.create(&root, b"file", &how).await?.handle;
                        (client, file)
                    }
                };
                let data = Bytes::from(n.to_le_bytes().repeat(BLOCK / 8));
                let at = n % 256 * BLOCK as u64;
                client.write(&file, at, data, Stability::Unstable).await?;
                client.commit(&file, 0, 0).await?;
                Ok::<_, ClientError>((client, file))
            };
            match done.await {
                Ok(still) => break open = Some(still),
                Err(_) => tokio::time::sleep(RECONNECT).await,
            }
        }
        n += 1;
        seen.calls.fetch_add(1, Ordering::Relaxed);
        let took = u64::try_from(begun.elapsed().as_micros()).unwrap();
        seen.longest_micros.fetch_max(took, Ordering::Relaxed);
    }
}

fn report(what: &str, mut pauses: Vec<Duration>) {
    pauses.sort_unstable();
    let total: Duration = pauses.iter().sum();
    println!(
        "{what:<24} {:>3}   median {:>8.1?}   mean {:>8.1?}   longest {:>8.1?}",
        pauses.len(),
        pauses[pauses.len() / 2],
        total / u32::try_from(pauses.len()).unwrap(),
        pauses.last().unwrap(),
    );
}

#[tokio::main]
async fn main() {
    let rounds = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(ROUNDS);
    let dir = tempfile::tempdir().unwrap();
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let pool = Pool { dir: dir.path(), listen };
    std::fs::create_dir(dir.path().join("pool")).unwrap();
    pool.run(&["pool", "create"]);
    pool.run(&["dataset", "create", "web", "--size", "1Gi"]);
    let mut server = pool.serve();
    let seen = Arc::new(Seen::default());
    let client = tokio::spawn(work(listen, seen.clone()));

    tokio::time::sleep(WORK * 2).await;
    seen.longest();
    let (mut quiet, mut upgrades, mut kills) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        tokio::time::sleep(WORK).await;
        quiet.push(seen.longest());
    }
    for _ in 0..rounds {
        let next = pool.serve();
        assert!(server.wait().unwrap().success(), "who has handed over ends");
        server = next;
        tokio::time::sleep(WORK).await;
        upgrades.push(seen.longest());
    }
    for _ in 0..rounds {
        server.kill().unwrap();
        server.wait().unwrap();
        server = pool.serve();
        tokio::time::sleep(WORK).await;
        kills.push(seen.longest());
    }
    report("longest call, a second", quiet);
    report("upgrade", upgrades);
    report("kill -9 and restart", kills);
    println!("{} calls", seen.calls.load(Ordering::Relaxed));
    seen.enough.store(true, Ordering::Relaxed);
    client.await.unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
}
