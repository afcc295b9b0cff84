//! Datasets, snapshots and files by the shortest verbs: names that may be left out, files found
//! and read without a mount.

use super::Cli;
use crate::support::nfs;
use crate::support::program::{Answer, answer, files_below, program};
use std::process::Stdio;
use zerofs_csi::fs::api::{SetAttr, SetTime, Special};
use zerofs_csi::nfs::client::{Client, Credentials};
use zerofs_csi::types::Timestamp;

/// 30 KB, of which no two kilobytes are alike.
fn small(seed: u32) -> Vec<u8> {
    (0..7_500u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).wrapping_add(seed).to_le_bytes())
        .collect()
}

fn large() -> Vec<u8> {
    (0..25 << 20u32).flat_map(|n: u32| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// Whoever lost files, small ones, large ones or whole folders, has them back by these verbs.
#[tokio::test(flavor = "multi_thread")]
async fn files_and_folders_come_back_from_a_snapshot_after_they_were_lost() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web"]);
    cli.ok(&["dataset", "set-default", "web"]);
    assert_eq!(cli.ok(&["dataset", "get-default"]), "web\n");
    let serving = cli.serve(&[]);
    let (client, top) = nfs::mount(serving.nfs, "/").await;
    let private = SetAttr { mode: Some(0o750), ..SetAttr::default() };
    let etc = client.mkdir(&top, b"etc", &private).await.unwrap().handle;
    nfs::write(&client, &etc, "small", &small(1)).await;
    nfs::write(&client, &top, "large", &large()).await;
    serving.stop();

    cli.ok(&["dataset", "snapshot", "web", "trial"]);
    cli.ok(&["dataset", "snapshot", "web", "cut", "--readonly"]);
    let listed = cli.json(&["dataset", "list-snapshots", "web"]);
    let kinds: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (s["name"].as_str().unwrap(), s["writable"].as_bool().unwrap()))
        .collect();
    // Within the same second, in the order of names.
    assert!(kinds.contains(&("trial", true)) && kinds.contains(&("cut", false)), "{listed}");
    let handle = &cli.json(&["dataset", "info", "web@cut"])["handle"];
    assert!(listed.as_array().unwrap().iter().any(|s| s["handle"] == *handle), "{listed}");
    assert_eq!(cli.json(&["dataset", "info"])["name"], "web");

    // The originals are overwritten and deleted.
    let serving = cli.serve(&[]);
    let (client, top) = nfs::mount(serving.nfs, "/web").await;
    let etc = client.lookup(&top, b"etc").await.unwrap().handle;
    nfs::write(&client, &etc, "small", &small(2)).await;
    client.remove(&top, b"large").await.unwrap();
    serving.stop();

    for (snapshot, folder) in [("trial", "a"), ("cut", "b")] {
        let room = cli.path().join(folder);
        std::fs::create_dir(&room).unwrap();
        let to = |name: &str| room.join(name).display().to_string();
        let restore = |source: &str, to: &str| {
            let args = ["--snapshot", snapshot, "--source", source, "--destination", to];
            cli.ok(&[&["dataset", "restore"], &args[..]].concat())
        };
        restore("/etc/small", &to("small"));
        restore("/large", &to("large"));
        restore("/etc", &to("etc"));
        assert!(std::fs::read(room.join("small")).unwrap() == small(1), "{snapshot}");
        assert!(std::fs::read(room.join("large")).unwrap() == large(), "{snapshot}");
        assert!(std::fs::read(room.join("etc/small")).unwrap() == small(1), "{snapshot}");
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(room.join("etc")).unwrap().permissions(),
        );
        assert_eq!(mode & 0o7777, 0o750, "{snapshot}");
    }

    cli.ok(&["dataset", "delete-snapshot", "trial"]);
    cli.ok(&["dataset", "delete-snapshot", "web", "cut"]);
    cli.ok(&["dataset", "delete", "web"]);
    let refused = cli.run(&["dataset", "get-default"]);
    assert!(refused.code == 10 && refused.err.contains("set-default NAME"), "{refused:?}");
    cli.ok(&["dataset", "set-default", "--none"]);
    let refused = cli.run(&["dataset", "info"]);
    assert!(refused.code == 2 && refused.err.contains("set-default NAME"), "{refused:?}");
    assert_eq!(cli.run(&["dataset", "set-default", "web"]).code, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_export_is_the_default_dataset_and_nothing_without_one() {
    let cli = Cli::with_pool();
    let serving = cli.serve(&[]);
    let client = Client::connect(serving.nfs, &Credentials::root()).await.unwrap();
    assert!(client.mount("/").await.is_err());
    cli.ok(&["dataset", "create", "web"]);
    cli.ok(&["dataset", "set-default", "web"]);
    let (other, web) = nfs::mount(serving.nfs, "/web").await;
    other.mkdir(&web, b"dir", &SetAttr::default()).await.unwrap();
    let top = client.mount("/").await.unwrap();
    assert!(client.lookup(&top, b"dir").await.is_ok());
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_with_one_pool_needs_no_url() {
    let cli = Cli::with_pool();
    let config = cli.path().join("config.yaml");
    std::fs::write(&config, format!("pools:\n  main:\n    url: {}\n", cli.url())).unwrap();
    let run = |args: &[&str]| answer(program(args).arg("-c").arg(&config));
    assert_eq!(run(&["dataset", "create", "web"]).code, 0);
    assert!(run(&["dataset", "list"]).out.contains("web"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_listed_and_its_files_are_printed() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web"]);
    let serving = cli.serve(&[]);
    let (client, top) = nfs::mount(serving.nfs, "/web").await;
    let set = |mode| SetAttr {
        mode: Some(mode),
        mtime: SetTime::To(Timestamp::from_nanos(1_600_000_000_000_000_000)),
        ..SetAttr::default()
    };
    let dir = client.mkdir(&top, b"dir", &set(0o755)).await.unwrap().handle;
    nfs::write(&client, &dir, "b", &small(1)).await;
    nfs::write(&client, &dir, "a", b"").await;
    nfs::write(&client, &dir, "new\nline", b"x").await;
    let link = Special::Symlink(bytes::Bytes::from_static(b"../b"));
    client.make(&dir, b"c", &link, &set(0o777)).await.unwrap();
    // A hole of 3 MiB in front of the data.
    let file = client.lookup(&dir, b"a").await.unwrap().handle;
    let stable = zerofs_csi::fs::api::Stability::FileSync;
    client.write(&file, 3 << 20, bytes::Bytes::from_static(b"end"), stable).await.unwrap();
    serving.stop();
    cli.ok(&["dataset", "snapshot", "web", "cut", "--readonly"]);

    assert_eq!(cli.ok(&["dataset", "ls", "web@cut"]), "dir\n");
    assert_eq!(cli.ok(&["dataset", "ls", "web@cut", "/dir/"]), "a\nb\nc\nnew\\nline\n");
    let long = cli.ok(&["dataset", "ls", "web@cut", "dir", "-l"]);
    let line =
        long.lines().find(|line| line.ends_with("c -> ../b")).unwrap_or_else(|| panic!("{long}"));
    assert!(line.starts_with("lrwxrwxrwx  1 ") && line.contains("2020-09-13T12:26:40Z"), "{long}");
    assert!(long.lines().any(|line| line.starts_with("-rw-r-----") && line.contains(" 30000 ")));
    let json = cli.json(&["dataset", "ls", "web", "dir", "--long"]);
    assert_eq!(json.as_array().unwrap().len(), 4);
    assert_eq!((&json[1]["name"], &json[1]["size"]), (&"b".into(), &30_000.into()), "{json}");
    assert_eq!(cli.json(&["dataset", "ls", "web@cut", "dir/b"])[0]["kind"], "file");

    let cat = |path: &str| cli.command(&["dataset", "cat", "web@cut", path]).output().unwrap();
    assert!(cat("dir/b").stdout == small(1));
    let holed = cat("dir/a").stdout;
    assert!(holed.len() == (3 << 20) + 3 && holed.ends_with(b"\0end"));
    assert!(holed[..3 << 20].iter().all(|byte| *byte == 0));
    // A reader that has seen enough is no error.
    let mut command = cli.command(&["dataset", "cat", "web@cut", "dir/a"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
    for (path, code, why) in [("dir", 2, "is a folder"), ("no", 10, "no"), ("", 2, "empty")] {
        let refused = Answer::from(cat(path));
        assert!(refused.code == code && refused.err.contains(why), "{path:?}: {refused:?}");
    }
    assert!(files_below_readers(&cli).is_empty(), "no snapshot stays retained");
}

fn files_below_readers(cli: &Cli) -> Vec<std::path::PathBuf> {
    files_below(&cli.path().join("pool/readers"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_of_a_path_has_each_version_once() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web"]);
    cli.ok(&["dataset", "set-default", "web"]);
    let snapshot = |name: &str| cli.ok(&["dataset", "snapshot", name, "--readonly"]);
    // The file comes after the first snapshot, is the same in two, changes, and goes.
    let change = async |data: Option<Vec<u8>>| {
        let serving = cli.serve(&[]);
        let (client, top) = nfs::mount(serving.nfs, "/").await;
        match data {
            Some(data) => nfs::write(&client, &top, "file", &data).await,
            None => drop(client.remove(&top, b"file").await.unwrap()),
        }
        serving.stop();
    };
    let serving = cli.serve(&[]);
    let (client, top) = nfs::mount(serving.nfs, "/").await;
    client.mkdir(&top, b"dir", &SetAttr::default()).await.unwrap();
    serving.stop();
    snapshot("s0");
    change(Some(vec![1; 10])).await;
    snapshot("s1");
    snapshot("s2");
    change(Some(vec![2; 5000])).await;
    snapshot("s3");
    change(None).await;

    let history = cli.json(&["dataset", "history", "file"]);
    let spans: Vec<_> = history
        .as_array()
        .unwrap()
        .iter()
        .map(|v| {
            let text = |key: &str| v[key].as_str().unwrap().to_owned();
            (text("first"), text("last"), v["size"].as_u64())
        })
        .collect();
    let span = |first: &str, last: &str, size| (first.to_owned(), last.to_owned(), size);
    assert_eq!(
        spans,
        [
            span("web@s1", "web@s2", Some(10)),
            span("web@s3", "web@s3", Some(5000)),
            span("web", "web", None)
        ]
    );
    let text = cli.ok(&["dataset", "history", "web", "/file"]);
    assert!(text.contains("deleted") && text.lines().count() == 4, "{text}");
    let none = cli.run(&["dataset", "history", "web", "never"]);
    assert!(none.code == 10 && none.err.contains("never"), "{none:?}");
    assert!(files_below_readers(&cli).is_empty(), "no snapshot stays retained");
}
