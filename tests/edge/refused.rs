//! Calls that changed nothing, sent again with their transaction ids after what stood in their way
//! is gone (R20): each gets its first answer, and nothing is done. The process remembers them while
//! it lives.

use crate::again::{found, make, no_change, send, with_mode};
use crate::served::{Host, Served};
use crate::support::files;
use crate::support::wire::{fh, nfs, pack, place};
use nfs3_types::nfs3::*;
use nfs3_types::xdr_codec::Opaque;
use zerofs_csi::fs::SyncMode;
use zerofs_csi::fs::api::{Caller, CreateHow, FileSystem, SetAttr};
use zerofs_csi::nfs::client::{Credentials, FileHandle};

const OK: u32 = 0;
const NOENT: u32 = 2;
const EXIST: u32 = 17;
const NOTEMPTY: u32 = 66;
const NOT_SYNC: u32 = 10002;

struct Call {
    what: &'static str,
    record: Vec<u8>,
    status: u32,
    then: Then,
}

/// Another caller's change before the call comes again.
enum Then {
    Makes(&'static str),
    Removes(&'static str),
    Empties(&'static str),
    Nothing,
}

impl Then {
    async fn happens(&self, served: &Served) {
        let (fs, caller) = (&served.fs, Caller::root());
        match self {
            Self::Makes(name) => make(served, name).await,
            Self::Removes(name) if name.starts_with("dir") => {
                fs.rmdir(&caller, fs.root(), &files::name(name)).await.unwrap();
            }
            Self::Removes(name) => {
                fs.remove(&caller, fs.root(), &files::name(name)).await.unwrap();
            }
            Self::Empties(name) => {
                let dir = found(served, name).await.unwrap().file;
                fs.remove(&caller, dir, &files::name("inside")).await.unwrap();
            }
            Self::Nothing => {}
        }
    }

    /// The objects that it left are there, and those that it took are not.
    async fn stands(&self, served: &Served, what: &str) {
        match self {
            Self::Makes(name) | Self::Empties(name) => {
                assert!(found(served, name).await.is_some(), "{what}: {name} is gone");
            }
            Self::Removes(name) => {
                assert!(found(served, name).await.is_none(), "{what}: {name} was made");
            }
            Self::Nothing => {}
        }
    }
}

async fn calls(served: &Served, root: &FileHandle) -> Vec<Call> {
    let (fs, caller) = (&served.fs, Caller::root());
    for name in
        ["file", "guarded", "alone", "dir", "link", "pipe", "linked", "opened", "dir full", "one"]
    {
        make(served, name).await;
    }
    let inside = found(served, "dir full").await.unwrap().file;
    fs.create(&caller, inside, &files::name("inside"), CreateHow::Guarded(SetAttr::default()))
        .await
        .unwrap();
    let one = found(served, "one").await.unwrap().file;
    fs.link(&caller, one, fs.root(), &files::name("same")).await.unwrap();
    let client = served.client(&Credentials::root()).await;
    let file = client.lookup(root, b"file").await.unwrap().handle;
    let at = |name: &'static str| place(root.as_bytes(), name.as_bytes());
    let create = |name, how| pack(&CREATE3args { where_: at(name), how });
    let symlink = symlinkdata3 {
        symlink_attributes: no_change(),
        symlink_data: nfspath3(Opaque::borrowed(b"target")),
    };
    let pipe = mknoddata3::NF3FIFO(with_mode(0o600));
    let guard = Nfs3Option::Some(nfstime3 { seconds: 1, nseconds: 1 });
    let setattr =
        SETATTR3args { object: fh(file.as_bytes()), new_attributes: with_mode(0o611), guard };
    let mut xid = 815;
    let mut call = |what, procedure, arguments: Vec<u8>, status, then| {
        xid += 1;
        Call { what, record: nfs(xid, procedure, &arguments), status, then }
    };
    vec![
        call("SETATTR with an old guard", 2, pack(&setattr), NOT_SYNC, Then::Nothing),
        call(
            "CREATE guarded",
            8,
            create("guarded", createhow3::GUARDED(with_mode(0o600))),
            EXIST,
            Then::Removes("guarded"),
        ),
        call(
            "CREATE exclusive",
            8,
            create("alone", createhow3::EXCLUSIVE(createverf3([3; 8]))),
            EXIST,
            Then::Removes("alone"),
        ),
        call(
            "CREATE of what was there",
            8,
            create("opened", createhow3::UNCHECKED(no_change())),
            OK,
            Then::Removes("opened"),
        ),
        call(
            "MKDIR",
            9,
            pack(&MKDIR3args { where_: at("dir"), attributes: no_change() }),
            EXIST,
            Then::Removes("dir"),
        ),
        call(
            "SYMLINK",
            10,
            pack(&SYMLINK3args { where_: at("link"), symlink }),
            EXIST,
            Then::Removes("link"),
        ),
        call(
            "MKNOD",
            11,
            pack(&MKNOD3args { where_: at("pipe"), what: pipe }),
            EXIST,
            Then::Removes("pipe"),
        ),
        call("REMOVE", 12, pack(&REMOVE3args { object: at("gone") }), NOENT, Then::Makes("gone")),
        call(
            "RMDIR",
            13,
            pack(&RMDIR3args { object: at("dir gone") }),
            NOENT,
            Then::Makes("dir gone"),
        ),
        call(
            "RMDIR of a full one",
            13,
            pack(&RMDIR3args { object: at("dir full") }),
            NOTEMPTY,
            Then::Empties("dir full"),
        ),
        call(
            "RENAME",
            14,
            pack(&RENAME3args { from: at("from"), to: at("file") }),
            NOENT,
            Then::Makes("from"),
        ),
        call(
            "RENAME of what is the same",
            14,
            pack(&RENAME3args { from: at("one"), to: at("same") }),
            OK,
            Then::Removes("same"),
        ),
        call(
            "LINK",
            15,
            pack(&LINK3args { file: fh(file.as_bytes()), link: at("linked") }),
            EXIST,
            Then::Removes("linked"),
        ),
    ]
}

async fn play(sync: SyncMode) {
    let mut host = Host::new();
    host.dataset.options.properties.sync = sync;
    let served = host.serve().await;
    let client = served.client(&Credentials::root()).await;
    let root = served.root(&client).await;
    let calls = calls(&served, &root).await;
    for call in &calls {
        assert_eq!(send(&served, &call.record).await.0, call.status, "{sync:?}: {}", call.what);
    }
    for Call { what, record, status, then } in &calls {
        then.happens(&served).await;
        let again = send(&served, record).await.0;
        // The file whose name it opened is gone: its answer cannot show its attributes.
        const STALE: u32 = 70;
        let same = again == *status || (*what == "CREATE of what was there" && again == STALE);
        assert!(same, "{sync:?}: {what} was answered {status}, and then {again}");
        then.stands(&served, what).await;
    }
    assert!(found(&served, "one").await.is_some());
    served.fs.close().await.unwrap();
    host.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_call_that_changed_nothing_gets_its_first_answer() {
    for sync in [SyncMode::Standard, SyncMode::Always] {
        play(sync).await;
    }
}
