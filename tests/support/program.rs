//! The program as a process.

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// Longer than anything takes on a machine with other work.
pub const LIMIT: Duration = Duration::from_secs(90);

/// The program, with nothing from the environment of the test.
pub fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zerofs-csi"));
    command.args(args).stdin(Stdio::null());
    for name in ["ZEROFS_PASSPHRASE", "ZEROFS_SERVER", "ZEROFS_TOKEN", "ZEROFS_TOKEN_FILE"] {
        command.env_remove(name);
    }
    command
}

/// A command's exit status and output.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

pub fn answer(command: &mut Command) -> Answer {
    command.output().unwrap().into()
}

/// The standard output of a command that must succeed.
pub fn ok(command: &mut Command) -> String {
    let answer = answer(command);
    assert_eq!(answer.code, 0, "{command:?}: {answer:?}");
    answer.out
}

/// As [`ok`], of a command that prints JSON when it is asked for it.
pub fn json(command: &mut Command) -> serde_json::Value {
    let out = ok(command.arg("--json"));
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{command:?}: {error}: {out}"))
}

/// Every file below a folder, if it is there.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let below = |path: PathBuf| if path.is_dir() { files_below(&path) } else { vec![path] };
    entries.flat_map(|entry| below(entry.unwrap().path())).collect()
}

/// The address that a line has after a word.
pub fn address(line: &str, before: &str) -> SocketAddr {
    let (_, at) = line.split_once(before).unwrap_or_else(|| panic!("{line:?}"));
    at.split_whitespace().next().unwrap().parse().unwrap()
}

/// A server that ends with the test.
pub struct Server {
    child: Mutex<Child>,
    lines: Mutex<Receiver<String>>,
}

impl Server {
    /// Starts it. Nobody waits until it serves.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            // Until the process ends, or nobody listens.
            let _ = out.lines().map_while(Result::ok).try_for_each(|line| tell.send(line));
        });
        Self { child: Mutex::new(child), lines: Mutex::new(lines) }
    }

    /// Waits for the next line that it prints.
    pub fn line(&self) -> String {
        self.lines.lock().recv_timeout(LIMIT).expect("the server prints a line")
    }

    /// Waits until it says that it serves; answers where.
    pub fn ready(&self) -> SocketAddr {
        address(&self.line(), "nfs ")
    }

    /// Waits until it says that it serves; answers where its administration interface is.
    pub fn admin_ready(&self) -> SocketAddr {
        address(&self.line(), "admin http://")
    }

    /// True while the process has not announced that it serves.
    pub fn is_waiting(&self) -> bool {
        self.lines.lock().try_recv().is_err() && self.runs()
    }

    pub fn runs(&self) -> bool {
        self.child.lock().try_wait().unwrap().is_none()
    }

    pub fn id(&self) -> u32 {
        self.child.lock().id()
    }

    /// Waits for its end.
    pub fn ends(&self) -> ExitStatus {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.lock().try_wait().unwrap() {
                return status;
            }
            assert!(since.elapsed() < LIMIT, "the process does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child.lock()), signal).unwrap();
    }

    /// Stops all threads of the process, until it is told to continue.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.lock().id());
        let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            stat.rsplit(") ").next().unwrap().starts_with('T')
        };
        while !std::fs::read_dir(&tasks).unwrap().all(is_stopped) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops it in order.
    pub fn stop(&self) {
        self.signal(Signal::TERM);
        let status = self.ends();
        assert!(status.success(), "{status}");
    }

    /// Ends it at once.
    pub fn kill(&self) {
        self.child.lock().kill().unwrap();
        self.child.lock().wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.lock().kill().ok();
        self.child.lock().wait().ok();
    }
}
