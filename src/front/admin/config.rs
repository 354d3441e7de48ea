//! `POST /config/reload`: reads the configuration again.

use std::sync::Arc;

use axum::{Router, extract::State, response::Response, routing::post};
use serde::Deserialize;

use super::{cache, status};
use crate::{error::Error, task::BoxFuture};

/// Reads the configuration again, and what came of it.
pub type Reload = Arc<dyn Fn() -> BoxFuture<'static, Result<Reloaded, Error>> + Send + Sync>;

/// What came of reading the configuration again.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Reloaded {
    /// Keys whose new values are in force.
    pub changed: Vec<String>,
    /// Keys whose new values wait for the next start.
    pub needs_restart: Vec<String>,
}

pub(super) fn router(reload: Reload) -> Router {
    Router::new().route("/config/reload", post(answer)).with_state(reload)
}

async fn answer(State(reload): State<Reload>) -> Response {
    match reload().await {
        Ok(Reloaded { changed, needs_restart }) => {
            cache::json(&serde_json::json!({ "changed": changed, "needs_restart": needs_restart }))
        }
        Err(error) => status::http(&error),
    }
}
