//! A dataset that goes from process to process, and how each of them ends.

use super::compare::{Verdict, in_order, judge, walk};
use super::history::{Contract, Death, History, Step};
use super::work::{Client, Stopped, Ticks, settle_in};
use crate::support::fault::{Chances, FaultStore, quick};
use crate::support::s3::{self, S3Server};
use crate::support::volume::Dataset;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::fs::check::check;
use zerofs_csi::fs::db::Reader;
use zerofs_csi::fs::{Fs, FsError, SyncMode};

const CLIENTS: u64 = 3;
/// Tries of an opening under faults.
const OPENINGS: usize = 40;

/// Lies that the store tells, for tests of the oracle.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lies {
    /// Puts per thousand that are answered and not done.
    pub puts: u32,
    /// The mode that the dataset is opened with, whatever its contract says.
    pub sync: Option<SyncMode>,
}

/// Where the objects are, below the faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Memory,
    /// An S3 server with faults of its own, in real time.
    Server,
}

pub struct World {
    rng: StdRng,
    store: Arc<FaultStore>,
    server: Option<S3Server>,
    dataset: Dataset,
    journals: tempfile::TempDir,
    /// Counts the nodes that had it.
    node: u32,
    contract: Contract,
    lies: Lies,
    clients: Vec<Client>,
    /// The end of the last process.
    death: Death,
    /// Steps that a process of this dataset passes.
    steps: Vec<String>,
    pub deaths: usize,
}

/// The event that ends a process.
#[derive(Clone, Debug)]
enum End {
    Closed,
    /// This many of its changes reach the store; the last one's answer is lost.
    Store(usize),
    /// After this many passes of a durable step.
    Step(String, u64),
    /// When its clients are done.
    Done,
    /// Another node opens the dataset meanwhile.
    Overtaken,
}

impl World {
    pub fn new(seed: u64, lies: Lies, over: Over) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let sync = [SyncMode::Standard, SyncMode::Standard, SyncMode::Always, SyncMode::Disabled]
            [rng.random_range(0..4)];
        let contract = Contract {
            sync: if lies.sync.is_some() { SyncMode::Standard } else { sync },
            journal: rng.random_bool(0.75),
        };
        let journals = tempfile::tempdir().expect("a folder");
        let server = (over == Over::Server).then(S3Server::start);
        let store = match &server {
            None => FaultStore::memory(),
            Some(server) => {
                server.random(
                    seed,
                    s3::Chances {
                        refuse: 20,
                        conflict: 50,
                        cut: 20,
                        cut_body: 10,
                        ..s3::Chances::default()
                    },
                );
                FaultStore::over(server.pool("s3://test/pool").with_limits(quick()).store())
            }
        };
        let mut dataset = Dataset::new(Bucket::memory(), journals.path().to_owned());
        dataset.options.properties.sync = lies.sync.unwrap_or(contract.sync);
        dataset.options.flush_interval = Duration::from_millis(rng.random_range(20..400));
        Self {
            rng,
            store,
            server,
            dataset,
            journals,
            node: 0,
            contract,
            lies,
            clients: Vec::new(),
            death: Death::Clean,
            steps: Vec::new(),
            deaths: 0,
        }
    }

    fn runtime(&self) -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(self.server.is_none()).build().expect("a runtime")
    }

    /// A process of its own: nothing of it is left when this returns. Time passes when everybody
    /// waits for it.
    pub fn process(&mut self) -> Result<(), String> {
        let runtime = self.runtime();
        let outcome = runtime.block_on(Box::pin(self.live()));
        self.store.die();
        drop(runtime);
        self.store.heal();
        outcome
    }

    /// Opens the dataset a last time, compares, and closes it.
    pub fn finish(&mut self) -> Result<(), String> {
        let runtime = self.runtime();
        runtime.block_on(Box::pin(async {
            let fs = self.open().await?;
            self.verify(&fs).await?;
            fs.close().await.map_err(|error| format!("closing: {error}"))?;
            self.check_rows().await
        }))
    }

    /// Counts effects that clients saw before the caller was answered.
    pub fn seen(&self) -> usize {
        self.clients.iter().map(|client| client.history.lock().seen).sum()
    }

    fn journals(&self) -> PathBuf {
        self.journals.path().join(self.node.to_string())
    }

    async fn live(&mut self) -> Result<(), String> {
        let arrivals = self.arrivals().await;
        let fs = self.open().await?;
        self.verify(&fs).await?;
        let again = self.repeated();
        let end = self.choose_end();
        self.trouble(&end);
        let mut work = self.start(&fs, again);
        let ended = self.until(&end, &fs, &mut work).await;
        arrivals.abort();
        let passed = self.dataset.place.bucket.failpoints().passed();
        self.steps = passed
            .into_keys()
            .filter(|step| !step.contains("close") && !step.contains("replay"))
            .collect();
        ended.map_err(|what| format!("{what}\n  in a process that was to end by {end:?}"))
    }

    /// Requests in flight when the last process ended arrive now, later, or never.
    async fn arrivals(&mut self) -> tokio::task::AbortHandle {
        for _ in 0..self.store.late() {
            if self.rng.random_bool(0.3) {
                self.store.arrive(self.rng.random_range(0..100)).await;
            }
        }
        let (store, mut rng) = (self.store.clone(), StdRng::seed_from_u64(self.rng.random()));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..300))).await;
                store.arrive(rng.random_range(0..100)).await;
            }
        })
        .abort_handle()
    }

    /// Opens on this node, with nothing in memory. Some openings meet faults.
    async fn open(&mut self) -> Result<Arc<Fs>, String> {
        let journals = self.contract.journal.then(|| self.journals());
        if let Some(folder) = &journals {
            std::fs::create_dir_all(folder).expect("a folder");
        }
        let bucket = self.store.quick_bucket();
        self.dataset.reborn(bucket, journals.as_deref());
        if self.rng.random_bool(0.3) {
            self.faults(30);
        }
        let mut last = String::new();
        for tried in 0..OPENINGS {
            if tried > OPENINGS / 2 {
                self.store.heal();
            }
            match self.dataset.try_open().await {
                Ok(fs) => {
                    self.store.heal();
                    return Ok(Arc::new(fs));
                }
                // The tasks of an opening that failed let go of the journal a moment later.
                Err(error @ (FsError::Busy(_) | FsError::Unavailable(_))) => {
                    last = error.to_string();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => {
                    return Err(format!("it does not open after {:?}: {error}", self.death));
                }
            }
        }
        Err(format!("it does not open after {:?}: {last}", self.death))
    }

    fn faults(&mut self, of_a_thousand: u32) {
        let chances = Chances {
            before: of_a_thousand,
            lost_ack: of_a_thousand,
            delay: 10 * of_a_thousand,
            delay_max: Duration::from_millis(800),
            lie: self.lies.puts,
            ..Chances::default()
        };
        self.store.random(self.rng.random(), chances);
    }

    /// Verifies that the state agrees with the clients' answers and that its rows are consistent.
    async fn verify(&mut self, fs: &Fs) -> Result<(), String> {
        let death = self.death;
        let context = |what: String| format!("{:?}, after {death:?}: {what}", self.contract);
        let mut verdicts: Vec<Verdict> = Vec::new();
        for client in &self.clients {
            let top = client.history.lock().refs[&super::history::TOP];
            let found =
                walk(fs, top).await.map_err(|error| context(format!("looking: {error}")))?;
            let mut history = client.history.lock();
            let judged = judge(&history, &found, self.contract, death);
            let (verdict, objects) = judged.map_err(|what| {
                context(format!("client {}: {what}\n{}", client.number, tell(&history)))
            })?;
            history.found = Some(objects);
            verdicts.push(verdict);
        }
        let histories: Vec<_> = self.clients.iter().map(|client| client.history.lock()).collect();
        let all: Vec<_> =
            histories.iter().map(|history| &**history).zip(verdicts.iter().copied()).collect();
        in_order(&all).map_err(context)?;
        drop(all);
        for (mut history, verdict) in histories.into_iter().zip(verdicts) {
            history.rebase(verdict.least, verdict.most);
        }
        self.check_rows()
            .await
            .map_err(|what| format!("{:?}, after {death:?}: {what}", self.contract))
    }

    /// The durable rows hold together, and the packs that they refer to are stored.
    async fn check_rows(&self) -> Result<(), String> {
        let failed = |error: FsError| format!("reading the rows: {error}");
        let reader = Reader::newest(&self.dataset.place).await.map_err(failed)?;
        let report = check(&reader).await.map_err(failed)?;
        reader.close().await.map_err(failed)?;
        if !report.is_clean() {
            return Err(format!("the rows do not hold together: {:#?}", report.findings));
        }
        Ok(())
    }

    /// The calls that had no answer, and whether they were done.
    fn repeated(&mut self) -> Vec<Option<(Step, bool)>> {
        self.clients.iter().map(|client| client.history.lock().unanswered.take()).collect()
    }

    fn choose_end(&mut self) -> End {
        let step = (!self.steps.is_empty())
            .then(|| self.steps[self.rng.random_range(0..self.steps.len())].clone());
        match (self.rng.random_range(0..20), step) {
            _ if self.clients.is_empty() => End::Closed,
            (0, _) => End::Closed,
            (1..3, _) => End::Done,
            (3..5, _) => End::Overtaken,
            (5..11, Some(step)) => End::Step(step, self.rng.random_range(0..12)),
            _ => End::Store(self.rng.random_range(1..30)),
        }
    }

    fn trouble(&mut self, end: &End) {
        let failpoints = self.dataset.place.bucket.failpoints();
        if let End::Step(step, passes) = end {
            failpoints.set(step, &format!("{passes}*off->pause")).expect("an action");
        } else if self.contract.journal && self.rng.random_bool(0.1) {
            let at = self.rng.random_range(0..10);
            failpoints
                .set("fs.journal.disk", &format!("{at}*off->3*return->off"))
                .expect("an action");
        }
        if self.rng.random_bool(0.7) || self.lies.puts > 0 {
            self.faults(20);
        }
        if let End::Store(changes) = end {
            self.store.die_after(*changes);
        }
    }

    fn start(
        &mut self,
        fs: &Arc<Fs>,
        again: Vec<Option<(Step, bool)>>,
    ) -> JoinSet<Result<(), Stopped>> {
        let mut work = JoinSet::new();
        for (client, again) in self.clients.iter().cloned().zip(again) {
            let (fs, rng, calls) = (
                fs.clone(),
                StdRng::seed_from_u64(self.rng.random()),
                self.rng.random_range(3..25),
            );
            work.spawn(async move {
                if let Some((step, was_done)) = again {
                    client.again(&fs, step, was_done).await?;
                }
                Box::pin(client.work(fs, rng, calls)).await
            });
        }
        work
    }

    /// Runs the clients until the process ends. Sets [`Self::death`].
    async fn until(
        &mut self,
        end: &End,
        fs: &Arc<Fs>,
        work: &mut JoinSet<Result<(), Stopped>>,
    ) -> Result<(), String> {
        if self.clients.is_empty() {
            self.settle(fs).await?;
        }
        let overtaken = matches!(end, End::Overtaken);
        let death = async {
            match end {
                End::Store(_) => self.wait_until(|| self.store.is_dead()).await,
                End::Step(step, passes) => {
                    let failpoints = self.dataset.place.bucket.failpoints();
                    self.wait_until(|| {
                        failpoints.passed().get(step).is_some_and(|times| times > passes)
                    })
                    .await;
                }
                End::Overtaken => tokio::time::sleep(Duration::from_millis(300)).await,
                End::Closed | End::Done => std::future::pending().await,
            }
        };
        tokio::select! {
            () = death => {}
            done = all(work) => done?,
        }
        if overtaken {
            return self.overtake(work).await;
        }
        // Calls in flight go on for a moment.
        let moment = Duration::from_millis(self.rng.random_range(0..60));
        if self.rng.random_bool(0.5) {
            let _ = tokio::time::timeout(moment, all(work)).await;
        }
        self.die(end, fs).await
    }

    async fn wait_until(&self, sealed: impl Fn() -> bool) {
        while !sealed() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn settle(&mut self, fs: &Fs) -> Result<(), String> {
        let ticks = Ticks::default();
        for number in 0..CLIENTS {
            let top =
                settle_in(fs, number).await.map_err(|error| format!("making folders: {error}"))?;
            let history = Arc::new(Mutex::new(History::new(top)));
            self.clients.push(Client { number, history, ticks: ticks.clone(), others: Vec::new() });
        }
        if self.contract.sync == SyncMode::Always {
            let histories: Vec<_> =
                self.clients.iter().map(|client| client.history.clone()).collect();
            for (n, client) in self.clients.iter_mut().enumerate() {
                let others = histories.iter().enumerate().filter(|(other, _)| *other != n);
                client.others = others.map(|(_, history)| history.clone()).collect();
            }
        }
        Ok(())
    }

    async fn die(&mut self, end: &End, fs: &Arc<Fs>) -> Result<(), String> {
        let idle = self.clients.iter().all(|client| client.history.lock().is_answered());
        if matches!(end, End::Closed) && idle {
            self.store.heal();
            self.death = Death::Clean;
            return fs.close().await.map_err(|error| format!("closing: {error}"));
        }
        self.deaths += 1;
        self.death = if self.rng.random_bool(0.5) { Death::Process } else { Death::Node };
        if self.death == Death::Node {
            self.node += 1;
        }
        Ok(())
    }

    /// Another node opens the dataset; the clients of this one go on until they are told. Nothing
    /// that they are told after the opening is durable may be missing from it, so they are held
    /// against what is there when the last of them has stopped.
    async fn overtake(&mut self, work: &mut JoinSet<Result<(), Stopped>>) -> Result<(), String> {
        self.node += 1;
        self.deaths += 1;
        self.death = Death::Overtaken;
        let other = self.open().await?;
        while let Some(done) = work.join_next().await {
            match done.expect("no panic") {
                Err(Stopped::Wrong(what)) => return Err(what),
                Ok(()) | Err(Stopped::Lost) => {}
            }
        }
        // The other process has changed nothing yet, so it shows what it found.
        drop(other);
        Ok(())
    }
}

/// Until every client is done, or one of them was told something wrong.
async fn all(work: &mut JoinSet<Result<(), Stopped>>) -> Result<(), String> {
    while let Some(done) = work.join_next().await {
        match done.expect("no panic") {
            Ok(()) => {}
            Err(Stopped::Wrong(what)) => return Err(what),
            Err(Stopped::Lost) => return Err("a client lost its file system to nobody".to_owned()),
        }
    }
    Ok(())
}

/// A history, for who has to understand a failure.
fn tell(history: &History) -> String {
    let step = |step: &Step| format!("  {}..{:?} {:?}", step.begun, step.answered, step.act);
    history.steps.iter().map(step).collect::<Vec<_>>().join("\n")
}
