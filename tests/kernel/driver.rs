//! The driver's processes, on a pool in a folder of their own.

use super::step::{awaiting, note_process, text, until};
use std::fs;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Uri};

/// A process opens its pool and listens; on an emulated processor that takes a while.
const START_LIMIT: Duration = Duration::from_secs(90);
/// Calls under way have 20 s, and the flush comes on top.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// Longer than a node plugin needs to be ready.
const BROKEN: Duration = Duration::from_secs(6);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Controller,
    Node,
    /// The plugin of another node, which shares the machine.
    OtherNode,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Node => "node",
            Self::OtherNode => "other",
        }
    }

    fn command(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Node | Self::OtherNode => "node",
        }
    }
}

/// A controller and a node plugin, or two.
pub struct Driver {
    pub root: PathBuf,
    controller: Option<Child>,
    node: Option<Child>,
    other_node: Option<Child>,
    /// The number of node plugins started: each has a health socket of its own.
    nodes: usize,
    pub(super) runtime: Runtime,
}

impl Driver {
    pub fn start(name: &str) -> Result<Self, String> {
        Self::configured(name, "")
    }

    /// With more lines of configuration.
    pub fn configured(name: &str, more: &str) -> Result<Self, String> {
        let root = std::env::temp_dir().join(format!("zerofs-{name}"));
        fs::create_dir_all(root.join("pool")).map_err(text)?;
        let pool = format!("file://{}", root.join("pool").display());
        let pools = format!("pools:\n  default:\n    url: {pool}\n");
        fs::write(root.join("config.yaml"), format!("{pools}{more}")).map_err(text)?;
        awaiting("pool create");
        let create = Command::new(binary()?)
            .args(["pool", "create", "--pool", &pool])
            .output()
            .map_err(text)?;
        if !create.status.success() {
            return Err(format!("pool create: {}", String::from_utf8_lossy(&create.stderr)));
        }
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(text)?;
        let (controller, node, other_node) = (None, None, None);
        let mut driver = Self { root, controller, node, other_node, nodes: 0, runtime };
        driver.controller = Some(driver.spawn(Role::Controller, "config.yaml")?);
        driver.start_node()?;
        driver.wait_for(Role::Controller)?;
        Ok(driver)
    }

    pub fn start_node(&mut self) -> Result<(), String> {
        self.node = Some(self.spawn(Role::Node, "config.yaml")?);
        self.wait_for_node()?;
        // Without a registration with kubelet it is ready a moment before its socket is there.
        self.wait_for(Role::Node)
    }

    /// Starts the plugin of another node, with its own lines of configuration.
    pub fn start_other_node(&mut self, more: &str) -> Result<(), String> {
        let pool = self.root.join("pool").display().to_string();
        let config = format!("pools:\n  default:\n    url: file://{pool}\n{more}");
        fs::write(self.root.join("other.yaml"), config).map_err(text)?;
        self.other_node = Some(self.spawn(Role::OtherNode, "other.yaml")?);
        self.wait_for_node()?;
        self.wait_for(Role::OtherNode)
    }

    /// As a DaemonSet with surge does: the new one is started, becomes ready, and then the old one
    /// is stopped.
    pub fn replace_node(&mut self) -> Result<(), String> {
        let old = self.node.take().ok_or("the node plugin does not run")?;
        self.start_node()?;
        self.terminate(Role::Node, old)
    }

    /// New processes that cannot take over: one ends by itself, one waits for ever.
    pub fn start_broken_node(&mut self) -> Result<(), String> {
        let (old, number) = (self.node.take(), self.nodes);
        for config in ["nonsense: 1\n", "pools:\n  other:\n    url: file:///no/such/folder\n"] {
            fs::write(self.root.join("broken.yaml"), config).map_err(text)?;
            let mut broken = self.spawn(Role::Node, "broken.yaml")?;
            std::thread::sleep(BROKEN);
            if self.is_ready(self.nodes)? {
                return Err("a broken node plugin says that it is ready".to_owned());
            }
            broken.kill().map_err(text)?;
            broken.wait().map_err(text)?;
        }
        (self.node, self.nodes) = (old, number);
        Ok(())
    }

    /// The new one is killed once it serves, while the old one still stands by, and goes on.
    pub fn replace_node_and_kill(&mut self) -> Result<(), String> {
        let (old, number) = (self.node.take(), self.nodes);
        self.start_node()?;
        let mut new =
            std::mem::replace(&mut self.node, old).ok_or("the node plugin does not run")?;
        new.kill().map_err(text)?;
        new.wait().map_err(text)?;
        let back = until("the readiness of the node plugin that stood by", START_LIMIT, || {
            self.is_ready(number)
        });
        back.map(drop).map_err(|error| format!("{error}: {}", self.log(Role::Node)))
    }

    /// kill -9, as the kernel's memory killer does.
    pub fn kill_node(&mut self) -> Result<(), String> {
        let mut node = self.node.take().ok_or("the node plugin does not run")?;
        node.kill().map_err(text)?;
        node.wait().map_err(text)?;
        fs::remove_file(self.socket(Role::Node)).ok();
        Ok(())
    }

    /// SIGTERM, as kubelet does when the plugin's pod is replaced; it must end cleanly.
    pub fn stop_node(&mut self) -> Result<(), String> {
        let node = self.node.take().ok_or("the node plugin does not run")?;
        self.terminate(Role::Node, node)?;
        fs::remove_file(self.socket(Role::Node)).ok();
        Ok(())
    }

    /// SIGTERM to both, which must end cleanly.
    pub fn stop(mut self) -> Result<(), String> {
        for (role, child) in [
            (Role::Node, self.node.take()),
            (Role::OtherNode, self.other_node.take()),
            (Role::Controller, self.controller.take()),
        ] {
            if let Some(child) = child {
                self.terminate(role, child)?;
            }
        }
        // Memory that a case leaves in use is missing for the next one.
        fs::remove_dir_all(&self.root)
            .map_err(|e| format!("{}: {e}: something is still mounted there", self.root.display()))
    }

    fn terminate(&self, role: Role, mut child: Child) -> Result<(), String> {
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).map_err(text)?;
        let mut code: Option<ExitStatus> = None;
        let ended =
            until(&format!("the end of the {} after SIGTERM", role.name()), STOP_LIMIT, || {
                code = child.try_wait().map_err(text)?;
                Ok(code.is_some())
            });
        if let Err(error) = ended {
            child.kill().ok();
            return Err(format!("{error}: {}", self.log(role)));
        }
        match code {
            Some(code) if code.success() => Ok(()),
            code => Err(format!("the {} ends with {code:?}: {}", role.name(), self.log(role))),
        }
    }

    fn spawn(&mut self, role: Role, config: &str) -> Result<Child, String> {
        let name = role.name();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.root.join(format!("{name}.log")))
            .map_err(text)?;
        let mut command = Command::new(binary()?);
        command.args([role.command(), "--config", &self.root.join(config).display().to_string()]);
        command.args(["--csi-endpoint", &format!("unix://{}", self.socket(role).display())]);
        if role != Role::Controller {
            self.nodes += 1;
            let (id, state) = match role {
                Role::OtherNode => ("guest-2", "state-2"),
                _ => ("guest", "state"),
            };
            let state = self.root.join(state).display().to_string();
            command.args(["--node-id", id, "--state-dir", &state]);
            command
                .args(["--health-socket", &self.health_socket(self.nodes).display().to_string()]);
        }
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(text)?)
            .stderr(log)
            .spawn()
            .map_err(text)?;
        note_process(&child);
        Ok(child)
    }

    fn wait_for(&self, role: Role) -> Result<(), String> {
        let socket = self.socket(role);
        until(&format!("the {}'s socket", role.name()), START_LIMIT, || {
            Ok(UnixStream::connect(&socket).is_ok())
        })
        .map(drop)
        .map_err(|error| format!("{error}: {}", self.log(role)))
    }

    /// The health socket of one node plugin, in the order of their start.
    fn health_socket(&self, number: usize) -> PathBuf {
        self.root.join(format!("health-{number}.sock"))
    }

    /// As the chart's probe asks it.
    fn is_ready(&self, number: usize) -> Result<bool, String> {
        let socket = self.health_socket(number).display().to_string();
        let asked = Command::new(binary()?)
            .args(["ready", "--health-socket", &socket])
            .output()
            .map_err(text)?;
        Ok(asked.status.success())
    }

    fn wait_for_node(&self) -> Result<(), String> {
        let ready = until("the node plugin's readiness", START_LIMIT, || self.is_ready(self.nodes));
        ready.map(drop).map_err(|error| format!("{error}: {}", self.log(Role::Node)))
    }

    fn socket(&self, role: Role) -> PathBuf {
        self.root.join(format!("{}.sock", role.name()))
    }

    /// The end of what a process logged.
    pub fn log(&self, role: Role) -> String {
        let log =
            fs::read_to_string(self.root.join(format!("{}.log", role.name()))).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(15).collect();
        last.iter().rev().map(|line| format!("\n    {line}")).collect()
    }

    pub(super) async fn connect(&self, role: Role) -> Result<Channel, String> {
        let socket = self.socket(role);
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move {
                tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new)
            }
        });
        Endpoint::from_static("http://socket").connect_with_connector(connector).await.map_err(text)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let children = [self.node.take(), self.other_node.take(), self.controller.take()];
        for mut child in children.into_iter().flatten() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Counts mounts at a path or below it, by mountinfo: a mount of a dead server must not be looked
/// into.
pub fn mounts_below(path: &Path) -> Result<usize, String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(text)?;
    let at = path.display().to_string();
    Ok(mounts
        .lines()
        .filter(|line| line.split(' ').nth(4).is_some_and(|target| target.starts_with(&at)))
        .count())
}

fn binary() -> Result<String, String> {
    std::env::var("ZEROFS_BIN").map_err(|_| "ZEROFS_BIN names no binary".to_owned())
}
