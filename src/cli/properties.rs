//! `dataset set`.

use super::args::{Property, SetArgs};
use super::info::DatasetShown;
use super::target::Target;
use crate::admin::grpc::proto;
use crate::control::PropertyChanges;
use crate::control::browse::Names;
use crate::types::SyncMode;

fn changes(properties: &[Property]) -> PropertyChanges {
    let mut changes = PropertyChanges::default();
    for property in properties {
        match *property {
            Property::Size(size) => changes.size = Some(size),
            Property::Inodes(inodes) => changes.inodes = Some(inodes),
            Property::RecordSize(bytes) => changes.record_bytes = Some(bytes),
            Property::Sync(mode) => changes.sync = Some(mode),
            Property::Compression(codec) => changes.codec = Some(codec),
            Property::Snapdir(snapdir) => changes.snapdir = Some(snapdir),
            Property::MaxReadBandwidth(limit) => changes.max_read_bandwidth = Some(limit),
            Property::MaxWriteBandwidth(limit) => changes.max_write_bandwidth = Some(limit),
            Property::MaxIops(limit) => changes.max_iops = Some(limit),
        }
    }
    changes
}

/// The changes as a request to a server.
fn request(pool: &str, dataset: &str, changes: &PropertyChanges) -> proto::SetPropertiesRequest {
    let sync = |sync: Option<SyncMode>| sync.map(|sync| sync.to_string()).unwrap_or_default();
    proto::SetPropertiesRequest {
        pool: pool.to_owned(),
        dataset: dataset.to_owned(),
        size_bytes: changes.size,
        quota_inodes: changes.inodes.map(Option::unwrap_or_default),
        sync: changes.sync.map(sync),
        record_bytes: changes.record_bytes,
        compression: changes.codec.map(|codec| codec.as_str().to_owned()),
        snapdir: changes.snapdir.map(|snapdir| snapdir.as_str().to_owned()),
        max_read_bandwidth: changes.max_read_bandwidth.map(Option::unwrap_or_default),
        max_write_bandwidth: changes.max_write_bandwidth.map(Option::unwrap_or_default),
        max_iops: changes.max_iops.map(Option::unwrap_or_default),
    }
}

pub async fn set(args: SetArgs) -> anyhow::Result<()> {
    let changes = changes(&args.properties);
    let shown = match args.common.place.target().await? {
        Target::Pool(opened) => {
            let dataset = opened.browser.dataset(&args.name).await?;
            let handle = opened.browser.handle(&dataset);
            let dataset = opened.controller.set_properties(handle, changes).await?;
            let names = Names::of_origin(&opened.pool, &dataset).await?;
            let origin = dataset.origin.map(|origin| names.snapshot(origin));
            DatasetShown::of(handle, &dataset, origin)
        }
        Target::Server(remote) => {
            let request = request(&remote.pool, &args.name, &changes);
            remote.client.set_properties(request).await?.into()
        }
    };
    args.common.output.print(&shown, DatasetShown::text)
}
