//! The volume's mount group, Kubernetes' `fsGroup`, in O(1) (R28): the superblock names a group and
//! an epoch, and an inode that is older than the epoch is presented as if kubelet had gone through
//! the tree and changed it. Any change of an inode's row stores it as presented.

use super::api::FileKind;
use super::row::{Inode, Superblock};

/// The bits that kubelet adds to a mode: its group may read and write.
const FILE_BITS: u32 = 0o660;
/// New files in a directory get its group.
const DIRECTORY_BITS: u32 = 0o2770;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountGroup {
    gid: u32,
    epoch: u32,
}

impl MountGroup {
    pub fn of(superblock: &Superblock) -> Option<Self> {
        let epoch = superblock.fs_group_epoch;
        superblock.fs_group.map(|gid| Self { gid, epoch })
    }

    /// Gives an older inode the group, and the mode bits that go with it.
    pub fn present(self, row: &mut Inode) {
        if row.fs_group_epoch >= self.epoch {
            return;
        }
        row.gid = self.gid;
        row.mode |= match row.kind {
            FileKind::Directory => DIRECTORY_BITS,
            // Its mode means nothing.
            FileKind::Symlink => 0,
            _ => FILE_BITS,
        };
        row.fs_group_epoch = self.epoch;
    }
}
