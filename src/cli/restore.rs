//! `dataset restore`.

use super::args::RestoreArgs;
use super::exit::Wrong;
use crate::types::Class;

pub async fn run(_args: RestoreArgs) -> anyhow::Result<()> {
    Err(Wrong::new(Class::Unsupported, "not built yet"))
}
