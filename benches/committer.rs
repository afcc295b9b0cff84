//! The committer: what submitting, applying and making durable cost, and how waiters share flushes.
//! On a store in memory, in a folder with fsync on, and in memory with 20 ms a request. For the
//! folder it also times the same disk's bare append and fsync.
//!
//! `cargo bench --bench committer [-- SECONDS]`; TMPDIR chooses the disk.

use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerofs_csi::bucket::{Bucket, Credentials, Folder, Limits};
use zerofs_csi::fs::db::{Database, DbCache, DbPlace};
use zerofs_csi::fs::{Batch, Committer, key};
use zerofs_csi::telemetry::Failpoints;
use zerofs_csi::types::{Incarnation, InodeNo};

const REQUEST: Duration = Duration::from_millis(20);

fn batch(n: u64) -> Batch {
    let value = Bytes::from(vec![7; 120]);
    let rows = (0..4)
        .map(|k| (key::inode(InodeNo((n * 4 + k) % 1_000_000)), Some(value.clone())))
        .collect();
    Batch { rows, ..Batch::default() }
}

/// CPU time of this process, all threads.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// The result of a measurement.
struct Found {
    took: Vec<Duration>,
    wall: Duration,
    cpu: Duration,
    puts: u64,
}

impl Found {
    fn rate(&self) -> f64 {
        self.took.len() as f64 / self.wall.as_secs_f64()
    }

    fn show(&mut self, what: &str) {
        self.took.sort_unstable();
        let at = |part: usize| {
            self.took.get(self.took.len() * part / 100).map_or(0.0, |t| t.as_secs_f64() * 1e3)
        };
        let each = |n: f64| n / self.took.len().max(1) as f64;
        println!(
            "{what:<40} {:>9.0}/s  p50 {:>8.3}  p99 {:>8.3} ms  cpu {:>6.1} us  {:.3} PUTs each",
            self.rate(),
            at(50),
            at(99),
            each(self.cpu.as_secs_f64() * 1e6),
            each(self.puts as f64)
        );
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Until {
    Submitted,
    Applied,
    Durable,
}

/// Loops that each submit a batch and wait until it is as safe as asked.
async fn measure(
    committer: &Arc<Committer>,
    bucket: &Bucket,
    loops: u64,
    until: Until,
    time: Duration,
) -> Found {
    let (puts, before, started) = (bucket.requests().put, cpu(), Instant::now());
    let run = |number: u64| {
        let committer = committer.clone();
        async move {
            let mut took = Vec::new();
            for n in 0.. {
                if started.elapsed() >= time {
                    break;
                }
                committer.ready().await.expect("ready");
                let begun = Instant::now();
                let ticket = committer.submit(batch(number * 1_000_003 + n)).expect("submits");
                match until {
                    Until::Submitted => tokio::task::yield_now().await,
                    Until::Applied => committer.applied(ticket).await.expect("applied"),
                    Until::Durable => committer.durable(ticket).await.expect("durable"),
                }
                took.push(begun.elapsed());
            }
            took
        }
    };
    let tasks: Vec<_> = (0..loops).map(|number| tokio::spawn(run(number))).collect();
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.expect("runs"));
    }
    let (wall, cpu) = (started.elapsed(), cpu().saturating_sub(before));
    let found = Found { took, wall, cpu, puts: bucket.requests().put - puts };
    committer.durable(committer.last()).await.expect("durable");
    found
}

fn bare_fsync(folder: &Path, time: Duration) {
    let file = std::fs::File::create(folder.join("bare")).expect("a file");
    let (started, before, mut took) = (Instant::now(), cpu(), Vec::new());
    while started.elapsed() < time {
        let begun = Instant::now();
        file.write_all_at(&[7; 4096], took.len() as u64 * 4096).expect("a write");
        file.sync_all().expect("an fsync");
        took.push(begun.elapsed());
    }
    Found { took, wall: started.elapsed(), cpu: cpu().saturating_sub(before), puts: 0 }
        .show("bare append and fsync of 4 KiB");
}

async fn store(name: &str, bucket: Bucket, journal: &Path, time: Duration) {
    let place = DbPlace::new(bucket.clone(), Incarnation::random(), None, DbCache::new(64 << 20));
    let db = Database::open(&place, None).await.expect("opens");
    let committer = Committer::start(db, Some(journal), Box::new(|| 0), Failpoints::default())
        .await
        .expect("starts");
    let committer = Arc::new(committer);
    for (what, until) in [("submitted", Until::Submitted), ("applied", Until::Applied)] {
        measure(&committer, &bucket, 16, until, time)
            .await
            .show(&format!("{name}: {what}, 16 loops"));
    }
    let mut alone = 0.0;
    for loops in [1, 8, 16, 64] {
        let mut found = measure(&committer, &bucket, loops, Until::Durable, time).await;
        found.show(&format!("{name}: durable, {loops} loops"));
        match loops {
            1 => alone = found.rate(),
            _ => println!("{:<40} {:>9.1} times one loop's rate", "", found.rate() / alone),
        }
    }
    committer.close().await.expect("closes");
}

fn main() {
    let seconds = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(3);
    let time = Duration::from_secs(seconds);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        store("memory", Bucket::memory(), &folder.path().join("memory.journal"), time).await;
        let slow = ThrottleConfig {
            wait_put_per_call: REQUEST,
            wait_get_per_call: REQUEST,
            ..ThrottleConfig::default()
        };
        let slow = Bucket::on(
            Arc::new(ThrottledStore::new(InMemory::new(), slow)),
            object_store::path::Path::default(),
        );
        store("20 ms a request", slow, &folder.path().join("slow.journal"), time).await;
        bare_fsync(folder.path(), time);
        let url = format!("file://{}/pool", folder.path().display()).parse().expect("a URL");
        let on_disk = Bucket::open(&url, &Credentials::none(), Folder::Create, Limits::default())
            .expect("a bucket");
        store("folder", on_disk, &folder.path().join("folder.journal"), time).await;
    });
}
