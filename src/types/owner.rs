//! Who owns what.

/// `(uid_t) -1`: to chown(2) it means "none", so no process has it and Linux shows no file that
/// has. A directory that holds one cannot be listed by Linux's NFS client.
const NONE: u32 = u32::MAX;

/// Whether this is the number of a user, or of a group.
pub fn is_owner(number: u32) -> bool {
    number != NONE
}
