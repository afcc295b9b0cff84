//! The kernel edge: mounting and unmounting, with time limits.
//!
//! Nouns: a **target** is the folder mounted on; the **device** is the free text that names the
//! volume in mountinfo; a **bind** shows an existing mount at a second target.
//!
//! Invariants: no call blocks a thread of the runtime, and every call ends within its limit,
//! whatever a server or a disk does ([`limited`]); a target that is a mount point is never
//! accessed, because a dead server would hang the access; only allowed mount options reach the
//! kernel ([`options`]).
//!
//! A crash leaves mounts as they are: the kernel keeps them, and mountinfo lists them. A mount(2)
//! abandoned after its limit is unmounted again if it succeeds later.
//!
//! Not here: the targets of volumes, and their serving (the node's use cases in `control`).

mod fake;
mod kernel;
mod limited;
mod mounter;
mod mountinfo;
mod options;
mod ports;
mod strays;
mod target;

pub use fake::FakeMounter;
pub use kernel::KernelMounter;
pub use mounter::{BindMount, MountError, MountPoint, Mounter, NfsMount};
pub use options::{check as check_options, connections, context, reads_only};
pub use ports::reserved as reserved_ports;
pub use strays::remove_or_move_away;
pub use target::{create as create_target, remove as remove_target, resolve as resolve_target};
