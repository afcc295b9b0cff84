//! `dataset history`: the versions of one path in all snapshots of its dataset, and now.

use super::args::HistoryArgs;
use super::exit::{Interrupted, Wrong};
use super::path;
use super::remote::{kind, patiently, time};
use super::report::{table, when};
use super::target::Target;
use crate::admin::grpc::proto;
use crate::app;
use crate::control::browse::PathVersion;
use crate::types::{ByteSize, Class, SnapshotName};
use serde::Serialize;
use std::os::unix::ffi::OsStrExt;

/// A version: what the path led to from one snapshot to another.
#[derive(Serialize)]
struct Version {
    /// The oldest snapshot that has it.
    first: String,
    /// The newest one; the dataset itself for what is there now.
    last: String,
    /// Number of snapshots that have it; the dataset itself counts as one.
    roots: u32,
    /// `None`: the path led to nothing.
    #[serde(flatten)]
    found: Option<Found>,
}

#[derive(Serialize)]
struct Found {
    kind: &'static str,
    size: u64,
    modified: String,
}

impl Version {
    fn of(dataset: &str, version: PathVersion) -> Self {
        let name = |snapshot: Option<SnapshotName>| match snapshot {
            Some(snapshot) => format!("{dataset}@{snapshot}"),
            None => dataset.to_owned(),
        };
        let found = version.found.map(|found| Found {
            kind: path::kind(found.kind),
            size: found.size,
            modified: when(found.mtime),
        });
        Self { first: name(version.first), last: name(version.last), roots: version.states, found }
    }

    /// As a server tells it.
    fn told(dataset: &str, version: &proto::Version) -> anyhow::Result<Self> {
        let name = |snapshot: &str| match snapshot {
            "" => dataset.to_owned(),
            snapshot => format!("{dataset}@{snapshot}"),
        };
        let found = match version.kind() {
            proto::Kind::Unspecified => None,
            it => Some(Found {
                kind: path::kind(kind(it)?),
                size: version.size,
                modified: when(time(version.modified)),
            }),
        };
        let (first, last) = (name(&version.first_snapshot), name(&version.last_snapshot));
        Ok(Self { first, last, roots: version.states, found })
    }
}

pub async fn run(args: HistoryArgs) -> anyhow::Result<()> {
    let Some((wanted, dataset)) = args.names.split_last() else {
        return Err(Wrong::new(Class::Invalid, "name a path"));
    };
    path::not_empty(wanted.as_bytes(), "use / for the root folder")?;
    let name = dataset.first().map(|name| {
        let utf8 = || Wrong::new(Class::Invalid, format!("dataset name {name:?}: not UTF-8"));
        name.to_str().ok_or_else(utf8)
    });
    let name = name.transpose()?;
    let stop = app::stop_signal()?;
    let from = args.common.place.target().await?;
    let finding = Box::pin(versions(&from, name, wanted.as_bytes()));
    let found = tokio::select! {
        biased;
        () = stop.cancelled() => Err(Interrupted::new("nothing was listed")),
        found = finding => found,
    };
    if let Target::Pool(opened) = &from {
        opened.browser.close().await;
    }
    args.common.output.print(&found?, |versions| text(versions))
}

async fn versions(
    from: &Target,
    dataset: Option<&str>,
    path: &[u8],
) -> anyhow::Result<Vec<Version>> {
    match from {
        Target::Pool(opened) => {
            let dataset = opened.browser.dataset_or_default(dataset).await?;
            let found = opened.browser.history(&dataset, path).await?;
            let name = dataset.name.as_str();
            Ok(found.into_iter().map(|version| Version::of(name, version)).collect())
        }
        Target::Server(remote) => {
            let name = remote.live_or_default(dataset).await?;
            let (client, pool) = (&remote.client, &remote.pool);
            let found = patiently(async || client.history(pool, &name, path).await).await?;
            found.iter().map(|version| Version::told(&name, version)).collect()
        }
    }
}

fn text(versions: &[Version]) -> String {
    let row = |version: &Version| {
        let (kind, size, modified) = match &version.found {
            Some(found) => (found.kind, ByteSize(found.size).to_string(), found.modified.clone()),
            None => ("deleted", "-".to_owned(), "-".to_owned()),
        };
        vec![modified, size, kind.to_owned(), version.first.clone(), version.last.clone()]
    };
    table(
        &["MODIFIED", "SIZE", "KIND", "FIRST IN", "LAST IN"],
        &versions.iter().map(row).collect::<Vec<_>>(),
    )
}
