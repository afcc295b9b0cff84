//! Reads of files that are in the page cache already, on the caller's thread: the hand-over to a
//! thread that may block costs more than the read. What would have to wait for the
//! disk is not read, and the caller reads it where it may wait.

use bytes::{Bytes, BytesMut};
use rustix::fs::{Advice, CWD, Mode, OFlags, ResolveFlags, fadvise};
use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;

/// The most bytes of one call: a longer one would keep the calls behind it waiting.
const BYTES_MAX: u64 = 2 << 20;

/// Opens a file whose path the kernel has in memory.
pub fn open(path: &Path) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED).ok().map(File::from)
}

/// Exactly these bytes of a file, each range in a buffer of its own; `None`: not all of them are in
/// memory, or the file ends before.
pub fn read(file: &File, ranges: &[Range<u64>]) -> Option<Vec<Bytes>> {
    let len = |range: &Range<u64>| range.end.checked_sub(range.start).filter(|len| *len > 0);
    let total = ranges.iter().try_fold(0_u64, |sum, range| sum.checked_add(len(range)?))?;
    if total > BYTES_MAX {
        return None;
    }
    ranges.iter().map(|range| one(file, range.start, usize::try_from(len(range)?).ok()?)).collect()
}

#[allow(unsafe_code)]
fn one(file: &File, offset: u64, len: usize) -> Option<Bytes> {
    let offset = libc::off_t::try_from(offset).ok()?;
    let mut bytes = BytesMut::with_capacity(len);
    let room = bytes.spare_capacity_mut().get_mut(..len)?;
    let into = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: len };
    // SAFETY: the kernel writes at most `len` bytes into `room`, which is that long and borrowed
    // for as long as the call takes.
    let read =
        unsafe { libc::preadv2(file.as_raw_fd(), &raw const into, 1, offset, libc::RWF_NOWAIT) };
    if usize::try_from(read) != Ok(len) {
        return None;
    }
    // SAFETY: the kernel has written the first `len` bytes.
    unsafe { bytes.set_len(len) };
    Some(bytes.freeze())
}

/// Has the kernel read part of a file into memory. May wait for the disk. A failure shows at the
/// read.
pub fn will_read(path: &Path, range: &Range<u64>) {
    let len = range.end.checked_sub(range.start).and_then(NonZeroU64::new);
    if let (Some(len), Ok(file)) = (len, File::open(path)) {
        let _shown_by_the_read = fadvise(&file, range.start, Some(len), Advice::WillNeed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_memory_is_read_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("object");
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = File::open(&path).unwrap();
        // Written just now, so it is in memory; a file system that cannot tell reads nothing.
        if let Some(found) = read(&file, &[10..20, 5..6, 90_000..100_000]) {
            assert_eq!(found, [&bytes[10..20], &bytes[5..6], &bytes[90_000..]]);
        }
        let backwards = Range { start: 20, end: 10 };
        for none in [99_999..100_001, 0..0, backwards, 0..BYTES_MAX + 1] {
            assert_eq!(read(&file, std::slice::from_ref(&none)), None, "{none:?}");
        }
        assert_eq!(read(&file, &[]), Some(Vec::new()));
        assert!(open(&dir.path().join("absent")).is_none());
    }
}
