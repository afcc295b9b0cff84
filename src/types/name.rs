//! Names that people and programs choose.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The longest dataset or snapshot name, in bytes (CSI v1.12 limits names to 128 bytes).
const NAME_BYTES_MAX: usize = 128;
/// The longest directory entry name, in bytes (POSIX NAME_MAX on Linux).
const ENTRY_BYTES_MAX: usize = 255;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name must not be empty")]
    Empty,
    #[error("a name of {len} bytes is too long: at most {max} bytes are allowed")]
    TooLong { len: usize, max: usize },
    #[error(
        "the name {name:?} is not allowed: use no '/', no control character, no leading or \
         trailing space, and not '.' or '..'"
    )]
    Forbidden { name: String },
    #[error("the name {name:?} is not allowed: '@' stands between a dataset and its snapshot")]
    Separator { name: String },
}

fn check(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong { len: name.len(), max: NAME_BYTES_MAX });
    }
    let bad = |c: char| c == '/' || c.is_control();
    if name == "." || name == ".." || name.trim() != name || name.contains(bad) {
        return Err(NameError::Forbidden { name: name.to_owned() });
    }
    Ok(())
}

macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Tells whether it may be given to something new. Not asked of records: an object that
            /// has such a name keeps it.
            ///
            /// # Errors
            /// [`NameError::Separator`]: it would read like a snapshot of another dataset, or could
            /// not be named at all.
            pub fn may_be_given(&self) -> Result<(), NameError> {
                match self.0.contains('@') {
                    true => Err(NameError::Separator { name: self.0.clone() }),
                    false => Ok(()),
                }
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                check(name)?;
                Ok(Self(name.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                check(&name)?;
                Ok(Self(name))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_name! {
    /// A dataset's name, unique in its pool: 1 to 128 bytes of UTF-8.
    DatasetName
}
text_name! {
    /// A snapshot's name, unique in its dataset: 1 to 128 bytes of UTF-8.
    SnapshotName
}

/// The name of a directory entry: 1 to 255 bytes, any bytes but '/' and NUL, never `.` or `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct EntryName(Box<[u8]>);

impl EntryName {
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name of a numbered backup of it: `NAME.~N`.
    ///
    /// # Errors
    /// [`NameError::TooLong`].
    pub fn backup(&self, n: u32) -> Result<Self, NameError> {
        let name = [&self.0, format!(".~{n}").as_bytes()].concat();
        Self::try_from(name.as_slice())
    }
}

impl TryFrom<&[u8]> for EntryName {
    type Error = NameError;
    fn try_from(name: &[u8]) -> Result<Self, NameError> {
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name.len() > ENTRY_BYTES_MAX {
            return Err(NameError::TooLong { len: name.len(), max: ENTRY_BYTES_MAX });
        }
        if name == b"." || name == b".." || name.iter().any(|b| *b == 0 || *b == b'/') {
            return Err(NameError::Forbidden { name: String::from_utf8_lossy(name).into_owned() });
        }
        Ok(Self(name.into()))
    }
}

impl TryFrom<Vec<u8>> for EntryName {
    type Error = NameError;
    fn try_from(name: Vec<u8>) -> Result<Self, NameError> {
        Self::try_from(name.as_slice())
    }
}

impl From<EntryName> for Vec<u8> {
    fn from(name: EntryName) -> Vec<u8> {
        name.0.into_vec()
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_limits() {
        assert!("a".parse::<DatasetName>().is_ok());
        assert!("x".repeat(128).parse::<DatasetName>().is_ok());
        assert_eq!(
            "x".repeat(129).parse::<DatasetName>(),
            Err(NameError::TooLong { len: 129, max: 128 })
        );
        for bad in ["", ".", "..", "a/b", "a\nb", " a", "a "] {
            assert!(bad.parse::<SnapshotName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_separates_names_is_in_no_new_one() {
        let stored: DatasetName = "web@trial".parse().unwrap();
        assert_eq!(stored.may_be_given(), Err(NameError::Separator { name: "web@trial".into() }));
        assert!("a@b".parse::<SnapshotName>().unwrap().may_be_given().is_err());
        assert_eq!("web".parse::<DatasetName>().unwrap().may_be_given(), Ok(()));
    }

    #[test]
    fn entry_names_are_bytes() {
        assert!(EntryName::try_from(&[0xff, b' ', b'\n'][..]).is_ok());
        assert!(EntryName::try_from(&[b'x'; 255][..]).is_ok());
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
            assert!(EntryName::try_from(bad).is_err());
        }
    }
}
