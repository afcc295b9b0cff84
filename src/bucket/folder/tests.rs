//! A store on a folder: objects are whole or absent, and a put recognises its own object.

use super::*;
use object_store::{Attribute, Attributes, ObjectStoreExt};

fn store_on(folder: &FilePath, ordered: bool) -> FolderStore {
    let general = LocalFileSystem::new_with_prefix(folder)
        .unwrap()
        .with_fsync(true)
        .with_automatic_cleanup(true);
    let disk = Disk {
        mounted: Mounted::of(folder).unwrap(),
        // The order of steps does not depend on the file system, only their guarantees do.
        ordered: ordered.then(|| std::fs::metadata(folder).unwrap().dev()),
        unsettled: Unsettled::default(),
        failpoints: Failpoints::default(),
    };
    FolderStore { general, disk: Arc::new(disk) }
}

async fn read(store: &FolderStore, at: &str) -> bytes::Bytes {
    store.get(&at.into()).await.unwrap().bytes().await.unwrap()
}

fn create() -> PutOptions {
    PutOptions::from(PutMode::Create)
}

fn marked(mark: &'static str) -> PutOptions {
    PutOptions {
        attributes: Attributes::from_iter([(Attribute::Metadata("slatedbputid".into()), mark)]),
        ..create()
    }
}

#[tokio::test]
async fn an_object_is_created_once_and_replaced_whole() {
    for ordered in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let store = store_on(folder.path(), ordered);
        for at in ["a/b/c", "a/b/d", "top"] {
            store.put_opts(&at.into(), "first".into(), create()).await.unwrap();
            let again = store.put_opts(&at.into(), "again".into(), create()).await;
            assert!(matches!(again, Err(object_store::Error::AlreadyExists { .. })), "{again:?}");
            assert_eq!(read(&store, at).await, "first");
            let put = store.put(&at.into(), "second, and longer".into()).await.unwrap();
            assert_eq!(read(&store, at).await, "second, and longer");
            assert_eq!(put.e_tag, store.head(&at.into()).await.unwrap().e_tag);
        }
        let parts: PutPayload = (0..100u8).map(|n| bytes::Bytes::from(vec![n; 5000])).collect();
        let put = store.put(&"a/b/parts".into(), parts.clone()).await.unwrap();
        assert_eq!(read(&store, "a/b/parts").await, bytes::Bytes::from(parts));
        assert_eq!(put.e_tag, store.head(&"a/b/parts".into()).await.unwrap().e_tag);
        store.put_opts(&"a/b/none".into(), PutPayload::new(), create()).await.unwrap();
        assert_eq!(read(&store, "a/b/none").await, "");
        let names = std::fs::read_dir(folder.path().join("a/b")).unwrap().count();
        assert_eq!(names, 4, "nothing but objects is left behind");
    }
}

#[tokio::test]
async fn one_of_many_creators_wins() {
    let folder = tempfile::tempdir().unwrap();
    let store = store_on(folder.path(), true);
    let at = Path::from("x/1");
    let put = |n: usize| store.put_opts(&at, format!("{n}").into(), create());
    let won =
        futures::future::join_all((0..16).map(put)).await.into_iter().filter(Result::is_ok).count();
    assert_eq!(won, 1);
}

#[tokio::test]
async fn a_put_that_is_repeated_recognises_its_own_object_and_no_other() {
    for ordered in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let store = store_on(folder.path(), ordered);
        let store = &store;
        let put = |at: &'static str, mark| async move {
            store.put_opts(&at.into(), "".into(), marked(mark)).await
        };
        store.disk.failpoints.set("bucket.folder.linked", "1*return->off").unwrap();
        assert!(
            matches!(put("w/1", "a").await, Err(object_store::Error::Generic { .. })),
            "nobody knows whether it stays"
        );
        // An object of the same bytes from another writer still counts as existing.
        assert!(matches!(put("w/1", "b").await, Err(object_store::Error::AlreadyExists { .. })));
        put("w/1", "a").await.unwrap();
        assert_eq!(read(store, "w/1").await, "");
        assert!(
            matches!(put("w/1", "a").await, Err(object_store::Error::AlreadyExists { .. })),
            "it was answered"
        );
        // Other attributes are not stored: a caller that gives them gets an error.
        let options = PutOptions {
            attributes: Attributes::from_iter([(Attribute::ContentType, "x")]),
            ..create()
        };
        let refused = store.put_opts(&"w/2".into(), "".into(), options).await;
        assert!(matches!(refused, Err(object_store::Error::NotImplemented { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn a_put_whose_caller_went_away_is_recognised_when_it_comes_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = store_on(folder.path(), true);
    store.disk.failpoints.set("bucket.folder.linked", "1*sleep(300)->off").unwrap();
    let at = Path::from("w/1");
    let given_up = store.put_opts(&at, "wal".into(), marked("a"));
    let given_up = tokio::time::timeout(std::time::Duration::from_millis(50), given_up);
    assert!(given_up.await.is_err());
    store.put_opts(&at, "wal".into(), marked("a")).await.unwrap();
    assert_eq!(read(&store, "w/1").await, "wal");
}

#[test]
fn only_known_file_systems_keep_one_log() {
    assert!(!is_ordered(FilePath::new("/proc"), 0).unwrap());
}
