//! The object store is away for longer than anybody waits for it: what is done is never said to
//! have failed.

use crate::support::files::{name, top};
use crate::support::volume::Dataset;
use std::pin::pin;
use std::time::Duration;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::fs::api::*;
use zerofs_csi::fs::{Fs, FsError, SyncMode};

/// Beyond every limit of the file system and of the protocol above it.
const AWAY: Duration = Duration::from_secs(400);

fn caller(xid: u32) -> Caller {
    Caller { call: Some(CallId { client: 7, xid, checksum: 9 }), ..Caller::root() }
}

/// Lets time pass in steps that are shorter than any limit, so that what is repeated is repeated.
async fn pass(time: Duration) {
    const STEP: Duration = Duration::from_secs(20);
    tokio::time::pause();
    for _ in 0..time.as_secs() / STEP.as_secs() {
        tokio::time::advance(STEP).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }
    tokio::time::resume();
}

#[derive(Clone, Copy, Debug)]
enum What {
    Remove,
    Rmdir,
    Rename,
    Link,
}

async fn change(fs: &Fs, what: What, at: FileRef) -> Result<(), FsError> {
    let (who, root, a, b) = (caller(what as u32), fs.root(), name("a"), name("b"));
    match what {
        What::Remove => fs.remove(&who, root, &a).await.map(drop),
        What::Rmdir => fs.rmdir(&who, root, &name("dir")).await.map(drop),
        What::Rename => fs.rename(&who, (root, &a), (root, &b)).await.map(drop),
        What::Link => fs.link(&who, at, root, &b).await.map(drop),
    }
}

#[tokio::test]
async fn a_change_that_is_done_is_answered_however_long_the_store_is_away() {
    for (what, sync) in [
        (What::Remove, SyncMode::Standard),
        (What::Rmdir, SyncMode::Standard),
        (What::Rename, SyncMode::Always),
        (What::Link, SyncMode::Always),
    ] {
        let journals = tempfile::tempdir().unwrap();
        let mut dataset = Dataset::new(Bucket::memory(), journals.path().to_owned());
        dataset.options.properties.sync = sync;
        let fs = dataset.open().await;
        let at = top::create(&fs, "a").await;
        fs.mkdir(&Caller::root(), fs.root(), &name("dir"), SetAttr::default()).await.unwrap();
        fs.sync().await.unwrap();
        let failpoints = dataset.place.bucket.failpoints();
        failpoints.set("fs.commit.before-flush", "pause").unwrap();
        let mut first = pin!(change(&fs, what, at));
        assert!(futures::poll!(&mut first).is_pending(), "{what:?}");
        pass(AWAY).await;
        assert!(
            futures::poll!(&mut first).is_pending(),
            "{what:?}: told to come again, the client would do it twice"
        );
        // The same call once more, on another connection.
        let mut again = pin!(change(&fs, what, at));
        assert!(futures::poll!(&mut again).is_pending(), "{what:?}");
        pass(AWAY).await;
        assert!(futures::poll!(&mut again).is_pending(), "{what:?}");
        failpoints.set("fs.commit.before-flush", "off").unwrap();
        first.await.unwrap_or_else(|error| panic!("{what:?}: {error}"));
        again.await.unwrap_or_else(|error| panic!("{what:?} again: {error}"));
        fs.close().await.unwrap();
    }
}

/// Closing does not wait for the store for ever, and loses nothing.
#[tokio::test]
async fn closing_while_changes_wait_fails_and_may_be_repeated() {
    let journals = tempfile::tempdir().unwrap();
    let dataset = Dataset::new(Bucket::memory(), journals.path().to_owned());
    let fs = dataset.open().await;
    let at = top::create(&fs, "a").await;
    fs.sync().await.unwrap();
    let failpoints = dataset.place.bucket.failpoints();
    failpoints.set("fs.commit.before-flush", "pause").unwrap();
    let mut change = pin!(change(&fs, What::Remove, at));
    assert!(futures::poll!(&mut change).is_pending());
    {
        let mut closing = pin!(fs.close());
        assert!(futures::poll!(&mut closing).is_pending());
        pass(Duration::from_secs(100)).await;
        assert!(matches!(closing.await, Err(FsError::Unavailable(_))));
    }
    failpoints.set("fs.commit.before-flush", "off").unwrap();
    change.await.unwrap();
    fs.close().await.unwrap();
    assert_eq!(std::fs::read_dir(journals.path()).unwrap().count(), 0, "the store has it all");
}
