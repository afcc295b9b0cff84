//! The code that `build.rs` generates from `proto/zerofs/admin/v1`.

#![allow(clippy::all, clippy::pedantic, rust_2018_idioms, unused_qualifications)]

tonic::include_proto!("zerofs.admin.v1");

/// The interface as clients may ask for it, by reflection.
pub const DESCRIBED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/admin.bin"));
