//! `/healthz`, `/readyz` and `/metrics`.
//!
//! A process is healthy while it can answer at all: restarting it helps against nothing else, and a node plugin's restart is a
//! pause for its mounts. It is ready once every pool is open.

use crate::bucket::Requests;
use crate::control::Pools;
use crate::volume::Volumes;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The process before this one may still have the address: it is asked for again after this.
const BIND_AGAIN: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(super) struct Health {
    pub pools: Pools,
    pub volumes: Volumes,
}

/// Serves until stopped. A process works without: an address that is taken is no reason to end.
pub(super) async fn serve(at: SocketAddr, health: Health, stop: CancellationToken) {
    let app = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(health);
    loop {
        match tokio::net::TcpListener::bind(at).await {
            Ok(listener) => {
                let served = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await;
                if let Err(error) = served {
                    tracing::error!(%at, %error, "health is not served any more");
                }
                return;
            }
            Err(error) => {
                tracing::warn!(%at, %error, "health cannot be served there yet: free the address, or give another --health-listen");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(BIND_AGAIN) => {}
        }
    }
}

async fn ready(State(health): State<Health>) -> impl IntoResponse {
    let waiting = health.pools.not_open();
    if waiting.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let lines = waiting.into_iter().map(|(pool, why)| format!("pool {pool} is not open yet: {why}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines)
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    ([("content-type", "text/plain; version=0.0.4")], text(&health))
}

/// A label's value, as the text format wants it.
fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn text(health: &Health) -> String {
    let mut text = String::from("# HELP zerofs_pool_open Whether the pool is open.\n# TYPE zerofs_pool_open gauge\n");
    let mut line = |line: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = text.write_fmt(line);
    };
    health.pools.iter().for_each(|pool| line(format_args!("zerofs_pool_open{{pool=\"{}\"}} 1\n", label(&pool.name))));
    health.pools.not_open().iter().for_each(|(pool, _)| line(format_args!("zerofs_pool_open{{pool=\"{}\"}} 0\n", label(pool))));
    line(format_args!("# HELP zerofs_volumes_open Volumes that this process has open.\n# TYPE zerofs_volumes_open gauge\n"));
    line(format_args!("zerofs_volumes_open {}\n", health.volumes.list().len()));
    line(format_args!("# HELP zerofs_requests_total Requests to the pool's object store.\n# TYPE zerofs_requests_total counter\n"));
    for pool in health.pools.iter() {
        let Requests { get, put, list, delete, head } = pool.catalog.bucket().requests();
        for (kind, count) in [("get", get), ("put", put), ("list", list), ("delete", delete), ("head", head)] {
            let pool = label(&pool.name);
            line(format_args!("zerofs_requests_total{{pool=\"{pool}\",kind=\"{kind}\"}} {count}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::Bucket;
    use crate::catalog::Catalog;
    use crate::control::Pool;

    #[tokio::test]
    async fn a_process_is_ready_once_its_pools_are_open() {
        let config = crate::app::Config::default();
        let pools = Pools::waiting(["a\"b".to_owned()], None).unwrap();
        let parts = crate::app::Parts::over(config, pools.clone(), "n".to_owned(), None).await.unwrap();
        let health = Health { pools: pools.clone(), volumes: parts.volumes };
        pools.not_yet("a\"b", "no answer".to_owned());
        let answer = ready(State(health.clone())).await.into_response();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        let body = axum::body::to_bytes(answer.into_body(), 1000).await.unwrap();
        assert_eq!(body, "pool a\"b is not open yet: no answer\n");
        assert!(text(&health).contains("zerofs_pool_open{pool=\"a\\\"b\"} 0\n"));

        let catalog = Catalog::create(Bucket::memory(), None).await.unwrap();
        pools.opened(Pool { name: "a\"b".to_owned(), catalog, folder: None }).unwrap();
        assert_eq!(ready(State(health.clone())).await.into_response().status(), StatusCode::OK);
        let text = text(&health);
        assert!(text.contains("zerofs_pool_open{pool=\"a\\\"b\"} 1\n") && text.contains("kind=\"put\"} "), "{text}");
    }
}
