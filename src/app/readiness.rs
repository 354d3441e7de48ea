//! Readiness and gRPC health, kept true: ready when every required model can answer, until the end begins.

use std::sync::Arc;

use futures_util::future::select_all;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    backend::{Backend, Health, ModelState},
    front::admin::Readiness,
    model::ModelId,
};

/// Services whose health is told; the empty name is the server as a whole.
const SERVICES: [&str; 2] = ["", "latentgate.v1.Latents"];

/// Until `stop`, after which it says that the server drains.
pub(super) async fn keep(
    required: Vec<ModelId>,
    backends: Vec<Arc<dyn Backend>>,
    readiness: watch::Sender<Readiness>,
    health: HealthReporter,
    stop: CancellationToken,
) {
    let mut watched: Vec<_> = backends.iter().map(|backend| backend.health()).collect();
    loop {
        let stopping = stop.is_cancelled();
        let missing: Vec<String> = required.iter().filter_map(|id| missing(id, &watched)).collect();
        let is_ready = missing.is_empty() && !stopping;
        for service in SERVICES {
            let status = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            health.set_service_status(service, status).await;
        }
        readiness.send_replace(match (is_ready, stopping) {
            (true, _) => Readiness::Ready,
            (false, true) => Readiness::NotReady(vec!["draining".to_owned()]),
            (false, false) => Readiness::NotReady(missing),
        });
        if stopping {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = change(&mut watched) => {}
        }
    }
}

/// The next change of any backend's health. A backend that is gone changes no more: its last word stands.
async fn change(watched: &mut [watch::Receiver<Health>]) {
    let alive: Vec<_> = watched
        .iter_mut()
        .filter(|receiver| receiver.has_changed().is_ok())
        .map(|receiver| Box::pin(receiver.changed()))
        .collect();
    if alive.is_empty() {
        return std::future::pending().await;
    }
    // An error is a backend that has just gone; the next call leaves it out.
    drop(select_all(alive).await);
}

/// Why a required model cannot answer, if it cannot.
fn missing(id: &ModelId, watched: &[watch::Receiver<Health>]) -> Option<String> {
    let states: Vec<_> = watched.iter().filter_map(|receiver| receiver.borrow().get(id).cloned()).collect();
    if states.contains(&ModelState::Ready) {
        return None;
    }
    let why = states.into_iter().find_map(|state| match state {
        ModelState::Failed { why, .. } | ModelState::Unavailable(why) => Some(why),
        ModelState::Ready | ModelState::Idle | ModelState::Loading => None,
    });
    Some(format!("model {id}: {}", why.unwrap_or_else(|| "loading".to_owned())))
}
