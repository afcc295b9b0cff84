//! A node's journal, torn or damaged at any place, or of something else: what is replayed is a
//! prefix of what was logged, or nothing (R16).

use bytes::Bytes;
use object_store::memory::InMemory;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::fs::db::{Database, DbCache, DbPlace};
use zerofs_csi::fs::{Batch, Committer, FsError, key};
use zerofs_csi::telemetry::Failpoints;
use zerofs_csi::types::{Incarnation, InodeNo};

const BATCHES: u64 = 6;
/// Magic, version, incarnation, epoch, first sequence, nonce, checksum.
const HEADER_BYTES: usize = 8 + 4 + 16 + 8 + 8 + 16 + 16;
const VERSION_BYTES: std::ops::Range<usize> = 8..12;

type Rows = BTreeMap<u64, Bytes>;

async fn open(store: &InMemory, dataset: u8, journal: &Path) -> Result<Committer, FsError> {
    let place = DbPlace::new(
        Bucket::on(Arc::new(store.clone()), Default::default()),
        Incarnation::from_bytes([dataset; 16]),
        None,
        DbCache::new(4 << 20),
    );
    let db = Database::open(&place, None).await?;
    Committer::start(db, Some(journal), Box::new(|| 0), Failpoints::default()).await
}

fn value(n: u64) -> Bytes {
    Bytes::from(format!("value of {n}, {}", "x".repeat(n as usize * 3)))
}

async fn rows(committer: &Committer) -> Rows {
    let rows =
        committer.scan(Bytes::from_static(b"I"), Bytes::from_static(b"J"), 100).await.unwrap();
    rows.into_iter()
        .map(|(key, row)| (u64::from_be_bytes(key[1..].try_into().unwrap()), row))
        .collect()
}

/// The state after this many of the batches that begin at `first`.
fn prefix(first: u64, batches: u64) -> Rows {
    (first..first + batches).map(|n| (n, value(n))).collect()
}

fn segment(journal: &Path) -> PathBuf {
    let mut name = journal.as_os_str().to_owned();
    name.push(".0");
    name.into()
}

/// Leaves the store and the journal of a process that died with these batches applied and not
/// durable; answers the journal's bytes.
async fn died(store: &InMemory, dataset: u8, journal: &Path, first: u64) -> Vec<u8> {
    let committer = open(store, dataset, journal).await.unwrap();
    for n in first..first + BATCHES {
        let batch = Batch {
            inodes: 1,
            rows: vec![(key::inode(InodeNo(n)), Some(value(n)))],
            ..Batch::default()
        };
        // Awaited one by one, so that each is a record of its own.
        committer.applied(committer.submit(batch).unwrap()).await.unwrap();
    }
    committer.abandon().await;
    drop(committer);
    let bytes = std::fs::read(segment(journal)).unwrap();
    assert!(bytes.len() > HEADER_BYTES);
    bytes
}

/// Opens a copy of the store with a journal of these bytes. Answers what is there, or nothing where
/// the opening was refused, and that the count agrees.
async fn replayed(store: &InMemory, journal: &Path, bytes: &[u8]) -> Option<Rows> {
    std::fs::write(segment(journal), bytes).unwrap();
    let store = store.fork();
    match open(&store, 1, journal).await {
        Ok(committer) => {
            let found = rows(&committer).await;
            assert_eq!(committer.totals().inodes, found.len() as u64);
            // The committer serves, and batches that it takes from now on survive.
            committer.durable(committer.submit(Batch::default()).unwrap()).await.unwrap();
            committer.abandon().await;
            Some(found)
        }
        Err(FsError::Internal(why)) => {
            assert!(why.contains("newer program"), "{why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_torn_anywhere_gives_a_prefix() {
    let folder = tempfile::tempdir().unwrap();
    let (store, journal) = (InMemory::new(), folder.path().join("journal"));
    let whole = died(&store, 1, &journal, 2).await;
    assert_eq!(replayed(&store, &journal, &whole).await, Some(prefix(2, BATCHES)));
    let mut last = 0;
    for cut in (0..=whole.len()).step_by(if crate::support::run::size() > 1 { 1 } else { 17 }) {
        let found = replayed(&store, &journal, &whole[..cut])
            .await
            .expect("a torn journal is no reason not to open");
        let kept = found.len() as u64;
        assert_eq!(found, prefix(2, kept), "cut at {cut}");
        assert!(kept >= last, "a longer journal at {cut} brings back less");
        last = kept;
    }
    // Bytes after the end that are no record are a torn one.
    let longer = [whole.as_slice(), &whole[HEADER_BYTES..HEADER_BYTES + 60]].concat();
    assert_eq!(replayed(&store, &journal, &longer).await, Some(prefix(2, BATCHES)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_journal_gives_a_prefix() {
    let folder = tempfile::tempdir().unwrap();
    let (store, journal) = (InMemory::new(), folder.path().join("journal"));
    let whole = died(&store, 1, &journal, 2).await;
    let per_record = (whole.len() - HEADER_BYTES) / BATCHES as usize;
    for at in (0..whole.len()).step_by(if crate::support::run::size() > 1 { 1 } else { 19 }) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        let Some(found) = replayed(&store, &journal, &bytes).await else {
            assert!(VERSION_BYTES.contains(&at), "a bit at {at} made it a newer program's");
            continue;
        };
        let kept = found.len() as u64;
        assert_eq!(found, prefix(2, kept), "a bit at {at}");
        let before = at.saturating_sub(HEADER_BYTES) / per_record;
        assert!(
            kept < BATCHES && kept <= before as u64 + 1,
            "a bit at {at} was not noticed: {kept}"
        );
    }
}

/// Neither what another dataset logged, nor what an earlier opening logged whose successor has gone
/// on without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_of_something_else_is_never_applied() {
    let folder = tempfile::tempdir().unwrap();
    let (store, journal, other) =
        (InMemory::new(), folder.path().join("journal"), folder.path().join("other"));
    let own = died(&store, 1, &journal, 2).await;
    let foreign = died(&InMemory::new(), 2, &other, 2).await;
    assert_eq!(replayed(&store, &journal, &foreign).await, Some(Rows::new()), "another dataset's");

    // The node is lost, another takes over, and the journal comes back.
    std::fs::remove_file(segment(&journal)).unwrap();
    let next = died(&store, 1, &journal, 50).await;
    assert_eq!(replayed(&store, &journal, &own).await, Some(Rows::new()), "an earlier epoch's");
    assert_eq!(replayed(&store, &journal, &next).await, Some(prefix(50, BATCHES)), "its own");
    let half: Vec<u8> = [&next[..HEADER_BYTES], &own[HEADER_BYTES..]].concat();
    assert_eq!(
        replayed(&store, &journal, &half).await,
        Some(Rows::new()),
        "records behind another header"
    );
}
