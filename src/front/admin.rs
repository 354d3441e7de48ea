//! The operator's port: `/metrics`, `/livez`, `/readyz`. A listener of its own, so that it can stay on the loopback.

use std::sync::Arc;

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use tokio::sync::watch;

use crate::{
    cache::{disk::Disk, fill::Fill, memory::Memory},
    metrics::Metrics,
};

/// Whether the product is ready, and if not, why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Takes requests.
    Ready,
    /// Not yet, or no more.
    NotReady(Vec<String>),
}

/// What the admin port shows.
pub struct Admin {
    /// The app's recorder.
    pub metrics: Metrics,
    /// Its gauges are brought up to date before a scrape.
    pub memory: Memory,
    /// Likewise.
    pub disk: Option<Disk>,
    /// Likewise.
    pub fills: Vec<Fill>,
    /// Kept by the app.
    pub readiness: watch::Receiver<Readiness>,
}

impl Admin {
    /// The routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/metrics", get(metrics))
            // The runtime turns, or this would not answer.
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .with_state(Arc::new(self))
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    admin.memory.report();
    admin.disk.iter().for_each(Disk::report);
    admin.fills.iter().for_each(Fill::report);
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], admin.metrics.render())
}

async fn ready(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    match &*admin.readiness.borrow() {
        Readiness::Ready => (StatusCode::OK, "ready\n".to_owned()),
        Readiness::NotReady(reasons) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", reasons.join("; ")))
        }
    }
}
