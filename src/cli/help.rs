//! `completions` and `man`: made from the grammar itself.

use super::args::{Cli, CompletionsArgs, ManArgs};
use super::report::print_bytes;
use anyhow::Context;
use clap::CommandFactory;

const NAME: &str = "zerofs-csi";

pub fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut script);
    print_bytes(&script)
}

pub fn man(args: &ManArgs) -> anyhow::Result<()> {
    clap_mangen::generate_to(Cli::command(), &args.dir)
        .with_context(|| format!("writing manual pages to {}", args.dir.display()))
}
