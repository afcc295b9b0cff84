//! The code that `build.rs` generates from the files under `proto/`.

#![allow(clippy::all, clippy::pedantic, rust_2018_idioms, unused_qualifications)]

/// The Container Storage Interface, version 1.12.
pub mod v1 {
    tonic::include_proto!("csi.v1");
}

/// Kubelet's plugin registration, version 1.
pub mod registration {
    tonic::include_proto!("pluginregistration");
}
