//! The server under load: the product in this process, or one that is named and on this machine.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, ensure};
use latentgate::{App, Config, app::Addresses};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// A running product with threads of its own, as in a process of its own.
pub(crate) struct Server {
    runtime: Runtime,
    addresses: Addresses,
    stop: CancellationToken,
    serving: latentgate::task::Task<()>,
}

impl Server {
    /// Starts it with its default configuration, on ports that the system chooses.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut config = Config::default();
        config.listen.data.set_port(0);
        config.listen.admin.set_port(0);
        let (runtime, stop) = (runtime()?, CancellationToken::new());
        let app = runtime.block_on(App::bind(config))?;
        let addresses = app.addresses();
        let until = stop.clone();
        let serving = runtime.block_on(async { latentgate::task::spawn(tracing::Span::none(), app.serve(until)) });
        Ok(Self { runtime, addresses, stop, serving })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addresses.data)
    }

    pub(crate) fn admin_url(&self) -> String {
        format!("http://{}", self.addresses.admin)
    }

    /// Ends it in order.
    pub(crate) fn stop(self) {
        let Self { runtime, stop, serving, .. } = self;
        stop.cancel();
        if let Err(error) = runtime.block_on(serving.join()) {
            tracing::error!(%error, "the server panicked");
        }
    }
}

/// The program's own kind of runtime.
pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime does not start")
}

/// The URL of a server on this machine. Others are refused: a load is for one's own.
pub(crate) fn on_loopback(url: &str) -> anyhow::Result<String> {
    let uri: http::Uri = url.parse().with_context(|| format!("--server {url} is no URL"))?;
    let authority = uri.authority().with_context(|| format!("--server {url} names no host"))?;
    ensure!(authority.port_u16().is_some(), "--server {url}: wanted http://HOST:PORT");
    let host = authority.host();
    let address = authority.as_str().parse::<SocketAddr>().map(|address| address.ip());
    let is_loopback = host == "localhost" || address.as_ref().is_ok_and(IpAddr::is_loopback);
    ensure!(is_loopback, "--server {url}: loads only servers on this machine (127.0.0.1, [::1], localhost)");
    Ok(url.to_owned())
}
