//! gRPC: every call against a running server, over its unix socket and over TCP.

use super::server::Server;
use crate::support::nfs;
use crate::support::program::files_below;
use tonic::{Code, Request};
use zerofs_csi::admin::grpc::proto::watch_response::Change;
use zerofs_csi::admin::grpc::proto::*;
use zerofs_csi::admin::{Client, RootName};

pub async fn local(server: &Server) -> Client {
    Client::connect(&format!("unix:{}", server.socket().display()), None).await.unwrap()
}

pub async fn filled() -> (Server, Client) {
    let server = Server::start();
    server.fill().await;
    let client = local(&server).await;
    (server, client)
}

/// A request for a read-only snapshot of `web`.
pub fn of_web(snapshot: &str) -> CreateSnapshotRequest {
    let (dataset, snapshot) = ("web".into(), snapshot.into());
    CreateSnapshotRequest { dataset, snapshot, ..Default::default() }
}

pub fn snapshot() -> RootName {
    RootName::snapshot("web", "s1")
}

pub fn root() -> Option<Root> {
    Some(Root { dataset: "web".into(), snapshot: "s1".into(), ..Root::default() })
}

/// The code and the message of a refusal.
pub fn refused<T: std::fmt::Debug>(answer: Result<T, tonic::Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    (status.code(), status.message().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn datasets_are_made_changed_and_deleted() {
    let (_server, client) = filled().await;
    let pools = client.pools().await.unwrap();
    assert_eq!(pools.len(), 1);
    assert_eq!((pools[0].name.as_str(), pools[0].default_dataset.as_str()), ("main", ""));

    let mut datasets = client.datasets_service();
    let new = CreateDatasetRequest {
        dataset: "logs".into(),
        size_bytes: Some(1 << 30),
        compression: "zstd".into(),
        ..Default::default()
    };
    let made = datasets.create_dataset(new.clone()).await.unwrap().into_inner();
    assert_eq!((made.size_bytes, made.compression.as_str()), (Some(1 << 30), "zstd"));
    let (code, why) = refused(datasets.create_dataset(new).await);
    assert_eq!(code, Code::AlreadyExists);
    assert!(why.contains("choose another name"), "{why}");
    for (bad, says) in [
        (CreateDatasetRequest { dataset: "a/b".into(), ..Default::default() }, "dataset name"),
        (
            CreateDatasetRequest {
                dataset: "x".into(),
                compression: "gzip".into(),
                ..Default::default()
            },
            "lz4",
        ),
        (
            CreateDatasetRequest {
                dataset: "x".into(),
                sync: "maybe".into(),
                ..Default::default()
            },
            "sync",
        ),
    ] {
        let (code, why) = refused(datasets.create_dataset(bad).await);
        assert_eq!(code, Code::InvalidArgument, "{why}");
        assert!(why.contains(says), "{why}");
    }

    let clone = CreateDatasetRequest {
        dataset: "copy".into(),
        source: "web@s1".into(),
        ..Default::default()
    };
    let clone = datasets.create_dataset(clone).await.unwrap().into_inner();
    assert_eq!(clone.origin, "web@s1");
    let copied = client.read(&RootName::live("copy"), "/docs/a.txt").await.unwrap();
    assert_eq!(copied, b"first version");

    let grow =
        ExpandDatasetRequest { dataset: "logs".into(), size_bytes: 2 << 30, ..Default::default() };
    let grown = datasets.expand_dataset(grow).await.unwrap().into_inner();
    assert_eq!(grown.size_bytes, Some(2 << 30));

    // One by one, in the order of their names.
    let (mut names, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListDatasetsRequest { page_size: 1, page_token, ..Default::default() };
        let page = datasets.list_datasets(request).await.unwrap().into_inner();
        names.extend(page.datasets.into_iter().map(|dataset| dataset.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["copy", "logs", "web"]);
    let foreign = ListDatasetsRequest { page_token: "?".into(), ..Default::default() };
    assert_eq!(refused(datasets.list_datasets(foreign).await).0, Code::InvalidArgument);

    let default = SetDefaultDatasetRequest { dataset: "web".into(), ..Default::default() };
    datasets.set_default_dataset(default).await.unwrap();
    let found = datasets.get_dataset(GetDatasetRequest::default()).await.unwrap().into_inner();
    assert_eq!((found.name.as_str(), found.snapshots), ("web", 1));
    assert!(found.newest_snapshot.is_some());

    let space = GetSpaceRequest { exact: true, ..Default::default() };
    let space = datasets.get_space(space).await.unwrap().into_inner();
    assert!(space.of.iter().any(|of| of.name == "web@s1" && of.referenced_bytes >= 6_000_000));
    assert!(space.pack_bytes > 0 && space.dedup_ratio.is_some(), "{space:?}");

    let delete =
        |dataset: &str| DeleteDatasetRequest { dataset: dataset.into(), ..Default::default() };
    datasets.delete_dataset(delete("logs")).await.unwrap();
    // A retry succeeds while something of it is left.
    if let Err(gone) = datasets.delete_dataset(delete("logs")).await {
        assert_eq!(gone.code(), Code::NotFound);
    }
    assert_eq!(refused(datasets.delete_dataset(delete("never")).await).0, Code::NotFound);
    let gone = GetDatasetRequest { dataset: "logs".into(), ..Default::default() };
    assert_eq!(refused(datasets.get_dataset(gone).await).0, Code::NotFound);
    let nowhere = GetDatasetRequest { pool: "other".into(), ..Default::default() };
    assert_eq!(refused(datasets.get_dataset(nowhere).await).0, Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_both_kinds_are_taken_and_deleted() {
    let (_server, client) = filled().await;
    let mut snapshots = client.snapshots_service();
    let taken = client.create_snapshot(of_web("s2")).await.unwrap();
    assert_eq!((taken.name.as_str(), taken.state()), ("s2", State::Ready));
    let again = client.create_snapshot(of_web("s2")).await.unwrap_err();
    assert_eq!(again.code(), Some(Code::AlreadyExists), "{again}");
    let writable = CreateSnapshotRequest {
        dataset: "web".into(),
        snapshot: "w".into(),
        writable: true,
        ..Default::default()
    };
    assert!(snapshots.create_snapshot(writable).await.unwrap().into_inner().writable);
    let listed = client.snapshots("", "web").await.unwrap();
    let names: Vec<_> = listed.iter().map(|it| (it.name.as_str(), it.writable)).collect();
    assert_eq!(names, [("s1", false), ("s2", false), ("w", true)]);
    let inside = client.read(&RootName::snapshot("web", "w"), "/docs/a.txt").await.unwrap();
    assert_eq!(inside, b"second");

    let delete = |snapshot: &str| DeleteSnapshotRequest {
        dataset: "web".into(),
        snapshot: snapshot.into(),
        ..Default::default()
    };
    snapshots.delete_snapshot(delete("s2")).await.unwrap();
    snapshots.delete_snapshot(delete("w")).await.unwrap();
    assert_eq!(refused(snapshots.delete_snapshot(delete("s9")).await).0, Code::NotFound);
    let get = |snapshot: &str| GetSnapshotRequest {
        dataset: "web".into(),
        snapshot: snapshot.into(),
        ..Default::default()
    };
    assert_eq!(snapshots.get_snapshot(get("s1")).await.unwrap().into_inner().name, "s1");
    assert_eq!(refused(snapshots.get_snapshot(get("s2")).await).0, Code::NotFound);
}

fn restore(overwrite: bool, dry_run: bool) -> RestoreRequest {
    let path = RestorePath { source: b"/docs".to_vec(), destination: vec![] };
    RestoreRequest {
        dataset: "web".into(),
        snapshot: "s1".into(),
        paths: vec![path],
        overwrite,
        dry_run,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_planned_done_and_watched() {
    let (server, client) = filled().await;
    let mut watched = client.tasks().watch(WatchRequest::default()).await.unwrap().into_inner();

    let mut files = client.files();
    let mut answers = files.restore(restore(true, true)).await.unwrap().into_inner();
    let plan = answers.message().await.unwrap().unwrap().plan.unwrap();
    // `docs` and all below it: 4 files, 2 links, `sub` and the large file.
    assert_eq!((plan.objects, plan.existing), (9, 9));
    assert_eq!(plan.bytes, 6_000_000 + 13 + 3 + 3);
    assert!(
        client.tasks().list_tasks(ListTasksRequest {}).await.unwrap().into_inner().tasks.is_empty()
    );

    let refused_task = client.restore(restore(false, false), |_| {}).await.unwrap().unwrap();
    assert_eq!(refused_task.outcome(), task::Outcome::Failed, "{refused_task:?}");
    let mut reports = 0;
    let done = client.restore(restore(true, false), |_| reports += 1).await.unwrap().unwrap();
    assert_eq!(done.outcome(), task::Outcome::Done, "{done:?}");
    // Only the changed file and the folders on the way differ.
    assert!(reports > 0 && done.bytes == 13 && done.ended.is_some(), "{reports} {done:?}");
    // The plan read the dataset as it was a moment ago; what was restored is seen all the same.
    let live = RootName::live("web");
    assert_eq!(client.read(&live, "/docs/a.txt").await.unwrap(), b"first version");

    let mut tasks = client.tasks();
    let got = tasks.get_task(GetTaskRequest { id: done.id }).await.unwrap().into_inner();
    assert_eq!(got, done);
    assert_eq!(refused(tasks.get_task(GetTaskRequest { id: 999 }).await).0, Code::NotFound);
    let stopped = tasks.stop_task(StopTaskRequest { id: done.id }).await.unwrap().into_inner();
    assert_eq!(stopped.outcome(), task::Outcome::Done, "it has ended already");
    let mut scrubbed = tasks
        .scrub(ScrubRequest { dataset: "web".into(), ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    let mut last = None;
    while let Some(task) = scrubbed.message().await.unwrap() {
        last = Some(task);
    }
    let last = last.unwrap();
    assert_eq!(last.outcome(), task::Outcome::Done, "{last:?}");
    assert!(last.bytes > 0 && last.message.contains("no damage"), "{last:?}");

    let (mut ended, mut names) = (0, Vec::new());
    while ended < 3 {
        match watched.message().await.unwrap().unwrap().change.unwrap() {
            Change::Task(task) if task.ended.is_some() => ended += 1,
            Change::Task(_) | Change::Removed(_) => {}
            Change::Dataset(dataset) => names.push(dataset.name),
            Change::Snapshot(snapshot) => names.push(snapshot.name),
        }
    }
    assert!(names.contains(&"web".to_owned()) && names.contains(&"s1".to_owned()), "{names:?}");
    for (change, code) in [
        (RestoreRequest { paths: vec![], ..restore(true, false) }, Code::InvalidArgument),
        (RestoreRequest { snapshot: "s9".into(), ..restore(true, false) }, Code::NotFound),
    ] {
        assert_eq!(refused(files.restore(change).await.map(|_| ())).0, code);
    }
    let log = server.log();
    let audited =
        |what: &str| log.lines().any(|line| line.contains("audit") && line.contains(what));
    assert!(audited("Restore") && audited("Scrub") && audited("ReadFile"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_in_the_middle_leave_nothing_open() {
    let (server, client) = filled().await;
    let mut files = client.files();
    // More than may be in progress at once.
    for _ in 0..300 {
        let request = ReadFileRequest {
            root: root(),
            path: b"/docs/sub/large".to_vec(),
            offset: 0,
            length: None,
        };
        let mut answers = files.read_file(request).await.unwrap().into_inner();
        answers.message().await.unwrap().unwrap();
    }
    assert_eq!(client.read(&snapshot(), "/docs/a.txt").await.unwrap(), b"first version");
    server.process.stop();
    let readers = files_below(&server.room.path().join("pool/readers"));
    assert_eq!(readers, Vec::<std::path::PathBuf>::new(), "snapshots stay retained");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_have_limits_and_need_a_right() {
    let (server, client) = filled().await;
    // A clone takes several writes to the store, each many times as long as its deadline.
    let late = CreateDatasetRequest {
        dataset: "late".into(),
        source: "web@s1".into(),
        ..Default::default()
    };
    let mut late = Request::new(late);
    late.metadata_mut().insert("grpc-timeout", "1m".parse().unwrap());
    let refused_late = client.datasets_service().create_dataset(late).await.unwrap_err();
    // Whoever of the two sees it first ends the call.
    let codes = [Code::DeadlineExceeded, Code::Cancelled];
    assert!(codes.contains(&refused_late.code()), "{refused_late}");
    // A stream that has no end of its own ends at its deadline, which the server keeps.
    let mut watch = Request::new(WatchRequest::default());
    watch.metadata_mut().insert("grpc-timeout", "2S".parse().unwrap());
    let mut watched = client.tasks().watch(watch).await.unwrap().into_inner();
    let ended = loop {
        match watched.message().await {
            Ok(told) => assert!(told.is_some(), "it ended without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended}");
    let long = FindRequest { pattern: vec![b'a'; 2 << 20], ..Default::default() };
    let too_long = client.files().find(long).await.map(|_| ()).unwrap_err();
    assert_eq!(too_long.code(), Code::OutOfRange, "{too_long}");

    let at = format!("http://{}", server.admin);
    let nobody = Client::connect(&at, None).await.unwrap();
    assert_eq!(nobody.pools().await.unwrap_err().code(), Some(Code::Unauthenticated));
    let wrong = Client::connect(&at, Some("zerofs_wrong")).await.unwrap();
    assert_eq!(wrong.pools().await.unwrap_err().code(), Some(Code::Unauthenticated));
    let as_role = async |role: &str| Client::connect(&at, Some(server.token(role))).await.unwrap();
    let viewer = as_role("viewer").await;
    assert_eq!(viewer.list(&snapshot(), "/").await.unwrap().len(), 1);
    let denied = viewer.read(&snapshot(), "/docs/a.txt").await.unwrap_err();
    assert_eq!(denied.code(), Some(Code::PermissionDenied), "{denied}");
    let reader = as_role("reader").await;
    assert_eq!(reader.read(&snapshot(), "/docs/a.txt").await.unwrap(), b"first version");
    let denied = reader.create_snapshot(of_web("no")).await.unwrap_err();
    assert_eq!(denied.code(), Some(Code::PermissionDenied), "{denied}");
    let denied = reader.restore(restore(true, false), |_| {}).await.unwrap_err();
    assert_eq!(denied.code(), Some(Code::PermissionDenied), "{denied}");
    let restorer = as_role("restorer").await;
    restorer.create_snapshot(of_web("yes")).await.unwrap();
    let new = CreateDatasetRequest { dataset: "x".into(), ..Default::default() };
    let denied = restorer.datasets_service().create_dataset(new).await;
    assert_eq!(refused(denied).0, Code::PermissionDenied);
    // Files that no client of this test wrote are not on the way of its end.
    let (nfs_client, top) = server.client().await;
    nfs::write(&nfs_client, &top, b"last", b"x").await;
}
