//! The bytes of a zip archive, member by member, stored without compression: the length of what is
//! sent is known then, and no request costs more than its data.
//!
//! Written as a stream, a member's checksum is known only after its data, and follows it in a data
//! descriptor. Sizes are in the ZIP64 fields, so that none has a limit. Names that are not UTF-8
//! are written as the bytes they are, without the flag of UTF-8 (APPNOTE 4.4.4, 4.5.3, 4.3.9).

use super::Member;
use crate::fs::api::FileKind;
use chrono::{DateTime, Datelike, Timelike};

/// ZIP64 is needed to read it.
const VERSION: u16 = 45;
/// Version 4.5, made on unix: the upper half of the external attributes is a mode.
const MADE_BY: u16 = (3 << 8) | VERSION;
/// The checksum follows the data.
const FLAG_DESCRIPTOR: u16 = 1 << 3;
const FLAG_UTF8: u16 = 1 << 11;
/// Says that a size is in the ZIP64 field.
const IN_ZIP64: u32 = u32::MAX;
/// Bytes of the central directory, which is kept in memory until the end.
pub const DIRECTORY_BYTES_MAX: usize = 64 << 20;

/// Writes one archive.
#[derive(Default)]
pub struct Zip {
    offset: u64,
    members: u64,
    directory: Vec<u8>,
}

/// A member whose data follows.
pub struct Open {
    offset: u64,
    crc: crc32fast::Hasher,
    size: u64,
}

impl Zip {
    /// The header of a member.
    pub fn header(&mut self, member: &Member) -> (Vec<u8>, Open) {
        let name = name(member);
        let mut bytes = Vec::with_capacity(name.len() + 64);
        put32(&mut bytes, 0x0403_4b50);
        put16(&mut bytes, VERSION);
        put16(&mut bytes, flags(&name));
        put16(&mut bytes, 0);
        put32(&mut bytes, moment(member));
        put32(&mut bytes, 0);
        put32(&mut bytes, IN_ZIP64);
        put32(&mut bytes, IN_ZIP64);
        put16(&mut bytes, len16(&name));
        put16(&mut bytes, 20);
        bytes.extend_from_slice(&name);
        put16(&mut bytes, 1);
        put16(&mut bytes, 16);
        bytes.extend_from_slice(&[0; 16]);
        let open = Open { offset: self.offset, crc: crc32fast::Hasher::new(), size: 0 };
        self.offset += bytes.len() as u64;
        (bytes, open)
    }

    /// The descriptor that follows a member's data.
    pub fn descriptor(&mut self, member: &Member, open: Open) -> Vec<u8> {
        let Open { offset, crc, size } = open;
        let crc = crc.finalize();
        let mut bytes = Vec::with_capacity(24);
        put32(&mut bytes, 0x0807_4b50);
        put32(&mut bytes, crc);
        put64(&mut bytes, size);
        put64(&mut bytes, size);
        self.offset += size + bytes.len() as u64;
        self.members += 1;
        self.record(member, offset, crc, size);
        bytes
    }

    fn record(&mut self, member: &Member, offset: u64, crc: u32, size: u64) {
        let (name, bytes) = (name(member), &mut self.directory);
        put32(bytes, 0x0201_4b50);
        put16(bytes, MADE_BY);
        put16(bytes, VERSION);
        put16(bytes, flags(&name));
        put16(bytes, 0);
        put32(bytes, moment(member));
        put32(bytes, crc);
        put32(bytes, IN_ZIP64);
        put32(bytes, IN_ZIP64);
        put16(bytes, len16(&name));
        put16(bytes, 28);
        put16(bytes, 0);
        put16(bytes, 0);
        put16(bytes, 0);
        put32(bytes, mode(member) << 16);
        put32(bytes, IN_ZIP64);
        bytes.extend_from_slice(&name);
        put16(bytes, 1);
        put16(bytes, 24);
        put64(bytes, size);
        put64(bytes, size);
        put64(bytes, offset);
    }

    /// Returns whether another member fits.
    pub fn has_room(&self) -> bool {
        self.directory.len() < DIRECTORY_BYTES_MAX
    }

    /// The directory, and the end.
    pub fn end(self) -> Vec<u8> {
        let Self { offset, members, directory } = self;
        let (size, mut bytes) = (directory.len() as u64, directory);
        put32(&mut bytes, 0x0606_4b50);
        put64(&mut bytes, 44);
        put16(&mut bytes, MADE_BY);
        put16(&mut bytes, VERSION);
        put32(&mut bytes, 0);
        put32(&mut bytes, 0);
        put64(&mut bytes, members);
        put64(&mut bytes, members);
        put64(&mut bytes, size);
        put64(&mut bytes, offset);
        put32(&mut bytes, 0x0706_4b50);
        put32(&mut bytes, 0);
        put64(&mut bytes, offset + size);
        put32(&mut bytes, 1);
        put32(&mut bytes, 0x0605_4b50);
        put16(&mut bytes, 0);
        put16(&mut bytes, 0);
        put16(&mut bytes, u16::MAX);
        put16(&mut bytes, u16::MAX);
        put32(&mut bytes, u32::MAX);
        put32(&mut bytes, u32::MAX);
        put16(&mut bytes, 0);
        bytes
    }
}

impl Open {
    /// Counts a part of the data.
    pub fn add(&mut self, data: &[u8]) {
        self.crc.update(data);
        self.size += data.len() as u64;
    }
}

fn name(member: &Member) -> Vec<u8> {
    let mut name = member.name.clone();
    if member.kind == FileKind::Directory {
        name.push(b'/');
    }
    name
}

fn flags(name: &[u8]) -> u16 {
    FLAG_DESCRIPTOR | if std::str::from_utf8(name).is_ok() { FLAG_UTF8 } else { 0 }
}

fn mode(member: &Member) -> u32 {
    let kind = match member.kind {
        FileKind::Regular => 0o100_000,
        FileKind::Directory => 0o040_000,
        FileKind::Symlink => 0o120_000,
        FileKind::BlockDevice => 0o060_000,
        FileKind::CharDevice => 0o020_000,
        FileKind::Fifo => 0o010_000,
        FileKind::Socket => 0o140_000,
    };
    kind | (member.mode & 0o7777)
}

/// Date and time as MS-DOS has them: from 1980, in steps of two seconds.
fn moment(member: &Member) -> u32 {
    let at = DateTime::from_timestamp(member.modified.secs(), 0).unwrap_or_default();
    let Some(years) = u32::try_from(at.year() - 1980).ok().filter(|years| *years < 128) else {
        return 0x0021_0000;
    };
    let date = (years << 9) | (at.month() << 5) | at.day();
    let time = (at.hour() << 11) | (at.minute() << 5) | (at.second() / 2);
    (date << 16) | time
}

/// Names of members are paths, which are shorter than this.
fn len16(name: &[u8]) -> u16 {
    u16::try_from(name.len()).unwrap_or(u16::MAX)
}

fn put16(bytes: &mut Vec<u8>, value: u16) {
    bytes.extend_from_slice(&value.to_le_bytes());
}

fn put32(bytes: &mut Vec<u8>, value: u32) {
    bytes.extend_from_slice(&value.to_le_bytes());
}

fn put64(bytes: &mut Vec<u8>, value: u64) {
    bytes.extend_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::tests::members;
    use super::*;
    use std::io::{Cursor, Read};

    #[test]
    fn readers_find_what_was_written() {
        let (mut zip, mut archive) = (Zip::default(), Vec::new());
        for (member, data) in members() {
            let (bytes, mut open) = zip.header(&member);
            archive.extend(bytes);
            let data = member.target.clone().unwrap_or(data);
            open.add(&data);
            archive.extend(&data);
            archive.extend(zip.descriptor(&member, open));
        }
        archive.extend(zip.end());
        let mut read = ::zip::ZipArchive::new(Cursor::new(archive)).unwrap();
        assert_eq!(read.len(), members().len());
        for (n, (member, data)) in members().into_iter().enumerate() {
            let mut found = read.by_index(n).unwrap();
            assert_eq!(found.name_raw(), name(&member));
            assert_eq!(found.unix_mode(), Some(mode(&member)));
            let mut content = Vec::new();
            found.read_to_end(&mut content).unwrap();
            assert_eq!(content, member.target.clone().unwrap_or(data));
        }
    }

    #[test]
    fn times_outside_the_format_are_its_first_day() {
        let mut member = members().remove(0).0;
        for (secs, moment_is) in
            [(0, 0x0021_0000), (315_532_800, 0x0021_0000), (1 << 50, 0x0021_0000)]
        {
            member.modified = crate::types::Timestamp::from_parts(secs, 0);
            assert_eq!(moment(&member), moment_is);
        }
    }
}
