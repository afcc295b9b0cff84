//! The mounts that clients have reported, which DUMP lists.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::net::IpAddr;

/// Mounts that are remembered. The list is for people; nothing depends on it.
const MOUNTS_MAX: usize = 1024;

/// Paths that clients reported as mounted, the latest [`MOUNTS_MAX`].
#[derive(Debug, Default)]
pub struct Mounts(Mutex<VecDeque<(IpAddr, Box<[u8]>)>>);

impl Mounts {
    pub fn add(&self, peer: IpAddr, path: Box<[u8]>) {
        let mut mounts = self.0.lock();
        if !mounts.iter().any(|(p, at)| *p == peer && *at == path) {
            if mounts.len() >= MOUNTS_MAX {
                mounts.pop_front();
            }
            mounts.push_back((peer, path));
        }
    }

    pub fn remove(&self, peer: IpAddr, path: Option<&[u8]>) {
        self.0.lock().retain(|(p, at)| *p != peer || path.is_some_and(|path| path != &**at));
    }

    /// Calls `each` with every client and path.
    pub fn for_each(&self, mut each: impl FnMut(IpAddr, &[u8])) {
        self.0.lock().iter().for_each(|(peer, path)| each(*peer, path));
    }
}
