//! The CSI services as kubelet and the sidecars call them.

mod bad_input;
mod driver;
mod node;
mod registration;
mod restart;
mod snapshots;
mod volumes;
