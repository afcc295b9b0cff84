//! A running server as the source of what commands print.

use super::args::ServerArgs;
use super::exit::Wrong;
use crate::admin::grpc::proto;
use crate::admin::{Client, ClientError, RootName};
use crate::control::browse::split_snapshot;
use crate::fs::api::FileKind;
use crate::types::{Class, Classify, Timestamp};
use anyhow::Context;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// The environment variable with a token.
const TOKEN_VARIABLE: &str = "ZEROFS_TOKEN";
/// The largest file of a token or of certificates, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Waits between the attempts of a read that the server had no room for.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Attempts, which last about half a minute.
const ATTEMPTS_MAX: u32 = 20;

/// A connected server, and the pool of it that the command is about.
pub struct Remote {
    pub client: Client,
    /// Its name in the server's configuration; empty: the default one.
    pub pool: String,
}

/// The object that a `DATASET` or `DATASET@SNAPSHOT` names.
pub enum Named {
    Dataset(Box<proto::Dataset>),
    Snapshot { dataset: String, snapshot: String },
}

impl Remote {
    pub async fn connect(
        endpoint: &str,
        args: &ServerArgs,
        pool: Option<&str>,
    ) -> anyhow::Result<Self> {
        let token = token(args)?;
        let authorities =
            args.ca_file.as_deref().map(|file| bounded(file, "--ca-file")).transpose()?;
        let connected =
            Client::connect_trusting(endpoint, token.as_deref(), authorities.as_deref()).await;
        Ok(Self { client: connected?, pool: pool.unwrap_or_default().to_owned() })
    }

    /// `DATASET@SNAPSHOT` or `DATASET`. A dataset of the whole name, such as a writable snapshot,
    /// comes first. A token for some datasets does not say whether there is one.
    pub async fn named(&self, text: &str) -> anyhow::Result<Named> {
        let dataset = patiently(async || self.client.dataset(&self.pool, text).await).await;
        match (dataset, split_snapshot(text)) {
            (Err(error), Some((dataset, snapshot)))
                if matches!(error.class(), Class::NotFound | Class::Denied) =>
            {
                let (dataset, snapshot) = (dataset.to_owned(), snapshot.to_owned());
                Ok(Named::Snapshot { dataset, snapshot })
            }
            (found, _) => Ok(Named::Dataset(Box::new(found?))),
        }
    }

    /// The name of a dataset that exists; without one, of the default dataset.
    pub async fn live_or_default(&self, name: Option<&str>) -> anyhow::Result<String> {
        let name = name.unwrap_or_default();
        let found = patiently(async || self.client.dataset(&self.pool, name).await).await;
        Ok(found?.name)
    }

    /// The state that a text names now: `DATASET@SNAPSHOT` of either kind, or `DATASET`. Calls that
    /// name it are refused once another one has its name.
    pub async fn root(&self, text: &str) -> anyhow::Result<RootName> {
        let pool = self.pool.clone();
        Ok(match self.named(text).await? {
            Named::Dataset(found) => {
                let (dataset, handle) = (found.name, found.handle);
                RootName { pool, dataset, snapshot: String::new(), handle }
            }
            Named::Snapshot { dataset, snapshot } => {
                let found =
                    patiently(async || self.client.snapshot(&pool, &dataset, &snapshot).await);
                let handle = found.await?.handle;
                RootName { pool, dataset, snapshot, handle }
            }
        })
    }
}

/// The token: from the file, or the environment. Never an argument, which everybody may list.
fn token(args: &ServerArgs) -> anyhow::Result<Option<String>> {
    let text = match &args.token_file {
        Some(file) => {
            let text = String::from_utf8(bounded(file, "--token-file")?);
            text.map_err(|_| {
                let why = format!("--token-file {}: not text", file.display());
                Wrong::new(Class::Invalid, why)
            })?
        }
        None => std::env::var(TOKEN_VARIABLE).unwrap_or_default(),
    };
    let first = text.lines().next().unwrap_or_default().trim().to_owned();
    match (&args.token_file, first.is_empty()) {
        (Some(file), true) => {
            let why = format!("--token-file {}: its first line is empty", file.display());
            Err(Wrong::new(Class::Invalid, why))
        }
        (None, true) => Ok(None),
        (_, false) => Ok(Some(first)),
    }
}

fn bounded(file: &Path, option: &str) -> anyhow::Result<Vec<u8>> {
    let reading = || format!("{option} {}", file.display());
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).with_context(reading)?;
    opened.take(FILE_BYTES_MAX).read_to_end(&mut bytes).with_context(reading)?;
    Ok(bytes)
}

/// An error that may say that the server has no room: too many requests a second, or too much in
/// progress at once.
pub trait MaybeBusy {
    fn is_busy(&self) -> bool;
}

impl MaybeBusy for ClientError {
    fn is_busy(&self) -> bool {
        self.class() == Class::Exhausted
    }
}

/// Repeats a read while the server says that it has no room. Every read of a command through a
/// server goes by this.
pub async fn patiently<T, E: MaybeBusy>(
    mut read: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut wait = FIRST_WAIT;
    for _ in 1..ATTEMPTS_MAX {
        match read().await {
            Err(error) if error.is_busy() => tokio::time::sleep(wait).await,
            answer => return answer,
        }
        wait = LONGEST_WAIT.min(wait * 2);
    }
    read().await
}

/// A point in time; the epoch where there is none.
pub fn time(at: Option<prost_types::Timestamp>) -> Timestamp {
    let at = at.unwrap_or_default();
    Timestamp::from_parts(at.seconds, u32::try_from(at.nanos).unwrap_or(0))
}

/// # Errors
/// For a kind that this version does not know.
pub fn kind(kind: proto::Kind) -> anyhow::Result<FileKind> {
    Ok(match kind {
        proto::Kind::File => FileKind::Regular,
        proto::Kind::Folder => FileKind::Directory,
        proto::Kind::Symlink => FileKind::Symlink,
        proto::Kind::BlockDevice => FileKind::BlockDevice,
        proto::Kind::CharacterDevice => FileKind::CharDevice,
        proto::Kind::Fifo => FileKind::Fifo,
        proto::Kind::Socket => FileKind::Socket,
        proto::Kind::Unspecified => {
            let why = "the server has a kind of object that this program does not know: use one of \
                       the server's version";
            return Err(Wrong::new(Class::Unsupported, why));
        }
    })
}

/// A text that is there.
pub fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    #[tokio::test(start_paused = true)]
    async fn a_busy_server_is_asked_again_and_a_refusal_is_not() {
        let mut left = 3;
        let answer = patiently(async || {
            left -= 1;
            match left {
                0 => Ok("done"),
                _ => Err(ClientError::from(Status::resource_exhausted("slow down"))),
            }
        });
        assert_eq!(answer.await.unwrap(), "done");
        let mut asked = 0;
        let refused = patiently(async || {
            asked += 1;
            Err::<(), _>(ClientError::from(Status::not_found("x")))
        });
        assert_eq!(refused.await.unwrap_err().class(), Class::NotFound);
        let busy = patiently(async || {
            asked += 1;
            Err::<(), _>(ClientError::from(Status::resource_exhausted("slow down")))
        });
        assert_eq!(busy.await.unwrap_err().class(), Class::Exhausted);
        assert_eq!(asked, 1 + ATTEMPTS_MAX);
    }
}
