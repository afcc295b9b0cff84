//! Kubelet's ids of inline ephemeral volumes, and what an administrator allows pods to have. Pure.

use super::super::ControlError;
use super::super::controller::{SIZE_DEFAULT, SIZE_MIN};
use crate::types::DatasetName;

/// Names tried for one volume: a name is not free before a deleted dataset of it was collected.
const NAMES: usize = 16;

/// The pools in which pods may have inline ephemeral volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EphemeralSettings {
    /// By name; none: pods may not have any.
    pub pools: Vec<String>,
    /// The largest size of a volume, in bytes.
    pub size_max: u64,
}

/// Kubelet's id of an inline volume: a hash of the pod's UID and the volume's name in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EphemeralId(String);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not kubelet's id of an inline volume: csi- and 64 hexadecimal digits")]
pub struct EphemeralIdError;

impl std::str::FromStr for EphemeralId {
    type Err = EphemeralIdError;

    fn from_str(text: &str) -> Result<Self, EphemeralIdError> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let hash = text.strip_prefix("csi-").filter(|hash| hash.len() == 64);
        match hash.is_some_and(|hash| hash.bytes().all(is_digit)) {
            true => Ok(Self(text.to_owned())),
            false => Err(EphemeralIdError),
        }
    }
}

impl std::fmt::Display for EphemeralId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl EphemeralId {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The names of its datasets, in the order in which they are used.
    pub(super) fn names(&self) -> impl Iterator<Item = Result<DatasetName, ControlError>> {
        (0..NAMES).map(move |n| {
            let name = match n {
                0 => format!("ephemeral-{self}"),
                n => format!("ephemeral-{self}-{n}"),
            };
            name.parse().map_err(|error| ControlError::Internal(format!("{name}: {error}")))
        })
    }
}

impl EphemeralSettings {
    /// The pool of a request.
    pub(super) fn pool<'a>(&'a self, asked: Option<&'a str>) -> Result<&'a str, ControlError> {
        let Some(first) = self.pools.first() else {
            return Err(ControlError::Precondition(
                "inline ephemeral volumes are not allowed: the administrator lists the pools that \
                 pods may use (`ephemeral.pools` of the chart or the configuration)"
                    .to_owned(),
            ));
        };
        match asked {
            None => Ok(first),
            Some(pool) if self.pools.iter().any(|allowed| allowed == pool) => Ok(pool),
            Some(pool) => Err(ControlError::Precondition(format!(
                "inline ephemeral volumes are not allowed in pool {pool:?}, but in: {}",
                self.pools.join(", ")
            ))),
        }
    }

    pub(super) fn size(&self, asked: Option<u64>) -> Result<u64, ControlError> {
        let size = asked.unwrap_or(SIZE_DEFAULT.min(self.size_max));
        match (SIZE_MIN..=self.size_max).contains(&size) {
            true => Ok(size),
            false => Err(ControlError::OutOfRange(format!(
                "an inline ephemeral volume of {size} bytes: use {SIZE_MIN} to {}",
                self.size_max
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Class, Classify};

    #[test]
    fn an_id_is_kubelets() {
        let hash = "0123456789abcdef".repeat(4);
        let id: EphemeralId = format!("csi-{hash}").parse().unwrap();
        let names: Vec<DatasetName> = id.names().collect::<Result<_, _>>().unwrap();
        assert_eq!(names[0].as_str(), format!("ephemeral-csi-{hash}"));
        assert_eq!(names[15].as_str(), format!("ephemeral-csi-{hash}-15"));
        let bad =
            [String::new(), hash.clone(), format!("csi-{hash}0"), format!("csi-G{}", &hash[1..])];
        for text in bad {
            assert_eq!(text.parse::<EphemeralId>(), Err(EphemeralIdError), "{text}");
        }
    }

    #[test]
    fn nothing_is_allowed_that_was_not_listed() {
        let none = EphemeralSettings::default();
        let listed = EphemeralSettings { pools: vec!["a".into(), "b".into()], size_max: 1 << 30 };
        assert_eq!(none.pool(None).unwrap_err().class(), Class::Precondition);
        assert_eq!(listed.pool(Some("c")).unwrap_err().class(), Class::Precondition);
        assert_eq!((listed.pool(None).unwrap(), listed.pool(Some("b")).unwrap()), ("a", "b"));
        assert_eq!(listed.size(None).unwrap(), 1 << 30);
        assert_eq!(listed.size(Some(1 << 20)).unwrap(), 1 << 20);
        for size in [0, (1 << 20) - 1, (1 << 30) + 1] {
            assert_eq!(listed.size(Some(size)).unwrap_err().class(), Class::OutOfRange, "{size}");
        }
    }
}
