//! Commands that open the pool themselves.

use super::Cli;
use crate::support::program::{answer, files_below, program};

fn names(list: &serde_json::Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_writable_snapshot_is_a_clone_among_the_snapshots() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web", "--size", "20Gi"]);
    cli.ok(&["dataset", "snapshot", "create", "web", "cut"]);
    let trial = cli.json(&["dataset", "snapshot", "create", "web", "trial", "--writable"]);
    assert_eq!((&trial["writable"], &trial["state"]), (&true.into(), &"ready".into()), "{trial}");
    // A clone that was not made so is none.
    cli.ok(&["dataset", "clone", "web", "other"]);
    let listed = cli.json(&["dataset", "snapshot", "list", "web"]);
    assert_eq!(names(&listed), ["cut", "trial"]);
    assert_eq!((&listed[0]["writable"], &listed[1]["writable"]), (&false.into(), &true.into()));
    assert!(cli.ok(&["dataset", "snapshot", "list"]).contains("writable"));
    assert_eq!(cli.json(&["dataset", "info", "web@trial"])["handle"], trial["handle"]);
    cli.ok(&["dataset", "snapshot", "create", "web@trial", "inner"]);

    // Names are unique among both kinds.
    for again in [&["trial"][..], &["cut", "--writable"]] {
        let refused = cli.run(&[&["dataset", "snapshot", "create", "web"], again].concat());
        assert!(
            refused.code == 11 && refused.err.contains("choose another name"),
            "{again:?}: {refused:?}"
        );
    }
    cli.ok(&["dataset", "snapshot", "delete", "web@trial", "inner"]);
    assert_eq!(
        cli.json(&["dataset", "snapshot", "delete", "web", "trial"])["deleted"],
        "web@trial"
    );
    cli.ok(&["gc"]);
    assert_eq!(cli.run(&["dataset", "snapshot", "delete", "web", "trial"]).code, 10);
    assert_eq!(names(&cli.json(&["dataset", "snapshot", "list", "web"])), ["cut"]);
    assert_eq!(names(&cli.json(&["dataset", "list"])), ["other", "web"]);
}

#[test]
fn a_dataset_lives_and_dies_by_the_command_line() {
    let cli = Cli::with_pool();
    assert_eq!(cli.json(&["dataset", "list"]), serde_json::json!([]));
    let made = cli.json(&["dataset", "create", "web", "--size", "20Gi", "--recordsize", "128k"]);
    assert_eq!(
        (made["size_bytes"].as_u64(), made["record_bytes"].as_u64()),
        (Some(20 << 30), Some(128 << 10))
    );
    let cut = cli.json(&["dataset", "snapshot", "create", "web", "before"]);
    assert_eq!(cut["state"], "ready");
    let clone = cli.json(&["dataset", "clone", "web@before", "copy"]);
    assert_eq!(clone["size_bytes"].as_u64(), Some(20 << 30));
    cli.json(&["dataset", "clone", "web", "live"]);
    assert_eq!(names(&cli.json(&["dataset", "list"])), ["copy", "live", "web"]);

    // Source first, then the snapshot, then the clones; space goes when nothing depends.
    cli.ok(&["dataset", "delete", "web"]);
    cli.ok(&["dataset", "snapshot", "delete", "web", "before"]);
    let plan = cli.json(&["gc", "--dry-run"]);
    let done = cli.json(&["gc"]);
    assert_eq!(plan["detach"].as_array().unwrap().len(), 2, "{plan}");
    assert_eq!(
        done["detached"].as_array().unwrap().len(),
        2,
        "the clones stand on their own: {done}"
    );
    assert!(
        done["retained"].as_array().unwrap().is_empty()
            && done["datasets"].as_array().unwrap().len() == 1,
        "{done}"
    );
    cli.ok(&["dataset", "delete", "copy"]);
    cli.ok(&["dataset", "delete", "live"]);
    let plan = cli.json(&["gc", "--dry-run"]);
    assert_eq!(plan["datasets"].as_array().unwrap().len(), 2, "{plan}");
    assert_eq!(cli.json(&["gc", "--dry-run"]), plan, "a dry run changes nothing");
    cli.ok(&["gc"]);
    assert_eq!(cli.json(&["dataset", "list"]), serde_json::json!([]));
    for folder in ["vol", "packs"] {
        assert_eq!(
            files_below(&cli.path().join("pool").join(folder)),
            Vec::<std::path::PathBuf>::new()
        );
    }
    cli.ok(&["dataset", "create", "web"]);
}

#[test]
fn errors_have_codes_and_name_the_object() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "a", "--size", "1Gi"]);
    cli.ok(&["dataset", "snapshot", "create", "a", "s"]);
    let long = "x".repeat(129);
    let cases: &[(&[&str], i32, &str)] = &[
        (&["dataset", "info", "none"], 10, "none"),
        (&["dataset", "snapshot", "create", "none", "s"], 10, "none"),
        (&["dataset", "clone", "a@none", "b"], 10, "a@none"),
        (&["dataset", "create", "a", "--size", "2Gi"], 11, "a"),
        (&["dataset", "delete", "none"], 10, "none"),
        (&["dataset", "snapshot", "delete", "a", "none"], 10, "a@none"),
        (&["dataset", "snapshot", "delete", "none", "none"], 10, "none@none"),
        (&["pool", "create"], 11, "pool"),
        (&["dataset", "create", &long], 2, "129"),
        (&["dataset", "create", ".."], 2, ".."),
        (&["dataset", "create", "b", "--size", "-1"], 2, "-1"),
        (&["dataset", "create", "b", "--size", "lots"], 2, "lots"),
        (&["dataset", "create", "b", "--size", "2Pi"], 2, "supported"),
        (&["dataset", "create", "b", "--recordsize", "5000"], 2, "recordsize"),
        (&["dataset", "create", "b", "--mode", "999"], 2, "999"),
        (&["dataset", "clone", "a@s", "b", "--size", "1Mi"], 2, "source"),
        (&["dataset", "restore", "a@s", "no/such", "/tmp/never"], 10, "no/such"),
        (&["dataset", "restore", "a", "x", "/tmp/never"], 2, "DATASET@SNAPSHOT"),
        (&["dataset", "nonsense"], 2, "nonsense"),
    ];
    for (args, code, named) in cases {
        let answer = cli.run(args);
        assert_eq!(answer.code, *code, "{args:?}: {answer:?}");
        assert!(answer.err.contains(named) && answer.out.is_empty(), "{args:?}: {answer:?}");
    }
    assert!(cli.run(&["dataset", "create", &"x".repeat(128)]).code == 0);
}

#[test]
fn a_pool_of_the_newest_format_needs_no_upgrade_and_a_newer_one_is_refused() {
    let cli = Cli::with_pool();
    let done = cli.ok(&["pool", "upgrade"]);
    assert!(done.contains("has format 1, the newest: nothing to do"), "{done}");
    let told = cli.json(&["pool", "upgrade"]);
    assert_eq!((&told["format"], &told["upgraded"]), (&1.into(), &false.into()));
    let newer = cli.path().join("pool/pool/00000000000000000002");
    std::fs::write(newer, r#"{"format":2,"check":{},"id":"x"}"#).unwrap();
    for command in ["upgrade", "info"] {
        let refused = cli.run(&["pool", command]);
        assert!(refused.code == 13 && refused.err.contains("use a newer one"), "{refused:?}");
    }
}

#[test]
fn a_pool_that_is_missing_or_elsewhere_is_refused() {
    let cli = Cli::empty();
    let missing = cli.run(&["dataset", "list"]);
    assert_eq!(missing.code, 10, "{missing:?}");
    for (url, code) in [("ftp://x", 2), ("file:///no/such/folder", 10), ("nonsense", 2)] {
        let answer = answer(&mut program(&["dataset", "list", "--pool", url]));
        assert_eq!(answer.code, code, "{url}: {answer:?}");
    }
    let config = cli.path().join("config.yaml");
    std::fs::write(&config, "pools:\n  a: { url: file:///x }\nlimit: {}\n").unwrap();
    let answer = answer(program(&["dataset", "list", "--config"]).arg(&config));
    assert!(
        answer.code == 2 && answer.err.contains("limit") && answer.err.contains("line 3"),
        "{answer:?}"
    );
}

#[test]
fn an_encrypted_pool_wants_its_passphrase() {
    let cli = Cli::empty();
    let with = |args: &[&str], pass: &str| answer(cli.command(args).env("ZEROFS_PASSPHRASE", pass));
    assert_eq!(with(&["pool", "create"], "correct horse").code, 0);
    assert_eq!(with(&["dataset", "create", "a"], "correct horse").code, 0);
    assert_eq!(with(&["dataset", "snapshot", "create", "a", "s"], "correct horse").code, 0);
    assert_eq!(with(&["dataset", "list"], "wrong").code, 15);
    assert_eq!(cli.run(&["dataset", "list"]).code, 13);
}

#[test]
fn the_passphrase_of_a_pool_is_changed() {
    let cli = Cli::empty();
    let with = |args: &[&str], pass: &str| answer(cli.command(args).env("ZEROFS_PASSPHRASE", pass));
    let new = cli.path().join("new");
    std::fs::write(&new, "battery staple\n").unwrap();
    let change = ["pool", "change-key", "--new-passphrase-file", new.to_str().unwrap()];
    assert_eq!(with(&["pool", "create"], "correct horse").code, 0);
    assert_eq!(with(&["dataset", "create", "a"], "correct horse").code, 0);
    assert_eq!(with(&change, "wrong").code, 15);
    assert_eq!(with(&change[..2], "correct horse").code, 2, "it wants the new one");
    let changed = with(&change, "correct horse");
    assert!(changed.code == 0 && changed.out.starts_with("changed the key of pool"), "{changed:?}");
    assert_eq!(with(&["dataset", "list"], "correct horse").code, 15);
    let listed = with(&["dataset", "list"], "battery staple");
    assert!(listed.code == 0 && listed.out.contains('a'), "{listed:?}");

    let key = cli.path().join("key");
    std::fs::write(&key, "short\n").unwrap();
    let change = ["pool", "change-key", "--new-key-file", key.to_str().unwrap()];
    let refused = with(&change, "battery staple");
    assert!(refused.code == 2 && refused.err.contains("openssl rand"), "{refused:?}");
    std::fs::write(&key, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n").unwrap();
    assert_eq!(with(&change, "battery staple").code, 0);
    assert_eq!(with(&["dataset", "list"], "battery staple").code, 15);
}

#[test]
fn a_pool_that_is_not_encrypted_has_no_key_to_change() {
    let cli = Cli::with_pool();
    let new = cli.path().join("new");
    std::fs::write(&new, "battery staple\n").unwrap();
    let refused = cli.run(&["pool", "change-key", "--new-passphrase-file", new.to_str().unwrap()]);
    assert!(refused.code == 13 && refused.err.contains("not encrypted"), "{refused:?}");
}
