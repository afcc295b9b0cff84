//! The URL of a pool.

use super::BucketError;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use url::Url;

/// The longest pool URL, in bytes: S3 keys have at most 1,024, and ours add at most 200 to the
/// prefix.
const URL_BYTES_MAX: usize = 800;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Location {
    S3 {
        bucket: String,
    },
    Gcs {
        bucket: String,
    },
    Azure {
        container: String,
    },
    Folder {
        path: PathBuf,
    },
    /// Shared by all users of the name in this process.
    Memory {
        name: String,
    },
}

/// A pool's URL: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`,
/// `file:///folder` or `memory:///name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PoolUrl {
    text: String,
    location: Location,
    prefix: Path,
}

impl PoolUrl {
    pub(super) fn location(&self) -> &Location {
        &self.location
    }

    /// The prefix of all keys of the pool; empty for a folder, which is the pool.
    pub fn prefix(&self) -> &Path {
        &self.prefix
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn is_remote(&self) -> bool {
        match self.location {
            Location::S3 { .. } | Location::Gcs { .. } | Location::Azure { .. } => true,
            Location::Folder { .. } | Location::Memory { .. } => false,
        }
    }

    /// The folder of a pool on a local file system.
    pub fn folder(&self) -> Option<&std::path::Path> {
        match &self.location {
            Location::Folder { path } => Some(path),
            _ => None,
        }
    }
}

impl fmt::Display for PoolUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for PoolUrl {
    type Err = BucketError;

    fn from_str(text: &str) -> Result<Self, BucketError> {
        // The quoted part is bounded and holds no secret: a URL with a user's password is
        // refused before it is quoted.
        let quoted = || {
            text.split_once('@')
                .map_or(text, |(_, after)| after)
                .chars()
                .take(200)
                .collect::<String>()
        };
        let bad = |why: &str| BucketError::Url { url: quoted(), why: why.to_owned() };
        const FORMS: &str = "a pool's URL is s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, \
            az://CONTAINER/PREFIX, file:///FOLDER or memory:///NAME";
        if text.len() > URL_BYTES_MAX {
            return Err(bad(&format!("longer than {URL_BYTES_MAX} bytes")));
        }
        // A URL's parser would silently drop or resolve these, but keys are below the prefix
        // exactly as given.
        if text.chars().any(|c| c.is_ascii_control()) || text.trim() != text {
            return Err(bad(
                "spaces around it, or control characters in it: write a space inside a prefix as \
                 %20",
            ));
        }
        if text.split('/').any(|part| {
            matches!(part.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..")
        }) {
            return Err(bad("a prefix cannot have a part . or .."));
        }
        let url = Url::parse(text).map_err(|e| bad(&format!("not a URL ({e}): {FORMS}")))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad(
                "credentials do not belong in the URL: give them in the environment, the \
                 configuration or a Secret",
            ));
        }
        if url.query().is_some() || url.fragment().is_some() || url.port().is_some() {
            return Err(bad(
                "a pool's URL has no port, '?' or '#': endpoint, region and the like are options \
                 beside it",
            ));
        }
        let prefix = || Path::from_url_path(url.path()).map_err(|e| bad(&e.to_string()));
        let host = || match url.host_str() {
            Some(host) if !host.is_empty() => Ok(host.to_owned()),
            _ => Err(bad("the bucket's name is missing")),
        };
        let local = || match url.host_str() {
            None | Some("") => Ok(()),
            Some(_) => Err(bad("write three slashes: a local URL has no host")),
        };
        let (location, prefix) = match url.scheme() {
            "s3" => (Location::S3 { bucket: host()? }, prefix()?),
            "gs" => (Location::Gcs { bucket: host()? }, prefix()?),
            "az" => (Location::Azure { container: host()? }, prefix()?),
            "file" => {
                local()?;
                let path = url.to_file_path().map_err(|()| bad("not an absolute path"))?;
                if path.parent().is_none() {
                    return Err(bad("the root directory cannot be a pool"));
                }
                (Location::Folder { path }, Path::default())
            }
            "memory" => {
                local()?;
                (Location::Memory { name: prefix()?.to_string() }, Path::default())
            }
            other => return Err(bad(&format!("unknown scheme {other:?}: {FORMS}"))),
        };
        Ok(Self { text: text.to_owned(), location, prefix })
    }
}

impl TryFrom<String> for PoolUrl {
    type Error = BucketError;
    fn try_from(text: String) -> Result<Self, BucketError> {
        text.parse()
    }
}

impl From<PoolUrl> for String {
    fn from(url: PoolUrl) -> String {
        url.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_store_has_its_form() {
        let s3: PoolUrl = "s3://b/a/p".parse().unwrap();
        assert_eq!(
            (s3.location(), s3.prefix().as_ref()),
            (&Location::S3 { bucket: "b".into() }, "a/p")
        );
        assert_eq!("gs://b".parse::<PoolUrl>().unwrap().prefix().as_ref(), "");
        assert!(matches!(
            "az://c/p/".parse::<PoolUrl>().unwrap().location(),
            Location::Azure { .. }
        ));
        let folder: PoolUrl = "file:///tmp/a%20b".parse().unwrap();
        assert_eq!(folder.folder().unwrap(), std::path::Path::new("/tmp/a b"));
        let memory: PoolUrl = "memory:///x".parse().unwrap();
        assert!(matches!(memory.location(), Location::Memory { name } if name == "x"));
    }

    #[test]
    fn a_prefix_is_what_was_given() {
        for (url, prefix) in [
            ("s3://b/team~one/p", "team~one/p"),
            ("s3://b/größe", "größe"),
            ("s3://b/a[1]", "a[1]"),
            ("s3://b/a b", "a b"),
            ("s3://b/a%20b", "a b"),
            ("s3://b/100%25", "100%"),
            ("s3://b/a+b&c=d", "a+b&c=d"),
        ] {
            assert_eq!(url.parse::<PoolUrl>().unwrap().prefix().as_ref(), prefix, "{url}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (url, why) in [
            ("", "not a URL"),
            ("/tmp/pool", "not a URL"),
            ("ftp://x/y", "unknown scheme"),
            ("s3:///p", "bucket's name is missing"),
            ("file://tmp/pool", "three slashes"),
            ("file:///", "root directory"),
            ("s3://b/p?region=x", "no port"),
            ("s3://b:9000/p", "no port"),
            ("s3://b/a//b", "empty"),
            ("s3://b/a/../p", "part . or .."),
            ("s3://b/a/%2E/p", "part . or .."),
            ("s3://b/p ", "spaces around"),
            ("s3://b/a\tb", "control"),
            ("s3://b/a%0Ab", "illegal"),
        ] {
            let error = url.parse::<PoolUrl>().unwrap_err().to_string();
            assert!(error.to_lowercase().contains(&why.to_lowercase()), "{url}: {error}");
        }
        let long = format!("s3://b/{}", "x".repeat(5000)).parse::<PoolUrl>().unwrap_err();
        assert!(long.to_string().len() < 400);
    }

    #[test]
    fn a_password_is_not_quoted_back() {
        let error = "s3://key:hunter2@b/p".parse::<PoolUrl>().unwrap_err().to_string();
        assert!(!error.contains("hunter2") && error.contains("credentials"), "{error}");
    }
}
