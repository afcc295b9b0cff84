//! The use cases that the edges share: what CSI, the command line and later APIs ask for, in terms of pools, datasets and snapshots.

mod controller;
mod error;

pub use controller::*;
pub use error::ControlError;
