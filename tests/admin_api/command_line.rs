//! The command line through a running server, beside the same commands on the pool itself.

use super::server::{ODD, Server, large};
use crate::support::nfs;
use crate::support::program::{answer, json, ok, program};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use tokio_util::task::AbortOnDropHandle;
use zerofs_csi::fs::api::{CreateHow, SetAttr, SetTime, Special, Stability};
use zerofs_csi::types::Timestamp;

/// A command through the server's socket.
pub fn through(server: &Server, args: &[&str]) -> Command {
    let mut command = program(args);
    command.args(["--server", &format!("unix:{}", server.socket().display())]);
    command
}

/// The same on the pool itself.
pub fn directly(server: &Server, args: &[&str]) -> Command {
    let mut command = program(args);
    command.arg("--config").arg(server.room.path().join("config.yaml"));
    command
}

/// A server with files, the snapshots `s1` and `s2`, a writable one, a policy and a hold, whose
/// dataset is written to until the second value is dropped.
async fn busy() -> (Server, AbortOnDropHandle<()>) {
    let server = Server::start();
    server.fill().await;
    for args in [
        &["dataset", "snapshot", "create", "web", "s2"][..],
        &["dataset", "snapshot", "web", "trial"],
        &["dataset", "snapshot", "hold", "web@s1", "audit"],
        &["dataset", "set-default", "web"],
        // Its next slot is far away, so that it is the same for every command.
        &["policy", "set", "web", "--schedule", "0 0 1 1 *", "--daily", "7", "--weekly", "2mo"],
    ] {
        ok(&mut directly(&server, args));
    }
    let (client, root) = server.client().await;
    let writing = tokio::spawn(async move {
        let busy = nfs::mkdir(&client, &root, b"busy").await;
        for n in 0_u64.. {
            let name = format!("{}", n % 50);
            nfs::write(&client, &busy, name.as_bytes(), &n.to_be_bytes().repeat(500)).await;
        }
    });
    (server, AbortOnDropHandle::new(writing))
}

/// Commands that show what does not change while others write.
const SHOWN: &[&[&str]] = &[
    &["dataset", "list"],
    &["dataset", "info"],
    &["dataset", "info", "web"],
    &["dataset", "info", "web@s1"],
    &["dataset", "info", "web@trial"],
    &["dataset", "get-default"],
    &["dataset", "list-snapshots", "web"],
    &["dataset", "snapshot", "list"],
    &["dataset", "snapshot", "info", "web", "s1"],
    &["dataset", "snapshot", "info", "web", "trial"],
    &["dataset", "ls", "web@s1", "/docs"],
    &["dataset", "ls", "-l", "web@s1", "/docs"],
    &["dataset", "ls", "-l", "web@s1", "docs/a.txt"],
    &["dataset", "ls", "-l", "web@trial", "/docs/sub"],
    &["dataset", "ls", "web", "/docs"],
    &["dataset", "find", "*.txt", "web@s1"],
    &["dataset", "find", "a.txt", "web"],
    &["dataset", "find", "TXT"],
    &["dataset", "history", "web", "/docs/a.txt"],
    &["dataset", "history", "/docs/new.txt"],
    &["dataset", "diff", "web@s1", "web@s2"],
    &["dataset", "diff", "web@s1", "web@s2", "--stat"],
    &["dataset", "diff", "web@s1", "web@s2", "--tree"],
    &["dataset", "restore", "web@s1", "/docs", "--in-place", "--force", "--dry-run"],
    &["policy", "list"],
    &["policy", "show", "web"],
    &["policy", "show"],
];

#[tokio::test(flavor = "multi_thread")]
async fn what_commands_show_is_the_same_through_a_server() {
    let (server, _writing) = busy().await;
    server.flushed("/busy/3");
    // In no particular order where a comparison tells it.
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    for args in SHOWN {
        for more in [&[][..], &["--json"]] {
            let args = &[args, more].concat();
            let (direct, told) =
                (answer(&mut directly(&server, args)), answer(&mut through(&server, args)));
            assert!(direct.code == 0 && direct.err.is_empty(), "{args:?}: {direct:?}");
            assert!(direct.out.len() > 2, "{args:?}: {direct:?}");
            assert_eq!(sorted(&told.out), sorted(&direct.out), "{args:?}: {told:?}");
            assert_eq!((told.code, told.err.as_str()), (0, ""), "{args:?}");
        }
    }
    // The present state changes from one command to the next.
    let args = &["dataset", "diff", "web@s1", "--json"];
    let told = ok(&mut through(&server, args));
    assert!(told.contains("/busy/3") && told.contains("/docs/new.txt"), "{told}");
    let args = &["policy", "simulate", "web", "--days", "800"];
    let (mut direct, mut told) =
        (json(&mut directly(&server, args)), json(&mut through(&server, args)));
    for simulated in [&mut direct, &mut told] {
        assert!(simulated.as_object_mut().unwrap().remove("until").is_some());
    }
    assert_eq!(direct, told);
    assert!(told["snapshots"].as_array().unwrap().len() > 2, "{told}");
    let of_s1 = |space: serde_json::Value| {
        let of = space["of"].as_array().unwrap().clone();
        of.into_iter().find(|of| of["name"] == "web@s1").unwrap()
    };
    let args = &["space", "web", "--exact"];
    let (direct, told) = (json(&mut directly(&server, args)), json(&mut through(&server, args)));
    let (direct, told) = (of_s1(direct), of_s1(told));
    for field in ["referenced_bytes", "logical_bytes", "stored_bytes", "estimated"] {
        assert_eq!(direct[field], told[field], "{field}");
    }
    let scrubbed = json(&mut through(&server, &["scrub", "web"]));
    let roots: Vec<&str> =
        scrubbed["roots"].as_array().unwrap().iter().map(|root| root.as_str().unwrap()).collect();
    assert!(["web", "web@s1", "web@s2"].iter().all(|root| roots.contains(root)), "{scrubbed}");
    assert!(
        scrubbed["bytes"].as_u64().unwrap() > 0 && scrubbed["damaged"] == serde_json::json!([])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_are_those_of_the_file() {
    let (server, _writing) = busy().await;
    let cat = |root: &str, path: &str| {
        let done = through(&server, &["dataset", "cat", root, path]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        done.stdout
    };
    assert_eq!(cat("web@s1", "/docs/sub/large"), large());
    assert_eq!(cat("web@s1", "docs/a.txt"), b"first version");
    assert_eq!(cat("web@trial", "docs/a.txt"), b"second");
    assert_eq!(cat("web", "docs/a.txt"), b"second");
    assert_eq!(cat("web@s1", "docs/empty"), b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_made_through_a_server() {
    let (server, _writing) = busy().await;
    let told = |args: &[&str]| json(&mut through(&server, args));
    let same = |args: &[&str], shown: serde_json::Value| {
        assert_eq!(json(&mut directly(&server, args)), shown, "{args:?}");
    };
    let new = &["--size", "1Gi", "--sync", "always", "--recordsize", "16Ki", "--inodes", "500"];
    let more = &["--compression", "zstd", "--snapdir", "visible", "--mode", "2750", "--uid", "7"];
    let limits = &["--max-write-bandwidth", "50Mi", "--max-iops", "500"];
    let made = told(&[&["dataset", "create", "logs"][..], new, more, limits].concat());
    assert_eq!(
        (&made["max_write_bandwidth"], &made["max_iops"]),
        (&(50 << 20).into(), &500.into())
    );
    assert_eq!((&made["sync"], &made["record_bytes"]), (&"always".into(), &16384.into()));
    assert_eq!((&made["compression"], &made["quota_inodes"]), (&"zstd".into(), &500.into()));
    same(&["dataset", "info", "logs"], made);
    let again = answer(&mut through(&server, &["dataset", "create", "logs"]));
    assert!(again.code == 11 && again.err.contains("choose another name"), "{again:?}");

    let (client, _) = server.client().await;
    let root = client.mount("/logs").await.unwrap();
    let attributes = client.getattr(&root).await.unwrap();
    assert_eq!((attributes.mode & 0o7777, attributes.uid), (0o2750, 7));
    let grown = told(&["dataset", "expand", "logs", "2Gi"]);
    assert_eq!(grown["size_bytes"], 2_u64 << 30);
    let set = told(&["dataset", "set", "logs", "sync=default", "inodes=none", "maxIops=none"]);
    assert_eq!((&set["max_write_bandwidth"], &set["max_iops"]), (&(50 << 20).into(), &().into()));
    assert_eq!((&set["sync"], &set["quota_inodes"]), (&().into(), &().into()));
    let shown = told(&["dataset", "info", "logs"]);
    assert_eq!(shown["owner"], set["owner"]);
    assert!(set["owner"].is_string(), "it is open: {set}");
    same(&["dataset", "info", "logs"], shown);

    let renamed = told(&["dataset", "rename", "logs", "journal"]);
    assert_eq!((&renamed["name"], &renamed["handle"]), (&"journal".into(), &set["handle"]));
    same(&["dataset", "info", "journal"], renamed);
    told(&["dataset", "rename", "journal", "logs"]);

    let cut = told(&["dataset", "snapshot", "logs", "cut", "--readonly"]);
    same(&["dataset", "snapshot", "info", "logs", "cut"], cut);
    let free = told(&["dataset", "snapshot", "logs", "free"]);
    assert_eq!(free["writable"], true);
    let clone = told(&["dataset", "clone", "logs@cut", "copy"]);
    assert_eq!(clone["origin_name"], "logs@cut");
    same(&["dataset", "info", "copy"], clone);
    let held = told(&["dataset", "snapshot", "hold", "logs@cut", "legal"]);
    assert_eq!(held["holds"], serde_json::json!(["legal"]));
    let refused = answer(&mut through(&server, &["dataset", "delete-snapshot", "logs", "cut"]));
    assert!(refused.code == 13 && refused.err.contains("legal"), "{refused:?}");
    ok(&mut through(&server, &["dataset", "snapshot", "unhold", "logs@cut", "legal"]));
    for args in [
        &["dataset", "delete-snapshot", "logs", "cut"][..],
        &["dataset", "snapshot", "delete", "logs", "free"],
        &["dataset", "delete", "copy"],
    ] {
        let deleted = ok(&mut through(&server, args));
        assert!(deleted.contains("`zerofs-csi gc`, frees its space"), "{args:?}: {deleted}");
    }
    for args in
        [&["dataset", "delete-snapshot", "logs", "none"][..], &["dataset", "delete", "none"]]
    {
        let (direct, told) =
            (answer(&mut directly(&server, args)), answer(&mut through(&server, args)));
        assert!(told.code == 10 && told.err.contains("nothing to delete"), "{args:?}: {told:?}");
        assert_eq!(told, direct, "{args:?}");
    }
    let left = json(&mut directly(&server, &["dataset", "snapshot", "list", "logs"]));
    assert!(left.as_array().unwrap().iter().all(|left| left["state"] != "ready"), "{left}");

    told(&["dataset", "set-default", "logs"]);
    assert_eq!(ok(&mut directly(&server, &["dataset", "get-default"])), "logs\n");
    told(&["dataset", "set-default", "--none"]);
    let none = answer(&mut through(&server, &["dataset", "get-default"]));
    assert!(none.code == 2 && none.err.contains("set-default"), "{none:?}");

    let policy = told(&["policy", "set", "logs", "--schedule", "0 0 1 1 *", "--hourly", "2"]);
    assert_eq!(policy["keep"], serde_json::json!({ "hourly": "2" }));
    let ran = told(&["policy", "run-now", "logs"]);
    assert!(ran["snapshot"].as_str().unwrap().starts_with("auto-"), "{ran}");
    let shown = told(&["policy", "show", "logs"]);
    let verdict = serde_json::json!({ "keep": { "rules": ["hourly"] } });
    assert_eq!(shown["snapshots"][0]["verdict"], verdict, "{shown}");
    same(&["policy", "show", "logs"], shown);
    told(&["policy", "delete", "logs"]);
    assert_eq!(answer(&mut directly(&server, &["policy", "show", "logs"])).code, 10);
}

/// A tree with everything in it.
async fn plant(server: &Server) {
    const HOLE: u64 = 32 << 20;
    let (client, root) = server.client().await;
    let tree = nfs::mkdir(&client, &root, b"tree").await;
    let sub = nfs::mkdir(&client, &tree, b"sub").await;
    let how = CreateHow::Guarded(SetAttr::default());
    let file = client.create(&tree, b"file", &how).await.unwrap().handle;
    client.write(&file, 0, Bytes::from_static(b"begins"), Stability::Unstable).await.unwrap();
    client.write(&file, HOLE, Bytes::from_static(b"ends"), Stability::FileSync).await.unwrap();
    client.link(&file, &sub, b"second name").await.unwrap();
    let at = |secs: i64| SetTime::To(Timestamp::from_nanos(secs * 1_000_000_000 + 123_456_789));
    let set = |mode, uid, secs| SetAttr {
        mode: Some(mode),
        uid: Some(uid),
        gid: Some(uid + 1),
        atime: at(secs + 1),
        mtime: at(secs),
        ..SetAttr::default()
    };
    let link = Special::Symlink(Bytes::from_static(b"../nowhere"));
    client.make(&sub, b"link", &link, &set(0o777, 5, 1_500_000_000)).await.unwrap();
    client.make(&sub, b"fifo", &Special::Fifo, &set(0o620, 7, 1_400_000_000)).await.unwrap();
    nfs::write(&client, &sub, ODD, b"odd").await;
    nfs::write(&client, &sub, b"large", &large()).await;
    let many = nfs::mkdir(&client, &tree, b"many").await;
    for n in 0..300 {
        nfs::write(&client, &many, format!("{n}").as_bytes(), b"small").await;
    }
    client.setattr(&file, &set(0o640, 1234, 1_600_000_000), None).await.unwrap();
    client.setattr(&sub, &set(0o2770, 9, 1_300_000_000), None).await.unwrap();
    ok(&mut directly(server, &["dataset", "snapshot", "create", "web", "cut"]));
}

/// Everything of a tree that a restore brings back, by path.
fn tree(top: &Path) -> BTreeMap<String, String> {
    let (mut found, mut left) = (BTreeMap::new(), vec![top.to_owned()]);
    while let Some(path) = left.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let content = match () {
            () if kind.is_dir() => {
                left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                String::new()
            }
            () if kind.is_symlink() => std::fs::read_link(&path).unwrap().display().to_string(),
            () if kind.is_fifo() => "fifo".to_owned(),
            () => blake3::hash(&std::fs::read(&path).unwrap()).to_string(),
        };
        let names = if kind.is_dir() { 0 } else { meta.nlink() };
        let times = (meta.mtime(), meta.mtime_nsec());
        let all = (meta.mode(), meta.uid(), meta.gid(), times, names, content);
        let name = format!("{:?}", path.strip_prefix(top).unwrap());
        found.insert(name, format!("{all:?}"));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_is_restored_through_a_server_as_from_the_pool() {
    // Few requests a second: the command waits where the server tells it to slow down.
    let server = Server::start_with("  requestsPerSecond: 60\n");
    plant(&server).await;
    let place = |name: &str| server.room.path().join(name);
    let text = |name: &str| place(name).display().to_string();
    let (direct, to) = (text("direct"), text("told"));
    let args = |to| ["dataset", "restore", "web@cut", "/tree", to];
    let direct = json(&mut directly(&server, &args(&direct)));
    let told = json(&mut through(&server, &args(&to)));
    assert_eq!(told, direct);
    assert_eq!(told["objects"], 309, "{told}");
    assert_eq!(tree(&place("told")), tree(&place("direct")));
    let sparse = std::fs::metadata(place("told/file")).unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20, "a hole became {} blocks", sparse.blocks());

    // Only what differs, and kept beside it; counted before.
    std::fs::write(place("told/many/7"), "mine").unwrap();
    let again = ["dataset", "restore", "web@cut", "tree", &to, "--changed", "--keep"];
    let counted = json(through(&server, &again).arg("--dry-run"));
    assert_eq!((&counted["objects"], &counted["replaced"]), (&5.into(), &2.into()), "{counted}");
    let done = json(&mut through(&server, &again));
    assert_eq!(done["replaced"], counted["replaced"], "{done}");
    assert_eq!(std::fs::read_to_string(place("told/many/7.~1")).unwrap(), "mine");
    let refused =
        answer(&mut through(&server, &["dataset", "restore", "web@cut", "/tree/file", &to]));
    assert_eq!(refused.code, 11, "{refused:?}");
    let nowhere = text("none");
    let missing =
        answer(&mut through(&server, &["dataset", "restore", "web@cut", "/none", &nowhere]));
    assert_eq!(missing.code, 10, "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_restored_in_place_through_a_server() {
    let (server, _writing) = busy().await;
    let restore = |more: &[&str]| {
        let args = ["dataset", "restore", "web@s1", "/docs/a.txt", "--in-place"];
        answer(&mut through(&server, &[&args[..], more].concat()))
    };
    let refused = restore(&[]);
    assert!(refused.code == 11 && refused.err.contains("a.txt"), "{refused:?}");
    let done = restore(&["--force", "--keep"]);
    assert_eq!((done.code, done.out.as_str()), (0, "restored 1 object, 13 B, in place\n"));
    let cat = |path: &str| ok(&mut through(&server, &["dataset", "cat", "web", path]));
    assert_eq!(cat("/docs/a.txt"), "first version");
    assert_eq!(cat("/docs/a.txt.~1"), "second");
    let elsewhere = restore(&["--to", "/docs/back.txt"]);
    assert_eq!(elsewhere.code, 0, "{elsewhere:?}");
    assert_eq!(cat("/docs/back.txt"), "first version");
    let trial = ["dataset", "restore", "web@trial", "/docs/a.txt", "--in-place", "--force"];
    for refused in [answer(&mut through(&server, &trial)), answer(&mut directly(&server, &trial))] {
        assert!(refused.code == 13 && refused.err.contains("writable snapshot"), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_with_the_next_step() {
    let server = Server::start();
    let http = format!("http://{}", server.admin);
    let file = |name: &str, text: &str| {
        let path = server.room.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (right, wrong) =
        (file("right", &format!("{}\n", server.token("viewer"))), file("wrong", "zerofs_wrong"));
    let empty = file("empty", "\n");
    let none = format!("unix:{}", server.room.path().join("none.sock").display());
    let socket = format!("unix:{}", server.socket().display());
    let list = &["dataset", "list"][..];
    for (args, more, code, says) in [
        (list, &["--server", &http, "--token-file", &right][..], 0, ""),
        (list, &["--server", &http, "--token-file", &wrong], 15, "token"),
        (list, &["--server", &http], 15, "token create"),
        (list, &["--server", &http, "--token-file", &empty], 2, "first line is empty"),
        (list, &["--server", &http, "--token-file", "/no/such"], 10, "--token-file /no/such"),
        (list, &["--server", &none], 16, "is the server running"),
        (list, &["--server", "http://127.0.0.1:1"], 16, "is the server running"),
        (list, &["--server", "nonsense"], 2, "unix:PATH"),
        (list, &["--server", &socket, "--pool", "file:///srv/pool"], 2, "one of the server's"),
        (list, &["--server", &socket, "--config", "x.yaml"], 2, "neither --config"),
        (list, &["--server", &socket, "--pool", "main"], 0, ""),
        (list, &["--server", &socket, "--pool", "other"], 2, "there are: main"),
        (list, &[], 2, "--pool URL or --config FILE"),
        (&["dataset", "info", "none"], &["--server", &socket], 10, "dataset list"),
        (&["dataset", "diff", "web@none"], &["--server", &socket], 10, "does not exist"),
        (&["dataset", "diff", "web"], &["--server", &socket], 2, "write DATASET@SNAPSHOT"),
        (&["dataset", "create", "x"], &["--server", &http, "--token-file", &right], 15, "admin"),
        (&["dataset", "release", "web"], &["--server", &socket], 19, "--pool URL"),
        (&["gc"], &["--server", &socket], 19, "--pool URL"),
        (&["check"], &["--server", &socket], 19, "--pool URL"),
        (&["pool", "info"], &["--server", &socket], 19, "--pool URL"),
        (&["scrub", "--state-file", "/tmp/x"], &["--server", &socket], 19, "leave it out"),
    ] {
        let done = answer(program(args).args(more));
        assert!(done.code == code && done.err.contains(says), "{args:?} {more:?}: {done:?}");
        assert_eq!(done.out.is_empty(), code != 0, "{args:?} {more:?}: {done:?}");
    }
    // Named by the environment, which a pool on the command line outranks.
    let by_name = |args: &[&str]| {
        let mut command = program(args);
        command.env("ZEROFS_SERVER", &http).env("ZEROFS_TOKEN", server.token("viewer"));
        answer(&mut command)
    };
    let told = by_name(list);
    assert_eq!((told.code, told.out.as_str()), (0, ok(&mut directly(&server, list)).as_str()));
    let config = server.room.path().join("config.yaml").display().to_string();
    assert_eq!(by_name(&["gc", "--dry-run", "--config", &config]).code, 0);
    assert_eq!(by_name(&["gc", "--dry-run"]).code, 19);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_known_by_its_certificate() {
    let server =
        Server::start_with("  tls: { certFile: ROOM/server.pem, keyFile: ROOM/server.key }\n");
    let url = format!("https://{}", server.admin);
    let ca = server.room.path().join("ca.pem").display().to_string();
    let list = |more: &[&str]| {
        let mut command = program(&["dataset", "list", "--server", &url]);
        command.args(more);
        answer(command.env("ZEROFS_TOKEN", server.token("viewer")))
    };
    let known = list(&["--ca-file", &ca]);
    assert!(known.code == 0 && known.out.contains("web"), "{known:?}");
    let unknown = list(&[]);
    assert!(unknown.code == 16 && unknown.err.contains("certificate"), "{unknown:?}");
    let missing = list(&["--ca-file", "/no/such"]);
    assert!(missing.code == 10 && missing.err.contains("--ca-file /no/such"), "{missing:?}");
}
