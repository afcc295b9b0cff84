//! Node plugins that have one volume staged, a worker on each, a controller, and the store.

use crate::history::Call;
use crate::network::{self, SEATS};
use crate::node;
use crate::pods::PODS_PER_NODE;
use crate::support::driver::{capability, connect, new_volume, stage, text};
use crate::support::s3::S3Server;
use crate::worker::now;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use zerofs_csi::catalog::Catalog;
use zerofs_csi::csi::proto::v1::controller_client::ControllerClient;
use zerofs_csi::csi::proto::v1::node_client::NodeClient;
use zerofs_csi::csi::proto::v1::volume_capability::access_mode::Mode;
use zerofs_csi::csi::proto::v1::*;
use zerofs_csi::types::VolumeHandle;

/// The shortest lease there may be, in seconds.
pub const LEASE: u64 = 5;
/// The limit for a call whose node is connected to a living owner, or to the store: the lease of an
/// owner that is gone, what it takes to notice, and the opening, on a machine with other work.
pub const BOUND: Duration = Duration::from_secs(30);
/// A process starts within this time.
const START: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Writes that each worker does before the cluster counts as settled.
const SOME: usize = 3;

/// The lines of a process.
struct Lines(Receiver<String>);

impl Lines {
    fn of(child: &mut Child) -> Self {
        let out = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            // Until the process ends, or nobody listens.
            let _ = out.lines().map_while(Result::ok).try_for_each(|line| tell.send(line));
        });
        Self(lines)
    }

    fn next(&self, awaited: &str) -> String {
        self.0.recv_timeout(START).unwrap_or_else(|error| panic!("{awaited}: {error}"))
    }
}

/// What a worker finds at the end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub registers: BTreeMap<String, u64>,
    pub names: BTreeSet<String>,
}

struct Worker {
    child: Child,
    rest: Receiver<String>,
}

impl Worker {
    fn tell(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    fn next(&self) -> String {
        self.rest.recv_timeout(BOUND).expect("a worker goes on")
    }
}

/// A time in which a node's calls may wait: it is not connected to the owner, or stopped.
struct Isolation {
    seat: &'static str,
    from: u64,
    until: u64,
}

pub struct Cluster {
    program: PathBuf,
    dir: tempfile::TempDir,
    store: S3Server,
    runtime: Runtime,
    catalog: Catalog,
    volume: String,
    _controller: Child,
    nodes: BTreeMap<&'static str, Child>,
    workers: BTreeMap<&'static str, Worker>,
    calls: Arc<Mutex<Vec<Call>>>,
    names: Arc<Mutex<BTreeSet<String>>>,
    isolations: Vec<Isolation>,
}

impl Cluster {
    pub fn start(program: &Path) -> Self {
        network::lay();
        let (dir, store) = (tempfile::tempdir().unwrap(), S3Server::listen(network::STORE));
        let runtime = Runtime::new().unwrap();
        write_configs(dir.path(), &store);
        let config = node::config(dir.path(), "controller");
        run(program, &["pool", "create", "--config", &text(&config)]);
        let catalog = runtime
            .block_on(async { Catalog::open(store.pool("s3://test/pool"), None).await })
            .unwrap();
        let socket = node::socket(dir.path(), "controller");
        let mut controller = Command::new(program)
            .args(["controller", "--config", &text(&config)])
            .args(["--csi-endpoint", &format!("unix://{}", socket.display())])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log(dir.path(), "controller"))
            .spawn()
            .unwrap();
        Lines::of(&mut controller).next("the controller serves");
        until_listening(&socket);
        let volume = runtime.block_on(create_volume(&socket));
        let mut cluster = Self {
            program: program.to_owned(),
            dir,
            store,
            runtime,
            catalog,
            volume,
            _controller: controller,
            nodes: BTreeMap::new(),
            workers: BTreeMap::new(),
            calls: Arc::default(),
            names: Arc::default(),
            isolations: Vec::new(),
        };
        for seat in SEATS {
            cluster.start_node(seat);
            cluster.stage(seat);
        }
        for seat in SEATS {
            cluster.start_worker(seat);
        }
        cluster.settle();
        cluster
    }

    pub fn start_node(&mut self, seat: &'static str) {
        let dir = self.dir.path();
        std::fs::remove_file(node::socket(dir, seat)).ok();
        let mut command = network::on(seat, &[OsStr::new("node"), dir.as_os_str(), seat.as_ref()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log(dir, seat));
        let mut child = command.spawn().unwrap();
        Lines::of(&mut child).next("a node plugin serves");
        until_listening(&node::socket(dir, seat));
        self.nodes.insert(seat, child);
    }

    pub fn kill_node(&mut self, seat: &str) {
        let mut child = self.nodes.remove(seat).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn signal(&self, seat: &str, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.nodes[seat]);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub fn stage(&self, seat: &str) {
        let (dir, mode) = (self.dir.path(), Mode::MultiNodeMultiWriter);
        let request = NodeStageVolumeRequest {
            volume_capability: Some(capability(mode)),
            ..stage(&self.volume, &node::staging(dir, seat))
        };
        self.runtime.block_on(async {
            let mut node = NodeClient::new(connect(&node::socket(dir, seat)).await);
            node.node_stage_volume(request).await.unwrap();
        });
    }

    pub fn unstage(&self, seat: &str) {
        let dir = self.dir.path();
        let request = NodeUnstageVolumeRequest {
            volume_id: self.volume.clone(),
            staging_target_path: text(&node::staging(dir, seat)),
        };
        self.runtime.block_on(async {
            let mut node = NodeClient::new(connect(&node::socket(dir, seat)).await);
            node.node_unstage_volume(request).await.unwrap();
        });
        std::fs::remove_file(node::mounted(dir, seat)).unwrap();
    }

    /// A program on a node that uses the volume: its endpoint and root are arguments.
    fn client(&self, seat: &str, kind: &str, more: &[&str]) -> Child {
        let dir = self.dir.path();
        let mounted = std::fs::read(node::mounted(dir, seat)).unwrap();
        let mounted: serde_json::Value = serde_json::from_slice(&mounted).unwrap();
        let (endpoint, root) =
            (mounted["endpoint"].as_str().unwrap(), mounted["root"].as_str().unwrap());
        let args = [&[kind, endpoint, root, seat], more].concat();
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        let mut command = network::on(seat, &args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(log(dir, &format!("{seat}-{kind}")));
        command.spawn().unwrap()
    }

    /// Pods on all nodes write at once for this time.
    ///
    /// # Errors
    /// One of them failed.
    pub fn pods(&self, secs: u64) -> Result<String, String> {
        let start = |seat| (seat, self.client(seat, "pods", &[&secs.to_string()]));
        let nodes = SEATS.map(start);
        let (mut pods, mut written, mut read, mut longest) = (0, 0, 0, 0);
        for (seat, child) in nodes {
            let out = child.wait_with_output().unwrap();
            if !out.status.success() {
                return Err(format!("the pods on {seat} ended with {}", out.status));
            }
            for line in String::from_utf8_lossy(&out.stdout).lines() {
                let numbers: Vec<u64> =
                    line.split(' ').skip(1).map(|number| number.parse().unwrap()).collect();
                let [blocks, others, millis] = numbers[..] else { panic!("{line}") };
                assert!(blocks > 0, "a pod on {seat} wrote nothing");
                (pods, written, read) = (pods + 1, written + blocks, read + others);
                longest = longest.max(millis);
            }
        }
        assert_eq!(pods, SEATS.len() * PODS_PER_NODE);
        assert!(read > 0, "no pod has seen a file of another");
        Ok(format!(
            "{pods} pods wrote {} MiB in {secs} s and read {read} blocks of each other; the \
             longest call took {longest} ms",
            written / 16
        ))
    }

    fn start_worker(&mut self, seat: &'static str) {
        let mut child = self.client(seat, "worker", &[]);
        let Lines(lines) = Lines::of(&mut child);
        let (calls, names, (tell, rest)) =
            (self.calls.clone(), self.names.clone(), mpsc::channel());
        std::thread::spawn(move || {
            for line in lines {
                if let Some(call) = Call::parse(seat, &line) {
                    calls.lock().unwrap().push(call);
                } else if let Some(name) = line.strip_prefix("made ") {
                    names.lock().unwrap().insert(name.to_owned());
                } else if tell.send(line).is_err() {
                    return;
                }
            }
        });
        self.workers.insert(seat, Worker { child, rest });
    }

    /// The node that owns the volume, as the record names it.
    pub fn owner(&self) -> &'static str {
        let volume: VolumeHandle = self.volume.parse().unwrap();
        let found = self.runtime.block_on(self.catalog.dataset_by_id(volume.dataset)).unwrap();
        let owner = found.unwrap().record.owner.expect("somebody owns it").node;
        SEATS.into_iter().find(|seat| *seat == owner).expect("one of the nodes owns it")
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// The opening that acknowledged the last write.
    pub fn opening(&self) -> String {
        let calls = self.calls.lock().unwrap();
        let last =
            calls.iter().filter(|call| call.opening().is_some()).max_by_key(|call| call.ended);
        last.and_then(Call::opening).expect("something was written").to_owned()
    }

    fn until<T>(&mut self, awaited: &str, mut look: impl FnMut(&[Call]) -> Option<T>) -> T {
        let since = Instant::now();
        loop {
            if let Some(found) = look(&self.calls.lock().unwrap()) {
                return found;
            }
            for (seat, worker) in &mut self.workers {
                let ended = worker.child.try_wait().unwrap();
                assert!(ended.is_none(), "the worker on {seat} has failed: {ended:?}");
            }
            assert!(since.elapsed() < BOUND, "not within {BOUND:?}: {awaited}");
            std::thread::sleep(POLL);
        }
    }

    /// Waits until each of these has written from now on, under whichever owner.
    pub fn progress(&mut self, seats: &[&'static str]) {
        let since = now();
        for seat in seats {
            let awaited = format!("the worker on {seat} goes on");
            self.until(&awaited, |calls| {
                let is_new = |call: &&Call| {
                    call.seat == *seat && call.begun > since && call.opening().is_some()
                };
                (calls.iter().rev().filter(is_new).count() >= SOME).then_some(())
            });
        }
    }

    /// Waits until another opening than this acknowledges a write, and returns when the first did
    /// so after `since`.
    pub fn next_opening(&mut self, before: &str, since: u64) -> u64 {
        self.until("another node takes the volume over", |calls| {
            let is_next = |call: &&Call| {
                call.ended > since && call.opening().is_some_and(|opening| opening != before)
            };
            calls.iter().filter(is_next).map(|call| call.ended).min()
        })
    }

    /// Waits until every worker goes on, under one owner.
    pub fn settle(&mut self) {
        self.progress(&SEATS);
        let since = now();
        self.progress(&SEATS);
        let calls = self.calls();
        let openings: BTreeSet<&str> =
            calls.iter().filter(|call| call.begun > since).filter_map(Call::opening).collect();
        assert_eq!(openings.len(), 1, "several openings answer: {openings:?}");
    }

    /// Notes that a node's calls may have waited since then, until now.
    pub fn isolated(&mut self, seat: &'static str, from: u64) {
        self.isolations.push(Isolation { seat, from, until: now() });
    }

    /// The longest of the calls that ended since then on nodes that were not isolated.
    ///
    /// # Errors
    /// A call took longer than [`BOUND`], counted from the end of its node's isolation.
    pub fn longest(&self, since: u64) -> Result<Duration, String> {
        let mut longest = 0;
        for call in self.calls().iter().filter(|call| call.ended > since) {
            let waits = self.isolations.iter().filter(|isolation| {
                isolation.seat == call.seat
                    && isolation.from < call.ended
                    && call.begun < isolation.until
            });
            let excused = waits.map(|isolation| isolation.until.min(call.ended)).max();
            let took = call.ended - excused.unwrap_or(call.begun);
            if Duration::from_nanos(took) > BOUND {
                return Err(format!("a call took {} ms: {call:?}", took / 1_000_000));
            }
            if excused.is_none() {
                longest = longest.max(took);
            }
        }
        Ok(Duration::from_nanos(longest))
    }

    /// Stops the workers. What each finds, and what must be there.
    pub fn stop_workers(&mut self) -> (Vec<Report>, Report) {
        for worker in self.workers.values_mut() {
            worker.tell();
        }
        for worker in self.workers.values() {
            assert_eq!(worker.next(), "stopped");
        }
        let mut reports = Vec::new();
        for worker in self.workers.values_mut() {
            worker.tell();
            reports.push(report(worker));
        }
        let mut expected =
            Report { names: self.names.lock().unwrap().clone(), ..Report::default() };
        for call in self.calls() {
            if let crate::history::What::Wrote { value, .. } = call.what {
                expected.registers.insert(call.seat.to_owned(), value);
            }
        }
        (reports, expected)
    }

    /// Unstages the volume everywhere and checks it.
    pub fn check(&self) -> Result<(), String> {
        SEATS.iter().for_each(|seat| self.unstage(seat));
        let config = node::config(self.dir.path(), "controller");
        let out = run(&self.program, &["check", "--config", &text(&config), "--json"]);
        let checked: serde_json::Value = serde_json::from_str(&out).unwrap();
        let is_clean = |dataset: &serde_json::Value| dataset["clean"] == true;
        let all = checked.as_array().unwrap();
        if all.is_empty() || !all.iter().all(is_clean) {
            return Err(format!("check: {checked}"));
        }
        Ok(())
    }

    /// Requests that the store has answered.
    pub fn requests(&self) -> usize {
        self.store.log().len()
    }

    /// The ends of all logs.
    pub fn logs(&self) -> String {
        let mut names: Vec<String> = SEATS.iter().map(|seat| (*seat).to_owned()).collect();
        for kind in ["worker", "pods"] {
            names.extend(SEATS.iter().map(|seat| format!("{seat}-{kind}")));
        }
        names.push("controller".to_owned());
        let mut all = String::new();
        for name in names {
            let log = std::fs::read_to_string(self.dir.path().join(format!("{name}.log")));
            let log = log.unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(60)..].join("\n     ");
            all += &format!("     -- {name}\n     {end}\n");
        }
        all
    }
}

fn report(worker: &Worker) -> Report {
    let mut report = Report::default();
    loop {
        let line = worker.next();
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["register", seat, value] => {
                report.registers.insert(seat.to_owned(), value.parse().unwrap());
            }
            ["listed", name] => assert!(report.names.insert(name.to_owned()), "{name} twice"),
            ["end"] => return report,
            _ => panic!("{line}"),
        }
    }
}

fn write_configs(dir: &Path, store: &S3Server) {
    let options: Vec<String> =
        store.options().iter().map(|(name, value)| format!("{name}: \"{value}\"")).collect();
    let credentials = options.join(", ");
    let pool = format!(
        "pools: {{ default: {{ url: \"s3://test/pool\", credentials: {{ {credentials} }} }} }}\n\
         lease: {LEASE}s\n"
    );
    std::fs::write(node::config(dir, "controller"), &pool).unwrap();
    for seat in SEATS {
        let channel = format!("channel: {{ listen: '{}:7000' }}\n", network::peer_address(seat));
        std::fs::write(node::config(dir, seat), pool.clone() + &channel).unwrap();
    }
}

/// A process is ready a moment before its socket is there.
fn until_listening(socket: &Path) {
    let since = Instant::now();
    while let Err(error) = std::os::unix::net::UnixStream::connect(socket) {
        assert!(since.elapsed() < START, "{}: {error}", socket.display());
        std::thread::sleep(POLL);
    }
}

async fn create_volume(controller: &Path) -> String {
    let request = CreateVolumeRequest {
        volume_capabilities: vec![capability(Mode::MultiNodeMultiWriter)],
        ..new_volume("shared")
    };
    let made = ControllerClient::new(connect(controller).await).create_volume(request).await;
    made.unwrap().into_inner().volume.unwrap().volume_id
}

fn log(dir: &Path, name: &str) -> File {
    File::options().create(true).append(true).open(dir.join(format!("{name}.log"))).unwrap()
}

fn run(program: &Path, args: &[&str]) -> String {
    let out = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}
