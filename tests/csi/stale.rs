//! The answers that a client of the first machine gets after another machine has taken the volume
//! (R25): every call is answered, reads too, and each answer is that its handle is stale, until the
//! volume is unstaged there. The second machine answers under the same handles.

use crate::moving::{endpoint, machine, unstage_at_last};
use crate::support::driver::{Mounted, mounter, revoke};
use crate::support::wire::{Wire, all_args, nfs, status};
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use zerofs_csi::fs::api::{CreateHow, SetAttr, Stability};
use zerofs_csi::nfs::client::{Client, Credentials, FileHandle};

const OK: u32 = 0;
const STALE: u32 = 70;

/// The status of every call but NULL.
async fn statuses(wire: &mut Wire, dir: &FileHandle, file: &FileHandle) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    for (xid, (procedure, args)) in (9000..).zip(all_args(dir.as_bytes(), file.as_bytes())) {
        let reply = wire.ask(&nfs(xid, procedure, &args)).await.expect("an answer");
        if procedure > 0 {
            found.push((procedure, status(&reply)));
        }
    }
    found
}

async fn getattr(at: SocketAddr, file: &FileHandle) -> u32 {
    let mut wire = Wire::connect(at).await;
    let args = crate::support::wire::pack(&nfs3_types::nfs3::GETATTR3args {
        object: crate::support::wire::fh(file.as_bytes()),
    });
    status(&wire.ask(&nfs(1, 1, &args)).await.expect("an answer"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_to_the_old_machine_is_stale_until_it_is_unstaged_there() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let (mounter_a, mounted_a) = mounter();
    let (mounter_b, mounted_b) = mounter();
    let first = machine(&dir, "a-", mounter_a).await;
    let second = machine(&dir, "b-", mounter_b).await;
    let (id, staging) = (first.create("v").await.volume_id, dir.path().join("a-staging"));
    first.stage(&id, &staging).await.unwrap();
    let Mounted { what, root } = mounted_a.lock().clone().unwrap();
    assert_eq!(what.endpoint, endpoint(&dir, "a-"));
    let client = Client::connect(what.endpoint, &Credentials::root()).await.unwrap();
    let how = CreateHow::Guarded(SetAttr::default());
    let file = client.create(&root, b"file", &how).await.unwrap().handle;
    client.write(&file, 0, Bytes::from_static(b"kept"), Stability::FileSync).await.unwrap();
    // A connection from before, as a mount has.
    let mut wire = Wire::connect(what.endpoint).await;
    let before = statuses(&mut wire, &root, &file).await;
    assert!(before.iter().all(|(_, status)| *status != STALE), "{before:?}");
    assert_eq!(getattr(what.endpoint, &file).await, OK);

    revoke(&dir, &id).await;
    let elsewhere = dir.path().join("b-staging");
    second.stage(&id, &elsewhere).await.unwrap();
    let Mounted { what: there, root: root_there } = mounted_b.lock().clone().unwrap();
    assert_eq!(root_there.as_bytes(), root.as_bytes(), "a handle is the same on every node (R7)");
    // The first answers nothing that is not so from the moment the second could; whether it says so
    // by a stale handle or by "come again" is a matter of when it has read the revocation.
    for _ in 0..400 {
        if getattr(what.endpoint, &file).await == STALE {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (when, wire) in [
        ("connected before", &mut wire),
        ("connected since", &mut Wire::connect(what.endpoint).await),
    ] {
        let after = statuses(wire, &root, &file).await;
        assert_eq!(after.len(), before.len());
        assert!(after.iter().all(|(_, status)| *status == STALE), "{when}: {after:?}");
    }
    assert!(client.mount(&what.export).await.is_err(), "and nobody mounts it again");
    assert_eq!(getattr(there.endpoint, &file).await, OK);
    let read = Client::connect(there.endpoint, &Credentials::root())
        .await
        .unwrap()
        .read(&file, 0, 100)
        .await
        .unwrap();
    assert_eq!(read.data, "12345678", "what the calls wrote there before");

    unstage_at_last(&first, &id, &staging).await;
    assert!(
        tokio::net::TcpStream::connect(what.endpoint).await.is_err(),
        "unstaged: nothing is left"
    );
    second.unstage(&id, &elsewhere).await.unwrap();
    second.delete(&id).await;
}
