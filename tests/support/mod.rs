//! Parts shared by several test programs. Include them with `#[path = "../support/mod.rs"] mod
//! support;`.
#![allow(dead_code, reason = "no test uses all of it")]

pub mod fault;
pub mod s3;
