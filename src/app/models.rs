//! Models of one process: the table with what their checkpoints say, the backends that compute for them, whom to ask.

use std::{path::PathBuf, sync::Arc};

use super::{StartError, internal};
use crate::{
    backend::{Backend, upstream::Upstream},
    config::Config,
    hops::Instance,
    metrics::Metrics,
    model::{ModelId, ModelSpec, ModelTable, Task},
    pipeline::Policy,
    route, task, weights,
};

/// A model's weights, or what is said of their absence.
pub(super) type FoundWeights = Vec<(ModelId, Result<weights::Found, String>)>;

/// Looks for the weights of every model. Those that the configuration names must be there; those that are merely known
/// by name may be absent.
pub(super) async fn find_weights(config: Config) -> Result<(Config, FoundWeights), StartError> {
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
pub(super) fn models(config: &Config, found: &FoundWeights) -> ModelTable {
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
pub(super) async fn upstream(
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

/// Whom there is to ask.
pub(super) struct Askable {
    pub(super) models: ModelTable,
    /// The caller's own, who are asked before all others.
    pub(super) first: Vec<Arc<dyn Backend>>,
    pub(super) configured: Vec<Arc<dyn Backend>>,
}

impl Askable {
    /// Every one of them.
    pub(super) fn backends(&self) -> Vec<Arc<dyn Backend>> {
        self.first.iter().chain(&self.configured).cloned().collect()
    }

    /// Whom to ask for each model: the caller's own first, then those of the policy.
    pub(super) fn policy(&self, config: &Config) -> Policy {
        let route = |spec: &Arc<ModelSpec>| {
            let named = |name: &route::Name| self.configured.iter().find(|backend| backend.name() == name.label());
            let chosen = policy(config, &spec.id).iter().filter_map(named);
            (spec.id.clone(), self.first.iter().chain(chosen).cloned().collect())
        };
        Policy { by_model: self.models.iter().map(route).collect(), spill_at: config.route.spill_at }
    }

    /// Whether `new` asks nobody for a model who was not there for it by `old`: the upstream backend takes the endpoints of
    /// its models at the start.
    pub(super) fn can_change(&self, old: &Config, new: &Config) -> bool {
        let is_there = |spec: &Arc<ModelSpec>| {
            let known = policy(old, &spec.id);
            policy(new, &spec.id).iter().all(|name| *name != route::Name::Upstream || known.contains(name))
        };
        self.models.iter().all(is_there)
    }
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
pub(super) fn local(
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
