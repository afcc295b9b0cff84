//! The number of volumes that a node has reserved ports for. Pure.

use super::super::ControlError;

/// Ports that are left to the host's own NFS mounts.
const HOST_PORTS: u32 = 100;

/// `staged`: the ports that each staged volume takes; `usual`: those that the next ones will take.
/// Never 0, which CSI takes for "no limit".
pub(super) fn volumes_max(limit: u32, ports: u32, staged: &[u32], usual: u32) -> u32 {
    let used = staged.iter().sum::<u32>();
    let left = ports.saturating_sub(HOST_PORTS).saturating_sub(used) / usual.max(1);
    let staged = u32::try_from(staged.len()).unwrap_or(u32::MAX);
    staged.saturating_add(left).clamp(1, limit.max(1))
}

/// Checks that a volume with `wanted` ports can be mounted: without a free port mount(2) fails
/// after a minute without a reason.
pub(super) fn check(ports: u32, staged: &[u32], wanted: u32) -> Result<(), ControlError> {
    let used = staged.iter().sum::<u32>();
    if used.saturating_add(wanted) <= ports {
        return Ok(());
    }
    Err(ControlError::Exhausted(format!(
        "the mount needs {wanted} of the node's {ports} reserved ports, and {used} are in use: use \
         fewer volumes on the node or a smaller nconnect, or \
         lower sunrpc.min_resvport there"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connection_takes_a_port() {
        assert_eq!(volumes_max(256, 359, &[], 1), 256);
        assert_eq!(volumes_max(256, 359, &[], 2), 129);
        assert_eq!(volumes_max(256, 359, &[], 16), 16);
        assert_eq!(volumes_max(12, 359, &[], 4), 12);
        // Staged volumes keep their ports, whatever is usual.
        assert_eq!(volumes_max(256, 359, &[16, 16, 1], 1), 3 + 226);
        assert_eq!(volumes_max(256, 359, &[16; 17], 4), 17);
        assert_eq!((volumes_max(256, 0, &[], 1), volumes_max(256, 359, &[], 0)), (1, 256));
    }

    #[test]
    fn a_mount_without_a_port_is_refused_with_the_reason() {
        check(359, &[16; 22], 7).unwrap();
        let refused = check(359, &[16; 22], 8).unwrap_err();
        assert!(
            matches!(&refused, ControlError::Exhausted(why) if why.contains("352 are in use")),
            "{refused}"
        );
    }
}
