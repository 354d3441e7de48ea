//! The product, assembled. `main` and every test start it here: [`App::bind`], the addresses, then [`App::serve`].

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    admission::Gate,
    backend::{
        Backend,
        upstream::{self, Upstream},
    },
    cache::memory::Memory,
    config::Config,
    front::{
        Times,
        admin::{Admin, Readiness},
        cors, drain,
        grpc::LatentsService,
        http::{Hosts, HttpFront},
        listen::{Listener, tls, unix},
        web,
    },
    hops::Instance,
    job::Limits,
    metrics::Metrics,
    model::{ModelId, ModelSpec, ModelTable, Task},
    pipeline::{Parts, Pipeline, Routes},
    proto, route, task, weights,
};

/// How often samples are folded into their histograms.
const UPKEEP: Duration = Duration::from_secs(5);

mod readiness;

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
    grace: Duration,
}

/// Where it listens, with real ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// gRPC, gRPC-web, health, reflection.
    pub data: SocketAddr,
    /// Metrics, liveness, readiness.
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
        let metrics = Metrics::new();
        metrics.build_info(env!("CARGO_PKG_VERSION"), env!("LATENTGATE_COMMIT"), FEATURES);
        let tls = config.listen.tls.as_ref().map(tls::Acceptor::load).transpose()?;
        let data = bind("listen.data", config.listen.data, config.listen.max_connections).await?;
        let data = data.with_tls(tls).with_unix(unix_socket(&config).await?);
        let admin = bind("listen.admin", config.listen.admin, config.listen.max_connections).await?;
        let address =
            |listener: &Listener| listener.address().map_err(|error| internal("a socket has no address", error));
        let addresses = Addresses { data: address(&data)?, admin: address(&admin)? };

        let (config, found) = find_weights(config).await?;
        let required = config.models.iter().filter(|(_, model)| model.preload);
        let required = required.filter_map(|(name, _)| ModelId::try_new(name)).collect();
        let models = models(&config, &found);
        let instance = Instance::new(fastrand::u64(..));
        let mut configured: Vec<Arc<dyn Backend>> = Vec::new();
        #[cfg(feature = "local")]
        configured.push(Arc::new(local(&config, &models, found, &metrics)?));
        configured.extend(upstream(&config, &models, &instance, &metrics).await?);
        let routes = routes(&config, &models, &first, &configured);
        let backends: Vec<_> = first.into_iter().chain(configured).collect();
        let memory = Memory::new(&config.cache.memory, metrics.clone());
        let pipeline = Pipeline::new(Parts {
            models,
            limits: Limits {
                max_pixels: config.limits.max_pixels,
                max_batch: config.limits.max_batch,
                max_input_bytes: config.limits.max_input.as_u64(),
            },
            gate: Gate::new(config.admission.max_requests, config.admission.memory.as_u64(), metrics.clone()),
            memory: memory.clone(),
            keep_from: config.flight.keep_from,
            flight_deadline: config.flight.time,
            routes,
            metrics: metrics.clone(),
            instance,
        });
        let draining = CancellationToken::new();
        let (health, data_router) = data_router(&config, &pipeline, &metrics, &draining)?;
        let (readiness, watched) = watch::channel(Readiness::NotReady(vec!["starting".to_owned()]));
        let admin_router = Admin { metrics: metrics.clone(), memory, readiness: watched }.router();
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

    /// Serves until `stop` is cancelled; then not ready, no new connections, open requests finish within the grace
    /// period, end.
    pub async fn serve(self, stop: CancellationToken) {
        let Self { data, admin, metrics, required, backends, readiness, draining, health, grace, .. } = self;
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
        admin_stop.cancel();
        if let Err(error) = admin.join().await {
            tracing::error!(%error, "the admin listener panicked");
        }
        drop((watching, upkeep, draining));
    }
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

async fn bind(key: &'static str, address: SocketAddr, max_connections: usize) -> Result<Listener, StartError> {
    Listener::bind(key, address, max_connections).await.map_err(|source| StartError::Bind { key, address, source })
}

async fn unix_socket(config: &Config) -> Result<Option<unix::Socket>, StartError> {
    let Some(path) = &config.listen.socket else { return Ok(None) };
    let mode = config.listen.socket_mode;
    let socket = unix::Socket::bind(path, mode).await?;
    tracing::info!(path = %path.display(), %mode, "the data port is on a Unix socket too");
    Ok(Some(socket))
}

/// The data port: the service, health, reflection, as gRPC and as gRPC-web.
fn data_router(
    config: &Config,
    pipeline: &Pipeline,
    metrics: &Metrics,
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
    let endless = tonic::service::Routes::new(health_service).add_service(reflection).into_axum_router();
    let latents = tonic::service::Routes::new(LatentsService::new(pipeline.clone(), metrics.clone(), times));
    let grpc = latents.into_axum_router().reset_fallback();
    let grpc = grpc.merge(drain::end_with(endless.reset_fallback(), draining.clone()));
    let http = HttpFront::new(pipeline.clone(), metrics.clone(), times, Hosts::new(&config.hosts));
    // CORS goes around everything that the port serves, so it comes last.
    Ok((health, cors::over(web::over(grpc).merge(http.router()), &config.cors)))
}

/// A model's weights, or what is said of their absence.
type FoundWeights = Vec<(ModelId, Result<weights::Found, String>)>;

/// Looks for the weights of every model. Those that the configuration names must be there; those that are merely known
/// by name may be absent.
async fn find_weights(config: Config) -> Result<(Config, FoundWeights), StartError> {
    let search = move || {
        let hub: Option<PathBuf> = config.weights.hub_cache.clone();
        let mut all = Vec::new();
        for spec in config.model_table().iter() {
            let is_named =
                config.models.get(spec.id.as_str()).is_some_and(|model| model.weights.is_some() || model.preload);
            let found = match weights::find(spec, hub.as_deref()) {
                Err(source) if is_named => return Err(StartError::Weights { model: spec.id.clone(), source }),
                found => found.map_err(|error| crate::error::chain(&error)),
            };
            all.push((spec.id.clone(), found));
        }
        Ok((config, all))
    };
    task::blocking(search).await.map_err(|panic| internal("looking for weights panicked", panic))?
}

/// The model table with the checkpoints' own numbers.
fn models(config: &Config, found: &FoundWeights) -> ModelTable {
    let mut table = config.model_table();
    for (id, found) in found {
        let Some(spec) = table.get(id.as_str()).map(|spec| (**spec).clone()) else { continue };
        table.insert(match found {
            Ok(found) => with_checkpoint(spec, found, config),
            Err(_) => without_weights(spec, config),
        });
    }
    table
}

/// A model that upstream serves alone does what its endpoints do.
fn without_weights(mut spec: ModelSpec, config: &Config) -> ModelSpec {
    let does = |task: &Task| !spec.endpoints(*task).is_empty();
    let tasks: Vec<_> = spec.tasks.iter().copied().filter(does).collect();
    if !tasks.is_empty() && policy(config, &spec.id).contains(&route::Name::Upstream) {
        spec.tasks = tasks;
    }
    spec
}

/// The backends that a model's jobs are for, in order.
fn policy<'a>(config: &'a Config, model: &ModelId) -> &'a [route::Name] {
    let own = config.models.get(model.as_str()).and_then(|model| model.backends.as_ref());
    own.unwrap_or(&config.route.backends)
}

/// The upstream backend of the models whose jobs may go there; none if there are none.
async fn upstream(
    config: &Config,
    models: &ModelTable,
    instance: &Instance,
    metrics: &Metrics,
) -> Result<Option<Arc<dyn Backend>>, StartError> {
    let may = |spec: &&Arc<ModelSpec>| {
        let has_endpoints = Task::ALL.iter().any(|task| !spec.endpoints(*task).is_empty());
        has_endpoints && policy(config, &spec.id).contains(&route::Name::Upstream)
    };
    let specs: Vec<_> = models.iter().filter(may).cloned().collect();
    let (config, instance, metrics) = (config.upstream.clone(), instance.clone(), metrics.clone());
    if specs.is_empty() {
        return Ok(None);
    }
    let names: Vec<_> = specs.iter().map(|spec| spec.id.as_str()).collect();
    tracing::info!(models = names.join(","), "misses of these models may go to upstream endpoints");
    let start = move || Upstream::start(&config, &specs, instance, metrics);
    let started = task::blocking(start).await.map_err(|panic| internal("preparing the upstream panicked", panic))?;
    Ok(Some(Arc::new(started?)))
}

/// Whom to ask for each model: the caller's own first, then those of the policy.
fn routes(config: &Config, models: &ModelTable, first: &[Arc<dyn Backend>], configured: &[Arc<dyn Backend>]) -> Routes {
    let route = |spec: &Arc<ModelSpec>| {
        let named = |name: &route::Name| configured.iter().find(|backend| backend.name() == name.label());
        let chosen = policy(config, &spec.id).iter().filter_map(named);
        (spec.id.clone(), first.iter().chain(chosen).cloned().collect())
    };
    Routes { by_model: models.iter().map(route).collect(), spill_at: config.route.spill_at }
}

/// What the checkpoint says stands above what is known by name, and below what the configuration says.
fn with_checkpoint(mut spec: ModelSpec, found: &weights::Found, config: &Config) -> ModelSpec {
    let own = config.models.get(spec.id.as_str());
    let numbers = &found.numbers;
    // What is known by name holds for the checkpoint it is known of; another family has other defaults.
    let fallback = if numbers.family == spec.family { spec.scaling } else { numbers.family.default_scaling() };
    spec.family = numbers.family;
    spec.latent_channels = numbers.latent_channels;
    spec.tasks.clone_from(&found.tasks);
    spec.scaling.factor = own.and_then(|own| own.scaling_factor).or(numbers.scaling_factor).unwrap_or(fallback.factor);
    spec.scaling.shift = own.and_then(|own| own.shift_factor).or(numbers.shift_factor).unwrap_or(fallback.shift);
    let is_declared = own.is_some_and(|own| own.revision.is_some());
    if !is_declared && !matches!(spec.weights, crate::model::WeightsSource::Hub { .. }) {
        spec.revision = format!("blake3:{}", found.fingerprint);
    }
    spec
}

#[cfg(feature = "local")]
fn local(
    config: &Config,
    table: &ModelTable,
    found: FoundWeights,
    metrics: &Metrics,
) -> Result<crate::backend::local::Local, StartError> {
    use crate::backend::local::{Local, LocalModel, ReadWeights, Weights};
    let model = |(id, found): (ModelId, Result<weights::Found, String>)| {
        let spec = table.get(id.as_str())?.clone();
        let preload = config.models.get(id.as_str()).is_some_and(|model| model.preload);
        let weights = found.map(|found| {
            let read = move || Ok(Weights { config: found.config.clone(), tensors: found.read()? });
            Box::new(read) as ReadWeights
        });
        Some(LocalModel { spec, weights, preload })
    };
    Ok(Local::start(&config.engine, found.into_iter().filter_map(model).collect(), metrics.clone())?)
}
