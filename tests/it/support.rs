//! What every test stands on: a running app, its client, a backend with gates.

pub mod browser;
mod client;
#[cfg(feature = "local")]
pub mod collector;
mod gated;
pub mod http;
pub mod origin;
#[cfg(feature = "local")]
pub mod program;
#[cfg(feature = "local")]
pub mod pytorch;
pub mod rig;
pub mod tls;

use std::{sync::Arc, time::Duration};

use latentgate::{
    App, Config,
    app::{Addresses, Reloader, Source},
    backend::Backend,
    config::ConfigError,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub use client::{Answer, Client, collect, decode_spec, encode_spec, latents, reason};
pub use gated::Gated;

/// How long anything may take before a test gives up on it: far beyond what a loaded machine needs.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A running app.
pub struct TestApp {
    pub addresses: Addresses,
    pub pipeline: latentgate::pipeline::Pipeline,
    pub reloader: Reloader,
    stop: CancellationToken,
    served: Option<JoinHandle<()>>,
}

/// The default configuration on ephemeral ports.
pub fn config() -> Config {
    let mut config = Config::default();
    config.listen.data.set_port(0);
    config.listen.admin.set_port(0);
    // Nothing leaves this machine.
    config.route.backends = vec![latentgate::route::Name::Local];
    // Many apps at a time, each with an engine of its own.
    #[cfg(feature = "local")]
    {
        config.engine.threads = 2;
    }
    config
}

impl TestApp {
    /// The product as configured.
    pub async fn start(config: Config) -> Self {
        Self::serve(App::bind(config).await.expect("the app binds"))
    }

    /// With a gated backend in front of the engine.
    pub async fn gated(config: Config) -> (Self, Arc<Gated>) {
        let gated = Gated::new();
        let first: Vec<Arc<dyn Backend>> = vec![gated.clone()];
        (Self::serve(App::bind_with(config, first).await.expect("the app binds")), gated)
    }

    fn serve(app: App) -> Self {
        let (addresses, pipeline, stop) = (app.addresses(), app.pipeline().clone(), CancellationToken::new());
        let reloader = app.reloader().clone();
        let served = tokio::spawn(app.serve(stop.clone()));
        Self { addresses, pipeline, reloader, stop, served: Some(served) }
    }

    /// A client with a connection of its own.
    pub async fn client(&self) -> Client {
        Client::connect(self.addresses.data).await
    }

    /// Has it read its configuration again, from there.
    pub fn read_from(&self, load: impl Fn() -> Result<Config, ConfigError> + Send + 'static) {
        self.reloader.read_from(Source { load: Box::new(load), set_log_filter: None });
    }

    /// Asks the app to stop; it drains.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits for the end of a stopped app.
    pub async fn stopped(&mut self) {
        let served = self.served.take().expect("waited once");
        tokio::time::timeout(PATIENCE, served).await.expect("the app stops").expect("the app does not panic");
    }

    /// `GET` on the admin port: status code and body.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.addresses.admin).await.expect("the admin port answers");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let code = text.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        (code, body)
    }

    /// The sum of a metric over all label sets that contain every one of `labels` (`name="value"`).
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (_, text) = self.admin("/metrics").await;
        let ours = |line: &&str| {
            let is_name = line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
            is_name && labels.iter().all(|label| line.contains(label))
        };
        text.lines().filter(ours).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Waits until a metric has a value; fails with what it is instead.
    pub async fn until(&self, name: &str, labels: &[&str], wanted: f64) {
        let mut last = f64::NAN;
        let reached = async {
            loop {
                last = self.metric(name, labels).await;
                if (last - wanted).abs() < 0.5 {
                    return;
                }
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, reached).await.is_ok();
        assert!(in_time, "{name}{labels:?} is {last}, wanted {wanted}");
    }

    /// Waits until nothing is in flight and no payload memory is reserved.
    pub async fn until_idle(&self) {
        self.until("latentgate_flights", &[], 0.0).await;
        self.until("latentgate_inflight_requests", &[], 0.0).await;
        self.until("latentgate_inflight_bytes", &[], 0.0).await;
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The shared folder of real weights and latents; says plainly when it is absent.
pub fn shared(test: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("LATENTGATE_SHARED").map(std::path::PathBuf::from).filter(|path| path.is_dir());
    if path.is_none() {
        println!("{test}: NOT RUN, LATENTGATE_SHARED does not name a folder with real weights");
    }
    path
}
