//! Clients that are slow, or many, or leave.

use super::http::{Ask, read};
use super::server::Server;
use axum::body::Body;
use axum::http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const LARGE: &str = "/pools/main/datasets/web/content?path=/docs/sub/large";

/// Descriptors that the server has open.
fn open(server: &Server) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", server.process.id())).unwrap().count()
}

pub fn wait_until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..300 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_leaves_nothing_behind() {
    let server = Server::start_with("  downloads: 2\n");
    server.fill().await;
    assert_eq!(server.get(LARGE).body.len(), 6_000_000);
    let before = open(&server);
    let archive = "/pools/main/datasets/web/archive?format=tar&path=/&snapshot=s1";
    // More than there are places: each is free again after its client has left.
    for path in [LARGE, archive, LARGE, archive, LARGE, archive] {
        let mut stream = server.by("admin", "GET", path).open();
        let mut some = [0; 1000];
        stream.read_exact(&mut some).unwrap();
        assert!(some.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&some));
        drop(stream);
        wait_until("the place is not free", || {
            server.by("admin", "HEAD", LARGE).send().status == 200 && {
                let reply = server.by("admin", "GET", LARGE).with("range", "bytes=0-0").send();
                reply.status == 206
            }
        });
    }
    wait_until("connections are left open", || open(&server) <= before);
    wait_until("nothing is logged", || server.log().contains("outcome=\"abandoned\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_have_a_limit_and_say_when_to_come_again() {
    let server = Server::start_with("  downloads: 1\n");
    server.fill().await;
    // A reader that takes nothing holds its place; its file does not fit into the sockets' buffers.
    let held = server.by("admin", "GET", LARGE).open();
    // Its answer has begun before others ask: one of them could have the place instead.
    let mut head = [0; 12];
    held.peek(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    let refused = || server.by("admin", "GET", LARGE).with("range", "bytes=0-0").send();
    wait_until("the place is not taken", || refused().status == 429);
    assert_eq!(refused().header("retry-after"), Some("5"));
    assert_eq!(read(held, false).unwrap().body.len(), 6_000_000);
    wait_until("the place is not free", || refused().status == 206);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_sends_too_many_requests_is_slowed_down() {
    let server = Server::start_with("  requestsPerSecond: 1\n");
    let replies: Vec<_> = (0..30).map(|_| server.by("viewer", "GET", "/session").send()).collect();
    assert_eq!(replies[0].status, 200);
    let refused = replies.iter().find(|reply| reply.status == 429).unwrap();
    assert!(refused.problem(429).contains("viewer") && refused.header("retry-after").is_some());
    // Others are not.
    assert_eq!(server.by("reader", "GET", "/session").send().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configured_name_is_known() {
    let server = Server::start_with("  hosts: [nas.example]\n");
    let page = |host: &str| Ask::new(server.admin, "GET", "/").with("host", host).send().status;
    assert_eq!((page("nas.example:80"), page("other.example")), (200, 421));
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_do_not_keep_others_out() {
    let server = Server::start();
    server.fill().await;
    let slow: Vec<TcpStream> = (0..1000)
        .map(|n| {
            let mut stream = TcpStream::connect(server.admin).unwrap();
            // Some send nothing, some a part of the first line, some all but the end.
            let part: &[u8] = match n % 3 {
                0 => b"",
                1 => b"P",
                _ => b"GET /api/v1/pools HTTP/1.1\r\nHost: 127.0.0.1\r\n",
            };
            stream.write_all(part).unwrap();
            stream
        })
        .collect();
    assert_eq!(server.get("/pools").status, 200);
    wait_until("slow clients are not cut off", || {
        slow.iter().all(|stream| {
            stream.set_nonblocking(true).unwrap();
            let error = (&*stream).read(&mut [0; 512]).err();
            error.is_none_or(|error| error.kind() != std::io::ErrorKind::WouldBlock)
        })
    });
    assert_eq!(server.get("/pools").status, 200);
}

/// HTTP/2 has pings for idle connections, which a client answers for as long as it likes.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_token_ends_and_one_with_a_token_stays() {
    let server = Server::start();
    let open = async |path: &str, token: Option<&str>| {
        let stream = tokio::net::TcpStream::connect(server.admin).await.unwrap();
        let (mut asks, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        let lives = tokio::spawn(connection);
        let mut request = Request::get(format!("http://{}{path}", server.admin));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let answer = asks.send_request(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        (asks, lives)
    };
    let known = open("/api/v1/pools", Some(server.token("viewer"))).await;
    let unknown = open("/api/v1/openapi.json", None).await;
    let ended = tokio::time::timeout(Duration::from_secs(40), unknown.1).await;
    assert!(ended.is_ok(), "a connection without a token stays");
    assert!(!known.1.is_finished());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_measure_are_refused() {
    let server = Server::start();
    let ask = |target: &str| Ask::new(server.admin, "GET", target);
    let huge = ask("/api/v1/pools").with("x-huge", &"x".repeat(200 << 10));
    let refused = huge.try_send().map_or(431, |reply| reply.status);
    assert!(matches!(refused, 400 | 431), "{refused}");
    let mut many = ask("/api/v1/pools");
    for n in 0..200 {
        many = many.with(&format!("x-{n}"), "x");
    }
    let refused = many.try_send().map_or(431, |reply| reply.status);
    assert!(matches!(refused, 400 | 431), "{refused}");
    let long = format!("/api/v1/pools?x={}", "x".repeat(100 << 10));
    let refused = ask(&long).try_send().map_or(414, |reply| reply.status);
    assert!(matches!(refused, 400 | 414 | 431), "{refused}");
    assert_eq!(server.get("/pools").status, 200);
}
