//! POSIX permission checks as a stateless server must make them. Pure.
//!
//! NFS has no open files, so two rules differ from a local file system (RFC 1813 §4.4): the owner
//! of a file may always read, write and truncate it (the client checked at open), and a file that
//! may be executed may be read.

use super::FsError;
use super::api::{Caller, FileKind, SetAttr, SetTime, access};
use super::moment::Moment;
use super::row::Inode;
use crate::types::{Timestamp, is_owner};

pub const SET_UID: u32 = 0o4000;
pub const SET_GID: u32 = 0o2000;
pub const STICKY: u32 = 0o1000;
pub const NO_OWNER: FsError =
    FsError::Invalid("4294967295 is no user and no group: use a number below it");
/// All bits that a mode has.
pub const MODE_BITS: u32 = 0o7777;

/// Permission bits, as in one digit of a mode.
pub const READ: u32 = 4;
pub const WRITE: u32 = 2;
pub const EXECUTE: u32 = 1;

pub fn is_root(caller: &Caller) -> bool {
    caller.uid == 0
}

fn in_group(caller: &Caller, gid: u32) -> bool {
    caller.gid == gid || caller.groups.contains(&gid)
}

/// Returns whether the caller has all of `want`. The superuser has everything, except to execute a
/// file that nobody may execute.
pub fn allows(caller: &Caller, row: &Inode, want: u32) -> bool {
    if is_root(caller) {
        return want & EXECUTE == 0 || row.kind == FileKind::Directory || row.mode & 0o111 != 0;
    }
    let shift = if caller.uid == row.uid {
        6
    } else if in_group(caller, row.gid) {
        3
    } else {
        0
    };
    (row.mode >> shift) & want == want
}

pub fn require(caller: &Caller, row: &Inode, want: u32) -> Result<(), FsError> {
    if allows(caller, row, want) { Ok(()) } else { Err(FsError::Access) }
}

/// Reading a file's data.
pub fn may_read_data(caller: &Caller, row: &Inode) -> Result<(), FsError> {
    if caller.uid == row.uid || allows(caller, row, READ) {
        Ok(())
    } else {
        require(caller, row, EXECUTE)
    }
}

/// Writing or truncating a file's data.
pub fn may_write_data(caller: &Caller, row: &Inode) -> Result<(), FsError> {
    if caller.uid == row.uid { Ok(()) } else { require(caller, row, WRITE) }
}

/// Returns the granted bits of the ACCESS bits asked for (RFC 1813 §3.3.4). DELETE means deleting
/// entries of a directory; for other objects it depends on their directory, so it is never granted
/// for them.
pub fn granted(caller: &Caller, row: &Inode, want: u32) -> u32 {
    let mut granted = 0;
    if allows(caller, row, READ) {
        granted |= access::READ;
    }
    if allows(caller, row, WRITE) {
        granted |= access::MODIFY | access::EXTEND;
        if row.kind == FileKind::Directory {
            granted |= access::DELETE;
        }
    }
    if allows(caller, row, EXECUTE) {
        granted |= if row.kind == FileKind::Directory { access::LOOKUP } else { access::EXECUTE };
    }
    granted & want
}

/// Adding an entry to a directory.
pub fn may_add(caller: &Caller, dir: &Inode) -> Result<(), FsError> {
    require(caller, dir, WRITE | EXECUTE)
}

/// Removing the entry of `child` from a directory; in a sticky one only the owner of either may.
pub fn may_remove(caller: &Caller, dir: &Inode, child: &Inode) -> Result<(), FsError> {
    require(caller, dir, WRITE | EXECUTE)?;
    let owner = is_root(caller) || caller.uid == child.uid || caller.uid == dir.uid;
    if dir.mode & STICKY == 0 || owner { Ok(()) } else { Err(FsError::NotOwner) }
}

/// Checks that attributes may be set at all, whoever the caller is.
pub fn check(set: &SetAttr) -> Result<(), FsError> {
    if [set.uid, set.gid].into_iter().flatten().all(is_owner) { Ok(()) } else { Err(NO_OWNER) }
}

/// Owner, group and mode of a new object: the group is inherited from a setgid directory, and a new
/// directory inherits that bit as well. As in other servers, an owner or group that the caller may
/// not set is ignored.
pub fn ownership(
    caller: &Caller,
    dir: &Inode,
    kind: FileKind,
    set: &SetAttr,
    default_mode: u32,
) -> (u32, u32, u32) {
    let inherits = dir.mode & SET_GID != 0;
    let uid = set.uid.filter(|_| is_root(caller)).unwrap_or(caller.uid);
    let asked = set.gid.filter(|gid| is_root(caller) || in_group(caller, *gid));
    let gid = asked.unwrap_or(if inherits { dir.gid } else { caller.gid });
    let mut mode = set.mode.unwrap_or(default_mode) & MODE_BITS;
    if kind == FileKind::Directory {
        mode |= if inherits { SET_GID } else { 0 };
    } else if mode & SET_GID != 0 && !is_root(caller) && !in_group(caller, gid) {
        mode &= !SET_GID;
    }
    (uid, gid, mode)
}

/// The mode after a change of the content or the owner: set-id bits would grant rights to content
/// that the owner has not seen. The setgid bit of a file that its group may not execute means
/// mandatory locking and stays.
pub fn without_set_id(mode: u32) -> u32 {
    let kept = if mode & 0o010 != 0 { SET_UID | SET_GID } else { SET_UID };
    mode & !kept
}

/// The mode that remains after a write or truncation by `caller`.
pub fn mode_after_write(caller: &Caller, mode: u32) -> u32 {
    if is_root(caller) { mode } else { without_set_id(mode) }
}

/// Checks a change of attributes, size included, and makes it in `row`, except for the size, which
/// belongs to the file's content. Order of checks and errors as in Linux' `setattr_prepare`.
pub fn apply(caller: &Caller, row: &mut Inode, set: &SetAttr, now: Moment) -> Result<(), FsError> {
    let owner = is_root(caller) || caller.uid == row.uid;
    if set.uid.is_some_and(|uid| !(is_root(caller) || owner && uid == row.uid)) {
        return Err(FsError::NotOwner);
    }
    if set.gid.is_some_and(|gid| {
        !is_root(caller) && !(owner && (gid == row.gid || in_group(caller, gid)))
    }) {
        return Err(FsError::NotOwner);
    }
    if set.mode.is_some() && !owner {
        return Err(FsError::NotOwner);
    }
    let times = [set.atime, set.mtime];
    if !owner && times.iter().any(|time| matches!(time, SetTime::To(_))) {
        return Err(FsError::NotOwner);
    }
    if !owner && times.contains(&SetTime::Now) {
        require(caller, row, WRITE)?;
    }
    if set.size.is_some() {
        resizable(row.kind)?;
        may_write_data(caller, row)?;
    }
    write(caller, row, set, now);
    Ok(())
}

/// Only regular files have a size that can be set.
pub fn resizable(kind: FileKind) -> Result<(), FsError> {
    match kind {
        FileKind::Regular => Ok(()),
        FileKind::Directory => Err(FsError::IsDirectory),
        _ => Err(FsError::Invalid("only a regular file has a size to set")),
    }
}

fn write(caller: &Caller, row: &mut Inode, set: &SetAttr, now: Moment) {
    let old_mode = row.mode;
    row.uid = set.uid.unwrap_or(row.uid);
    row.gid = set.gid.unwrap_or(row.gid);
    if let Some(mode) = set.mode {
        row.mode = mode & MODE_BITS;
        if !is_root(caller) && !in_group(caller, row.gid) && row.kind != FileKind::Directory {
            row.mode &= !SET_GID;
        }
    }
    if (set.uid.is_some() || set.gid.is_some()) && row.kind != FileKind::Directory {
        row.mode = without_set_id(row.mode);
    } else if set.size.is_some() && set.mode.is_none() {
        row.mode = mode_after_write(caller, old_mode);
    }
    if set.size.is_some() {
        row.mtime = now.time();
    }
    row.atime = time(set.atime, now).unwrap_or(row.atime);
    row.mtime = time(set.mtime, now).unwrap_or(row.mtime);
    row.ctime = now.ctime(row.ctime);
}

/// The time to set, if any.
pub fn time(set: SetTime, now: Moment) -> Option<Timestamp> {
    match set {
        SetTime::Keep => None,
        SetTime::Now => Some(now.time()),
        SetTime::To(time) => Some(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::key::DataId;
    use crate::types::InodeNo;

    fn row(kind: FileKind, mode: u32, uid: u32, gid: u32) -> Inode {
        Inode {
            kind,
            mode,
            uid,
            gid,
            nlink: 1,
            size: 0,
            allocated: 0,
            rdev: (0, 0),
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            generation: 0,
            parent: InodeNo::ROOT,
            data: DataId(0),
            record_bits: 12,
            truncations: 0,
            masks: Vec::new(),
            exclusive: None,
            fs_group_epoch: 0,
            target: None,
        }
    }

    fn user(uid: u32, gid: u32, groups: &[u32]) -> Caller {
        Caller { uid, gid, groups: groups.to_vec(), call: None }
    }

    const NOW: Moment = Moment::at(Timestamp::from_nanos(9));

    #[test]
    fn the_most_specific_class_decides() {
        let file = row(FileKind::Regular, 0o074, 1, 10);
        assert!(
            !allows(&user(1, 10, &[]), &file, READ),
            "the owner's bits, even if the group's give more"
        );
        assert!(allows(&user(2, 10, &[]), &file, READ | WRITE | EXECUTE));
        assert!(allows(&user(2, 20, &[5, 10]), &file, WRITE), "a supplementary group");
        assert!(allows(&user(2, 20, &[]), &file, READ));
        assert!(!allows(&user(2, 20, &[]), &file, READ | WRITE));
    }

    #[test]
    fn the_superuser_executes_only_what_somebody_may() {
        let root = Caller::root();
        assert!(allows(&root, &row(FileKind::Regular, 0, 1, 1), READ | WRITE));
        assert!(!allows(&root, &row(FileKind::Regular, 0o666, 1, 1), EXECUTE));
        assert!(allows(&root, &row(FileKind::Regular, 0o100, 1, 1), EXECUTE));
        assert!(allows(&root, &row(FileKind::Directory, 0, 1, 1), EXECUTE));
    }

    #[test]
    fn the_owner_writes_what_was_made_read_only_and_executables_are_read() {
        let file = row(FileKind::Regular, 0o400, 1, 1);
        assert!(may_write_data(&user(1, 1, &[]), &file).is_ok());
        assert!(may_write_data(&user(2, 1, &[]), &file).is_err());
        let program = row(FileKind::Regular, 0o711, 1, 1);
        assert!(may_read_data(&user(2, 2, &[]), &program).is_ok());
        assert_eq!(granted(&user(2, 2, &[]), &program, 0x3f), access::EXECUTE);
    }

    #[test]
    fn access_bits_depend_on_the_kind() {
        let dir = row(FileKind::Directory, 0o755, 1, 1);
        assert_eq!(granted(&user(1, 1, &[]), &dir, 0x3f), 0x1f);
        assert_eq!(granted(&user(2, 2, &[]), &dir, 0x3f), access::READ | access::LOOKUP);
        assert_eq!(granted(&user(2, 2, &[]), &dir, access::MODIFY), 0);
    }

    #[test]
    fn sticky_directories_keep_others_files() {
        let dir = row(FileKind::Directory, 0o1777, 1, 1);
        let file = row(FileKind::Regular, 0o666, 2, 2);
        assert!(may_remove(&user(1, 9, &[]), &dir, &file).is_ok());
        assert!(may_remove(&user(2, 9, &[]), &dir, &file).is_ok());
        assert!(may_remove(&Caller::root(), &dir, &file).is_ok());
        assert!(matches!(may_remove(&user(3, 2, &[]), &dir, &file), Err(FsError::NotOwner)));
        let plain = row(FileKind::Directory, 0o755, 1, 1);
        assert!(matches!(may_remove(&user(2, 2, &[]), &plain, &file), Err(FsError::Access)));
    }

    #[test]
    fn setgid_directories_hand_down_their_group() {
        let dir = row(FileKind::Directory, 0o2775, 1, 50);
        let set = SetAttr { mode: Some(0o2755), ..SetAttr::default() };
        assert_eq!(
            ownership(&user(7, 8, &[]), &dir, FileKind::Directory, &set, 0),
            (7, 50, 0o2755)
        );
        assert_eq!(
            ownership(&user(7, 8, &[]), &dir, FileKind::Regular, &set, 0),
            (7, 50, 0o755),
            "not a member of 50"
        );
        assert_eq!(
            ownership(&user(7, 8, &[50]), &dir, FileKind::Regular, &set, 0),
            (7, 50, 0o2755)
        );
        let plain = row(FileKind::Directory, 0o777, 1, 50);
        let given = SetAttr { uid: Some(3), gid: Some(4), ..SetAttr::default() };
        assert_eq!(
            ownership(&user(7, 8, &[]), &plain, FileKind::Regular, &given, 0o644),
            (7, 8, 0o644)
        );
        assert_eq!(
            ownership(&user(7, 8, &[4]), &plain, FileKind::Regular, &given, 0o644),
            (7, 4, 0o644)
        );
        assert_eq!(
            ownership(&Caller::root(), &plain, FileKind::Regular, &given, 0o644),
            (3, 4, 0o644)
        );
    }

    #[test]
    fn chown_is_the_superusers_and_clears_set_id() {
        let mut file = row(FileKind::Regular, 0o6755, 1, 1);
        let give = SetAttr { uid: Some(2), ..SetAttr::default() };
        assert!(matches!(apply(&user(1, 1, &[]), &mut file, &give, NOW), Err(FsError::NotOwner)));
        assert_eq!(file.mode, 0o6755);
        let group = SetAttr { gid: Some(5), ..SetAttr::default() };
        assert!(matches!(apply(&user(1, 1, &[]), &mut file, &group, NOW), Err(FsError::NotOwner)));
        assert!(matches!(apply(&user(3, 5, &[]), &mut file, &group, NOW), Err(FsError::NotOwner)));
        assert!(apply(&user(1, 1, &[5]), &mut file, &group, NOW).is_ok());
        assert_eq!((file.gid, file.mode, file.ctime), (5, 0o755, NOW.time()));
        assert!(apply(&Caller::root(), &mut file, &give, NOW).is_ok());
        assert_eq!(file.uid, 2);
        let mut dir = row(FileKind::Directory, 0o2755, 1, 1);
        assert!(apply(&Caller::root(), &mut dir, &give, NOW).is_ok());
        assert_eq!(dir.mode, 0o2755);
    }

    #[test]
    fn chmod_is_the_owners_and_setgid_needs_the_group() {
        let mut file = row(FileKind::Regular, 0o644, 1, 10);
        let set = SetAttr { mode: Some(0o2755), ..SetAttr::default() };
        assert!(matches!(apply(&user(2, 10, &[]), &mut file, &set, NOW), Err(FsError::NotOwner)));
        assert!(apply(&user(1, 1, &[]), &mut file, &set, NOW).is_ok());
        assert_eq!(file.mode, 0o755);
        assert!(apply(&user(1, 1, &[10]), &mut file, &set, NOW).is_ok());
        assert_eq!(file.mode, 0o2755);
    }

    #[test]
    fn times_are_the_owners_and_now_is_every_writers() {
        let mut file = row(FileKind::Regular, 0o646, 1, 1);
        let now = SetAttr { mtime: SetTime::Now, ..SetAttr::default() };
        let then = SetAttr { atime: SetTime::To(Timestamp::from_nanos(5)), ..SetAttr::default() };
        assert!(apply(&user(2, 2, &[]), &mut file, &now, NOW).is_ok());
        assert_eq!(file.mtime, NOW.time());
        assert!(matches!(apply(&user(2, 2, &[]), &mut file, &then, NOW), Err(FsError::NotOwner)));
        assert!(apply(&user(1, 1, &[]), &mut file, &then, NOW).is_ok());
        assert_eq!(file.atime, Timestamp::from_nanos(5));
        file.mode = 0o644;
        assert!(matches!(apply(&user(2, 2, &[]), &mut file, &now, NOW), Err(FsError::Access)));
    }

    #[test]
    fn sizes_belong_to_regular_files_and_truncation_clears_set_id() {
        let set = SetAttr { size: Some(0), ..SetAttr::default() };
        let mut dir = row(FileKind::Directory, 0o777, 1, 1);
        assert!(matches!(apply(&user(1, 1, &[]), &mut dir, &set, NOW), Err(FsError::IsDirectory)));
        let mut pipe = row(FileKind::Fifo, 0o777, 1, 1);
        assert!(matches!(apply(&user(1, 1, &[]), &mut pipe, &set, NOW), Err(FsError::Invalid(_))));
        let mut file = row(FileKind::Regular, 0o6767, 1, 1);
        assert!(apply(&Caller::root(), &mut file, &set, NOW).is_ok());
        assert_eq!((file.mode, file.mtime), (0o6767, NOW.time()));
        assert!(apply(&user(2, 2, &[]), &mut file, &set, NOW).is_ok());
        assert_eq!(file.mode, 0o2767, "no group execution: the setgid bit means locking");
    }
}
