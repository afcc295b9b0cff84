//! Group snapshots, which the command line lists and deletes as a whole.

use super::Cli;
use crate::support::run::run;
use crate::support::world::World;

#[test]
fn a_group_snapshot_is_listed_and_deleted_as_a_whole() {
    let cli = Cli::with_pool();
    for name in ["a", "b"] {
        cli.ok(&["dataset", "create", name]);
    }
    assert_eq!(cli.json(&["dataset", "list-groups"]), serde_json::json!([]));
    let url = cli.url();
    run(async move {
        let browser = zerofs_csi::app::browse(&url).await.unwrap();
        let World { controller, .. } =
            World::builder("controller").on(browser.pool().catalog.clone());
        let mut of = Vec::new();
        for name in ["a", "b"] {
            of.push(browser.handle(&browser.dataset(name).await.unwrap()));
        }
        controller.create_group_snapshot(&of, "backup".parse().unwrap()).await.unwrap();
    });
    let listed = cli.json(&["dataset", "list-groups"]);
    assert_eq!(listed[0]["name"], "backup");
    assert_eq!(listed[0]["state"], "ready");
    let mut of: Vec<&str> =
        listed[0]["snapshots"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    of.sort_unstable();
    assert_eq!(of, ["a@backup", "b@backup"]);

    let refused = cli.run(&["dataset", "delete-snapshot", "a", "backup"]);
    assert!(refused.code == 13 && refused.err.contains("delete-group backup"), "{refused:?}");
    cli.ok(&["dataset", "delete-group", "backup"]);
    assert_eq!(cli.json(&["dataset", "list-groups"]), serde_json::json!([]));
    let again = cli.run(&["dataset", "delete-group", "backup"]);
    assert!(again.code == 10 && again.err.contains("list-groups"), "{again:?}");
    cli.ok(&["gc"]);
    assert_eq!(cli.json(&["dataset", "list-snapshots"]), serde_json::json!([]));
}
