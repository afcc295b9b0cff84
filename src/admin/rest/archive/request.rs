//! The request for an archive: what goes into it, and under which names.

use super::pack::{Format, Packing};
use crate::admin::access::Authenticated;
use crate::admin::auth::Action;
use crate::admin::rest::ask::{PathParams, Query, absolute};
use crate::admin::rest::files::{object, open};
use crate::admin::rest::send::{Sending, attachment};
use crate::admin::rest::{Problem, Rest};
use crate::admin::state::audited;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};

/// Most paths of one archive.
const PATHS_MAX: usize = 1000;

/// Files and folders as one archive
///
/// Sent while it is made; its length is not known before. Devices and sockets are left out. An
/// archive that cannot be completed breaks off.
#[utoipa::path(
    get, path = "/pools/{pool}/datasets/{dataset}/archive", tag = "files",
    params(
        ("pool" = String, Path, example = "main"), ("dataset" = String, Path, example = "web"),
        ("format" = String, Query, example = "tar", description = "`zip` or `tar`"),
        ("path" = Vec<String>, Query, description = "Absolute; may be repeated"),
        ("snapshot" = Option<String>, Query)
    ),
    responses((status = 200, description = "The archive", content(
        ("application/zip"), ("application/x-tar")
    )))
)]
pub async fn get(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, dataset)): PathParams<(String, String)>,
    query: Query,
    method: Method,
) -> Result<Response, Problem> {
    query.only(&["format", "path", "snapshot"])?;
    let format = match query.text("format")? {
        Some("zip") => Format::Zip,
        Some("tar") => Format::Tar,
        _ => return Err(Problem::invalid("parameter format is zip or tar")),
    };
    let paths = paths(&query)?;
    let root = open(&rest, &known, Action::Read, (&pool, &dataset), &query).await?;
    let mut tops = Vec::with_capacity(paths.len());
    for path in &paths {
        tops.push(root.stat(path).await?);
    }
    let name = archive_name(&dataset, &paths, format);
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        let object = match paths.as_slice() {
            [only] => object(&pool, &dataset, &query, only)?,
            [first, ..] => {
                let more = paths.len() - 1;
                format!("{} and {more} more", object(&pool, &dataset, &query, first)?)
            }
            [] => object(&pool, &dataset, &query, b"/")?,
        };
        let log = audited(&known, Action::Read, "archive", object);
        let place = rest.admin.access.limits.downloads.take(&known.caller)?;
        let skip = common_folder(&paths);
        let packing = Packing { root, tops, skip, format };
        Body::from_stream(Sending::unbounded(packing.start(), log, place))
    };
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    if let Ok(disposition) = HeaderValue::try_from(attachment(&name)) {
        headers.insert(header::CONTENT_DISPOSITION, disposition);
    }
    Ok(response)
}

/// The paths that were asked for, without those that are inside of others.
fn paths(query: &Query) -> Result<Vec<Vec<u8>>, Problem> {
    let asked = query.all("path");
    if asked.is_empty() || asked.len() > PATHS_MAX {
        return Err(Problem::invalid(format!("give parameter path 1 to {PATHS_MAX} times")));
    }
    let mut paths = Vec::with_capacity(asked.len());
    for path in asked {
        paths.push(absolute(path)?.to_vec());
    }
    paths.sort();
    paths.dedup();
    let all = paths.clone();
    let is_inside = |path: &[u8], folder: &[u8]| {
        path != folder
            && path
                .strip_prefix(folder)
                .is_some_and(|rest| folder == b"/" || rest.starts_with(b"/"))
    };
    paths.retain(|path| !all.iter().any(|folder| is_inside(path, folder)));
    Ok(paths)
}

/// The folder that all paths are in: names in the archive begin below it.
fn common_folder(paths: &[Vec<u8>]) -> usize {
    let parent = |path: &[u8]| path.iter().rposition(|byte| *byte == b'/').unwrap_or(0) + 1;
    let Some(first) = paths.first() else { return 1 };
    let mut common = &first[..parent(first)];
    for path in paths {
        while !path.starts_with(common) {
            let shorter = &common[..common.len().saturating_sub(1)];
            common = &common[..parent(shorter).min(shorter.len())];
            if common.is_empty() {
                return 1;
            }
        }
    }
    common.len()
}

/// The name of the one object, or of the dataset.
fn archive_name(dataset: &str, paths: &[Vec<u8>], format: Format) -> Vec<u8> {
    let of_path = match paths {
        [only] => only.rsplit(|byte| *byte == b'/').next().unwrap_or_default(),
        _ => b"",
    };
    let stem = if of_path.is_empty() { dataset.as_bytes() } else { of_path };
    [stem, b".", format.as_str().as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(paths: &[&str]) -> Vec<Vec<u8>> {
        paths.iter().map(|path| path.as_bytes().to_vec()).collect()
    }

    #[test]
    fn names_begin_below_the_folder_that_all_are_in() {
        for (paths, common) in [
            (&["/"][..], "/"),
            (&["/a"], "/"),
            (&["/a/b"], "/a/"),
            (&["/a/b", "/a/c"], "/a/"),
            (&["/a/b/x", "/a/c/y"], "/a/"),
            (&["/a/b", "/c"], "/"),
            (&["/ab/x", "/ac/x"], "/"),
            (&["/a/b/c/d", "/a/b/e"], "/a/b/"),
        ] {
            assert_eq!(common_folder(&owned(paths)), common.len(), "{paths:?}");
        }
    }

    #[test]
    fn an_archive_is_named_after_what_is_in_it() {
        for (paths, name) in
            [(&["/"][..], "home.zip"), (&["/a/b.txt"], "b.txt.zip"), (&["/a", "/b"], "home.zip")]
        {
            assert_eq!(archive_name("home", &owned(paths), Format::Zip), name.as_bytes());
        }
    }
}
