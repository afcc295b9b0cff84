//! `dataset set`, completions and manual pages.

use super::Cli;
use crate::support::nfs;
use crate::support::program::{answer, program};
use bytes::Bytes;
use zerofs_csi::fs::api::{CreateHow, DirCookie, SetAttr, Stability};
use zerofs_csi::nfs::client::{Client, FileHandle};

#[test]
fn properties_of_a_released_dataset_are_set() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web", "--size", "1Gi"]);
    let all = [
        "size=2Gi",
        "inodes=1000",
        "recordsize=128k",
        "sync=always",
        "compression=zstd",
        "snapdir=visible",
        "maxReadBandwidth=100Mi",
        "maxWriteBandwidth=50Mi",
        "maxIops=500",
    ];
    let set = cli.json(&[&["dataset", "set", "web"], &all[..]].concat());
    assert_eq!(
        (set["size_bytes"].as_u64(), set["quota_inodes"].as_u64()),
        (Some(2 << 30), Some(1000))
    );
    assert_eq!((&set["sync"], &set["compression"]), (&"always".into(), &"zstd".into()));
    assert_eq!(set["record_bytes"].as_u64(), Some(128 << 10));
    assert_eq!(
        (&set["max_read_bandwidth"], &set["max_write_bandwidth"], &set["max_iops"]),
        (&(100 << 20).into(), &(50 << 20).into(), &500.into())
    );
    let text = cli.ok(&["dataset", "info", "web"]);
    assert!(text.contains("100 MiB/s") && text.contains("max IOPS"), "{text}");
    let set = cli.json(&["dataset", "set", "web", "inodes=none", "sync=default", "maxIops=none"]);
    assert_eq!(set["max_iops"], serde_json::Value::Null);
    assert_eq!(
        (&set["quota_inodes"], &set["sync"]),
        (&serde_json::Value::Null, &serde_json::Value::Null)
    );
    assert_eq!(cli.json(&["dataset", "info", "web"])["record_bytes"], 128 << 10);
    for (property, part) in [
        ("size=1Gi", "never shrinks"),
        ("size=40", "too small"),
        ("recordsize=3k", "power of two"),
        ("sync=often", "standard, always, disabled, default"),
        ("colour=red", "there is no property"),
        ("size", "size=VALUE"),
        ("inodes=0", "root directory"),
        ("maxReadBandwidth=50", "use 1Mi to 1Ti"),
        ("maxWriteBandwidth=fast", "is not a size"),
        ("maxIops=1", "use 10 to 10000000"),
    ] {
        let refused = cli.run(&["dataset", "set", "web", property]);
        assert!(refused.code == 2 && refused.err.contains(part), "{property}: {refused:?}");
    }
    assert_eq!(cli.run(&["dataset", "set", "none", "size=2Gi"]).code, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_of_an_open_dataset_is_told() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web", "--size", "1Gi"]);
    let serving = cli.serve(&[]);
    let (client, root) = nfs::mount(serving.nfs, "/web").await;
    let dir = client.mkdir(&root, b"dir", &Default::default()).await.unwrap().handle;
    cli.ok(&["dataset", "set", "web", "size=3Gi", "recordsize=1Mi", "snapdir=visible"]);
    assert_eq!(client.fsstat(&dir).await.unwrap().total_bytes, 3 << 30);
    let listed = client.readdir(&root, DirCookie(0), [0; 8], 4096).await.unwrap();
    assert!(listed.entries.iter().any(|entry| &entry.name[..] == b".snapshots"), "{listed:?}");
    writes_wait_for_a_limit(&cli, &client, &dir).await;
    serving.stop();
}

/// Until it is changed.
async fn writes_wait_for_a_limit(cli: &Cli, client: &Client, dir: &FileHandle) {
    cli.ok(&["dataset", "set", "web", "maxWriteBandwidth=1Mi"]);
    let how = CreateHow::Unchecked(SetAttr::default());
    let file = client.create(dir, b"file", &how).await.unwrap().handle;
    let write = |n: u64| {
        let (client, file) = (client.clone(), file.clone());
        let data = Bytes::from(vec![1; 1 << 20]);
        tokio::spawn(async move { client.write(&file, n << 20, data, Stability::Unstable).await })
    };
    let writes: Vec<_> = (0..25).map(write).collect();
    client.commit(&file, 0, 0).await.unwrap();
    assert!(!writes.iter().all(|write| write.is_finished()));
    cli.ok(&["dataset", "set", "web", "maxWriteBandwidth=none"]);
    let done = futures::future::join_all(writes);
    let done = tokio::time::timeout(std::time::Duration::from_secs(15), done).await.unwrap();
    assert!(done.into_iter().all(|written| written.unwrap().unwrap().count == 1 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_is_renamed_while_it_is_open() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web", "--size", "1Gi"]);
    cli.ok(&["dataset", "snapshot", "web", "cut", "--readonly"]);
    let before = cli.json(&["dataset", "info", "web"]);
    let serving = cli.serve(&[]);
    let (client, root) = nfs::mount(serving.nfs, "/web").await;
    let renamed = cli.json(&["dataset", "rename", "web", "site"]);
    assert_eq!((&renamed["name"], &renamed["handle"]), (&"site".into(), &before["handle"]));
    // The mount goes on, and a new one has the new name.
    let dir = client.mkdir(&root, b"dir", &Default::default()).await.unwrap().handle;
    let again = client.mount("/site").await.unwrap();
    assert_eq!(client.lookup(&again, b"dir").await.unwrap().handle, dir);
    client.mount("/web").await.unwrap_err();
    serving.stop();
    assert_eq!(cli.json(&["dataset", "list"]).as_array().unwrap().len(), 1);
    assert_eq!(cli.json(&["dataset", "list-snapshots"])[0]["dataset"], "site");
    cli.ok(&["dataset", "ls", "site@cut"]);

    // The names are exchanged, as after going back to a snapshot.
    cli.ok(&["dataset", "clone", "site@cut", "earlier"]);
    cli.ok(&["dataset", "rename", "earlier", "web"]);
    assert_eq!(cli.json(&["dataset", "info", "web"])["origin_name"], "site@cut");
    for (args, status, says) in [
        (["web", "site"], 11, "dataset site exists"),
        (["earlier", "other"], 10, "dataset earlier does not exist"),
        (["web", "a/b"], 2, "dataset name"),
        (["web", "a@b"], 2, "'@' stands between"),
    ] {
        let refused = cli.run(&[&["dataset", "rename"], &args[..]].concat());
        assert!(refused.code == status && refused.err.contains(says), "{args:?}: {refused:?}");
    }
    let refused = cli.run(&["dataset", "create", "earlier"]);
    assert!(refused.code == 11 && refused.err.contains("first name of dataset web"), "{refused:?}");
}

#[test]
fn a_dataset_with_writable_snapshots_keeps_its_name() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web", "--size", "1Gi"]);
    cli.ok(&["dataset", "snapshot", "web", "trial"]);
    for (name, says) in
        [("web", "writable snapshot trial"), ("web@trial", "is a writable snapshot")]
    {
        let refused = cli.run(&["dataset", "rename", name, "site"]);
        assert!(refused.code == 13 && refused.err.contains(says), "{name}: {refused:?}");
    }
    cli.ok(&["dataset", "delete-snapshot", "web", "trial"]);
    cli.ok(&["dataset", "rename", "web", "site"]);
}

#[test]
fn completions_and_manual_pages_are_made() {
    let cli = Cli::empty();
    let run = |args: &[&str]| answer(&mut program(args));
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]);
        assert!(script.code == 0 && script.out.contains("run-now"), "{shell}");
    }
    let dir = cli.path().display().to_string();
    let made = run(&["man", &dir]);
    assert_eq!(made.code, 0, "{made:?}");
    let page = std::fs::read_to_string(cli.path().join("zerofs-csi-policy-set.1")).unwrap();
    assert!(page.contains("time zone") || page.contains("Time zone"), "{page}");
    assert_eq!(run(&["man", "/does/not/exist"]).code, 10);
}
