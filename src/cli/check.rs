//! `check`.

use super::args::CheckArgs;
use super::exit::Wrong;
use crate::types::Class;

pub fn run(_args: CheckArgs) -> anyhow::Result<()> {
    Err(Wrong::new(Class::Unsupported, "not built yet"))
}
