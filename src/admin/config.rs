//! `admin:` of the configuration.

use super::auth::RequestLimits;
use super::auth::tls::TlsFiles;
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Who may come in by a token or certificate; read again when it changes.
    pub tokens_file: Option<PathBuf>,
    /// Names under which the page and the interface may be reached, beside IP addresses and
    /// `localhost`.
    pub hosts: Vec<String>,
    /// Requests a second of each caller, on average; four times as many may come at once.
    pub requests_per_second: Option<u32>,
    /// Downloads of all callers at once.
    pub downloads: Option<usize>,
    pub tls: Option<TlsFiles>,
}

/// Requests that may come at once, for each that may come a second.
const BURST: u32 = 4;

impl AdminConfig {
    pub fn limits(&self) -> RequestLimits {
        let default = RequestLimits::default();
        let per_second = self.requests_per_second.unwrap_or(default.per_second);
        RequestLimits {
            per_second,
            burst: per_second.saturating_mul(BURST),
            downloads: self.downloads.unwrap_or(default.downloads),
        }
    }

    /// # Errors
    /// Names the key and the correct form.
    pub fn check(&self) -> Result<(), String> {
        if self.requests_per_second == Some(0) || self.downloads == Some(0) {
            return Err("admin.requestsPerSecond, admin.downloads: must be at least 1".to_owned());
        }
        match self.hosts.iter().find(|host| host.is_empty() || host.contains([':', '/', ' '])) {
            Some(host) => Err(format!("admin.hosts: {host:?} is not a host name without a port")),
            None => Ok(()),
        }
    }
}
