//! Models in the configuration: changes to known ones, and new ones.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Deserializer, Serialize};

use super::{Config, Fault};
use crate::{
    backend::upstream::{self, Problem},
    model::{Endpoints, Family, ModelId, ModelSpec, ModelTable, Task, WeightsSource},
    route,
};

/// One `[models.NAME]` section. Everything left out stays as it is known, or comes from the checkpoint's `config.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// A diffusers directory or a single `.safetensors` file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
    /// Part of the content key. Default: `main` for known weights, a fingerprint for weights named here.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "text")]
    pub revision: Option<String>,
    /// Overrides the checkpoint's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling_factor: Option<f32>,
    /// Overrides the checkpoint's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift_factor: Option<f32>,
    /// Numbers, names of weights and endpoints of this known model, where nothing else is said here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub like: Option<String>,
    /// Backends in the order they are asked, in place of `route.backends`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backends: Option<Vec<route::Name>>,
    /// Upstream endpoints, in place of the known ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<UpstreamUrls>,
    /// Load it before the first request; readiness waits for it.
    pub preload: bool,
    /// How long its answers are kept at most, in every tier.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub time_to_live: Option<Duration>,
}

/// `[models.NAME.upstream]`: base URLs of endpoints that speak the HTTP protocol. Of several any one answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamUrls {
    /// For decodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub decode: Vec<String>,
    /// For encodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub encode: Vec<String>,
}

impl Config {
    /// The known models with the configured ones on top. Checkpoints have not been looked at yet.
    pub(super) fn check_models(&self, faults: &mut Vec<Fault>) {
        let known = ModelTable::known();
        for (name, model) in &self.models {
            let mut fault = |key: &str, value: String, remedy: &str| {
                let key = [&format!("models.{name}"), key].join(".").trim_end_matches('.').to_owned();
                faults.push(Fault { key, value, remedy: remedy.to_owned() });
            };
            if ModelId::try_new(name).is_none() {
                fault("", name.clone(), "a model name has 1 to 64 letters, digits, '-', '_', '.'");
            }
            let is_own = model.weights.is_some() || model.like.is_some();
            match known.get(name) {
                None if !is_own => {
                    let remedy = "a model that is not known by name needs weights, or `like` a known model";
                    fault("weights", "absent".to_owned(), remedy);
                }
                Some(spec) if spec.id.as_str() != name && !is_own => {
                    fault("", name.clone(), &format!("this is another name of {0}: say [models.{0}]", spec.id));
                }
                _ => {}
            }
            if let Some(like) = model.like.as_ref().filter(|like| own(&known, like).is_none()) {
                fault("like", like.clone(), "no model is known by this name");
            }
            for url in model.upstream.iter().flat_map(|upstream| upstream.decode.iter().chain(&upstream.encode)) {
                if let Err(error) = upstream::check_url(url) {
                    // What is wrong may be a password in it.
                    let shown = url.rsplit_once('@').map_or(url.as_str(), |(_, rest)| rest).to_owned();
                    fault("upstream", shown, &error.to_string());
                }
            }
            if let Some(path) = model.weights.as_ref().filter(|path| !path.exists()) {
                fault("weights", path.display().to_string(), "no such file or directory");
            }
            if let Some(time) = model.time_to_live.filter(|time| !super::validate::is_age(*time)) {
                fault("time_to_live", humantime::format_duration(time).to_string(), super::validate::AGE_REMEDY);
            }
            if let Some(factor) = model.scaling_factor.filter(|factor| !factor.is_normal()) {
                fault("scaling_factor", factor.to_string(), "wanted a finite number, not 0");
            }
            if let Some(shift) = model.shift_factor.filter(|shift| !shift.is_finite()) {
                fault("shift_factor", shift.to_string(), "wanted a finite number");
            }
        }
    }

    /// Hosts and backends name what is there.
    pub(super) fn check_routes(&self, faults: &mut Vec<Fault>) {
        let mut fault = |key: &str, value: String, remedy: &str| {
            faults.push(Fault { key: key.to_owned(), value, remedy: remedy.to_owned() });
        };
        if self.route.backends.is_empty() {
            fault("route.backends", "[]".to_owned(), "name at least one of local, upstream");
        }
        if self.route.spill_at == 0 {
            fault("route.spill_at", "0".to_owned(), "must be at least 1");
        }
        for Problem { key, value, remedy } in self.upstream.problems() {
            fault(&format!("upstream.{key}"), value, remedy);
        }
        let models = self.model_table();
        for (host, target) in &self.hosts {
            if let Err(error) = models.find(target.model.as_str(), target.task) {
                fault(&format!("hosts.{host:?}"), target.to_string(), error.message());
            }
            if host.parse::<http::uri::Authority>().map_or(true, |name| name.as_str() != name.host()) {
                fault(&format!("hosts.{host:?}"), target.to_string(), "wanted a host name without a port");
            }
        }
    }

    /// The known models with the configured ones on top. Numbers of checkpoints are not in yet: `app.rs` reads those.
    pub fn model_table(&self) -> ModelTable {
        let (known, mut table) = (ModelTable::known(), ModelTable::known());
        for (name, config) in &self.models {
            let Some(id) = ModelId::try_new(name) else { continue };
            let base = own(&known, config.like.as_deref().unwrap_or(name));
            let base = match base {
                Some(known) => ModelSpec { id, ..(**known).clone() },
                None => blank(id),
            };
            table.insert(config.applied_to(base));
        }
        table
    }
}

impl ModelConfig {
    fn applied_to(&self, mut spec: ModelSpec) -> ModelSpec {
        if let Some(path) = &self.weights {
            spec.weights = WeightsSource::Path(path.clone());
            // Other weights are another model than the public endpoints serve, unless it is said that they are the same.
            spec.endpoints = Endpoints::default();
        }
        if let Some(UpstreamUrls { decode, encode }) = self.upstream.clone() {
            spec.endpoints = Endpoints { decode, encode };
        }
        if let Some(revision) = &self.revision {
            spec.revision.clone_from(revision);
        }
        spec.time_to_live = self.time_to_live;
        spec.scaling.factor = self.scaling_factor.unwrap_or(spec.scaling.factor);
        spec.scaling.shift = self.shift_factor.unwrap_or(spec.scaling.shift);
        spec
    }
}

/// The model of that very name.
fn own<'a>(table: &'a ModelTable, name: &str) -> Option<&'a Arc<ModelSpec>> {
    table.get(name).filter(|spec| spec.id.as_str() == name)
}

/// Text, also where the source made a number of it: an environment variable of digits alone.
fn text<'de, D: Deserializer<'de>>(source: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Text {
        Text(String),
        Number(u64),
    }
    Ok(Option::<Text>::deserialize(source)?.map(|text| match text {
        Text::Text(text) => text,
        Text::Number(number) => number.to_string(),
    }))
}

/// A model that nothing is known of: its checkpoint tells.
fn blank(id: ModelId) -> ModelSpec {
    ModelSpec {
        id,
        family: Family::AutoencoderKl,
        latent_channels: 4,
        spatial_scale: 8,
        temporal_scale: None,
        scaling: Family::AutoencoderKl.default_scaling(),
        tasks: vec![Task::Decode, Task::Encode],
        revision: String::new(),
        preview: None,
        weights: WeightsSource::Unset,
        endpoints: Endpoints::default(),
        time_to_live: None,
    }
}
