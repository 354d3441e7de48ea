//! The demo's own server: the real app on loopback ports that the system chooses, asked as anybody would ask it.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, bail};
use http::Method;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tracing::Span;

use super::MODEL;
use crate::{
    App, Config,
    app::Addresses,
    cli::page,
    config::ModelConfig,
    metrics::Metrics,
    task::{self, Task},
    telemetry::Telemetry,
};

/// Weights of the built-in model are megabytes and in memory already; this is for very slow machines.
const READY_TIMEOUT: Duration = Duration::from_mins(2);
/// Histogram samples of engine runs.
const ENGINE_RUNS: &str = "latentgate_engine_run_seconds_count";

/// A running app. Dropping it ends it.
pub(super) struct Server {
    addresses: Addresses,
    stop: CancellationToken,
    serving: Task<()>,
}

impl Server {
    /// Starts the app and waits until it says over gRPC that it serves.
    pub(super) async fn start() -> anyhow::Result<Self> {
        let mut config = Config::default();
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        (config.listen.data, config.listen.admin) = (any_port, any_port);
        config.models.insert(MODEL.to_owned(), ModelConfig { preload: true, ..ModelConfig::default() });
        "warn".clone_into(&mut config.log.filter);
        Telemetry::install(&config.log, &config.trace, &Metrics::new())?;
        let app = App::bind(config).await?;
        let addresses = app.addresses();
        let stop = CancellationToken::new();
        let serving = task::spawn(Span::none(), app.serve(stop.clone()));
        let server = Self { addresses, stop, serving };
        timeout(READY_TIMEOUT, server.ready())
            .await
            .with_context(|| format!("model {MODEL} was not ready within {READY_TIMEOUT:?}"))??;
        Ok(server)
    }

    /// The data port.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.addresses.data)
    }

    /// How many times the engine has run, by the app's own account.
    pub(super) async fn engine_runs(&self) -> anyhow::Result<u64> {
        let admin = format!("http://{}", self.addresses.admin);
        let page = page::ask(&admin, &Method::GET, "/metrics", "").await?;
        let samples = page.lines().filter(|line| line.starts_with(ENGINE_RUNS));
        let counts = samples.map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<u64>());
        counts.sum::<Result<u64, _>>().context("the metrics are not readable")
    }

    /// Ends it in order.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.serving.join().await {
            tracing::warn!(%error, "the server did not end in order");
        }
    }

    async fn ready(&self) -> anyhow::Result<()> {
        let channel = Channel::from_shared(self.url())?.connect().await.context("the server does not answer")?;
        let service = "latentgate.v1.Latents".to_owned();
        let watched = HealthClient::new(channel).watch(HealthCheckRequest { service }).await?;
        let mut states = watched.into_inner();
        while let Some(state) = states.message().await? {
            if state.status() == ServingStatus::Serving {
                return Ok(());
            }
        }
        bail!("the server ended before it was ready")
    }
}
