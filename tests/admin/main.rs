//! The command line, as scripts call it: exit codes, JSON, errors that name the object and the next
//! step.

// As the library: an open volume is a deep type.
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod checking;
mod commands;
mod groups;
mod naming;
mod pipes;
mod policies;
mod properties;
mod refusing;
mod restoring;
mod restoring_options;
mod serving;
mod stopping;
#[path = "../support/mod.rs"]
mod support;
mod verbs;

use std::path::Path;
use std::process::Command;
use support::program::{Answer, Server, answer, json, ok, program};

/// A pool in a folder, and the binary under test.
pub struct Cli {
    pub room: tempfile::TempDir,
}

impl Cli {
    pub fn empty() -> Self {
        let room = tempfile::tempdir().unwrap();
        std::fs::create_dir(room.path().join("pool")).unwrap();
        Self { room }
    }

    pub fn with_pool() -> Self {
        let cli = Self::empty();
        cli.ok(&["pool", "create"]);
        cli
    }

    pub fn path(&self) -> &Path {
        self.room.path()
    }

    pub fn url(&self) -> String {
        format!("file://{}", self.room.path().join("pool").display())
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = program(args);
        command.args(["--pool", &self.url()]);
        command
    }

    pub fn run(&self, args: &[&str]) -> Answer {
        answer(&mut self.command(args))
    }

    /// The standard output of a command that must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        ok(&mut self.command(args))
    }

    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        json(&mut self.command(args))
    }

    fn serve_command(&self, more: &[&str]) -> Command {
        let mut command = self.command(&["serve", "--nfs-listen", "127.0.0.1:0"]);
        command.arg("--state-dir").arg(self.path().join("state")).args(more);
        command
    }

    pub fn serve(&self, more: &[&str]) -> Serving {
        Serving::spawn(&mut self.serve_command(more))
    }

    /// After what a shell does to its own limits.
    pub fn serve_within(&self, shell: &str) -> Serving {
        let command = self.serve_command(&[]);
        let mut within = Command::new("sh");
        within.arg("-c").arg(format!("{shell}; exec \"$0\" \"$@\""));
        Serving::spawn(within.arg(command.get_program()).args(command.get_args()))
    }
}

/// A server that serves.
pub struct Serving {
    pub server: Server,
    pub nfs: std::net::SocketAddr,
}

impl Serving {
    fn spawn(command: &mut Command) -> Self {
        let server = Server::spawn(command);
        Self { nfs: server.ready(), server }
    }

    pub fn stop(self) {
        self.server.stop();
    }
}
