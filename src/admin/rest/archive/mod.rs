//! Archives of files and folders, made while they are sent: memory does not depend on their size.
//!
//! [`tar`] and [`zip`] give the bytes of headers and ends; the sender puts the data in between. An
//! archive that cannot be completed breaks off, and no reader takes it for a whole one.

mod pack;
mod request;
pub mod tar;
pub mod zip;

pub use request::{__path_get, get};

use crate::fs::api::FileKind;
use crate::types::Timestamp;

/// One object of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its path, without a leading slash.
    pub name: Vec<u8>,
    pub kind: FileKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub modified: Timestamp,
    /// The target of a symbolic link.
    pub target: Option<Vec<u8>>,
}

impl Member {
    /// Bytes of data that follow its header: only files have any.
    pub fn data_bytes(&self) -> u64 {
        if self.kind == FileKind::Regular { self.size } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Members of every kind that is archived, with odd names.
    pub fn members() -> Vec<(Member, Vec<u8>)> {
        let member = |name: &[u8], kind, data: &[u8]| {
            let member = Member {
                name: name.to_vec(),
                kind,
                mode: 0o640,
                uid: 1000,
                gid: 3_000_000,
                size: data.len() as u64,
                modified: Timestamp::from_parts(1_700_000_000, 0),
                target: None,
            };
            (member, data.to_vec())
        };
        let long = [b"a/".repeat(20), b"n".repeat(200)].concat();
        let mut all = vec![
            member(b"plain", FileKind::Regular, b"hello"),
            member(b"empty", FileKind::Regular, b""),
            member(b"folder", FileKind::Directory, b""),
            member(b"folder/\xff\xfe\n", FileKind::Regular, &[7; 1000]),
            member(&long, FileKind::Regular, &[1; 512]),
            member("grüße".as_bytes(), FileKind::Regular, b"x"),
        ];
        for (name, target) in [(b"near", b"../elsewhere".to_vec()), (b"far ", b"\xfft".repeat(100))]
        {
            let mut link = member(name, FileKind::Symlink, b"");
            link.0.target = Some(target);
            all.push(link);
        }
        all
    }
}
