//! The owner moves again and again while every node works: told to give the volume up, killed, or
//! replaced by another process. Each change takes effect exactly once, whatever was sent again.
//!
//! `ZEROFS_MOVES=20` moves more often; `ZEROFS_SEED` repeats a run.

use crate::node::{Node, SETTINGS, next_owner, owner};
use crate::support::driver::revoke;
use crate::support::kernel::Kernel;
use crate::support::run::setting;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use zerofs_csi::fs::api::DirCookie;
use zerofs_csi::nfs::client::{Client, FileHandle};

/// Makes, renames and removes names of its own until it is stopped. The names that must be there.
pub struct Worker {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<(BTreeSet<String>, Duration)>,
}

impl Worker {
    pub fn start(mut kernel: Kernel, prefix: &'static str) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopped, count) = (stop.clone(), done.clone());
        let task = tokio::spawn(async move {
            let mut names = BTreeSet::new();
            while !stopped.load(Ordering::SeqCst) {
                let number = count.load(Ordering::SeqCst);
                let (name, renamed) = (format!("{prefix}{number}"), format!("{prefix}{number}-r"));
                assert_eq!(kernel.create(&name).await, 0, "{name} was created twice, or not");
                match number % 3 {
                    0 => assert!(names.insert(name)),
                    1 => {
                        assert_eq!(kernel.rename(&name, &renamed).await, 0, "renaming {name}");
                        assert!(names.insert(renamed));
                    }
                    _ => assert_eq!(kernel.remove(&name).await, 0, "removing {name}"),
                }
                count.fetch_add(1, Ordering::SeqCst);
            }
            (names, kernel.longest)
        });
        Self { stop, done, task }
    }

    pub async fn more(&self) {
        let until = self.done.load(Ordering::SeqCst) + 3;
        while self.done.load(Ordering::SeqCst) < until {
            assert!(!self.task.is_finished(), "a call failed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Worker {
    /// The number of its changes.
    pub fn changes(&self) -> u32 {
        self.done.load(Ordering::SeqCst)
    }

    /// Stops; the names that must be there.
    pub async fn end(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::SeqCst);
        let (names, longest) = self.task.await.unwrap();
        println!("{} names; the longest call took {longest:?}", names.len());
        names
    }
}

pub async fn names(client: &Client, root: &FileHandle) -> BTreeSet<String> {
    let (mut found, mut after, mut verifier) = (BTreeSet::new(), DirCookie::default(), [0; 8]);
    loop {
        let page = client.readdir(root, after, verifier, 1 << 16).await.unwrap();
        for entry in &page.entries {
            after = entry.cookie;
            let name = String::from_utf8(entry.name.to_vec()).unwrap();
            if name != "." && name != ".." {
                assert!(found.insert(name.clone()), "{name} is listed twice");
            }
        }
        verifier = page.verifier;
        if page.eof {
            return found;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_takes_effect_once_however_often_the_owner_moves() {
    let (moves, seed) =
        (setting("ZEROFS_MOVES").unwrap_or(4), setting("ZEROFS_SEED").unwrap_or(rand::random()));
    println!("ZEROFS_SEED={seed} ZEROFS_MOVES={moves}");
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let mut nodes = Vec::new();
    for seat in ["a-", "b-", "c-"] {
        nodes.push(Node::start(&dir, seat).await);
    }
    let id = nodes[0].create_shared("v").await;
    for node in &nodes {
        node.stage(&id).await;
    }
    let root = nodes[0].root();
    let workers: Vec<Worker> = nodes
        .iter()
        .zip(1..)
        .map(|(node, number)| {
            Worker::start(Kernel::new(node.at(), root.clone(), number << 24), node.seat)
        })
        .collect();
    for _ in 0..moves {
        for worker in &workers {
            worker.more().await;
        }
        let (begun, before) = (Instant::now(), owner(&dir, &id).await.expect("it is owned"));
        let of = nodes.iter().position(|node| node.name() == before.node);
        let of = of.expect("one of the nodes owns it");
        let how = rng.random_range(0..3);
        if how == 0 {
            revoke(&dir, &id).await;
        } else {
            let Node { driver, seat, last } = nodes.remove(of);
            let mounter = driver.mounter.clone();
            if how == 1 {
                // Killed: the next process of the node comes when another has taken over.
                drop(driver);
                next_owner(&dir, &id, &before).await;
            }
            // Otherwise the next process takes over from the present one.
            nodes.push(Node::over(&dir, seat, mounter, last, SETTINGS).await);
        }
        let (after, _) = next_owner(&dir, &id, &before).await;
        let (how, time) = (["revoked", "killed", "replaced"][how], begun.elapsed());
        println!("{how}: {} owns it after {} ({time:?})", after.node, before.node);
    }
    for worker in &workers {
        worker.more().await;
    }
    let mut expected = BTreeSet::new();
    for worker in workers {
        expected.extend(worker.end().await);
    }
    for node in &nodes {
        assert_eq!(names(&node.client().await, &root).await, expected, "as {} sees it", node.seat);
    }
    for node in &nodes {
        node.unstage(&id).await;
    }
    assert_eq!(owner(&dir, &id).await, None);
}
