//! Resolves arguments to open pools and connected servers.

use super::args::{PoolArgs, PoolOrServer};
use super::exit::Wrong;
use super::remote::Remote;
use crate::app::config::PoolConfig;
use crate::app::{Config, Missing, Parts, open_pools};
use crate::bucket::PoolUrl;
use crate::control::browse::Browser;
use crate::control::{Controller, Pool};
use crate::types::Class;

/// The name of a pool that is given only by its URL.
const UNNAMED: &str = "default";

impl PoolArgs {
    /// The configuration with exactly one pool left in it.
    pub fn config(&self) -> anyhow::Result<Config> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        let url = match self.pool.as_deref() {
            Some(text) if text.contains("://") => Some(text.parse::<PoolUrl>()?),
            Some(name) => {
                if !config.pools.contains_key(name) {
                    let known: Vec<&str> = config.pools.keys().map(String::as_str).collect();
                    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                    return Err(Wrong::new(
                        Class::Invalid,
                        format!(
                            "--pool {name}: neither a URL like s3://BUCKET/PREFIX or \
                             file:///FOLDER nor a configured pool (configured: {known})"
                        ),
                    ));
                }
                config.pools.retain(|key, _| key == name);
                None
            }
            None => None,
        };
        if let Some(url) = url {
            // Credentials of a configured pool hold for its URL.
            let (name, pool) = config.pools.iter().find(|(_, pool)| pool.url == url).map_or_else(
                || (UNNAMED.to_owned(), PoolConfig::at(url.clone())),
                |(name, pool)| (name.clone(), pool.clone()),
            );
            config.pools = [(name, pool)].into();
        }
        if config.pools.len() != 1 && config.default_pool.is_none() {
            let known: Vec<&str> = config.pools.keys().map(String::as_str).collect();
            let why = match (&self.config, known.as_slice()) {
                (None, _) => "--pool URL or --config FILE is required".to_owned(),
                (_, []) => "--pool is required: the configuration has none".to_owned(),
                (_, some) => {
                    format!("--pool is required: the configuration has {}", some.join(", "))
                }
            };
            return Err(Wrong::new(Class::Invalid, why));
        }
        if let Some(default) = config.default_pool.take_if(|_| true)
            && config.pools.len() > 1
        {
            config.pools.retain(|key, _| *key == default);
        }
        for pool in config.pools.values_mut() {
            if let Some(path) = &self.passphrase_file {
                pool.passphrase_file = Some(path.clone());
            }
        }
        Ok(config)
    }

    pub async fn open(&self) -> anyhow::Result<Opened> {
        self.open_or(Missing::Refuse).await
    }

    pub async fn open_or(&self, missing: Missing) -> anyhow::Result<Opened> {
        let config = self.config()?;
        let pools = open_pools(&config, missing).await?;
        let pool = pools.get(None)?.clone();
        // Never a node's name: a command owns no dataset beyond one call.
        let parts = Parts::over(
            config,
            pools.clone(),
            format!("command-{:08x}", rand::random::<u32>()),
            None,
        )
        .await?;
        let controller = Controller::new(pools, parts.volumes.clone())
            .with_owner_timeout(parts.config.owner_timeout);
        let browser = Browser::new(&pool, &parts.volumes);
        Ok(Opened { pool, parts, controller, browser })
    }
}

/// A pool opened by a command.
pub struct Opened {
    pub pool: Pool,
    pub parts: Parts,
    pub controller: Controller,
    pub browser: Browser,
}

/// The source of a command's answer: a pool that it opens itself, or a running server.
pub enum Target {
    /// The pool itself, opened by the command.
    Pool(Box<Opened>),
    /// A server that has the pool open.
    Server(Remote),
}

impl Target {
    /// The name of a dataset that exists; without one, of the default dataset.
    pub async fn live_or_default(&self, name: Option<&str>) -> anyhow::Result<String> {
        match self {
            Self::Pool(opened) => {
                Ok(opened.browser.dataset_or_default(name).await?.name.to_string())
            }
            Self::Server(remote) => remote.live_or_default(name).await,
        }
    }

    /// As [`Self::live_or_default`], but one that is named need not exist: a deleted dataset may
    /// still have snapshots.
    pub async fn name_or_default(&self, name: Option<&str>) -> anyhow::Result<String> {
        match name {
            Some(name) => Ok(name.to_owned()),
            None => self.live_or_default(None).await,
        }
    }
}

/// The environment variable that names the server of commands that name no place.
const SERVER_VARIABLE: &str = "ZEROFS_SERVER";

impl PoolOrServer {
    /// The server's endpoint, if the command goes through one. A pool that is named on the command
    /// line outranks the environment.
    fn endpoint(&self) -> anyhow::Result<Option<String>> {
        let url = self.pool.pool.as_deref().filter(|text| text.contains("://"));
        let names_pool =
            url.is_some() || self.pool.config.is_some() || self.pool.passphrase_file.is_some();
        let Some(given) = &self.server.server else {
            let named = std::env::var(SERVER_VARIABLE).ok().filter(|text| !text.is_empty());
            return Ok(named.filter(|_| !names_pool));
        };
        if names_pool {
            let why = match url {
                Some(url) => format!(
                    "--pool {url}: with --server it is the name of one of the server's pools; \
                     leave it out for the default one"
                ),
                None => "--server takes neither --config nor --passphrase-file: the server has \
                         its own"
                    .to_owned(),
            };
            return Err(Wrong::new(Class::Invalid, why));
        }
        Ok(Some(given.clone()))
    }

    pub async fn target(&self) -> anyhow::Result<Target> {
        Ok(match self.endpoint()? {
            Some(endpoint) => {
                let pool = self.pool.pool.as_deref();
                Target::Server(Remote::connect(&endpoint, &self.server, pool).await?)
            }
            None => Target::Pool(Box::new(self.pool.open().await?)),
        })
    }

    /// The pool, for a command that no server can serve.
    pub async fn pool_itself(&self) -> anyhow::Result<Opened> {
        self.refuse_server()?;
        self.pool.open().await
    }

    /// As [`Self::pool_itself`], where it need not exist yet.
    pub fn pool_itself_at(&self) -> anyhow::Result<Config> {
        self.refuse_server()?;
        self.pool.config()
    }

    /// The server, for a command on its tasks, which no pool has.
    pub async fn server_itself(&self) -> anyhow::Result<Remote> {
        let pool = self.pool.pool.as_deref();
        if let Some(endpoint) = self.endpoint()? {
            return Remote::connect(&endpoint, &self.server, pool).await;
        }
        let names_pool = pool.is_some() || self.pool.config.is_some();
        let class = if names_pool { Class::Unsupported } else { Class::Invalid };
        let why = "tasks are those of a running server, not of a pool: name the server by --server \
                   unix:PATH or https://HOST:PORT, or by ZEROFS_SERVER";
        Err(Wrong::new(class, why))
    }

    fn refuse_server(&self) -> anyhow::Result<()> {
        match self.endpoint()? {
            None => Ok(()),
            Some(_) => Err(Wrong::new(
                Class::Unsupported,
                "this command works on the pool itself, and not through a server: name the pool \
                 by --pool URL or --config FILE; a server that has datasets open need not stop",
            )),
        }
    }
}
