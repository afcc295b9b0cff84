//! A small client of HTTP/1.1 that sends exactly what a test says.

use socket2::{Domain, Socket, Type};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A kernel's own choice may hold a file of some MB that nobody reads.
const RECEIVE_BYTES: usize = 64 << 10;

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The detail of a problem of that status.
    pub fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let problem = self.json();
        assert_eq!(problem["status"], status);
        assert!(problem["type"].as_str().unwrap().starts_with("urn:zerofs-csi:"), "{problem}");
        problem["detail"].as_str().unwrap().to_owned()
    }
}

/// A request that is being written.
#[derive(Clone)]
pub struct Ask {
    at: SocketAddr,
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Ask {
    pub fn new(at: SocketAddr, method: &str, target: &str) -> Self {
        let (method, target) = (method.to_owned(), target.to_owned());
        Self { at, method, target, headers: Vec::new(), body: Vec::new() }
    }

    /// Adds a header, or replaces one.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn json(mut self, body: &serde_json::Value) -> Self {
        self.body = body.to_string().into_bytes();
        self.with("content-type", "application/json")
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !self.headers.iter().any(|(key, _)| key.eq_ignore_ascii_case("host")) {
            text += &format!("Host: {}\r\n", self.at);
        }
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        if !self.body.is_empty() || matches!(self.method.as_str(), "POST" | "PATCH" | "PUT") {
            text += &format!("Content-Length: {}\r\n", self.body.len());
        }
        text += "Connection: close\r\n\r\n";
        [text.as_bytes(), &self.body].concat()
    }

    pub fn at(&self) -> SocketAddr {
        self.at
    }

    /// Sends it, and leaves the answer to the caller, whose socket takes little before it is read.
    pub fn open(&self) -> TcpStream {
        let socket = Socket::new(Domain::for_address(self.at), Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(RECEIVE_BYTES).unwrap();
        socket.connect(&self.at.into()).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&self.bytes()).unwrap();
        stream
    }

    pub fn send(&self) -> Reply {
        self.try_send().unwrap()
    }

    /// # Errors
    /// The answer broke off.
    pub fn try_send(&self) -> std::io::Result<Reply> {
        read(self.open(), self.method == "HEAD")
    }
}

/// Reads an answer up to its end.
pub fn read(stream: impl Read, is_head: bool) -> std::io::Result<Reply> {
    let mut input = BufReader::new(stream);
    let mut line = String::new();
    input.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("no status in {line:?}")))?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_owned(), value.to_owned()));
    }
    let mut reply = Reply { status, headers, body: Vec::new() };
    if is_head || status == 204 || status == 304 {
        return Ok(reply);
    }
    if reply.header("transfer-encoding") == Some("chunked") {
        loop {
            let mut line = String::new();
            input.read_line(&mut line)?;
            let len = usize::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
            let mut chunk = vec![0; len + 2];
            input.read_exact(&mut chunk)?;
            if len == 0 {
                return Ok(reply);
            }
            reply.body.extend_from_slice(&chunk[..len]);
        }
    }
    let len = reply.header("content-length").map_or(0, |len| len.parse().unwrap());
    reply.body = vec![0; len];
    input.read_exact(&mut reply.body)?;
    Ok(reply)
}

/// A path as it stands in a query.
pub fn encoded(path: &[u8]) -> String {
    path.iter().map(|byte| format!("%{byte:02x}")).collect()
}
