//! The file of grants (`admin.tokensFile`): who may come in by a token or certificate, and with
//! which role.
//!
//! ```yaml
//! tokens:
//!   - name: nightly-report
//!     hash: blake3:HEX            # of the token, as `zerofs-csi token create` prints it
//!     role: reader
//!     datasets: ["main/*"]        # POOL/DATASET; all, if left out
//!     expires: 2027-01-31T00:00:00Z
//!   - name: operations
//!     certificate: sha256:HEX     # the fingerprint of a client's certificate
//!     role: admin
//! ```
//! The file is read again when it changes. A file that cannot be read or understood grants nothing
//! until it can: an old grant may be the very one that was taken out.

use super::{Caller, Identified, Role, Secret, secret};
use parking_lot::Mutex;
use serde::Deserialize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// The largest file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most grants of a file: each request with a token is compared with all of them.
const GRANTS_MAX: usize = 1000;
/// The longest name of a grant, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// A change of the file is noticed after this long at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Bits of the file's mode by which others could grant themselves anything.
const WRITABLE_BY_OTHERS: u32 = 0o022;

#[derive(Clone, Debug, thiserror::Error)]
#[error("tokens file {path}: {why}")]
pub struct TokenFileError {
    path: PathBuf,
    why: String,
}

/// One line of the file: an identity, and what it may do.
#[derive(Clone, Debug)]
pub struct Grant {
    pub name: String,
    pub role: Role,
    /// Patterns of `POOL/DATASET`.
    datasets: Vec<String>,
    expires: Option<SystemTime>,
    identity: Identity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    Token(blake3::Hash),
    Certificate([u8; 32]),
}

impl Grant {
    /// Returns whether it holds for a dataset. Without patterns it holds for all.
    pub fn covers(&self, pool: &str, dataset: &str) -> bool {
        let name = format!("{pool}/{dataset}");
        self.datasets.is_empty() || self.datasets.iter().any(|pattern| matches(pattern, &name))
    }

    /// Returns whether it holds for some dataset of a pool.
    pub fn touches(&self, pool: &str) -> bool {
        let of_pool = |pattern: &String| {
            pattern.split_once('/').is_some_and(|(pools, _)| matches(pools, pool))
                || !pattern.contains('/')
        };
        self.datasets.is_empty() || self.datasets.iter().any(of_pool)
    }

    /// Returns whether it holds for everything.
    pub fn covers_all(&self) -> bool {
        self.datasets.is_empty()
    }

    fn is_in_force(&self, now: SystemTime) -> bool {
        self.expires.is_none_or(|end| now < end)
    }
}

/// `*` stands for any characters, `?` for one.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    #[serde(default)]
    tokens: Vec<WrittenGrant>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenGrant {
    name: String,
    #[serde(default)]
    hash: Option<String>,
    #[serde(default)]
    certificate: Option<String>,
    role: Role,
    #[serde(default)]
    datasets: Vec<String>,
    #[serde(default)]
    expires: Option<String>,
}

impl WrittenGrant {
    fn read(self) -> Result<Grant, String> {
        let Self { name, hash, certificate, role, datasets, expires } = self;
        let wrong = |why: String| format!("token {name:?}: {why}");
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(char::is_control) {
            return Err(wrong(format!("a name has 1 to {NAME_BYTES_MAX} printable bytes")));
        }
        let identity = match (hash, certificate) {
            (Some(hash), None) => {
                let digest =
                    hash.strip_prefix("blake3:").and_then(|hex| blake3::Hash::from_hex(hex).ok());
                let why = "hash: write blake3: and 64 hexadecimal digits, as `zerofs-csi token \
                    create` prints it";
                Identity::Token(digest.ok_or_else(|| wrong(why.to_owned()))?)
            }
            (None, Some(print)) => Identity::Certificate(fingerprint(&print).map_err(wrong)?),
            _ => return Err(wrong("give either hash or certificate".to_owned())),
        };
        if let Some(pattern) = datasets.iter().find(|pattern| pattern.split('/').count() != 2) {
            return Err(wrong(format!("datasets: {pattern:?} is not of the form POOL/DATASET")));
        }
        let expires = expires.map(|text| {
            humantime::parse_rfc3339_weak(&text).map_err(|_| {
                wrong(format!("expires: {text:?} is not a time like 2027-01-31T00:00:00Z"))
            })
        });
        Ok(Grant { name: name.clone(), role, datasets, expires: expires.transpose()?, identity })
    }
}

fn fingerprint(text: &str) -> Result<[u8; 32], String> {
    // As `openssl x509 -fingerprint -sha256` prints it, too.
    let hex = text.strip_prefix("sha256:").map(|hex| hex.replace(':', "").to_lowercase());
    let bytes = hex.and_then(|hex| data_encoding::HEXLOWER.decode(hex.as_bytes()).ok());
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| "certificate: write sha256: and 64 hexadecimal digits".to_owned())
}

fn parse(text: &str) -> Result<Vec<Grant>, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    let written: Written =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
    if written.tokens.len() > GRANTS_MAX {
        return Err(format!("{} tokens are too many: at most {GRANTS_MAX}", written.tokens.len()));
    }
    let grants =
        written.tokens.into_iter().map(WrittenGrant::read).collect::<Result<Vec<_>, _>>()?;
    for (n, grant) in grants.iter().enumerate() {
        let others = &grants[n + 1..];
        if others.iter().any(|other| other.name == grant.name) {
            return Err(format!("two tokens have the name {:?}: give each its own", grant.name));
        }
        if others.iter().any(|other| other.identity == grant.identity) {
            return Err(format!("token {:?}: another one has the same secret", grant.name));
        }
    }
    Ok(grants)
}

/// The lines of the file for a new token.
///
/// # Errors
/// As for a line of the file: the reason why it cannot be used.
pub fn new_line(
    name: &str,
    role: Role,
    datasets: &[String],
    expires: Option<SystemTime>,
    secret: &Secret,
) -> Result<String, String> {
    let quoted = |text: &str| format!("{text:?}");
    let mut line = format!("  - name: {}\n", quoted(name));
    line += &format!("    hash: blake3:{}\n    role: {role}\n", secret.hash());
    if !datasets.is_empty() {
        let datasets: Vec<String> = datasets.iter().map(|pattern| quoted(pattern)).collect();
        line += &format!("    datasets: [{}]\n", datasets.join(", "));
    }
    if let Some(expires) = expires {
        line += &format!("    expires: {}\n", humantime::format_rfc3339_seconds(expires));
    }
    parse(&format!("tokens:\n{line}"))?;
    Ok(line)
}

/// Identifies one state of the file.
type Stamp = (u64, u64, i64, i64, i64);

struct Read {
    stamp: Option<Stamp>,
    looked: Option<Instant>,
    grants: Arc<Vec<Grant>>,
    /// The last mistake, so that it is logged once.
    mistake: Option<String>,
}

/// The file, read again when it changes.
pub struct TokenFile {
    path: Option<PathBuf>,
    read: Mutex<Read>,
}

impl TokenFile {
    /// `None`: there is no such file, and nobody comes in by a token.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn open(path: Option<&Path>) -> Result<Self, TokenFileError> {
        let none = Read { stamp: None, looked: None, grants: Arc::default(), mistake: None };
        let file = Self { path: path.map(Path::to_owned), read: Mutex::new(none) };
        file.grants();
        let mistake = file.read.lock().mistake.clone();
        match (mistake, path) {
            (Some(why), Some(path)) => Err(TokenFileError { path: path.to_owned(), why }),
            _ => Ok(file),
        }
    }

    /// The grants as the file has them now.
    fn grants(&self) -> Arc<Vec<Grant>> {
        let Some(path) = &self.path else { return Arc::default() };
        let mut read = self.read.lock();
        if read.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return read.grants.clone();
        }
        read.looked = Some(Instant::now());
        let (stamp, grants) = load(path, read.stamp);
        match grants {
            None => {}
            Some(Ok(grants)) => {
                if read.stamp.is_some() || read.mistake.is_some() {
                    let tokens = grants.len();
                    tracing::info!(path = %path.display(), tokens, "read the tokens file again");
                }
                (read.grants, read.mistake) = (Arc::new(grants), None);
            }
            Some(Err(why)) => {
                if read.mistake.as_ref() != Some(&why) {
                    tracing::error!(
                        path = %path.display(), why,
                        "the tokens file is not usable: no token is accepted until it is corrected"
                    );
                }
                (read.grants, read.mistake) = (Arc::default(), Some(why));
            }
        }
        read.stamp = stamp;
        read.grants.clone()
    }

    /// Identifies the caller that presents a token.
    pub fn by_token(&self, text: &str) -> Option<Caller> {
        let hash = secret::presented(text)?;
        let grant = self.find(Identity::Token(hash))?;
        Some(Caller { name: grant.name, how: Identified::Token(hash) })
    }

    /// Identifies the caller that has presented this certificate, and proved that it has its key.
    pub fn by_certificate(&self, sha256: [u8; 32]) -> Option<Caller> {
        let grant = self.find(Identity::Certificate(sha256))?;
        Some(Caller { name: grant.name, how: Identified::Certificate(sha256) })
    }

    /// The grant of a caller, while it is in force.
    pub fn grant(&self, caller: &Caller) -> Option<Grant> {
        let grant = match caller.how {
            Identified::Token(hash) => self.find(Identity::Token(hash)),
            Identified::Certificate(sha256) => self.find(Identity::Certificate(sha256)),
            Identified::Peer { .. } | Identified::Printed => None,
        };
        grant.filter(|grant| grant.name == caller.name)
    }

    /// Compares with every grant, each in constant time.
    fn find(&self, wanted: Identity) -> Option<Grant> {
        let now = SystemTime::now();
        let grants = self.grants();
        let mut found = None;
        for grant in grants.iter() {
            let is_it = grant.identity == wanted;
            if is_it && grant.is_in_force(now) {
                found = Some(grant.clone());
            }
        }
        found
    }
}

/// Reads the file if it is not in the state that was read last.
fn load(path: &Path, last: Option<Stamp>) -> (Option<Stamp>, Option<Result<Vec<Grant>, String>>) {
    let read = || -> Result<_, String> {
        let about = std::fs::metadata(path).map_err(|error| error.to_string())?;
        let stamp =
            (about.ino(), about.len(), about.mtime(), about.mtime_nsec(), about.ctime_nsec());
        if Some(stamp) == last {
            return Ok((stamp, None));
        }
        if about.mode() & WRITABLE_BY_OTHERS != 0 {
            return Err("others may write to it: `chmod go-w` it".to_owned());
        }
        if about.len() > FILE_BYTES_MAX {
            return Err(format!("{} bytes are too many: at most {FILE_BYTES_MAX}", about.len()));
        }
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        Ok((stamp, Some(parse(&text)?)))
    };
    match read() {
        Ok((stamp, grants)) => (Some(stamp), grants.map(Ok)),
        Err(why) => (None, Some(Err(why))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Secret;
    use super::*;

    fn line(name: &str, secret: &Secret, rest: &str) -> String {
        format!("  - {{ name: {name}, hash: 'blake3:{}', role: reader{rest} }}\n", secret.hash())
    }

    #[test]
    fn patterns_match_names() {
        for (pattern, name, fits) in [
            ("main/home", "main/home", true),
            ("main/*", "main/home@s1", true),
            ("*/home", "main/home", true),
            ("main/h?me", "main/home", true),
            ("main/*e", "main/home", true),
            ("main/*x*", "main/home", false),
            ("main/home", "main/home2", false),
            ("*", "main/home", true),
            ("", "main/home", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn a_token_is_found_until_it_expires_or_goes() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("tokens.yaml");
        let (lasting, old, other) = (Secret::random(), Secret::random(), Secret::random());
        let text = format!(
            "tokens:\n{}{}",
            line("a", &lasting, ", datasets: ['main/*'], expires: 2200-01-01T00:00:00Z"),
            line("b", &old, ", expires: 2020-01-01T00:00:00Z")
        );
        std::fs::write(&path, text).unwrap();
        let file = TokenFile::open(Some(&path)).unwrap();
        let caller = file.by_token(lasting.reveal()).unwrap();
        assert_eq!(caller.name, "a");
        assert!(file.by_token(old.reveal()).is_none(), "expired");
        assert!(file.by_token(other.reveal()).is_none(), "foreign");
        let grant = file.grant(&caller).unwrap();
        assert!(grant.covers("main", "x") && !grant.covers("other", "x"));
        assert!(grant.touches("main") && !grant.touches("other"));
        for unusable in ["tokens: []\n", "tokens: [{ name: a }]\n"] {
            std::fs::write(&path, unusable).unwrap();
            file.read.lock().looked = None;
            assert!(file.grant(&caller).is_none() && file.by_token(lasting.reveal()).is_none());
        }
        std::fs::remove_file(&path).unwrap();
        file.read.lock().looked = None;
        assert!(file.grant(&caller).is_none());
    }

    #[test]
    fn mistakes_are_named() {
        let hash = format!("hash: 'blake3:{}'", Secret::random().hash());
        for (text, named) in [
            ("tokens: [{ name: a, role: king, hash: x }]".to_owned(), "king"),
            ("tokens: [{ name: a, role: admin, hash: x }]".to_owned(), "64 hexadecimal digits"),
            ("tokens: [{ name: a, role: admin }]".to_owned(), "either hash or certificate"),
            (
                format!("tokens: [{{ name: a, role: admin, {hash}, datasets: [x] }}]"),
                "POOL/DATASET",
            ),
            (format!("tokens: [{{ name: a, role: admin, {hash}, expires: soon }}]"), "soon"),
            (
                format!(
                    "tokens: [{{ name: a, role: admin, {hash} }}, {{ name: b, role: admin, {hash} }}]"
                ),
                "the same secret",
            ),
            ("token: []".to_owned(), "token"),
        ] {
            let why = parse(&text).unwrap_err();
            assert!(why.contains(named), "{text}: {why}");
        }
        let print = format!("sha256:{}", ["AB"; 32].join(":"));
        let text = format!("tokens: [{{ name: a, role: admin, certificate: '{print}' }}]");
        assert_eq!(parse(&text).unwrap()[0].identity, Identity::Certificate([0xab; 32]));
    }

    #[test]
    fn a_new_line_is_understood() {
        let (secret, end) = (Secret::random(), SystemTime::now() + Duration::from_secs(60));
        let datasets = ["main/*".to_owned(), "x/\"y\"".to_owned()];
        let line = new_line("a \"b\"", Role::Reader, &datasets, Some(end), &secret).unwrap();
        let grants = parse(&format!("tokens:\n{line}")).unwrap();
        assert_eq!((grants[0].name.as_str(), grants[0].role), ("a \"b\"", Role::Reader));
        assert_eq!(grants[0].datasets, datasets);
        assert!(grants[0].is_in_force(SystemTime::now()));
        assert!(new_line("a", Role::Reader, &["home".to_owned()], None, &secret).is_err());
        assert!(new_line("", Role::Reader, &[], None, &secret).is_err());
    }

    #[test]
    fn a_file_that_others_may_write_grants_nothing() {
        use std::os::unix::fs::PermissionsExt;
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("tokens.yaml");
        std::fs::write(&path, "tokens: []\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let error = TokenFile::open(Some(&path)).err().unwrap().to_string();
        assert!(error.contains("chmod go-w"), "{error}");
    }
}
