//! The limits of docs/limits.md.

use crate::served::{EXPORT, Host};
use bytes::Bytes;
use zerofs_csi::fs::api::{FILE_BYTES_MAX, SetAttr, Stability};
use zerofs_csi::nfs::NfsStat;
use zerofs_csi::nfs::client::{Client, ClientError, Credentials};
use zerofs_csi::types::InodeNo;

const DEPTH: usize = 1200;

/// 8,796,093,022,208
fn with_commas(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).unwrap())
        .collect();
    groups.join(",")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_page_says_holds() {
    let page = include_str!("../../docs/limits.md");
    let mut host = Host::new();
    let served = host.serve().await;
    let client = served.client(&Credentials::root()).await;
    let root = served.root(&client).await;
    let says = |what: &str| assert!(page.contains(what), "docs/limits.md does not say {what:?}");

    let conf = client.pathconf(&root).await.unwrap();
    says(&format!("| {} |", with_commas(u64::from(conf.links_max))));
    says(&format!("| {} bytes, any but", conf.name_max));
    assert!(
        conf.no_trunc && conf.chown_restricted && conf.case_preserving && !conf.case_insensitive
    );
    let info = client.fsinfo(&root).await.unwrap();
    assert_eq!((info.file_bytes_max, info.write_max), (FILE_BYTES_MAX, 1 << 20));
    says(&format!("8 TiB ({} bytes)", with_commas(info.file_bytes_max)));
    let stat = client.fsstat(&root).await.unwrap();
    assert_eq!((stat.total_bytes, stat.total_files), (1 << 50, InodeNo::MAX.0));
    says("1 PiB and 2⁴⁴ inodes");

    let file = client.create(&root, b"f", &new()).await.unwrap().handle;
    let last = client
        .write(&file, FILE_BYTES_MAX - 1, Bytes::from_static(b"x"), Stability::FileSync)
        .await
        .unwrap();
    assert_eq!(last.attr.unwrap().size, FILE_BYTES_MAX);
    let beyond =
        client.write(&file, FILE_BYTES_MAX, Bytes::from_static(b"x"), Stability::FileSync).await;
    assert_eq!(beyond.unwrap_err().status(), Some(NfsStat::FileTooBig));
    let grown = client
        .setattr(&file, &SetAttr { size: Some(FILE_BYTES_MAX + 1), ..SetAttr::default() }, None)
        .await;
    assert_eq!(grown.unwrap_err().status(), Some(NfsStat::FileTooBig));

    let mut dir = root.clone();
    for _ in 0..DEPTH {
        dir = client.mkdir(&dir, b"deep", &SetAttr::default()).await.unwrap().handle;
    }
    client.create(&dir, b"bottom", &new()).await.unwrap();
    served.fs.close().await.unwrap();
    host.check().await;
}

pub fn new() -> zerofs_csi::fs::api::CreateHow {
    zerofs_csi::fs::api::CreateHow::Unchecked(SetAttr::default())
}

/// Sixteen groups are what AUTH_SYS carries: our client leaves the rest out as Linux' does, and a
/// call with more is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_groups_count() {
    let mut host = Host::new();
    let served = host.serve().await;
    let client = served.client(&Credentials::root()).await;
    let root = served.root(&client).await;
    for (name, gid) in [("sixteenth", 15), ("seventeenth", 16)] {
        let set = SetAttr { mode: Some(0o070), gid: Some(gid), ..SetAttr::default() };
        client.mkdir(&root, name.as_bytes(), &set).await.unwrap();
    }
    let credentials =
        Credentials { uid: 1000, gid: 1000, groups: (0..20).collect(), ..Credentials::root() };
    let member = Client::connect(served.server.local_addr(), &credentials).await.unwrap();
    let inside = async |name: &str| {
        let dir = member.lookup(&root, name.as_bytes()).await.unwrap().handle;
        member.create(&dir, b"f", &new()).await
    };
    inside("sixteenth").await.unwrap();
    assert_eq!(inside("seventeenth").await.unwrap_err().status(), Some(NfsStat::Access));
    // More than that in one call.
    let mut wire = crate::support::wire::Wire::connect(served.server.local_addr()).await;
    let mut body = vec![0; 4 + 4];
    for number in [1000u32, 1000, 20].into_iter().chain(0..20) {
        body.extend_from_slice(&number.to_be_bytes());
    }
    let mut record: Vec<u8> = Vec::new();
    for number in [9u32, 0, 2, 100_003, 3, 1, 1, body.len() as u32] {
        record.extend_from_slice(&number.to_be_bytes());
    }
    record.extend_from_slice(&body);
    record.extend_from_slice(&[0; 8]);
    record.extend_from_slice(&(root.as_bytes().len() as u32).to_be_bytes());
    record.extend_from_slice(root.as_bytes());
    let reply = wire.ask(&record).await.unwrap();
    // MSG_DENIED, AUTH_ERROR, AUTH_BADCRED.
    assert_eq!(reply[4..20], [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]);
    served.fs.close().await.unwrap();
}

/// Every folder of an export can be mounted by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_below_the_root_is_mounted() {
    let mut host = Host::new();
    let served = host.serve().await;
    let client = served.client(&Credentials::root()).await;
    let root = served.root(&client).await;
    let dir = client.mkdir(&root, b"static", &SetAttr::default()).await.unwrap().handle;
    let below = client.mkdir(&dir, b"img", &SetAttr::default()).await.unwrap().handle;
    assert_eq!(served.mount(&client, &format!("{EXPORT}/static/img")).await.unwrap(), below);
    assert!(matches!(
        served.mount(&client, &format!("{EXPORT}/img")).await,
        Err(ClientError::Mount { status: 2, .. })
    ));
    served.fs.close().await.unwrap();
}
