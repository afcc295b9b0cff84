//! `bench`.

use super::args::BenchArgs;
use super::exit::Wrong;
use crate::types::Class;

pub fn run(_args: BenchArgs) -> anyhow::Result<()> {
    Err(Wrong::new(Class::Unsupported, "not built yet"))
}
