//! Users and groups of files.

/// `(uid_t) -1`: to chown(2) it means "none", so no process has it and Linux shows no file that
/// has. A directory that holds one cannot be listed by Linux's NFS client.
const NONE: u32 = u32::MAX;

/// True if a user or a group may have this number.
pub fn is_owner(number: u32) -> bool {
    number != NONE
}
