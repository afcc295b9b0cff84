//! The ways in which databases, editors and git commit: by unlink, by rename and by link, mostly
//! followed by an fsync of the directory, for which Linux sends an NFS server nothing. The node
//! dies after every call and at every request of the sequence; another node then opens what the
//! store has. What a program's own recovery makes of it must be the state before or after the
//! transaction, and the one after it once the call that commits was answered.

use crate::script::bytes;
use crate::support::fault::FaultStore;
use crate::support::files::{GUARDED, name, tree};
use crate::support::run::{paused_runtime, size};
use crate::support::volume::Dataset;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use zerofs_csi::fs::api::*;
use zerofs_csi::fs::{Fs, FsError, SyncMode};

const PAGE: usize = 4096;
const PAGES: usize = 12;
/// No call of a sequence takes longer, unless its store is dead.
const LIMIT: Duration = Duration::from_secs(5);

enum Call {
    Create(&'static str),
    /// Bytes at an offset, UNSTABLE.
    Write(&'static str, usize, Vec<u8>),
    /// fsync(2) of the file.
    Sync(&'static str),
    Remove(&'static str),
    Rename(&'static str, &'static str),
    Link(&'static str, &'static str),
    Truncate(&'static str, usize),
}

use Call::*;

type Files = BTreeMap<String, Vec<u8>>;

/// The state that a program's recovery finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Before,
    After,
}

struct Way {
    name: &'static str,
    /// Synced before the transaction begins.
    setup: Vec<Call>,
    calls: Vec<Call>,
    /// The transaction is committed when this many calls were answered.
    commits: usize,
    /// Runs the program's recovery on the files; an error where it would find a damaged database.
    recover: fn(&Files) -> Result<State, String>,
}

fn page(n: usize, version: u64) -> Vec<u8> {
    bytes(1 + n as u64 + 1000 * version, PAGE)
}

fn pages(version: u64) -> Vec<u8> {
    (0..PAGES).flat_map(|n| page(n, version)).collect()
}

/// Pages that the transactions change.
const CHANGED: [usize; 5] = [0, 3, 4, 7, 11];

fn changed() -> Vec<u8> {
    let mut data = pages(1);
    CHANGED.iter().for_each(|n| data[n * PAGE..(n + 1) * PAGE].copy_from_slice(&page(*n, 2)));
    data
}

fn whole(data: Option<&Vec<u8>>) -> Result<State, String> {
    match data {
        Some(data) if *data == pages(1) => Ok(State::Before),
        Some(data) if *data == changed() => Ok(State::After),
        Some(data) => Err(format!("a mixture of {} bytes", data.len())),
        None => Err("no database".to_owned()),
    }
}

fn checksum(data: &[u8]) -> [u8; 8] {
    data.iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        })
        .to_le_bytes()
}

/// A page as journals hold it: number, checksum, bytes.
fn frame(n: usize, data: &[u8]) -> Vec<u8> {
    [&(n as u64).to_le_bytes()[..], &checksum(&[&(n as u64).to_le_bytes(), data].concat()), data]
        .concat()
}

const FRAME: usize = 16 + PAGE;

fn frames(log: &[u8]) -> Vec<(usize, Vec<u8>)> {
    let valid = |chunk: &&[u8]| {
        chunk.len() == FRAME
            && chunk[8..16] == checksum(&[&chunk[..8], &chunk[16..]].concat())
            && chunk[..8] < [0xff; 8][..]
    };
    let number = |chunk: &[u8]| u64::from_le_bytes(chunk[..8].try_into().unwrap()) as usize;
    log.chunks(FRAME).take_while(valid).map(|chunk| (number(chunk), chunk[16..].to_vec())).collect()
}

fn write_pages(file: &'static str) -> Vec<Call> {
    CHANGED.iter().map(|n| Write(file, n * PAGE, page(*n, 2))).collect()
}

/// SQLite, `journal_mode=DELETE`: the old pages go to a journal that is synced, its header then
/// says how many there are, the database is written and synced, and the journal is removed: that
/// commits.
fn rollback_journal() -> Way {
    let header = 8;
    let mut calls = vec![Create("db-journal"), Write("db-journal", 0, vec![0; header])];
    for (at, n) in CHANGED.iter().enumerate() {
        calls.push(Write("db-journal", header + at * FRAME, frame(*n, &page(*n, 1))));
    }
    calls.push(Sync("db-journal"));
    calls.push(Write("db-journal", 0, (CHANGED.len() as u64).to_le_bytes().to_vec()));
    calls.push(Sync("db-journal"));
    calls.extend(write_pages("db"));
    calls.push(Sync("db"));
    calls.push(Remove("db-journal"));
    let recover = |files: &Files| {
        let mut db = files.get("db").cloned().ok_or("no database")?;
        if let Some(journal) = files.get("db-journal").filter(|journal| journal.len() >= 8) {
            let count = u64::from_le_bytes(journal[..8].try_into().unwrap()) as usize;
            let old = frames(&journal[8..]);
            if old.len() < count {
                return Err(format!("a journal that says {count} pages and has {}", old.len()));
            }
            old.into_iter()
                .take(count)
                .for_each(|(n, data)| db[n * PAGE..(n + 1) * PAGE].copy_from_slice(&data));
        }
        whole(Some(&db))
    };
    Way {
        name: "SQLite, rollback journal",
        setup: database("db"),
        commits: calls.len(),
        calls,
        recover,
    }
}

fn database(name: &'static str) -> Vec<Call> {
    vec![Create(name), Write(name, 0, pages(1)), Sync(name)]
}

/// SQLite, `journal_mode=WAL`, `synchronous=FULL`: frames are appended to the log and synced: that
/// commits. A checkpoint writes them to the database, syncs it, and begins the log again.
fn write_ahead_log() -> Way {
    let mut calls: Vec<Call> = CHANGED
        .iter()
        .enumerate()
        .map(|(at, n)| Write("db-wal", at * FRAME, frame(*n, &page(*n, 2))))
        .collect();
    calls.push(Sync("db-wal"));
    let commits = calls.len();
    calls.extend(write_pages("db"));
    calls.push(Sync("db"));
    calls.push(Truncate("db-wal", 0));
    let recover = |files: &Files| {
        let mut db = files.get("db").cloned().ok_or("no database")?;
        let log = frames(files.get("db-wal").ok_or("no log")?);
        // The last frame of a transaction says that it is one.
        if log.len() == CHANGED.len() {
            log.into_iter()
                .for_each(|(n, data)| db[n * PAGE..(n + 1) * PAGE].copy_from_slice(&data));
        }
        whole(Some(&db))
    };
    let setup = database("db").into_iter().chain([Create("db-wal"), Sync("db-wal")]).collect();
    Way { name: "SQLite, write-ahead log", setup, calls, commits, recover }
}

/// An editor, and every program that replaces a file: the new one is written beside it, synced, and
/// renamed over it: that commits.
fn write_and_rename() -> Way {
    let calls = vec![
        Create("file.tmp"),
        Write("file.tmp", 0, changed()),
        Sync("file.tmp"),
        Rename("file.tmp", "file"),
    ];
    let recover = |files: &Files| whole(files.get("file"));
    Way {
        name: "a file that is replaced",
        setup: database("file"),
        commits: calls.len(),
        calls,
        recover,
    }
}

/// git: an object is written, synced and linked to its name, its temporary name removed; then the
/// reference is written to its lock file, synced and renamed: that commits. The reference never
/// names an object that is not there.
fn git() -> Way {
    let calls = vec![
        Create("tmp_obj"),
        Write("tmp_obj", 0, changed()),
        Sync("tmp_obj"),
        Link("tmp_obj", "object"),
        Remove("tmp_obj"),
        Create("ref.lock"),
        Write("ref.lock", 0, b"object".to_vec()),
        Sync("ref.lock"),
        Rename("ref.lock", "ref"),
    ];
    let recover = |files: &Files| {
        let name = files.get("ref").ok_or("no reference")?;
        whole(files.get(std::str::from_utf8(name).map_err(|error| error.to_string())?))
    };
    let setup = database("first")
        .into_iter()
        .chain([Create("ref"), Write("ref", 0, b"first".to_vec()), Sync("ref")])
        .collect();
    Way { name: "git", setup, commits: calls.len(), calls, recover }
}

/// LevelDB and RocksDB: a new manifest is written and synced, CURRENT is replaced to name it: that
/// commits. Then the old one is removed.
fn current_manifest() -> Way {
    let calls = vec![
        Create("MANIFEST-2"),
        Write("MANIFEST-2", 0, changed()),
        Sync("MANIFEST-2"),
        Create("CURRENT.tmp"),
        Write("CURRENT.tmp", 0, b"MANIFEST-2".to_vec()),
        Sync("CURRENT.tmp"),
        Rename("CURRENT.tmp", "CURRENT"),
        Remove("MANIFEST-1"),
    ];
    let recover = |files: &Files| {
        let name = files.get("CURRENT").ok_or("no CURRENT")?;
        whole(files.get(std::str::from_utf8(name).map_err(|error| error.to_string())?))
    };
    let current = [Create("CURRENT"), Write("CURRENT", 0, b"MANIFEST-1".to_vec()), Sync("CURRENT")];
    let setup = database("MANIFEST-1").into_iter().chain(current).collect();
    Way { name: "LevelDB", setup, commits: 7, calls, recover }
}

/// A mail that is delivered: written and synced under `tmp`, linked to `new`, removed from `tmp`:
/// that it was accepted is told then.
fn maildir() -> Way {
    let calls = vec![
        Create("tmp-mail"),
        Write("tmp-mail", 0, changed()),
        Sync("tmp-mail"),
        Link("tmp-mail", "new-mail"),
        Remove("tmp-mail"),
    ];
    let recover = |files: &Files| match files.get("new-mail") {
        Some(mail) => whole(Some(mail)),
        None => Ok(State::Before),
    };
    Way { name: "a maildir", setup: vec![], commits: 4, calls, recover }
}

/// Where the node dies.
#[derive(Clone, Copy, Debug)]
enum Death {
    /// After this many calls.
    Calls(usize),
    /// After this many changes of the store, of the last of which the answer is lost.
    Requests(usize),
}

async fn call(fs: &Fs, call: &Call, xid: u32) -> Result<(), FsError> {
    let caller = Caller {
        call: Some(CallId { client: 1, xid, checksum: u64::from(xid) }),
        ..Caller::root()
    };
    let root = fs.root();
    let find = async |text: &str| {
        fs.lookup(&caller, root, text.as_bytes()).await.map(|(attr, _)| attr.file)
    };
    match call {
        Create(at) => fs.create(&caller, root, &name(at), GUARDED).await.map(drop),
        Write(at, offset, data) => {
            let data = data.clone().into();
            fs.write(&caller, find(at).await?, *offset as u64, data, Stability::Unstable)
                .await
                .map(drop)
        }
        Sync(at) => fs.commit(&caller, find(at).await?, 0, 0).await.map(drop),
        Remove(at) => fs.remove(&caller, root, &name(at)).await.map(drop),
        Rename(from, to) => {
            fs.rename(&caller, (root, &name(from)), (root, &name(to))).await.map(drop)
        }
        Link(from, to) => fs.link(&caller, find(from).await?, root, &name(to)).await.map(drop),
        Truncate(at, size) => {
            let set = SetAttr { size: Some(*size as u64), ..SetAttr::default() };
            fs.setattr(&caller, find(at).await?, set, None).await.map(drop)
        }
    }
}

async fn files(fs: &Fs) -> Files {
    let found = tree(fs, fs.root()).await.unwrap().into_iter();
    let files = found.filter(|(_, object)| object.attr.kind == FileKind::Regular);
    files.map(|(path, object)| (path[1..].to_owned(), object.content)).collect()
}

/// The sequence until the node dies. Answers the calls answered, and whether it died before the
/// end.
async fn act(store: &Arc<FaultStore>, dataset: &Dataset, way: &Way, death: Death) -> (usize, bool) {
    let fs = dataset.open().await;
    for (xid, setup) in way.setup.iter().enumerate() {
        call(&fs, setup, xid as u32).await.unwrap();
    }
    fs.sync().await.unwrap();
    if let Death::Requests(changes) = death {
        store.die_after(changes);
    }
    let most = if let Death::Calls(calls) = death { calls } else { way.calls.len() };
    let mut answered = 0;
    for (at, next) in way.calls.iter().take(most).enumerate() {
        match tokio::time::timeout(LIMIT, call(&fs, next, 1000 + at as u32)).await {
            Ok(Ok(())) => answered += 1,
            Ok(Err(_)) | Err(_) if store.is_dead() => break,
            Ok(Err(error)) => panic!("{}: call {at}: {error}", way.name),
            Err(_) => panic!("{}: call {at} hangs", way.name),
        }
    }
    let died = store.is_dead();
    store.die();
    (answered, died)
}

/// One death. Answers whether the sequence was over before it came.
fn play(way: &Way, sync: SyncMode, death: Death) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let store = FaultStore::memory();
    let mut dataset = Dataset::new(store.quick_bucket(), folder.path().to_owned());
    dataset.options.properties.sync = sync;
    let life = paused_runtime();
    let (answered, died) = life.block_on(Box::pin(act(&store, &dataset, way, death)));
    drop(life);
    store.heal();
    let other = tempfile::tempdir().unwrap();
    dataset.reborn(store.quick_bucket(), Some(other.path()));
    let found = paused_runtime().block_on(Box::pin(async {
        let fs = dataset.open().await;
        let found = files(&fs).await;
        fs.close().await.unwrap();
        found
    }));
    let what = format!("{}, {sync:?}, {death:?}, {answered} calls answered", way.name);
    let state = (way.recover)(&found)
        .unwrap_or_else(|why| panic!("{what}: the database is damaged: {why}"));
    assert!(
        answered < way.commits || state == State::After,
        "{what}: the transaction was committed and is lost"
    );
    let begun = answered + usize::from(matches!(death, Death::Requests(_)));
    assert!(
        begun >= way.commits || state == State::Before || way.name.contains("log"),
        "{what}: it is there before it was committed"
    );
    !died && matches!(death, Death::Requests(_))
}

fn holds(way: &Way) {
    for calls in 0..=way.calls.len() {
        play(way, SyncMode::Standard, Death::Calls(calls));
        if size() > 1 {
            play(way, SyncMode::Always, Death::Calls(calls));
        }
    }
    for sync in [SyncMode::Standard, SyncMode::Always] {
        let over = (1..200).find(|changes| play(way, sync, Death::Requests(*changes)));
        assert!(
            over.is_some_and(|changes| changes > 1),
            "{}: the sequence makes requests, and ends",
            way.name
        );
    }
}

#[test]
fn a_rollback_journal_that_was_removed_stays_removed() {
    holds(&rollback_journal());
}

#[test]
fn a_write_ahead_log_that_was_synced_is_there() {
    holds(&write_ahead_log());
}

#[test]
fn a_file_that_was_renamed_has_its_name() {
    holds(&write_and_rename());
    holds(&current_manifest());
}

#[test]
fn a_file_that_was_linked_has_its_name() {
    holds(&git());
    holds(&maildir());
}

/// These tests can fail: with `sync=disabled` the node's death takes what was committed.
#[test]
fn what_is_not_promised_is_lost() {
    let way = write_and_rename();
    let lost =
        std::panic::catch_unwind(|| play(&way, SyncMode::Disabled, Death::Calls(way.calls.len())));
    assert!(lost.is_err());
}
