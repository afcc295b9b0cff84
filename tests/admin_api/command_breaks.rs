//! Commands through a server that end before their end: the connection breaks, a signal arrives,
//! nobody reads the output.

use super::command_line::{directly, through};
use super::server::{Server, large};
use crate::support::nfs;
use crate::support::program::{Answer, answer, program};
use std::io::Read;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use zerofs_csi::admin::Client;
use zerofs_csi::admin::grpc::proto::{ListTasksRequest, task::Outcome};

/// Bytes of answers that a relay lets through.
const LET_THROUGH: u64 = 3 << 20;

/// Time by which a relay delays every answer.
const DELAY: Duration = Duration::from_secs(1);

/// What a relay does then.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Goes on; it has delayed every answer.
    Delay,
    /// Closes the connection, as when the server's process dies.
    Break,
    /// Sends nothing more, as when its machine is cut off.
    Hang,
}

/// A relay to a server, for one client at a time.
struct Relay {
    at: SocketAddr,
    /// Bytes of answers so far.
    sent: Arc<AtomicU64>,
}

impl Relay {
    async fn start(to: SocketAddr, then: Then) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let sent = Arc::new(AtomicU64::new(0));
        let count = sent.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, to, then, count.clone()));
            }
        });
        Self { at, sent }
    }

    fn command(&self, server: &Server, args: &[&str]) -> Command {
        let mut command = program(args);
        command.args(["--server", &format!("http://{}", self.at)]);
        let token = if args[0] == "scrub" { "admin" } else { "reader" };
        command.env("ZEROFS_TOKEN", server.token(token));
        command
    }
}

async fn relay(client: TcpStream, to: SocketAddr, then: Then, sent: Arc<AtomicU64>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = TcpStream::connect(to).await.unwrap().into_split();
    let asking = tokio::spawn(async move {
        tokio::io::copy(&mut from_client, &mut to_server).await.ok();
    });
    let mut buffer = vec![0; 16 << 10];
    while let Ok(len @ 1..) = from_server.read(&mut buffer).await {
        if then == Then::Delay {
            tokio::time::sleep(DELAY).await;
        } else if sent.fetch_add(len as u64, Ordering::Relaxed) > LET_THROUGH {
            match then {
                Then::Break => break,
                Then::Delay | Then::Hang => std::future::pending().await,
            }
        }
        if to_client.write_all(&buffer[..len]).await.is_err() {
            break;
        }
    }
    asking.abort();
}

async fn filled() -> Server {
    let server = Server::start();
    server.fill().await;
    server
}

fn spawn(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Its exit status and what it said; what it printed is half a file.
fn ended(child: Child) -> Answer {
    let mut done = child.wait_with_output().unwrap();
    done.stdout.clear();
    done.into()
}

fn interrupt(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
}

async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !is().await {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_is_told_and_leaves_no_half_file() {
    let server = filled().await;
    let relay = Relay::start(server.admin, Then::Break).await;
    let cat = relay.command(&server, &["dataset", "cat", "web@s1", "/docs/sub/large"]).output();
    let cat = cat.unwrap();
    let err = String::from_utf8_lossy(&cat.stderr);
    assert_eq!(cat.status.code(), Some(16), "{err}");
    assert!(
        err.contains("connection to the server broke") && err.contains("run it again"),
        "{err}"
    );
    assert!(!cat.stdout.is_empty() && large().starts_with(&cat.stdout), "what came is right");

    let relay = Relay::start(server.admin, Then::Break).await;
    let target = server.room.path().join("copy");
    let to = target.display().to_string();
    let args = ["dataset", "restore", "web@s1", "/docs", &to];
    let broken = answer(&mut relay.command(&server, &args));
    assert!(broken.code == 16 && broken.err.contains("run it again"), "{broken:?}");
    let left: Vec<_> = std::fs::read_dir(target.join("sub"))
        .map(|entries| entries.map(|entry| entry.unwrap().file_name()).collect())
        .unwrap_or_default();
    assert!(left.is_empty(), "half of a file is left: {left:?}");
    let again = answer(through(&server, &args).arg("--force"));
    assert_eq!(again.code, 0, "{again:?}");
    assert_eq!(std::fs::read(target.join("sub/large")).unwrap(), large());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_ends_its_commands() {
    let server = filled().await;
    let (client, root) = server.client().await;
    for n in 0..8 {
        nfs::write(&client, &root, format!("large-{n}"), &large()).await;
    }
    assert_eq!(
        answer(&mut through(&server, &["dataset", "snapshot", "create", "web", "s3"])).code,
        0
    );
    // The command waits for its output to be read, in the middle of the file.
    let mut cat = spawn(&mut through(&server, &["dataset", "cat", "web@s3", "/large-7"]));
    let mut first = [0; 1000];
    cat.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let scrub = spawn(&mut through(&server, &["scrub", "--rate", "1"]));
    let tasks =
        Client::connect(&format!("unix:{}", server.socket().display()), None).await.unwrap();
    until("the scrub begins", async || {
        let listed = tasks.tasks().list_tasks(ListTasksRequest {}).await.unwrap();
        !listed.into_inner().tasks.is_empty()
    })
    .await;
    server.process.kill();
    for (name, child) in [("cat", cat), ("scrub", scrub)] {
        let ended = ended(child);
        assert!(ended.code == 16 && ended.err.contains("run it again"), "{name}: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_commands_whatever_the_server_does() {
    let server = filled().await;
    let target = server.room.path().join("copy").display().to_string();
    for (args, says) in [
        (&["dataset", "cat", "web@s1", "/docs/sub/large"][..], "not complete"),
        (&["dataset", "restore", "web@s1", "/docs", &target], "run it again with --force"),
    ] {
        let relay = Relay::start(server.admin, Then::Hang).await;
        let mut child = spawn(&mut relay.command(&server, args));
        let mut out = child.stdout.take().unwrap();
        let reading = std::thread::spawn(move || out.read_to_end(&mut Vec::new()));
        until("it hangs", async || relay.sent.load(Ordering::Relaxed) > LET_THROUGH).await;
        interrupt(&child);
        let started = Instant::now();
        let ended = ended(child);
        reading.join().unwrap().unwrap();
        assert!(ended.code == 130 && ended.err.contains(says), "{args:?}: {ended:?}");
        assert!(started.elapsed() < Duration::from_secs(10), "{args:?}");
    }
    assert!(!std::path::Path::new(&target).join("sub/large").exists());

    // Once the command knows its scrub, and before the answer that tells it.
    let client =
        Client::connect(&format!("unix:{}", server.socket().display()), None).await.unwrap();
    let outcome = async || {
        let listed = client.tasks().list_tasks(ListTasksRequest {}).await.unwrap().into_inner();
        listed.tasks.first().map(|task| task.outcome())
    };
    let scrub = ["scrub", "--rate", "1"];
    let relay = Relay::start(server.admin, Then::Delay).await;
    for mut command in [through(&server, &scrub), relay.command(&server, &scrub)] {
        let scrub = spawn(&mut command);
        until("the scrub begins", async || outcome().await == Some(Outcome::Running)).await;
        interrupt(&scrub);
        let ended = ended(scrub);
        assert!(ended.code == 130 && ended.err.contains("was asked to stop"), "{ended:?}");
        until("the server stops it", async || outcome().await == Some(Outcome::Stopped)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_has_to_read_the_output() {
    let server = filled().await;
    for args in [
        &["dataset", "list"][..],
        &["dataset", "list-snapshots", "web"],
        &["dataset", "ls", "-l", "web@s1", "/docs"],
        &["dataset", "find", "*", "web"],
        &["dataset", "diff", "web@s1"],
        &["dataset", "diff", "web@s1", "--stat"],
        &["dataset", "history", "web", "/docs/a.txt"],
        &["dataset", "cat", "web@s1", "/docs/sub/large"],
        &["space"],
    ] {
        assert_eq!(answer(&mut directly(&server, args)).code, 0, "{args:?}");
        let mut child = spawn(&mut through(&server, args));
        drop(child.stdout.take());
        let ended = ended(child);
        assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{args:?}");
    }
}
