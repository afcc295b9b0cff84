//! Snapshot policies.

use super::server::Server;
use serde_json::json;

const POLICY: &str = "/pools/main/datasets/web/policy";

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_set_simulated_and_deleted() {
    let server = Server::start();
    assert!(server.get(POLICY).problem(404).contains("web"));
    let put = |body| server.by("admin", "PUT", POLICY).json(&body).send();
    for (body, named) in [
        (json!({ "schedule": "1h", "keep": { "hourly": "x" } }), "keep.hourly"),
        (json!({ "schedule": "1m", "keep": { "hourly": "24" } }), "1m"),
        (json!({ "schedule": "1h", "timeZone": "Mars", "keep": { "hourly": "24" } }), "Mars"),
        (json!({ "schedule": "1h", "keep": { "yearly": "1" } }), "unknown field"),
        (json!({ "schedule": "1h" }), "keep"),
    ] {
        let why = put(body.clone()).problem(400);
        assert!(why.contains(named), "{body}: {why}");
    }
    let set = put(json!({ "schedule": "1h", "keep": { "hourly": "24", "daily": "10d" } }));
    assert_eq!(set.status, 200, "{set:?}");
    let policy = server.get(POLICY).json();
    assert_eq!(policy, set.json());
    assert_eq!(policy["keep"], json!({ "hourly": "24", "daily": "10d" }));
    assert_eq!((&policy["timeZone"], &policy["prefix"]), (&json!("UTC"), &json!("auto-")));
    assert!(policy["next"].is_string() && policy["broken"].is_null(), "{policy}");
    let simulate = format!("{POLICY}/simulate");
    let simulate =
        |days: u32| server.by("viewer", "POST", &simulate).json(&json!({ "days": days })).send();
    let done = simulate(3).json();
    assert_eq!(done["slots"], 72, "{done}");
    let snapshots = done["snapshots"].as_array().unwrap();
    assert!(snapshots.iter().any(|one| one["deleted"].is_string()), "{done}");
    assert!(snapshots.iter().any(|one| one["deleted"].is_null()), "{done}");
    simulate(100_000).problem(422);
    server.by("restorer", "DELETE", POLICY).send().problem(403);
    assert_eq!(server.by("admin", "DELETE", POLICY).send().status, 204);
    server.get(POLICY).problem(404);
    assert!(server.log().contains("what=\"set policy\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_listed_and_run_now() {
    let server = Server::start();
    server.fill().await;
    assert_eq!(server.get("/pools/main/policies").json()["items"], json!([]));
    let policy = json!({ "schedule": "1h", "keep": { "hourly": "24" } });
    assert_eq!(server.by("admin", "PUT", POLICY).json(&policy).send().status, 200);
    let listed = server.get("/pools/main/policies").json();
    assert_eq!(listed["items"][0]["dataset"], "web");
    assert_eq!(listed["items"][0]["policy"], server.get(POLICY).json());
    let run = format!("{POLICY}/run");
    server.by("viewer", "POST", &run).send().problem(403);
    let ran = server.by("admin", "POST", &run).send().json();
    let name = ran["snapshot"].as_str().unwrap();
    let made = server.get(&format!("/pools/main/datasets/web/snapshots/{name}")).json();
    assert_eq!((&made["byPolicy"], &made["state"]), (&json!(true), &json!("ready")));
    assert!(server.log().contains("what=\"run policy\""));
}
