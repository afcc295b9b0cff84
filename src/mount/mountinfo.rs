//! Parses /proc/self/mountinfo (proc_pid_mountinfo(5)). Pure.

use super::MountPoint;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Parses the whole file. A malformed line is left out: it cannot be a mount of ours.
pub(super) fn parse(text: &[u8]) -> Vec<MountPoint> {
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// `36 35 98:0 /root /target rw,noatime shared:1 master:2 - nfs host:/export rw,vers=3`
fn line(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
    let target = fields.nth(4)?;
    let options = fields.next()?;
    // Optional fields, ended by a lone hyphen.
    fields.find(|field| *field == b"-")?;
    let kind = fields.next()?;
    let device = fields.next()?;
    let of_super = fields.next().unwrap_or_default();
    let ro = |options: &[u8]| options.split(|byte| *byte == b',').any(|option| option == b"ro");
    let flags = options.split(|byte| *byte == b',').filter(|flag| !matches!(*flag, b"ro" | b"rw"));
    Some(MountPoint {
        target: PathBuf::from(OsString::from_vec(unescape(target))),
        device: String::from_utf8_lossy(&unescape(device)).into_owned(),
        kind: String::from_utf8_lossy(kind).into_owned(),
        read_only: ro(options) || ro(of_super),
        flags: flags.map(|flag| String::from_utf8_lossy(flag).into_owned()).collect(),
    })
}

/// The kernel writes space, tab, newline, backslash and hash as a backslash and three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if *first == b'\\' => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_understood() {
        let text = b"22 1 0:5 / /proc rw,nosuid,nodev,noexec shared:13 - proc proc rw\n\
            99 22 0:50 / /var/lib/kubelet/a\\040b\\134c rw,nosuid,nodev,relatime shared:1 master:2 \
            - nfs id:/x\\011y rw,vers=3,addr=127.1.2.3\n\
            100 22 0:50 / /pods/ro ro,relatime - nfs id:/e rw\n\
            101 22 0:51 / /pods/super rw - nfs id:/e ro,vers=3\n\
            102 22 0:52 / /none rw - tmpfs  rw\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 5);
        assert_eq!(mounts[1].target, PathBuf::from("/var/lib/kubelet/a b\\c"));
        assert_eq!(
            (mounts[1].device.as_str(), mounts[1].kind.as_str(), mounts[1].read_only),
            ("id:/x\ty", "nfs", false)
        );
        assert!(mounts[2].read_only && mounts[3].read_only);
        assert_eq!(mounts[1].flags, ["nosuid", "nodev", "relatime"]);
        assert_eq!(
            (mounts[2].flags.join(","), mounts[3].flags.join(",")),
            ("relatime".into(), String::new())
        );
    }

    #[test]
    fn what_is_no_line_is_left_out() {
        for bad in [
            "",
            " ",
            "1 2 3",
            "1 2 0:1 / /x rw shared:1",
            "1 2 0:1 / /x rw -",
            "1 2 0:1 / /x rw - nfs",
            "\u{0}\u{1}\\",
        ] {
            assert_eq!(parse(bad.as_bytes()), vec![], "{bad:?}");
        }
    }

    #[test]
    fn escapes_are_octal_and_whole() {
        assert_eq!(unescape(b"a\\040b"), b"a b");
        assert_eq!(unescape(b"\\377\\000"), [255, 0]);
        for plain in [&b"\\"[..], b"\\04", b"\\400", b"\\08x", b"a\\x41"] {
            assert_eq!(unescape(plain), plain);
        }
    }

    #[test]
    fn the_file_of_this_machine_has_a_root() {
        let mounts = parse(&std::fs::read("/proc/self/mountinfo").unwrap());
        assert!(mounts.iter().any(|mount| mount.target == std::path::Path::new("/")));
    }
}
