//! The operator's port: `/metrics`, `/livez`, `/readyz`, the log's filter, cache administration as JSON and as gRPC, and
//! the order to read the configuration again. A listener of its own, so that it can stay on the loopback.
//!
//! There are no pages here, so what a browser sends on behalf of one (it says so: `Origin`) is nobody's order, and
//! refused: otherwise any page could have a cache on its reader's machine purged.

use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tokio::sync::watch;

use super::{grpc::CacheAdminService, status};
use crate::{
    error::{Error, ErrorKind},
    inventory::Inventory,
    logs::Logs,
    metrics::Metrics,
};

mod cache;
mod config;
mod log;

pub use config::{Reload, Reloaded};

/// What is served, for who asks for something else.
const NOWHERE: &str = "this port has /metrics, /livez, /readyz, /log-level, /cache, /config/reload, and as gRPC \
                       latentgate.v1.CacheAdmin; latentgate.v1.Latents is on the data port";

/// Whether the product is ready, and if not, why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Takes requests.
    Ready,
    /// Not yet, or no more.
    NotReady(Vec<String>),
}

/// What the admin port shows.
#[derive(Clone)]
pub struct Admin {
    /// The app's recorder.
    pub metrics: Metrics,
    /// What is kept. Its gauges are brought up to date before a scrape.
    pub inventory: Inventory,
    /// The log's filter, where the log is this product's.
    pub logs: Option<Logs>,
    /// Kept by the app.
    pub readiness: watch::Receiver<Readiness>,
    /// Reads the configuration again.
    pub reload: Reload,
}

impl Admin {
    /// The routes.
    pub fn router(self) -> Router {
        let grpc = tonic::service::Routes::new(CacheAdminService::new(self.inventory.clone()).server());
        let cache = cache::router(self.inventory.clone()).merge(grpc.into_axum_router().reset_fallback());
        let orders = cache.merge(log::router(self.logs.clone())).merge(config::router(self.reload.clone()));
        Router::new()
            .route("/metrics", get(metrics))
            // The runtime turns, or this would not answer.
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .with_state(self)
            .merge(orders.layer(from_fn(refuse_pages)))
            .fallback(|request: Request| async move { status::nowhere(&request, NOWHERE) })
    }
}

async fn refuse_pages(request: Request, next: Next) -> Response {
    if request.headers().contains_key(header::ORIGIN) {
        let message = "the admin port takes nothing from web pages; ask without the header";
        return status::http(&Error::field(ErrorKind::BadRequest, "origin", message));
    }
    next.run(request).await
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    admin.inventory.report();
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], admin.metrics.render())
}

async fn ready(State(admin): State<Admin>) -> Response {
    let (status, reasons) = match &*admin.readiness.borrow() {
        Readiness::Ready => (StatusCode::OK, Vec::new()),
        Readiness::NotReady(reasons) => (StatusCode::SERVICE_UNAVAILABLE, reasons.clone()),
    };
    (status, cache::json(&json!({ "ready": reasons.is_empty(), "reasons": reasons }))).into_response()
}
