//! Inline ephemeral volumes in CSI's messages: what a pod's author asks for. Pure.

use super::capability::{self, Capability};
use super::parameters;
use super::proto::v1::NodePublishVolumeRequest;
use super::status::{RequestError, invalid};
use crate::control::node::{Access, EphemeralId, PublishEphemeral};
use crate::types::{ByteSize, SyncMode};
use std::collections::HashMap;
use std::path::PathBuf;

/// Kubelet's marker, which it sends where the CSIDriver has `podInfoOnMount`.
const MARKER: &str = "csi.storage.k8s.io/ephemeral";

/// Returns whether the volume is declared in its pod.
pub(super) fn is_ephemeral(context: &HashMap<String, String>) -> bool {
    context.get(MARKER).is_some_and(|value| value == "true")
}

/// The request for an inline volume. Its attributes are a size, and the parameters of a
/// StorageClass; without `sync`, a sync waits for the node's journal only: the data goes with the
/// pod.
pub(super) fn publish(
    request: &NodePublishVolumeRequest,
    target: PathBuf,
) -> Result<PublishEphemeral, RequestError> {
    let id: EphemeralId = request
        .volume_id
        .parse()
        .map_err(|error| invalid(format!("volume_id of an inline volume: {error}")))?;
    let capability = capability::one(request.volume_capability.as_ref())?;
    let access = match request.readonly || capability.mounts_read_only() {
        true => Access::ReadOnly,
        false => Access::ReadWrite,
    };
    let mut attributes = request.volume_context.clone();
    let size = attributes.remove("size").map(|text| size(&text)).transpose()?;
    let parsed = parameters::parse(&attributes)?;
    let mut properties = parsed.properties;
    properties.sync.get_or_insert(SyncMode::Disabled);
    let Capability { options, group, .. } = capability;
    let pool = parsed.pool;
    Ok(PublishEphemeral { id, pool, size, properties, target, access, options, group })
}

fn size(text: &str) -> Result<u64, RequestError> {
    let size: Result<ByteSize, _> = text.parse();
    size.map(|size| size.0).map_err(|error| invalid(format!("attribute size: {error}")))
}

#[cfg(test)]
mod tests {
    use super::super::capability::tests::mount;
    use super::super::proto::v1::volume_capability::access_mode::Mode;
    use super::*;

    fn request(id: &str, attributes: &[(&str, &str)]) -> NodePublishVolumeRequest {
        let pairs = attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            volume_capability: Some(mount(Mode::SingleNodeWriter)),
            volume_context: pairs.collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_pod_chooses_size_and_parameters() {
        let id = format!("csi-{}", "ab".repeat(32));
        let all = [
            (MARKER, "true"),
            ("csi.storage.k8s.io/pod.name", "p"),
            ("pool", "fast"),
            ("size", "2Gi"),
            ("maxIops", "100"),
        ];
        assert!(is_ephemeral(&request(&id, &all).volume_context));
        assert!(!is_ephemeral(&request(&id, &[(MARKER, "false")]).volume_context));
        let asked = publish(&request(&id, &all), "/t".into()).unwrap();
        assert_eq!((asked.pool.as_deref(), asked.size), (Some("fast"), Some(2 << 30)));
        assert_eq!(asked.properties.limits.max_iops, Some(100));
        assert_eq!(asked.properties.sync, Some(SyncMode::Disabled));
        let synced = publish(&request(&id, &[("sync", "always")]), "/t".into()).unwrap();
        assert_eq!(synced.properties.sync, Some(SyncMode::Always));
        let bad = [
            (id.as_str(), ("size", "big")),
            (&id, ("volume", "pvc-1")),
            (&id, ("source", "web@monday")),
            ("v1:a:b", ("size", "1Gi")),
        ];
        for (id, attribute) in bad {
            assert!(publish(&request(id, &[attribute]), "/t".into()).is_err(), "{attribute:?}");
        }
    }
}
