//! The command line: what an operator or a script calls.
//!
//! A **report** is the output of a command, as text for people or as JSON (`--json`). The standard
//! error has progress and errors only.
//!
//! Commands on datasets open the pool directly and take its objects by compare-and-swap, like any
//! controller. None of them ever opens a dataset that another process owns. With `--server` they
//! ask a running server instead (`target`): what it answers becomes the same reports.
//!
//! Exit codes are those of the error classes (`exit`).

mod args;
mod bench;
mod browse;
mod check;
mod copy_out;
mod dataset;
mod demo;
mod diff;
mod diff_stat;
mod dry_run;
mod exit;
mod files;
mod find;
mod gc;
mod groups;
mod help;
mod history;
mod info;
mod local;
mod path;
mod policy;
mod pool;
mod properties;
mod remote;
mod report;
mod restore;
mod restore_in_place;
mod run;
mod scrub;
mod snapshots;
mod space;
mod stopped;
mod target;
mod task;
mod token;
mod tree;

use args::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;

pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { exit::USAGE } else { 0 };
            // A closed pipe is not an error.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error),
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Pool(command) => pool::run(command),
        Command::Dataset(command) => dataset::run(command),
        Command::Policy(command) => policy::run(command),
        Command::Task(command) => task::run(command),
        Command::Serve(args) => run::serve(args),
        Command::Controller(args) => run::controller(&args),
        Command::Node(args) => run::node(args),
        Command::Ready(args) => run::ask_ready(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Check(args) => check::run(args),
        Command::Space(args) => space::run(args),
        Command::Scrub(args) => scrub::run(args),
        Command::Gc(args) => gc::run(args),
        Command::Completions(args) => help::completions(&args),
        Command::Man(args) => help::man(&args),
        Command::Demo(args) => demo::run(args),
        Command::Token(command) => token::run(command),
    }
}
