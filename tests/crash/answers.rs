//! A volume over HTTP, on an S3 server whose answers are unlike those of a store that is well.

use crate::script::bytes;
use crate::support::fault::quick;
use crate::support::files::top;
use crate::support::s3::{Fault, Kind, Rule, S3Server};
use crate::support::volume::Dataset;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::fs::Fs;

async fn is_there(fs: &Fs, text: &str, data: &[u8]) {
    assert!(top::content(fs, text).await == data, "{text}");
}

fn dataset(bucket: Bucket, journals: &std::path::Path) -> Dataset {
    Dataset::new(bucket.with_limits(quick()), journals.to_owned())
}

/// Sizes on both sides of what rides in the database and what goes to packs.
const SIZES: [usize; 2] = [700, 90_000];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_of_a_put_with_its_own_first_attempt_fences_nobody() {
    let (status, code) = (409, "ConditionalRequestConflict");
    for drops_metadata in [false, true] {
        for fault in [
            Fault::refuse(status, code),
            Fault::done_but(status, code),
            Fault::late_but(status, code),
            Fault::cut_after(),
        ] {
            let (server, folder) = (S3Server::start(), tempfile::tempdir().unwrap());
            server.quirks(|quirks| quirks.drops_metadata = drops_metadata);
            let dataset = dataset(server.pool("s3://test/pool"), folder.path());
            // The objects that create, fence and open a database, then those that it writes.
            server.script(Rule::on(Kind::PutNew).times(2).then(fault.clone()));
            let fs = dataset.open().await;
            server.script(Rule::on(Kind::PutNew).at("/wal/").times(1).then(fault.clone()));
            top::write(&fs, "a", &bytes(1, SIZES[0])).await;
            server.script(Rule::on(Kind::PutNew).at("/manifest/").times(1).then(fault.clone()));
            top::write(&fs, "b", &bytes(2, SIZES[1])).await;
            while server.arrive() {}
            fs.close().await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
            drop(fs);
            let fs = dataset.open().await;
            is_there(&fs, "a", &bytes(1, SIZES[0])).await;
            is_there(&fs, "b", &bytes(2, SIZES[1])).await;
            fs.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_timeout_of_each_kind_is_not_seen() {
    let (server, folder) = (S3Server::start(), tempfile::tempdir().unwrap());
    let dataset = dataset(server.pool("s3://test/pool"), folder.path());
    for (kind, n) in Kind::ALL.into_iter().zip(0..) {
        server.script(Rule::on(kind).times(1).then(Fault::refuse(400, "RequestTimeout")));
        let fs = dataset.open().await;
        for size in SIZES {
            let text = format!("{kind:?} {size}");
            top::write(&fs, &text, &bytes(n, size)).await;
            is_there(&fs, &text, &bytes(n, size)).await;
        }
        fs.close().await.unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        server.heal();
    }
    let fs = dataset.open().await;
    for (kind, n) in Kind::ALL.into_iter().zip(0..) {
        for size in SIZES {
            is_there(&fs, &format!("{kind:?} {size}"), &bytes(n, size)).await;
        }
    }
    fs.close().await.unwrap();
}

/// SlateDB parses and encodes paths of its own, and a clone's manifest holds those of its
/// ancestors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_and_its_clone_are_below_the_prefix_as_it_was_given() {
    for (url, prefix) in [
        ("s3://test/team~one/p", "team~one/p/"),
        ("s3://test/größe", "größe/"),
        ("s3://test/a[1]", "a[1]/"),
        ("s3://test/a b%25", "a b%/"),
    ] {
        let (server, folder) = (S3Server::start(), tempfile::tempdir().unwrap());
        let dataset = dataset(server.pool(url), folder.path());
        let fs = dataset.open().await;
        top::write(&fs, "a", &bytes(1, SIZES[0])).await;
        top::write(&fs, "b", &bytes(2, SIZES[1])).await;
        let checkpoint = fs.snapshot("s").await.unwrap();
        let clone = dataset.clone_from(checkpoint).await;
        let cloned = clone.open().await;
        top::write(&cloned, "c", &bytes(3, SIZES[0])).await;
        for fs in [&fs, &cloned] {
            is_there(fs, "a", &bytes(1, SIZES[0])).await;
            is_there(fs, "b", &bytes(2, SIZES[1])).await;
        }
        cloned.close().await.unwrap();
        fs.close().await.unwrap();
        let keys = server.keys();
        let outside: Vec<_> = keys.iter().filter(|key| !key.starts_with(prefix)).collect();
        assert!(!keys.is_empty() && outside.is_empty(), "{url}: {outside:?}");
    }
}
