//! Pods that write one volume from all nodes at once. Each has a file of its own, which it writes
//! in order and reads back, reads the files of the others, and makes, renames and removes names.

use crate::network::SEATS;
use crate::support::kernel::Kernel;
use crate::support::wire::{accepted, fh, pack, place};
use nfs3_types::nfs3::*;
use nfs3_types::xdr_codec::{Opaque, Unpack};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::{Duration, Instant};
use zerofs_csi::nfs::client::FileHandle;

pub const PODS_PER_NODE: usize = 4;
const BLOCK: usize = 64 << 10;
/// Every pod writes its file from the beginning again after this many blocks.
const BLOCKS_MAX: u64 = 256;
const COMMIT_EVERY: u64 = 16;
const NAMES_EVERY: u64 = 8;
const NONE: u32 = 2;

fn name(seat: usize, pod: usize) -> String {
    format!("pod-{seat}-{pod}")
}

/// Every block says whose it is, where, and how often the file was written before, in all of its
/// bytes.
fn content(file: &str, block: u64, pass: u64) -> Vec<u8> {
    let line = format!("{file} {block:08} {pass:08} ");
    line.bytes().cycle().take(BLOCK).collect()
}

/// The pass that a block of a pod's own file is of, once it has written so many.
fn pass(block: u64, written: u64) -> u64 {
    (written - 1 - block) / BLOCKS_MAX
}

/// Runs the pods of a node, and prints how many blocks each has written and read.
pub fn run(endpoint: &str, root: &str, seat: &str, secs: &str) {
    let root = data_encoding::HEXLOWER.decode(root.as_bytes()).unwrap();
    let seat = SEATS.iter().position(|other| *other == seat).unwrap();
    let until = Instant::now() + Duration::from_secs(secs.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let pods = (0..PODS_PER_NODE).map(|pod| {
            let xid = u32::try_from(0x80 + seat * PODS_PER_NODE + pod).unwrap() << 24;
            let handle = FileHandle::from_bytes(&root);
            let kernel = Kernel::new(endpoint.parse().unwrap(), handle, xid);
            Pod { kernel, root: root.clone(), name: name(seat, pod) }.work(until)
        });
        for (written, read, longest) in futures::future::join_all(pods).await {
            println!("pod {written} {read} {}", longest.as_millis());
        }
    });
}

struct Pod {
    kernel: Kernel,
    root: Vec<u8>,
    name: String,
}

impl Pod {
    async fn work(mut self, until: Instant) -> (u64, u64, Duration) {
        let mut rng = StdRng::seed_from_u64(self.name.bytes().map(u64::from).sum());
        let (name, mut read) = (self.name.clone(), 0);
        assert_eq!(self.kernel.create(&name).await, 0, "{name} is made");
        let own = self.find(&name).await.expect("it was made");
        let mut written = 0;
        while Instant::now() < until {
            self.write(&own, written % BLOCKS_MAX, written / BLOCKS_MAX).await;
            written += 1;
            if written % COMMIT_EVERY == 0 {
                self.commit(&own).await;
                let block = rng.random_range(0..written.min(BLOCKS_MAX));
                assert_eq!(
                    self.read(&own, &name, block).await,
                    Some(pass(block, written)),
                    "{name}"
                );
                let other = name_of(rng.random_range(0..SEATS.len() * PODS_PER_NODE));
                if let Some(file) = self.find(&other).await {
                    read += u64::from(self.read(&file, &other, 0).await.is_some());
                }
            }
            if written % NAMES_EVERY == 0 {
                self.names(written).await;
            }
        }
        self.commit(&own).await;
        for block in 0..written.min(BLOCKS_MAX) {
            assert_eq!(self.read(&own, &name, block).await, Some(pass(block, written)), "{name}");
        }
        assert_eq!(self.kernel.remove(&name).await, 0, "{name} is removed");
        (written, read, self.kernel.longest)
    }

    /// The results of a call that must succeed.
    async fn results(&mut self, procedure: u32, args: &[u8]) -> Vec<u8> {
        let (_, results) = accepted(&self.kernel.reply(procedure, args).await);
        let (status, rest) = results.split_at(4);
        assert_eq!(status, [0; 4], "procedure {procedure} of {}", self.name);
        rest.to_vec()
    }

    /// The handle of a file; `None`: it is not there.
    async fn find(&mut self, name: &str) -> Option<Vec<u8>> {
        let args = pack(&LOOKUP3args { what: place(&self.root, name.as_bytes()) });
        let (_, results) = accepted(&self.kernel.reply(3, &args).await);
        let (status, rest) = results.split_at(4);
        let status = u32::from_be_bytes(status.try_into().unwrap());
        if status == NONE {
            return None;
        }
        assert_eq!(status, 0, "looking up {name}");
        let (found, _) = LOOKUP3resok::unpack(&mut &*rest).unwrap();
        Some(found.object.data.to_vec())
    }

    async fn write(&mut self, file: &[u8], block: u64, pass: u64) {
        let data = content(&self.name, block, pass);
        let args = WRITE3args {
            file: fh(file),
            offset: block * BLOCK as u64,
            count: BLOCK as u32,
            stable: stable_how::UNSTABLE,
            data: Opaque::owned(data),
        };
        let results = self.results(7, &pack(&args)).await;
        let (written, _) = WRITE3resok::unpack(&mut &results[..]).unwrap();
        assert_eq!(written.count as usize, BLOCK);
    }

    async fn commit(&mut self, file: &[u8]) {
        let args = COMMIT3args { file: fh(file), offset: 0, count: 0 };
        self.results(21, &pack(&args)).await;
    }

    /// The pass that a block is of. A file that is removed meanwhile, or not written yet, has none.
    ///
    /// # Panics
    /// When it is not the same pass of this block throughout.
    async fn read(&mut self, file: &[u8], name: &str, block: u64) -> Option<u64> {
        let (offset, count) = (block * BLOCK as u64, BLOCK as u32);
        let args = pack(&READ3args { file: fh(file), offset, count });
        let (_, results) = accepted(&self.kernel.reply(6, &args).await);
        let (status, rest) = results.split_at(4);
        const STALE: u32 = 70;
        match u32::from_be_bytes(status.try_into().unwrap()) {
            STALE => return None,
            status => assert_eq!(status, 0, "reading {name}"),
        }
        let (read, _) = READ3resok::unpack(&mut &*rest).unwrap();
        let line = String::from_utf8_lossy(read.data.split(|byte| *byte == 0).next()?);
        let pass = line.split(' ').nth(2)?.parse().unwrap();
        assert!(read.data[..] == content(name, block, pass), "{name}: {block}");
        Some(pass)
    }

    async fn names(&mut self, number: u64) {
        let (old, new) = (format!("{}-{number}", self.name), format!("{}-x{number}", self.name));
        assert_eq!(self.kernel.create(&old).await, 0, "{old} is made");
        assert_eq!(self.kernel.rename(&old, &new).await, 0, "{old} is renamed");
        assert_eq!(self.kernel.remove(&new).await, 0, "{new} is removed");
    }
}

fn name_of(number: usize) -> String {
    name(number / PODS_PER_NODE, number % PODS_PER_NODE)
}
