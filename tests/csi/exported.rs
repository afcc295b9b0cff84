//! Volumes that `serve` exports and that are staged through CSI at the same time.

use crate::support::driver::{Driver, mounter, refused};
use bytes::Bytes;
use std::time::Duration;
use tonic::Code;
use zerofs_csi::csi::proto::v1::DeleteVolumeRequest;
use zerofs_csi::fs::api::{CreateHow, SetAttr, Stability};
use zerofs_csi::nfs::client::{Client, ClientError, Credentials, FileHandle};

/// Far more than an opening takes.
const SOON: Duration = Duration::from_secs(20);

async fn write(client: &Client, root: &FileHandle, name: &str) -> Result<(), ClientError> {
    let how = CreateHow::Guarded(SetAttr::default());
    let file = client.create(root, name.as_bytes(), &how).await?.handle;
    let data = Bytes::copy_from_slice(name.as_bytes());
    client.write(&file, 0, data, Stability::FileSync).await.map(drop)
}

/// Kubelet unstages the volume when its last pod is gone, and knows nothing of the export.
#[tokio::test(flavor = "multi_thread")]
async fn unstaging_a_volume_does_not_end_its_export() {
    let (mounter, mounted) = mounter();
    let driver = Driver::exporting(mounter).await;
    let (id, at) = (driver.create("v").await.volume_id, driver.path("staging"));
    let client = Client::connect(driver.exports.unwrap(), &Credentials::root()).await.unwrap();
    let root = client.mount("/v").await.unwrap();
    for round in ["first", "second"] {
        driver.stage(&id, &at).await.unwrap();
        let staged = mounted.lock().clone().unwrap();
        let pod = Client::connect(staged.what.endpoint, &Credentials::root()).await.unwrap();
        write(&pod, &staged.root, &format!("by a pod, {round}")).await.unwrap();
        write(&client, &root, &format!("before, {round}")).await.unwrap();
        driver.unstage(&id, &at).await.unwrap();
        let after = format!("after, {round}");
        let written = tokio::time::timeout(SOON, write(&client, &root, &after)).await;
        written.expect("the export's client waits until it is mounted again").unwrap();
        for kind in ["by a pod", "before", "after"] {
            client.lookup(&root, format!("{kind}, {round}").as_bytes()).await.unwrap();
        }
    }
    let request = DeleteVolumeRequest { volume_id: id, ..Default::default() };
    let deleted = driver.controller().delete_volume(request).await;
    refused(deleted, Code::FailedPrecondition, "is open on node");
}
