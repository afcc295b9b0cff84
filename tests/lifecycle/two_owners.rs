//! Two owners: the first is held at a step of a change, the second takes over, the first goes on.
//! All that the first acknowledged is there; after the take-over it acknowledges nothing, and
//! nothing of it arrives.

use super::data;
use crate::leases::{LEASE, Node, Pool, expires, patiently, two_nodes};
use crate::support::files::{GUARDED, name, root, top, tree};
use crate::support::world::passed;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;
use zerofs_csi::fs::FsError;
use zerofs_csi::fs::api::*;
use zerofs_csi::volume::{Volume, VolumeGuard};

/// Where the first owner is held: every durable step on the way of a change.
const STEPS: &[&str] = &[
    "fs.content.before-pack",
    "chunk.before-pack-put",
    "chunk.after-pack-put",
    "fs.content.before-submit",
    "fs.call.submitted",
    "fs.journal.before-append",
    "fs.journal.after-append",
    "fs.commit.before-write",
    "fs.commit.after-write",
    "fs.commit.before-flush",
    "fs.commit.after-flush",
    "fs.call.kept",
];

#[derive(Clone, Copy, Debug)]
enum What {
    /// A large WRITE that is to be in the store.
    Write,
    Remove,
    Rename,
    Create,
}

/// The names and bytes of the root's files.
async fn state(volume: &Volume) -> BTreeMap<String, Vec<u8>> {
    let fs = &volume.fs;
    let found = patiently(|| tree(&**fs, fs.root())).await.unwrap();
    found.into_iter().map(|(path, object)| (path[1..].to_owned(), object.content)).collect()
}

async fn change(volume: &Volume, what: What, file: FileRef) -> Result<(), FsError> {
    let (fs, caller, root) = (&volume.fs, root(), volume.fs.root());
    match what {
        What::Write => fs
            .write(&caller, file, 0, Bytes::from(data(9, 300_000)), Stability::FileSync)
            .await
            .map(drop),
        What::Remove => fs.remove(&caller, root, &name("old")).await.map(drop),
        What::Rename => {
            fs.rename(&caller, (root, &name("old")), (root, &name("new"))).await.map(drop)
        }
        What::Create => fs.create(&caller, root, &name("new"), GUARDED).await.map(drop),
    }
}

/// Holds the first owner there; `false`: the change does not come by.
async fn held_at(step: &'static str, what: What) -> bool {
    let (a, b, volume) = two_nodes().await;
    let ours = a.open(volume).await;
    let old = data(3, 200_000);
    let file = top::write(&*ours.fs, "old", &old).await;
    let mut watch = b.watch(volume.dataset).await;

    let failpoints = a.world.failpoints().clone();
    let before = passed(&failpoints, step);
    failpoints.set(step, "pause").unwrap();
    let changing = tokio::spawn({
        let ours = ours.clone();
        async move { change(&ours, what, file).await }
    });
    while passed(&failpoints, step) == before && !changing.is_finished() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let acknowledged = changing.is_finished();
    let expired = expires(&mut watch, [&a, &b]).await;
    let theirs = b.take(volume.dataset, &expired).await.unwrap();
    let found = state(&theirs).await;
    if acknowledged {
        changing.await.unwrap().expect("nothing was in its way");
        // CREATE promises the journal only, which died with the first owner as far as the second
        // can tell.
        let expected = match what {
            What::Write => found["old"][..] == data(9, 300_000)[..],
            What::Remove => !found.contains_key("old"),
            What::Rename => found.get("new") == Some(&old) && !found.contains_key("old"),
            What::Create => found["old"] == old,
        };
        assert!(expected, "{what:?} was acknowledged before the take-over");
        return false;
    }
    let is_old_or_new = |bytes: &Vec<u8>| {
        *bytes == old || matches!(what, What::Write) && bytes[..] == data(9, 300_000)[..]
    };
    let kept = found.get("old").or(found.get("new").filter(|_| matches!(what, What::Rename)));
    assert!(
        kept.is_none_or(is_old_or_new) && (kept.is_some() || matches!(what, What::Remove)),
        "{step} {what:?}"
    );
    top::write(&*theirs.fs, "theirs", b"after the fence").await;
    let settled = state(&theirs).await;

    failpoints.set(step, "off").unwrap();
    let ended =
        tokio::time::timeout(Duration::from_secs(60), changing).await.expect("it ends").unwrap();
    assert!(ended.is_err(), "{step} {what:?}: acknowledged after the fence");
    let read = patiently(|| ours.fs.getattr(ours.fs.root())).await;
    assert!(
        matches!(read, Err(FsError::Fenced | FsError::Stale)),
        "{step} {what:?}: it answers {read:?}"
    );
    assert!(
        a.world.volumes.close(volume.dataset).await.is_ok()
            || a.world.volumes.get(volume.dataset).is_none()
    );
    assert!(
        state(&theirs).await == settled,
        "{step} {what:?}: something of the first owner arrived"
    );
    b.world.close(theirs).await;
    let again = b.open(volume).await;
    assert!(state(&again).await == settled, "{step} {what:?}: and is there after reopening");
    true
}

#[test]
fn the_first_owner_held_at_any_step_acknowledges_nothing_afterwards() {
    super::run(async {
        let mut met: BTreeMap<&str, usize> = BTreeMap::new();
        for step in STEPS {
            for what in [What::Write, What::Remove, What::Rename, What::Create] {
                *met.entry(step).or_default() += usize::from(Box::pin(held_at(step, what)).await);
            }
        }
        println!("{met:?}");
        assert!(met.values().all(|times| *times > 0), "a step that no change comes by: {met:?}");
    });
}

/// Changes that only the first owner's journal holds are lost with the take-over, and must not come
/// back with the first owner (R16); a call whose effect is in the store gets its first answer from
/// the second owner (R20).
#[test]
fn journals_of_before_are_discarded_and_retransmissions_answered() {
    super::run(async {
        let (pool, a, b, volume) = Pool::with_two_nodes().await;
        let ours = a.open(volume).await;
        let root = ours.fs.root();
        let call =
            |xid| Caller { call: Some(CallId { client: 7, xid, checksum: 1 }), ..Caller::root() };
        for file in ["gone", "from"] {
            top::write(&*ours.fs, file, file.as_bytes()).await;
        }
        ours.fs.remove(&call(1), root, &name("gone")).await.unwrap();
        ours.fs.rename(&call(2), (root, &name("from")), (root, &name("to"))).await.unwrap();
        let made = ours
            .fs
            .mkdir(&call(3), root, &name("made"), SetAttr::default())
            .await
            .unwrap()
            .attr
            .file;
        ours.fs.sync().await.unwrap();
        let mut watch = b.watch(volume.dataset).await;
        // From here on only its journal has what follows.
        a.store.die();
        ours.fs.create(&call(4), root, &name("unsynced"), GUARDED).await.unwrap();
        let expired = expires(&mut watch, [&a, &b]).await;
        let theirs = b.take(volume.dataset, &expired).await.unwrap();
        patiently(|| async { theirs.fs.remove(&call(1), root, &name("gone")).await })
            .await
            .expect("it was done");
        theirs
            .fs
            .rename(&call(2), (root, &name("from")), (root, &name("to")))
            .await
            .expect("it was done");
        let again = theirs
            .fs
            .mkdir(&call(3), root, &name("made"), SetAttr::default())
            .await
            .expect("it was done");
        assert_eq!(again.attr.file, made);
        let missing = theirs.fs.remove(&call(5), root, &name("gone")).await;
        assert!(matches!(missing, Err(FsError::NotFound)), "another call: {missing:?}");
        let anew =
            theirs.fs.create(&call(4), root, &name("unsynced"), GUARDED).await.unwrap().attr.file;
        top::write(&*theirs.fs, "theirs", b"theirs").await;
        b.world.close(theirs).await;

        // The first machine comes back with its journal.
        let journals = a.journals.clone();
        ours.fs.give_up(FsError::Fenced);
        drop((ours, a));
        let a = pool.node_at("node-a", LEASE, journals).await;
        let ours = reopened(&a, volume).await;
        let found = state(&ours).await;
        assert_eq!(
            found.keys().map(String::as_str).collect::<Vec<_>>(),
            ["made", "theirs", "to", "unsynced"]
        );
        let unsynced = top::child(&*ours.fs, "unsynced").await.unwrap().file;
        assert_eq!(unsynced, anew, "the second owner's, not the one of the journal");
    });
}

/// Retries: a volume that was given up unlocks its journal only after a while.
pub async fn reopened(node: &Node, volume: zerofs_csi::types::VolumeHandle) -> VolumeGuard {
    for _ in 0..1000 {
        match node.world.volumes.open(&node.world.catalog, volume.dataset).await {
            Ok(open) => return open,
            Err(error) => assert!(error.to_string().contains("journal"), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the journal stays locked")
}
