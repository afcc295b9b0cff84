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
#[path = "../support/s3/mod.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod s3;
mod serving;
#[path = "../support/setup.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod setup;
mod stopping;
mod verbs;

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A pool in a folder, and the binary under test.
pub struct Cli {
    pub room: tempfile::TempDir,
}

/// A command's exit status and output.
#[derive(Debug)]
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
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
        let mut command = Command::new(env!("CARGO_BIN_EXE_zerofs-csi"));
        command
            .args(args)
            .args(["--pool", &self.url()])
            .stdin(Stdio::null())
            .env_remove("ZEROFS_PASSPHRASE");
        command
    }

    pub fn run(&self, args: &[&str]) -> Answer {
        answer(self.command(args).output().unwrap())
    }

    /// The standard output of a command that must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        let answer = self.run(args);
        assert_eq!(answer.code, 0, "{args:?}: {answer:?}");
        answer.out
    }

    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let out = self.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}: {out}"))
    }
}

pub fn answer(output: Output) -> Answer {
    Answer {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}
