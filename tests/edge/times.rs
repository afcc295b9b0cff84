//! The change times that stat(2) shows across crashes, clones and clocks that jump (R8).

use crate::again::{found, make};
use crate::served::{Death, Host, Served};
use crate::support::files;
use zerofs_csi::fs::Fs;
use zerofs_csi::fs::api::{Attr, Caller, CreateHow, FileSystem, SetAttr, Stability};
use zerofs_csi::types::Timestamp;

const YEAR_NANOS: i64 = 365 * 24 * 3600 * 1_000_000_000;

/// Makes a file; it and its directory have the times of this moment. Answers the file's and the
/// directory's attributes.
async fn make_now(fs: &Fs, name: &str, what: &str) -> (Attr, Attr) {
    let before = Timestamp::now();
    let made = fs
        .create(
            &Caller::root(),
            fs.root(),
            &files::name(name),
            CreateHow::Guarded(SetAttr::default()),
        )
        .await
        .unwrap();
    let written = fs
        .write(&Caller::root(), made.attr.file, 0, vec![1; 10].into(), Stability::Unstable)
        .await
        .unwrap()
        .change
        .after;
    let (after, dir) = (Timestamp::now(), made.dir.after);
    for (at, time) in [
        ("atime", written.atime),
        ("mtime", written.mtime),
        ("ctime", written.ctime),
        ("the directory's mtime", dir.mtime),
    ] {
        let ahead = (time.as_nanos() - after.as_nanos()) / 1_000_000;
        assert!(
            before <= time && time <= after,
            "{what}: {at} of {name} is {ahead} ms ahead of the clock"
        );
    }
    (written, dir)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_are_the_clocks_after_crashes_and_in_a_clone() {
    let mut host = Host::new();
    let mut served = host.serve().await;
    let (_, mut dir) = make_now(&served.fs, "0", "a new dataset").await;
    for n in 1..=5 {
        served = host.again(served, Death::Process).await;
        let (_, now) = make_now(&served.fs, &n.to_string(), &format!("after {n} crashes")).await;
        assert!(now.ctime > dir.ctime);
        dir = now;
    }
    let checkpoint = served.fs.snapshot("one").await.unwrap();
    let clone = host.dataset.clone_from(checkpoint).await;
    let clone = clone.open().await;
    let (_, now) = make_now(&clone, "6", "in a clone").await;
    assert!(now.ctime > dir.ctime);
    clone.close().await.unwrap();
    served.fs.close().await.unwrap();
    host.check().await;
}

/// Times of the object, which a change now has to give the clock's mtime and a ctime above the one
/// before.
async fn changes(served: &Served, name: &str, last: &Attr) -> Attr {
    let fs = &served.fs;
    let before = Timestamp::now();
    let written = fs
        .write(&Caller::root(), last.file, 0, vec![2; 10].into(), Stability::FileSync)
        .await
        .unwrap()
        .change
        .after;
    assert!(
        written.mtime >= before && written.mtime <= Timestamp::now(),
        "{name}: mtime stays ahead of the clock"
    );
    assert!(written.ctime > last.ctime, "{name}: a ctime that came twice");
    written
}

/// A clock that was a year ahead, for a while, marks what was changed then and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_was_a_year_ahead_is_healed() {
    let mut host = Host::new();
    let clock = host.dataset.options.clock.clone();
    let mut served = host.serve().await;
    make(&served, "before").await;
    clock.set_ahead(YEAR_NANOS);
    make(&served, "ahead").await;
    let mut ahead = found(&served, "ahead").await.unwrap();
    assert!(ahead.mtime.as_nanos() > Timestamp::now().as_nanos() + YEAR_NANOS / 2);
    clock.set_ahead(0);
    for death in [None, Some(Death::Process), Some(Death::Node)] {
        served.fs.sync().await.unwrap();
        if let Some(death) = death {
            served = host.again(served, death).await;
        }
        let root = served.fs.getattr(served.fs.root()).await.unwrap();
        let (_, dir) =
            make_now(&served.fs, &format!("{death:?}"), "after the clock was set right").await;
        assert!(dir.ctime > root.ctime, "the directory had changed while the clock was ahead");
        ahead = changes(&served, "ahead", &ahead).await;
        let before = found(&served, "before").await.unwrap();
        assert!(changes(&served, "before", &before).await.ctime <= Timestamp::now());
    }
    served.fs.close().await.unwrap();
    host.check().await;
}

/// ctime grows also while the clock is behind; mtime says what the clock says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_back_takes_no_ctime_back() {
    let mut host = Host::new();
    let clock = host.dataset.options.clock.clone();
    let mut served = host.serve().await;
    make(&served, "file").await;
    let first = found(&served, "file").await.unwrap();
    let mut last = first;
    served.fs.sync().await.unwrap();
    clock.set_ahead(-YEAR_NANOS);
    for _ in 0..2 {
        let set = SetAttr {
            mode: Some(0o600),
            mtime: zerofs_csi::fs::api::SetTime::Now,
            ..SetAttr::default()
        };
        let changed = served.fs.setattr(&Caller::root(), last.file, set, None).await.unwrap().after;
        assert!(
            changed.ctime > last.ctime
                && changed.mtime.as_nanos() < first.mtime.as_nanos() - YEAR_NANOS / 2
        );
        last = changed;
        served = host.again(served, Death::Process).await;
    }
    served.fs.close().await.unwrap();
    host.check().await;
}
