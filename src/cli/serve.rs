//! `serve` and `config`.

use std::{io, net::SocketAddr, path::Path};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::reload;
use crate::{
    App, Config,
    app::{Observers, Reloader, Source},
    clients,
    config::{ListenOverrides, Overrides},
    front::listen::tls,
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
    /// Have a running server read its configuration again: what it takes over, and what needs a restart.
    Reload(reload::Reload),
}

impl Serve {
    pub(super) fn run(self, file: Option<&Path>) -> anyhow::Result<()> {
        let listen = ListenOverrides { data: self.listen, admin: self.admin };
        let (file, flags) = (file.map(Path::to_owned), Overrides { listen: Some(listen) });
        let config = Config::load(file.as_deref(), &flags)?;
        runtime()?.block_on(async {
            // From the first moment: without a listener the signal ends the process.
            let hangups = signal(SignalKind::hangup());
            let (metrics, grace) = (Metrics::new(), config.shutdown.grace);
            let telemetry = Telemetry::install(&config.log, &config.trace, &metrics)?;
            let observers = Observers { metrics, logs: Some(telemetry.logs().clone()) };
            let app = App::bind_observed(config, Vec::new(), observers).await?;
            let addresses = app.addresses();
            tracing::info!(data = %addresses.data, admin = %addresses.admin, "serving");
            let stop = CancellationToken::new();
            let reloader = app.reloader().clone();
            let logs = telemetry.logs().clone();
            reloader.read_from(Source {
                load: Box::new(move || Config::load(file.as_deref(), &flags)),
                set_log_filter: Some(Box::new(move |filter| {
                    logs.set_filter(filter).map_err(|error| error.to_string())
                })),
            });
            let _reloads = task::spawn(tracing::Span::none(), reload_on_signal(hangups, reloader));
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
        let is_check = match self {
            Self::Reload(reload) => return runtime()?.block_on(reload.run()),
            Self::Check => true,
            Self::Print => false,
        };
        let config = Config::load(file, &Overrides::default())?;
        if is_check {
            config.listen.tls.as_ref().map(tls::Prepared::read).transpose()?;
            clients::Prepared::read(&config.clients)?;
        }
        #[expect(clippy::print_stdout, reason = "the answer of a command")]
        if is_check {
            println!("the configuration is valid");
        } else {
            print!("{}", config.to_toml());
        }
        Ok(())
    }
}

/// The runtime of every command.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime does not start")
}

/// SIGHUP is the order to read the configuration again.
async fn reload_on_signal(hangups: io::Result<Signal>, reloader: Reloader) {
    match hangups {
        Ok(mut hangups) => {
            while hangups.recv().await.is_some() {
                // What came of it is in the log.
                drop(reloader.reload().await);
            }
        }
        Err(error) => tracing::warn!(%error, "SIGHUP cannot be listened for"),
    }
}

/// Ctrl-C or SIGTERM begins the end; Ctrl-C after that ends at once, with the exit code of one that was interrupted.
async fn stop_on_signal(stop: CancellationToken) {
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
