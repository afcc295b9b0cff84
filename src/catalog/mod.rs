//! What a pool holds: its own record, datasets and snapshots, each a chain of versions made by put-if-absent (R1).

mod record;

pub use record::*;
