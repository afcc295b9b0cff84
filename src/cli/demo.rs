//! `demo`.

use super::args::DemoArgs;
use super::exit::Wrong;
use crate::types::Class;

pub fn run(_args: DemoArgs) -> anyhow::Result<()> {
    Err(Wrong::new(Class::Unsupported, "not built yet"))
}
