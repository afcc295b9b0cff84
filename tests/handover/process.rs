//! `serve` as a process, on a pool and a state folder that several share.

use crate::support::program::{Server, ok, program};
use std::path::PathBuf;

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

    fn pool(&self) -> String {
        format!("file://{}", self.path("pool").display())
    }

    pub fn ok(&self, args: &[&str]) -> String {
        ok(program(args).args(["--pool", &self.pool()]))
    }

    /// On the pool of a configuration.
    pub fn ok_with(config: &str, args: &[&str]) -> String {
        ok(program(args).args(["--config", config]))
    }

    /// Starts a server; see [`Server::ready`].
    pub fn start(&self, more: &[&str]) -> Server {
        self.start_on(&[&["--pool", &self.pool()], more].concat())
    }

    /// On another pool.
    pub fn start_on(&self, args: &[&str]) -> Server {
        self.start_in("state", args)
    }

    /// With a state folder of its own: another node.
    pub fn start_in(&self, state: &str, args: &[&str]) -> Server {
        let mut command = program(&["serve", "--nfs-listen", "127.0.0.1:0", "--state-dir"]);
        Server::spawn(command.arg(self.path(state)).args(args))
    }
}
