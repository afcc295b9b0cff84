//! A program on a node that uses the volume through a client which does not give up, as the
//! kernel's.
//!
//! It has a register, a file that it alone writes and everybody reads, and makes, renames and
//! removes names of its own. It prints each event with the times of its call on the machine's one
//! clock. A line on its standard input has it stop, and print what is there.

use crate::network::SEATS;
use crate::support::kernel::Kernel;
use crate::support::wire::{accepted, fh, pack, place};
use nfs3_types::nfs3::*;
use nfs3_types::xdr_codec::{Opaque, Unpack};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use zerofs_csi::nfs::client::FileHandle;

/// Between two rounds: the history stays small, and no fault falls into a pause.
const PAUSE: Duration = Duration::from_millis(10);
const NONE: u32 = 2;
/// Rounds for one name.
const ROUNDS_PER_NAME: u64 = 4;

/// Nanoseconds on a clock that all processes of the machine share.
pub fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

fn register(seat: &str) -> String {
    format!("register-{seat}")
}

pub fn run(endpoint: &str, root: &str, seat: &str) {
    let root = data_encoding::HEXLOWER.decode(root.as_bytes()).unwrap();
    let number = u32::try_from(SEATS.iter().position(|other| *other == seat).unwrap()).unwrap();
    let kernel =
        Kernel::new(endpoint.parse().unwrap(), FileHandle::from_bytes(&root), (number + 1) << 24);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    std::thread::spawn(move || {
        std::io::stdin().read_line(&mut String::new()).unwrap();
        stopped.store(true, Ordering::SeqCst);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut worker = Worker { kernel, root, seat: seat.to_owned(), handles: BTreeMap::new() };
        worker.work(&stop).await;
        println!("stopped");
        // Until the others have stopped as well.
        tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()))
            .await
            .unwrap()
            .unwrap();
        worker.report().await;
    });
}

/// Prints how long a change of a name took.
async fn timed(change: impl Future<Output = u32>) -> u32 {
    let begun = now();
    let status = change.await;
    println!("named {begun} {}", now());
    status
}

struct Worker {
    kernel: Kernel,
    root: Vec<u8>,
    seat: String,
    /// Of registers.
    handles: BTreeMap<String, Vec<u8>>,
}

impl Worker {
    async fn work(&mut self, stop: &AtomicBool) {
        let seat = self.seat.clone();
        self.create_register().await;
        let mut round = 0;
        while !stop.load(Ordering::SeqCst) {
            round += 1;
            self.write(round).await;
            for other in SEATS.iter().filter(|other| **other != seat) {
                self.read(other).await;
            }
            if round % ROUNDS_PER_NAME == 0 {
                self.names(round / ROUNDS_PER_NAME).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The results of a call after its status.
    async fn ask(&mut self, procedure: u32, args: &[u8]) -> (u32, Vec<u8>) {
        let (_, results) = accepted(&self.kernel.reply(procedure, args).await);
        let (status, rest) = results.split_at(4);
        (u32::from_be_bytes(status.try_into().unwrap()), rest.to_vec())
    }

    async fn create_register(&mut self) {
        let name = register(&self.seat);
        let set = sattr3 {
            mode: Nfs3Option::Some(0o644),
            uid: Nfs3Option::None,
            gid: Nfs3Option::None,
            size: Nfs3Option::None,
            atime: set_atime::DONT_CHANGE,
            mtime: set_mtime::DONT_CHANGE,
        };
        let root = self.root.clone();
        let where_ = place(&root, name.as_bytes());
        let args = pack(&CREATE3args { where_, how: createhow3::GUARDED(set) });
        let (status, results) = self.ask(8, &args).await;
        assert_eq!(status, 0, "creating {name}");
        let (made, _) = CREATE3resok::unpack(&mut &results[..]).unwrap();
        let Nfs3Option::Some(handle) = made.obj else { panic!("no handle of {name}") };
        self.handles.insert(self.seat.clone(), handle.data.to_vec());
    }

    async fn write(&mut self, value: u64) {
        let args = WRITE3args {
            file: fh(&self.handles[&self.seat]),
            offset: 0,
            count: 8,
            stable: stable_how::FILE_SYNC,
            data: Opaque::owned(value.to_be_bytes().to_vec()),
        };
        let begun = now();
        let (status, results) = self.ask(7, &pack(&args)).await;
        let ended = now();
        assert_eq!(status, 0, "writing {value}");
        let (written, _) = WRITE3resok::unpack(&mut &results[..]).unwrap();
        assert!(written.count == 8 && written.committed == stable_how::FILE_SYNC);
        let opening = data_encoding::HEXLOWER.encode(&written.verf.0);
        println!("wrote {value} {begun} {ended} {opening}");
    }

    async fn read(&mut self, of: &str) {
        if let Some((value, begun, ended)) = self.value(of).await {
            println!("read {of} {value} {begun} {ended}");
        }
    }

    /// The value of a register, and when it was read; `None`: it does not exist yet.
    async fn value(&mut self, of: &str) -> Option<(u64, u64, u64)> {
        if !self.handles.contains_key(of) {
            let (root, name) = (self.root.clone(), register(of));
            let args = pack(&LOOKUP3args { what: place(&root, name.as_bytes()) });
            let (status, results) = self.ask(3, &args).await;
            if status == NONE {
                return None;
            }
            assert_eq!(status, 0, "looking up {name}");
            let (found, _) = LOOKUP3resok::unpack(&mut &results[..]).unwrap();
            self.handles.insert(of.to_owned(), found.object.data.to_vec());
        }
        let args = READ3args { file: fh(&self.handles[of]), offset: 0, count: 8 };
        let begun = now();
        let (status, results) = self.ask(6, &pack(&args)).await;
        let ended = now();
        assert_eq!(status, 0, "reading the register of {of}");
        let (read, _) = READ3resok::unpack(&mut &results[..]).unwrap();
        let value = match read.data.len() {
            0 => 0,
            _ => u64::from_be_bytes(read.data[..].try_into().unwrap()),
        };
        Some((value, begun, ended))
    }

    /// Each name is made once, and renamed or removed once: a call that was done twice fails.
    async fn names(&mut self, number: u64) {
        let name = format!("{}-{number}", self.seat);
        let created = timed(self.kernel.create(&name)).await;
        assert_eq!(created, 0, "{name} was made twice, or not");
        match number % 3 {
            0 => println!("made {name}"),
            1 => {
                let renamed = format!("{name}-renamed");
                let status = timed(self.kernel.rename(&name, &renamed)).await;
                assert_eq!(status, 0, "renaming {name}");
                println!("made {renamed}");
            }
            _ => assert_eq!(timed(self.kernel.remove(&name)).await, 0, "removing {name}"),
        }
    }

    /// Prints every register and name.
    async fn report(&mut self) {
        for seat in SEATS {
            let (value, ..) = self.value(seat).await.expect("every register exists");
            println!("register {seat} {value}");
        }
        let (mut cookie, mut cookieverf) = (0, cookieverf3::default());
        loop {
            let args = READDIR3args { dir: fh(&self.root), cookie, cookieverf, count: 1 << 16 };
            let (status, results) = self.ask(16, &pack(&args)).await;
            assert_eq!(status, 0, "listing");
            let (page, _) = READDIR3resok::unpack(&mut &results[..]).unwrap();
            for entry in &page.reply.entries.0 {
                cookie = entry.cookie;
                let name = String::from_utf8_lossy(&entry.name.0).into_owned();
                if !name.starts_with('.') && !name.starts_with("register") {
                    println!("listed {name}");
                }
            }
            cookieverf = page.cookieverf;
            if page.reply.eof {
                break;
            }
        }
        println!("end");
    }
}
