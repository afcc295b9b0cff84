//! Why there is an NFS edge of our own: the same file system in memory behind `nfsserve` and behind
//! ours.
//!
//! `cargo bench --bench nfs_edge` prints the table of the README: server CPU per GETATTR with 64
//! calls in flight and after a minute's worth of earlier calls, megabytes per second of server CPU
//! for READ and WRITE of 1 MiB, and what one packet of 80 bytes that claims 2³¹ groups does. Each
//! server is a process of its own, so that its CPU and memory are its alone; its address space is
//! limited, so that the packet cannot take the machine along. With a number as argument, only ours
//! is served, at that port (to try another load generator on it).

#![allow(clippy::unwrap_used, clippy::cast_sign_loss, reason = "a bench fails by panicking")]

#[path = "../../tests/support/memfs/mod.rs"]
#[allow(dead_code, reason = "the tests use what the bench does not")]
mod memfs;

mod theirs;

use bytes::Bytes;
use memfs::MemFs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerofs_csi::fs::api::{CreateHow, SetAttr, Stability};
use zerofs_csi::nfs::client::{Client, Credentials, FileHandle};
use zerofs_csi::nfs::{Endpoint, ExportId, Options, Peers, Server};

const CALLS: u64 = 60_000;
const MIB: usize = 1 << 20;
/// Bytes moved by READ and by WRITE, in MiB, over a file of `FILE_MIB`.
const MOVED_MIB: u64 = 4096;
const FILE_MIB: u64 = 64;
/// The time for which the packet's effect is watched, and the memory, in MB, at which watching
/// stops.
const WATCHED: Duration = Duration::from_secs(30);
const ENOUGH_MB: f64 = 2000.0;
/// The limit of a server's address space, in bytes.
const ADDRESS_SPACE: u64 = 24 << 30;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    match args.next().as_deref() {
        Some("serve") => serve(&args.next().unwrap_or_default(), 0),
        Some(port) if port.parse::<u16>().is_ok() => serve("ours", port.parse().unwrap_or(0)),
        _ => compare(),
    }
}

#[tokio::main]
async fn serve(which: &str, port: u16) {
    let fs = Arc::new(MemFs::default());
    if which == "theirs" {
        return theirs::serve(fs).await;
    }
    let endpoint = Endpoint::new(ExportId([1; 16]), "/".into());
    endpoint.publish(fs, rand::random());
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let _pass = endpoint.allow_mount();
    let options = Options { peers: Peers::Loopback, ..Options::default() };
    let server = Server::start(listener, endpoint.clone(), options).unwrap();
    println!("{}", server.local_addr());
    std::future::pending::<()>().await;
}

/// A server in a process of its own.
struct Other {
    process: Child,
    address: SocketAddr,
}

impl Drop for Other {
    fn drop(&mut self) {
        // The server may have ended by itself: that is one of the results.
        let _gone = self.process.kill();
        let _status = self.process.wait();
    }
}

impl Other {
    fn start(which: &str) -> Self {
        let me = std::env::current_exe().unwrap();
        let mut process = Command::new("prlimit")
            .arg(format!("--as={ADDRESS_SPACE}"))
            .arg(me)
            .args(["serve", which])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("prlimit of util-linux is needed");
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { process, address: line.trim().parse().expect("the server says its address") }
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.process.id())).unwrap_or_default()
    }

    /// CPU seconds spent so far.
    fn cpu(&self) -> f64 {
        let stat = self.proc("stat");
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }

    /// A line of its status in MB; 0 when it has ended.
    fn memory(&self, what: &str) -> f64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap_or("0");
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1e3
    }

    fn alive(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }
}

/// Runs `count` operations, `lanes` at a time.
async fn lanes<F, Fut>(lanes: u64, count: u64, operation: F)
where
    F: Fn(u64) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send,
{
    let operation = Arc::new(operation);
    let running: Vec<_> = (0..lanes)
        .map(|lane| {
            let operation = operation.clone();
            tokio::spawn(async move {
                for turn in (lane..count).step_by(lanes as usize) {
                    operation(turn).await;
                }
            })
        })
        .collect();
    for lane in running {
        lane.await.unwrap();
    }
}

async fn getattrs(server: &Other, client: &Client, file: &FileHandle) -> (f64, f64) {
    let (cpu, begun) = (server.cpu(), Instant::now());
    let (client, file) = (client.clone(), file.clone());
    lanes(64, CALLS, move |_| {
        let (client, file) = (client.clone(), file.clone());
        async move { _ = client.getattr(&file).await.unwrap() }
    })
    .await;
    ((server.cpu() - cpu) * 1e6 / CALLS as f64, CALLS as f64 / begun.elapsed().as_secs_f64())
}

async fn moved(server: &Other, client: &Client, file: &FileHandle, write: bool) -> f64 {
    let cpu = server.cpu();
    let (client, file) = (client.clone(), file.clone());
    let data = Bytes::from(vec![7; MIB]);
    lanes(8, MOVED_MIB, move |turn| {
        let (client, file, data) = (client.clone(), file.clone(), data.clone());
        async move {
            let offset = turn % FILE_MIB * MIB as u64;
            if write {
                client.write(&file, offset, data, Stability::Unstable).await.unwrap();
            } else {
                assert_eq!(client.read(&file, offset, MIB as u32).await.unwrap().data.len(), MIB);
            }
        }
    })
    .await;
    MOVED_MIB as f64 * MIB as f64 / 1e6 / (server.cpu() - cpu)
}

/// 80 bytes: a NULL call whose credentials claim 2³¹ groups.
fn packet() -> Vec<u8> {
    let words: [u32; 19] = [1, 0, 2, 100_003, 3, 0, 1, 20, 0, 0, 0, 0, 1 << 31, 0, 0, 0, 0, 0, 0];
    let body: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    [&((1 << 31) | body.len() as u32).to_be_bytes(), &body[..]].concat()
}

fn send_packet(server: &mut Other) -> String {
    let before = server.memory("VmHWM:");
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let packet = packet();
    assert_eq!(packet.len(), 80);
    stream.write_all(&packet).unwrap();
    let begun = Instant::now();
    let mut most: f64 = 0.0;
    let answered = stream.read(&mut [0; 256]).is_ok_and(|len| len > 0);
    while begun.elapsed() < WATCHED && most < ENOUGH_MB && server.alive() && !answered {
        most = most.max(server.memory("VmRSS:"));
        std::thread::sleep(Duration::from_millis(20));
    }
    most = most.max(server.memory("VmHWM:"));
    let end = match (server.alive(), answered) {
        (true, true) => "refused, serves on",
        (true, false) => "no answer, still growing",
        (false, _) => "dead",
    };
    format!("{:.0} MB more, {end}", (most - before).max(0.0))
}

async fn measure(which: &str) -> Vec<String> {
    let mut server = Other::start(which);
    let credentials = Credentials::root();
    let client = Client::connect(server.address, &credentials).await.unwrap();
    let root = client.mount("/").await.unwrap();
    let how = CreateHow::Unchecked(SetAttr { mode: Some(0o644), ..SetAttr::default() });
    let file = client.create(&root, b"file", &how).await.unwrap().handle;
    let mut column = Vec::new();
    for _ in 0..2 {
        let (micros, rate) = getattrs(&server, &client, &file).await;
        column.push(format!("{micros:.1} ({rate:.0}/s)"));
    }
    // Once to fill the file.
    moved(&server, &client, &file, true).await;
    column.push(format!("{:.0}", moved(&server, &client, &file, true).await));
    column.push(format!("{:.0}", moved(&server, &client, &file, false).await));
    column.push(format!("{:.0}", server.memory("VmHWM:")));
    column.push(send_packet(&mut server));
    column
}

fn compare() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let lines = [
        "GETATTR, 64 in flight: server CPU µs each (rate)",
        "the same once more",
        "WRITE of 1 MiB, 8 in flight: MB per second of server CPU",
        "READ of 1 MiB, 8 in flight: MB per second of server CPU",
        "peak memory, MB",
        "80-byte packet that claims 2³¹ groups",
    ];
    let ours = runtime.block_on(measure("ours"));
    let theirs = runtime.block_on(measure("theirs"));
    println!("| | ours | nfsserve 0.11 |\n|---|---|---|");
    for ((line, ours), theirs) in lines.iter().zip(ours).zip(theirs) {
        println!("| {line} | {ours} | {theirs} |");
    }
}
