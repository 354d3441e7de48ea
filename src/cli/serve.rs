//! `serve` and `config`.

use std::{net::SocketAddr, path::Path};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::{
    App, Config,
    app::Observers,
    config::{ListenOverrides, Overrides},
    front::listen::tls::Acceptor,
    metrics::Metrics,
    task,
    telemetry::Telemetry,
};

/// 128 + SIGINT, as shells count.
const INTERRUPTED: i32 = 130;

/// Flags of `serve`.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Address of the data port.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Address of the admin port.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
}

/// `config check|print`.
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Judge the configuration; all faults at once.
    Check,
    /// Print the effective configuration as TOML.
    Print,
}

impl Serve {
    pub(super) fn run(self, file: Option<&Path>) -> anyhow::Result<()> {
        let listen = ListenOverrides { data: self.listen, admin: self.admin };
        let config = Config::load(file, &Overrides { listen: Some(listen) })?;
        runtime()?.block_on(async {
            let (metrics, grace) = (Metrics::new(), config.shutdown.grace);
            let telemetry = Telemetry::install(&config.log, &config.trace, &metrics)?;
            let observers = Observers { metrics, logs: Some(telemetry.logs().clone()) };
            let app = App::bind_observed(config, Vec::new(), observers).await?;
            let addresses = app.addresses();
            tracing::info!(data = %addresses.data, admin = %addresses.admin, "serving");
            let stop = CancellationToken::new();
            let _signals = task::spawn(tracing::Span::none(), stop_on_signal(stop.clone()));
            app.serve(stop).await;
            telemetry.flush(grace).await;
            tracing::info!("stopped");
            Ok(())
        })
    }
}

impl ConfigCommand {
    pub(super) fn run(self, file: Option<&Path>) -> anyhow::Result<()> {
        let config = Config::load(file, &Overrides::default())?;
        if let (Self::Check, Some(tls)) = (&self, &config.listen.tls) {
            Acceptor::load(tls)?;
        }
        #[expect(clippy::print_stdout, reason = "the answer of a command")]
        match self {
            Self::Check => println!("the configuration is valid"),
            Self::Print => print!("{}", config.to_toml()),
        }
        Ok(())
    }
}

/// The runtime of every command.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime does not start")
}

/// Ctrl-C or SIGTERM begins the end; Ctrl-C after that ends at once, with the exit code of one that was interrupted.
async fn stop_on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(error) => {
                tracing::warn!(%error, "SIGTERM cannot be listened for");
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = terminated => tracing::info!("SIGTERM: draining"),
        _ = tokio::signal::ctrl_c() => tracing::info!("Ctrl-C: draining"),
    }
    stop.cancel();
    if tokio::signal::ctrl_c().await.is_ok() {
        tracing::warn!("Ctrl-C again: not draining any longer");
        std::process::exit(INTERRUPTED);
    }
}
