//! The load generator runs every work to its end and leaves nothing behind.

use crate::edge::{EXPORT, Edge};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use zerofs_csi::fs::api::DirCookie;
use zerofs_csi::load::{LoadOptions, Workload, run};

fn small(edge: &Edge) -> LoadOptions {
    LoadOptions {
        time: Duration::from_millis(50),
        file_mib: 4,
        files: 300,
        connections: 2,
        server_pid: Some(std::process::id()),
        ..LoadOptions::new(edge.server.local_addr(), EXPORT.into())
    }
}

#[tokio::test]
async fn every_work_is_measured_and_cleaned_up() {
    let edge = Edge::start().await;
    let _pass = edge.endpoint.allow_mount();
    let told = Arc::new(Mutex::new(Vec::new()));
    let report = run(small(&edge), {
        let told = told.clone();
        move |row| told.lock().unwrap().push(row.work)
    });
    let report = report.await.unwrap();
    for work in Workload::ALL {
        let row = report.rows.iter().find(|row| row.work == work.name()).unwrap();
        assert!(
            row.operations > 0 && row.per_sec > 0.0 && row.peak_rss_mb.unwrap() > 1.0,
            "{row:?}"
        );
        assert_eq!(work.name().parse(), Ok(work));
    }
    assert_eq!(told.lock().unwrap().len(), report.rows.len());
    assert_eq!(report.to_string().lines().count(), report.rows.len() + 1);
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let page = client.readdir(&root, DirCookie(0), [0; 8], 4096).await.unwrap();
    assert_eq!(page.entries.len(), 2, "{:?}", page.entries);
}

#[tokio::test]
async fn one_work_brings_what_it_needs_and_can_be_kept() {
    let edge = Edge::start().await;
    let _pass = edge.endpoint.allow_mount();
    for work in Workload::ALL {
        let options = LoadOptions { only: vec![work], ..small(&edge) };
        let report = run(options, |_| {}).await.unwrap();
        assert!(report.rows.iter().all(|row| row.work == work.name()));
    }
    let options = LoadOptions { directory: Some("kept".into()), keep: true, ..small(&edge) };
    for only in [
        vec![Workload::WriteSequential, Workload::Create],
        vec![Workload::ReadSequential, Workload::List],
    ] {
        run(LoadOptions { only, ..options.clone() }, |_| {}).await.unwrap();
    }
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let kept = client.lookup(&root, b"kept").await.unwrap();
    assert_eq!(client.lookup(&kept.handle, b"large").await.unwrap().attr.unwrap().size, 4 << 20);
}
