//! The store fails for a while under writers. What was acknowledged is kept, a COMMIT never
//! succeeds without the store, and afterwards all goes on in the same opening (R17, R18).

use crate::script::bytes;
use crate::support::fault::{Chances, Fault as StoreFault, FaultStore, Op, Rule, quick};
use crate::support::files::{top, try_read};
use crate::support::run::paused;
use crate::support::s3::{self, Fault, S3Server};
use crate::support::volume::Dataset;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use zerofs_csi::bucket::Bucket;
use zerofs_csi::fs::api::*;
use zerofs_csi::fs::{Fs, FsError};
use zerofs_csi::types::{Class, Classify};

const WRITERS: u64 = 6;
fn dataset(store: &Arc<FaultStore>, journals: &Path) -> Dataset {
    Dataset::new(store.quick_bucket(), journals.to_owned())
}

fn name(n: u64) -> String {
    format!("file {n}")
}

async fn files(fs: &Fs) -> Vec<FileRef> {
    let mut files = Vec::new();
    for n in 0..WRITERS {
        files.push(top::create(fs, &name(n)).await);
    }
    files
}

/// Repeats a call as a client does for as long as the store is away; any other error is a defect.
async fn persist<T, F: Future<Output = Result<T, FsError>>>(
    what: &str,
    mut call: impl FnMut() -> F,
) -> T {
    loop {
        match call().await {
            Ok(done) => return done,
            Err(error) => {
                assert!(
                    matches!(error.class(), Class::Unavailable | Class::InProgress),
                    "{what}: {error}"
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

async fn content(fs: &Fs, file: FileRef) -> Vec<u8> {
    persist("reading", || try_read(fs, file)).await
}

/// Sizes on both sides of what rides in the database and what goes to packs.
fn piece(writer: u64, n: u64) -> Vec<u8> {
    bytes(writer << 20 | n, [700, 5_000, 90_000, 20_000][(writer + n) as usize % 4])
}

/// One writer's record of what it wrote.
struct Wrote {
    all: Vec<u8>,
    /// Bytes whose COMMIT succeeded.
    committed: usize,
}

/// Appends and commits until told to stop. `away`: no COMMIT that began while it is set may succeed
/// while it is set.
async fn write(
    fs: Arc<Fs>,
    file: FileRef,
    writer: u64,
    away: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) -> Wrote {
    let mut wrote = Wrote { all: Vec::new(), committed: 0 };
    let caller = Caller::root();
    for n in 0.. {
        let (at, data) = (wrote.all.len() as u64, piece(writer, n));
        persist("writing", || {
            fs.write(&caller, file, at, data.clone().into(), Stability::Unstable)
        })
        .await;
        wrote.all.extend_from_slice(&data);
        if n % 3 != 2 {
            let began_away = away.load(Ordering::SeqCst);
            persist("committing", || fs.commit(&caller, file, 0, 0)).await;
            assert!(
                !(began_away && away.load(Ordering::SeqCst)),
                "a COMMIT succeeded without the store"
            );
            wrote.committed = wrote.all.len();
            done.fetch_add(1, Ordering::SeqCst);
        }
        if stop.load(Ordering::SeqCst) {
            break;
        }
    }
    wrote
}

/// Writers through `trouble`, then: everything is there, in the same opening; after a clean close;
/// and what was committed without the journal.
async fn through(trouble: impl AsyncFnOnce(&FaultStore, &AtomicBool)) {
    let store = FaultStore::memory();
    let bucket = store.bucket();
    survive(bucket, async |away| trouble(&store, away).await, || store.heal()).await;
}

async fn survive(bucket: Bucket, trouble: impl AsyncFnOnce(&AtomicBool), heal: impl FnOnce()) {
    let folder = tempfile::tempdir().unwrap();
    let mut dataset = Dataset::new(bucket.with_limits(quick()), folder.path().to_owned());
    let fs = Arc::new(dataset.open().await);
    let (files, verifier) = (files(&fs).await, fs.write_verifier());
    persist("syncing", || fs.sync()).await;
    let (away, stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let writers: Vec<_> = files
        .iter()
        .zip(0..)
        .map(|(file, n)| {
            tokio::spawn(write(fs.clone(), *file, n, away.clone(), stop.clone(), done.clone()))
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    trouble(&away).await;
    away.store(false, Ordering::SeqCst);
    heal();
    let before = done.load(Ordering::SeqCst);
    let healed = Instant::now();
    while done.load(Ordering::SeqCst) < before + 2 * WRITERS {
        assert!(healed.elapsed() < Duration::from_secs(60), "nothing goes on after the outage");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, Ordering::SeqCst);
    let mut wrote = Vec::new();
    for writer in writers {
        wrote.push(writer.await.unwrap());
    }
    assert_eq!(
        fs.write_verifier(),
        verifier,
        "the opening is the same, so nothing needs to be sent again (R18)"
    );
    for (file, wrote) in files.iter().zip(&wrote) {
        assert!(content(&fs, *file).await == wrote.all, "what was written is shown");
    }
    // The node dies: what was committed is in the store.
    drop(fs);
    dataset.options.journal = None;
    let fs = dataset.open().await;
    assert_ne!(fs.write_verifier(), verifier, "(R18)");
    for (file, wrote) in files.iter().zip(&wrote) {
        let found = content(&fs, *file).await;
        assert!(
            found.len() >= wrote.committed
                && found[..wrote.committed] == wrote.all[..wrote.committed],
            "a committed byte is lost"
        );
    }
    fs.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_loses_nothing_and_ends_by_itself() {
    through(async |store, away| {
        store.die();
        // Requests in flight when the outage began may still be answered.
        tokio::time::sleep(Duration::from_millis(100)).await;
        away.store(true, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(4)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_only_reads_loses_nothing() {
    through(async |store, away| {
        store.script(Rule::on(Op::Put));
        store.script(Rule::on(Op::PutNew));
        tokio::time::sleep(Duration::from_millis(100)).await;
        away.store(true, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(4)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_and_random_failures_lose_nothing() {
    for seed in 0..crate::support::run::size() {
        through(async |store, _| {
            let chances = Chances {
                before: 150,
                lost_ack: 150,
                delay: 100,
                delay_max: Duration::from_millis(30),
                ..Chances::default()
            };
            store.random(seed, chances);
            tokio::time::sleep(Duration::from_secs(3)).await;
        })
        .await;
    }
}

/// The same over HTTP, where answers are cut, conflicts are in progress and effects come late.
/// `CRASH_SEED` repeats one run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_answers_of_an_s3_server_lose_nothing() {
    let seeds: Vec<u64> = match std::env::var("CRASH_SEED") {
        Ok(seed) => vec![seed.parse().expect("CRASH_SEED is a number")],
        Err(_) => (0..crate::support::run::size()).map(|_| rand::random::<u64>() >> 16).collect(),
    };
    for seed in seeds {
        println!("CRASH_SEED={seed}");
        let server = S3Server::start();
        server.quirks(|quirks| quirks.drops_metadata = seed % 2 == 1);
        let trouble = async |_: &AtomicBool| {
            let chances = s3::Chances {
                refuse: 100,
                conflict: 150,
                cut: 100,
                cut_body: 50,
                delay: 100,
                delay_max: Duration::from_millis(700),
            };
            server.random(seed, chances);
            tokio::time::sleep(Duration::from_secs(5)).await;
        };
        survive(server.pool("s3://test/pool"), trouble, || server.heal()).await;
    }
}

/// A server that is away for a while, seen from a connection: refused, or silent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_s3_server_that_is_away_loses_nothing() {
    for fault in [Fault::refuse(503, "SlowDown"), Fault::hang()] {
        let server = S3Server::start();
        let trouble = async |away: &AtomicBool| {
            server.script(Rule::any().then(fault.clone()));
            tokio::time::sleep(Duration::from_millis(200)).await;
            away.store(true, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(4)).await;
        };
        survive(server.pool("s3://test/pool"), trouble, || server.heal()).await;
    }
}

/// Data that is only buffered when the outage begins stays readable, and the COMMIT after the
/// outage succeeds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buffered_data_outlives_an_outage() {
    let folder = tempfile::tempdir().unwrap();
    let store = FaultStore::memory();
    let mut dataset = dataset(&store, folder.path());
    dataset.options.flush_interval = Duration::from_millis(50);
    let fs = dataset.open().await;
    let files = files(&fs).await;
    persist("syncing", || fs.sync()).await;
    store.die();
    for (file, n) in files.iter().zip(0..) {
        fs.write(&Caller::root(), *file, 0, piece(n, n).into(), Stability::Unstable).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    for (file, n) in files.iter().zip(0..) {
        assert!(content(&fs, *file).await == piece(n, n));
    }
    store.heal();
    let caller = Caller::root();
    for file in &files {
        persist("committing", || fs.commit(&caller, *file, 0, 0)).await;
    }
    drop(fs);
    dataset.options.journal = None;
    let fs = dataset.open().await;
    for (file, n) in files.iter().zip(0..) {
        assert!(content(&fs, *file).await == piece(n, n));
    }
    fs.close().await.unwrap();
}

/// A volume that is closed during an outage is closed when that is repeated afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_during_an_outage_may_be_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let store = FaultStore::memory();
    let dataset = dataset(&store, folder.path());
    let fs = Arc::new(dataset.open().await);
    let files = files(&fs).await;
    for (file, n) in files.iter().zip(0..) {
        fs.write(&Caller::root(), *file, 0, piece(n, n).into(), Stability::Unstable).await.unwrap();
    }
    store.die();
    let closing = tokio::spawn({
        let fs = fs.clone();
        async move { fs.close().await }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    store.heal();
    if let Err(error) = closing.await.unwrap() {
        assert!(matches!(error.class(), Class::Unavailable | Class::InProgress), "{error}");
        persist("closing", || fs.close()).await;
    }
    drop(fs);
    let fs = dataset.open().await;
    for (file, n) in files.iter().zip(0..) {
        assert!(content(&fs, *file).await == piece(n, n));
    }
    fs.close().await.unwrap();
}

/// Waits that nobody has to wait for: time passes when everybody waits for it.
/// Bytes of written data that may wait for the store.
const DIRTY_BYTES: u64 = 4 << 20;

/// Writes on without ever asking for a COMMIT.
async fn write_on(
    fs: Arc<Fs>,
    file: FileRef,
    writer: u64,
    told: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> Vec<u8> {
    let (mut wrote, caller): (Vec<u8>, _) = (Vec::new(), Caller::root());
    while !stop.load(Ordering::SeqCst) {
        let data = bytes(writer << 20 | wrote.len() as u64, 40_000);
        persist("writing", || {
            fs.write(&caller, file, wrote.len() as u64, data.clone().into(), Stability::Unstable)
        })
        .await;
        wrote.extend_from_slice(&data);
        told.fetch_add(data.len() as u64, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    wrote
}

/// SlateDB's writer, given a number of tries of a request, gives up for good after them: it must
/// not be given one.
#[test]
fn an_outage_of_hours_takes_no_more_memory_than_one_of_minutes() {
    paused(|| async {
        let folder = tempfile::tempdir().unwrap();
        let store = FaultStore::memory();
        // The limits of production: what is tried again is tried as often as there.
        let mut dataset = Dataset::new(store.bucket(), folder.path().to_owned());
        dataset.options.memory = zerofs_csi::fs::FsMemory::new(DIRTY_BYTES, 4 << 20);
        let fs = Arc::new(dataset.open().await);
        let files = files(&fs).await;
        fs.sync().await.unwrap();
        store.die();
        store.clear_log();
        let (told, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let writers: Vec<_> = files
            .iter()
            .zip(0..)
            .map(|(file, n)| {
                tokio::spawn(write_on(fs.clone(), *file, n, told.clone(), stop.clone()))
            })
            .collect();
        // A row is on its way all the time: its request is what must not be given up.
        top::create(&*fs, &name(WRITERS)).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        let early = told.load(Ordering::SeqCst);
        assert!(early > 0 && early <= DIRTY_BYTES, "{early} bytes of data wait for the store");
        let requests = store.log().len();
        tokio::time::sleep(Duration::from_secs(150 * 60)).await;
        assert_eq!(told.load(Ordering::SeqCst), early, "more is taken the longer it lasts");
        let tried = store.log().len() - requests;
        println!("{early} bytes told, {requests} requests in the first 10 minutes, {tried} in 150");
        assert!(tried < 150 * 60 * 8, "{tried} requests in 150 minutes");
        store.heal();
        tokio::time::sleep(Duration::from_secs(120)).await;
        let now = told.load(Ordering::SeqCst);
        assert!(
            now > early,
            "it does not go on by itself: {early} bytes told before, {now} after the outage"
        );
        stop.store(true, Ordering::SeqCst);
        let mut wrote = Vec::new();
        for writer in writers {
            wrote.push(writer.await.unwrap());
        }
        fs.sync().await.unwrap();
        drop(fs);
        dataset.options.journal = None;
        let fs = dataset.open().await;
        for (file, wrote) in files.iter().zip(&wrote) {
            assert!(content(&fs, *file).await == *wrote, "what was written is there");
        }
        assert!(top::has(&fs, &name(WRITERS)).await);
        fs.close().await.unwrap();
    });
}

/// A store that is asked for too much is asked less, however many wait, and afterwards everything
/// goes on.
#[test]
fn a_store_that_throttles_is_asked_less() {
    paused(|| async {
        let folder = tempfile::tempdir().unwrap();
        let store = FaultStore::memory();
        let mut dataset = Dataset::new(store.bucket(), folder.path().to_owned());
        let fs = Arc::new(dataset.open().await);
        let files = files(&fs).await;
        fs.sync().await.unwrap();
        store.script(Rule::any().then(StoreFault::Throttled));
        store.clear_log();
        let commits: Vec<_> = files
            .iter()
            .zip(0..)
            .map(|(file, n)| {
                let (fs, file) = (fs.clone(), *file);
                tokio::spawn(async move {
                    let caller = Caller::root();
                    persist("writing", || {
                        fs.write(&caller, file, 0, piece(n, n).into(), Stability::Unstable)
                    })
                    .await;
                    persist("committing", || fs.commit(&caller, file, 0, 0)).await;
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let first = store.log().len();
        store.clear_log();
        tokio::time::sleep(Duration::from_secs(600)).await;
        let then = store.log().len();
        println!("{first} requests in the first minute, {then} in the ten that follow");
        // Six files and the rows of all of them: a request every few seconds for each.
        assert!(then < 10 * 240, "{then} requests in ten minutes for {WRITERS} writers");
        assert!(
            commits.iter().all(|commit| !commit.is_finished()),
            "a COMMIT succeeded without the store"
        );
        store.heal();
        for commit in commits {
            tokio::time::timeout(Duration::from_secs(120), commit)
                .await
                .expect("it goes on by itself")
                .unwrap();
        }
        drop(fs);
        dataset.options.journal = None;
        let fs = dataset.open().await;
        for (file, n) in files.iter().zip(0..) {
            assert!(content(&fs, *file).await == piece(n, n));
        }
        fs.close().await.unwrap();
    });
}
