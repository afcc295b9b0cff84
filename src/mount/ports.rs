//! The local ports that the kernel's NFS client connects from: only reserved ones are served (R23),
//! and each connection of each mount takes one.

use std::path::Path;

/// The kernel's default range.
const RANGE: (u32, u32) = (665, 1023);

/// Returns the number of reserved ports on this machine.
pub fn reserved() -> u32 {
    of(Path::new("/proc/sys/sunrpc"))
}

/// The files exist once the module sunrpc is loaded.
fn of(dir: &Path) -> u32 {
    let read =
        |name: &str| std::fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u32>().ok();
    let (first, last) = read("min_resvport").zip(read("max_resvport")).unwrap_or(RANGE);
    last.saturating_add(1).saturating_sub(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_the_machines_or_the_kernels_own() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(of(dir.path()), 359);
        std::fs::write(dir.path().join("min_resvport"), "300\n").unwrap();
        assert_eq!(of(dir.path()), 359, "half a range is none");
        std::fs::write(dir.path().join("max_resvport"), "1023\n").unwrap();
        assert_eq!(of(dir.path()), 724);
        std::fs::write(dir.path().join("max_resvport"), "1\n").unwrap();
        assert_eq!(of(dir.path()), 0);
    }
}
