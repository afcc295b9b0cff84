//! `dataset restore` with several paths, `--changed`, `--keep` and `--dry-run`.

use super::Cli;
use crate::support::nfs;
use std::path::Path;
use zerofs_csi::fs::api::SetAttr;

/// `/a`, `/dir/b` and `/dir/c` in the snapshot `web@cut`.
async fn tree(cli: &Cli) {
    cli.ok(&["dataset", "create", "web"]);
    let serving = cli.serve(&[]);
    let (client, top) = nfs::mount(serving.nfs, "/web").await;
    let dir = client.mkdir(&top, b"dir", &SetAttr::default()).await.unwrap().handle;
    nfs::write(&client, &top, "a", b"first").await;
    nfs::write(&client, &dir, "b", &[7; 5000]).await;
    nfs::write(&client, &dir, "c", b"third").await;
    serving.stop();
    cli.ok(&["dataset", "snapshot", "web", "cut", "--readonly"]);
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_several_paths_replace_what_changed_and_keep_it() {
    let cli = Cli::with_pool();
    tree(&cli).await;
    let to = cli.path().join("to");
    std::fs::create_dir(&to).unwrap();
    let text = to.display().to_string();
    let restore = |more: &[&str]| {
        let paths = ["--snapshot", "cut", "--source", "/a", "--source", "dir", "--destination"];
        cli.run(&[&["dataset", "restore", "web"], &paths[..], &[&text], more].concat())
    };
    let counted = restore(&["--dry-run"]);
    assert!(counted.out.contains("would restore 4 objects"), "{counted:?}");
    assert_eq!(names(&to), Vec::<String>::new(), "a dry run writes nothing");
    assert!(restore(&[]).out.starts_with("restored 4 objects"));
    assert_eq!(names(&to), ["a", "dir"]);
    assert_eq!(restore(&["--dry-run"]).code, 11, "they are there");

    // One file is another by now; the rest is left alone.
    std::fs::write(to.join("dir/c"), "mine").unwrap();
    let counted = restore(&["--changed", "--dry-run"]);
    assert!(
        counted.out.contains("would restore 2 objects, 5")
            && counted.out.contains("1 of them would replace others")
            && counted.out.contains("2 are as in the snapshot"),
        "{counted:?}"
    );
    assert_eq!(std::fs::read(to.join("dir/c")).unwrap(), b"mine");
    let done = restore(&["--changed", "--keep"]);
    assert!(done.code == 0 && done.out.contains("2 are as in the snapshot"), "{done:?}");
    assert_eq!(names(&to.join("dir")), ["b", "c", "c.~1"]);
    assert_eq!(std::fs::read(to.join("dir/c")).unwrap(), b"third");
    assert_eq!(std::fs::read(to.join("dir/c.~1")).unwrap(), b"mine");
    assert!(restore(&["--keep"]).code == 0);
    assert_eq!(names(&to), ["a", "a.~1", "dir"]);
    assert_eq!(names(&to.join("dir")), ["b", "b.~1", "c", "c.~1", "c.~2"]);

    let two = ["--source", "/a", "--source", "dir/../a", "--destination", &text];
    let refused = cli.run(&[&["dataset", "restore", "web@cut"], &two[..]].concat());
    assert_ne!(refused.code, 0, "{refused:?}");
    let two = ["--snapshot", "cut", "--source", "/a", "--source", "/", "--destination", &text];
    let refused = cli.run(&[&["dataset", "restore", "web"], &two[..]].concat());
    assert!(refused.code == 2 && refused.err.contains("restore it alone"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_place_what_is_replaced_stays_beside_it() {
    let cli = Cli::with_pool();
    tree(&cli).await;
    let serving = cli.serve(&[]);
    let (client, top) = nfs::mount(serving.nfs, "/web").await;
    nfs::write(&client, &top, "a", b"second").await;
    let in_place = |more: &[&str]| {
        let paths = ["--snapshot", "cut", "--source", "a", "--source", "dir", "--in-place"];
        cli.run(&[&["dataset", "restore", "web"], &paths[..], more].concat())
    };
    let refused = in_place(&["--dry-run"]);
    assert!(refused.code == 11 && refused.err.contains("--changed"), "{refused:?}");
    // All that is in the way is told, and the rest is counted.
    for says in ["2 objects", "/a: is there", "/dir: is there"] {
        assert!(refused.err.contains(says), "{says}: {refused:?}");
    }
    assert!(refused.out.contains("would restore 0 objects"), "{refused:?}");
    let counted = in_place(&["--dry-run", "--changed"]);
    assert!(
        counted.out.contains("would restore 2 objects, 5")
            && counted.out.contains("2 are as in the snapshot"),
        "{counted:?}"
    );
    let done = in_place(&["--keep"]);
    assert!(done.code == 0 && done.out.contains("in place"), "{done:?}");
    serving.stop();
    assert_eq!(cli.ok(&["dataset", "cat", "web", "a"]), "first");
    assert_eq!(cli.ok(&["dataset", "cat", "web", "a.~1"]), "second");
    let listed = cli.ok(&["dataset", "ls", "web", "dir"]);
    assert!(!listed.contains('~'), "what did not change was not replaced: {listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_found_in_every_snapshot_and_differences_are_counted() {
    let cli = Cli::with_pool();
    tree(&cli).await;
    let serving = cli.serve(&[]);
    let (client, top) = nfs::mount(serving.nfs, "/web").await;
    nfs::write(&client, &top, "a", b"second").await;
    let dir = client.lookup(&top, b"dir").await.unwrap().handle;
    client.remove(&dir, b"b").await.unwrap();
    serving.stop();
    let lines = |out: String| -> Vec<serde_json::Value> {
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let found = lines(cli.ok(&["dataset", "find", "?", "web", "--json"]));
    let of = |path: &str| {
        let of_path = found.iter().filter(|line| line["path"] == path);
        of_path.map(|line| line["in"].as_str().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(of("/a"), ["web@cut", "web"], "two versions: {found:?}");
    assert_eq!((of("/dir/b"), of("/dir/c")), (vec!["web@cut"], vec!["web@cut"]), "{found:?}");
    let text = cli.ok(&["dataset", "find", "DIR", "web@cut"]);
    assert!(text.contains("web@cut  /dir") && text.lines().count() == 1, "{text}");
    assert_eq!(cli.run(&["dataset", "find", "a/b", "web"]).code, 2);

    let stat = cli.json(&["dataset", "diff", "web@cut", "--stat"]);
    assert_eq!((&stat["total"]["removed"], &stat["total"]["added"]), (&1.into(), &0.into()));
    let tree = cli.ok(&["dataset", "diff", "web@cut", "--tree"]);
    assert!(tree.contains("  dir") && tree.contains("1 removed"), "{tree}");
}
