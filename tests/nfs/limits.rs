//! Limits of a volume's bandwidth and calls: what they delay, and what they do not.

use crate::edge::{EXPORT, Edge, KEY, new_file, options};
use bytes::Bytes;
use std::ops::Range;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use zerofs_csi::fs::api::Stability;
use zerofs_csi::fs::{Admission, Delay, Io};
use zerofs_csi::nfs::client::{Client, ClientError, Credentials, FileHandle};
use zerofs_csi::nfs::{Budget, Endpoint, ExportId, Limits, NfsStat, Options, Server};
use zerofs_csi::types::IoLimits;

const MIB: u64 = 1 << 20;
/// Far longer than anything takes that waits for no limit.
const LIMIT: Duration = Duration::from_secs(20);

const ONE_MIB_A_SECOND: IoLimits =
    IoLimits { max_read_bandwidth: Some(MIB), max_write_bandwidth: Some(MIB), max_iops: None };

type Answer = Result<(), ClientError>;

async fn timely<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, what).await.expect("it hangs")
}

/// A file of 64 MiB without data.
async fn file(edge: &Edge, client: &Client) -> FileHandle {
    let root = edge.root(client).await;
    let file = client.create(&root, b"f", &new_file()).await.unwrap().handle;
    let set = zerofs_csi::fs::api::SetAttr { size: Some(64 * MIB), ..Default::default() };
    client.setattr(&file, &set, None).await.unwrap();
    file
}

/// Writes of 1 MiB each, at these MiB of the file, all at once.
fn writes(client: &Client, file: &FileHandle, mib: Range<u64>) -> Vec<JoinHandle<Answer>> {
    let write = |n: u64| {
        let (client, file) = (client.clone(), file.clone());
        tokio::spawn(async move {
            let data = Bytes::from(vec![1; MIB as usize]);
            client.write(&file, n * MIB, data, Stability::Unstable).await.map(drop)
        })
    };
    mib.map(write).collect()
}

/// As [`writes`].
fn reads(client: &Client, file: &FileHandle, count: u64) -> Vec<JoinHandle<Answer>> {
    let read = |n: u64| {
        let (client, file) = (client.clone(), file.clone());
        tokio::spawn(async move { client.read(&file, n * MIB, MIB as u32).await.map(drop) })
    };
    (0..count).map(read).collect()
}

fn both(one: Vec<JoinHandle<Answer>>, other: Vec<JoinHandle<Answer>>) -> Vec<JoinHandle<Answer>> {
    one.into_iter().chain(other).collect()
}

fn waiting(calls: &[JoinHandle<Answer>]) -> usize {
    calls.iter().filter(|call| !call.is_finished()).count()
}

async fn all_done(calls: Vec<JoinHandle<Answer>>) {
    for call in calls {
        timely(call).await.unwrap().unwrap();
    }
}

/// The writes of 1 MiB that were carried out.
async fn written(client: &Client, file: &FileHandle) -> u64 {
    timely(client.getattr(file)).await.unwrap().used / MIB
}

/// Waits until this many writes were carried out: those beyond a limit wait by then.
async fn until_written(client: &Client, file: &FileHandle, count: u64) {
    let made = async {
        while written(client, file).await < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timely(made).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_waits_but_reads_and_writes() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let file = file(&edge, &client).await;
    edge.fs.throttle.set(ONE_MIB_A_SECOND);
    let calls = both(writes(&client, &file, 0..25), reads(&client, &file, 25));
    // Payloads do not wait with their calls.
    until_written(&client, &file, 25).await;
    timely(client.getattr(&file)).await.unwrap();
    timely(client.commit(&file, 0, 0)).await.unwrap();
    let root = edge.root(&client).await;
    timely(client.create(&root, b"g", &new_file())).await.unwrap();
    timely(client.readdir(&root, zerofs_csi::fs::api::DirCookie(0), [0; 8], 4096)).await.unwrap();
    assert!(waiting(&calls) > 20, "{} wait", waiting(&calls));
    // A limit that is lifted delays nobody any longer.
    edge.fs.throttle.set(IoLimits::default());
    all_done(calls).await;
}

/// Bytes in flight are shared by all volumes of a node.
#[tokio::test(flavor = "multi_thread")]
async fn a_limited_volume_takes_nothing_from_others() {
    let limits = Limits { read_bytes: 8 << 20, write_bytes: 8 << 20, ..Limits::default() };
    let options = Options { limits, ..options() };
    let budget = Budget::new(&limits);
    let (slow, fast) = (Edge::within(options, &budget).await, Edge::within(options, &budget).await);
    let mut waits = Vec::new();
    for _ in 0..2 {
        let client = slow.client().await;
        let file = file(&slow, &client).await;
        slow.fs.throttle.set(ONE_MIB_A_SECOND);
        waits.extend(writes(&client, &file, 0..12));
        waits.extend(reads(&client, &file, 12));
    }
    let client = fast.client().await;
    let file = file(&fast, &client).await;
    for _ in 0..5 {
        all_done(writes(&client, &file, 0..20)).await;
        all_done(reads(&client, &file, 20)).await;
    }
    assert!(waiting(&waits) > 20, "{} wait", waiting(&waits));
    slow.fs.throttle.lift();
    all_done(waits).await;
}

/// As the node's own kernel and the relays of other nodes are.
#[tokio::test(flavor = "multi_thread")]
async fn all_servers_of_a_volume_share_its_limits() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let file = file(&edge, &client).await;
    let endpoint = Endpoint::new(ExportId([1; 16]), EXPORT.into());
    endpoint.publish(edge.fs.clone(), KEY);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = Server::start(listener, endpoint, options()).unwrap();
    let second = Client::connect(other.local_addr(), &Credentials::root()).await.unwrap();
    edge.fs.throttle.set(ONE_MIB_A_SECOND);
    let first = writes(&client, &file, 0..15);
    until_written(&client, &file, 15).await;
    let second = writes(&second, &file, 15..25);
    until_written(&client, &file, 25).await;
    assert_eq!(waiting(&second), 10, "they are due after the first client's");
    edge.fs.throttle.lift();
    all_done(both(first, second)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_beyond_half_a_minute_are_told_to_retry() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let file = file(&edge, &client).await;
    edge.fs.throttle.set(ONE_MIB_A_SECOND);
    for calls in [writes(&client, &file, 0..60), reads(&client, &file, 60)] {
        let enough = async {
            while waiting(&calls) > 35 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timely(enough).await;
        edge.fs.throttle.lift();
        let mut refused = 0;
        for call in calls {
            if let Err(error) = timely(call).await.unwrap() {
                assert_eq!(error.status(), Some(NfsStat::Jukebox), "{error}");
                refused += 1;
            }
        }
        assert!((20..=30).contains(&refused), "{refused} of 60 were refused");
        let made = written(&client, &file).await;
        assert!((30..=40).contains(&made), "{made}: a refused WRITE was carried out");
        edge.fs.throttle.set(ONE_MIB_A_SECOND);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_volume_answers_nothing_that_waited() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let file = file(&edge, &client).await;
    edge.fs.throttle.set(ONE_MIB_A_SECOND);
    let calls = both(writes(&client, &file, 0..20), reads(&client, &file, 20));
    until_written(&client, &file, 20).await;
    edge.endpoint.lose();
    edge.fs.throttle.lift();
    let mut stale = 0;
    for call in calls {
        if let Err(error) = timely(call).await.unwrap() {
            assert_eq!(error.status(), Some(NfsStat::Stale), "{error}");
            stale += 1;
        }
    }
    assert!(stale > 20, "{stale} of 40 were stale");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_does_not_wait_for_limits() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let file = file(&edge, &client).await;
    edge.fs.throttle.set(ONE_MIB_A_SECOND);
    let calls = both(reads(&client, &file, 25), writes(&client, &file, 0..25));
    until_written(&client, &file, 25).await;
    let idle = timely(edge.server.quiesce(LIMIT)).await;
    assert_eq!(idle.len(), 1);
    all_done(calls).await;
}

/// Its client reads again on another connection, and must not wait behind itself.
#[tokio::test(flavor = "multi_thread")]
async fn reads_of_a_connection_that_has_gone_are_not_charged() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let file = file(&edge, &client).await;
    edge.fs.throttle.set(ONE_MIB_A_SECOND);
    let calls = reads(&client, &file, 60);
    let full = async {
        while waiting(&calls) > 35 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timely(full).await;
    assert!(admitted(&edge) < 15, "they are charged");
    drop(client);
    calls.iter().for_each(JoinHandle::abort);
    let free = async {
        while admitted(&edge) < 29 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timely(free).await;
}

/// The number of reads of 1 MiB that would be admitted, beside one that saved time has paid.
fn admitted(edge: &Edge) -> usize {
    let mut delays: Vec<Delay> = Vec::new();
    loop {
        match edge.fs.throttle.admit(Io::Read, MIB as usize) {
            Admission::Now => {}
            Admission::Later(delay) => delays.push(delay),
            Admission::Refused => break,
        }
    }
    let count = delays.len();
    delays.into_iter().rev().for_each(Delay::cancel);
    count
}
