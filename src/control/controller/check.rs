//! Validates requests, and compares an existing volume with a request. Pure.

use super::{NewVolume, SIZE_DEFAULT, SIZE_MAX, SIZE_MIN, Source};
use crate::catalog::{Dataset, Form, Properties};
use crate::control::ControlError;
use crate::types::{Incarnation, NameError, NameKey, PoolId, SnapshotName};

/// The smallest and largest record of a file (R6).
const RECORD_BYTES: std::ops::RangeInclusive<u32> = 4 << 10..=1 << 20;

pub(in crate::control) fn properties(properties: &Properties) -> Result<(), ControlError> {
    let invalid = |why: String| Err(ControlError::Invalid(why));
    if !properties.record_bytes.is_power_of_two()
        || !RECORD_BYTES.contains(&properties.record_bytes)
    {
        return invalid(format!(
            "recordsize {}: use a power of two from 4 KiB to 1 MiB",
            properties.record_bytes
        ));
    }
    if properties.root_mode > 0o7777 {
        return invalid(format!("mode {:o}: use at most 7777, octal", properties.root_mode));
    }
    if [properties.root_uid, properties.root_gid].contains(&u32::MAX) {
        return invalid(format!(
            "uid and gid of the root directory: {} stands for none; use a smaller number",
            u32::MAX
        ));
    }
    properties.limits.check().map_err(|error| ControlError::Invalid(error.to_string()))?;
    if properties.quota_inodes == Some(0) {
        return invalid("an inode quota of 0 leaves no room for the root directory".to_owned());
    }
    Ok(())
}

/// Checks the name of a new object.
pub(super) fn name(given: Result<(), NameError>) -> Result<(), ControlError> {
    given.map_err(|error| ControlError::Invalid(error.to_string()))
}

/// Only a snapshot can be a volume by itself.
pub(super) fn form(new: &NewVolume) -> Result<(), ControlError> {
    match (new.form, &new.source) {
        (Form::Writable, _) | (Form::Snapshot, Some(Source::Snapshot(_))) => Ok(()),
        (Form::Snapshot, _) => Err(ControlError::Invalid(format!(
            "volume {}: a read-only volume is made from a snapshot",
            new.name
        ))),
    }
}

/// A volume that is only a snapshot under another name cannot be a source.
pub(super) fn has_database(dataset: &Dataset) -> Result<(), ControlError> {
    match dataset.form {
        Form::Writable => Ok(()),
        Form::Snapshot => Err(ControlError::Precondition(format!(
            "volume {} is a snapshot, read only: use the snapshot that it was made from",
            dataset.name
        ))),
    }
}

/// The byte quota of a new volume. `source`: the quota of the source, which must fit.
pub(super) fn size(new: &NewVolume, source: Option<u64>) -> Result<u64, ControlError> {
    let limit = new.size_limit.unwrap_or(SIZE_MAX);
    let out = |why: String| Err(ControlError::OutOfRange(format!("volume {}: {why}", new.name)));
    let floor = source.unwrap_or(SIZE_MIN).max(SIZE_MIN);
    let wanted = match new.size {
        Some(size) => size,
        None => source.unwrap_or(SIZE_DEFAULT).min(limit).max(floor),
    };
    if wanted > SIZE_MAX {
        return out(format!("{wanted} bytes are more than the {SIZE_MAX} supported"));
    }
    if new.size.is_some_and(|size| size > limit) {
        return out(format!("{wanted} bytes are required, but at most {limit} allowed"));
    }
    // A request for less than the smallest volume gets the smallest one, where its limit allows
    // that.
    let given = wanted.max(SIZE_MIN);
    if let Some(source) = source
        && given < source
    {
        return out(format!("{given} bytes are less than the {source} of the source"));
    }
    if given > limit {
        return out(format!("the least size is {floor} bytes, but at most {limit} are allowed"));
    }
    Ok(given)
}

/// The name of the snapshot that a clone of a volume is made from, one for each clone.
pub(super) fn implied_name(clone: Incarnation) -> Result<SnapshotName, ControlError> {
    format!("implied-{clone}").parse().map_err(|error| ControlError::Internal(format!("{error}")))
}

/// The inode quota of a new volume. `source`: inodes in use in the source.
pub(super) fn inodes(new: &NewVolume, source: u64) -> Result<(), ControlError> {
    match new.properties.quota_inodes {
        Some(quota) if quota < source => Err(ControlError::OutOfRange(format!(
            "volume {}: an inodeQuota {quota} is less than the {source} inodes of the source: \
             nothing could be created in it",
            new.name
        ))),
        _ => Ok(()),
    }
}

/// Checks that the existing volume matches a retried request.
pub(super) fn same(pool: PoolId, existing: &Dataset, new: &NewVolume) -> Result<(), ControlError> {
    let differs =
        |why: String| Err(ControlError::Exists { what: format!("volume {}", existing.name), why });
    if existing.ephemeral {
        return differs(
            "it is the inline volume of a pod, and is deleted with that pod".to_owned(),
        );
    }
    if !same_source(pool, existing, new.source.as_ref()) {
        return differs("it was made from another source".to_owned());
    }
    if existing.parameters != new.parameters {
        return differs(format!(
            "it was made with parameters {:?}, not {:?}",
            existing.parameters, new.parameters
        ));
    }
    if existing.form != new.form {
        return differs(
            "one of them is the snapshot itself, read only, the other a clone of it".to_owned(),
        );
    }
    if existing.properties != new.properties && !existing.modified {
        return differs("it has other properties".to_owned());
    }
    let size = existing.size.unwrap_or(u64::MAX);
    if size < new.size.unwrap_or(0) || size > new.size_limit.unwrap_or(u64::MAX) {
        return differs(format!("it has {size} bytes"));
    }
    Ok(())
}

fn same_source(pool: PoolId, existing: &Dataset, source: Option<&Source>) -> bool {
    match (existing.origin, source) {
        (None, None) => true,
        (Some(origin), Some(Source::Snapshot(handle))) => {
            handle.pool == pool && handle.snapshot == origin
        }
        (Some(origin), Some(Source::Volume(handle))) => {
            let implied = implied_name(existing.incarnation)
                .map(|name| NameKey::of("snapshot", name.as_str()));
            handle.pool == pool
                && handle.dataset.incarnation == origin.dataset
                && implied.is_ok_and(|key| key == origin.snapshot.key)
        }
        (None, Some(_)) | (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Class, Classify, SyncMode};

    fn new(size: Option<u64>, size_limit: Option<u64>) -> NewVolume {
        NewVolume {
            name: "v".parse().unwrap(),
            size,
            size_limit,
            source: None,
            properties: Properties::default(),
            access_modes: vec![],
            form: Form::Writable,
            parameters: Default::default(),
        }
    }

    #[test]
    fn sizes_follow_csi_ranges() {
        assert_eq!(size(&new(None, None), None).unwrap(), SIZE_DEFAULT);
        assert_eq!(size(&new(None, Some(1 << 30)), None).unwrap(), 1 << 30);
        assert_eq!(size(&new(Some(5), None), None).unwrap(), SIZE_MIN);
        assert_eq!(size(&new(None, None), Some(3 << 20)).unwrap(), 3 << 20);
        assert_eq!(size(&new(Some(4 << 20), None), Some(3 << 20)).unwrap(), 4 << 20);
        for (required, limit, source) in [
            (Some(5), Some(6), None),
            (Some(10 << 20), Some(5 << 20), None),
            (Some(SIZE_MAX + 1), None, None),
            (Some(2 << 20), None, Some(3 << 20)),
            (None, Some(2 << 20), Some(3 << 20)),
        ] {
            let refused = size(&new(required, limit), source).unwrap_err();
            assert_eq!(refused.class(), Class::OutOfRange, "{required:?} {limit:?} {source:?}");
        }
    }

    #[test]
    fn properties_have_bounds() {
        let with = |change: fn(&mut Properties)| {
            let mut p = Properties::default();
            change(&mut p);
            properties(&p).is_ok()
        };
        assert!(with(|_| {}));
        assert!(with(|p| p.record_bytes = 4096) && with(|p| p.sync = Some(SyncMode::Always)));
        assert!(
            !with(|p| p.record_bytes = 5000)
                && !with(|p| p.record_bytes = 2 << 20)
                && !with(|p| p.record_bytes = 0)
        );
        assert!(!with(|p| p.root_uid = u32::MAX) && !with(|p| p.root_gid = u32::MAX));
        assert!(!with(|p| p.limits.max_iops = Some(0)) && with(|p| p.limits.max_iops = Some(10)));
        assert!(!with(|p| p.root_mode = 0o10000) && !with(|p| p.quota_inodes = Some(0)));
    }
}
