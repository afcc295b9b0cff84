//! Datasets, snapshots and clones through the use cases: any order of creation and deletion, a
//! failure at every durable step, and requests that do not depend on how much a volume holds.

// As the library: an open volume is a deep type.
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod api_server;
mod channel;
mod claims;
mod closing;
mod cluster;
mod cold_reads;
mod collecting;
mod copied_state_dir;
mod deduplication;
mod detach;
mod diff;
mod groups;
mod handover;
mod leases;
mod leftovers;
mod mailbox;
mod many;
mod memory;
mod mount_group;
mod node_release;
mod orders;
mod policies;
mod read_only;
mod requests;
mod restore;
mod restore_interrupted;
mod restored_trees;
mod rewriting;
mod round_trips;
mod scrubbing;
mod snapdir;
mod space;
mod stamps;
mod steps;
#[path = "../support/mod.rs"]
mod support;
mod takeover;
mod two_owners;
mod unfinished;
mod writable;

use support::clock::Driven;
use support::files::{data, noise};
use support::run::{paused, run, size};
use support::world::World;
