//! The committer and its journal.
//!
//! The oracle knows each batch that was submitted, and which were acknowledged as applied or
//! durable. After a crash the rows must be those of some prefix of the batches that holds every
//! acknowledged one: of the durable ones when the node died with its journal, of the applied ones
//! when only the process died. Counts must agree with the rows.

use bytes::Bytes;
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::PathBuf;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::fs::db::{Database, DbCache, DbPlace};
use zerofs_csi::fs::{Batch, Committer, FsError, Ticket, key};
use zerofs_csi::telemetry::Failpoints;
use zerofs_csi::types::{Epoch, Incarnation, InodeNo, PackId};

/// Every durable step of a committer's life.
const STEPS: &[&str] = &[
    "fs.journal.before-append",
    "fs.journal.after-append",
    "fs.journal.disk",
    "fs.commit.before-write",
    "fs.commit.after-write",
    "fs.commit.before-flush",
    "fs.commit.after-flush",
    "fs.commit.before-replay",
    "fs.commit.after-replay",
    "fs.commit.before-epoch",
    "fs.commit.after-epoch",
    "fs.commit.before-checkpoint",
    "fs.commit.after-checkpoint",
    "fs.commit.before-close",
    "fs.commit.after-close",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    Process,
    Node,
}

type Table = BTreeMap<u64, u64>;

struct Oracle {
    /// The table after each batch; index 0: before the first of this history.
    tables: Vec<Table>,
    /// Ticket of the batch at each index.
    tickets: Vec<u64>,
    applied: usize,
    durable: usize,
}

impl Oracle {
    fn from(table: Table) -> Self {
        Self { tables: vec![table], tickets: vec![0], applied: 0, durable: 0 }
    }

    fn index(&self, ticket: Ticket) -> usize {
        self.tickets.iter().position(|t| *t == ticket.0).expect("a ticket of this history")
    }

    fn now(&self) -> &Table {
        self.tables.last().expect("there is a first")
    }
}

struct World {
    place: DbPlace,
    folder: tempfile::TempDir,
    failpoints: Failpoints,
    rng: StdRng,
    epochs: Vec<(InodeNo, u64)>,
}

fn pack() -> PackId {
    PackId { creator: Incarnation::from_bytes([5; 16]), epoch: Epoch(1), seq: 1 }
}

impl World {
    fn new(seed: u64) -> Self {
        let place = DbPlace::new(
            Bucket::memory(),
            Incarnation::from_bytes([5; 16]),
            None,
            DbCache::new(8 << 20),
        );
        let folder = tempfile::tempdir().expect("a folder");
        Self {
            place,
            folder,
            failpoints: Failpoints::default(),
            rng: StdRng::seed_from_u64(seed),
            epochs: Vec::new(),
        }
    }

    fn journal(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    async fn open(&self) -> Result<Committer, FsError> {
        let db = Database::open(&self.place, None).await?;
        Committer::start(db, Some(&self.journal()), Box::new(|| 0), self.failpoints.clone()).await
    }

    /// Random work until something fails or `steps` are done. Answers what is known of it.
    async fn work(&mut self, committer: &Committer, mut oracle: Oracle, steps: u32) -> Oracle {
        for _ in 0..steps {
            let (table, batch) = self.batch(oracle.now());
            let Ok(ticket) = committer.submit(batch) else { break };
            oracle.tables.push(table);
            oracle.tickets.push(ticket.0);
            let at = oracle.index(ticket);
            match self.rng.random_range(0..8) {
                0 if committer.durable(ticket).await.is_ok() => {
                    (oracle.durable, oracle.applied) = (at, at);
                }
                1..=3 if committer.applied(ticket).await.is_ok() => oracle.applied = at,
                4 => {
                    let name = format!("c{}", self.rng.random_range(0..3_u8));
                    let _ = committer.checkpoint(&name).await;
                }
                5 => {
                    if let Ok(given) = committer.new_inode() {
                        assert!(
                            !self.epochs.contains(&given),
                            "{given:?} was given out before (R7)"
                        );
                        self.epochs.push(given);
                    }
                }
                _ => tokio::task::yield_now().await,
            }
        }
        oracle
    }

    /// One to three rows set or deleted; the counts follow the rows.
    fn batch(&mut self, table: &Table) -> (Table, Batch) {
        let (mut table, mut batch) = (table.clone(), Batch::default());
        for _ in 0..self.rng.random_range(1..4) {
            let (row, value) = (self.rng.random_range(2..40_u64), self.rng.random::<u64>());
            let before = table.len() as i64;
            if self.rng.random_bool(0.3) {
                table.remove(&row);
                batch.delete(key::inode(InodeNo(row)));
            } else {
                table.insert(row, value);
                batch.rows.push((key::inode(InodeNo(row)), Some(Bytes::from(value.to_string()))));
            }
            let delta = table.len() as i64 - before;
            batch.inodes += delta;
            batch.allocated += 10 * delta;
            batch.refs.push((pack(), delta));
        }
        (table, batch)
    }

    async fn verify(
        &mut self,
        committer: &Committer,
        oracle: &Oracle,
        least: usize,
        what: &str,
    ) -> Table {
        let rows = committer
            .scan(Bytes::from_static(b"I"), Bytes::from_static(b"J"), 1000)
            .await
            .expect("rows");
        let number = |bytes: &[u8]| u64::from_be_bytes(bytes[1..].try_into().expect("a key"));
        let table: Table = rows
            .iter()
            .map(|(k, v)| (number(k), std::str::from_utf8(v).unwrap().parse().unwrap()))
            .collect();
        let found = oracle.tables.iter().rposition(|known| *known == table);
        let found =
            found.unwrap_or_else(|| panic!("{what}: the rows are of no prefix of the batches"));
        assert!(found >= least, "{what}: batch {found} is the last kept, {least} was acknowledged");
        let (totals, refs) = (committer.totals(), committer.usage(pack()).refs);
        assert_eq!(
            (totals.inodes, totals.allocated, refs),
            (table.len() as u64, 10 * table.len() as u64, table.len() as u64),
            "{what}"
        );
        table
    }

    /// Opens again; a step of opening that fails is a crash too, after which the next opening must
    /// do.
    async fn reopen(&self) -> Committer {
        for _ in 0..4 {
            if let Ok(committer) = self.open().await {
                return committer;
            }
        }
        panic!("does not open");
    }
}

async fn play(step: &str, death: Death, seed: u64) {
    let what = format!("{step}, death of the {death:?}, seed {seed}");
    let mut world = World::new(seed);
    let mut table = Table::new();
    for round in 0..4 {
        let committer = world.reopen().await;
        world
            .failpoints
            .set(step, &format!("{}*off->1*return", world.rng.random_range(0..12)))
            .expect("an action");
        let before = Oracle::from(table.clone());
        let oracle = world.work(&committer, before, 40).await;
        if round == 2 {
            // Whatever of it fails, the journal has the rest.
            let _ = committer.close().await;
        }
        committer.abandon().await;
        drop(committer);
        let least = match death {
            Death::Process => oracle.applied,
            Death::Node => {
                let _ = std::fs::remove_dir_all(world.folder.path());
                oracle.durable
            }
        };
        // Half of the time the failure also meets the opening that follows.
        if world.rng.random_bool(0.5) {
            world.failpoints.set(step, "off").expect("an action");
        }
        let again = world.reopen().await;
        world.failpoints.set(step, "off").expect("an action");
        table = world.verify(&again, &oracle, least, &what).await;
        again.abandon().await;
    }
}

/// Histories at once: they wait a good part of their time.
const HISTORIES_AT_ONCE: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_step_loses_what_was_acknowledged() {
    let seeds = std::env::var("CRASH_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2 * crate::support::run::size());
    let deaths = |(step, seed)| [Death::Process, Death::Node].map(|death| (step, seed, death));
    let all =
        STEPS.iter().flat_map(|step| (0..seeds).map(move |seed| (*step, seed))).flat_map(deaths);
    let plays = all.map(|(step, seed, death)| async move {
        let played = tokio::spawn(tokio::time::timeout(
            std::time::Duration::from_secs(120),
            play(step, death, seed),
        ));
        played
            .await
            .expect("no panic")
            .unwrap_or_else(|_| panic!("{step}, {death:?}, seed {seed}: hangs"));
    });
    futures::stream::iter(plays).buffer_unordered(HISTORIES_AT_ONCE).collect::<()>().await;
}
