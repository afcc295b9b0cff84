//! The part of Kubernetes' API that is needed: the list and the watch of Nodes, with a pod's own credentials.
//!
//! Not by the `kube` crate: it would bring some thirty crates for one resource, and two calls are easier to bound. As its watcher does, a list is read in
//! pages, a watch goes on after the last version that was seen, and begins with a new list when the server says that this is too old (410).

use bytes::BytesMut;
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where a pod finds its ServiceAccount.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// For a page of a list, and for the first answer of a watch.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// The server ends a watch after this, so that one that is silently dead is noticed soon after.
const WATCH_SECS: u64 = 90;
/// Nodes in a page.
const PAGE: usize = 200;
/// Pages of a list: more nodes than there can be.
const PAGES_MAX: usize = 200;
/// The largest object, or page of objects, that is read. An object is at most 1.5 MiB in Kubernetes' own store.
const OBJECT_BYTES_MAX: usize = 4 << 20;
const PAGE_BYTES_MAX: usize = 64 << 20;
/// A token is a few kilobytes.
const TOKEN_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The server has forgotten what followed the version that was asked for.
    #[error("the version that was last seen is too old")]
    TooOld,
    #[error("the watch has ended")]
    Ended,
    #[error("the API server refuses: {0}")]
    Denied(StatusCode),
    #[error("the API server answers {0}")]
    Status(StatusCode),
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    #[error("the API server says what is not understood: {0}")]
    Nonsense(String),
    #[error("the ServiceAccount's token cannot be read: {0}")]
    Token(String),
}

impl From<reqwest::Error> for ApiError {
    fn from(error: reqwest::Error) -> Self {
        use std::error::Error;
        Self::Unreachable(error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}")))
    }
}

/// What is read of a Node.
#[derive(Debug, Deserialize)]
pub struct Node {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    resource_version: String,
    #[serde(rename = "continue")]
    more: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    taints: Vec<Taint>,
}

#[derive(Debug, Deserialize)]
struct Taint {
    key: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    node_info: NodeInfo,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeInfo {
    #[serde(rename = "bootID")]
    boot_id: String,
}

impl Node {
    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    /// The run of the machine; none: its kubelet has not said yet.
    pub fn boot(&self) -> Option<&str> {
        Some(self.status.node_info.boot_id.as_str()).filter(|boot| !boot.is_empty())
    }

    pub fn has_taint(&self, key: &str) -> bool {
        self.spec.taints.iter().any(|taint| taint.key == key)
    }
}

#[derive(Deserialize)]
struct Page {
    metadata: Metadata,
    #[serde(default)]
    items: Vec<Node>,
}

#[derive(Debug)]
pub enum Change {
    Put(Node),
    Removed(Node),
    /// Only time went on.
    Nothing,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: serde_json::Value,
}

/// A way to the API server. The token is read anew for each request: kubelet renews it.
#[derive(Clone, Debug)]
pub struct Api {
    client: Client,
    nodes: Url,
    token: Option<PathBuf>,
}

impl Api {
    /// As a pod; `None`: this is none, or one without a ServiceAccount.
    ///
    /// # Errors
    /// When it is one, and its certificate cannot be used.
    pub fn in_cluster() -> Result<Option<Self>, ApiError> {
        let var = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        let token = Path::new(ACCOUNT).join("token");
        let (Some(host), Some(port), true) = (var("KUBERNETES_SERVICE_HOST"), var("KUBERNETES_SERVICE_PORT"), token.exists())
        else {
            return Ok(None);
        };
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        Self::at(&format!("https://{host}:{port}"), Some(token), Some(&Path::new(ACCOUNT).join("ca.crt"))).map(Some)
    }

    /// `ca`: the only authority that is trusted; `None`: those of the system.
    pub fn at(server: &str, token: Option<PathBuf>, ca: Option<&Path>) -> Result<Self, ApiError> {
        let unusable = |why: String| ApiError::Unreachable(why);
        let nodes = Url::parse(server).and_then(|at| at.join("/api/v1/nodes")).map_err(|e| unusable(format!("{server}: {e}")))?;
        // The API server is never behind a proxy that is meant for the way out.
        let mut builder = Client::builder().no_proxy().connect_timeout(CONNECT_LIMIT).redirect(reqwest::redirect::Policy::none());
        if let Some(ca) = ca {
            let pem = std::fs::read(ca).map_err(|e| unusable(format!("{}: {e}", ca.display())))?;
            builder = builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(&pem)?);
        }
        Ok(Self { client: builder.build()?, nodes, token })
    }

    /// All nodes, and the version to watch from.
    pub(super) async fn list(&self) -> Result<(Vec<Node>, String), ApiError> {
        let (mut nodes, mut more) = (Vec::new(), String::new());
        for _ in 0..PAGES_MAX {
            let query = [("limit", PAGE.to_string()), ("continue", more)];
            let read = async { whole(self.ask(&query).await?).await };
            let body = tokio::time::timeout(ANSWER_LIMIT, read).await.map_err(|_| slow())??;
            let page: Page = serde_json::from_slice(&body).map_err(|e| ApiError::Nonsense(e.to_string()))?;
            nodes.extend(page.items);
            more = page.metadata.more;
            if more.is_empty() {
                return Ok((nodes, page.metadata.resource_version));
            }
        }
        Err(ApiError::Nonsense("the list of nodes has no end".to_owned()))
    }

    pub(super) async fn watch(&self, version: &str) -> Result<Watch, ApiError> {
        let query = [
            ("watch", "true".to_owned()),
            ("allowWatchBookmarks", "true".to_owned()),
            ("resourceVersion", version.to_owned()),
            ("timeoutSeconds", WATCH_SECS.to_string()),
        ];
        let response = tokio::time::timeout(ANSWER_LIMIT, self.ask(&query)).await.map_err(|_| slow())??;
        Ok(Watch { response, read: BytesMut::new(), heard: Instant::now(), version: version.to_owned() })
    }

    async fn ask(&self, query: &[(&str, String)]) -> Result<Response, ApiError> {
        let mut url = self.nodes.clone();
        url.query_pairs_mut().extend_pairs(query.iter().filter(|(_, value)| !value.is_empty()));
        let mut request = self.client.get(url);
        if let Some(path) = &self.token {
            request = request.bearer_auth(token(path).map_err(|e| ApiError::Token(format!("{}: {e}", path.display())))?);
        }
        let response = request.send().await?;
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::GONE => Err(ApiError::TooOld),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Err(ApiError::Denied(status)),
            status => Err(ApiError::Status(status)),
        }
    }
}

fn token(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut token = String::new();
    std::fs::File::open(path)?.take(TOKEN_BYTES_MAX).read_to_string(&mut token)?;
    Ok(token.trim().to_owned())
}

fn slow() -> ApiError {
    ApiError::Unreachable(format!("no answer in {} s", ANSWER_LIMIT.as_secs()))
}

async fn whole(mut response: Response) -> Result<BytesMut, ApiError> {
    let mut body = BytesMut::new();
    while let Some(part) = response.chunk().await? {
        if body.len() + part.len() > PAGE_BYTES_MAX {
            return Err(ApiError::Nonsense("a page of the list of nodes is too large".to_owned()));
        }
        body.extend_from_slice(&part);
    }
    Ok(body)
}

/// A watch: JSON objects, one a line.
pub(super) struct Watch {
    response: Response,
    /// What was read and is not a whole line yet.
    read: BytesMut,
    heard: Instant,
    /// What was seen last: the next watch goes on after it.
    pub version: String,
}

impl Watch {
    /// Longer than this a watch that lives is not silent.
    pub const SILENCE_MAX: Duration = Duration::from_secs(WATCH_SECS + 15);

    /// The next change. May be given up and called again.
    pub async fn next(&mut self) -> Result<Change, ApiError> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.split_to(end + 1);
                return self.change(&line);
            }
            if self.read.len() > OBJECT_BYTES_MAX {
                return Err(ApiError::Nonsense("an event of a watch is too large".to_owned()));
            }
            let left = Self::SILENCE_MAX.saturating_sub(self.heard.elapsed());
            match tokio::time::timeout(left, self.response.chunk()).await {
                Ok(Ok(Some(part))) => {
                    self.heard = Instant::now();
                    self.read.extend_from_slice(&part);
                }
                Ok(Ok(None)) | Err(_) => return Err(ApiError::Ended),
                Ok(Err(error)) => return Err(error.into()),
            }
        }
    }

    fn change(&mut self, line: &[u8]) -> Result<Change, ApiError> {
        let nonsense = |error: serde_json::Error| ApiError::Nonsense(error.to_string());
        let Event { kind, object } = serde_json::from_slice(line).map_err(nonsense)?;
        if kind == "ERROR" {
            let code = object["code"].as_u64().and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok());
            return Err(match code {
                Some(StatusCode::GONE) | None => ApiError::TooOld,
                Some(code) => ApiError::Status(code),
            });
        }
        let node: Node = serde_json::from_value(object).map_err(nonsense)?;
        self.version.clone_from(&node.metadata.resource_version);
        Ok(match kind.as_str() {
            "ADDED" | "MODIFIED" => Change::Put(node),
            "DELETED" => Change::Removed(node),
            _ => Change::Nothing,
        })
    }
}
