//! Calls that must not be done twice, sent again with their transaction ids (R20): after a restart,
//! after the loss of the node, and to another node that has taken the dataset from one that lives.
//! Each gets its first answer, and what others did meanwhile stays.

use crate::served::{Death, Host, Served};
use crate::support::files::top;
use crate::support::wire::{Wire, accepted, fh, nfs, pack, place};
use nfs3_types::nfs3::*;
use nfs3_types::xdr_codec::Opaque;
use zerofs_csi::fs::SyncMode;
use zerofs_csi::fs::api::{Attr, CallId, Caller, FileSystem, SetAttr, Stability};
use zerofs_csi::nfs::client::{Credentials, FileHandle};

/// The server that the retransmission reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Restarted,
    NodeLost,
    /// The old owner is still there, and has not noticed.
    Overtaken,
}

struct Call {
    what: &'static str,
    record: Vec<u8>,
    /// A name that it takes away, and that somebody else makes again before it is repeated.
    takes: Option<&'static str>,
    /// True if the call's effect outlives the node with `sync=standard`.
    durable: bool,
}

pub fn no_change() -> sattr3 {
    sattr3 {
        mode: Nfs3Option::None,
        uid: Nfs3Option::None,
        gid: Nfs3Option::None,
        size: Nfs3Option::None,
        atime: set_atime::DONT_CHANGE,
        mtime: set_mtime::DONT_CHANGE,
    }
}

pub fn with_mode(mode: u32) -> sattr3 {
    sattr3 { mode: Nfs3Option::Some(mode), ..no_change() }
}

pub async fn found(served: &Served, name: &str) -> Option<Attr> {
    top::child(&*served.fs, name).await.ok()
}

pub async fn make(served: &Served, name: &str) {
    if name.starts_with("dir") {
        top::mkdir(&*served.fs, name).await;
    } else {
        top::create(&*served.fs, name).await;
    }
}

/// Each call that must not be done twice.
async fn calls(served: &Served, root: &FileHandle) -> Vec<Call> {
    for name in ["file", "gone", "dir gone", "from", "guarded", "opened", "over"] {
        make(served, name).await;
    }
    served.fs.sync().await.unwrap();
    let client = served.client(&Credentials::root()).await;
    let file = client.lookup(root, b"file").await.unwrap().handle;
    let guarded = client.lookup(root, b"guarded").await.unwrap();
    let ctime = guarded.attr.unwrap().ctime;
    let guard =
        nfstime3 { seconds: u32::try_from(ctime.secs()).unwrap(), nseconds: ctime.subsec_nanos() };
    let at = |name: &'static str| place(root.as_bytes(), name.as_bytes());
    let mut xid = 4711;
    let mut call = |what, procedure, arguments: Vec<u8>, takes, durable| {
        xid += 1;
        Call { what, record: nfs(xid, procedure, &arguments), takes, durable }
    };
    let setattr = SETATTR3args {
        object: fh(guarded.handle.as_bytes()),
        new_attributes: with_mode(0o611),
        guard: Nfs3Option::Some(guard),
    };
    let link = symlinkdata3 {
        symlink_attributes: no_change(),
        symlink_data: nfspath3(Opaque::borrowed(b"target")),
    };
    let create = |name, how| pack(&CREATE3args { where_: at(name), how });
    vec![
        call("SETATTR with a guard", 2, pack(&setattr), None, false),
        call(
            "CREATE unchecked",
            8,
            create("made", createhow3::UNCHECKED(with_mode(0o600))),
            None,
            false,
        ),
        call(
            "CREATE of what is there",
            8,
            create("opened", createhow3::UNCHECKED(with_mode(0o600))),
            None,
            false,
        ),
        call(
            "CREATE guarded",
            8,
            create("made guarded", createhow3::GUARDED(with_mode(0o600))),
            None,
            false,
        ),
        call(
            "CREATE exclusive",
            8,
            create("made alone", createhow3::EXCLUSIVE(createverf3([3; 8]))),
            None,
            false,
        ),
        call(
            "MKDIR",
            9,
            pack(&MKDIR3args { where_: at("made dir"), attributes: with_mode(0o700) }),
            None,
            false,
        ),
        call(
            "SYMLINK",
            10,
            pack(&SYMLINK3args { where_: at("made link"), symlink: link }),
            None,
            false,
        ),
        call(
            "MKNOD",
            11,
            pack(&MKNOD3args {
                where_: at("made pipe"),
                what: mknoddata3::NF3FIFO(with_mode(0o600)),
            }),
            None,
            false,
        ),
        call("REMOVE", 12, pack(&REMOVE3args { object: at("gone") }), Some("gone"), true),
        call("RMDIR", 13, pack(&RMDIR3args { object: at("dir gone") }), Some("dir gone"), true),
        call(
            "RENAME",
            14,
            pack(&RENAME3args { from: at("from"), to: at("over") }),
            Some("from"),
            true,
        ),
        call(
            "LINK",
            15,
            pack(&LINK3args { file: fh(file.as_bytes()), link: at("linked") }),
            None,
            true,
        ),
    ]
}

/// The status, and the handle of what was made.
fn answer(record: &[u8]) -> (u32, Option<Vec<u8>>) {
    let (_, results) = accepted(record);
    let number = |at: usize| {
        results.get(at..at + 4).map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap()))
    };
    let handle = match (number(4), number(8)) {
        (Some(1), Some(len @ 8..=64)) => results.get(12..12 + len as usize).map(<[u8]>::to_vec),
        _ => None,
    };
    (number(0).unwrap(), handle)
}

pub async fn send(served: &Served, record: &[u8]) -> (u32, Option<Vec<u8>>) {
    let mut wire = Wire::connect(served.server.local_addr()).await;
    answer(&wire.ask(record).await.expect("an answer"))
}

async fn play(sync: SyncMode, then: Then) {
    let mut host = Host::new();
    host.dataset.options.properties.sync = sync;
    let served = host.serve().await;
    let client = served.client(&Credentials::root()).await;
    let root = served.root(&client).await;
    let calls = calls(&served, &root).await;
    let mut firsts = Vec::new();
    for call in &calls {
        let first = send(&served, &call.record).await;
        assert_eq!(first.0, 0, "{}", call.what);
        firsts.push(first);
    }
    drop(client);
    // Held to the end, or it would have noticed.
    let mut old = None;
    let served = match then {
        Then::Restarted => host.again(served, Death::Process).await,
        Then::NodeLost => host.again(served, Death::Node).await,
        Then::Overtaken => {
            let other = host.serve_elsewhere().await;
            old = Some(served);
            other
        }
    };
    let remembered =
        |call: &Call| then == Then::Restarted || sync == SyncMode::Always || call.durable;
    let mut made = Vec::new();
    for call in &calls {
        if let Some(name) = call.takes {
            assert!(
                found(&served, name).await.is_none(),
                "{sync:?}, {then:?}: {} was answered and is not done",
                call.what
            );
            make(&served, name).await;
            made.push((name, found(&served, name).await.unwrap().file));
        }
    }
    for (call, (_, handle)) in calls.iter().zip(firsts) {
        let what = format!("{sync:?}, {then:?}: {}", call.what);
        let (status, again) = send(&served, &call.record).await;
        assert_eq!(status, 0, "{what}");
        if remembered(call) && call.what != "LINK" && !call.durable {
            assert_eq!(again, handle, "{what} names another object");
        }
    }
    for (name, file) in made {
        let there = found(&served, name).await.map(|attr| attr.file);
        assert_eq!(
            there,
            Some(file),
            "{sync:?}, {then:?}: what has the name {name} now was taken away"
        );
    }
    assert_eq!(found(&served, "file").await.unwrap().nlink, 2);
    assert_eq!(found(&served, "guarded").await.unwrap().mode, 0o611);
    served.fs.close().await.unwrap();
    drop(old);
    host.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_call_gets_its_first_answer_after_a_restart() {
    play(SyncMode::Standard, Then::Restarted).await;
    play(SyncMode::Disabled, Then::Restarted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_call_gets_its_first_answer_from_another_node() {
    play(SyncMode::Standard, Then::NodeLost).await;
    play(SyncMode::Standard, Then::Overtaken).await;
    play(SyncMode::Always, Then::NodeLost).await;
    play(SyncMode::Always, Then::Overtaken).await;
}

/// A truncation that comes late must not take what was written since: its first sending was
/// answered before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_truncation_takes_nothing_that_was_written_since() {
    for restarts in [false, true] {
        let mut host = Host::new();
        let mut served = host.serve().await;
        let client = served.client(&Credentials::root()).await;
        let root = served.root(&client).await;
        make(&served, "file").await;
        let file = client.lookup(&root, b"file").await.unwrap().handle;
        let cut = sattr3 { size: Nfs3Option::Some(0), ..no_change() };
        let by_setattr = SETATTR3args {
            object: fh(file.as_bytes()),
            new_attributes: cut.clone(),
            guard: Nfs3Option::None,
        };
        let by_create = CREATE3args {
            where_: place(root.as_bytes(), b"file"),
            how: createhow3::UNCHECKED(cut),
        };
        let records = [nfs(5, 2, &pack(&by_setattr)), nfs(6, 8, &pack(&by_create))];
        for record in &records {
            assert_eq!(send(&served, record).await.0, 0);
        }
        if restarts {
            served = host.again(served, Death::Process).await;
        }
        let client = served.client(&Credentials::root()).await;
        client
            .write(&file, 0, bytes::Bytes::from_static(b"since then"), Stability::FileSync)
            .await
            .unwrap();
        for record in &records {
            assert_eq!(send(&served, record).await.0, 0);
        }
        assert_eq!(
            client.read(&file, 0, 100).await.unwrap().data,
            "since then",
            "restarts: {restarts}"
        );
        served.fs.close().await.unwrap();
    }
}

/// What one client was answered stays remembered while another sends more calls than are
/// remembered in all: also by the process that comes next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_call_gets_its_first_answer_whatever_others_have_sent() {
    const OTHERS: u32 = 4500;
    let mut host = Host::new();
    let mut served = host.serve().await;
    let client = served.client(&Credentials::root()).await;
    let root = served.root(&client).await;
    make(&served, "gone").await;
    let args = REMOVE3args { object: place(root.as_bytes(), b"gone") };
    let record = nfs(5, 12, &pack(&args));
    assert_eq!(send(&served, &record).await.0, 0);
    let other = |xid| {
        let call = CallId { client: 99, xid, checksum: 1 };
        Caller { call: Some(call), ..Caller::root() }
    };
    for xid in 0..OTHERS {
        let set = SetAttr { mode: Some(0o700 + xid % 8), ..SetAttr::default() };
        served.fs.setattr(&other(xid), served.fs.root(), set, None).await.unwrap();
    }
    make(&served, "gone").await;
    let since = found(&served, "gone").await.unwrap().file;
    for restarted in [false, true] {
        assert_eq!(send(&served, &record).await.0, 0, "restarted: {restarted}");
        let there = found(&served, "gone").await.map(|attr| attr.file);
        assert_eq!(there, Some(since), "restarted: {restarted}");
        // The newest of the other client are remembered too, and its oldest are not.
        for (xid, mode) in [(OTHERS - 2, 0o755), (u32::from(restarted), 0o700)] {
            let set = SetAttr { mode: Some(0o755), ..SetAttr::default() };
            served.fs.setattr(&Caller::root(), served.fs.root(), set, None).await.unwrap();
            let set = SetAttr { mode: Some(0o700), ..SetAttr::default() };
            served.fs.setattr(&other(xid), served.fs.root(), set, None).await.unwrap();
            let now = served.fs.getattr(served.fs.root()).await.unwrap().mode;
            assert_eq!(now, mode, "{xid}, restarted: {restarted}");
        }
        if !restarted {
            served = host.again(served, Death::Process).await;
        }
    }
    served.fs.close().await.unwrap();
}

/// Nor must a change of mode that comes late take back what was changed since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_change_of_mode_takes_nothing_back() {
    for restarts in [false, true] {
        let mut host = Host::new();
        let mut served = host.serve().await;
        let client = served.client(&Credentials::root()).await;
        let root = served.root(&client).await;
        make(&served, "file").await;
        let file = client.lookup(&root, b"file").await.unwrap().handle;
        let record = |xid, mode| {
            let args = SETATTR3args {
                object: fh(file.as_bytes()),
                new_attributes: with_mode(mode),
                guard: Nfs3Option::None,
            };
            nfs(xid, 2, &pack(&args))
        };
        assert_eq!(send(&served, &record(5, 0o600)).await.0, 0);
        if restarts {
            served = host.again(served, Death::Process).await;
        }
        assert_eq!(send(&served, &record(6, 0o644)).await.0, 0);
        assert_eq!(send(&served, &record(5, 0o600)).await.0, 0);
        assert_eq!(found(&served, "file").await.unwrap().mode, 0o644, "restarts: {restarts}");
        served.fs.close().await.unwrap();
    }
}

/// A synchronous WRITE that is held because the store does not answer has taken effect: it must not
/// do so again over what was written since (R36).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_waits_for_the_store_takes_effect_once() {
    let mut host = Host::new();
    host.dataset.options.flush_interval = std::time::Duration::from_secs(3600);
    let served = host.serve().await;
    let client = served.client(&Credentials::root()).await;
    let root = served.root(&client).await;
    make(&served, "file").await;
    let file = client.lookup(&root, b"file").await.unwrap().handle;
    let (failpoints, step) =
        (host.dataset.place.bucket.failpoints().clone(), "fs.content.before-pack");
    let passed = || failpoints.passed().get(step).copied().unwrap_or(0);
    failpoints.set(step, "return").unwrap();
    let old = tokio::spawn({
        let (client, file) = (client.clone(), file.clone());
        async move {
            client.write(&file, 0, bytes::Bytes::from_static(b"old"), Stability::FileSync).await
        }
    });
    let soon = async {
        while client.read(&file, 0, 9).await.unwrap().data != "old" {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        client
            .write(&file, 0, bytes::Bytes::from_static(b"new"), Stability::Unstable)
            .await
            .unwrap();
        let then = passed();
        while passed() < then + 4 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), soon)
        .await
        .expect("it is tried again");
    failpoints.set(step, "off").unwrap();
    old.await.unwrap().unwrap();
    assert_eq!(client.read(&file, 0, 9).await.unwrap().data, "new");
    served.fs.close().await.unwrap();
}
