//! Damaged and sealed pools: a wrong key, one changed bit in an object, a pack cut short. Each is
//! an error that says so, or harmless; never other bytes than were written, never a panic, and what
//! is in the bucket stays as it is.

use crate::process::{Expected, Process, run};
use crate::script::{Script, Tree, agrees, difference};
use crate::storage::Storage;
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::BTreeMap;
use zerofs_csi::catalog::Catalog;
use zerofs_csi::crypto::Secret;
use zerofs_csi::types::{Class, Classify};

type Objects = BTreeMap<Path, Vec<u8>>;

async fn objects(store: &InMemory) -> Objects {
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    let mut objects = Objects::new();
    for object in listed {
        let bytes = store.get(&object.location).await.unwrap().bytes().await.unwrap();
        objects.insert(object.location, bytes.to_vec());
    }
    objects
}

/// A pool whose volume was written, closed, written again, and whose process died: tables, the tail
/// of a log, and packs.
fn pool(folder: &std::path::Path, secret: Option<Secret>) -> (Storage, Tree) {
    let storage = Storage::memory(folder).sealed(secret);
    let script = Script::by_name("short");
    let tree = script.trees.last().unwrap().clone();
    let its_storage = storage.clone();
    run("making a pool", async move {
        its_storage.create().await;
        let mut process = Process::start(&its_storage, |_| {}, script).await;
        process.play(Expected { first: 0, last: 0, next: 0 }, |_| {}).await.unwrap();
    });
    storage.lose_journals();
    (storage, tree)
}

/// The tree that a new process sees in the volume.
fn look(storage: &Storage) -> Result<Tree, (Class, String)> {
    let (its_storage, script) = (storage.clone(), Script::by_name("short"));
    let seen = run("looking", async move {
        let process = Process::start(&its_storage, |_| {}, script).await;
        process.look().await
    });
    storage.lose_journals();
    seen
}

fn damage_everything(secret: Option<&str>) {
    let folder = tempfile::tempdir().unwrap();
    let (storage, tree) = pool(folder.path(), secret.map(Secret::new));
    assert!(look(&storage.fork()).is_ok_and(|seen| agrees(&tree, &seen)), "undamaged");
    let whole = run("reading", {
        let storage = storage.clone();
        async move { objects(storage.store()).await }
    });
    let (mut refused, mut harmless) = (BTreeMap::new(), 0);
    for (path, bytes) in whole
        .iter()
        .filter(|(path, _)| ["vol/", "packs/"].iter().any(|area| path.as_ref().starts_with(area)))
    {
        let places =
            [Some(bytes.len() / 4), Some(bytes.len() / 2), bytes.len().checked_sub(1), None];
        for place in places.into_iter().filter(|place| place.is_none_or(|at| at < bytes.len())) {
            // Only packs have no other guard against being cut short.
            if place.is_none() && !path.as_ref().starts_with("packs/") {
                continue;
            }
            let mut damaged = bytes.clone();
            match place {
                Some(at) => damaged[at] ^= 1 << (at % 8),
                None => damaged.truncate(bytes.len() / 2),
            }
            let storage = storage.fork();
            let kept = run("damaging", {
                let (storage, path, damaged) = (storage.clone(), path.clone(), damaged.clone());
                async move {
                    storage.store().put(&path, damaged.into()).await.unwrap();
                    objects(storage.store()).await
                }
            });
            let what = format!("{path} ({place:?} of {})", bytes.len());
            match look(&storage) {
                Ok(seen) => {
                    assert!(agrees(&tree, &seen), "{what}: {}", difference(&tree, &seen));
                    harmless += 1;
                }
                Err((class, why)) => {
                    assert!(
                        !why.is_empty() && class != Class::NotFound,
                        "{what}: {class:?}: {why}"
                    );
                    *refused.entry(format!("{class:?}")).or_insert(0) += 1;
                    println!("{what}: {class:?}: {why}");
                }
            }
            let now = run("reading", {
                let storage = storage.clone();
                async move { objects(storage.store()).await }
            });
            for (path, bytes) in &kept {
                assert!(now.get(path) == Some(bytes), "{what}: {path} was changed or removed");
            }
        }
    }
    println!("refused {refused:?}, harmless {harmless}");
    assert!(refused.values().sum::<u32>() > 0, "no damage was noticed");
}

#[test]
fn a_changed_bit_in_a_plain_pool_is_noticed_or_harmless() {
    damage_everything(None);
}

#[test]
fn a_changed_bit_in_a_sealed_pool_is_noticed_or_harmless() {
    damage_everything(Some("correct horse"));
}

#[test]
fn another_key_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (sealed, _) = pool(&folder.path().join("sealed"), Some(Secret::new("correct horse")));
    let (plain, _) = pool(&folder.path().join("plain"), None);
    for (storage, secret) in
        [(&sealed, Some("wrong horse")), (&sealed, None), (&plain, Some("any"))]
    {
        let storage = storage.clone();
        run("opening with another key", async move {
            let before = objects(storage.store()).await;
            let error = Catalog::open(storage.bucket(), secret.map(Secret::new).as_ref())
                .await
                .expect_err("refused");
            assert!(
                matches!(error.class(), Class::Denied | Class::Precondition | Class::Invalid),
                "{error} ({:?})",
                error.class()
            );
            assert!(
                error.to_string().to_lowercase().contains("key")
                    || error.to_string().contains("encrypt"),
                "{error}"
            );
            assert_eq!(objects(storage.store()).await, before);
        });
    }
}

/// Objects in the bucket of a sealed pool show neither data nor names.
#[test]
fn a_sealed_pool_shows_neither_data_nor_names() {
    let folder = tempfile::tempdir().unwrap();
    let (storage, _) = pool(folder.path(), Some(Secret::new("correct horse")));
    let whole = run("reading", async move { objects(storage.store()).await });
    let held = |needle: &[u8]| {
        whole
            .iter()
            .filter(|(_, bytes)| bytes.windows(needle.len()).any(|w| w == needle))
            .map(|(p, _)| p.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(held(b"a-name-to-be-hidden"), Vec::<String>::new());
    assert_eq!(held(&crate::script::bytes(1, 5_000)[..32]), Vec::<String>::new());
    let (storage, _) = pool(&folder.path().join("plain"), None);
    let whole = run("reading", async move { objects(storage.store()).await });
    assert!(
        whole
            .values()
            .any(|bytes| bytes.windows(32).any(|w| w == &crate::script::bytes(1, 5_000)[..32])),
        "the search finds what is plain"
    );
}
