//! Volume capabilities: the intended use of a volume. Pure.

use super::proto::v1::VolumeCapability;
use super::proto::v1::volume_capability::AccessType;
use super::proto::v1::volume_capability::access_mode::Mode;
use super::status::{RequestError, invalid};
use crate::mount;

/// File system types that mean ours; empty means none asked for.
const FS_TYPES: [&str; 3] = ["", "nfs", "zerofs"];
/// CSI: all mount flags together are at most 4 KiB.
const FLAG_BYTES_MAX: usize = 4096;
/// A request names each mode at most once or twice; more is an attack.
const CAPABILITIES_MAX: usize = 64;

/// A capability that was checked: a mounted volume, with a known mode and allowed options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Capability {
    pub mode: Mode,
    pub options: Vec<String>,
    /// The group that the files are to be presented with (Kubernetes' `fsGroup`).
    pub group: Option<u32>,
}

impl Capability {
    pub fn reads_only(&self) -> bool {
        matches!(self.mode, Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly)
    }

    /// Returns whether the mode or an option asks for a read-only mount.
    pub fn mounts_read_only(&self) -> bool {
        self.reads_only() || mount::reads_only(&self.options)
    }

    /// Only one target on the node may have it (CSI, NodePublishVolume).
    pub fn single_target(&self) -> bool {
        self.mode == Mode::SingleNodeSingleWriter
    }
}

/// Checks every capability of a request that must have at least one.
pub(super) fn all(capabilities: &[VolumeCapability]) -> Result<Vec<Capability>, RequestError> {
    if capabilities.is_empty() {
        return Err(invalid("volume_capabilities is empty: name at least one"));
    }
    if capabilities.len() > CAPABILITIES_MAX {
        return Err(invalid(format!(
            "{} volume capabilities: at most {CAPABILITIES_MAX} are allowed",
            capabilities.len()
        )));
    }
    capabilities.iter().map(check).collect()
}

/// Checks the one capability of a request that must have it.
pub(super) fn one(capability: Option<&VolumeCapability>) -> Result<Capability, RequestError> {
    check(capability.ok_or_else(|| invalid("volume_capability is missing"))?)
}

fn check(capability: &VolumeCapability) -> Result<Capability, RequestError> {
    let volume = match &capability.access_type {
        Some(AccessType::Mount(volume)) => volume,
        Some(AccessType::Block(_)) => {
            return Err(invalid("block volumes are not supported: use volumeMode: Filesystem"));
        }
        None => return Err(invalid("a volume capability has no access type: use mount")),
    };
    if !FS_TYPES.contains(&volume.fs_type.as_str()) {
        let given = volume.fs_type.chars().take(40).collect::<String>();
        return Err(invalid(format!(
            "fsType {given:?} is not supported: omit csi.storage.k8s.io/fstype"
        )));
    }
    if volume.mount_flags.iter().map(String::len).sum::<usize>() > FLAG_BYTES_MAX {
        return Err(invalid(format!("mount options are longer than {FLAG_BYTES_MAX} bytes")));
    }
    mount::check_options(&volume.mount_flags).map_err(|error| invalid(error.to_string()))?;
    let group = group(&volume.volume_mount_group)?;
    let mode = capability.access_mode.as_ref().map_or(0, |mode| mode.mode);
    match Mode::try_from(mode) {
        Ok(Mode::Unknown) | Err(_) => {
            Err(invalid(format!("access mode {mode} is unknown or missing")))
        }
        Ok(mode) => Ok(Capability { mode, options: volume.mount_flags.clone(), group }),
    }
}

/// A group as kubelet writes it: its number.
fn group(text: &str) -> Result<Option<u32>, RequestError> {
    match text.parse() {
        _ if text.is_empty() => Ok(None),
        // -1 leaves a file's group as it is.
        Ok(gid) if gid != u32::MAX => Ok(Some(gid)),
        _ => {
            let given: String = text.chars().take(40).collect();
            Err(invalid(format!("volume_mount_group {given:?} is not a group's number")))
        }
    }
}

/// The names of the modes, each once, in the order given.
pub(super) fn mode_names(capabilities: &[Capability]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for capability in capabilities {
        let name = capability.mode.as_str_name();
        if !names.iter().any(|other| other == name) {
            names.push(name.to_owned());
        }
    }
    names
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::proto::v1::volume_capability::{AccessMode, BlockVolume, MountVolume};
    use super::*;

    pub(crate) fn mount(mode: Mode) -> VolumeCapability {
        let access_type = Some(AccessType::Mount(MountVolume::default()));
        VolumeCapability { access_mode: Some(AccessMode { mode: mode.into() }), access_type }
    }

    fn with(change: impl FnOnce(&mut MountVolume)) -> VolumeCapability {
        let mut volume = MountVolume::default();
        change(&mut volume);
        VolumeCapability {
            access_type: Some(AccessType::Mount(volume)),
            ..mount(Mode::SingleNodeWriter)
        }
    }

    #[test]
    fn every_mode_of_a_mounted_volume_is_recorded_once() {
        let modes =
            [Mode::SingleNodeWriter, Mode::MultiNodeMultiWriter, Mode::SingleNodeWriter].map(mount);
        let checked = all(&modes).unwrap();
        assert_eq!(mode_names(&checked), ["SINGLE_NODE_WRITER", "MULTI_NODE_MULTI_WRITER"]);
        assert!(
            !checked[0].reads_only()
                && one(Some(&mount(Mode::MultiNodeReaderOnly))).unwrap().reads_only()
        );
    }

    #[test]
    fn the_rest_is_refused_with_the_reason() {
        let block = VolumeCapability {
            access_type: Some(AccessType::Block(BlockVolume {})),
            ..mount(Mode::SingleNodeWriter)
        };
        let cases = [
            (block, "volumeMode: Filesystem"),
            (VolumeCapability::default(), "no access type"),
            (
                VolumeCapability { access_mode: None, ..mount(Mode::SingleNodeWriter) },
                "access mode 0",
            ),
            (
                VolumeCapability {
                    access_mode: Some(AccessMode { mode: 99 }),
                    ..mount(Mode::SingleNodeWriter)
                },
                "access mode 99",
            ),
            (with(|m| m.fs_type = "ext4".into()), "\"ext4\""),
            (with(|m| m.mount_flags = vec!["soft".into()]), "\"soft\""),
            (with(|m| m.mount_flags = vec!["x".repeat(5000)]), "4096 bytes"),
        ];
        for (capability, needle) in cases {
            let error = one(Some(&capability)).unwrap_err();
            assert!(
                matches!(&error, RequestError::Invalid(why) if why.contains(needle)),
                "{error}"
            );
        }
        assert!(all(&[]).is_err() && one(None).is_err());
        assert!(all(&vec![mount(Mode::SingleNodeWriter); 65]).is_err());
    }
}
