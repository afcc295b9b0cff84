//! ZeroFS CSI: Kubernetes volumes that are POSIX file systems living entirely in an object store.
//!
//! The floors, top to bottom; imports point down only and siblings on one floor never meet
//! (`tests/architecture.rs`):
//!
//! ```text
//! main → cli → app   load               composition; the NFS load generator
//! exports                               which datasets are exported, opened and closed
//! nfs   csi                             edges: translate, never decide
//! control                               use cases the edges share
//! volume            mount               one open file system and its life; the kernel edge
//! fs      catalog                       the file system; datasets and snapshots
//! chunk                                 content-addressed chunks in packs
//! bucket  crypto                        the object store; keys and sealing
//! types   telemetry                     vocabulary
//! ```

pub mod app;
pub mod bucket;
pub mod catalog;
pub mod chunk;
pub mod cli;
pub mod control;
pub mod crypto;
pub mod csi;
pub mod exports;
pub mod fs;
pub mod load;
pub mod mount;
pub mod nfs;
pub mod telemetry;
pub mod types;
pub mod volume;
