//! The CSI edge: kubelet and the sidecars speak gRPC to it over a unix socket.

pub mod proto;
