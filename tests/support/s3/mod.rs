//! An S3 server for tests: in this process, over HTTP, with the faults of real stores.
//!
//! ```text
//! let server = S3Server::start();
//! let conflict = Fault::refuse(409, "ConditionalRequestConflict");
//! server.script(Rule::on(Kind::PutNew).at("/wal/").times(1).then(conflict));
//! server.quirks(|quirks| quirks.drops_metadata = true);
//! let bucket = server.pool("s3://test/pool").with_limits(quick());
//! ```
//! Requests come through the same S3 client as in production, so that a test sees what a status, an
//! XML error, a cut connection or a late effect becomes on its way up. The server runs on a thread
//! and a clock of its own: it outlives the runtimes of a test, as a store outlives processes.
//!
//! - `script`: how requests fail ([`Rule`] says which): [`Fault`], [`Answer`], [`Chances`].
//! - `objects`: what a correct server does, and the [`Quirks`] of those that differ.
//! - `wire`: HTTP and XML.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod objects;
mod script;
mod wire;

pub use super::rule::Rule;
pub use objects::Quirks;
#[allow(unused_imports, reason = "no test uses all of it")]
pub use script::{Answer, Chances, Effect, Fault, Kind, Reply};

use objects::Objects;
use script::Script;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio_util::sync::{CancellationToken, DropGuard};
use wire::Request;
use zerofs_csi::bucket::{Bucket, Credentials, Folder, Limits};

/// The bucket that every server has.
pub const BUCKET: &str = "test";

#[derive(Default)]
struct State {
    objects: Objects,
    script: Script,
    log: Vec<(Kind, String)>,
    /// Requests that were taken and will have their effect when the test says so.
    late: Vec<Request>,
}

/// A running server. It ends when it is dropped.
pub struct S3Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _stop: DropGuard,
}

impl S3Server {
    /// Starts a server on a free loopback port.
    pub fn start() -> Self {
        Self::listen(Ipv4Addr::LOCALHOST.into())
    }

    /// Starts a server on a free port of an address.
    pub fn listen(at: IpAddr) -> Self {
        let listener = std::net::TcpListener::bind((at, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<Mutex<State>>::default();
        let stop = CancellationToken::new();
        let (serving, stopped) = (state.clone(), stop.clone());
        std::thread::Builder::new()
            .name("s3-server".into())
            .spawn(move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(stopped.run_until_cancelled(wire::serve(listener, serving)));
            })
            .unwrap();
        Self { address, state, _stop: stop.drop_guard() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The options with which an S3 client reaches this server.
    pub fn options(&self) -> Vec<(&'static str, String)> {
        [
            ("endpoint", self.endpoint()),
            ("access_key_id", "test".into()),
            ("secret_access_key", "test".into()),
            ("region", "us-east-1".into()),
            ("allow_http", "true".into()),
        ]
        .into()
    }

    /// The bucket at a pool's URL, such as `s3://test/pool`.
    pub fn pool(&self, url: &str) -> Bucket {
        self.pool_with(url, &[])
    }

    /// As [`Self::pool`], with more options.
    pub fn pool_with(&self, url: &str, options: &[(&str, &str)]) -> Bucket {
        let credentials = Credentials::none().with(self.options()).with(options.iter().copied());
        Bucket::open(&url.parse().unwrap(), &credentials, Folder::MustExist, Limits::default())
            .unwrap()
    }

    /// The number of requests that were refused for their key.
    pub fn keys_refused(&self) -> usize {
        self.state().objects.keys_refused
    }

    /// Adds a rule. Rules are asked in order; the first that matches decides.
    pub fn script(&self, rule: Rule<Kind, Fault>) {
        self.state().script.rules.push(rule);
    }

    /// Faults at random, the same ones for the same seed and order of requests.
    pub fn random(&self, seed: u64, chances: Chances) {
        self.state().script.random(seed, chances);
    }

    /// No more faults. Quirks stay.
    pub fn heal(&self) {
        self.state().script = Script::default();
    }

    pub fn quirks(&self, change: impl FnOnce(&mut Quirks)) {
        change(&mut self.state().objects.quirks);
    }

    /// The number of requests that were taken and whose effect is still to come.
    pub fn late(&self) -> usize {
        self.state().late.len()
    }

    /// The oldest of the late requests has its effect now. `false`: there was none.
    pub fn arrive(&self) -> bool {
        let mut state = self.state();
        if state.late.is_empty() {
            return false;
        }
        let request = state.late.remove(0);
        let _nobody_waits = state.objects.answer(&request);
        true
    }

    /// Requests so far, with their keys (of a listing the prefix, of a bulk deletion the first
    /// key).
    pub fn log(&self) -> Vec<(Kind, String)> {
        self.state().log.clone()
    }

    pub fn clear_log(&self) {
        self.state().log.clear();
    }

    /// Every key, as the server has it.
    pub fn keys(&self) -> Vec<String> {
        self.state().objects.keys()
    }

    /// An object of any key, also one that this project's client could not name.
    pub fn insert(&self, key: &str, bytes: &'static [u8]) {
        self.state().objects.insert(key, bytes);
    }

    pub fn remove(&self, key: &str) {
        self.state().objects.remove(key);
    }
}
