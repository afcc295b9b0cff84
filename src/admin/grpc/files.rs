//! The service of files.

use super::super::auth::{Action, Resource};
use super::call::{Call, CallAdmission, RpcResult};
use super::datasets::failed;
use super::proto::files_server::Files;
use super::proto::read_file_response::Part;
use super::proto::*;
use super::streams::{Answers, answers, ended};
use super::{Services, convert};
use crate::catalog::State;
use crate::control::browse::{self, Browser, LIST_MAX, Pattern, VISITED_MAX, shown_path};
use crate::control::{ControlError, Replaced, RestoreInPlace};
use crate::fs::Difference as Found;
use crate::fs::api::FileKind;
use crate::rpc::status;
use crate::types::Incarnation;
use bytes::Bytes;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use prost::Message;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};

/// Entries of a page of callers who ask for no number.
const LIST_DEFAULT: usize = 1000;
/// Clients take answers of up to 4 MiB unless they say otherwise.
const ANSWER_BYTES_MAX: usize = 3 << 20;
/// Bytes of a file in one message. Pieces of 4 MiB are cut: with its fields' own bytes a message of
/// 4 MiB is more than clients take by default, and many small messages flow better than few large
/// ones.
const DATA_BYTES: usize = 1 << 20;
/// Differences or hits in one message.
const GROUP: usize = 500;
/// Hits of callers who ask for no number, …
const HITS_DEFAULT: usize = 10_000;
/// … and the most.
const HITS_MAX: usize = 100_000;
/// Paths of one restore.
const PATHS_MAX: usize = 1000;

/// A root that the caller may look into.
struct AllowedRoot {
    browser: Browser,
    root: browse::Root,
    /// For people: `POOL/DATASET@SNAPSHOT`.
    name: String,
}

impl Services {
    async fn root(
        &self,
        call: &Call,
        root: Option<Root>,
        action: Action,
    ) -> Result<AllowedRoot, Status> {
        let Root { pool, dataset, snapshot, handle } = root.unwrap_or_default();
        let browser = self.browser(&pool)?;
        let pool = browser.pool().name.clone();
        if snapshot.is_empty() {
            let dataset = self.dataset(call, &browser, &dataset, action).await?;
            let name = format!("{pool}/{}", dataset.name);
            let root = browse::Root::Head(dataset);
            same(&browser, &root, &handle, &name)?;
            return Ok(AllowedRoot { browser, root, name });
        }
        let of = match dataset.as_str() {
            "" => self.dataset(call, &browser, "", action).await?.name.to_string(),
            // A deleted dataset may still have snapshots.
            name => {
                self.admission.allow(call, action, &Resource::dataset(&pool, name)).await?;
                name.to_owned()
            }
        };
        let root = browser.root(&of, Some(&snapshot)).await.map_err(failed)?;
        let name = format!("{pool}/{of}@{snapshot}");
        same(&browser, &root, &handle, &name)?;
        Ok(AllowedRoot { browser, root, name })
    }
}

/// Refuses a root of another handle than the caller began with.
fn same(browser: &Browser, root: &browse::Root, handle: &str, name: &str) -> Result<(), Status> {
    if handle.is_empty() || browser.root_handle(root) == handle {
        return Ok(());
    }
    Err(Status::failed_precondition(format!(
        "{name} was deleted, and another one has its name now: begin again"
    )))
}

#[tonic::async_trait]
impl Files for Services {
    async fn stat(&self, request: Request<StatRequest>) -> RpcResult<Entry> {
        let call = CallAdmission::call(&request)?;
        let StatRequest { root, path } = request.into_inner();
        let at = self.root(&call, root, Action::List).await?;
        let open = at.browser.open(&at.root).await.map_err(failed)?;
        Ok(Response::new(convert::entry(open.stat(&path).await.map_err(failed)?)))
    }

    async fn list_directory(
        &self,
        request: Request<ListDirectoryRequest>,
    ) -> RpcResult<ListDirectoryResponse> {
        let call = CallAdmission::call(&request)?;
        let ListDirectoryRequest { root, path, page_size, page_token } = request.into_inner();
        let at = self.root(&call, root, Action::List).await?;
        let open = at.browser.open(&at.root).await.map_err(failed)?;
        let from = match page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(failed)?),
        };
        let mut size = match usize::try_from(page_size).unwrap_or(LIST_MAX) {
            0 => LIST_DEFAULT,
            size => size.min(LIST_MAX),
        };
        loop {
            let (entries, next) = open.list(&path, from, size).await.map_err(failed)?;
            let answer = ListDirectoryResponse {
                entries: entries.into_iter().map(convert::entry).collect(),
                next_page_token: next.map(|next| next.to_string()).unwrap_or_default(),
            };
            if size == 1 || answer.encoded_len() <= ANSWER_BYTES_MAX {
                return Ok(Response::new(answer));
            }
            size = answer.entries.len().div_ceil(2).max(1);
        }
    }

    type ReadFileStream = Answers<ReadFileResponse>;

    async fn read_file(
        &self,
        request: Request<ReadFileRequest>,
    ) -> RpcResult<Self::ReadFileStream> {
        let call = CallAdmission::call(&request)?;
        let ReadFileRequest { root, path, offset, length } = request.into_inner();
        let at = self.root(&call, root, Action::Read).await?;
        let object = format!("{}:{}", at.name, shown_path(&path));
        let audited = self.admission.audit(&call, Action::Read, "ReadFile", object);
        let downloads = &self.admission.access().limits.downloads;
        let download = downloads.take(call.caller()).map_err(|full| status(&full))?;
        let opened = async {
            let open = at.browser.open(&at.root).await?;
            let file = open.stat(&path).await?;
            if offset > file.size {
                return Err(ControlError::OutOfRange(format!(
                    "{} has {} bytes: byte {offset} is beyond its end",
                    shown_path(&file.path),
                    file.size
                )));
            }
            if file.kind != FileKind::Regular {
                let (path, kind) = (shown_path(&file.path), browse::kind_name(file.kind));
                return Err(ControlError::Invalid(format!("{path} is a {kind}, not a file")));
            }
            Ok((open, file))
        };
        let (open, file) = match opened.await {
            Ok(opened) => opened,
            Err(error) => {
                let failure = failed(error.clone());
                audited.failed(&error);
                return Err(failure);
            }
        };
        let end = length.map_or(u64::MAX, |length| offset.saturating_add(length));
        let pieces = open.read(&file, offset..end);
        let audited = Arc::new(Mutex::new(Some(audited)));
        let hasher = Arc::new(Mutex::new(blake3::Hasher::new()));
        let part = |part| ReadFileResponse { part: Some(part) };
        let first = stream::iter([Ok(part(Part::Entry(convert::entry(file))))]);
        let data = pieces.flat_map({
            let (hasher, audited) = (hasher.clone(), audited.clone());
            move |piece| {
                let messages: Vec<Result<ReadFileResponse, Status>> = match piece {
                    Ok(piece) => {
                        hasher.lock().update(&piece);
                        if let Some(audited) = &*audited.lock() {
                            audited.add(piece.len() as u64);
                        }
                        cut(piece).map(|data| Ok(part(Part::Data(data)))).collect()
                    }
                    Err(error) => {
                        let failure = failed(error.clone());
                        if let Some(audited) = audited.lock().take() {
                            audited.failed(&error);
                        }
                        vec![Err(failure)]
                    }
                };
                stream::iter(messages)
            }
        });
        let last = stream::once(async move {
            if let Some(audited) = audited.lock().take() {
                audited.done();
            }
            let hash = hasher.lock().finalize();
            Ok(ReadFileResponse { part: Some(Part::Blake3(hash.as_bytes().to_vec().into())) })
        });
        let stream = answers(call, (download, open), first.chain(data).chain(last));
        Ok(Response::new(stream))
    }

    async fn file_history(
        &self,
        request: Request<FileHistoryRequest>,
    ) -> RpcResult<FileHistoryResponse> {
        let call = CallAdmission::call(&request)?;
        let FileHistoryRequest { pool, dataset, path } = request.into_inner();
        let browser = self.browser(&pool)?;
        let dataset = self.dataset(&call, &browser, &dataset, Action::List).await?;
        let versions = Box::pin(browser.history(&dataset, &path)).await.map_err(failed)?;
        let versions = versions.into_iter().map(convert::version).collect();
        Ok(Response::new(FileHistoryResponse { versions }))
    }

    type DiffStream = Answers<DiffResponse>;

    async fn diff(&self, request: Request<DiffRequest>) -> RpcResult<Self::DiffStream> {
        let call = CallAdmission::call(&request)?;
        let DiffRequest { pool, dataset, from_snapshot, to_snapshot } = request.into_inner();
        if from_snapshot.is_empty() {
            return Err(Status::invalid_argument("from_snapshot is empty: name a snapshot"));
        }
        let root = |snapshot| Root {
            pool: pool.clone(),
            dataset: dataset.clone(),
            snapshot,
            handle: String::new(),
        };
        let before = self.root(&call, Some(root(from_snapshot)), Action::List).await?;
        let after = self.root(&call, Some(root(to_snapshot)), Action::List).await?;
        let (to, found) = mpsc::channel(GROUP);
        let comparing = AbortOnDropHandle::new(tokio::spawn(async move {
            before.browser.diff_to(&before.root, &after.root, to).await
        }));
        let counts = Arc::new(Mutex::new(DiffCounts::default()));
        let groups = ReceiverStream::new(found).ready_chunks(GROUP).map({
            let counts = counts.clone();
            move |group| {
                let mut counts = counts.lock();
                for found in &group {
                    *match found.difference {
                        Found::Added => &mut counts.added,
                        Found::Removed => &mut counts.removed,
                        Found::Changed(_) => &mut counts.changed,
                        Found::Renamed(..) => &mut counts.renamed,
                    } += 1;
                }
                let differences = group.iter().map(convert::difference).collect();
                Ok(DiffResponse { differences, counts: None })
            }
        });
        let last = stream::once(async move {
            ended(comparing.await)?;
            let counts = Some(*counts.lock());
            Ok(DiffResponse { differences: vec![], counts })
        });
        Ok(Response::new(answers(call, (), groups.chain(last))))
    }

    type FindStream = Answers<FindResponse>;

    async fn find(&self, request: Request<FindRequest>) -> RpcResult<Self::FindStream> {
        let call = CallAdmission::call(&request)?;
        let FindRequest { pool, dataset, snapshot, all_snapshots, pattern, limit } =
            request.into_inner();
        let pattern = Pattern::new(&pattern).map_err(failed)?;
        if all_snapshots && !snapshot.is_empty() {
            return Err(Status::invalid_argument(
                "snapshot and all_snapshots exclude each other: give one of them",
            ));
        }
        let root = Root { pool, dataset, snapshot: snapshot.clone(), handle: String::new() };
        let first = self.root(&call, Some(root), Action::List).await?;
        let mut roots = vec![(snapshot, first.root.clone())];
        if all_snapshots && let browse::Root::Head(dataset) = &first.root {
            roots.extend(snapshots_of(&first.browser, dataset).await.map_err(failed)?);
        }
        let limit = match usize::try_from(limit).unwrap_or(HITS_MAX) {
            0 => HITS_DEFAULT,
            limit => limit.min(HITS_MAX),
        };
        let (names, roots): (Vec<String>, Vec<browse::Root>) = roots.into_iter().unzip();
        let (to, hits) = mpsc::channel(GROUP);
        let searching = AbortOnDropHandle::new(tokio::spawn(async move {
            first.browser.find_to(&roots, &pattern, to).await
        }));
        let found = Arc::new(Mutex::new(Taken { limit, ..Taken::default() }));
        // One more than is wanted tells whether there are more. Then the channel is dropped, which
        // ends the search.
        let groups = ReceiverStream::new(hits).take(limit + 1).ready_chunks(GROUP).map({
            let found = found.clone();
            move |mut group: Vec<browse::Hit>| {
                found.lock().take(&mut group);
                let hit = |hit: browse::Hit| Hit {
                    snapshot: names.get(hit.root).cloned().unwrap_or_default(),
                    entry: Some(convert::entry(hit.entry)),
                };
                Ok(FindResponse { hits: group.into_iter().map(hit).collect(), result: None })
            }
        });
        let last = stream::once(async move {
            let searched = ended(searching.await)?;
            let Taken { count, more, .. } = *found.lock();
            let visited = searched.visited.min(VISITED_MAX);
            let result =
                FindResult { found: count as u64, visited, limited: searched.limited || more };
            Ok(FindResponse { hits: vec![], result: Some(result) })
        });
        Ok(Response::new(answers(call, (), groups.chain(last))))
    }

    type RestoreStream = Answers<RestoreResponse>;

    async fn restore(&self, request: Request<RestoreRequest>) -> RpcResult<Self::RestoreStream> {
        let call = CallAdmission::call(&request)?;
        let RestoreRequest { pool, dataset, snapshot, paths, overwrite, dry_run, keep } =
            request.into_inner();
        if paths.is_empty() || paths.len() > PATHS_MAX {
            let why = format!("paths: 1 to {PATHS_MAX}, not {}", paths.len());
            return Err(Status::invalid_argument(why));
        }
        let browser = self.browser(&pool)?;
        let live = self.dataset(&call, &browser, &dataset, Action::Restore).await?;
        let of = live.name.to_string();
        let from = browser.snapshot(&of, &snapshot).await.map_err(failed)?;
        let paths: Vec<(Vec<u8>, Vec<u8>)> = paths
            .into_iter()
            .map(|RestorePath { source, destination }| match destination.is_empty() {
                true => (source.clone(), source),
                false => (source, destination),
            })
            .collect();
        if paths.iter().any(|(source, _)| source.is_empty()) {
            return Err(Status::invalid_argument("a source is empty: use / for everything"));
        }
        if dry_run {
            let plan = plan(&browser, from, live, &paths).await.map_err(failed)?;
            let answer = RestoreResponse { task: None, plan: Some(convert::plan(plan)) };
            return Ok(Response::new(answers(call, (), stream::iter([Ok(answer)]))));
        }
        let wanted: Vec<RestoreInPlace> = paths
            .iter()
            .map(|(source, destination)| RestoreInPlace {
                call: Incarnation::random(),
                snapshot: from.id(),
                from: source.into(),
                to: destination.into(),
                overwrite,
            })
            .collect();
        let first = paths.first().map(|(source, _)| shown_path(source)).unwrap_or_default();
        let more = match paths.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        let subject = format!("{of}@{snapshot}:{first}{more}");
        let place = self.task_place(&call)?;
        let wanted = (wanted, if keep { Replaced::KeptBeside } else { Replaced::Removed });
        let about = format!("{}/{subject}", browser.pool().name);
        let (pool, controller) = (browser.pool(), &self.admin.controller);
        let (reader, dataset) = (browser.clone(), live.id());
        let changed = move || reader.forget_head(dataset);
        let started =
            self.admin.tasks.start_restore(controller, pool, &live, wanted, subject, changed);
        let id = started.map_err(failed)?;
        self.audit_task(&call, Action::Restore, ("Restore", about), (id, place));
        let progress = self
            .progress(id)
            .map(|task| Ok(RestoreResponse { task: Some(convert::task(task?)), plan: None }));
        Ok(Response::new(answers(call, (), progress)))
    }
}

/// Hits that were sent, up to a limit.
#[derive(Clone, Copy, Default)]
struct Taken {
    limit: usize,
    count: usize,
    /// There was one beyond the limit.
    more: bool,
}

impl Taken {
    fn take(&mut self, group: &mut Vec<browse::Hit>) {
        let left = self.limit - self.count;
        self.more |= group.len() > left;
        group.truncate(left);
        self.count += group.len();
    }
}

/// A piece of a file in messages.
fn cut(mut piece: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let len = piece.len().min(DATA_BYTES);
        (len > 0).then(|| piece.split_to(len))
    })
}

/// The read-only snapshots of a dataset, newest first.
async fn snapshots_of(
    browser: &Browser,
    dataset: &crate::catalog::Dataset,
) -> Result<Vec<(String, browse::Root)>, ControlError> {
    let records = browser.pool().catalog.snapshots(Some(dataset.incarnation)).await?;
    let mut found: Vec<_> = records
        .into_iter()
        .map(|at| at.record)
        .filter(|snapshot| snapshot.state == State::Ready && !snapshot.implied)
        .collect();
    found.sort_by_key(|snapshot| std::cmp::Reverse((snapshot.created, snapshot.serial)));
    let named = found
        .into_iter()
        .map(|snapshot| (snapshot.name.to_string(), browse::Root::Snapshot(snapshot)));
    Ok(named.collect())
}

async fn plan(
    browser: &Browser,
    from: crate::catalog::Snapshot,
    live: crate::catalog::Dataset,
    paths: &[(Vec<u8>, Vec<u8>)],
) -> Result<browse::RestorePlan, ControlError> {
    // The head, and no snapshot, is replaced.
    browser.forget_head(live.id());
    let (from, live) = (browse::Root::Snapshot(from), browse::Root::Head(live));
    let mut plan = browse::RestorePlan::default();
    for (source, destination) in paths {
        let one = browser.plan_restore(&from, &live, source, destination).await?;
        plan.objects += one.objects;
        plan.bytes = plan.bytes.saturating_add(one.bytes);
        plan.existing += one.existing;
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The default limit of a message in clients of gRPC.
    const CLIENT_BYTES_MAX: usize = 4 << 20;

    #[test]
    fn a_piece_fits_into_the_messages_of_every_client() {
        let message = |bytes| ReadFileResponse { part: Some(Part::Data(vec![0; bytes].into())) };
        assert!(message(DATA_BYTES).encoded_len() < CLIENT_BYTES_MAX);
        assert_eq!(message(4 << 20).encoded_len(), CLIENT_BYTES_MAX + 5);
    }
}
