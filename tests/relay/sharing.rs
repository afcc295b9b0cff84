//! Two nodes use one volume at the same time.

use crate::node::{Node, owner};
use crate::support::driver::capability;
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerofs_csi::csi::proto::v1::volume_capability::access_mode::Mode;
use zerofs_csi::csi::proto::v1::*;
use zerofs_csi::fs::api::{CreateHow, SetAttr, Stability};
use zerofs_csi::nfs::NfsStat;
use zerofs_csi::nfs::client::{Client, FileHandle};

pub async fn put(client: &Client, dir: &FileHandle, name: &str, data: &[u8]) {
    let how = CreateHow::Unchecked(SetAttr { size: Some(0), ..SetAttr::default() });
    let file = client.create(dir, name.as_bytes(), &how).await.unwrap().handle;
    let data = Bytes::copy_from_slice(data);
    let done = client.write(&file, 0, data, Stability::FileSync).await.unwrap();
    assert_eq!(done.stability, Stability::FileSync);
}

pub async fn get(client: &Client, dir: &FileHandle, name: &str) -> Bytes {
    let file = client.lookup(dir, name.as_bytes()).await.unwrap().handle;
    client.read(&file, 0, 1 << 20).await.unwrap().data
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_read_and_write_one_volume() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let (one, other) = (Node::start(&dir, "a-").await, Node::start(&dir, "b-").await);
    let id = one.create_shared("v").await;
    one.stage(&id).await;
    let begun = Instant::now();
    other.stage(&id).await;
    println!("staged on a second node within {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(5), "nobody waits for a lease");
    assert_eq!(one.root(), other.root(), "handles are the same on every node");
    let options = &other.mounted().what.options;
    assert!(
        options.contains(&"actimeo=1".into()) && options.contains(&"lookupcache=pos".into()),
        "{options:?}"
    );
    let (near, far, root) = (one.client().await, other.client().await, one.root());
    put(&near, &root, "near", b"written at the owner").await;
    assert_eq!(get(&far, &root, "near").await, &b"written at the owner"[..]);
    let large: Vec<u8> = (0..1 << 20).map(|at: u32| (at * 7 + at / 251) as u8).collect();
    put(&far, &root, "far", &large).await;
    assert!(get(&near, &root, "far").await == large && get(&far, &root, "far").await == large);

    // One of many exclusive creations of a name wins, wherever they come from.
    for round in 0..10 {
        let name = format!("only-{round}");
        let create = |client: Client, root: FileHandle| {
            let name = name.clone();
            async move {
                let how = CreateHow::Guarded(SetAttr::default());
                client.create(&root, name.as_bytes(), &how).await.map(drop)
            }
        };
        let all = futures::future::join_all(
            [&near, &far, &far, &near].map(|client| create(client.clone(), root.clone())),
        );
        let won: Vec<_> = all.await;
        assert_eq!(won.iter().filter(|done| done.is_ok()).count(), 1, "{won:?}");
        for lost in won.into_iter().filter_map(Result::err) {
            assert_eq!(lost.status(), Some(NfsStat::Exist));
        }
    }
    far.rename((&root, b"near"), (&root, b"far")).await.unwrap();
    assert_eq!(get(&near, &root, "far").await, &b"written at the owner"[..]);
    assert_eq!(near.lookup(&root, b"near").await.unwrap_err().status(), Some(NfsStat::NoEnt));

    let (here, there) = (one.stats(&id).await.unwrap(), other.stats(&id).await.unwrap());
    assert_eq!(here, there);
    expand(&one, &other, &id, here[0].total).await;

    other.unstage(&id).await;
    assert!(far.null().await.is_err(), "nothing answers there now");
    assert_eq!(get(&near, &root, "far").await, &b"written at the owner"[..]);
    one.unstage(&id).await;
    assert_eq!(owner(&dir, &id).await, None);
    one.driver.delete(&id).await;
}

/// The node that relays is told of a new size as any other, and the owner applies it.
async fn expand(one: &Node, other: &Node, id: &str, before: i64) {
    let size = Some(CapacityRange { required_bytes: 2 * before, limit_bytes: 0 });
    let grow = ControllerExpandVolumeRequest {
        volume_id: id.into(),
        capacity_range: size,
        ..Default::default()
    };
    one.driver.controller().controller_expand_volume(grow).await.unwrap();
    let grow = NodeExpandVolumeRequest {
        volume_id: id.into(),
        volume_path: other.staging().display().to_string(),
        capacity_range: size,
        volume_capability: Some(capability(Mode::MultiNodeMultiWriter)),
        ..Default::default()
    };
    let grown = other.driver.node().node_expand_volume(grow).await.unwrap().into_inner();
    assert_eq!(grown.capacity_bytes, 2 * before);
    assert_eq!(other.stats(id).await.unwrap()[0].total, 2 * before);
    assert_eq!(one.stats(id).await.unwrap()[0].total, 2 * before);
}
