//! gRPC: properties of open datasets, holds of snapshots, and snapshot policies.

use super::grpc::{filled, local, refused};
use super::limits::wait_until;
use super::server::Server;
use tonic::Code;
use zerofs_csi::admin::grpc::proto::*;
use zerofs_csi::admin::{Client, ClientError};
use zerofs_csi::fs::api::DirCookie;

fn code<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> Code {
    answer.unwrap_err().code().unwrap()
}

async fn by(server: &Server, role: &str) -> Client {
    Client::connect(&format!("http://{}", server.admin), Some(server.token(role))).await.unwrap()
}

fn properties(dataset: &str) -> SetPropertiesRequest {
    SetPropertiesRequest { dataset: dataset.to_owned(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn properties_of_an_open_dataset_change_at_once() {
    let (server, client) = filled().await;
    let (nfs, top) = server.client().await;
    let wanted = SetPropertiesRequest {
        size_bytes: Some(30 << 30),
        quota_inodes: Some(1000),
        sync: Some("always".into()),
        record_bytes: Some(128 << 10),
        compression: Some("zstd".into()),
        snapdir: Some("visible".into()),
        max_write_bandwidth: Some(5 << 20),
        max_iops: Some(100),
        ..properties("web")
    };
    let set = client.set_properties(wanted).await.unwrap();
    assert_eq!((set.size_bytes, set.quota_inodes), (Some(30 << 30), Some(1000)));
    assert_eq!((set.sync.as_str(), set.record_bytes), ("always", 128 << 10));
    assert_eq!((set.compression.as_str(), set.snapdir.as_str()), ("zstd", "visible"));
    assert_eq!((set.max_read_bandwidth, set.max_iops), (None, Some(100)));
    // Its owner has taken them over.
    assert_eq!(nfs.fsstat(&top).await.unwrap().total_bytes, 30 << 30);
    let listed = nfs.readdir(&top, DirCookie(0), [0; 8], 4096).await.unwrap();
    assert!(listed.entries.iter().any(|entry| &entry.name[..] == b".snapshots"), "{listed:?}");
    // Properties that are not given stay.
    let wanted = SetPropertiesRequest {
        quota_inodes: Some(0),
        sync: Some(String::new()),
        max_iops: Some(0),
        ..properties("web")
    };
    let set = client.set_properties(wanted).await.unwrap();
    assert_eq!((set.max_write_bandwidth, set.max_iops), (Some(5 << 20), None));
    assert_eq!((set.quota_inodes, set.sync.as_str(), set.compression.as_str()), (None, "", "zstd"));

    let mut datasets = client.datasets_service();
    let web = || properties("web");
    for (wanted, expected, says) in [
        (web(), Code::InvalidArgument, "no property"),
        (
            SetPropertiesRequest { size_bytes: Some(1 << 30), ..web() },
            Code::OutOfRange,
            "never shrinks",
        ),
        (
            SetPropertiesRequest { record_bytes: Some(3000), ..web() },
            Code::InvalidArgument,
            "power of two",
        ),
        (
            SetPropertiesRequest { sync: Some("often".into()), ..web() },
            Code::InvalidArgument,
            "sync",
        ),
        (
            SetPropertiesRequest { compression: Some("gzip".into()), ..web() },
            Code::InvalidArgument,
            "lz4",
        ),
        (SetPropertiesRequest { max_iops: Some(1), ..web() }, Code::InvalidArgument, "maxIops"),
        (
            SetPropertiesRequest { snapdir: Some("maybe".into()), ..web() },
            Code::InvalidArgument,
            "visible",
        ),
        (
            SetPropertiesRequest { size_bytes: Some(1 << 40), ..properties("none") },
            Code::NotFound,
            "none",
        ),
    ] {
        let (code, why) = refused(datasets.set_properties(wanted.clone()).await);
        assert_eq!(code, expected, "{wanted:?}: {why}");
        assert!(why.contains(says), "{wanted:?}: {why}");
    }
    let wanted = SetPropertiesRequest { snapdir: Some("hidden".into()), ..web() };
    let denied = by(&server, "restorer").await.set_properties(wanted).await;
    assert_eq!(code(denied), Code::PermissionDenied);
    assert!(server.log().contains("what=\"SetProperties\""), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_is_renamed() {
    let (mut server, client) = filled().await;
    let before = client.dataset("", "web").await.unwrap();
    let renamed = client.rename_dataset("", "web", "site").await.unwrap();
    assert_eq!((renamed.name.as_str(), &renamed.handle), ("site", &before.handle));
    assert_eq!(client.snapshots("", "site").await.unwrap()[0].dataset, "site");
    for (from, to, expected) in [
        ("web", "other", Code::NotFound),
        ("site", "a/b", Code::InvalidArgument),
        ("site", "a@b", Code::InvalidArgument),
    ] {
        assert_eq!(code(client.rename_dataset("", from, to).await), expected, "{from} to {to}");
    }
    // A caller who is limited to some datasets cannot rename one out of them, or into them.
    server.add_token("sites", &["--role", "admin", "--dataset", "main/site*"]);
    let limited = by(&server, "sites").await;
    wait_until("the token is known", || server.by("sites", "GET", "/pools").send().status == 200);
    let denied = limited.rename_dataset("main", "site", "web").await;
    assert_eq!(code(denied), Code::PermissionDenied);
    limited.rename_dataset("main", "site", "site2").await.unwrap();
    let denied = by(&server, "restorer").await.rename_dataset("", "site2", "web").await;
    assert_eq!(code(denied), Code::PermissionDenied);
    assert!(server.log().contains("what=\"RenameDataset\""), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_snapshot_is_not_deleted() {
    let (server, client) = filled().await;
    assert_eq!(client.hold("", "web", "s1", "audit").await.unwrap().holds, ["audit"]);
    assert_eq!(client.hold("", "web", "s1", "legal").await.unwrap().holds, ["audit", "legal"]);
    assert_eq!(client.hold("", "web", "s1", "audit").await.unwrap().holds, ["audit", "legal"]);
    let mut snapshots = client.snapshots_service();
    let delete = DeleteSnapshotRequest {
        dataset: "web".into(),
        snapshot: "s1".into(),
        ..Default::default()
    };
    let (held, why) = refused(snapshots.delete_snapshot(delete.clone()).await);
    assert_eq!(held, Code::FailedPrecondition, "{why}");
    assert!(why.contains("audit, legal"), "{why}");
    assert_eq!(client.release("", "web", "s1", "audit").await.unwrap().holds, ["legal"]);
    assert_eq!(code(client.release("", "web", "s1", "audit").await), Code::NotFound);
    assert_eq!(code(client.hold("", "web", "s9", "audit").await), Code::NotFound);
    assert_eq!(code(client.hold("", "web", "s1", "a,b").await), Code::InvalidArgument);
    let restorer = by(&server, "restorer").await;
    assert_eq!(code(restorer.release("", "web", "s1", "legal").await), Code::PermissionDenied);
    let listed = client.snapshots("", "web").await.unwrap();
    assert_eq!(listed[0].holds, ["legal"]);
    client.release("", "web", "s1", "legal").await.unwrap();
    snapshots.delete_snapshot(delete).await.unwrap();
    let log = server.log();
    assert!(log.contains("what=\"HoldSnapshot\"") && log.contains("what=\"ReleaseSnapshot\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_set_simulated_run_and_deleted() {
    let (server, client) = filled().await;
    assert_eq!(code(client.policy("", "web").await), Code::NotFound);
    assert!(client.policies("").await.unwrap().is_empty());
    let keep = KeepRules { hourly: "24".into(), daily: "10d".into(), ..Default::default() };
    let wanted = SetPolicyRequest {
        dataset: "web".into(),
        schedule: "1h".into(),
        keep: Some(keep.clone()),
        ..Default::default()
    };
    let with = |change: &dyn Fn(&mut SetPolicyRequest)| {
        let mut wanted = wanted.clone();
        change(&mut wanted);
        wanted
    };
    let mut policies = client.policies_service();
    for (bad, expected, says) in [
        (with(&|it| it.schedule = "1m".into()), Code::InvalidArgument, "1m"),
        (with(&|it| it.time_zone = "Mars".into()), Code::InvalidArgument, "Mars"),
        (
            with(&|it| it.keep = Some(KeepRules { weekly: "x".into(), ..Default::default() })),
            Code::InvalidArgument,
            "keep.weekly",
        ),
        (with(&|it| it.dataset = "none".into()), Code::NotFound, "none"),
    ] {
        let (code, why) = refused(policies.set_policy(bad.clone()).await);
        assert_eq!(code, expected, "{bad:?}: {why}");
        assert!(why.contains(says), "{bad:?}: {why}");
    }
    let set = client.set_policy(wanted.clone()).await.unwrap();
    assert_eq!((set.time_zone.as_str(), set.prefix.as_str()), ("UTC", "auto-"));
    assert_eq!((set.keep.as_ref(), set.broken.as_str()), (Some(&keep), ""));
    let waits = set.deletes_from.unwrap().seconds - set.changed.unwrap().seconds;
    assert!(set.next.is_some() && waits == 24 * 3600, "{set:?}");
    assert_eq!(client.policies("").await.unwrap(), [set]);

    let viewer = by(&server, "viewer").await;
    let ahead = |days, all| SimulatePolicyRequest {
        dataset: "web".into(),
        days,
        all,
        ..Default::default()
    };
    let done = viewer.simulate_policy(ahead(3, false)).await.unwrap();
    assert_eq!(done.slots, 72);
    let s1 = done.snapshots.iter().find(|it| it.name == "s1").unwrap();
    assert!(
        s1.exists && s1.deleted.is_none() && !s1.reason.is_empty(),
        "no policy made it: {s1:?}"
    );
    assert!(done.snapshots.iter().all(|it| it.exists || it.deleted.is_none()));
    let all = viewer.simulate_policy(ahead(3, true)).await.unwrap();
    assert!(all.snapshots.iter().any(|it| !it.exists && it.deleted.is_some()));
    assert_eq!(code(viewer.simulate_policy(ahead(100_000, false)).await), Code::OutOfRange);
    assert_eq!(code(viewer.set_policy(wanted).await), Code::PermissionDenied);
    let restorer = by(&server, "restorer").await;
    assert_eq!(code(restorer.run_policy("", "web").await), Code::PermissionDenied);

    let ran = client.run_policy("", "web").await.unwrap();
    assert!(ran.snapshot.starts_with("auto-") && ran.deleted.is_empty(), "{ran:?}");
    let listed = client.snapshots("", "web").await.unwrap();
    let by_policy: Vec<_> = listed.iter().map(|it| (it.name.as_str(), it.by_policy)).collect();
    assert_eq!(by_policy, [("s1", false), (ran.snapshot.as_str(), true)]);

    client.delete_policy("", "web").await.unwrap();
    assert_eq!(code(client.delete_policy("", "web").await), Code::NotFound);
    assert_eq!(code(local(&server).await.run_policy("", "web").await), Code::NotFound);
    let log = server.log();
    for what in ["SetPolicy", "RunPolicy", "DeletePolicy"] {
        assert!(log.contains(&format!("what=\"{what}\"")), "{what}: {log}");
    }
}
