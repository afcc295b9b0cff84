//! Answers about which objects exist, their names and their dependants, which decide an operator's
//! next step.

use super::Cli;

#[test]
fn what_exists_is_not_made_again() {
    let cli = Cli::with_pool();
    let made: [&[&str]; 4] = [
        &["dataset", "create", "web"],
        &["dataset", "snapshot", "create", "web", "cut"],
        &["dataset", "snapshot", "create", "web", "trial", "--writable"],
        &["dataset", "clone", "web@cut", "copy"],
    ];
    made.iter().for_each(|args| drop(cli.ok(args)));
    for (args, named) in made.iter().zip(["web", "web@cut", "web@trial", "copy"]) {
        let again = cli.run(args);
        assert!(
            again.code == 11 && again.err.contains(&format!("{named} already exists (created 2")),
            "{args:?}: {again:?}"
        );
        assert!(again.err.contains("choose another name"), "{args:?}: {again:?}");
    }
}

#[test]
fn no_new_name_looks_like_a_snapshots() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web"]);
    for args in [
        &["dataset", "create", "web@foo"][..],
        &["dataset", "clone", "web", "a@b"],
        &["dataset", "snapshot", "create", "web", "a@b"],
        &["dataset", "snapshot", "create", "web", "a@b", "--writable"],
    ] {
        let refused = cli.run(args);
        assert!(refused.code == 2 && refused.err.contains("'@'"), "{args:?}: {refused:?}");
    }
    // A snapshot of a writable snapshot has two.
    cli.ok(&["dataset", "snapshot", "create", "web", "trial", "--writable"]);
    cli.ok(&["dataset", "snapshot", "create", "web@trial", "inner"]);
}

#[test]
fn what_is_deleted_or_a_dataset_is_called_so() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web"]);
    cli.ok(&["dataset", "snapshot", "create", "web", "cut"]);
    cli.ok(&["dataset", "snapshot", "create", "web", "trial", "--writable"]);
    cli.ok(&["dataset", "clone", "web@cut", "ro", "--read-only"]);
    cli.ok(&["dataset", "snapshot", "delete", "web", "cut"]);
    for (args, code, says) in [
        (&["dataset", "snapshot", "create", "web", "cut"][..], 12, "delete those"),
        (&["dataset", "snapshot", "info", "web", "cut"], 10, "was deleted"),
        (&["dataset", "diff", "web@cut"], 10, "was deleted"),
        (&["dataset", "diff", "web@trial"], 2, "is a dataset"),
        (&["dataset", "diff", "web@none"], 10, "does not exist"),
        (&["space", "web@none"], 10, "snapshot web@none does not exist"),
        (&["dataset", "delete", "wbe"], 10, "wbe"),
        (&["dataset", "snapshot", "delete", "web", "none"], 10, "web@none"),
    ] {
        let answer = cli.run(args);
        assert!(answer.code == code && answer.err.contains(says), "{args:?}: {answer:?}");
        assert!(!answer.err.contains("another operation"), "{args:?}: {answer:?}");
    }
    assert_eq!(cli.json(&["dataset", "snapshot", "info", "web", "trial"])["writable"], true);
    cli.ok(&["check", "web@trial"]);
    // Only then it does not come back by repeating.
    cli.ok(&["dataset", "delete", "ro"]);
    cli.ok(&["gc"]);
    cli.ok(&["dataset", "snapshot", "create", "web", "cut"]);
}

#[test]
fn whoever_keeps_a_snapshot_is_named() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web"]);
    cli.ok(&["dataset", "snapshot", "create", "web", "cut"]);
    cli.ok(&["dataset", "clone", "web@cut", "ro", "--read-only"]);
    cli.ok(&["dataset", "clone", "web", "live"]);
    let info = cli.ok(&["dataset", "info", "ro"]);
    assert!(info.contains("web@cut\n") && info.contains("read-only"), "{info}");
    let list = cli.ok(&["dataset", "list"]);
    assert!(
        list.contains("ORIGIN") && list.contains("web@cut") && list.contains("web, as it was at 2"),
        "{list}"
    );
    assert_eq!(cli.json(&["dataset", "info", "ro"])["origin_name"], "web@cut");
    cli.ok(&["dataset", "snapshot", "delete", "web", "cut"]);
    let plan = cli.ok(&["gc", "--dry-run"]);
    assert!(plan.contains("snapshot cut of dataset web: clone ro depends on it"), "{plan}");
    assert!(
        plan.contains("the snapshot of dataset web cloned at 2")
            && plan.contains("clone live depends on it"),
        "{plan}"
    );
    cli.ok(&["dataset", "delete", "ro"]);
    cli.ok(&["dataset", "delete", "web"]);
    let plan = cli.ok(&["gc", "--dry-run"]);
    assert!(plan.contains("detach    live\n") && plan.contains("dataset   ro\n"), "{plan}");
    cli.ok(&["gc"]);
    let list = cli.ok(&["dataset", "list"]);
    assert!(
        list.contains("live") && !list.contains("as it was"),
        "a clone that was detached stands on nothing: {list}"
    );
}
