//! The product, assembled. `main` and every test start it here: [`App::bind`], the addresses, then [`App::serve`].

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;

use crate::{
    admission::Gate,
    backend::{Backend, upstream},
    cache::{
        disk::{self, Disk},
        fill::Fill,
        memory::Memory,
    },
    clients,
    config::{self, Config},
    front::{
        Times,
        admin::{Admin, Readiness},
        cors, drain,
        grpc::LatentsService,
        guard::Guard,
        http::{Hosts, HttpFront},
        listen::{self, Listener, tls, unix},
        web,
    },
    hops::Instance,
    inventory::Inventory,
    job::Limits,
    logs::Logs,
    metrics::Metrics,
    model::ModelId,
    pipeline::{Parts, Pipeline},
    proto, task, weights,
};

/// How often samples are folded into their histograms.
const UPKEEP: Duration = Duration::from_secs(5);

mod descriptors;
mod models;
mod readiness;
mod reload;

#[cfg(feature = "local")]
use models::local;
use models::{Askable, find_weights, models, upstream};
pub use reload::{Reloader, SetLogFilter, Source};

/// A bound, not yet serving product.
pub struct App {
    data: Listener,
    admin: Listener,
    addresses: Addresses,
    pipeline: Pipeline,
    metrics: Metrics,
    required: Vec<ModelId>,
    backends: Vec<Arc<dyn Backend>>,
    readiness: watch::Sender<Readiness>,
    draining: CancellationToken,
    health: tonic_health::server::HealthReporter,
    disk: Option<Disk>,
    fills: Vec<Fill>,
    reloader: Reloader,
    grace: Duration,
}

/// What was there before the app, and is told of it.
#[derive(Default)]
pub struct Observers {
    /// The recorder.
    pub metrics: Metrics,
    /// The log of the process, for the admin port; none where the process has one of its own.
    pub logs: Option<Logs>,
}

/// Where it listens, with real ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// gRPC, gRPC-web, health, reflection.
    pub data: SocketAddr,
    /// Metrics, liveness, readiness, cache administration.
    pub admin: SocketAddr,
}

/// Why it does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port cannot be had.
    #[error("{key} = {address} cannot be bound")]
    Bind {
        /// The configuration's key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Weights that the configuration names or wants preloaded are not usable.
    #[error("models.{model}")]
    Weights {
        /// Whose.
        model: ModelId,
        /// Why.
        source: weights::WeightsError,
    },
    /// The upstream backend cannot be prepared.
    #[error(transparent)]
    Upstream(#[from] upstream::StartError),
    /// The data port's certificate and key are not usable.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The named clients cannot be had.
    #[error(transparent)]
    Clients(#[from] clients::ClientsError),
    /// The disk tier's folder cannot be had.
    #[error(transparent)]
    Disk(#[from] disk::OpenError),
    /// The data port's Unix socket cannot be had.
    #[error(transparent)]
    Socket(#[from] unix::BindError),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] crate::error::Error),
}

impl App {
    /// Binds the ports, finds the weights, starts the engine. Nothing is served yet; preloading goes on meanwhile.
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        Self::bind_with(config, Vec::new()).await
    }

    /// The same, with backends of the caller's that are asked before the configured ones.
    pub async fn bind_with(config: Config, first: Vec<Arc<dyn Backend>>) -> Result<Self, StartError> {
        Self::bind_observed(config, first, Observers::default()).await
    }

    /// The same, observed by what the caller has set up.
    pub async fn bind_observed(
        config: Config,
        first: Vec<Arc<dyn Backend>>,
        observers: Observers,
    ) -> Result<Self, StartError> {
        let Observers { metrics, logs } = observers;
        metrics.build_info(env!("CARGO_PKG_VERSION"), env!("LATENTGATE_COMMIT"), FEATURES);
        descriptors::make_room(config.listen.max_connections);
        let reloader = Reloader::start(&config, metrics.clone())?;
        let (data, admin, addresses) = listeners(&config, &reloader).await?;
        let (config, found) = find_weights(config).await?;
        let required = config.models.iter().filter(|(_, model)| model.preload);
        let required = required.filter_map(|(name, _)| ModelId::try_new(name)).collect();
        let models = models(&config, &found);
        let instance = Instance::new(fastrand::u64(..));
        let mut configured: Vec<Arc<dyn Backend>> = Vec::new();
        #[cfg(feature = "local")]
        configured.push(Arc::new(local(&config, &models, found, &metrics)?));
        configured.extend(upstream(&config, &models, &instance, &metrics).await?);
        let askable = Askable { models, first, configured };
        let backends = askable.backends();
        let memory = Memory::new(&config.cache.memory, metrics.clone());
        let disk = open_disk(&config.cache.disk, &metrics).await?;
        let fills = fills(disk.as_ref(), &config.cache.disk, &metrics);
        let pipeline = Pipeline::new(Parts {
            models: askable.models.clone(),
            limits: limits(&config.limits),
            gate: Gate::new(config.admission.max_requests, config.admission.memory.as_u64(), metrics.clone()),
            memory: memory.clone(),
            tiers: fills.clone(),
            keep: config.cache.keep,
            namespace: config.cache.namespace.clone(),
            keep_from: config.flight.keep_from,
            flight_deadline: config.flight.time,
            routes: reloader.route(askable, &config),
            metrics: metrics.clone(),
            instance,
        });
        let draining = CancellationToken::new();
        let guard = Guard::new(reloader.clients());
        let (health, data_router) = data_router(&config, &pipeline, &metrics, guard, &draining)?;
        let (readiness, watched) = watch::channel(Readiness::NotReady(vec!["starting".to_owned()]));
        let inventory = Inventory::new(memory, disk.clone(), fills.clone(), draining.clone());
        let shown = Admin { metrics: metrics.clone(), inventory, logs, readiness: watched, reload: reloader.handle() };
        let admin_router = admin_router(shown, &draining)?;
        Ok(Self {
            data: data.with(data_router),
            admin: admin.with(admin_router),
            addresses,
            pipeline,
            metrics,
            required,
            backends,
            readiness,
            draining,
            health,
            disk,
            fills,
            reloader,
            grace: config.shutdown.grace,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The pipeline, for benchmarks that leave the sockets out.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// What reads the configuration again. Without [`Reloader::read_from`] it reads the files again that the configuration names.
    pub fn reloader(&self) -> &Reloader {
        &self.reloader
    }

    /// Serves until `stop` is cancelled; then not ready, no new connections, open requests finish within the grace
    /// period, end.
    pub async fn serve(self, stop: CancellationToken) {
        let Self { data, admin, metrics, required, backends, readiness, draining, health, disk, fills, .. } = self;
        let (grace, reloader) = (self.grace, self.reloader);
        let rereading = task::spawn(tracing::Span::none(), reloader.watch_files());
        let watching =
            task::spawn(tracing::Span::none(), readiness::keep(required, backends, readiness, health, stop.clone()));
        let upkeep = task::spawn(tracing::Span::none(), async move {
            let mut ticks = tokio::time::interval(UPKEEP);
            loop {
                ticks.tick().await;
                metrics.upkeep();
            }
        });
        // The admin port outlives the data port: a drain can be watched.
        let admin_stop = CancellationToken::new();
        let admin = task::spawn(tracing::Span::none(), admin.serve(admin_stop.clone(), grace));
        let told = stop.clone();
        let draining = task::spawn(tracing::Span::none(), async move {
            told.cancelled().await;
            draining.cancel();
        });
        data.serve(stop, grace).await;
        write_what_waits(&fills, grace).await;
        disk.iter().for_each(Disk::close);
        admin_stop.cancel();
        if let Err(error) = admin.join().await {
            tracing::error!(%error, "the admin listener panicked");
        }
        drop((watching, upkeep, draining, rereading));
    }
}

fn limits(config: &config::Limits) -> Limits {
    let (max_pixels, max_batch, max_input_bytes) = (config.max_pixels, config.max_batch, config.max_input.as_u64());
    Limits { max_pixels, max_batch, max_input_bytes }
}

/// Names of the features this binary was built with.
const FEATURES: &str = if cfg!(feature = "cudnn") {
    "local,cuda,cudnn"
} else if cfg!(feature = "cuda") {
    "local,cuda"
} else if cfg!(feature = "metal") {
    "local,metal"
} else if cfg!(feature = "local") {
    "local"
} else {
    ""
};

fn internal(what: &str, source: impl std::error::Error + Send + Sync + 'static) -> crate::error::Error {
    crate::error::Error::internal(what).caused_by(source)
}

/// Both ports, and where they are.
async fn listeners(config: &Config, reloader: &Reloader) -> Result<(Listener, Listener, Addresses), StartError> {
    let data = bind("listen.data", config.listen.data, config.connection_limits()).await?;
    let data = data.with_tls(reloader.tls()).with_unix(unix_socket(config).await?);
    let admin = bind("listen.admin", config.listen.admin, config.connection_limits()).await?;
    let address = |listener: &Listener| listener.address().map_err(|error| internal("a socket has no address", error));
    let addresses = Addresses { data: address(&data)?, admin: address(&admin)? };
    Ok((data, admin, addresses))
}

async fn bind(key: &'static str, address: SocketAddr, limits: listen::Limits) -> Result<Listener, StartError> {
    Listener::bind(key, address, limits).await.map_err(|source| StartError::Bind { key, address, source })
}

/// The disk tier, if there is to be one.
async fn open_disk(config: &disk::Config, metrics: &Metrics) -> Result<Option<Disk>, StartError> {
    let Some(path) = config.path.clone() else { return Ok(None) };
    let (config, metrics) = (config.clone(), metrics.clone());
    let opened = task::blocking(move || Disk::open(path, &config, metrics)).await;
    Ok(Some(opened.map_err(|panic| internal("opening the disk tier panicked", panic))??))
}

/// The tiers below memory, each behind its queue.
fn fills(disk: Option<&Disk>, config: &disk::Config, metrics: &Metrics) -> Vec<Fill> {
    let fill = |disk: &Disk| Fill::start(Arc::new(disk.clone()), config.queue.as_u64(), metrics.clone());
    disk.map(fill).into_iter().collect()
}

/// What was answered and waits for a tier is written before the end, within the grace period.
async fn write_what_waits(fills: &[Fill], grace: Duration) {
    for fill in fills {
        if tokio::time::timeout(grace, fill.drain()).await.is_err() {
            let tier = fill.tier().name().label();
            tracing::warn!(tier, ?grace, "not everything that waited to be written was; it will be made anew");
        }
    }
}

async fn unix_socket(config: &Config) -> Result<Option<unix::Socket>, StartError> {
    let Some(path) = &config.listen.socket else { return Ok(None) };
    let mode = config.listen.socket_mode;
    let socket = unix::Socket::bind(path, mode).await?;
    tracing::info!(path = %path.display(), %mode, "the data port is on a Unix socket too");
    Ok(Some(socket))
}

/// The admin port, and reflection of what it speaks as gRPC.
fn admin_router(admin: Admin, draining: &CancellationToken) -> Result<axum::Router, StartError> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::ADMIN_DESCRIPTORS)
        // Its proto imports the other one's, whose service is not here.
        .with_service_name(proto::cache_admin_server::SERVICE_NAME)
        .build_v1()
        .map_err(|error| internal("the descriptor set is not readable", error))?;
    let endless = tonic::service::Routes::new(reflection).into_axum_router().reset_fallback();
    Ok(admin.router().merge(drain::end_with(endless, draining.clone())))
}

/// The data port: the service, health, reflection, as gRPC and as gRPC-web.
fn data_router(
    config: &Config,
    pipeline: &Pipeline,
    metrics: &Metrics,
    guard: Guard,
    draining: &CancellationToken,
) -> Result<(tonic_health::server::HealthReporter, axum::Router), StartError> {
    let times = Times { request: config.limits.request_time, stall: config.limits.stall_time };
    let (health, health_service) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| internal("the descriptor set is not readable", error))?;
    // Health and reflection streams never end by themselves: a drain would wait for them in vain.
    let reflection = InterceptedService::new(reflection, guard.clone());
    let endless = tonic::service::Routes::new(health_service).add_service(reflection).into_axum_router();
    let latents = LatentsService::new(pipeline.clone(), guard.clone(), metrics.clone(), times);
    let latents = tonic::service::Routes::new(latents);
    let grpc = latents.into_axum_router().reset_fallback();
    let grpc = grpc.merge(drain::end_with(endless.reset_fallback(), draining.clone()));
    let http = HttpFront::new(pipeline.clone(), guard, metrics.clone(), times, Hosts::new(&config.hosts));
    // CORS goes around everything that the port serves, so it comes last.
    Ok((health, cors::over(web::over(grpc).merge(http.router()), &config.cors)))
}
