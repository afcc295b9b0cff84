//! `serve` as a process, and commands beside it.

use super::Cli;
use crate::support::nfs;
use crate::support::program::files_below;
use bytes::Bytes;
use zerofs_csi::fs::api::{SetAttr, Special, Stability};
use zerofs_csi::nfs::NfsStat;
use zerofs_csi::nfs::client::{Client, Credentials};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_there_after_a_restart_and_a_kill_and_is_restored() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web"]);
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7) as u8 ^ (i >> 13) as u8).collect();

    let serving = cli.serve(&[]);
    let (client, root) = nfs::mount(serving.nfs, "/web").await;
    let etc = nfs::mkdir(&client, &root, "etc").await;
    nfs::write(&client, &etc, "app.conf", &data).await;
    client
        .make(
            &etc,
            b"link",
            &Special::Symlink(Bytes::from_static(b"app.conf")),
            &SetAttr::default(),
        )
        .await
        .unwrap();
    // Owned by the server: a command must not touch it, and says who has it.
    let refused = cli.run(&["dataset", "delete", "web"]);
    assert!(refused.code == 13 && refused.err.contains("open on node"), "{refused:?}");
    serving.server.kill();

    let serving = cli.serve(&[]);
    let client = Client::connect(serving.nfs, &Credentials::root()).await.unwrap();
    // The handle from before the kill is still good: nobody sends MNT again.
    let file = client.lookup(&etc, b"app.conf").await.unwrap().handle;
    assert!(
        client.read(&file, 1_000_000, 500_000).await.unwrap().data[..]
            == data[1_000_000..1_500_000]
    );
    serving.stop();
    assert_eq!(cli.json(&["dataset", "info", "web"])["owner"], serde_json::Value::Null);

    cli.ok(&["dataset", "snapshot", "create", "web", "cut"]);
    let checked = cli.json(&["check"]);
    assert!(checked.as_array().unwrap().iter().all(|c| c["clean"] == true), "{checked}");
    assert_eq!(checked.as_array().unwrap().len(), 2, "{checked}");
    let (file, tree) = (cli.path().join("app.conf"), cli.path().join("tree"));
    cli.ok(&["dataset", "restore", "web@cut", "etc/app.conf", &file.display().to_string()]);
    assert!(std::fs::read(&file).unwrap() == data);
    cli.ok(&["dataset", "restore", "web@cut", "/", &tree.display().to_string()]);
    assert!(std::fs::read(tree.join("etc/app.conf")).unwrap() == data);
    assert_eq!(
        std::fs::read_link(tree.join("etc/link")).unwrap(),
        std::path::Path::new("app.conf")
    );
    let again =
        cli.run(&["dataset", "restore", "web@cut", "etc/app.conf", &file.display().to_string()]);
    assert_eq!(again.code, 11, "{again:?}");
    cli.ok(&[
        "dataset",
        "restore",
        "web@cut",
        "etc/app.conf",
        &file.display().to_string(),
        "--force",
    ]);

    let space = cli.json(&["space", "--exact"]);
    assert_eq!(space["of"].as_array().unwrap().len(), 2, "{space}");
    assert!(space["of"][0]["logical_bytes"].as_u64().unwrap() >= 3_000_000, "{space}");
    assert!(cli.ok(&["space", "web"]).contains("web@cut"));
    let state = cli.path().join("scrubbing").display().to_string();
    let scrubbed = cli.json(&["scrub", "web", "--rate", "1Gi", "--state-file", &state]);
    assert_eq!(scrubbed["damaged"], serde_json::json!([]), "{scrubbed}");
    assert!(scrubbed["bytes"].as_u64().unwrap() > 0 && !std::path::Path::new(&state).exists());
    let pack = cli.path().join("pool/packs");
    let pack =
        files_below(&pack).into_iter().max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let mut bent = std::fs::read(&pack).unwrap();
    bent[1000] ^= 1;
    std::fs::write(&pack, bent).unwrap();
    let damaged = cli.run(&["scrub"]);
    assert!(
        damaged.code == 18
            && damaged.out.contains("web:/etc/app.conf at ")
            && damaged.out.contains("web@cut:/etc/app.conf at "),
        "{damaged:?}"
    );
}

/// A machine that is gone for good must not keep a dataset for ever; one that still answers keeps
/// it.
#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_is_released_from_a_node_that_is_gone() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web", "--size", "1Gi"]);
    let config = cli.path().join("config.yaml");
    std::fs::write(&config, "ownerTimeout: 3s\nmailboxInterval: 50ms\nlease: 5s\n").unwrap();
    let config = config.display().to_string();
    let serving = cli.serve(&["--config", &config]);
    let (client, root) = nfs::mount(serving.nfs, "/web").await;
    nfs::write(&client, &root, "kept", &[7; 100_000]).await;
    let grown = cli.json(&["dataset", "expand", "web", "3Gi"]);
    assert_eq!(grown["size_bytes"], 3u64 << 30, "{grown}");
    let refused = cli.run(&["dataset", "release", "web", "--config", &config]);
    assert!(refused.code == 13 && refused.err.contains("in use"), "{refused:?}");
    serving.server.kill();
    let refused = cli.run(&["dataset", "release", "web", "--config", &config]);
    assert!(refused.code == 13 && refused.err.contains("journal"), "{refused:?}");
    let released = cli.json(&["dataset", "release", "web", "--force", "--config", &config]);
    assert!(released["from"].is_string(), "{released}");
    assert_eq!(cli.json(&["dataset", "info", "web"])["owner"], serde_json::Value::Null);
    let file = cli.path().join("kept");
    cli.ok(&["dataset", "snapshot", "create", "web", "cut"]);
    cli.ok(&["dataset", "restore", "web@cut", "kept", &file.display().to_string()]);
    assert!(std::fs::read(&file).unwrap() == vec![7; 100_000], "what was synced is there");
    assert_eq!(cli.json(&["dataset", "release", "web"])["from"], serde_json::Value::Null);
}

/// An unused dataset is closed and may be deleted; a client that comes back to it notices nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_export_is_closed_until_it_is_used() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web"]);
    let config = cli.path().join("config.yaml");
    std::fs::write(&config, "exportIdle: 400ms\n").unwrap();
    let config = config.display().to_string();
    let mut serving = cli.serve(&["--config", &config]);
    let (client, root) = nfs::mount(serving.nfs, "/web").await;
    nfs::write(&client, &root, "kept", &[7; 100_000]).await;
    let file = client.lookup(&root, b"kept").await.unwrap().handle;
    until_released(&cli);
    for restart in [false, true] {
        if restart {
            serving.stop();
            serving = cli.serve(&["--config", &config]);
        }
        let client = Client::connect(serving.nfs, &Credentials::root()).await.unwrap();
        // The handle from before; nobody sends MNT again.
        assert!(client.read(&file, 0, 100_000).await.unwrap().data[..] == [7; 100_000]);
        until_released(&cli);
    }
    cli.ok(&["dataset", "delete", "web"]);
    let client = Client::connect(serving.nfs, &Credentials::root()).await.unwrap();
    let gone = client.read(&file, 0, 10).await.unwrap_err();
    assert!(gone.to_string().to_lowercase().contains("stale"), "{gone}");
    serving.stop();
}

fn until_released(cli: &Cli) {
    for _ in 0..300 {
        if cli.json(&["dataset", "info", "web"])["owner"].is_null() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("an idle dataset stays open");
}

#[test]
fn serve_makes_a_pool_in_an_empty_folder_and_in_no_other() {
    let cli = Cli::empty();
    let serving = cli.serve(&[]);
    cli.ok(&["dataset", "create", "web"]);
    serving.stop();
    let serving = cli.serve(&[]);
    assert_eq!(cli.json(&["dataset", "info", "web"])["name"], "web", "the same pool");
    serving.stop();

    let cli = Cli::empty();
    let folder = std::path::PathBuf::from(cli.url().strip_prefix("file://").unwrap());
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("a"), "of somebody else").unwrap();
    let state = cli.path().join("state").display().to_string();
    let refused = cli.run(&["serve", "--state-dir", &state, "--nfs-listen", "127.0.0.1:0"]);
    assert!(refused.code == 10 && refused.err.contains("is not empty"), "{refused:?}");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}

/// Over NFS, as the kernel's client sees it: snapshots below the mount, a snapshot as an export of
/// its own, handles that outlive the process.
#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_served_below_their_dataset_and_by_themselves() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web"]);
    let config = cli.path().join("config.yaml");
    std::fs::write(&config, "mailboxInterval: 50ms\n").unwrap();
    let config = config.display().to_string();
    let serving = cli.serve(&["--config", &config]);
    let (client, root) = nfs::mount(serving.nfs, "/web").await;
    let etc = nfs::mkdir(&client, &root, "etc").await;
    nfs::write(&client, &etc, "app.conf", &[7; 300_000]).await;
    cli.ok(&["dataset", "snapshot", "create", "web", "cut", "--config", &config]);
    let file = client.lookup(&etc, b"app.conf").await.unwrap().handle;
    client.write(&file, 100, Bytes::from(vec![8; 1000]), Stability::FileSync).await.unwrap();
    nfs::write(&client, &etc, "new", &[1; 10]).await;

    let fsid = client.getattr(&root).await.unwrap().fsid;
    let snapshots = client.lookup(&root, b".snapshots").await.unwrap().handle;
    let cut = client.lookup(&snapshots, b"cut").await.unwrap().handle;
    let old_etc = client.lookup(&cut, b"etc").await.unwrap().handle;
    let old = client.lookup(&old_etc, b"app.conf").await.unwrap();
    let old = (
        old.handle,
        client.getattr(&client.lookup(&old_etc, b"app.conf").await.unwrap().handle).await.unwrap(),
    );
    assert!(
        old.1.fsid == fsid && old.1.fileid != client.getattr(&file).await.unwrap().fileid,
        "one file system, other files"
    );
    assert!(client.read(&old.0, 0, 300_000).await.unwrap().data[..] == [7; 300_000]);
    let refused =
        client.write(&old.0, 0, Bytes::from_static(b"x"), Stability::FileSync).await.unwrap_err();
    assert_eq!(refused.status(), Some(NfsStat::ReadOnly));
    let refused = client.remove(&old_etc, b"app.conf").await.unwrap_err();
    assert_eq!(refused.status(), Some(NfsStat::ReadOnly));

    // By itself: another export, whose handles are none of the dataset's.
    let alone = client.mount("/web@cut").await.unwrap();
    let alone_etc = client.lookup(&alone, b"etc").await.unwrap().handle;
    let alone_file = client.lookup(&alone_etc, b"app.conf").await.unwrap().handle;
    assert_ne!(client.getattr(&alone).await.unwrap().fsid, fsid);
    assert_eq!(
        client.mkdir(&alone, b"x", &SetAttr::default()).await.unwrap_err().status(),
        Some(NfsStat::ReadOnly)
    );
    assert!(client.mount("/web@none").await.is_err() && client.mount("/none@cut").await.is_err());
    // And every folder below either.
    for (path, folder) in
        [("/web/etc", &etc), ("/web/.snapshots/cut/etc/", &old_etc), ("/web@cut/etc", &alone_etc)]
    {
        assert_eq!(client.mount(path).await.unwrap(), *folder, "{path}");
    }
    assert!(
        client.mount("/web/none").await.is_err()
            && client.mount("/web/etc/app.conf").await.is_err()
    );

    // The differences, while the dataset is mounted.
    let lines = cli.ok(&["dataset", "diff", "web@cut", "--config", &config]);
    let mut lines: Vec<&str> = lines.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["+  /etc/new", "M  /etc  (entries)", "M  /etc/app.conf  (content)"]);
    // Put back by whoever has it open, without the data.
    let done = cli.json(&[
        "dataset",
        "restore",
        "web@cut",
        "etc/app.conf",
        "--in-place",
        "--force",
        "--config",
        &config,
    ]);
    assert_eq!(
        (done["objects"].as_u64(), done["bytes"].as_u64()),
        (Some(1), Some(300_000)),
        "{done}"
    );
    let back = client.lookup(&etc, b"app.conf").await.unwrap().handle;
    assert!(client.read(&back, 0, 300_000).await.unwrap().data[..] == [7; 300_000]);
    let refused =
        cli.run(&["dataset", "restore", "web@cut", "etc", "--in-place", "--config", &config]);
    assert!(refused.code == 11 && refused.err.contains("/etc"), "{refused:?}");

    serving.server.kill();
    let serving = cli.serve(&["--config", &config]);
    let client = Client::connect(serving.nfs, &Credentials::root()).await.unwrap();
    for handle in [&old.0, &alone_file] {
        assert!(
            client.read(handle, 0, 300_000).await.unwrap().data[..] == [7; 300_000],
            "the handles are good for ever"
        );
    }
    cli.ok(&["dataset", "snapshot", "delete", "web", "cut"]);
    for handle in [&old.0, &alone_file] {
        let mut stale = None;
        for _ in 0..300 {
            stale = client.read(handle, 0, 10).await.err().and_then(|error| error.status());
            if stale.is_some() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert_eq!(stale, Some(NfsStat::Stale));
    }
    serving.stop();
    // The only reader left is that of the process that was killed: it counts for an hour.
    let registrations = std::fs::read_dir(cli.path().join("pool/readers"))
        .unwrap()
        .flat_map(|dir| std::fs::read_dir(dir.unwrap().path()).unwrap());
    assert_eq!(registrations.count(), 1);
}
