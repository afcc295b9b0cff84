//! Steps with a limit: nothing in this tier may hang, and what fails says what was awaited.

use parking_lot::Mutex;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub type Outcome = Result<String, String>;

/// The step that the running case waits for.
static AWAITED: Mutex<String> = Mutex::new(String::new());
/// Process groups that a case which hangs leaves behind.
static STARTED: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// `fails`: bash does not stop at a failing `! command`, so that nothing would be tested by one.
/// `figure`: one of df's.
/// `uncached`: what is read afterwards comes from the server, not from the client's cache.
const PRELUDE: &str = r#"
fails() { if "$@" 2>/dev/null; then echo "must fail, and does not: $*" >&2; exit 1; fi; }
equal() { [ "$1" = "$2" ] || { echo "must be equal: $1 and $2 ($3)" >&2; exit 1; }; }
figure() { df -B1 --output="$1" . | tail -n 1 | tr -d ' '; }
uncached() { sync -f .; echo 3 > /proc/sys/vm/drop_caches; }
"#;
/// Scripts give seconds that suit an emulated processor with the machine to itself; it may have to
/// share.
const SHARED: u32 = 4;
/// A killed process is gone in no time, unless the kernel does not let it go.
const KILL_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// How much longer the cases that repeat something are than usual (`ZEROFS_TEST_SIZE`).
pub fn size() -> usize {
    std::env::var("ZEROFS_TEST_SIZE").ok().and_then(|size| size.parse().ok()).unwrap_or(1)
}

pub fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Notes what is awaited from now on.
pub fn awaiting(what: impl Into<String>) {
    *AWAITED.lock() = what.into();
}

pub fn awaited() -> String {
    AWAITED.lock().clone()
}

/// A process of this tier, to be killed if its case hangs.
pub fn note_process(child: &Child) {
    STARTED.lock().push(child.id());
}

/// Kills what a case has left running: each process by its id.
pub fn kill_left() {
    for id in STARTED.lock().drain(..) {
        if let Some(pid) = i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Repeats until it says yes.
pub fn until(
    what: &str,
    limit: Duration,
    mut done: impl FnMut() -> Result<bool, String>,
) -> Result<Duration, String> {
    awaiting(what);
    let started = Instant::now();
    while !done()? {
        if started.elapsed() > limit {
            return Err(format!("awaited for {limit:?} in vain: {what}"));
        }
        std::thread::sleep(POLL);
    }
    Ok(started.elapsed())
}

/// A shell script that runs, in a process group of its own.
pub struct Script {
    child: Child,
    what: String,
    files: PathBuf,
}

impl Script {
    /// Starts a script in a folder. Its output goes to files: a pipe that is full would be one more
    /// thing to wait for. The shell changes to the folder itself: if the server does not answer, it
    /// hangs there and not here.
    pub fn start(dir: &Path, script: &str) -> Result<Self, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let files =
            std::env::temp_dir().join(format!("step-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        let file = |kind: &str| File::create(files.with_extension(kind)).map_err(text);
        let trace = files.with_extension("trace");
        let body = format!(
            "exec 19>{}; BASH_XTRACEFD=19; cd {}; {PRELUDE}\nset -x\n{script}",
            trace.display(),
            dir.display()
        );
        let child = Command::new("bash")
            .args(["-euo", "pipefail", "-c", &body])
            .current_dir("/")
            .env("TMPDIR", std::env::temp_dir())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file("out")?)
            .stderr(file("err")?)
            .spawn()
            .map_err(|e| format!("bash: {e}"))?;
        note_process(&child);
        let first = script.trim().lines().next().unwrap_or_default();
        Ok(Self { child, what: first.chars().take(100).collect(), files })
    }

    pub fn ended(&mut self) -> Result<bool, String> {
        Ok(self.child.try_wait().map_err(text)?.is_some())
    }

    /// Its output, if it exits with 0 in time.
    pub fn wait(mut self, secs: u64) -> Outcome {
        awaiting(format!("script: {}", self.what));
        let (started, limit) = (Instant::now(), Duration::from_secs(secs) * SHARED);
        while started.elapsed() < limit {
            if let Some(status) = self.child.try_wait().map_err(text)? {
                return if status.success() {
                    Ok(self.read("out"))
                } else {
                    Err(format!("{status}{}", self.tail()))
                };
            }
            std::thread::sleep(POLL);
        }
        let ended = self.kill();
        Err(format!("not done after {limit:?}, {ended}{}", self.tail()))
    }

    fn read(&self, kind: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.files.with_extension(kind)).unwrap_or_default())
            .trim()
            .to_owned()
    }

    /// The last commands, and what was printed.
    fn tail(&self) -> String {
        let part = |kind: &str, lines: usize| {
            let all = self.read(kind);
            let lines: Vec<&str> = all.lines().rev().take(lines).collect();
            let cut = |line: &&str| format!("\n    {}", line.chars().take(300).collect::<String>());
            lines.iter().rev().map(cut).collect::<String>()
        };
        format!("\n  commands:{}\n  output:{}{}", part("trace", 6), part("out", 6), part("err", 12))
    }

    fn kill(&mut self) -> &'static str {
        if let Some(group) =
            i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let started = Instant::now();
        while started.elapsed() < KILL_LIMIT {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return "killed";
            }
            std::thread::sleep(POLL);
        }
        "and cannot be killed: it hangs in the kernel"
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
        for kind in ["out", "err", "trace"] {
            fs::remove_file(self.files.with_extension(kind)).ok();
        }
    }
}

/// Runs a shell script in a folder; fails with its last commands and output unless it exits with 0
/// in time.
pub fn sh(dir: &Path, secs: u64, script: &str) -> Outcome {
    Script::start(dir, script)?.wait(secs)
}
