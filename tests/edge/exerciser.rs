//! A file under random use: writes, overwrites of whole pages in any order, truncations, holes
//! and reads at random places, compared byte by byte, with restarts of the server in between. The
//! client does what the kernel's does: it keeps what is not committed, and sends it again when the
//! write verifier has changed (RFC 1813 §4.11, R18).
//!
//! `FSX_SEED` repeats one history; `FSX_OPS` sets its length, otherwise `ZEROFS_TEST_SIZE`
//! multiplies it. With `FSX_VERIFY` everything is compared after each operation.

use crate::served::{Death, Host, Served};
use crate::support::run::{setting, size};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use zerofs_csi::fs::api::*;
use zerofs_csi::nfs::client::{Client, Committed, Credentials, FileHandle};

const OPS: u64 = 3000;
const SIZE_MAX: u64 = 600_000;
const PAGE: u64 = 4096;

struct Exerciser {
    rng: StdRng,
    host: Host,
    served: Option<Served>,
    client: Client,
    file: FileHandle,
    /// The file's contents.
    model: Vec<u8>,
    /// Writes that are not known to be stable, in order.
    uncommitted: Vec<(u64, Bytes)>,
    verifier: Option<[u8; 8]>,
    log: Vec<String>,
}

impl Exerciser {
    async fn new(seed: u64, record_bytes: u32) -> Self {
        let mut host = Host::new();
        host.dataset.options.properties.record_bytes = record_bytes;
        let served = host.serve().await;
        let client = served.client(&Credentials::root()).await;
        let root = served.root(&client).await;
        let file = client
            .create(&root, b"file", &CreateHow::Guarded(SetAttr::default()))
            .await
            .unwrap()
            .handle;
        let rng = StdRng::seed_from_u64(seed);
        Self {
            rng,
            host,
            served: Some(served),
            client,
            file,
            model: Vec::new(),
            uncommitted: Vec::new(),
            verifier: None,
            log: Vec::new(),
        }
    }

    fn note(&mut self, what: String) {
        self.log.push(what);
        if self.log.len() > 40 {
            self.log.remove(0);
        }
    }

    fn wrong(&self, what: &str) -> ! {
        panic!("{what}; the last operations:\n{}", self.log.join("\n"));
    }

    async fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..30 => self.write().await,
            30..45 => self.pages().await,
            45..75 => self.read().await,
            75..87 => self.truncate().await,
            87..97 => self.commit().await,
            97 => self.die(Death::Process).await,
            98 => self.die(Death::Node).await,
            _ => self.verify().await,
        }
    }

    fn range(&mut self) -> (u64, u64) {
        let most = [100, 5000, 70_000][self.rng.random_range(0..3)];
        let at = match self.rng.random_range(0..4) {
            0 => self.model.len() as u64,
            1 => self.rng.random_range(0..SIZE_MAX) / PAGE * PAGE,
            _ => self.rng.random_range(0..=(self.model.len() as u64 + 20_000).min(SIZE_MAX)),
        };
        let at = at.min(SIZE_MAX - 1);
        (at, self.rng.random_range(1..=most).min(SIZE_MAX - at))
    }

    fn apply(&mut self, at: u64, data: &[u8]) {
        let (at, end) = (at as usize, at as usize + data.len());
        let len = self.model.len().max(end);
        self.model.resize(len, 0);
        self.model[at..end].copy_from_slice(data);
    }

    /// A WRITE was answered.
    fn wrote(&mut self, at: u64, data: Bytes, answer: &Committed) {
        if answer.count as usize != data.len() {
            self.wrong("a short write");
        }
        if answer.stability == Stability::Unstable {
            // The verifier is of another opening than the writes before: COMMIT tells the same.
            if self.uncommitted.is_empty() {
                self.verifier = Some(answer.verifier);
            } else if self.verifier != Some(answer.verifier) {
                self.verifier = None;
            }
            self.uncommitted.push((at, data));
        }
    }

    async fn write(&mut self) {
        let (at, len) = self.range();
        let data: Bytes = match self.rng.random_range(0..8) {
            0 => vec![0; len as usize].into(),
            _ => (0..len).map(|_| self.rng.random()).collect::<Vec<u8>>().into(),
        };
        let stability =
            if self.rng.random_bool(0.1) { Stability::FileSync } else { Stability::Unstable };
        self.note(format!("write {at} {len} {stability:?}"));
        self.apply(at, &data);
        let answer = self.client.write(&self.file, at, data.clone(), stability).await.unwrap();
        self.wrote(at, data, &answer);
    }

    /// Whole pages as they are in a page cache, changed a little, written back in any order and
    /// several at a time.
    async fn pages(&mut self) {
        if self.model.is_empty() {
            return;
        }
        let pages = self.model.len() as u64 / PAGE + 1;
        let first = self.rng.random_range(0..pages);
        let last = (first + self.rng.random_range(1..12)).min(pages);
        self.note(format!("pages {first}..{last}"));
        let mut writes = Vec::new();
        for page in first..last {
            let (from, to) =
                ((page * PAGE) as usize, self.model.len().min(((page + 1) * PAGE) as usize));
            if from >= to {
                continue;
            }
            let at = self.rng.random_range(from..to);
            self.model[at] = self.rng.random();
            writes.push((from as u64, Bytes::copy_from_slice(&self.model[from..to])));
        }
        writes.shuffle(&mut self.rng);
        let sent = writes.iter().map(|(at, data)| {
            self.client.write(&self.file, *at, data.clone(), Stability::Unstable)
        });
        let answers = futures::future::join_all(sent).await;
        for ((at, data), answer) in writes.into_iter().zip(answers) {
            self.wrote(at, data, &answer.unwrap());
        }
    }

    async fn read(&mut self) {
        let (at, len) = self.range();
        self.note(format!("read {at} {len}"));
        let read = self.client.read(&self.file, at, len as u32).await.unwrap();
        let from = (at as usize).min(self.model.len());
        let to = (from + len as usize).min(self.model.len());
        if read.data != self.model[from..to] {
            let first = read.data.iter().zip(&self.model[from..to]).position(|(a, b)| a != b);
            self.wrong(&format!(
                "{} bytes at {at} of {len}, of {}; first difference at {first:?}",
                read.data.len(),
                to - from
            ));
        }
        if read.eof != (to == self.model.len()) {
            self.wrong("eof");
        }
    }

    /// Like the kernel's client, what was written goes first.
    async fn truncate(&mut self) {
        self.commit().await;
        let size = match self.rng.random_range(0..4) {
            0 => 0,
            1 => self.rng.random_range(0..SIZE_MAX) / PAGE * PAGE,
            2 => self.model.len() as u64 + self.rng.random_range(0..30_000),
            _ => self.rng.random_range(0..=self.model.len() as u64),
        };
        let size = size.min(SIZE_MAX);
        self.note(format!("truncate {size}"));
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        let after = self.client.setattr(&self.file, &set, None).await.unwrap().after.unwrap();
        self.model.resize(size as usize, 0);
        if after.size != size {
            self.wrong("another size");
        }
    }

    /// Until everything is stable.
    async fn commit(&mut self) {
        self.note("commit".to_owned());
        for _ in 0..4 {
            let answer = self.client.commit(&self.file, 0, 0).await.unwrap();
            if self.uncommitted.is_empty() || self.verifier == Some(answer.verifier) {
                self.uncommitted.clear();
                return;
            }
            self.note(format!("  {} writes again", self.uncommitted.len()));
            self.verifier = None;
            for (at, data) in std::mem::take(&mut self.uncommitted) {
                // Sends the page as it is by now: a synchronous write may have come after it.
                let data =
                    Bytes::copy_from_slice(&self.model[at as usize..at as usize + data.len()]);
                let again = self
                    .client
                    .write(&self.file, at, data.clone(), Stability::Unstable)
                    .await
                    .unwrap();
                self.wrote(at, data, &again);
            }
        }
        self.wrong("the verifier changes with every COMMIT");
    }

    async fn die(&mut self, death: Death) {
        if death == Death::Node {
            // A truncation answers from the journal: what is to outlive the node is synced.
            self.commit().await;
            for _ in 0..self.rng.random_range(0..5) {
                self.write().await;
            }
        }
        self.note(format!("death of the {death:?}"));
        let old = self.served.take().expect("served");
        let served = self.host.again(old, death).await;
        self.client = served.client(&Credentials::root()).await;
        self.served = Some(served);
        // Before it reads what it wrote, a client that lost its server sends it again.
        self.commit().await;
    }

    async fn verify(&mut self) {
        self.note("verify".to_owned());
        let mut found = Vec::new();
        loop {
            let read = self.client.read(&self.file, found.len() as u64, 1 << 20).await.unwrap();
            found.extend_from_slice(&read.data);
            if read.eof {
                break;
            }
        }
        if found != self.model {
            let differ = |(at, (a, b)): (usize, (&u8, &u8))| (a != b).then_some(at);
            let differing: Vec<usize> =
                found.iter().zip(&self.model).enumerate().filter_map(differ).collect();
            self.wrong(&format!(
                "{} bytes, of {}; {} differ, from {:?} to {:?}, of them {} read as zeros",
                found.len(),
                self.model.len(),
                differing.len(),
                differing.first(),
                differing.last(),
                differing.iter().filter(|at| found[**at] == 0).count()
            ));
        }
    }

    async fn finish(mut self) {
        self.die(Death::Node).await;
        self.verify().await;
        let served = self.served.take().expect("served");
        served.fs.close().await.unwrap();
        self.host.check().await;
    }
}

async fn exercise(record_bytes: u32) {
    let seed = setting("FSX_SEED").unwrap_or_else(|| rand::random::<u64>() >> 16);
    println!("FSX_SEED={seed}, records of {record_bytes} bytes");
    let mut exerciser = Exerciser::new(seed, record_bytes).await;
    let always = setting("FSX_VERIFY").is_some();
    for _ in 0..setting("FSX_OPS").unwrap_or(OPS * size()) {
        exerciser.step().await;
        if always {
            exerciser.verify().await;
        }
    }
    exerciser.finish().await;
}

/// The records of a file keep the size that it was created with (R6).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_small_records_is_what_was_written() {
    Box::pin(exercise(4096)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_large_records_is_what_was_written() {
    Box::pin(exercise(128 << 10)).await;
}
