//! The time of a change (R8).
//!
//! mtime and atime are the clock's time of day, whatever that is. ctime is the change attribute of
//! NFSv3's client: if it stands still or goes back, caches stay stale. So it grows with every
//! change of an inode, above the one in the inode's row, even where the clock stands or was set
//! back, and whichever node is the owner. That holds for each inode by itself: an inode changed
//! while a clock was a year ahead keeps a ctime that is ahead, one nanosecond more at each change,
//! until the clock has passed it; other inodes are not affected.
//!
//! A change that was lost with its node has shown a ctime that no row has. The next owner's clock
//! has passed it: a lease must have expired in between, or the node has restarted.

use crate::types::{Timestamp, WallClock};

/// The time of day at which something is changed.
#[derive(Clone, Copy, Debug)]
pub struct Moment(Timestamp);

impl Moment {
    pub fn now(clock: &WallClock) -> Self {
        Self(clock.now())
    }

    #[cfg(test)]
    pub const fn at(time: Timestamp) -> Self {
        Self(time)
    }

    /// The time for mtime and atime.
    pub fn time(self) -> Timestamp {
        self.0
    }

    /// The ctime of an inode whose last one was `last`.
    pub fn ctime(self, last: Timestamp) -> Timestamp {
        self.0.max(Timestamp::from_nanos(last.as_nanos().saturating_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctime_is_the_clocks_and_grows_when_the_clock_does_not() {
        let at = Timestamp::from_nanos;
        let now = Moment::at(at(1000));
        assert_eq!(
            (now.time(), now.ctime(at(5)), now.ctime(at(999))),
            (at(1000), at(1000), at(1000))
        );
        assert_eq!((now.ctime(at(1000)), now.ctime(at(5000))), (at(1001), at(5001)));
    }
}
