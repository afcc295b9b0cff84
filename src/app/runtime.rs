//! The process: its threads, and the signals that end it.

use anyhow::Context;
use std::sync::Once;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The database's futures are large, and unoptimised builds keep many copies of them on the stack.
const STACK_BYTES: usize = 8 << 20;
/// Time limit for the runtime to end its blocking threads.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Files that a process may need open: each volume takes a journal, a listener, its clients'
/// connections and some of the store's, and there are hundreds of volumes at the most.
const FILES_WANTED: u64 = 4096;
/// The most where nothing limits it: loops over all possible file descriptors must end.
const FILES_MAX: u64 = 1 << 20;

/// Runs `main` on a runtime whose threads the kernel does not throttle when it writes back to us: a
/// server of a loopback mount that waits for its own mount's pages is a deadlock
/// (`PR_SET_IO_FLUSHER`; needs CAP_SYS_RESOURCE).
pub fn run<T>(main: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    super::bound_allocator();
    raise_files();
    io_flusher();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("zerofs")
        .on_thread_start(io_flusher)
        .thread_stack_size(STACK_BYTES)
        .build()
        .context("starting threads")?;
    let result = runtime.block_on(main);
    runtime.shutdown_timeout(SHUTDOWN);
    result
}

/// Raises the soft limit of open files: on many systems it is 1,024, and the hard limit is higher.
fn raise_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let most = now.maximum.unwrap_or(FILES_MAX);
    let mut files = now.current.unwrap_or(u64::MAX);
    if files < most.min(FILES_MAX) {
        match setrlimit(
            Resource::Nofile,
            Rlimit { current: Some(most.min(FILES_MAX)), maximum: now.maximum },
        ) {
            Ok(()) => files = most.min(FILES_MAX),
            Err(error) => tracing::debug!(%error, "cannot raise the limit of open files"),
        }
    }
    if files < FILES_WANTED {
        tracing::warn!(
            files,
            "the limit of open files is low: connections and volumes beyond it are refused; raise \
             the hard limit to {FILES_WANTED} or more (`ulimit -Hn`, or LimitNOFILE of systemd or \
             of the container runtime)"
        );
    }
}

fn io_flusher() {
    static REFUSED: Once = Once::new();
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        REFUSED.call_once(|| {
            tracing::info!(
                %error,
                "cannot mark this process as an I/O flusher: a loopback mount may stall under \
                 memory pressure; run with CAP_SYS_RESOURCE"
            );
        });
    }
}

/// Makes files that this process creates from now on readable by its own user only: journals,
/// caches and a pool in a folder hold files of volumes, whose owners and modes the machine does not
/// know.
pub fn keep_private() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

/// Cancelled by SIGTERM or SIGINT. A second signal ends the process at once.
pub fn stop_signal() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate()).context("signals")?;
    let mut int = signal(SignalKind::interrupt()).context("signals")?;
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    tokio::spawn(async move {
        for count in 0.. {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            if count > 0 {
                tracing::warn!(
                    "second signal: exiting at once; acknowledged changes are in the journals"
                );
                std::process::exit(130);
            }
            tracing::info!("stopping; flushing and releasing volumes");
            cancelled.cancel();
        }
    });
    Ok(stop)
}
