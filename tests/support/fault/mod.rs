//! An object store that fails on purpose: by a script, at random from a seed, or altogether.
//!
//! ```text
//! let store = FaultStore::over(Arc::new(InMemory::new()));
//! store.script(Rule::on(Op::PutNew).at("datasets/").skip(1).times(1).then(Fault::LostAck));
//! let bucket = store.quick_bucket();
//! ```

mod rules;

pub use super::rule::Rule;
use super::rule::scripted;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result, UploadPart,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rules::drawn;
pub use rules::{Chances, Fault, Op};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use zerofs_csi::bucket::{Bucket, Limits};

/// Limits for tests: failures end soon.
pub fn quick() -> Limits {
    Limits {
        attempt: Duration::from_millis(500),
        total: Duration::from_secs(2),
        pause: Duration::from_millis(1),
        pause_max: Duration::from_millis(10),
        ..Limits::default()
    }
}

#[derive(Default)]
struct State {
    rules: Vec<Rule<Op, Fault>>,
    random: Option<(StdRng, Chances)>,
    latency: Option<Duration>,
    /// Its clock is so far ahead.
    ahead: Duration,
    dead: bool,
    dies_after: Option<usize>,
    read_only: bool,
    ignores_conditions: bool,
    log: Vec<Request>,
    late: Vec<Put>,
}

type Put = (Path, PutPayload, PutOptions);

/// A request that was made.
#[derive(Clone, Debug)]
pub struct Request {
    pub op: Op,
    pub key: String,
    pub began: tokio::time::Instant,
}

/// See the module's text. Cheap to clone: all clones are one store.
#[derive(Clone)]
pub struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    state: Arc<Mutex<State>>,
}

impl FaultStore {
    pub fn over(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self { inner, state: Arc::default() })
    }

    pub fn memory() -> Arc<Self> {
        Self::over(Arc::new(object_store::memory::InMemory::new()))
    }

    /// A bucket on this store, with the limits of production.
    pub fn bucket(self: &Arc<Self>) -> Bucket {
        Bucket::on(self.clone(), Path::default())
    }

    /// A bucket on this store whose failures end soon.
    pub fn quick_bucket(self: &Arc<Self>) -> Bucket {
        self.bucket().with_limits(quick())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn script(&self, rule: Rule<Op, Fault>) {
        self.state().rules.push(rule);
    }

    /// Ends scripted and random faults, and is alive again.
    pub fn heal(&self) {
        let mut state = self.state();
        let (log, late) = (std::mem::take(&mut state.log), std::mem::take(&mut state.late));
        *state = State { log, late, ..State::default() };
    }

    pub fn random(&self, seed: u64, chances: Chances) {
        self.state().random = Some((StdRng::seed_from_u64(seed), chances));
    }

    /// Every request takes this long.
    pub fn latency(&self, each: Duration) {
        self.state().latency = (!each.is_zero()).then_some(each);
    }

    /// By its listings, objects are written this much later than they are.
    pub fn clock_ahead(&self, by: Duration) {
        self.state().ahead = by;
    }

    /// Nothing is done, and only errors are answered.
    pub fn die(&self) {
        self.state().dead = true;
    }

    /// Dies after so many more changes; of the last one the answer is lost.
    pub fn die_after(&self, changes: usize) {
        self.state().dies_after = Some(changes);
    }

    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    pub fn read_only(&self) {
        self.state().read_only = true;
    }

    /// A put-if-absent overwrites.
    pub fn ignore_conditions(&self) {
        self.state().ignores_conditions = true;
    }

    /// Requests so far, with their keys.
    pub fn log(&self) -> Vec<(Op, String)> {
        self.trace().into_iter().map(|request| (request.op, request.key)).collect()
    }

    /// As [`Self::log`], with the times at which they began.
    pub fn trace(&self) -> Vec<Request> {
        self.state().log.clone()
    }

    pub fn clear_log(&self) {
        self.state().log.clear();
    }

    fn decide(&self, op: Op, key: &str) -> (Option<Fault>, Option<Duration>) {
        let mut state = self.state();
        let began = tokio::time::Instant::now();
        state.log.push(Request { op, key: key.to_owned(), began });
        if state.dead {
            return (Some(Fault::Before), None);
        }
        if let (true, Some(left)) = (op.mutates(), state.dies_after) {
            state.dies_after = Some(left.saturating_sub(1));
            if left <= 1 {
                state.dead = true;
                return (Some(if left == 0 { Fault::Before } else { Fault::LostAck }), None);
            }
        }
        if state.read_only && op.mutates() {
            return (Some(Fault::Denied), None);
        }
        let latency = state.latency;
        (scripted(&mut state.rules, op, key).or_else(|| drawn(state.random.as_mut(), op)), latency)
    }

    /// Puts on their way whose sender has gone: given up after a time limit, or dead.
    pub fn late(&self) -> usize {
        self.state().late.len()
    }

    /// One of the late puts arrives: its request is done now. `n` chooses; counted round if there
    /// are fewer.
    pub async fn arrive(&self, n: usize) {
        let put = {
            let late = &mut self.state().late;
            let at = n.checked_rem(late.len());
            at.map(|at| late.swap_remove(at))
        };
        if let Some((at, payload, options)) = put {
            let _nobody_waits = self.inner.put_opts(&at, payload, options).await;
        }
    }

    /// Runs a request as the faults have it.
    async fn run<T>(
        &self,
        op: Op,
        key: &str,
        request: impl Future<Output = Result<T>>,
    ) -> (Result<T>, Option<Fault>) {
        let decided = self.decide(op, key);
        self.run_as(decided, key, request).await
    }

    async fn run_as<T>(
        &self,
        (fault, latency): (Option<Fault>, Option<Duration>),
        key: &str,
        request: impl Future<Output = Result<T>>,
    ) -> (Result<T>, Option<Fault>) {
        if let Some(latency) = latency {
            tokio::time::sleep(latency).await;
        }
        let result = match fault {
            Some(Fault::Before) => Err(failed("before its effect")),
            Some(Fault::Throttled) => {
                Err(failed("with status code: 503 Service Unavailable: SlowDown"))
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Denied) => Err(Error::PermissionDenied {
                path: key.to_owned(),
                source: "denied on purpose".into(),
            }),
            Some(Fault::Absent) => {
                Err(Error::NotFound { path: key.to_owned(), source: "absent on purpose".into() })
            }
            Some(Fault::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                request.await
            }
            Some(Fault::LostAck) => match request.await {
                Ok(_) => Err(failed("after its effect")),
                failed => failed,
            },
            Some(Fault::Truncate(_) | Fault::FlipBit(_) | Fault::Lie) | None => request.await,
        };
        (result, fault)
    }
}

fn failed(when: &str) -> Error {
    Error::Generic { store: "fault", source: format!("failed on purpose {when}").into() }
}

/// The bytes of a read after the fault.
fn damaged(bytes: Bytes, fault: Option<Fault>) -> Bytes {
    match fault {
        Some(Fault::Truncate(n)) => bytes.slice(..bytes.len().saturating_sub(n)),
        Some(Fault::FlipBit(bit)) if !bytes.is_empty() => {
            let mut bytes = BytesMut::from(bytes);
            let at = (bit / 8) % bytes.len();
            bytes[at] ^= 1 << (bit % 8);
            bytes.freeze()
        }
        _ => bytes,
    }
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultStore")
    }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultStore({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> Result<PutResult> {
        let op = if options.mode == PutMode::Overwrite { Op::Put } else { Op::PutNew };
        if self.state().ignores_conditions {
            options.mode = PutMode::Overwrite;
        }
        let decided = self.decide(op, at.as_ref());
        match decided.0 {
            Some(Fault::Lie) => {
                Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
            }
            Some(Fault::Delay(delay)) => {
                let mut sent = Sent { store: self, put: Some((at.clone(), payload, options)) };
                tokio::time::sleep(delay).await;
                match sent.put.take() {
                    Some((at, payload, options)) => {
                        self.inner.put_opts(&at, payload, options).await
                    }
                    None => Err(failed("twice")),
                }
            }
            _ => {
                self.run_as(decided, at.as_ref(), self.inner.put_opts(at, payload, options)).await.0
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(at, options).await?;
        Ok(Box::new(FaultUpload { store: self.clone(), at: at.to_string(), inner }))
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let (found, fault) = self.run(Op::Get, at.as_ref(), self.inner.get_opts(at, options)).await;
        let found = found?;
        if head || !matches!(fault, Some(Fault::Truncate(_) | Fault::FlipBit(_))) {
            return Ok(found);
        }
        let (meta, range) = (found.meta.clone(), found.range.clone());
        let (attributes, extensions) = (found.attributes.clone(), found.extensions.clone());
        let body = damaged(found.bytes().await?, fault);
        let payload =
            GetResultPayload::Stream(futures::stream::once(async move { Ok(body) }).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let (found, fault) =
            self.run(Op::Get, at.as_ref(), self.inner.get_ranges(at, ranges)).await;
        Ok(found?.into_iter().map(|bytes| damaged(bytes, fault)).collect())
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        keys.and_then(move |key| {
            let this = this.clone();
            async move {
                let one = futures::stream::once({
                    let key = key.clone();
                    async move { Ok(key) }
                });
                let mut deleted = this.inner.delete_stream(one.boxed());
                let request = async move {
                    deleted.next().await.unwrap_or_else(|| Err(failed("without an answer")))
                };
                this.run(Op::Delete, key.as_ref(), request).await.0
            }
        })
        .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, key) = (self.clone(), prefix.map(ToString::to_string).unwrap_or_default());
        let listed = self.inner.list(prefix);
        let ahead = self.state().ahead;
        let listed = listed
            .map_ok(move |meta| ObjectMeta { last_modified: meta.last_modified + ahead, ..meta });
        let whole = async move { this.run(Op::List, &key, listed.try_collect::<Vec<_>>()).await.0 };
        futures::stream::once(whole)
            .map_ok(|found| futures::stream::iter(found).map(Ok))
            .try_flatten()
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let key = prefix.map(ToString::to_string).unwrap_or_default();
        self.run(Op::List, &key, self.inner.list_with_delimiter(prefix)).await.0
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.run(Op::Put, to.as_ref(), self.inner.copy_opts(from, to, options)).await.0
    }
}

/// A put on its way. Dropped before it arrived, it arrives when the test says so.
struct Sent<'a> {
    store: &'a FaultStore,
    put: Option<Put>,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        if let Some(put) = self.put.take() {
            self.store.state().late.push(put);
        }
    }
}

/// A multipart upload: each part and the completion are puts.
#[derive(Debug)]
struct FaultUpload {
    store: FaultStore,
    at: String,
    inner: Box<dyn MultipartUpload>,
}

#[async_trait]
impl MultipartUpload for FaultUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (store, at, part) = (self.store.clone(), self.at.clone(), self.inner.put_part(data));
        Box::pin(async move { store.run(Op::Put, &at, part).await.0 })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let (store, at) = (self.store.clone(), self.at.clone());
        store.run(Op::Put, &at, self.inner.complete()).await.0
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}
