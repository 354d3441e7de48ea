//! What the log says, looked at and changed while the process runs.
//!
//! ```text
//! GET /log-level     the filter in force, as text
//! PUT /log-level     another one, as text; it holds until the next change or the end of the process
//! ```

use axum::{
    Router,
    extract::State,
    response::{IntoResponse as _, Response},
    routing::get,
};
use bytes::Bytes;

use super::status;
use crate::{error::Error, logs::Logs};

/// None where the program that this runs in has a log of its own.
type Log = Option<Logs>;

pub(super) fn router(logs: Log) -> Router {
    Router::new().route("/log-level", get(show).put(set)).with_state(logs)
}

async fn show(State(logs): State<Log>) -> Response {
    logs.map_or_else(no_log, |logs| told(&logs))
}

async fn set(State(logs): State<Log>, body: Bytes) -> Response {
    let Some(logs) = logs else { return no_log() };
    let before = logs.filter();
    let changed = std::str::from_utf8(&body)
        .map_err(|_| "it is not text".to_owned())
        .and_then(|filter| logs.set_filter(filter).map_err(|error| error.to_string()));
    match changed {
        Ok(()) => {
            tracing::info!(%before, filter = %logs.filter(), "the log has another filter");
            told(&logs)
        }
        Err(why) => {
            let message = format!("{why}; wanted info, debug, latentgate=debug,h2=warn or the like");
            status::http(&Error::bad_request("filter", message))
        }
    }
}

fn told(logs: &Logs) -> Response {
    format!("{}\n", logs.filter()).into_response()
}

fn no_log() -> Response {
    status::not_found("this process has a log that is not latentgate's to filter")
}
