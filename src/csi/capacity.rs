//! Capacity ranges. Pure.

use super::proto::v1::CapacityRange;
use super::status::{RequestError, invalid};
use crate::control::{SIZE_MAX, SIZE_MIN};

/// The size range that a caller asks for, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The least size, within the supported range; `None`: the default.
    pub size: Option<u64>,
    /// At most this.
    pub limit: Option<u64>,
}

/// `None` and a range of zeros both mean that nothing is asked for (CSI: a value of 0 is an
/// unspecified field).
pub(super) fn wanted(range: Option<&CapacityRange>) -> Result<Wanted, RequestError> {
    let Some(range) = range else { return Ok(Wanted::default()) };
    let required = field("required_bytes", range.required_bytes)?;
    let limit = field("limit_bytes", range.limit_bytes)?;
    if let (Some(required), Some(limit)) = (required, limit)
        && limit < required
    {
        return Err(invalid(format!(
            "capacity_range: limit_bytes {limit} is below required_bytes {required}"
        )));
    }
    if let Some(required) = required.filter(|required| *required > SIZE_MAX) {
        return Err(RequestError::OutOfRange(format!(
            "capacity_range: {required} bytes is too large: at most {SIZE_MAX}"
        )));
    }
    if let Some(limit) = limit.filter(|limit| *limit < SIZE_MIN) {
        return Err(RequestError::OutOfRange(format!(
            "capacity_range: limit_bytes {limit} is too small: a volume has at least {SIZE_MIN} \
             bytes"
        )));
    }
    Ok(Wanted { size: required.map(|required| required.max(SIZE_MIN)), limit })
}

fn field(name: &str, value: i64) -> Result<Option<u64>, RequestError> {
    let value = u64::try_from(value)
        .map_err(|_| invalid(format!("capacity_range: {name} is negative ({value})")))?;
    Ok((value > 0).then_some(value))
}

/// CSI carries sizes as signed numbers.
pub(super) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(required_bytes: i64, limit_bytes: i64) -> Result<Wanted, RequestError> {
        wanted(Some(&CapacityRange { required_bytes, limit_bytes }))
    }

    #[test]
    fn nothing_asked_for_is_a_default() {
        assert_eq!(wanted(None), Ok(Wanted::default()));
        assert_eq!(range(0, 0), Ok(Wanted::default()));
    }

    #[test]
    fn sizes_are_kept_or_raised_to_the_least() {
        assert_eq!(range(5 << 30, 0), Ok(Wanted { size: Some(5 << 30), limit: None }));
        assert_eq!(range(1, 2 << 20), Ok(Wanted { size: Some(SIZE_MIN), limit: Some(2 << 20) }));
        assert_eq!(range(0, 1 << 30), Ok(Wanted { size: None, limit: Some(1 << 30) }));
    }

    #[test]
    fn nonsense_is_invalid_and_the_unsupported_is_out_of_range() {
        for (required, limit) in [(-1, 0), (0, -1), (i64::MIN, i64::MIN), (2 << 30, 1 << 30)] {
            assert!(
                matches!(range(required, limit), Err(RequestError::Invalid(_))),
                "{required} {limit}"
            );
        }
        for (required, limit) in [(i64::MAX, 0), ((1 << 50) + 1, 0), (0, 1), (1, 1)] {
            assert!(
                matches!(range(required, limit), Err(RequestError::OutOfRange(_))),
                "{required} {limit}"
            );
        }
    }
}
