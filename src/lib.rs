//! ZeroFS CSI: Kubernetes volumes that are POSIX file systems living entirely in an object store.
//!
//! The floors, top to bottom; imports point down only and siblings on one floor never meet
//! (`tests/architecture.rs`):
//!
//! ```text
//! main → cli → app   load               composition; the NFS load generator
//! exports           relay               which datasets are exported; relays between nodes
//! nfs   csi   admin                     edges: translate, never decide
//! rpc                                   what the gRPC edges share
//! control                               use cases the edges share
//! volume            mount               one open file system and its life; the kernel edge
//! fs      catalog                       the file system; datasets and snapshots
//! chunk                                 content-addressed chunks in packs
//! bucket  crypto                        the object store; keys and sealing
//! types   telemetry                     vocabulary
//! ```
//!
//! A program looks into a pool without a server:
//!
//! ```no_run
//! use futures::TryStreamExt;
//!
//! # async fn example() -> anyhow::Result<()> {
//! let browser = zerofs_csi::app::browse("s3://bucket/prefix").await?;
//! let web = browser.dataset("web").await?;
//! for snapshot in browser.snapshots(Some(&web)).await? {
//!     println!("{} {}", snapshot.created.rfc3339(), snapshot.name);
//! }
//! let monday = browser.open(&browser.root("web", Some("monday")).await?).await?;
//! let file = monday.stat(b"/etc/app.conf").await?;
//! let content = monday.read(&file, 0..file.size).try_collect::<Vec<_>>().await?.concat();
//! # Ok(())
//! # }
//! ```
//!
//! Through a running server, with its rights and for changes: [`admin::Client`].

// Futures of the database within those of a call nest deeper than the default allows.
#![recursion_limit = "256"]

pub mod admin;
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
pub mod relay;
pub mod rpc;
pub mod telemetry;
pub mod types;
pub mod volume;
