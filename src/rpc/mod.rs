//! Parts shared by the gRPC edges: classes of errors as codes, and unix sockets that survive
//! a crash of their process.

mod socket;
mod status;

pub use socket::{Living, Name, bind, check_dir};
pub use status::{class, code, status};
