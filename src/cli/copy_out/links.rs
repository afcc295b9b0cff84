//! The objects with several names that were restored already, in bounded memory.

use crate::types::InodeNo;
use std::collections::HashMap;

/// The first paths of objects with several names.
#[derive(Default)]
pub(super) struct Links {
    pub(super) first: HashMap<InodeNo, First>,
    bytes: usize,
}

pub(super) struct First {
    /// The names that lead to it from the folder around the target, with `/` between them.
    pub(super) path: Vec<u8>,
    /// Names that remain.
    left: u32,
}

impl Links {
    /// Total length of the paths; beyond it, further names become separate objects.
    const BYTES_MAX: usize = 16 << 20;

    pub(super) fn put(&mut self, ino: InodeNo, nlink: u32, path: Vec<u8>) {
        if self.bytes + path.len() <= Self::BYTES_MAX {
            self.bytes += path.len();
            self.first.insert(ino, First { path, left: nlink - 1 });
        }
    }

    /// Counts one more of its names as created.
    pub(super) fn made(&mut self, ino: InodeNo) {
        let Some(first) = self.first.get_mut(&ino) else { return };
        first.left -= 1;
        if first.left == 0 {
            self.bytes -= first.path.len();
            self.first.remove(&ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_links_is_bounded() {
        let mut links = Links::default();
        (0..100).for_each(|n| links.put(InodeNo(n), 3, vec![b'x'; 1 << 20]));
        assert!(links.bytes <= Links::BYTES_MAX && links.first.len() == 16);
        for n in 0..16 {
            links.made(InodeNo(n));
            assert!(links.first.contains_key(&InodeNo(n)));
            links.made(InodeNo(n));
        }
        assert!(links.first.is_empty() && links.bytes == 0);
    }
}
