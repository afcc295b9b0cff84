//! The bytes of a tar archive, member by member. Names are bytes there, so that none is changed.

use super::Member;
use crate::fs::api::FileKind;
use tar::{EntryType, Header};

/// A member's data is filled up to whole blocks.
const BLOCK: u64 = 512;
/// Two blocks of zeros are the end.
pub const END: &[u8] = &[0; 1024];
/// The longest name that a header holds; a longer one comes in a member of its own before it.
const NAME_MAX: usize = 100;

/// The header of a member, with those before it that hold long names.
pub fn header(member: &Member) -> Vec<u8> {
    let mut name = member.name.clone();
    if member.kind == FileKind::Directory {
        name.push(b'/');
    }
    let mut bytes = Vec::with_capacity(1024);
    long_name(&mut bytes, EntryType::GNULongName, &name);
    let target = member.target.as_deref().unwrap_or_default();
    long_name(&mut bytes, EntryType::GNULongLink, target);
    let mut header = Header::new_gnu();
    header.set_entry_type(kind(member.kind));
    header.set_mode(member.mode & 0o7777);
    header.set_uid(u64::from(member.uid));
    header.set_gid(u64::from(member.gid));
    header.set_mtime(u64::try_from(member.modified.secs()).unwrap_or(0));
    header.set_size(member.data_bytes());
    put(&mut header, &name, target);
    header.set_cksum();
    bytes.extend_from_slice(header.as_bytes());
    bytes
}

/// The zeros after a member's data.
pub fn padding(size: u64) -> &'static [u8] {
    let rest = (BLOCK - size % BLOCK) % BLOCK;
    &END[..usize::try_from(rest).unwrap_or(0)]
}

fn kind(kind: FileKind) -> EntryType {
    match kind {
        FileKind::Regular => EntryType::Regular,
        FileKind::Directory => EntryType::Directory,
        FileKind::Symlink => EntryType::Symlink,
        FileKind::BlockDevice => EntryType::Block,
        FileKind::CharDevice => EntryType::Char,
        // Sockets are not archived.
        FileKind::Fifo | FileKind::Socket => EntryType::Fifo,
    }
}

fn put(header: &mut Header, name: &[u8], target: &[u8]) {
    let old = header.as_old_mut();
    for (field, value) in [(&mut old.name, name), (&mut old.linkname, target)] {
        let len = value.len().min(field.len());
        field[..len].copy_from_slice(&value[..len]);
    }
}

fn long_name(bytes: &mut Vec<u8>, kind: EntryType, name: &[u8]) {
    if name.len() <= NAME_MAX {
        return;
    }
    let size = name.len() as u64 + 1;
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    put(&mut header, b"././@LongLink", b"");
    header.set_cksum();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(name);
    bytes.push(0);
    bytes.extend_from_slice(padding(size));
}

#[cfg(test)]
mod tests {
    use super::super::tests::members;
    use super::*;
    use std::io::Read;

    #[test]
    fn readers_find_what_was_written() {
        let mut archive = Vec::new();
        for (member, data) in members() {
            archive.extend(header(&member));
            archive.extend(&data);
            archive.extend(padding(member.data_bytes()));
        }
        archive.extend(END);
        let mut archive = tar::Archive::new(&*archive);
        let mut wanted = members().into_iter();
        for found in archive.entries().unwrap() {
            let (mut found, (member, data)) = (found.unwrap(), wanted.next().unwrap());
            let mut name = member.name.clone();
            if member.kind == FileKind::Directory {
                name.push(b'/');
            }
            assert_eq!(found.path_bytes().as_ref(), name);
            assert_eq!(found.header().entry_type(), kind(member.kind));
            assert_eq!(found.header().mode().unwrap(), member.mode);
            assert_eq!(found.link_name_bytes().as_deref(), member.target.as_deref());
            let mut read = Vec::new();
            found.read_to_end(&mut read).unwrap();
            assert_eq!(read, data);
        }
        assert!(wanted.next().is_none());
    }

    #[test]
    fn a_file_of_a_hundred_gigabytes_has_its_size() {
        let mut member = members().remove(0).0;
        member.size = 100 << 30;
        let bytes = header(&member);
        let header = Header::from_byte_slice(&bytes[bytes.len() - 512..]);
        assert_eq!(header.entry_size().unwrap(), 100 << 30);
    }
}
