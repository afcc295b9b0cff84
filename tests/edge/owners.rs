//! User and group 4294967295: no process can have them, and chown(2) takes them for "none". An
//! object that had them could not be shown by Linux's client, nor could the directory that it is in
//! be listed.

use crate::again::{no_change, send};
use crate::served::Host;
use crate::support::files;
use crate::support::wire::{fh, nfs, pack, place};
use nfs3_types::nfs3::*;
use nfs3_types::xdr_codec::Opaque;
use zerofs_csi::fs::FsError;
use zerofs_csi::fs::api::{Caller, CreateHow, DirCookie, FileSystem, ListLimit, SetAttr};
use zerofs_csi::nfs::client::{Client, ClientError, Credentials};

const INVAL: u32 = 22;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_given_to_the_owner_that_is_none() {
    let mut host = Host::new();
    let served = host.serve().await;
    let client = served.client(&Credentials::root()).await;
    let root = served.root(&client).await;
    crate::again::make(&served, "file").await;
    let file = client.lookup(&root, b"file").await.unwrap().handle;
    let sets = [
        sattr3 { uid: Nfs3Option::Some(u32::MAX), ..no_change() },
        sattr3 { gid: Nfs3Option::Some(u32::MAX), ..no_change() },
    ];
    let mut xid = 100;
    for set in sets {
        let at = |name: &'static str| place(root.as_bytes(), name.as_bytes());
        let link = symlinkdata3 {
            symlink_attributes: set.clone(),
            symlink_data: nfspath3(Opaque::borrowed(b"target")),
        };
        let setattr = SETATTR3args {
            object: fh(file.as_bytes()),
            new_attributes: set.clone(),
            guard: Nfs3Option::None,
        };
        let calls = [
            ("SETATTR", 2, pack(&setattr)),
            (
                "CREATE",
                8,
                pack(&CREATE3args { where_: at("a"), how: createhow3::UNCHECKED(set.clone()) }),
            ),
            (
                "CREATE guarded",
                8,
                pack(&CREATE3args { where_: at("b"), how: createhow3::GUARDED(set.clone()) }),
            ),
            ("MKDIR", 9, pack(&MKDIR3args { where_: at("c"), attributes: set.clone() })),
            ("SYMLINK", 10, pack(&SYMLINK3args { where_: at("d"), symlink: link })),
            (
                "MKNOD",
                11,
                pack(&MKNOD3args { where_: at("e"), what: mknoddata3::NF3FIFO(set.clone()) }),
            ),
        ];
        for (what, procedure, args) in calls {
            xid += 1;
            assert_eq!(send(&served, &nfs(xid, procedure, &args)).await.0, INVAL, "{what}");
        }
    }
    let limit = ListLimit { entries: 100, bytes: 10_000, entry_bytes: 10, with_attr: true };
    let listing =
        served.fs.readdir(&Caller::root(), served.fs.root(), DirCookie(0), limit).await.unwrap();
    let names: Vec<_> = listing
        .entries
        .iter()
        .map(|entry| &entry.name[..])
        .filter(|name| !name.starts_with(b"."))
        .collect();
    assert_eq!(names, [b"file"]);
    // Nor by who calls in this process.
    let set = SetAttr { uid: Some(u32::MAX), ..SetAttr::default() };
    let made = served
        .fs
        .create(&Caller::root(), served.fs.root(), &files::name("f"), CreateHow::Guarded(set))
        .await;
    assert!(matches!(made, Err(FsError::Invalid(_))));
    served.fs.close().await.unwrap();
}

/// A file that such a caller made would be its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_calls_as_the_owner_that_is_none() {
    let mut host = Host::new();
    let served = host.serve().await;
    let client = served.client(&Credentials::root()).await;
    let root = served.root(&client).await;
    for (uid, gid, groups) in
        [(u32::MAX, 0, vec![]), (1000, u32::MAX, vec![]), (1000, 1000, vec![5, u32::MAX])]
    {
        let credentials = Credentials { uid, gid, groups, ..Credentials::root() };
        let other = Client::connect(served.server.local_addr(), &credentials).await.unwrap();
        let refused = other.getattr(&root).await;
        assert!(matches!(refused, Err(ClientError::Reply(_))), "{credentials:?}: {refused:?}");
    }
    served.fs.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_dataset_begins_with_the_owner_that_is_none() {
    let mut host = Host::new();
    host.dataset.options.root.uid = u32::MAX;
    assert!(matches!(host.dataset.try_open().await, Err(FsError::Invalid(_))));
    host.dataset.options.root.uid = 0;
    host.dataset.options.root.gid = u32::MAX;
    assert!(matches!(host.dataset.try_open().await, Err(FsError::Invalid(_))));
}
