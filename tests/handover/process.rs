//! `serve` as a process, on a pool and a state folder that several share.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// Longer than anything takes on a machine with other work.
pub const LIMIT: Duration = Duration::from_secs(90);

pub struct Room {
    dir: tempfile::TempDir,
}

impl Room {
    /// Without a pool.
    pub fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// With a dataset called `web`.
    pub fn new() -> Self {
        let room = Self::empty();
        std::fs::create_dir(room.dir.path().join("pool")).unwrap();
        room.ok(&["pool", "create"]);
        room.ok(&["dataset", "create", "web", "--size", "1Gi"]);
        room
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zerofs-csi"));
        let pool = format!("file://{}", self.dir.path().join("pool").display());
        command
            .args(args)
            .args(["--pool", &pool])
            .stdin(Stdio::null())
            .env_remove("ZEROFS_PASSPHRASE");
        command
    }

    pub fn ok(&self, args: &[&str]) -> String {
        output(self.command(args))
    }

    /// On the pool of a configuration.
    pub fn ok_with(config: &str, args: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zerofs-csi"));
        command.args(args).args(["--config", config]).stdin(Stdio::null());
        output(command)
    }

    /// Starts a server; see [`Server::ready`].
    pub fn start(&self, more: &[&str]) -> Server {
        let pool = format!("file://{}", self.dir.path().join("pool").display());
        self.start_on(&[&["--pool", &pool], more].concat())
    }

    /// On another pool.
    pub fn start_on(&self, args: &[&str]) -> Server {
        self.start_in("state", args)
    }

    /// With a state folder of its own: another node.
    pub fn start_in(&self, state: &str, args: &[&str]) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zerofs-csi"));
        command.args([
            "serve",
            "--state-dir",
            &self.path(state).display().to_string(),
            "--nfs-listen",
            "127.0.0.1:0",
        ]);
        command.args(args).stdin(Stdio::null()).env_remove("ZEROFS_PASSPHRASE");
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            // Until the process ends, or nobody listens.
            let _ = out.lines().map_while(Result::ok).try_for_each(|line| tell.send(line));
        });
        Server { child, lines }
    }
}

fn output(mut command: Command) -> String {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

pub struct Server {
    child: Child,
    lines: Receiver<String>,
}

impl Server {
    /// Waits until it serves; answers where.
    pub fn ready(&self) -> SocketAddr {
        self.ready_at("nfs ")
    }

    /// Waits until it serves; answers where its administration interface is.
    pub fn admin_ready(&self) -> SocketAddr {
        self.ready_at("admin http://")
    }

    fn ready_at(&self, before: &str) -> SocketAddr {
        let line = self.lines.recv_timeout(LIMIT).expect("the server becomes ready");
        let (_, at) = line.split_once(before).unwrap_or_else(|| panic!("{line:?}"));
        at.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// True while the process has not announced that it serves.
    pub fn is_waiting(&mut self) -> bool {
        self.lines.try_recv().is_err() && self.runs()
    }

    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn ends(mut self) -> ExitStatus {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(since.elapsed() < LIMIT, "the process does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Stops all threads of the process, until it is told to continue.
    pub fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            stat.rsplit(") ").next().unwrap().starts_with('T')
        };
        while !std::fs::read_dir(&tasks).unwrap().all(is_stopped) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn stop(self) {
        self.signal(rustix::process::Signal::TERM);
        assert!(self.ends().success());
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
