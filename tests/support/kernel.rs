//! A client that does not give up, as the kernel's: when its connection breaks it connects again,
//! and sends again what has no reply, under the same number.

use super::wire::{nfs, pack, place, status};
use nfs3_types::nfs3::*;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zerofs_csi::nfs::client::FileHandle;

const RECONNECT: Duration = Duration::from_millis(50);
/// Longer than any take-over.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Kernel {
    at: SocketAddr,
    root: FileHandle,
    stream: Option<TcpStream>,
    xid: u32,
    /// The longest time that a call took.
    pub longest: Duration,
}

impl Kernel {
    pub fn new(at: SocketAddr, root: FileHandle, xid: u32) -> Self {
        Self { at, root, stream: None, xid, longest: Duration::ZERO }
    }

    /// The status of a call, however often it had to be sent.
    async fn call(&mut self, procedure: u32, args: &[u8]) -> u32 {
        status(&self.reply(procedure, args).await)
    }

    /// The whole reply to a call.
    pub async fn reply(&mut self, procedure: u32, args: &[u8]) -> Vec<u8> {
        self.xid += 1;
        let record = nfs(self.xid, procedure, args);
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < PATIENCE, "a call has no answer");
            let answer = tokio::time::timeout(PATIENCE, self.attempt(&record)).await;
            if let Some(reply) = answer.expect("no answer and no end") {
                self.longest = self.longest.max(begun.elapsed());
                assert_eq!(reply[..4], self.xid.to_be_bytes(), "a reply to another call");
                return reply;
            }
            self.stream = None;
            tokio::time::sleep(RECONNECT).await;
        }
    }

    async fn attempt(&mut self, record: &[u8]) -> Option<Vec<u8>> {
        if self.stream.is_none() {
            self.stream = Some(TcpStream::connect(self.at).await.ok()?);
        }
        let stream = self.stream.as_mut()?;
        let mark = u32::try_from(record.len()).unwrap() | 1 << 31;
        stream.write_all(&[&mark.to_be_bytes(), record].concat()).await.ok()?;
        let len = stream.read_u32().await.ok()? & !(1 << 31);
        let mut reply = vec![0; len as usize];
        stream.read_exact(&mut reply).await.ok()?;
        Some(reply)
    }

    pub async fn create(&mut self, name: &str) -> u32 {
        let set = sattr3 {
            mode: Nfs3Option::None,
            uid: Nfs3Option::None,
            gid: Nfs3Option::None,
            size: Nfs3Option::None,
            atime: set_atime::DONT_CHANGE,
            mtime: set_mtime::DONT_CHANGE,
        };
        let root = self.root.clone();
        let where_ = place(root.as_bytes(), name.as_bytes());
        let args = pack(&CREATE3args { where_, how: createhow3::GUARDED(set) });
        self.call(8, &args).await
    }

    pub async fn rename(&mut self, from: &str, to: &str) -> u32 {
        let root = self.root.clone();
        let from = place(root.as_bytes(), from.as_bytes());
        let to = place(root.as_bytes(), to.as_bytes());
        self.call(14, &pack(&RENAME3args { from, to })).await
    }

    pub async fn remove(&mut self, name: &str) -> u32 {
        let root = self.root.clone();
        let object = place(root.as_bytes(), name.as_bytes());
        self.call(12, &pack(&REMOVE3args { object })).await
    }
}
