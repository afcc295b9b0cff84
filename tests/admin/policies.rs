//! `policy …`, and holds.

use super::Cli;

fn with_dataset() -> Cli {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web"]);
    cli
}

fn names(cli: &Cli) -> Vec<String> {
    let list = cli.json(&["dataset", "list-snapshots", "web"]);
    list.as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_policy_is_set_shown_run_and_deleted() {
    let cli = with_dataset();
    let set = &["policy", "set", "web", "--schedule", "30 2 * * *", "--time-zone"];
    let policy =
        cli.json(&[&set[..], &["Europe/Berlin", "--daily", "7", "--keep-last", "2d"]].concat());
    assert_eq!((&policy["dataset"], &policy["keep"]["daily"]), (&"web".into(), &"7".into()));
    assert_eq!((&policy["keep"]["last"], &policy["skip_empty"]), (&"2d".into(), &false.into()));
    let ran = cli.json(&["policy", "run-now", "web"]);
    let name = ran["snapshot"].as_str().unwrap();
    assert!(name.starts_with("auto-20") && name.ends_with('Z'), "{ran}");
    assert_eq!(names(&cli), [name]);
    let shown = cli.json(&["policy", "show", "web"]);
    assert_eq!(
        shown["snapshots"][0]["verdict"]["keep"]["rules"],
        serde_json::json!(["last", "daily"])
    );
    let text = cli.ok(&["policy", "show", "web"]);
    assert!(text.contains("keep: last, daily") && text.contains("30 2 * * *"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let list = cli.json(&["policy", "list"]);
    assert_eq!((list.as_array().unwrap().len(), &list[0]["dataset"]), (1, &"web".into()));
    assert!(cli.ok(&["policy", "list"]).contains("daily 7, last 2d"));
    assert_eq!(cli.json(&["policy", "delete", "web"])["deleted"], "web");
    assert_eq!(cli.json(&["policy", "list"]), serde_json::json!([]));
    assert_eq!(names(&cli), [name], "its snapshots stay");
    for verb in ["show", "delete", "run-now", "simulate"] {
        let refused = cli.run(&["policy", verb, "web"]);
        assert!(refused.code == 10 && refused.err.contains("policy set web"), "{refused:?}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_what_does() {
    let cli = with_dataset();
    for (args, part) in [
        (&["--schedule", "15m", "--keep-last", "3"][..], "month or minute? write 15min or 15mo"),
        (&["--schedule", "15min", "--keep-last", "3m"], "month or minute? write 3min or 3mo"),
        (&["--schedule", "15min"], "--keep-last"),
        (&["--schedule", "15min", "--keep-last", "7d"], "more than 400"),
        (&["--schedule", "99 * * * *", "--daily", "3"], "five fields"),
        (&["--schedule", "1h", "--daily", "3", "--time-zone", "Berlin"], "Europe/Berlin"),
        (&["--schedule", "1h", "--daily", "3", "--prefix", "a/b"], "prefix"),
    ] {
        let refused = cli.run(&[&["policy", "set", "web"], args].concat());
        assert!(refused.code == 2 && refused.err.contains(part), "{args:?}: {refused:?}");
    }
    assert_eq!(cli.run(&["policy", "set", "none", "--schedule", "1h", "--daily", "3"]).code, 10);
    assert_eq!(cli.run(&["policy", "simulate", "web", "--days", "0"]).code, 2);
}

#[test]
fn a_simulation_tells_what_would_be_kept() {
    let cli = with_dataset();
    cli.ok(&["policy", "set", "web", "--schedule", "1h", "--hourly", "24", "--daily", "7"]);
    let done = cli.json(&["policy", "simulate", "web", "--days", "30"]);
    assert_eq!(done["slots"], 720, "{done}");
    let kept = done["kept"].as_u64().unwrap();
    // 24 by hour and 7 by day, one to three of them by both: it depends on the time of day.
    assert!((28..=30).contains(&kept), "{done}");
    assert_eq!(done["snapshots"].as_array().unwrap().len() as u64, kept);
    let all = cli.json(&["policy", "simulate", "web", "--days", "30", "--all"]);
    assert_eq!(all["snapshots"].as_array().unwrap().len(), 720);
    let text = cli.ok(&["policy", "simulate", "web", "--days", "2"]);
    assert!(text.contains("keep: hourly, daily") && text.contains("48 slots until"), "{text}");
    assert_eq!(names(&cli), Vec::<String>::new(), "nothing was made");
}

#[test]
fn a_held_snapshot_is_not_deleted_by_hand() {
    let cli = with_dataset();
    cli.ok(&["dataset", "snapshot", "create", "web", "before"]);
    let held = cli.json(&["dataset", "snapshot", "hold", "web@before", "audit 2026"]);
    assert_eq!(held["holds"], serde_json::json!(["audit 2026"]));
    let refused = cli.run(&["dataset", "delete-snapshot", "web", "before"]);
    assert!(
        refused.code == 13 && refused.err.contains("audit 2026") && refused.err.contains("unhold"),
        "{refused:?}"
    );
    let info = cli.json(&["dataset", "info", "web@before"]);
    assert_eq!((&info["holds"][0], &info["by_policy"]), (&"audit 2026".into(), &false.into()));
    assert_eq!(cli.run(&["dataset", "snapshot", "unhold", "web@before", "x"]).code, 10);
    assert_eq!(cli.run(&["dataset", "snapshot", "hold", "web@before", "a,b"]).code, 2);
    assert_eq!(cli.run(&["dataset", "snapshot", "hold", "web", "a"]).code, 2);
    let left = cli.json(&["dataset", "snapshot", "unhold", "web@before", "audit 2026"]);
    assert_eq!(left["holds"], serde_json::json!([]));
    cli.ok(&["dataset", "delete-snapshot", "web", "before"]);
}

#[test]
fn an_unchanged_dataset_gets_no_snapshot() {
    let cli = with_dataset();
    cli.ok(&["policy", "set", "web", "--schedule", "1h", "--keep-last", "3", "--skip-empty"]);
    assert!(cli.json(&["policy", "run-now", "web"])["snapshot"].is_string());
    // The first one made the database of a dataset that was never written to.
    let is_unchanged = || cli.ok(&["policy", "run-now", "web"]).contains("has not changed");
    assert!((0..100).any(|_| is_unchanged()));
    let before = names(&cli);
    assert!(before.len() <= 2 && is_unchanged(), "{before:?}");
    assert_eq!(names(&cli), before);
}
